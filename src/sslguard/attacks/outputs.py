"""Wrappings that change each answer by itself, without fitting anything. For noise see `wrapping.OutputNoise`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from sslguard.attacks.base import Wrapping
from sslguard.attacks.wrapping import item_rng
from sslguard.data.base import Batch
from sslguard.encoders.base import Embedder
from sslguard.encoders.load import load_encoder
from sslguard.encoders.wrapped import Wrapped, rows
from sslguard.errors import EncoderError, UsageError
from sslguard.settings import Range, Seed

Array = NDArray[np.float64]
Edit = Literal["round", "top", "truncate", "drop", "pad", "shift", "shuffle", "normalise"]
_PLAIN = ("shuffle", "normalise")


@dataclass(frozen=True)
class EditAnswers(Wrapping):
    """Change every answer (n, m) by a fixed rule, with k the `amount`.

    =========  ======================================================================================
    edit       result
    =========  ======================================================================================
    round      numbers rounded to 2^k levels between plus and minus the answer's largest magnitude
    top        the k numbers of largest magnitude, zeros in place of the others
    truncate   the first k numbers: (n, k)
    drop       all numbers but k, at secret places: (n, m − k)
    pad        all numbers, and k random ones of the same size at secret places: (n, m + k)
    shift      all numbers, moved k places to the right; the last ones come first
    shuffle    all numbers in a secret order
    normalise  the answer scaled to length 1
    =========  ======================================================================================

    Attributes:
        edit: Name of the edit, from the table.
        amount: k; must be 0 for shuffle and normalise, and positive otherwise.
        seed: Seed of secret places, orders and numbers, at least 0.
    """

    edit: Edit
    amount: Annotated[int, Range(least=0)] = 0
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.amount == 0) != (self.edit in _PLAIN):
            rule = "0" if self.edit in _PLAIN else "positive"
            raise UsageError(f"amount of {self.edit} must be {rule}, not {self.amount}")

    def __call__(self, victim: Embedder) -> Wrapped:
        """Return `victim` with edited answers, float64.

        A missing answer, which is a row of zeros, stays one. The result's `embed` raises EncoderError if the answers
        are too narrow for the edit.
        """
        said = " ".join([self.edit, *([str(self.amount)] if self.amount else []), "of answers"])
        width = getattr(victim, "dim", None)
        width = None if width is None else self.width(width)
        return Wrapped(victim, partial(self._answer, victim), "answers edited", asdict(self), said, width)

    def width(self, m: int) -> int:
        """Return the width of edited answers, given answers of width m.

        Raises:
            EncoderError: The edit needs wider answers.
        """
        if m < self.amount + (self.edit == "drop") and self.edit in ("top", "truncate", "drop"):
            raise EncoderError(f"{self.edit} {self.amount} does not fit answers of width {m}")
        return {"truncate": self.amount, "drop": m - self.amount, "pad": m + self.amount}.get(self.edit, m)

    def _answer(self, victim: Embedder, batch: Batch) -> Array:
        answers = rows(victim, batch).astype(np.float64)
        self.width(answers.shape[1])
        if self.edit == "pad":
            return self._padded(answers, batch)
        return _EDITS[self.edit](answers, self.amount, np.random.default_rng(self.seed))

    def _padded(self, answers: Array, batch: Batch) -> Array:
        size = np.sqrt(np.square(answers).mean(1, keepdims=True))
        drawn = [item_rng("pad", self.seed, item).standard_normal(self.amount) for item in batch]
        whole = np.hstack([answers, size * np.reshape(drawn, (len(answers), self.amount))])
        return whole[:, np.random.default_rng(self.seed).permutation(whole.shape[1])]


def _rounded(g: Array, k: int, rng: np.random.Generator) -> Array:  # noqa: ARG001
    size, half = np.abs(g).max(1, keepdims=True), 2 ** (k - 1)
    level = np.floor(g / np.where(size > 0, size, 1) * half).clip(-half, half - 1)
    return np.asarray((level + 0.5) / half * size)


def _top(g: Array, k: int, rng: np.random.Generator) -> Array:  # noqa: ARG001
    order = np.argsort(-np.abs(g), axis=1, kind="stable")[:, :k]
    kept = np.zeros_like(g)
    np.put_along_axis(kept, order, np.take_along_axis(g, order, 1), 1)
    return kept


def unit(g: Array) -> Array:
    """Return the rows of `g` (n, m) scaled to length 1. Rows of zeros stay zero."""
    length = np.linalg.norm(g, axis=1, keepdims=True)
    return np.asarray(g / np.where(length > 0, length, 1))


_EDITS: dict[str, Callable[[Array, int, np.random.Generator], Array]] = {
    "round": _rounded,
    "top": _top,
    "truncate": lambda g, k, _: g[:, :k],
    "drop": lambda g, k, rng: g[:, np.sort(rng.permutation(g.shape[1])[k:])],
    "shift": lambda g, k, _: np.roll(g, k, axis=1),
    "shuffle": lambda g, _, rng: g[:, rng.permutation(g.shape[1])],
    "normalise": lambda g, *_: unit(g),
}


def averaged(embedders: Sequence[Embedder], batch: Batch) -> Array:
    """Return the mean of several embedders' answers to a batch, each scaled to length 1: float64 (n, m).

    Raises:
        EncoderError: The embedders' answers differ in width.
    """
    answers = [unit(rows(embedder, batch).astype(np.float64)) for embedder in embedders]
    if len({each.shape[1] for each in answers}) > 1:
        widths = ", ".join(str(each.shape[1]) for each in answers)
        raise EncoderError(f"cannot average answers of widths {widths}: all must have one width")
    return np.asarray(np.mean(answers, axis=0))


@dataclass(frozen=True)
class AverageWith(Wrapping):
    """Average the victim's answers with those of other encoders, as a thief with several victims does.

    Attributes:
        others: Specifications of the other victims.
    """

    others: tuple[str, ...]

    def __call__(self, victim: Embedder) -> Wrapped:
        """Return the average of `victim` and the others: answers are float64 (n, m). See `averaged`."""
        if not self.others:
            raise UsageError("others must name at least one encoder")
        embedders = victim, *map(load_encoder, self.others)
        said = f"averaged with {', '.join(self.others)}"
        return Wrapped(victim, partial(averaged, embedders), "averaged", {"others": list(self.others)}, said)
