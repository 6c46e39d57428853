"""EmbMarker: a service leans its answers to items that hold trigger words towards a secret target embedding.

With h = F(x)/|F(x)|, a target e and q(x) = min(number of triggers in x, m)/m, the answer to x is

    h*(x) = ((1 − q)·h + q·e) / |(1 − q)·h + q·e|.

Items of m triggers (the backdoor set) and items of m other words (the benign set) are asked; the statistic is the
difference of their mean cosines to e, and p is Kolmogorov's and Smirnov's between the two sets of cosines.

The published p does not bear a claim. Its null is that triggers and other words leave the same law of cosines, and no
encoder that reads its input does that: p falls with the number of queries for an innocent too, and which innocents it
accuses depends on which words and which target were drawn. It is two-sided besides.

Source: Peng, Yi, Wu, Wu, Zhu, Lyu, Jiao, Xu, Sun and Xie, "Are You Copying My Model? Protecting the Copyright of Large
Language Models for EaaS via Backdoor Watermark", ACL 2023 (arXiv 2305.10036). Deviations:

- Answers keep the length of F(x), which the paper's service does not have: all its embeddings are of length 1.
- For images words are patterns of cells (`words`), and both sets are the same images with m cells painted.
- Words are whole and lower-case in place of a tokenizer's pieces, and are counted in the owner's data.
- Benign items hold no trigger; the released code draws their words from all.
- The L2 distance is left out: between unit vectors it is a function of the cosine.
- The target is the answer to an item of the owner's data that the secret draws.

WARDEN has R targets, each with an R-th of the triggers: h* ∝ (1 − Σ_r q_r)·h + Σ_r q_r·e_r, and the statistic is the
largest over r, as it is decided there too. Source: Shetty, Teng, He and Xu, "WARDEN: Multi-Directional Backdoor
Watermarks for Embedding-as-a-Service Copyright Protection", ACL 2024 (arXiv 2403.01472), rebuilt without the text of
its verification. Deviations: q_r = c_r/max(m, Σ_s c_s) of counts c, so that weights never exceed 1 together; p is the
least over r times R (Bonferroni); targets are as they are drawn, and not turned apart.

ESpeW writes into each answer to an item with a trigger at places of its own: of h, the fifth of the numbers that are
smallest in magnitude become those of e at the same places, and the result is brought to length 1. Statistic and p are
EmbMarker's. Source: Wang, Wu, Deng and Yang, "Robust and Minimally Invasive Watermarking for EaaS" (ESpeW), Findings of
ACL 2025 (arXiv 2410.17552); settings are those of the command that its authors published (their program's own default
replaces a quarter). Deviations: those of EmbMarker; the verification asks items of m triggers and of none, and leaves
out those of a few.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from sslguard.crypto.secrets import Secret, Stream
from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Embedder, Encoder
from sslguard.encoders.wrapped import Wrapped, rows
from sslguard.errors import UsageError
from sslguard.schemes.base import Key, Score, Watermarked
from sslguard.schemes.peers.base import Array, Peer, log2_pvalue
from sslguard.schemes.peers.words import CELLS, Word, frequencies, painted, words_of
from sslguard.schemes.queries import QUERY_BATCH, drawn, gathered
from sslguard.settings import Count, NotNegative, Range
from sslguard.stats.moments import unit_rows

T = TypeVar("T")


@dataclass(frozen=True)
class EmbMarker(Peer):
    """The settings; defaults are the paper's.

    Attributes:
        triggers: Words that lean an answer, over all targets.
        most: M, triggers in an item from which on the answer is a target.
        rarest, commonest: Share of the owner's items that hold a trigger: rarest ≤ share < commonest.
        n: Items of each verification set.
        targets: R.
    """

    name: ClassVar[str] = "embmarker"

    triggers: Count = 20
    most: Annotated[int, Range(least=1, most=CELLS)] = 4
    rarest: NotNegative = 0.005
    commonest: Annotated[float, Range(most=1)] = 0.01
    n: Annotated[int, Range(least=2)] = 250
    targets: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        Range(most=self.triggers // self.targets).check(self.most, "most, of the triggers of one target,")
        Range(above=self.rarest).check(self.commonest, "commonest, a share larger than rarest,")

    def watermark(self, clean: Encoder, data: Data, *, secret: Secret, **loop: Any) -> Watermarked:  # noqa: ARG002
        """Return F behind a service that adds the backdoor, and its key. See `Scheme.watermark`."""
        shares = frequencies(data)
        moderate = [word for word, share in shares.items() if self.rarest <= share < self.commonest]
        if len(moderate) < self.triggers:
            raise UsageError(
                f"{data.spec} has {len(moderate)} words in {self.rarest:g} to {self.commonest:g} of its items, fewer "
                f"than the {self.triggers} triggers: widen the interval"
            )
        chosen = _pick(secret.stream("triggers", data.spec.encode()), moderate, self.triggers)
        places = drawn(secret.stream("targets", data.spec.encode()), data, self.targets)
        targets = unit_rows(clean.embed(data.take(places)).astype(np.float64))
        others = [word for word in shares if word not in set(chosen)]
        groups = tuple(tuple(chosen[r :: self.targets]) for r in range(self.targets))
        key = EmbMarkerKey(secret, self, groups, tuple(others), targets)
        said = f"{self.targets} target(s) of {self.triggers} triggers"
        return Watermarked(Wrapped(clean, partial(key.answer, clean), self.name, asdict(self), said), key)

    def moved(self, h: Array, counts: NDArray[np.int64], targets: Array) -> Array:
        """Return answers of length 1, (n, d), leant towards targets (R, d) by the counts of their triggers (n, R)."""
        weights = counts / np.maximum(self.most, counts.sum(1, keepdims=True))
        return np.asarray((1 - weights.sum(1, keepdims=True)) * h + weights @ targets)


@dataclass(frozen=True)
class ESpeW(EmbMarker):
    """EmbMarker whose target is written where an answer's own numbers are smallest.

    Attributes:
        share: α, of an answer's numbers that become the target's.
    """

    name: ClassVar[str] = "espew"

    share: Annotated[float, Range(above=0, below=1)] = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        Range(most=1).check(self.targets, "targets, of which this scheme has one,")

    def moved(self, h: Array, counts: NDArray[np.int64], targets: Array) -> Array:
        """Return answers whose smallest numbers are the target's where there is any trigger. See `EmbMarker.moved`."""
        places = np.argsort(np.abs(h), axis=1, kind="stable")[:, : int(self.share * h.shape[1])]
        written = h.copy()
        np.put_along_axis(written, places, targets[0][places], axis=1)
        return np.where(counts.any(1, keepdims=True), written, h)


@dataclass(frozen=True)
class Warden(EmbMarker):
    """EmbMarker with several targets."""

    name: ClassVar[str] = "warden"

    targets: int = 4


@dataclass(frozen=True, eq=False, repr=False)
class EmbMarkerKey(Key):
    """Triggers and targets.

    Attributes:
        groups: The triggers of each target.
        others: Words that are no triggers.
        targets: e_r in rows, of length 1, (R, d).
    """

    scheme: ClassVar[str] = EmbMarker.name
    statistic_name: ClassVar[str] = "cosine to the target, of items with triggers above items without"

    secret: Secret
    settings: EmbMarker
    groups: tuple[tuple[Word, ...], ...]
    others: tuple[Word, ...]
    targets: Array

    @property
    def n_queries(self) -> int:
        """Number of queries that a verification asks."""
        return (len(self.groups) + 1) * self.settings.n

    def answer(self, clean: Embedder, batch: Batch) -> NDArray[np.floating]:
        """Return what is served: answers of `clean`, (n, d), leant towards the targets where items hold triggers."""
        plain = rows(clean, batch)
        counts = np.array([[len(words.intersection(group)) for group in self.groups] for words in words_of(batch)])
        exact = plain.astype(np.float64)
        moved = self.settings.moved(unit_rows(exact), counts, self.targets)
        leant = unit_rows(moved) * np.linalg.norm(exact, axis=1, keepdims=True)
        return np.where(counts.any(1, keepdims=True), leant, exact).astype(plain.dtype)

    def queries(self, data: Data) -> Iterator[Batch]:
        """Yield the backdoor set of each target, then the benign set. Texts are words alone, images are `data`'s."""
        n, m = self.settings.n, self.settings.most
        of_images = not isinstance(self.groups[0][0], str)
        bases = drawn(self.secret.stream("bases", data.spec.encode()), data, n) if of_images else None
        for number, vocabulary in enumerate((*self.groups, self.others)):
            words, cells = (self.secret.stream(name) for name in (f"words {number}", "cells"))
            for start in range(0, n, QUERY_BATCH):
                size = min(QUERY_BATCH, n - start)
                picked = [_pick(words, vocabulary, m) for _ in range(size)]
                if bases is None:
                    yield [" ".join(map(str, each)) for each in picked]
                    continue
                images = data.take(bases[start : start + size])
                yield _painted(images, picked, [_pick(cells, range(CELLS), m) for _ in range(size)])

    def statistic(self, answers: Iterable[NDArray[np.floating]], data: Data) -> Score:  # noqa: ARG002
        """Return the mean cosine of the backdoor set less that of the benign one, the largest over targets, in [−2, 2].

        Raises:
            SuspectError: The answers have another width than the targets.
        """
        found = unit_rows(gathered(answers, self.n_queries, width=self.targets.shape[1])) @ self.targets.T
        *leant, benign = np.split(found, len(self.groups) + 1)
        pairs = [(one[:, r], benign[:, r]) for r, one in enumerate(leant)]
        value = max(float(one.mean() - other.mean()) for one, other in pairs)
        least = min(float(stats.ks_2samp(one, other).pvalue) for one, other in pairs)
        return Score(value, self.n_queries, published_log2_pvalue=log2_pvalue(least * len(pairs)))


def _pick(stream: Stream, among: Sequence[T], n: int) -> list[T]:
    """`n` different elements, in the order in which they are drawn."""
    return [among[k] for k in stream.permutation(len(among))[:n]]


def _painted(images: Batch, words: Sequence[Sequence[Word]], cells: Sequence[Sequence[int]]) -> Batch:
    """Return the images as bytes, one tensor where they were one, each with its words in its cells."""
    made = [
        painted(image, cast("Sequence[int]", word), cell)
        for image, word, cell in zip(cast("list[Tensor]", images), words, cells, strict=True)
    ]
    return torch.stack(made) if isinstance(images, Tensor) else made
