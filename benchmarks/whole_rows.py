"""What the cells of `whole.py` say: accuracy kept, costs, ranks among controls, rates with their intervals, targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cells import Cell, read_cells
from scipy import stats
from whole_plan import Settings, keys_of

from sslguard.errors import UsageError
from sslguard.probes import accuracy_kept
from sslguard.stats.significance import control_rank_test

KEEPS = 0.9  # an attack that keeps less has not won, nor one that costs more than pre-training
WR_HIGH = 0.9
WR_LOW = 0.1
WR_PAPER = 0.5
MARK_KEEPS = 0.99
HELD_OUT = "held-out"

Member = Mapping[str, Any]  # family, WR, cosine


@dataclass(frozen=True)
class Rate:
    """k of n, with the exact (Clopper-Pearson) 95 % interval of the share."""

    k: int
    n: int

    @property
    def share(self) -> float:
        return self.k / self.n

    def interval(self) -> tuple[float, float]:
        found = stats.binomtest(self.k, self.n).proportion_ci(0.95, method="exact")
        return float(found.low), float(found.high)

    def to_json(self) -> dict[str, Any]:
        return {"k": self.k, "n": self.n, "interval": list(self.interval()) if self.n else None}


def rate(flags: Iterable[bool]) -> Rate:
    """How many of them are true."""
    every = list(flags)
    return Rate(sum(every), len(every))


@dataclass(frozen=True)
class Scored:
    """A suspect under one key. `rank` is 1 above every control, among `of`; p = rank / of. None without controls."""

    WR: float
    cosine: float
    rank: int | None
    of: int

    @property
    def above(self) -> bool | None:
        return None if self.rank is None else self.rank == 1


@dataclass(frozen=True)
class Row:
    """A suspect: a cell of the plan with what was measured, None where it was not run.

    Attributes:
        kept: accuracy kept of the clean encoder's, garments.
        share: cost as a share of the victim's pre-training at the same precision.
    """

    name: str
    group: str
    function: str
    victim: str
    target: str
    label: str
    accuracy: float | None = None
    kept: float | None = None
    share: float | None = None
    seconds: float | None = None
    precision: str | None = None
    queries: int | None = None
    scores: Mapping[str, Scored] | None = None

    @property
    def run(self) -> bool:
        return self.scores is not None

    @property
    def won(self) -> bool:
        """Whether the attack is worth its cost: it keeps ≥ 90 % of the accuracy for at most pre-training's cost."""
        return self.kept is not None and self.kept >= KEEPS and (self.share is None or self.share <= 1)

    def of_key(self, variant: str) -> Scored | None:
        """The score under the first key of a variant."""
        for key, scored in (self.scores or {}).items():
            if f"-{variant}-" in key:
                return scored
        return None


@dataclass(frozen=True)
class Mark:
    """An F* and its key."""

    victim: str
    variant: str
    seed: int
    kept: float | None = None
    kept_digits: float | None = None
    seconds: float | None = None
    marked: Scored | None = None
    clean: Scored | None = None


@dataclass(frozen=True)
class NullRow:
    """One family of innocents under all keys of a victim and variant.

    Attributes:
        keys: keys that scored it.
        claims: members above every control of all other families: what a claim at the floor gets wrong when the
            controls lack the family.
    """

    victim: str
    variant: str
    family: str
    keys: int
    low: Rate
    paper: Rate
    claims: Rate
    largest: float


@dataclass(frozen=True)
class Results:
    """Everything that the page shows."""

    settings: Settings
    header: dict[str, Any]
    references: dict[str, Any]
    marks: list[Mark]
    null: list[NullRow]
    rows: list[Row]
    missing: list[str]
    foreign: list[str]

    def find(self, name: str) -> Row | None:
        """The row of a cell, None where the plan has none."""
        return next((row for row in self.rows if row.name == name), None)


def kept_of(accuracy: float, reference: Mapping[str, float]) -> float | None:
    """Accuracy kept, None where the clean encoder is no better than its baselines."""
    try:
        return accuracy_kept(accuracy, reference["clean"], reference["floor"])
    except UsageError:
        return None


def controls_of(members: Mapping[str, Member]) -> list[float]:
    """Mean cosines of those that a suspect is ranked among: all but the held-out ones."""
    return [m["cosine"] for m in members.values() if not m["family"].startswith(HELD_OUT)]


def scored(score: Mapping[str, float], members: Mapping[str, Member]) -> Scored:
    """A score with its rank among the key's controls."""
    controls = controls_of(members)
    if not controls:
        return Scored(score["WR"], score["cosine"], None, 0)
    test = control_rank_test(score["cosine"], controls, n_queries=int(score["queries"]))
    return Scored(score["WR"], score["cosine"], 1 + int(test.details["controls_at_least"]), 1 + len(controls))


def false_claims(members: Mapping[str, Member], family: str) -> list[bool]:
    """Of each member of a family, whether it lies above every control of all other families.

    Held-out families are no controls. Empty where no other family has a control.
    """
    others = [m["cosine"] for m in members.values() if m["family"] != family and not m["family"].startswith(HELD_OUT)]
    if not others:
        return []
    return [m["cosine"] > max(others) for m in members.values() if m["family"] == family]


def null_rows(victim: str, variant: str, nulls: Sequence[Mapping[str, Member]]) -> list[NullRow]:
    """One row a family and one for all, over the members of several keys."""
    families = dict.fromkeys(m["family"] for members in nulls for m in members.values())
    rows = []
    for family in families:
        each = [m for members in nulls for m in members.values() if m["family"] == family]
        keys = sum(any(m["family"] == family for m in members.values()) for members in nulls)
        claims = rate(claim for members in nulls for claim in false_claims(members, family))
        rows.append(_null_row(victim, variant, family, keys, each, claims))
    if rows:
        total = [m for members in nulls for m in members.values()]
        claims = Rate(sum(row.claims.k for row in rows), sum(row.claims.n for row in rows))
        rows.append(_null_row(victim, variant, "all", len([m for m in nulls if m]), total, claims))
    return rows


def _null_row(victim: str, variant: str, family: str, keys: int, each: Sequence[Member], claims: Rate) -> NullRow:
    low, paper = (rate(m["WR"] > bound for m in each) for bound in (WR_LOW, WR_PAPER))
    return NullRow(victim, variant, family, keys, low, paper, claims, max(m["cosine"] for m in each))


def mean_and_bound(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the lower end of its two-sided 95 % interval (Student's t); None for fewer than two values."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return mean, float(mean - half)


def gather(settings: Settings, plan: Sequence[Cell], out: Path) -> Results:
    """The figures of the cells that are there."""
    found, foreign = read_cells(out, plan)
    results = {name: content["result"] for name, content in found.items()}
    nulls = {
        key: {k: v for kind in ("null", "others", "extra") for k, v in results.get(f"{kind}-{key}", {}).items()}
        for victim in settings.victims
        for key in keys_of(settings, victim)
    }
    null = [
        row
        for victim in settings.victims
        for variant in settings.seeds
        for row in null_rows(victim, variant, [nulls[key] for key in keys_of(settings, victim, variant)])
    ]
    return Results(
        settings=settings,
        header=_header(plan, found, settings),
        references={v: results[f"reference-{v}"] for v in settings.victims if f"reference-{v}" in results},
        marks=[_mark(cell, results, nulls) for cell in plan if cell.function == "mark"],
        null=null,
        rows=[_row(cell, results, nulls) for cell in plan if "label" in cell.args],
        missing=[cell.name for cell in plan if cell.name not in found],
        foreign=foreign,
    )


def _header(plan: Sequence[Cell], found: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    dates = sorted(content["date"] for content in found.values())
    machines = {c["result"]["machine"] for c in found.values() if "machine" in c["result"]}
    asked = {c["result"]["F*"]["queries"] for c in found.values() if "F*" in c["result"]}
    return {
        "dates": sorted({dates[0], dates[-1]}) if dates else [],
        "machines": sorted(machines),
        "precision of thieves": settings.precision,
        "queries of a verification": sorted(asked),
        "cells": len(plan),
        "cells done": len(found),
        "CPU seconds": round(sum(content["cpu_seconds"] for content in found.values())),
        "command": f"python benchmarks/whole.py OUT{settings.flag}",
    }


def _mark(cell: Cell, results: Mapping[str, Any], nulls: Mapping[str, Any]) -> Mark:
    args, found = cell.args, results.get(cell.name)
    who = {"victim": args["victim"], "variant": args["variant"], "seed": args["seed"]}
    if found is None:
        return Mark(**who)
    reference = results.get(f"reference-{args['victim']}")
    return Mark(
        **who,
        kept=reference and kept_of(found["garments"], reference["garments"]),
        kept_digits=reference and kept_of(found["digits"], reference["digits"]),
        seconds=found["marking_seconds"],
        marked=scored(found["F*"], nulls[cell.name]),
        clean=scored(found["F"], nulls[cell.name]),
    )


def _row(cell: Cell, results: Mapping[str, Any], nulls: Mapping[str, Any]) -> Row:
    args, found = cell.args, results.get(cell.name)
    row: Callable[..., Row] = lambda **more: Row(  # noqa: E731
        cell.name, cell.group, cell.function, args["victim"], args["target"], args["label"], **more
    )
    if found is None:
        return row()
    reference = results.get(f"reference-{args['victim']}")
    return row(
        accuracy=found["accuracy"],
        kept=reference and kept_of(found["accuracy"], reference["garments"]),
        share=reference and _share(args["of"], found, results, reference["pretraining_seconds"]),
        seconds=found["cpu_seconds"],
        precision=found.get("precision"),
        queries=found.get("queries"),
        scores={key: scored(score, nulls[key]) for key, score in found["scores"].items()},
    )


def _share(of: str, found: Mapping[str, Any], results: Mapping[str, Any], pretraining: Mapping[str, float]) -> float:
    """Cost of an attack, and of what made the encoder that it began from, in units of the victim's pre-training."""
    own = found["cpu_seconds"] / pretraining[found["precision"]] if "precision" in found else 0.0
    before = results.get(of, {})
    return own + (before["cpu_seconds"] / pretraining[before["precision"]] if "precision" in before else 0.0)
