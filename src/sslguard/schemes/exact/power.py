"""How many bits a verification will show of a stolen copy, by what the copy answers with, before anything is trained.

A copy is simulated on clean embeddings h of items that took no part in the bank. It answers as a thief's network learns
the marked embeddings. The key's own test then runs on these answers, with public secrets that no real key has. Along
each principal axis a of h, and for each function b of the bank, the copy answers

    μ_a + ℓ_a·(h_a − μ_a) + w_a·Σ_b f_b·mark_ba + error_a

ℓ_a is the share of h that is learned: it falls where h varies little. f_b is the share of a function that is learned:
it falls with the function's index, unevenly. w_a falls to a least share where ℓ_a falls to 0. The error is in part a
fixed mixture of the bank's functions, which no number of queries averages out. The rest is smooth in the input too, but
the bank's functions average it as they do noise, and noise stands for it. A copy errs relatively more where h varies
little: the error's variance along an axis goes with that of h to the power 0.6.

The numbers in `THEFTS` were fitted to two thefts of one encoder, SimCLR under a head, at 10,000 queries.
`IN_WEIGHTS` was fitted to nothing. benchmarks/exact_power.py compares what is foretold with what comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.special import softmax

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Chosen, Data
from sslguard.encoders.base import Encoder, embed_all
from sslguard.errors import UsageError
from sslguard.probes.linear import linear_classifier
from sslguard.schemes.exact.bank import Array
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import GEOMETRY_ITEMS, Exact
from sslguard.schemes.exact.taking import Held, held_out
from sslguard.stats.moments import unit_rows

KINDS = ("embeddings", "rotated", "unknown map", "logits", "probabilities", "labels")
"""What a copy may answer with."""
_ERROR_POWER, _SHARPNESS = 0.6, 1.5
_CONDITION, _DIGITS = 1e4, 4
"""Of the unknown map, and of rounded probabilities."""
_CLUSTERS, _CLASSIFIED = 10, 2000
"""Classes where the data has no labels, and items that a copy's classifier is trained on."""
IN_WEIGHTS = 0.4
"""Share of a mark that encoders show once it was distilled into their weights."""


@dataclass(frozen=True)
class Theft:
    """How well a thief's network learns what it is taught.

    Attributes:
        first: Share of the bank's first function that it learns, f_0.
        half: Index of the function of which it learns half as much: f_b = f_0/(1 + b/half).
        narrow: Variance of an axis of which it learns one half, as a share of the embeddings' whole variance.
        weak: Least w_a.
        error: Variance of its error, as a share of the embeddings' variance.
        along: Variance of the part of the error that mixes the bank's functions, likewise.
        uneven: Standard deviation of log f_b around its fall.
    """

    first: float
    half: float
    narrow: float
    weak: float
    error: float
    along: float
    uneven: float


THEFTS: Mapping[str, Theft] = MappingProxyType(
    {
        "centred": Theft(first=0.72, half=64, narrow=0.005, weak=1.0, error=0.11, along=0.030, uneven=0.5),
        "mse": Theft(first=0.58, half=30, narrow=0.026, weak=0.5, error=0.09, along=0.035, uneven=0.5),
    }
)
"""By the thief's loss: errors of answers without their mean and scale, which learns most of the mark, or plain mean
squared errors, which learns least."""


@dataclass(frozen=True)
class Foretold:
    """Bits to be expected of a stolen copy.

    Attributes:
        size: Mean square of the mark, for embeddings of length 1 (E).
        bits: Theft → kind of answers → number of queries → bits, the mean over secrets, before the cap.
    """

    size: float
    bits: Mapping[str, Mapping[str, Mapping[int, float]]]

    def n_queries(self, theft: str, kind: str, bits: float) -> int | None:
        """Return the fewest queries of the grid that show so many bits; None where all that the data holds do not."""
        return min((n for n, found in self.bits[theft][kind].items() if found >= bits), default=None)


def foretell(
    clean: Encoder,
    data: Data,
    scheme: Exact,
    *,
    thefts: Sequence[str] = tuple(THEFTS),
    seeds: Sequence[int] = (0, 1),
    watch: Callable[[Iterator[int], int], Iterator[int]] = lambda steps, _: steps,
) -> Foretold:
    """Return the bits that a scheme will show of copies, for each number of queries that half of the data holds.

    Every other item makes the bank, and the others are asked. A copy's classifier learns the data's labels, or clusters
    of the clean embeddings where there are none.

    Args:
        clean: F.
        data: The first 40,000 items count.
        scheme: Settings of the mark. Of a distilled mark, encoders show `IN_WEIGHTS`.
        thefts: Names in `THEFTS`.
        seeds: One public secret each.
        watch: Given the steps and their number, yields them: for a progress bar.

    Raises:
        UsageError: The data holds too few items, or they vary too little.
    """
    items = data.slice(0, min(len(data), 2 * GEOMETRY_ITEMS))
    counts = grid(scheme.protocol, len(items) // 2)
    answers, statistics = embed_all(clean, items), all_statistics(clean, items)
    own, asked = np.arange(0, len(items), 2), np.arange(1, len(items), 2)
    key = scheme.draw_key(clean, Secret.from_seed(0), answers[own], statistics[own])
    held = Held(key, Chosen(items, own, data.spec), held_out(len(own))[1], answers[own], statistics[own])
    key = replace(key, size=held.size(key, scheme))
    h = unit_rows(answers.astype(np.float64))
    placed, functions = key.bank.placed(h), key.bank.functions(h, statistics)
    labels = items.labels
    classes = kmeans2(placed[own], _CLUSTERS, seed=0, minit="++")[1] if labels is None else labels[own]
    shown = IN_WEIGHTS if scheme.mode == "distilled" else 1.0
    found: dict[str, Any] = {theft: {kind: dict.fromkeys(counts, 0.0) for kind in KINDS} for theft in thefts}
    for step in watch(iter(range(len(seeds) * len(thefts))), len(seeds) * len(thefts)):
        seed, theft = seeds[step // len(thefts)], thefts[step % len(thefts)]
        one = replace(key, secret=Secret.from_seed(seed), _embedded={})
        random = np.random.default_rng(seed)
        copy = copied(one, placed, functions, THEFTS[theft], shown=shown, random=random)
        classifier = linear_classifier(copy[own[:_CLASSIFIED]], classes[:_CLASSIFIED])
        for kind in KINDS:
            given = answered(kind, copy[asked], classifier, random)
            for n in counts:
                rows = asked[:n]
                spectra, _ = one.spectra_of(given[:n], placed[rows], functions[rows])
                found[theft][kind][n] -= one.sides(spectra).both / len(seeds)
    return Foretold(key.size, found)


def grid(protocol: Protocol, n_items: int) -> list[int]:
    """Return every number of queries, rising, that a verification asks where it draws from at most so many items.

    Raises:
        UsageError: They are too few for any.
    """
    if n_items < protocol.n_queries:
        raise UsageError(
            f"half of the items are asked, which must be at least {protocol.n_queries:,}: got {n_items:,}; give more, "
            "or set --n-queries lower"
        )
    counts = [protocol.asks(n_items)]
    while counts[0] > protocol.n_queries:
        counts.insert(0, protocol.asks(counts[0] - 1))
    return counts


def copied(
    key: ExactKey, placed: Array, functions: Array, theft: Theft, *, shown: float, random: np.random.Generator
) -> Array:
    """Return what a simulated copy of the marked encoder answers, (n, d).

    Args:
        key: Whose mark it is.
        placed: Clean embeddings along the principal axes, (n, q).
        functions: ψ of the same items, (n, B).
        theft: How well it learns.
        shown: Share of the mark that the marked encoder shows.
        random: Draws the copy's errors.
    """
    bank = key.bank
    variances, whole = np.square(bank.deviations), bank.variance
    kept = variances**_SHARPNESS
    kept = kept / (kept + (theft.narrow * whole) ** _SHARPNESS)
    learned = theft.first / (1 + np.arange(bank.size) / theft.half)
    learned *= np.exp(theft.uneven * random.standard_normal(bank.size) - theft.uneven**2 / 2)
    reach = theft.weak + (1 - theft.weak) * kept
    errors = variances**_ERROR_POWER
    errors *= whole / errors.sum()
    mixed = learned[:, None] * random.standard_normal((bank.size, len(errors)))
    mixed *= np.sqrt(theft.along * whole / np.square(mixed * np.sqrt(errors)).sum())
    moved = shown * (functions * learned) @ key.mixtures() @ bank.placed(key.rows()) * reach
    noise = np.sqrt(max(theft.error - theft.along, 0.0)) * random.standard_normal(placed.shape)
    centre = bank.placed(bank.mean)
    along = centre + kept * (placed - centre) + moved + (functions @ mixed + noise) * np.sqrt(errors)
    return np.asarray(along @ bank.axes)


def answered(kind: str, copy: Array, classifier: tuple[Array, Array], random: np.random.Generator) -> Array:
    """Return a copy's answers of a kind, given its embeddings (n, d) and the weights and intercepts of a classifier."""
    if kind == "embeddings":
        return copy
    if kind in ("rotated", "unknown map"):
        d = copy.shape[1]
        turns = [np.linalg.qr(random.standard_normal((d, d)))[0] for _ in range(2)]
        sizes = np.geomspace(1, 1 if kind == "rotated" else 1 / _CONDITION, d)
        return np.asarray((copy - copy.mean(0)) @ (turns[0] * sizes) @ turns[1])
    logits = copy @ classifier[0] + classifier[1]
    if kind == "probabilities":
        return np.asarray(np.round(softmax(logits, axis=1), _DIGITS))
    return logits if kind == "logits" else logits.argmax(1)[:, None].astype(np.float64)
