"""Verification: ask a suspect the queries of a key and decide between *derived* and *not shown* under a stated null."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sslguard.controls.alike import Noted, SeenAnswers
from sslguard.data.base import Data
from sslguard.encoders.base import Embedder
from sslguard.encoders.wrapped import as_suspect
from sslguard.errors import SslguardError, SuspectError, UsageError
from sslguard.lineage.verdict import LineageVerdict
from sslguard.report.card import card
from sslguard.schemes.base import Key, Score
from sslguard.stats.significance import Significance, rejects
from sslguard.suspects.base import checked
from sslguard.verification.nulls import Null, RankNull, null_of

DEFAULT_ALPHA = 0.01


@dataclass(frozen=True)
class Verdict:
    """Result of a verification.

    Attributes:
        suspect: Name of the suspect.
        decision: "derived" when the p-value, corrected for `n_claims`, is at most alpha; else "not shown".
        significance: Statistic, p-value, kind of null, floor, number of queries.
        null: Null distribution that the score was compared with.
        alpha: Level of the test.
        n_claims: How many claims (suspects, keys, looks) the level is shared among, by Bonferroni.
        watermark_rate: The paper's WR on the same answers; None in a scheme that has none.
        cosines: Each answer's cosine to the secret vector, for a report; empty in a scheme that has no watermark rate.
        control_scores: Each control's statistic, by name.
        rank: Of a key with an exact null that was given controls, what their ranks are, and the suspect's. It decides
            nothing.
        n_missing: Number of queries that the suspect left unanswered. They count as zero, against the claim.
        stored_controls: Whether the controls' scores came from the key's folder. Its owner vouches for them.
        n_overlap: Number of items that took part in marking and were asked about, as far as the key knows. The mark
            shows better on them than on other items.
        lineage: Comparison of the suspect's weights with the release, by the secret order of its units; None where it
            could not be made. The decision does not depend on it.
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
    rank: tuple[RankNull, Significance] | None = None
    n_missing: int = 0
    stored_controls: bool = False
    n_overlap: int = 0
    lineage: LineageVerdict | None = None

    @property
    def exit_code(self) -> int:
        """Exit code of the command line: 0 for derived, 1 for not shown."""
        return 0 if self.decision == "derived" else 1

    @property
    def findings(self) -> dict[str, Any]:
        """Rank, gap, kinds of controls and warnings: see `RankNull.findings`."""
        null, found = self.rank or (self.null, self.significance)
        return null.findings(found)

    def _repr_html_(self) -> str:
        found = self.significance
        rows = {
            "suspect": self.suspect,
            "evidence": f"{abs(found.log2_pvalue):.1f} bits (p = {found.pvalue:.3g})",
            "level": f"{self.alpha:.3g}" + (f", shared by {self.n_claims} claims" if self.n_claims > 1 else ""),
            "null": self.null.describe(),
            "queries": f"{found.n_queries:,}" + (f", {self.n_missing:,} unanswered" if self.n_missing else ""),
            "watermark rate": "" if self.watermark_rate is None else f"{self.watermark_rate:.2f}",
            "lineage": "" if self.lineage is None else f"{self.lineage.decision}: {self.lineage.meaning}",
        }
        return card(self.decision, rows.items())

    def to_json(self) -> dict[str, Any]:
        """Return every figure of the verdict as JSON values. Single answers are left out."""
        return {
            "suspect": self.suspect,
            "decision": self.decision,
            "alpha": self.alpha,
            "n_claims": self.n_claims,
            "watermark_rate": self.watermark_rate,
            "n_missing": self.n_missing,
            "stored_controls": self.stored_controls,
            "n_overlap": self.n_overlap,
            **self.findings,
            "lineage": None if self.lineage is None else self.lineage.to_json(),
            **self.significance.to_json(),
        }


def ask(key: Key, suspect: Embedder, data: Data, *, staged: bool = False) -> Iterator[NDArray[np.floating]]:
    """Ask a suspect the key's queries and yield its checked answers, batch by batch.

    Args:
        key: Key whose queries are asked.
        suspect: Who is asked.
        data: Items that the queries are made from.
        staged: Whether no batch goes beyond a stage.

    Yields:
        Answers to one batch, float (n, m), m the same in every batch.

    Raises:
        SuspectError: The suspect failed, or gave no usable answers.
    """
    width: int | None = None
    for batch in key.staged_queries(data) if staged else key.queries(data):
        try:
            raw = suspect.embed(batch)
        except SslguardError as error:
            raise SuspectError(str(error)) from error
        except Exception as error:  # a caller's own suspect may raise anything
            raise SuspectError(f"the suspect failed to answer ({type(error).__name__}: {error})") from error
        answers = checked(raw, len(batch), width=width)
        width = answers.shape[1]
        yield answers


def score_suspect(key: Key, suspect: Embedder, data: Data) -> Score:
    """Return the score of a suspect or a control, without a p-value among controls.

    Args:
        key: Key whose queries are asked.
        suspect: Who is asked; it is told when no more queries follow.
        data: Items that the queries are made from.

    Raises:
        SuspectError: The suspect failed, or gave no usable answers.
    """
    score = key.statistic(ask(key, suspect, data), data)
    as_suspect(suspect).finish()
    return score


def in_stages(key: Key, suspect: Embedder, data: Data, alpha: float, n_claims: int) -> Score:
    """Ask a suspect stage by stage until the evidence suffices, and return the score of the last stage.

    The numbers of queries after which it may stop are fixed by the key and the number of items (`Key.stages`), before
    anybody is asked. With k of them the p-value of each is multiplied by k, so that an innocent suspect is called
    derived at any of them with a probability of at most alpha (Bonferroni). That takes log2 k bits.

    Raises:
        UsageError: The p-value of this key is a rank among controls, which are asked all queries.
        SuspectError: The suspect failed, or gave no usable answers.
    """
    if key.needs_controls:
        raise UsageError("a rank among controls stands on all queries: leave stop_early (--stop-early) out")
    stages, given = key.stages(len(data)), list[NDArray[np.floating]]()
    charge = math.log2(len(stages))
    score, n = None, 0
    for answers in ask(key, suspect, data, staged=True):
        given.append(answers)
        n += len(answers)
        if n not in stages:
            continue
        found = key.staged(given, data, n)
        assert found.evidence is not None
        charged = found.evidence.details.get("charged_bits", 0.0) + charge
        evidence = replace(
            found.evidence,
            log2_pvalue=min(0.0, found.evidence.log2_pvalue + charge),
            details={**found.evidence.details, "charged_bits": charged, "stages": float(len(stages))},
        )
        score = replace(found, evidence=evidence)
        if rejects(evidence, alpha, n_claims=n_claims):
            break
    as_suspect(suspect).finish()
    assert score is not None
    return score


def score_control(key: Key, name: str, control: Embedder, data: Data, seen: SeenAnswers | None = None) -> Score:
    """Return the score of one known innocent.

    Args:
        key: Key whose queries are asked.
        name: Name of the control, for the error message.
        control: Who is asked.
        data: Items that the queries are made from.
        seen: How the controls before it answered; None compares it with none.

    Raises:
        UsageError: It cannot be scored. It is not dropped, because that would change the null after seeing answers. Or
            it answers as another control does.
    """
    noted = Noted(control, name)
    try:
        score = score_suspect(key, noted, data)
    except SuspectError as error:
        raise UsageError(f"control {name!r} cannot be scored: {error}") from error
    if seen is not None:
        seen.check(noted)
    return score


def check_names(names: Iterable[str]) -> None:
    """Check that no two controls have the same name.

    Args:
        names: Names of controls.

    Raises:
        UsageError: A name comes twice.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f"control {name!r} is given twice: each must count once")
        seen.add(name)


def score_controls(key: Key, controls: Iterable[tuple[str, Embedder]], data: Data) -> dict[str, float]:
    """Return the statistic of each control on the same queries, by name.

    Args:
        key: Key whose queries are asked.
        controls: Name and encoder of each known innocent.
        data: Items that the queries are made from.

    Raises:
        UsageError: A name comes twice, a control cannot be scored, or two of them answer alike.
    """
    scores: dict[str, float] = {}
    seen = SeenAnswers()
    for name, control in controls:
        check_names([*scores, name])
        scores[name] = score_control(key, name, control, data, seen).value
    return scores


def verify(
    key: Key,
    suspect: Embedder,
    data: Data,
    *,
    control_scores: Mapping[str, float] = MappingProxyType({}),
    control_kinds: Mapping[str, str] = MappingProxyType({}),
    alpha: float = DEFAULT_ALPHA,
    n_claims: int = 1,
    name: str | None = None,
    stop_early: bool = False,
) -> Verdict:
    """Ask a suspect the key's queries and decide under the key's null.

    Args:
        key: Key to verify.
        suspect: Who is asked.
        data: Items that the queries are made from. None of them may have taken part in marking.
        control_scores: Statistics of known innocents for this key and this data, by name; see `score_controls`. None
            of them may have taken part in marking. A key with an exact null needs none; the suspect's rank among them
            is then reported beside the p-value that decides.
        control_kinds: Kind of each of them, such as "independent", by name; a name that is missing has none.
        alpha: Level of the test, in (0, 1).
        n_claims: How many claims share that level.
        name: Name of the suspect in the verdict; None takes the suspect's own.
        stop_early: Whether to ask no more once the evidence suffices: see `in_stages`.

    Raises:
        UsageError: `stop_early` under a null of ranks.
        RefusedError: The null cannot support `alpha`. The suspect was not asked then.
        SuspectError: The suspect gave no usable answers.
    """
    controls = list(control_scores.values())
    kinds = Counter(control_kinds.get(name, "unknown") for name in control_scores)
    null = null_of(key, len(controls), controls, kinds=kinds)
    null.check(alpha, n_claims)
    asked = as_suspect(suspect)
    score = in_stages(key, asked, data, alpha, n_claims) if stop_early else score_suspect(key, asked, data)
    significance = null.significance(score)
    ranks = RankNull(len(controls), controls, key.statistic_name, kinds)
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
        rank=(ranks, ranks.significance(score)) if controls and not key.needs_controls else None,
        n_missing=asked.n_missing,
    )
