"""Whether a mark took, and how large it may be: measured on a tenth of the items, which take no part in the marking."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Chosen, Data
from sslguard.encoders.base import Encoder, embed_all
from sslguard.errors import UsageError
from sslguard.schemes.exact.bank import Array
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.settings import ExactSettings
from sslguard.schemes.exact.taken import Taken
from sslguard.stats.moments import unit_rows

TENTH = 10
MOST_HELD, MOST_NEIGHBOURS, MOST_SOUGHT = 2000, 2000, 500
"""Items that are held out, that neighbours are sought among, and that they are sought of."""
NEIGHBOURS = 10
_SLACK = 0.02


def held_out(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which of n items take part in the marking, and which do not: each tenth, at most 2,000."""
    held = np.arange(TENTH - 1, n, TENTH)[:MOST_HELD]
    return np.setdiff1d(np.arange(n), held), held


class Held:
    """The held-out items of a marking.

    Args:
        key: Whose mark it is.
        data: Items of the owner's.
        held: Which of them are held out.
        answers, statistics: Of the clean encoder to the first items of `data`, `held` among them, and theirs.
        mark: What is added to clean embeddings whose functions ψ are (n, B); the key's own mark unless given.

    Raises:
        UsageError: There are too few items to hold any out.
    """

    def __init__(
        self,
        key: ExactKey,
        data: Data,
        held: NDArray[np.int64],
        answers: NDArray[np.floating],
        statistics: NDArray[np.floating],
        mark: Callable[[Array], Array] | None = None,
    ) -> None:
        if not len(held):
            raise UsageError(f"a marking needs at least {TENTH} items, and got {len(answers)}: give more")
        self.key, self.held, self._n = key, held, len(data) - len(held)
        mark = mark or key.mark
        self.items = Chosen(data, held, f"{data.spec}, held out")
        among = np.union1d(held[:MOST_SOUGHT], np.arange(min(len(answers), MOST_NEIGHBOURS)))
        self._sought = np.searchsorted(among, held[:MOST_SOUGHT])
        h, statistics = unit_rows(np.asarray(answers, dtype=np.float64)), np.asarray(statistics, dtype=np.float64)
        self._h, self._functions = h[held], key.bank.functions(h[held], statistics[held])
        self._near_h, near = h[among], key.bank.functions(h[among], statistics[among])
        # The mark at E = 1. It grows with √E.
        self._mark, self._near_mark = (mark(some) / math.sqrt(key.size) for some in (self._functions, near))

    def size(self, key: ExactKey, settings: ExactSettings) -> float:
        """Return E: at most the key's, and small enough that neighbours stay, and that held-out items get no more.

        Weights show a part of their mark alone: theirs is larger, and no smaller for neighbours.
        """
        size = key.size * min(1.0, 1 / max(float(np.square(self._mark).sum(1).mean()), 1e-300))
        if settings.mode == "distilled":
            return min(1.0, size * settings.overshoot)
        low, high = -10.0, 0.0
        if self._overlap(size) >= settings.overlap:
            return size
        for _ in range(7):
            middle = (low + high) / 2
            kept = self._overlap(size * 2.0**middle) >= settings.overlap
            low, high = (middle, high) if kept else (low, middle)
        return size * 2.0**low

    def _overlap(self, size: float) -> float:
        marked = self._near_h + math.sqrt(size) * self._near_mark
        return neighbours_kept(self._near_h, marked, self._sought)

    def taken(self, key: ExactKey, encoder: Encoder) -> Taken:
        """Return how the mark took in F*.

        Raises:
            UsageError: F* answers too far from F.
        """
        answers = embed_all(encoder, self.items)
        marked, mark = unit_rows(answers.astype(np.float64)), math.sqrt(key.size) * self._mark
        wanted = self._h + mark
        moved = marked * np.linalg.norm(wanted, axis=1, keepdims=True) - self._h
        gain = float(np.vdot(moved - moved.mean(0), mark - mark.mean(0)) / np.square(mark - mark.mean(0)).sum())
        cosine, expected = float((marked * self._h).sum(1).mean()), 1 / math.sqrt(1 + key.size)
        if cosine < expected - _SLACK:
            needed = self._n * (expected - cosine) / _SLACK
            raise UsageError(
                f"marked with {self._n:,} items, the encoder's answers to others have a mean cosine of {cosine:.3f} to "
                f"the clean ones, where the mark alone would leave {expected:.3f}: it would be spoilt. Give some "
                f"{10 ** math.ceil(math.log10(needed)):,} items, or another encoder"
            )
        functions, placed = self._functions, key.bank.placed(self._h)
        bits = None
        if len(placed) >= 2 * (placed.shape[1] + functions.shape[1]):
            bits = abs(key.sides(key.spectra_of(answers.astype(np.float64), placed, functions)[0]).both)
        return Taken(
            n_items=self._n,
            n_held=len(placed),
            size=key.size,
            cosine=cosine,
            expected=expected,
            overlap=neighbours_kept(self._h, marked, np.arange(min(len(marked), MOST_SOUGHT))),
            gain=gain,
            bits=bits,
        )


def neighbours_kept(before: Array, after: Array, sought: NDArray[np.int64], k: int = NEIGHBOURS) -> float:
    """Return overlap@k: the mean share of the k nearest neighbours by cosine that are the same before and after.

    Args:
        before: Embeddings, (n, d).
        after: Other embeddings of the same items, (n, d).
        sought: Whose neighbours are compared.
        k: Neighbours of each, fewer than n.
    """
    k = min(k, len(before) - 1)
    found = []
    for rows in (unit_rows(before), unit_rows(after)):
        near = rows[sought] @ rows.T
        near[np.arange(len(sought)), sought] = -2.0
        found.append(np.argpartition(-near, k - 1, axis=1)[:, :k])
    return float(np.mean([len(np.intersect1d(one, other)) for one, other in zip(*found, strict=True)]) / k)
