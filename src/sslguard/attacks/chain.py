"""Attacks one after another: stolen, then fine-tuned, then pruned.

Any attack may stand anywhere. What stands first meets the victim: a stealing asks it, a removal needs its weights.
All that follow work on the thief's own copy. A stealing there distils that copy into another network, as a thief
does to change the architecture or to launder a mark twice; nobody counts those queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from sslguard.attacks.removal import Removal
from sslguard.attacks.stealing import Stealing
from sslguard.data.base import Data
from sslguard.encoders.base import Embedder, Encoder
from sslguard.errors import DataError, UsageError


@dataclass(frozen=True)
class Chain:
    """Several attacks, each on what the one before it made.

    Attributes:
        steps: the attacks in order, at least one.
    """

    steps: tuple[Stealing | Removal, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.steps, tuple) or not self.steps:
            raise UsageError(f"steps must be a tuple of at least one attack, not {self.steps!r:.200}")
        for place, step in enumerate(self.steps, 1):
            if not isinstance(step, Stealing | Removal):
                raise UsageError(f"step {place} must be a Stealing or a Removal, not {step!r:.200}")

    def __call__(self, victim: Embedder, data: Data | Sequence[Data | None], *, seed: int, **loop: Any) -> Encoder:
        """What the last step leaves. Its record holds every step's, and the queries that the victim was asked.

        Args:
            victim: an Encoder where the first step is a Removal; else any Embedder.
            data: one set for each step, in order (queries for a stealing, labelled items for a fine-tuning, None
                for a pruning), or a single set for all of them.
            seed: the first step's own, so that a chain begins as its first attack alone would; every later step's
                is derived from it and the step's place, so that a longer chain begins as a shorter one.
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
            if isinstance(step, Stealing):
                current = step(current, given, seed=_seed(seed, place), **loop)
            else:
                current = step(cast("Encoder", current), given, seed=_seed(seed, place), **loop)
            records.append(current.record)
        result = cast("Encoder", current)
        return replace(result, record=self._record(victim, records, seed))

    def _paired(self, data: Data | Sequence[Data | None]) -> list[Data]:
        """A set for every step; None, which only those get that need nothing, passes as one."""
        sets = [data] * len(self.steps) if isinstance(data, Data) else list(data)
        if len(sets) != len(self.steps):
            raise UsageError(f"data must be one set, or one for each of the {len(self.steps)} steps, not {len(sets)}")
        for place, (step, given) in enumerate(zip(self.steps, sets, strict=True), 1):
            needs = step.needs if isinstance(step, Removal) else "items"
            title = f"step {place}, {type(step).__name__},"
            if not isinstance(given, Data) and not (given is None and needs == "nothing"):
                raise UsageError(f"{title} needs a data set, not {given!r:.80}")
            if needs == "labels" and given is not None and given.labels is None:
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
        if isinstance(self.steps[0], Stealing) and "queries" in records[0]:
            record["queries"] = records[0]["queries"]
        return record


def _seed(seed: int, place: int) -> int:
    """The seed of the step at `place`, counted from 0: 0 ≤ seed < 2⁶³ after the first."""
    if place == 0:
        return seed
    return int(np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0] >> np.uint64(1))
