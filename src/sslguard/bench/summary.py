"""Summarise rows: detection, accuracy kept, false claims, and the strongest attack on each scheme."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sslguard.bench.rows import Row, controls

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


def outcomes(rows: Sequence[Row], rates: Sequence[float], *, encoders: Iterable[str] = ()) -> list[Outcome]:
    """Return the outcome of each attack against each scheme, in the order of the rows.

    Args:
        rows: All rows.
        rates: False-claim rates, as base-2 logarithms.
        encoders: Names of the encoders that count; default: all.
    """
    chosen = set(encoders)
    attacked = [row for row in rows if row.kind == "attack" and (not chosen or row.encoder in chosen)]
    return [_outcome(group, rates) for group in grouped(attacked, "attack", "scheme").values()]


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
        kept=over(group, "kept", average),
        bits=over(group, "bits", median),
        seconds=over(group, "attack_seconds", median),
        queries=over(group, "thief_queries", max),
        refused=first.refused if None not in reasons else None,
    )


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
        row
        for row in rows
        if row.kind == "attack" and row.scheme == scheme and row.bits is not None
        if row.kept is not None and row.kept >= kept
    ]
    return min(candidates, key=lambda row: (row.bits or 0.0, -(row.kept or 0.0)), default=None)


def published(rows: Sequence[Row]) -> Interval | None:
    """Return the share of innocents that the test of the scheme's own paper claims at 1 %; None without such a test.

    The ends of the interval are the smallest and the largest share of any key, because innocents of one key are not
    independent.
    """
    tested = [row for row in rows if row.published_log2_pvalue is not None]
    shares = [claimed_as_published(group) for group in grouped(tested, "encoder", "seed").values()]
    if not tested:
        return None
    ends = (min(shares), max(shares)) if len(shares) > 1 else (None, None)
    return Interval(claimed_as_published(tested), *ends)


def claimed_as_published(rows: Sequence[Row]) -> float:
    """Return the share of the rows with such a test that it claims at 1 %."""
    return mean(pvalue <= _PUBLISHED_LOG2 for pvalue in known(rows, "published_log2_pvalue"))


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


def grouped(rows: Iterable[Row], *columns: str) -> dict[tuple[Any, ...], list[Row]]:
    """Return the rows by the values of these columns, in the order of the rows."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(getattr(row, column) for column in columns), []).append(row)
    return found


def known(rows: Iterable[Row], column: str) -> list[Any]:
    """Return the values of a column, without those that are missing."""
    return [value for row in rows if (value := getattr(row, column)) is not None]


def over(rows: Iterable[Row], column: str, how: Callable[[list[Any]], R]) -> R | None:
    """Return `how` applied to the known values of a column, or None if there are none."""
    values = known(rows, column)
    return how(values) if values else None
