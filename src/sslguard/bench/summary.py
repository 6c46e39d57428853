"""Summarise rows: detection, accuracy kept, false claims, and the strongest attack on each scheme."""

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
"""Share of accuracy that an attack must keep; one that keeps less has made the stolen encoder useless."""
_LEVEL = 0.95
_PUBLISHED_LOG2 = math.log2(0.01)


@dataclass(frozen=True)
class Interval:
    """A mean or a share, with its 95 % interval. Both ends are None if there is only one value."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Outcome:
    """One attack against one scheme.

    Attributes:
        scheme, attack, set: Names, and the set of the attack.
        n: Number of pairs of encoder and seed on which the attack could be carried out.
        detected: Share claimed at each false-claim rate, with Wilson's interval; None if a null cannot support it.
        kept: Mean share of accuracy kept, with Student's interval; None if it was not measured.
        bits: Median of −log₂ p.
        seconds: Median CPU seconds of the attack.
        queries: Largest number of queries of the theft; None if it asked none.
        refused: Reason for a missing statistic, if no suspect has one.
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
        """Whether the attack keeps enough accuracy to count."""
        return self.kept is not None and self.kept.value >= KEPT


@dataclass(frozen=True)
class FalseClaims:
    """False claims of a scheme on its innocents.

    Attributes:
        scheme: Name of the scheme.
        n: Number of innocents that were scored.
        refused: Number of innocents that could not be scored.
        families: Number of families of innocents, summed over keys; see `rows.controls`.
        claimed: Number claimed at each rate; None if the null is a rank among these same innocents.
        least: Smallest log₂ p of an exact null; None for ranks.
        published: Share that the test of the scheme's own paper claims at 1 %; its ends are the smallest and the
            largest share of any key, because innocents of one key are not independent. None without such a test.
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
    """Statistics of one key: that of the protected encoder, and those of its innocents.

    Attributes:
        scheme, encoder, seed: The key.
        own: Statistic of the protected encoder, unattacked; None if it has none.
        middle, largest: Median and maximum of the innocents; under an exact null each is tested with a fresh secret.
        published: Share of innocents that the test of the scheme's own paper claims at 1 %; None without such a test.
        least: Smallest log₂ p of that test.
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
    """Costs of a scheme.

    Attributes:
        scheme: Name of the scheme.
        seconds: Median CPU seconds of protecting an encoder.
        kept: Mean share of accuracy that protecting keeps, with Student's interval.
        asked: Largest number of queries of a verification.
        bits: Median −log₂ p of the protected encoder, unattacked.
    """

    scheme: str
    seconds: float | None
    kept: Interval | None
    asked: int | None
    bits: float | None


def outcomes(rows: Sequence[Row], rates: Sequence[float], *, encoders: Iterable[str] = ()) -> list[Outcome]:
    """Return the outcome of each attack against each scheme, in the order of the rows.

    Args:
        rows: All rows.
        rates: False-claim rates, as base-2 logarithms.
        encoders: Names of the encoders that count; default: all.
    """
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
    """Return the attacked suspect with the least evidence under a scheme, on any encoder.

    If several have equally little, return the one that keeps the most accuracy.

    Args:
        rows: All rows; those without a p-value do not count.
        scheme: Name of the scheme.
        kept: Share of accuracy that a suspect must keep.

    Returns:
        The row; None if no suspect counts.
    """
    candidates = [
        (row.bits, -row.kept, number)
        for number, row in enumerate(rows)
        if row.kind == "attack" and row.scheme == scheme and row.bits is not None
        if row.kept is not None and row.kept >= kept
    ]
    return rows[min(candidates)[2]] if candidates else None


def false_claims(rows: Sequence[Row], rates: Sequence[float]) -> list[FalseClaims]:
    """Return the false claims of each scheme, over all encoders and seeds. Rates are base-2 logarithms."""
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
    """Return the statistics of each key that has innocents. Schemes keep the order of the rows."""
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
    """Return the costs of each scheme."""
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
    """Return the ROC of a scheme, over attacks that keep at least 90 % of accuracy.

    Every scheme is ranked: the rate of an attack is (1 + k)/(1 + n), where k of n families of innocents of the same key
    have a statistic at least as large. A suspect that cannot be scored has rate 1.

    Returns:
        False-claim rates, ascending, and the share of attacks detected at each, both of shape (n,) and float64; None
        without such attacks or without innocents.
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
    """Return count / n with Wilson's 95 % interval; n ≥ 1."""
    if n == 1:
        return Interval(float(count))
    found = stats.binomtest(count, n).proportion_ci(_LEVEL, method="wilson")
    return Interval(count / n, float(found.low), float(found.high))


def average(values: Sequence[float]) -> Interval:
    """Return the mean with Student's 95 % interval; at least one value is needed."""
    if len(values) == 1:
        return Interval(float(values[0]))
    half = float(stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1) * stats.sem(values))
    centre = mean(values)
    return Interval(centre, centre - half, centre + half)


def _over(group: Sequence[Row], of: Callable[[Row], T | None], how: Callable[[list[T]], R]) -> R | None:
    """Return `how` applied to the values that rows have, or None if no row has a value."""
    values = [value for row in group if (value := of(row)) is not None]
    return how(values) if values else None
