"""Null distributions of scores: how an innocent suspect would score.

A scheme states with `Key.needs_controls` whether its scores are ranked among known innocents. Only `null_of` derives a
null from a key. Schemes do not import this package.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from sslguard.errors import RefusedError, UsageError
from sslguard.schemes.base import Key, Score
from sslguard.schemes.order import WeightsKey
from sslguard.stats.direction import SECRET_BITS
from sslguard.stats.significance import Significance, check_floor, control_rank_test

UNDATED_TRIES = 64
"""Bits charged for a key that is not shown to be older than the suspect: up to 2^64 keys may have been tried."""
DATED_TRIES = 20
"""Bits charged for a key that is shown to be older: its owner may have dated up to 2^20 keys.

Ranks among controls could not bear that charge, so for them an audit assumes that no other key was dated.
"""

READINGS = 6
"""Bits charged for how a suspect was read: up to 2^6 of its layers, poolings, endpoints may have been tried.

Ranks could not bear that charge either: for them an audit assumes that there was one.
"""


class Null(ABC):
    """The distribution of a score when the suspect is innocent."""

    @abstractmethod
    def check(self, alpha: float, n_claims: int = 1) -> None:
        """Refuse a level that no score could reach, before the suspect is asked anything.

        Args:
            alpha: Level of the test, in (0, 1).
            n_claims: How many claims share the level, at least 1.

        Raises:
            RefusedError: No score could be significant at `alpha` / `n_claims`.
            UsageError: `alpha` or `n_claims` is out of range.
        """

    @abstractmethod
    def significance(self, score: Score) -> Significance:
        """Return the score with its p-value."""

    def charge(self, *, dated: bool, n_queries: int = 0, n_zero: int = 0) -> int:
        """Return the number of claims that an audit charges for one claim, at least 1.

        Args:
            dated: Whether the key is shown to be older than the suspect. If not, it may be the best of many keys.
                Either way the suspect may have been read in the best of many ways.
            n_queries: How many queries were asked.
            n_zero: How many answers are zero. Somebody who knows the key could leave out the answers that disagree, so
                the charge is the number of ways to leave out that many.
        """
        return _choices(n_queries, n_zero) << (self._dated_tries if dated else UNDATED_TRIES) + self._readings

    @property
    @abstractmethod
    def _dated_tries(self) -> int:
        """Bits charged for other keys that the owner may have dated."""

    @property
    @abstractmethod
    def _readings(self) -> int:
        """Bits charged for other ways of reading a suspect."""

    @abstractmethod
    def objection(self, *, dated: bool) -> str | None:
        """Return why an audit can give no verdict, in one sentence or two; None where it can."""

    @abstractmethod
    def findings(self, found: Significance) -> dict[str, Any]:
        """Return what a verdict says beside the p-value, JSON values: rank, gap, kinds of controls, warnings."""

    @abstractmethod
    def describe(self) -> str:
        """Describe the p-value in a few words."""

    @abstractmethod
    def explain(self) -> str:
        """Explain what the evidence rests on, as the end of a sentence."""


@dataclass(frozen=True)
class ExactNull(Null):
    """Null whose distribution follows by proof from the secret's own randomness. The scheme computes the p-value."""

    _dated_tries = DATED_TRIES
    _readings = READINGS

    def check(self, alpha: float, n_claims: int = 1) -> None:
        """Refuse a level below 2^−256, the entropy of a secret; see `Null.check`."""
        check_floor(2.0**-SECRET_BITS, alpha, n_claims=n_claims)

    def significance(self, score: Score) -> Significance:
        """Return the p-value that came with the score.

        Raises:
            UsageError: The score has none, because its key belongs to another scheme.
        """
        if score.evidence is None:
            raise UsageError("this score has no p-value of its own: rank it among controls")
        return score.evidence

    def objection(self, *, dated: bool) -> str | None:  # noqa: ARG002
        """Return None: the directions cannot be fitted to a suspect, dated or not."""
        return None

    def findings(self, found: Significance) -> dict[str, Any]:  # noqa: ARG002
        """Return nothing: nobody is ranked, and there are no controls."""
        return {"rank": None, "gap": None, "gap_deviations": None, "control_kinds": {}, "warnings": []}

    def describe(self) -> str:
        """Describe the p-value in a few words."""
        return "exact: uniform secret directions, whoever the suspect is"

    def explain(self) -> str:
        """Explain what the evidence rests on."""
        return "by a theorem that holds whoever the suspect is"


@dataclass(frozen=True)
class WeightsNull(ExactNull):
    """Null of a secret that is compared with weights: units in place of a uniform permutation."""

    _readings = 0  # weights are there in one way

    def objection(self, *, dated: bool) -> str | None:
        """Return why a key that may be younger than the suspect gets no verdict, or None if it is older."""
        if dated:
            return None
        return "Unless the commitment is older than the suspect, units may have been put in order to fit the suspect's."

    def describe(self) -> str:
        """Describe the p-value in a few words."""
        return "exact: units in place of a uniform permutation, whoever the suspect is"


@dataclass(frozen=True)
class RankNull(Null):
    """Null of ranks among the scores of known innocents. A p-value is only as good as their choice.

    Attributes:
        n_controls: Number of innocents, also before they are scored.
        scores: Their scores, (n_controls,); empty before they are scored.
        statistic_name: What is ranked, for reports.
        kinds: How many of them there are of each kind, such as "independent".
    """

    n_controls: int
    scores: Sequence[float] = ()
    statistic_name: str = "statistic"
    kinds: Mapping[str, int] = field(default_factory=dict)

    _dated_tries = 0
    _readings = 0

    def __post_init__(self) -> None:
        if len(self.scores) not in (0, self.n_controls):
            raise UsageError(f"there must be one score for each of {self.n_controls} controls, not {len(self.scores)}")

    def check(self, alpha: float, n_claims: int = 1) -> None:
        """Refuse a level that so few controls cannot support; see `Null.check`.

        Raises:
            RefusedError: There are no controls, or 1/(n + 1) lies above `alpha` / `n_claims`.
            UsageError: `alpha` or `n_claims` is out of range.
        """
        n = self.n_controls
        check_floor(1 / (n + 1) if n else 0, alpha, n_claims=n_claims, n_controls=n)
        if n == 0:
            raise RefusedError(
                "without controls there is no null distribution and no p-value: name known innocents with "
                "--control ENCODER ..., or take the test bed's with --control shipped"
            )

    def significance(self, score: Score) -> Significance:
        """Return the p-value from the score's rank among the controls. Ties count against the claim.

        Raises:
            RefusedError: There are no controls.
        """
        beside = {"watermark_rate": score.watermark_rate, "published_log2_pvalue": score.published_log2_pvalue}
        return control_rank_test(
            score.value,
            self.scores,
            n_queries=score.n_queries,
            statistic_name=self.statistic_name,
            details={name: value for name, value in beside.items() if value is not None},
        )

    def objection(self, *, dated: bool) -> str | None:
        """Return why a key that may be younger than the suspect gets no verdict, or None if it is older."""
        if dated:
            return None
        return "Trigger and decoder were trained. Unless they are older than the suspect, they may be fitted to it."

    def findings(self, found: Significance) -> dict[str, Any]:
        """Return rank, gap, kinds of controls and warnings.

        "rank" is 1 if the suspect stands above all controls, ties counted against it, of n + 1. "gap" is what its
        statistic exceeds the largest control's by, "gap_deviations" the same over the controls' standard deviation,
        None where they do not vary. "warnings" says what weakens the rank.
        """
        gap, deviation = found.statistic - found.details["controls_max"], float(np.std(self.scores))
        return {
            "rank": 1 + int(found.details["controls_at_least"]),
            "gap": gap,
            "gap_deviations": gap / deviation if deviation else None,
            "control_kinds": dict(self.kinds),
            "warnings": self._warnings(),
        }

    def _warnings(self) -> list[str]:
        known = [kind for kind in self.kinds if kind != "unknown"]
        if len(self.kinds) == 1 and known:
            return [
                f"all controls are of one kind, {known[0]}: innocents of another kind may score otherwise, so add "
                "controls that were made as this suspect may have been"
            ]
        if n := self.kinds.get("unknown", 0):
            return [f"nothing says how {n} of the controls were made: they may all be of one kind"]
        return []

    def describe(self) -> str:
        """Describe the p-value in a few words."""
        return f"rank among {self.n_controls} controls"

    def explain(self) -> str:
        """Explain what the evidence rests on."""
        return f"by rank among {self.n_controls} known innocents and no better than their choice"


def null_of(
    key: Key | type[Key],
    n_controls: int = 0,
    scores: Sequence[float] = (),
    *,
    kinds: Mapping[str, int] = MappingProxyType({}),
) -> Null:
    """Return the null of a key's scores.

    Args:
        key: The key, or its class.
        n_controls: Number of known innocents, if the scheme needs them.
        scores: Their scores, once they are known.
        kinds: How many of them there are of each kind.
    """
    if key.needs_controls:
        return RankNull(n_controls, scores, key.statistic_name, dict(kinds))
    kind = key if isinstance(key, type) else type(key)
    return WeightsNull() if issubclass(kind, WeightsKey) else ExactNull()


def _choices(n: int, k: int) -> int:
    """Return in how many ways k of n can be left out; at most about 2^512, beyond which no level is reached."""
    if not 0 <= k <= n:
        raise UsageError(f"of {n} answers between 0 and {n} can be zero, not {k}")
    bits = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
    return math.comb(n, k) if bits < 2 * SECRET_BITS else 1 << 2 * SECRET_BITS
