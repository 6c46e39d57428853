"""The targets of a benchmark: the goal, the result, and whether the result meets the goal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from sslguard.bench.config import Config, Target, within
from sslguard.bench.rows import Row
from sslguard.bench.summary import Interval, grouped, over, share
from sslguard.errors import UsageError

_GROUPS = {"protected": ("mark",), "attack": ("attack",), "innocent": ("null", "other", "twin")}


@dataclass(frozen=True)
class Result:
    """The result of a target.

    Attributes:
        target: The target.
        values: The values that the target bounds, by name of the suspect, or by scheme and encoder for a mean. None
            stands for a suspect that cannot be scored, which does not meet the bound.
        met: Number of values within the bound.
        negatives: The same number for the same attacks on the clean encoder, which has no mark; and their total.
        missing: Number of cells that count and are not done.
    """

    target: Target
    values: Mapping[str, float | None]
    met: int
    negatives: tuple[int, int]
    missing: int

    @property
    def verdict(self) -> str:
        """Verdict in words: "met" only if no cell is missing, "not met" as soon as one value is out of bounds."""
        if self.met < len(self.values):
            return "not met"
        if self.missing:
            return f"open: {self.missing} cells are not done"
        return "met" if self.values else "nothing counts"

    @property
    def share(self) -> Interval | None:
        """Share of values within the bound, with its interval; None without values."""
        return share(self.met, len(self.values)) if self.values else None


def results(config: Config, rows: Sequence[Row], undone: Iterable[Mapping[str, Any]]) -> list[Result]:
    """Return the result of each target of a configuration.

    Args:
        config: Configuration with the targets.
        rows: All rows so far.
        undone: `Plan.about` of each cell that is not done, with its `group`.

    Raises:
        UsageError: A target names a column that rows do not have or that holds no numbers.
    """
    left = list(undone)
    return [_result(target, rows, left) for target in config.targets]


def _result(target: Target, rows: Sequence[Row], undone: Sequence[Mapping[str, Any]]) -> Result:
    if not isinstance(getattr(Row, target.column, None), property) and target.column not in Row.__dataclass_fields__:
        raise UsageError(f"targets: rows have no column {target.column!r:.80}; see sslguard.bench.rows")
    mine = [row for row in rows if row.kind == target.kind and _named(target, row.encoder, row.scheme, row.attack)]
    counted = [row for row in mine if row.applies and _counts(target, row)]
    values: dict[str, float | None] = {f"{row.cell} {row.suspect}": _value(target, row) for row in counted}
    if target.mean:
        groups = grouped(counted, "scheme", "encoder")
        values = {", ".join(pair): over(group, target.column, mean) for pair, group in groups.items()}
    twins = [row for row in rows if target.kind == "attack" and row.twin]
    twins = [row for row in twins if _named(target, row.encoder, row.scheme, row.attack)]
    missing = [one for one in undone if one["group"] in _GROUPS[target.kind]]
    missing = [one for one in missing if _named(target, one["encoder"], one["scheme"], one.get("attack", ""))]
    return Result(
        target=target,
        values=values,
        met=sum(_within(target, value) for value in values.values()),
        negatives=(sum(_within(target, _value(target, row)) for row in twins), len(twins)),
        missing=len(missing),
    )


def _named(target: Target, encoder: str, scheme: str, attack: str) -> bool:
    return within((target.encoders, encoder), (target.schemes, scheme), (target.attacks, attack))


def _counts(target: Target, row: Row) -> bool:
    """Return whether a suspect counts: it keeps enough accuracy, and cost no more than pre-training if known."""
    if target.kept is None:
        return True
    return row.kept is not None and row.kept >= target.kept and (row.share is None or row.share <= 1)


def _value(target: Target, row: Row) -> float | None:
    found = getattr(row, target.column)
    if isinstance(found, str | Mapping):
        raise UsageError(f"targets: the column {target.column!r:.80} holds no numbers")
    return None if found is None else float(found)


def _within(target: Target, value: float | None) -> bool:
    if value is None:
        return False
    return value <= target.at_most if target.at_most is not None else value >= (target.at_least or 0.0)
