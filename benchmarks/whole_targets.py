"""The rows on top of `docs/results/results-sslguard.md`: what was aimed at, what came, and whether that is met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from whole_plan import TWIN
from whole_rows import MARK_KEEPS, WR_HIGH, WR_LOW, Rate, Results, Row, mean_and_bound, rate


@dataclass(frozen=True)
class Target:
    """One aim.

    Attributes:
        figure: what came, for people.
        met: None where nothing was run.
        missing: cells that count and were not run.
        negatives: the same figure of those that hold no mark.
    """

    aim: str
    figure: str
    met: bool | None
    missing: int
    negatives: str = ""

    @property
    def verdict(self) -> str:
        """Met only when nothing is missing; what fails already stays failed."""
        if self.met is None:
            return "not run" if self.missing else "none has won"
        if not self.met:
            return "**not met**"
        return "met" if not self.missing else f"open: {self.missing} not run"

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "verdict": self.verdict}


def percent(value: float) -> str:
    """A share, of one decimal where that tells something."""
    if 0 < value < 0.0005:
        return "< 0.1 %"
    shown = f"{100 * value:.1f}"
    return f"{shown.removesuffix('.0')} %"


def of(found: Rate) -> str:
    """k of n, its share, and the interval."""
    if not found.n:
        return "0 of 0"
    low, high = found.interval()
    return f"{found.k} of {found.n} ({percent(found.share)}, [{percent(low)}, {percent(high)}])"


def counted(rows: Sequence[Row], variant: str, test: Callable[[Any], bool | None]) -> Rate:
    """How many rows pass a test of their score under the variant's key: of those that were run and have won, and of
    all negatives, since no innocent may be claimed."""
    scores = [score for row in rows if (row.won or row.target == TWIN) and (score := row.of_key(variant)) is not None]
    return rate(passed for score in scores if (passed := test(score)) is not None)


def above(score: Any) -> bool | None:
    """Whether it lies above every control."""
    return score.above


def high(score: Any) -> bool:
    """Whether WR is at least 0.9."""
    return score.WR >= WR_HIGH


def chosen(results: Results, group: str, target: str, function: str = "") -> list[Row]:
    """Rows of a group and target."""
    found = [row for row in results.rows if row.group == group and row.target == target]
    return [row for row in found if not function or row.function == function]


KINDS = (
    ("surrogates", "thieves", "steal"),
    ("removals", "removal", "remove"),
    ("wrappings", "wrapping", "wrap"),
    ("surrogates from behind a wrapping", "wrapping", "steal"),
    ("chains", "chains", "remove"),
)


def targets(results: Results) -> list[Target]:
    """All of them, for the cured keys."""
    found = [_marks(results), _null(results)]
    for title, group, function in KINDS:
        rows, twins = chosen(results, group, "cured", function), chosen(results, group, TWIN, function)
        for aim, test in (("above every control", above), (f"WR ≥ {WR_HIGH}", high)):
            missing = sum((score := row.of_key("cured")) is None or test(score) is None for row in rows)
            count = counted(rows, "cured", test)
            negatives = of(counted(twins, "cured", test)) if twins else ""
            met = count.k == count.n if count.n else None
            found.append(Target(f"{title} that keep ≥ 90 %: {aim}", of(count), met, missing, negatives))
    return found


def as_json(results: Results) -> dict[str, Any]:
    """Every figure, JSON values only."""
    null = [
        {**vars(row), **{name: getattr(row, name).to_json() for name in ("low", "paper", "claims")}}
        for row in results.null
    ]
    return {
        "run": results.header,
        "references": results.references,
        "targets": [target.to_json() for target in targets(results)],
        "marks": [asdict(mark) for mark in results.marks],
        "null": null,
        "suspects": [{**asdict(row), "won": row.won} for row in results.rows],
        "not run": results.missing,
        "of other settings": results.foreign,
    }


def _null(results: Results) -> Target:
    rows = [row for row in results.null if row.variant == "cured" and row.family == "all"]
    count = Rate(sum(row.low.k for row in rows), sum(row.low.n for row in rows))
    missing = sum("-cured-" in name and name.split("-")[0] in ("null", "others", "extra") for name in results.missing)
    met = count.k == 0 if count.n else None
    return Target(f"innocents: none with WR > {WR_LOW}", of(count), met, missing)


def _marks(results: Results) -> Target:
    shown, met = [], []
    marks = [mark for mark in results.marks if mark.variant == "cured"]
    for victim in results.settings.victims:
        kept = [mark.kept for mark in marks if mark.victim == victim and mark.kept is not None]
        if kept:
            mean, bound = mean_and_bound(kept)
            lower = "" if bound is None else f", at least {percent(bound)}"
            count = rate(value >= MARK_KEEPS for value in kept)
            shown.append(f"{victim} {percent(mean)}{lower} ({count.k} of {count.n} keys ≥ {percent(MARK_KEEPS)})")
            met.append(mean >= MARK_KEEPS)
    seeds = len(results.settings.seeds["cured"])
    aim = f"F*: accuracy kept ≥ {percent(MARK_KEEPS)}, mean of {seeds} keys of each encoder"
    missing = sum(mark.kept is None for mark in marks)
    return Target(aim, "; ".join(shown) or "none", all(met) if met else None, missing)
