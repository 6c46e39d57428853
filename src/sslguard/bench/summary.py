"""What rows say together: detection, accuracy kept, false claims, and what hurts each scheme most."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import mean, median
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sslguard.bench.rows import Row, controls

T = TypeVar("T")
R = TypeVar("R")

KEPT = 0.9
"""An attack that keeps less of the accuracy has ruined what it stole."""
_LEVEL = 0.95
_PUBLISHED_LOG2 = math.log2(0.01)


@dataclass(frozen=True)
class Interval:
    """A mean or a share, with its 95 % interval; both ends are None where one value says nothing of others."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Outcome:
    """One attack against one scheme, over the `n` encoders and seeds that it could be carried out on.

    Attributes:
        detected: share claimed at each false-claim rate, with Wilson's interval; None where a null cannot support it.
        kept: mean of accuracy kept, with Student's interval; None where it was not measured.
        bits: median of −log₂ p.
        seconds: median CPU seconds of the attack; queries: of the theft, where it asked any.
        refused: why there is no statistic, where no suspect has one.
    """

    scheme: str
    attack: str
    set: str
    n: int
    detected: tuple[Interval | None, ...]
    kept: Interval | None
    bits: float | None
    seconds: float | None
    queries: int | None
    refused: str | None

    @property
    def counts(self) -> bool:
        """Whether the attack keeps enough accuracy to be one."""
        return self.kept is not None and self.kept.value >= KEPT


@dataclass(frozen=True)
class FalseClaims:
    """A scheme on its innocents.

    Attributes:
        n: innocents; `claimed` of them at each rate, None where the null is a rank among these very innocents.
        least: smallest log₂ p; of ranks it says nothing.
        published: share that the scheme's own paper would claim at 1 %, and the least and the largest of any key:
            innocents of one key are no independent draws. None of schemes without such a test.
        refused: innocents that could not be scored.
        families: of innocents, summed over keys; see `rows.controls`.
    """

    scheme: str
    n: int
    refused: int
    families: int
    claimed: tuple[int, ...] | None
    least: float | None
    published: Interval | None


@dataclass(frozen=True)
class Separation:
    """One key: the statistic of what it protects, and those of its innocents.

    Attributes:
        own: of the protected encoder, unattacked; None where it has none.
        middle, largest: median and maximum of innocents; under an exact null each meets a secret of its own.
        published: share of innocents that the scheme's own paper would claim at 1 %; least: the smallest log₂ p of that
            test. None of schemes without one.
    """

    scheme: str
    encoder: str
    seed: int
    own: float | None
    middle: float
    largest: float
    published: float | None
    least: float | None


@dataclass(frozen=True)
class Costs:
    """Medians of a scheme: CPU seconds of protecting, accuracy kept by it, queries of a verification."""

    scheme: str
    seconds: float | None
    kept: Interval | None
    asked: int | None
    bits: float | None


def outcomes(rows: Sequence[Row], rates: Sequence[float], *, encoders: Iterable[str] = ()) -> list[Outcome]:
    """Every attack against every scheme, in the rows' order; over some encoders only where they are named."""
    chosen = set(encoders)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.kind == "attack" and (not chosen or row.encoder in chosen):
            groups.setdefault((row.attack, row.scheme), []).append(row)
    return [_outcome(group, rates) for group in groups.values()]


def _outcome(group: Sequence[Row], rates: Sequence[float]) -> Outcome:
    first = group[0]
    reasons = {row.refused for row in group}
    group = [row for row in group if row.applies]
    found = [[row.detected(rate) for row in group] for rate in rates]
    return Outcome(
        scheme=first.scheme,
        attack=first.attack,
        set=first.set,
        n=len(group),
        detected=tuple(None if None in each or not each else share(sum(map(bool, each)), len(each)) for each in found),
        kept=_over(group, lambda row: row.kept, average),
        bits=_over(group, lambda row: row.bits, median),
        seconds=_over(group, lambda row: row.attack_seconds, median),
        queries=_over(group, lambda row: row.thief_queries, _most),
        refused=first.refused if None not in reasons else None,
    )


def _most(counts: Sequence[int]) -> int:
    return max(counts)


def hardest(rows: Sequence[Row], scheme: str, kept: float = KEPT) -> Row | None:
    """The attacked suspect of least evidence under this scheme, on any encoder, among those that keep so much accuracy.

    Of several that leave as little, the one that keeps the most. Without a null there is no evidence to compare.
    """
    candidates = [
        (row.bits, -row.kept, number)
        for number, row in enumerate(rows)
        if row.kind == "attack" and row.scheme == scheme and row.bits is not None
        if row.kept is not None and row.kept >= kept
    ]
    return rows[min(candidates)[2]] if candidates else None


def false_claims(rows: Sequence[Row], rates: Sequence[float]) -> list[FalseClaims]:
    """Every scheme on its innocents, over all encoders and seeds."""
    found = []
    for scheme in dict.fromkeys(row.scheme for row in rows):
        everyone = [row for row in rows if row.scheme == scheme and row.kind == "innocent"]
        group = [row for row in everyone if row.refused is None]
        exact = [row.log2_pvalue for row in group if row.uncapped_bits is not None and row.log2_pvalue is not None]
        found.append(
            FalseClaims(
                scheme=scheme,
                n=len(group),
                refused=len(everyone) - len(group),
                families=len({(row.encoder, row.seed, row.family) for row in group}),
                claimed=tuple(sum(value <= rate for value in exact) for rate in rates) if exact else None,
                least=min(exact, default=None),
                published=_published(group),
            )
        )
    return found


def _published(group: Sequence[Row]) -> Interval | None:
    claimed: dict[tuple[str, int], list[float]] = {}
    for row in group:
        if row.published_log2_pvalue is not None:
            below = float(row.published_log2_pvalue <= _PUBLISHED_LOG2)
            claimed.setdefault((row.encoder, row.seed), []).append(below)
    if not claimed:
        return None
    shares = [mean(one) for one in claimed.values()]
    ends = (min(shares), max(shares)) if len(shares) > 1 else (None, None)
    return Interval(mean(chain.from_iterable(claimed.values())), *ends)


def separations(rows: Sequence[Row]) -> list[Separation]:
    """Every key that has innocents, in the rows' order of schemes."""
    innocents: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row.kind == "innocent" and row.statistic is not None:
            innocents.setdefault((row.scheme, row.encoder, row.seed), []).append(row)
    own = {(row.scheme, row.encoder, row.seed): row.statistic for row in rows if row.kind == "protected"}
    order = {scheme: place for place, scheme in enumerate(dict.fromkeys(row.scheme for row in rows))}
    found = []
    for key in sorted(innocents, key=lambda key: order[key[0]]):
        statistics = [row.statistic for row in innocents[key] if row.statistic is not None]
        published = [p for row in innocents[key] if (p := row.published_log2_pvalue) is not None]
        found.append(
            Separation(
                *key,
                own=own.get(key),
                middle=median(statistics),
                largest=max(statistics),
                published=mean(p <= _PUBLISHED_LOG2 for p in published) if published else None,
                least=min(published, default=None),
            )
        )
    return found


def costs(rows: Sequence[Row]) -> list[Costs]:
    """What protecting costs, by scheme."""
    found = []
    for scheme in dict.fromkeys(row.scheme for row in rows):
        group = [row for row in rows if row.scheme == scheme and row.kind == "protected"]
        found.append(
            Costs(
                scheme=scheme,
                seconds=_over(group, lambda row: row.mark_seconds, median),
                kept=_over(group, lambda row: row.kept, average),
                asked=_over(group, lambda row: row.asked, _most),
                bits=_over(group, lambda row: row.bits, median),
            )
        )
    return found


def roc(rows: Sequence[Row], scheme: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """False-claim rates and the share of attacks found at them, of attacks that keep ≥ 90 %; None without either.

    By ranks for every scheme: an attack's rate is (1 + k)/(1 + n), where k of n families of innocents of the same key
    have as large a statistic. A suspect that cannot be scored is found at no rate below 1.
    """
    rates, pools = [], controls([row for row in rows if row.scheme == scheme])
    for row in rows:
        if row.kind != "attack" or row.scheme != scheme or row.kept is None or row.kept < KEPT:
            continue
        pool = list(pools.get((row.encoder, scheme, row.seed), {}).values())
        if pool:
            beaten = len(pool) if row.statistic is None else int(np.sum(np.array(pool) >= row.statistic))
            rates.append((1 + beaten) / (1 + len(pool)))
    if not rates:
        return None
    grid = np.unique([0.0, *rates, 1.0])
    return grid, np.array([np.mean(np.array(rates) <= rate) for rate in grid])


def share(count: int, n: int) -> Interval:
    """count / n with Wilson's interval; n ≥ 1."""
    if n == 1:
        return Interval(float(count))
    found = stats.binomtest(count, n).proportion_ci(_LEVEL, method="wilson")
    return Interval(count / n, float(found.low), float(found.high))


def average(values: Sequence[float]) -> Interval:
    """Mean with Student's interval; at least one value."""
    if len(values) == 1:
        return Interval(float(values[0]))
    half = float(stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1) * stats.sem(values))
    centre = mean(values)
    return Interval(centre, centre - half, centre + half)


def _over(group: Sequence[Row], of: Callable[[Row], T | None], how: Callable[[list[T]], R]) -> R | None:
    """`how` of what the rows have, or None where none has it."""
    values = [value for row in group if (value := of(row)) is not None]
    return how(values) if values else None
