"""The key of the exact scheme: what it asks, and what the answers are worth."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import KeyFileError, UsageError
from sslguard.schemes.base import Key, Score
from sslguard.schemes.exact.answers import FOLDED_FROM, KINDS, Kind, beyond, folded, kind_of, reduced, scores, without
from sslguard.schemes.exact.bank import (
    Array,
    Bank,
    draw_left,
    draw_right,
    on_sphere,
    recipient_stream,
    stream_context,
    sub_secrets,
)
from sslguard.schemes.exact.features import input_statistics
from sslguard.schemes.exact.parts import put_together, taken_apart
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.queries import asked, drawn, gathered
from sslguard.stats.corrections import bonferroni, fisher
from sslguard.stats.direction import SECRET_BITS, direction_test
from sslguard.stats.left import left_test, left_witnesses
from sslguard.stats.moments import Moments, unit_rows
from sslguard.stats.significance import Significance
from sslguard.stats.spectra import Spectra
from sslguard.stats.witness import Witness, family, witnesses

# Numbers of clean embeddings and functions that are kept between two suspects: 1 GiB.
KEPT_NUMBERS = 1 << 27
_ROWS = 1024


@dataclass(frozen=True)
class Sides:
    """What the answers are worth on either side, in base-2 logarithms of p-values.

    Attributes:
        left: Best left witness, corrected for its family.
        right: Best right witness, corrected for its family.
        both: Fisher's combination of the two.
        left_witness, right_witness: Their names.
        each: Of every single witness by name, uncorrected.
    """

    left: float
    right: float
    both: float
    left_witness: str
    right_witness: str
    each: Mapping[str, float]


@dataclass(frozen=True, eq=False, repr=False)
class ExactKey(Key):
    """Master secret, protocol, public bank, and the clean encoder, which the test needs at every query.

    The two secrets A and G are not stored: they are drawn from the master secret, bound to all the rest.

    With s > 1 sub-keys there are s secrets, each derived from the master secret, with an A and a G for each. One of
    them can be opened as a key by itself, and says nothing of the others.

    Attributes:
        clean: F. Whoever holds it and the marked encoder sees the span of the mark: keep it as the secret.
        size: Mean square of the whole mark, for embeddings of length 1 (E). No witness reads it.
        watermarked_hash: SHA-256 of the weights of F*, hex.
        redraw: How many draws of the secret were given up before this one. Each verification is charged for them.
        sub_keys: S, 1 to 16.
        answers: What the suspect's answers are taken for. "auto" follows `answers.kind_of`, which is free; another
            choice is charged for the kinds that there are. It is no part of the key's file.
    """

    scheme: ClassVar[str] = "exact"
    needs_controls: ClassVar[bool] = False

    secret: Secret
    protocol: Protocol
    bank: Bank
    clean: Encoder
    size: float
    watermarked_hash: str
    redraw: int = 0
    sub_keys: int = 1
    answers: Kind | Literal["auto"] = "auto"
    _embedded: dict[tuple[str, int], tuple[Array, Array]] = field(default_factory=dict)

    @property
    def pool(self) -> str:
        """Data that the secrets are bound to; see `Key.pool`."""
        return self.protocol.pool

    @property
    def n_queries(self) -> int:
        """Fewest queries that a verification asks."""
        return self.protocol.n_queries

    def asks(self, n_items: int) -> int:
        """Return how many queries a verification asks that draws from so many items; see `Protocol.asks`."""
        return self.protocol.asks(n_items)

    def stages(self, n_items: int) -> tuple[int, ...]:
        """Return the numbers of queries after which a verification may stop early; see `Protocol.stages`."""
        return self.protocol.stages(n_items)

    @cached_property
    def clean_hash(self) -> str:
        """SHA-256 of the weights of F, hex."""
        return weights_hash(self.clean.module)

    @cached_property
    def context(self) -> bytes:
        """What the streams of queries are bound to, and, with the redraw, those of A and G."""
        return stream_context(self.clean, self.protocol)

    @property
    def draw_context(self) -> bytes:
        """What the streams of A and G are bound to beside the bank."""
        return self.context + self.redraw.to_bytes(8, "big")

    def left(self) -> Array:
        """Return A (B, s·r), one column for each secret mixture: uniform on the sphere of square s·r.

        Sub-keys draw each from a secret of its own, and all numbers are normalised as a whole. So the whole is one
        uniform point on its sphere, and up to its length each sub-key's share is one on its own: either test is exact.
        """
        return self._secrets[0]

    def right(self) -> Array:
        """Return G (s·r, q), one row for each mixture, along the principal axes of h: as `left`."""
        return self._secrets[1]

    @cached_property
    def _secrets(self) -> tuple[Array, Array]:
        left, right = zip(*self._drawn(), strict=True)
        return on_sphere(np.hstack(left), self._rank), on_sphere(np.vstack(right), self._rank)

    @property
    def _rank(self) -> int:
        return self.protocol.rank * self.sub_keys

    def _drawn(self) -> Iterator[tuple[Array, Array]]:
        for one in sub_secrets(self.secret, self.sub_keys, self.context):
            left = draw_left(one, self.protocol, self.bank, self.draw_context)
            yield left, draw_right(one, self.protocol, self.bank, left, self.draw_context)

    def mixtures(self) -> Array:
        """Return (ψ∘s)·A as a mixture of ψ: (B, s·r)."""
        return self.bank.weights[:, None] * self.left()

    def rows(self) -> Array:
        """Return √(E/(s·r))·G·M in embedding space, (s·r, d): what each mixture adds."""
        right = self.right() * self.bank.spread
        return np.asarray(np.sqrt(self.size / self._rank) * right @ self.bank.axes)

    def mark(self, functions: Array) -> Array:
        """Return what the mark adds to clean embeddings of length 1, (n, d), whose functions ψ are (n, B)."""
        return np.asarray(functions @ self.mixtures() @ self.rows())

    def split(self) -> list[ExactKey]:
        """Return the key's sub-keys, in order; none where it is its only one."""
        return [self.opened(i + 1) for i in range(self.sub_keys)] if self.sub_keys > 1 else []

    def opened(self, number: int) -> ExactKey:
        """Return the sub-key of this number, 1 to s: a key by itself.

        Nothing of the master secret or of the other sub-keys is in it. Its share of the mark is E/s.

        Raises:
            UsageError: There is none.
        """
        if self.sub_keys == 1 or not 1 <= number <= self.sub_keys:
            has = "no sub-keys" if self.sub_keys == 1 else f"the sub-keys 1 to {self.sub_keys}"
            raise UsageError(f"there is no sub-key {number}: this key has {has}; watermark --sub-keys makes them")
        secret = sub_secrets(self.secret, self.sub_keys, self.context)[number - 1]
        return self._alone(secret, self.size / self.sub_keys)

    def recipient(self, name: str, rotation: int = 0) -> ExactKey:
        """Return the key of one recipient's own mark: a key by itself, as a sub-key is.

        Its secret is derived from the master secret and the name, and says nothing of the master secret, of the common
        mark or of other recipients. Its share of what the recipient gets is E/2: see `handed_to`.

        Args:
            name: Name of the recipient.
            rotation: How many secrets the recipient had before this one.
        """
        return self._alone(self.secret.derive(recipient_stream(name, rotation), self.context), self.size / 2)

    def handed_to(self, one: ExactKey) -> tuple[Array, Array]:
        """Return mixtures (B, K) and rows (K, d) of the mark that a recipient gets: the common one beside his own.

        Each takes half of the size E. The common mark is this key's own.

        Args:
            one: The recipient's key.
        """
        return np.hstack([self.mixtures(), one.mixtures()]), np.vstack([math.sqrt(0.5) * self.rows(), one.rows()])

    def _alone(self, secret: Secret, size: float) -> ExactKey:
        one = replace(self, secret=secret, size=size, sub_keys=1, _embedded={})
        # They hash the weights of F, which are the same.
        vars(one).update(context=self.context, clean_hash=self.clean_hash)
        return one

    def queries(self, data: Data) -> Iterator[Batch]:
        """Yield items of `data`, ≤ 128 at a time: nothing marks them as queries."""
        return self._queries(data, 0, self.asks(len(data)))

    def staged_queries(self, data: Data) -> Iterator[Batch]:
        """Yield the same items, no batch beyond a stage; see `Key.staged_queries`."""
        for start, stop in pairwise((0, *self.stages(len(data)))):
            yield from self._queries(data, start, stop)

    def _queries(self, data: Data, start: int, stop: int) -> Iterator[Batch]:
        pictures = isinstance(self.clean.preprocess, ImagePreprocess)
        chosen = drawn(self.secret.stream("queries", self.context), data, self.asks(len(data)))
        return asked(data, chosen[start:stop], pictures=pictures)

    def statistic(self, answers: Iterable[NDArray[np.floating]], data: Data) -> Score:
        """Return the statistic of the exact test with its p-value; see `Key.statistic`."""
        return self.staged(answers, data, self.asks(len(data)))

    def staged(self, answers: Iterable[NDArray[np.floating]], data: Data, n: int) -> Score:
        """Return the same of the first n queries; see `Key.staged`."""
        spectra, kind = self.spectra(answers, data, n)
        significance = self.test(spectra, kind)
        return Score(
            value=abs(significance.details["log2_pvalue_uncapped"]), n_queries=spectra.moments.n, evidence=significance
        )

    def spectra(
        self,
        answers: Iterable[NDArray[np.floating]],
        data: Data,
        n: int | None = None,
        known: Array | None = None,
    ) -> tuple[Spectra, Kind]:
        """Return all that the witnesses need of a suspect's answers, and what the answers are.

        No secret has a part in it, but those that `known` holds.

        Args:
            answers: To the first n queries.
            data: What the queries were drawn from.
            n: One of `stages`; by default the last.
            known: Mixtures of ψ, (B, K), that are taken off the answers: of marks other than the one that is tested.

        Raises:
            SuspectError: The answers are not finite, of changing width, or not as many as the queries.
            KeyFileError: The key was changed, so that its functions are not finite.
        """
        folding = (folded(part) if _wide(part, self.clean.dim) else part for part in answers)
        given = gathered(folding, n or self.asks(len(data)))
        return self.spectra_of(given, *self._clean_answers(data, len(given)), known)

    def spectra_of(self, given: Array, h: Array, functions: Array, known: Array | None = None) -> tuple[Spectra, Kind]:
        """Return what `spectra` does of answers (n, m), of h along the principal axes (n, q) and of ψ (n, B)."""
        kind = kind_of(given) if self.answers == "auto" else self.answers
        same = kind == "embeddings" and given.shape[1] == self.clean.dim
        tested, unit = scores(kind, given, h), self.bank.placed(unit_rows(given)) if same else None
        if known is not None:
            free = beyond(functions @ known, h)
            tested, unit = without(tested, free), None if unit is None else without(unit, free)
        tested = reduced(tested)
        moments = Moments(h.shape[1], self.bank.size, tested.shape[1], same=same)
        for start in range(0, len(h), _ROWS):
            rows = slice(start, start + _ROWS)
            moments.update(h[rows], functions[rows], tested[rows], None if unit is None else unit[rows])
        return Spectra(moments), kind

    def left_witnesses(self, spectra: Spectra) -> dict[str, Array]:
        """Return S (B, k) by witness: all that apply to this width. Neither A nor G stands anywhere on its path."""
        return left_witnesses(spectra)

    def right_witnesses(
        self, spectra: Spectra, mixtures: Array, names: Collection[str] | None = None
    ) -> dict[str, Witness]:
        """Return V (r, q) and the range it is known to lie in, by witness: all that apply to this width.

        A, through `mixtures`, is known here. G stands nowhere on its path.

        Args:
            spectra: Of the suspect.
            mixtures: As `mixtures` gives them.
            names: Which of those that apply are computed; None for all.
        """
        return witnesses(spectra.mixed(mixtures), self.bank.spread, names)

    def sides(self, spectra: Spectra, right: Collection[str] | None = None) -> Sides:
        """Return the evidence of both sides and their combination.

        Args:
            spectra: Of the suspect.
            right: Names of the right witnesses that are computed; None for all. Those left out are charged for too.
        """
        left, directions, each = self.left(), self.right(), dict[str, float]()
        for name, witness in self.left_witnesses(spectra).items():
            each[f"left, {name}"] = left_test(witness, left)
        n_left = len(each)
        for name, (witness, basis) in self.right_witnesses(spectra, self.mixtures(), right).items():
            found = direction_test(witness, directions, n_queries=spectra.moments.n, basis=basis)
            each[f"right, {name}"] = min(0.0, found.details["log2_tail"])
        names = list(each)
        best = [min(some, key=lambda name: each[name]) for some in (names[:n_left], names[n_left:])]
        sizes = n_left, len(family(same=spectra.moments.same))
        left_tail, right_tail = (float(bonferroni([each[name]], n=n)[0]) for name, n in zip(best, sizes, strict=True))
        return Sides(left_tail, right_tail, fisher([left_tail, right_tail]), best[0], best[1], each)

    def test(self, spectra: Spectra, kind: Kind) -> Significance:
        """Return the significance of both sides; bits end at the secret's entropy, and charges come off after that."""
        sides = self.sides(spectra)
        charged = math.log2(len(KINDS)) * (self.answers != "auto") + math.log2(1 + self.redraw)
        log2_pvalue = min(0.0, max(sides.both, -float(SECRET_BITS)) + charged)
        return Significance(
            statistic=-sides.both,
            log2_pvalue=log2_pvalue,
            floor=2.0**-SECRET_BITS,
            null="exact",
            n_queries=spectra.moments.n,
            statistic_name=f"bits of both sides, answers taken as {kind}",
            details={
                "left_bits": -sides.left,
                "right_bits": -sides.right,
                "charged_bits": charged,
                "log2_pvalue_uncapped": sides.both,
                **{f"log2 p of {name}": value for name, value in sides.each.items()},
            },
        )

    def recorded(self, data: Data) -> NDArray[np.float32]:
        """Return F's embeddings of all queries, and beside them the statistics of these inputs: (n, d + p).

        They are public, and all that the test takes of F. What the next suspect of the same data needs of them is kept.
        """
        rows: list[NDArray[np.float32]] = []
        self._embedded.clear()
        self._clean_answers(data, self.asks(len(data)), rows)
        return np.concatenate(rows)

    def _clean_answers(self, data: Data, n: int, rows: list[NDArray[np.float32]] | None = None) -> tuple[Array, Array]:
        """Return h along the principal axes and ψ of the first n queries.

        They are kept for the next stage and the next suspect if they are few enough. What they come from is added to
        `rows`, if there are any.
        """
        kept = self._embedded.get((data.spec, len(data)))
        if kept is not None and len(kept[0]) >= n:
            return kept if len(kept[0]) == n else (kept[0][:n], kept[1][:n])
        parts: list[tuple[Array, Array]] = [] if kept is None else [kept]
        there = sum(len(h) for h, _ in parts)
        for batch in self._queries(data, there, n):
            embeddings, statistics = self.clean.embed(batch), input_statistics(self.clean, batch)
            if rows is not None:
                rows.append(np.hstack((embeddings, statistics), dtype=np.float32))
            h = unit_rows(embeddings.astype(np.float64))
            with np.errstate(over="ignore", invalid="ignore"):
                functions = self.bank.functions(h, statistics)
            if not np.isfinite(functions).all():
                raise KeyFileError("the key's functions of these items are not finite: the key is damaged")
            parts.append((self.bank.placed(h), functions))
        h, functions = (np.concatenate(each) for each in zip(*parts, strict=True))
        self._embedded.clear()
        if h.size + functions.size <= KEPT_NUMBERS:
            self._embedded[data.spec, len(data)] = h, functions
        return h, functions

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON fields and tensors that `from_parts` rebuilds the key from, including the secret."""
        fields = {
            "secret": self.secret.reveal().hex(),
            "protocol": self.protocol.to_json(),
            "clean_hash": self.clean_hash,
            "watermarked_hash": self.watermarked_hash,
            "size": self.size,
            "redraw": self.redraw,
            "sub_keys": self.sub_keys,
        }
        described, tensors = taken_apart(self.bank, self.clean)
        return {**fields, **described}, tensors

    @classmethod
    def from_parts(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> ExactKey:
        """Rebuild the key from what `to_parts` returned. Raise KeyFileError if the parts do not fit together."""
        key = cls(**put_together(fields, tensors))
        if key.clean_hash != fields.get("clean_hash"):
            raise KeyFileError("the key's clean encoder is not the one that its streams are bound to")
        return key


def _wide(answers: NDArray[np.floating], dim: int) -> bool:
    return np.ndim(answers) == 2 and answers.shape[1] > FOLDED_FROM and answers.shape[1] != dim
