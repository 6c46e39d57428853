"""Attacks in sequence, such as: steal, then fine-tune, then prune.

The first step meets the victim: a stealing asks it, a removal needs its weights. All later steps work on the thief's
own copy. A stealing in a later place distils that copy into another network, as a thief does to change the architecture
or to wash out a mark; its queries are not counted. A wrapping or mapping can stand before a stealing, which then learns
from changed answers, or at the end, as the service that the thief offers. A removal cannot follow it directly, because
a wrapped victim has no weights to change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from sslguard.attacks.base import Attack, Mapping, Removal, Stealing, Wrapping
from sslguard.data.base import Data
from sslguard.encoders.base import Embedder, Encoder
from sslguard.encoders.wrapped import Wrapped, source_of
from sslguard.errors import DataError, UsageError


@dataclass(frozen=True)
class Chain:
    """Several attacks, each applied to the result of the one before.

    Attributes:
        steps: Attacks in order, at least one.
    """

    steps: tuple[Attack, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.steps, tuple) or not self.steps:
            raise UsageError(f"steps must be a tuple of at least one attack, not {self.steps!r:.200}")
        for place, step in enumerate(self.steps, 1):
            if not isinstance(step, Attack):
                raise UsageError(f"step {place} must be a stealing, removal, wrapping or mapping, not {step!r:.200}")
            before = self.steps[place - 2] if place > 1 else None
            if isinstance(step, Removal) and isinstance(before, Wrapping | Mapping):
                raise UsageError(
                    f"step {place}, {type(step).__name__}, changes weights, and behind {type(before).__name__} there "
                    f"are none: put {type(step).__name__} first, or a stealing between them"
                )

    def __call__(
        self, victim: Embedder, data: Data | Sequence[Data | None], *, seed: int, **loop: Any
    ) -> Encoder | Wrapped:
        """Run all steps and return the result of the last.

        The result's record holds the records of all steps, and the number of queries that the victim was asked.

        Args:
            victim: An Encoder if the first step is a Removal, else any Embedder.
            data: One data set for each step, in order, or a single one for all steps. A stealing takes queries, a
                fine-tuning labelled items, and a step whose `needs` is "nothing" takes None.
            seed: Seed of the first step, so that a chain begins as its first attack alone would. Each later step's seed
                is derived from it and the step's position, so that a longer chain begins as a shorter one. Wrappings
                and mappings have seeds of their own.
            loop: Settings for every step that trains, such as `devices` and `precision`.

        Raises:
            UsageError: A step cannot run on what it is given. The victim was not asked then.
            DataError: A step needs labels, and its data set has none.
        """
        if seed < 0:
            raise UsageError(f"seed must not be negative, but is {seed}")
        if isinstance(self.steps[0], Removal) and not isinstance(victim, Encoder):
            raise UsageError(
                f"step 1, {type(self.steps[0]).__name__}, changes weights: the victim must be an Encoder, not "
                f"{type(victim).__name__}; put a Stealing first"
            )
        current, records = victim, []
        for place, (step, given) in enumerate(zip(self.steps, self._paired(data), strict=True)):
            current = _stepped(step, current, given, seed=_seed(seed, place), **loop)
            records.append(current.record)
        result, record = cast("Encoder | Wrapped", current), self._record(victim, records, seed)
        if isinstance(result, Encoder):
            return replace(result, record=record)
        result.record = record
        return result

    def _paired(self, data: Data | Sequence[Data | None]) -> list[Data]:
        """Return one data set for each step. None passes for steps that need nothing."""
        sets = [data] * len(self.steps) if isinstance(data, Data) else list(data)
        if len(sets) != len(self.steps):
            raise UsageError(f"data must be one set, or one for each of the {len(self.steps)} steps, not {len(sets)}")
        for place, (step, given) in enumerate(zip(self.steps, sets, strict=True), 1):
            title = f"step {place}, {type(step).__name__},"
            if not isinstance(given, Data) and not (given is None and step.needs == "nothing"):
                raise UsageError(f"{title} needs a data set, not {given!r:.80}")
            if step.needs == "labels" and given is not None and given.labels is None:
                raise DataError(f"{title} needs labels, and {given.spec} has no labels to train on")
        return cast("list[Data]", sets)

    def _record(self, victim: Embedder, records: list[dict[str, Any]], seed: int) -> dict[str, Any]:
        record: dict[str, Any] = {
            "made_by": "chain",
            "from": source_of(victim),
            "seed": seed,
            "seconds": round(sum(r.get("seconds", 0.0) for r in records), 1),
            "steps": records,
        }
        # The first stealing asked the victim, unless a removal came before it and used the weights instead.
        first = next((k for k, step in enumerate(self.steps) if isinstance(step, Stealing | Removal)), 0)
        if isinstance(self.steps[first], Stealing) and "queries" in records[first]:
            record["queries"] = records[first]["queries"]
        return record


def _stepped(step: Attack, current: Embedder, given: Data, *, seed: int, **loop: Any) -> Encoder | Wrapped:
    if isinstance(step, Wrapping):
        return step(current)
    if isinstance(step, Mapping):
        return step(current, given)
    if isinstance(step, Stealing):
        return step(current, given, seed=seed, **loop)
    return step(cast("Encoder", current), given, seed=seed, **loop)


def _seed(seed: int, place: int) -> int:
    """Return the seed of the step at `place`, counted from 0. After the first, it lies in [0, 2⁶³)."""
    if place == 0:
        return seed
    return int(np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0] >> np.uint64(1))
