"""What a score is judged by: the distribution of an innocent suspect's score, as an object.

A scheme says with `Key.needs_controls` whether its scores are ranked among known innocents; `null_of` is the only place
that reads a null off a key. Schemes stand below verification and know no more of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from sslguard.errors import RefusedError, UsageError
from sslguard.schemes.base import Key, Score
from sslguard.stats.direction import SECRET_BITS
from sslguard.stats.significance import Significance, check_floor, control_rank_test

UNDATED_TRIES = 64
"""Bits: a key that is not shown to be older than the suspect is taken for the best of 2^64 that were tried."""
DATED_TRIES = 20
"""Bits: one that is, for the best of 2^20 that its owner dated. A key of ranks cannot afford that: it is assumed."""


class Null(ABC):
    """The distribution of a score when the suspect is innocent."""

    @abstractmethod
    def check(self, alpha: float, n_claims: int = 1) -> None:
        """Refuse, before anything is asked, a level that no score could reach.

        Args:
            alpha: level of the test, in (0, 1).
            n_claims: how many claims share the level, at least 1.

        Raises:
            RefusedError: no score could be significant at `alpha` / `n_claims`.
            UsageError: alpha or n_claims is out of range.
        """

    @abstractmethod
    def significance(self, score: Score) -> Significance:
        """Return the score with its p-value."""

    def charge(self, *, dated: bool, n_queries: int = 0, n_zero: int = 0) -> int:
        """Return how many claims an audit counts one claim for, at least 1.

        Args:
            dated: whether the key is shown to be older than the suspect; else it may be the best of many.
            n_queries: how many queries were asked.
            n_zero: how many answers are zero. Whoever knows the key could leave out those that disagree, so the claim
                counts as the best of all ways to leave out as many.
        """
        return _choices(n_queries, n_zero) << (self._dated_tries if dated else UNDATED_TRIES)

    @property
    @abstractmethod
    def _dated_tries(self) -> int:
        """Bits that are charged for keys which the owner may have dated."""

    @abstractmethod
    def objection(self, *, dated: bool) -> str | None:
        """Return why an audit can give no verdict, in one sentence or two; None where it can."""

    @abstractmethod
    def describe(self) -> str:
        """Return what the p-value is, in a few words."""

    @abstractmethod
    def explain(self) -> str:
        """Return by what the evidence counts, as the end of a sentence."""


@dataclass(frozen=True)
class ExactNull(Null):
    """The score's distribution is a theorem about the secret's own randomness; the scheme computed the p-value."""

    _dated_tries = DATED_TRIES

    def check(self, alpha: float, n_claims: int = 1) -> None:
        """Refuse a level below 2^−256, the entropy of a secret; see `Null.check`."""
        check_floor(2.0**-SECRET_BITS, alpha, n_claims=n_claims)

    def significance(self, score: Score) -> Significance:
        """Return the p-value that came with the score.

        Raises:
            UsageError: the score has none: it is of a key of another scheme.
        """
        if score.evidence is None:
            raise UsageError("this score has no p-value of its own: rank it among controls")
        return score.evidence

    def objection(self, *, dated: bool) -> str | None:  # noqa: ARG002
        """Return None: the directions cannot be fitted to a suspect, dated or not."""
        return None

    def describe(self) -> str:
        """Return what the p-value is."""
        return "exact: uniform secret directions, whoever the suspect is"

    def explain(self) -> str:
        """Return by what the evidence counts."""
        return "by a theorem that holds whoever the suspect is"


@dataclass(frozen=True)
class RankNull(Null):
    """The score is ranked among those of known innocents, and a p-value is no better than their choice.

    Attributes:
        n_controls: how many innocents there are, or will be once they are scored.
        scores: their scores, (n_controls,); empty before they are asked.
        statistic_name: what is ranked, for people.
    """

    n_controls: int
    scores: Sequence[float] = ()
    statistic_name: str = "statistic"

    _dated_tries = 0

    def check(self, alpha: float, n_claims: int = 1) -> None:
        """Refuse a level that so few controls cannot support; see `Null.check`.

        Raises:
            RefusedError: there are no controls, or 1/(n + 1) lies above `alpha` / `n_claims`.
            UsageError: alpha or n_claims is out of range.
        """
        n = self.n_controls
        check_floor(1 / (n + 1) if n else 0, alpha, n_claims=n_claims, n_controls=n)
        if n == 0:
            raise RefusedError(
                "without controls there is no null distribution and no p-value: name known innocents with "
                "--control ENCODER ..., or take the test bed's with --control shipped"
            )

    def significance(self, score: Score) -> Significance:
        """Return the score's rank among the controls; ties count against the claim.

        Raises:
            RefusedError: there are no controls.
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
        """Return why a key that may be younger than the suspect gets no verdict."""
        if dated:
            return None
        return "Trigger and decoder were trained. Unless they are older than the suspect, they may be fitted to it."

    def describe(self) -> str:
        """Return what the p-value is."""
        return f"rank among {self.n_controls} controls"

    def explain(self) -> str:
        """Return by what the evidence counts."""
        return f"by rank among {self.n_controls} known innocents and no better than their choice"


def null_of(key: Key | type[Key], n_controls: int = 0, scores: Sequence[float] = ()) -> Null:
    """Return the null of a key's scores.

    Args:
        key: the key, or the class of its scheme.
        n_controls: how many known innocents there are, where the scheme needs them.
        scores: their scores, once they were asked.
    """
    return RankNull(n_controls, scores, key.statistic_name) if key.needs_controls else ExactNull()


def _choices(n: int, k: int) -> int:
    """In how many ways k of n can be left out; numbers without end are cut off where no level reaches any more."""
    bits = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
    return math.comb(n, k) if bits < 2 * SECRET_BITS else 1 << 2 * SECRET_BITS
