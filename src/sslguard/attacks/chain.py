"""Attacks one after another: stolen, then fine-tuned, then pruned.

What stands first meets the victim: a stealing asks it, a removal needs its weights. All that follow work on the
thief's own copy. A stealing there distils that copy into another network, as a thief does to change the architecture
or to launder a mark twice; nobody counts those queries. Wrappings and mappings stand before a stealing that learns
from changed answers, or last, as what the thief serves: behind them there are no weights to remove anything from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from sslguard.attacks.base import Attack, Mapping, Removal, Stealing, Wrapping
from sslguard.data.base import Data
from sslguard.encoders.base import Embedder, Encoder
from sslguard.encoders.wrapped import Wrapped
from sslguard.errors import DataError, UsageError


@dataclass(frozen=True)
class Chain:
    """Several attacks, each on what the one before it made.

    Attributes:
        steps: the attacks in order, at least one.
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
                    "are none: put it before, or a stealing between them"
                )

    def __call__(
        self, victim: Embedder, data: Data | Sequence[Data | None], *, seed: int, **loop: Any
    ) -> Encoder | Wrapped:
        """What the last step leaves. Its record holds every step's, and the queries that the victim was asked.

        Args:
            victim: an Encoder where the first step is a Removal; else any Embedder.
            data: one set for each step, in order (queries for a stealing, labelled items for a fine-tuning, None
                for those whose `needs` are "nothing"), or a single set for all of them.
            seed: the first step's own, so that a chain begins as its first attack alone would; every later step's
                is derived from it and the step's place, so that a longer chain begins as a shorter one. Wrappings
                and mappings have seeds of their own.
            loop: what every step takes of devices and precision.

        Raises:
            UsageError: a step cannot run on what it is given. Nothing was asked then.
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
        """A set for every step; None, which only those get that need nothing, passes as one."""
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
            "from": getattr(victim, "source", type(victim).__name__),
            "seed": seed,
            "seconds": round(sum(r.get("seconds", 0.0) for r in records), 1),
            "steps": records,
        }
        # The first stealing, if no removal had the weights before it, is the one that asked the victim.
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
    """The seed of the step at `place`, counted from 0: 0 ≤ seed < 2⁶³ after the first."""
    if place == 0:
        return seed
    return int(np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0] >> np.uint64(1))
