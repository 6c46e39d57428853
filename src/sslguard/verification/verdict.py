"""A key, a suspect and data → a verdict: *derived* or *not shown*, and under which null."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Data
from sslguard.encoders.base import Embedder
from sslguard.encoders.wrapped import as_suspect
from sslguard.errors import SslguardError, SuspectError, UsageError
from sslguard.schemes.base import Key, Score
from sslguard.stats.significance import Significance, rejects
from sslguard.suspects.base import checked
from sslguard.verification.nulls import Null, null_of

DEFAULT_ALPHA = 0.01


@dataclass(frozen=True)
class Verdict:
    """What a verification shows.

    Attributes:
        suspect: its name.
        decision: "derived" when the p-value, corrected for `n_claims`, is at most alpha; else "not shown".
        significance: statistic, p-value, kind of null, floor, number of queries.
        null: what the score was judged by.
        alpha: the level that was asked for.
        n_claims: how many claims (suspects, keys, looks) the level is shared among, by Bonferroni.
        watermark_rate: the paper's WR on the same answers; None in a scheme that has none.
        cosines: each answer's cosine to the secret vector, for a report; of no length there.
        control_scores: each control's statistic, by name.
        n_missing: queries that the suspect left unanswered; they count as zero, against the claim.
        stored_controls: the controls' scores came from the key's folder, whose owner vouches for them.
    """

    suspect: str
    decision: Literal["derived", "not shown"]
    significance: Significance
    null: Null
    alpha: float
    n_claims: int
    watermark_rate: float | None
    cosines: NDArray[np.float64] = field(repr=False)
    control_scores: Mapping[str, float] = field(repr=False)
    n_missing: int = 0
    stored_controls: bool = False

    @property
    def exit_code(self) -> int:
        """0 derived, 1 not shown."""
        return 0 if self.decision == "derived" else 1

    def to_json(self) -> dict[str, Any]:
        """Every figure of the verdict, JSON values only; single answers are left out."""
        return {
            "suspect": self.suspect,
            "decision": self.decision,
            "alpha": self.alpha,
            "n_claims": self.n_claims,
            "watermark_rate": self.watermark_rate,
            "n_missing": self.n_missing,
            "stored_controls": self.stored_controls,
            **self.significance.to_json(),
        }


def ask(key: Key, suspect: Embedder, data: Data) -> Iterator[NDArray[np.floating]]:
    """The suspect's checked answers to the key's queries, batch by batch. Errors become SuspectError."""
    width: int | None = None
    for batch in key.queries(data):
        try:
            raw = suspect.embed(batch)
        except SslguardError as error:
            raise SuspectError(str(error)) from error
        except Exception as error:  # whatever a suspect of the caller's own raises
            raise SuspectError(f"the suspect failed to answer ({type(error).__name__}: {error})") from error
        answers = checked(raw, len(batch), width=width)
        width = answers.shape[1]
        yield answers


def score_suspect(key: Key, suspect: Embedder, data: Data) -> Score:
    """The statistic of one suspect, before any null; what a suspect and a control have in common."""
    score = key.statistic(ask(key, suspect, data), data)
    as_suspect(suspect).finish()
    return score


def score_control(key: Key, name: str, control: Embedder, data: Data) -> Score:
    """The statistic of one known innocent.

    Raises:
        UsageError: it cannot be scored: dropping it would choose the null.
    """
    try:
        return score_suspect(key, control, data)
    except SuspectError as error:
        raise UsageError(f"control {name!r} cannot be scored: {error}") from error


def check_names(names: Iterable[str]) -> None:
    """Raises UsageError where two controls have one name."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f"control {name!r} is given twice: each must count once")
        seen.add(name)


def score_controls(key: Key, controls: Iterable[tuple[str, Embedder]], data: Data) -> dict[str, float]:
    """The statistic of each control on the same queries.

    Raises:
        UsageError: a name comes twice, or a control cannot be scored.
    """
    scores: dict[str, float] = {}
    for name, control in controls:
        check_names([*scores, name])
        scores[name] = score_control(key, name, control, data).value
    return scores


def verify(
    key: Key,
    suspect: Embedder,
    data: Data,
    *,
    control_scores: Mapping[str, float],
    alpha: float = DEFAULT_ALPHA,
    n_claims: int = 1,
    name: str | None = None,
) -> Verdict:
    """Ask the suspect the key's queries and rank it among controls that were asked the same.

    Args:
        control_scores: statistics of known innocents for this key and this data; see `score_controls`. None of
            them may have taken part in marking.
        alpha: level of the test.
        n_claims: how many claims share that level.

    Raises:
        RefusedError: the controls cannot support alpha; nothing was asked then.
        SuspectError: the suspect gave no usable answers.
    """
    null = null_of(key, len(control_scores), list(control_scores.values()))
    null.check(alpha, n_claims)
    asked = as_suspect(suspect)
    score = score_suspect(key, asked, data)
    significance = null.significance(score)
    return Verdict(
        suspect=name or asked.name,
        decision="derived" if rejects(significance, alpha, n_claims=n_claims) else "not shown",
        significance=significance,
        null=null,
        alpha=alpha,
        n_claims=n_claims,
        watermark_rate=score.watermark_rate,
        cosines=score.cosines,
        control_scores=dict(control_scores),
        n_missing=asked.n_missing,
    )
