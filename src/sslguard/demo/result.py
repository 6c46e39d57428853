"""The content of a report: plain numbers, arrays and texts, from which pages, pictures and tables are made.

Names and kinds come from files that others may have written, so they are untrusted text. `printable` makes them safe
for a terminal and a picture, and the page's template escapes them once more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sslguard.claims.outcome import Audit
from sslguard.controls.members import Member
from sslguard.demo.output import FORMAT
from sslguard.schemes.base import Score
from sslguard.stats.significance import Significance

THRESHOLD = 0.5
"""Threshold of the paper: an answer whose cosine to the secret vector exceeds it counts towards the watermark rate."""
CURVE_POINTS = 200

Decision = Literal["derived", "not shown", "refused"]
Role = Literal["baseline", "clean", "marked", "stolen"]

# Controls that were made from clean encoders come first, because they are the hard ones.
_KIND_ORDER = ("surrogate", "fine-tuned", "pruned", "clean", "independent", "supervised", "public", "random")


@dataclass(frozen=True, eq=False)
class Suspect:
    """A suspect and its verdict.

    Attributes:
        name: Name, unique in the report.
        story: How it was made, one sentence.
        derived: Whether it really derives from F*.
        decision: "derived", "not shown", or "refused" if the null supports no decision.
        score: Its score under the key.
        significance: Its p-value.
    """

    name: str
    story: str
    derived: bool
    decision: Decision
    score: Score
    significance: Significance

    def to_json(self) -> dict[str, Any]:
        """Return all figures as JSON values. Single answers are left out."""
        return {
            "name": self.name,
            "story": self.story,
            "truly_derived": self.derived,
            "decision": self.decision,
            "pvalue": self.significance.pvalue,
            "log2_pvalue": self.significance.log2_pvalue,
            **_figures(self.score),
        }


@dataclass(frozen=True, eq=False)
class Examined:
    """Suspects and controls under one key.

    Attributes:
        name: Name of the key, a few words.
        suspects: Suspects, in the order in which they are shown; the key's own watermarked encoder comes first.
        controls: Scores of the controls, by name. An exact null does not need them; there they show that it is exact,
            and a suspect's rank among them is a second look.
        alpha: Level of the test.
        n_claims: How many claims share the level, by Bonferroni.
        refusal: Why no decision is made; None if decisions are made.
    """

    name: str
    suspects: tuple[Suspect, ...]
    controls: Mapping[str, Score]
    alpha: float
    n_claims: int
    refusal: str | None = None

    @property
    def scores(self) -> dict[str, Score]:
        """Scores by suspect's name."""
        return {suspect.name: suspect.score for suspect in self.suspects}

    @property
    def floor(self) -> float:
        """The smallest p-value that the key's null can give."""
        return self.suspects[0].significance.floor

    @property
    def level(self) -> float:
        """Level that a p-value is compared with: alpha / n_claims."""
        return self.alpha / self.n_claims

    def critical(self) -> float:
        """Return the bits that a suspect must reach to be shown derived under an exact null."""
        return -math.log2(self.level)

    def count(self, *, derived: bool, decision: Decision | None = None) -> int:
        """Return how many suspects are derived, or not; all of them, or those with one decision."""
        return sum(decision in (None, suspect.decision) for suspect in self.suspects if suspect.derived is derived)

    def below(self, level: float) -> int:
        """Return how many controls have an exact p-value of at most `level`."""
        return sum(s.evidence is not None and s.evidence.pvalue <= level for s in self.controls.values())

    def to_json(self, kinds: Mapping[str, str]) -> dict[str, Any]:
        """Return all figures as JSON values.

        Args:
            kinds: Kind that a control is reported under, by its name.
        """
        return {
            "name": self.name,
            "alpha": self.alpha,
            "n_claims": self.n_claims,
            "refusal": self.refusal,
            "suspects": [suspect.to_json() for suspect in self.suspects],
            "controls": {name: {"kind": kinds[name], **_figures(score)} for name, score in self.controls.items()},
        }


@dataclass(frozen=True, eq=False)
class TriggerPictures:
    """Prepared pictures before and after the trigger, float in [0, 1].

    Attributes:
        plain: Pictures before the trigger, (n, C, H, W).
        triggered: The same pictures with the trigger, (n, C, H, W).
        mask: Mask, (C, H, W).
        pattern: Pattern, (C, H, W). It shows where the mask is 1.
    """

    plain: NDArray[np.floating]
    triggered: NDArray[np.floating]
    mask: NDArray[np.floating]
    pattern: NDArray[np.floating]


@dataclass(frozen=True)
class Bar:
    """One accuracy. `kept` is (A − A₀)/(A_F − A₀), or None for a baseline or where it is not defined."""

    name: str
    role: Role
    accuracy: float
    kept: float | None = None


@dataclass(frozen=True)
class Accuracy:
    """A downstream task and the accuracy of each encoder. `skipped` says why there are no bars."""

    task: str
    bars: tuple[Bar, ...] = ()
    skipped: str | None = None


@dataclass(frozen=True)
class Rates:
    """Watermark rates of encoders under one key: their median, and the share of encoders above ½."""

    median_watermark_rate: float
    share_above_half: float


@dataclass(frozen=True)
class Claims:
    """Watermark rates of one kind of innocent under every key.

    Attributes:
        kind: Family of controls.
        n: Number of encoders.
        median_probe_accuracy: Median accuracy of a linear probe; None if it is not known.
        keys: Rates by key's name.
    """

    kind: str
    n: int
    median_probe_accuracy: float | None
    keys: Mapping[str, Rates]


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that the page, the pictures and the tables are made from.

    Attributes:
        created: Date and time of the run.
        keys: What was examined under each key. Decisions are made under the first key; others are shown for comparison.
        exact: What was examined under the key of the scheme whose null is exact, on the same encoder.
        audit: Audit of a claim by that key on the surrogate.
        controls: Members of the population, each with the kind that it is reported under.
        statistic_name: What the first key's score is.
        trigger: Pictures before and after the trigger.
        accuracies: Linear-probe accuracies by task.
        curves: Losses of the training runs, with one value a step: title → name of the loss → values.
        settings: Settings of the run: heading → name → value.
        seconds: Wall-clock seconds by stage.
        versions: Versions of the programs.
        public_seed: Seed that the secret was made from; None if the secret came from the operating system.
        commands: Commands to run next.
        limits: Sentences on the limits of this run.
    """

    created: str
    keys: tuple[Examined, ...]
    exact: Examined
    audit: Audit
    controls: Sequence[Member]
    statistic_name: str
    trigger: TriggerPictures
    accuracies: tuple[Accuracy, ...]
    curves: Mapping[str, Mapping[str, Sequence[float]]]
    settings: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]
    versions: Mapping[str, Any]
    public_seed: int | None = None
    commands: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    @property
    def main(self) -> Examined:
        """What the verdicts stand on."""
        return self.keys[0]

    @property
    def n_images(self) -> int:
        """Number of images in each verification."""
        return len(self.main.suspects[0].score.cosines)

    def kinds(self) -> list[str]:
        """Return the controls' kinds: first those made from clean encoders, then independent ones."""
        return sorted({member.kind for member in self.controls}, key=_kind_rank)

    def scores_of_kind(self, key: Examined, kind: str) -> list[Score]:
        """Return the scores of the controls of one kind under `key`."""
        return [key.controls[member.name] for member in self.controls if member.kind == kind]

    def kept(self) -> dict[str, float | None]:
        """Return the share of accuracy kept on the first task that was measured, by encoder's name."""
        return next(({bar.name: bar.kept for bar in task.bars} for task in self.accuracies if task.bars), {})

    def claims(self) -> list[Claims]:
        """Return watermark rates of each kind of innocent under every key."""
        table = []
        for kind in self.kinds():
            probes = [m.accuracy for m in self.controls if m.kind == kind and m.accuracy is not None]
            rates = {key.name: _rates(self.scores_of_kind(key, kind)) for key in self.keys}
            n = sum(member.kind == kind for member in self.controls)
            table.append(Claims(kind, n, float(np.median(probes)) if probes else None, rates))
        innocent = [suspect.name for suspect in self.main.suspects if not suspect.derived]
        if innocent:
            rates = {key.name: _rates([key.scores[name] for name in innocent]) for key in self.keys}
            table.append(Claims("innocent suspects", len(innocent), None, rates))
        return table

    def to_json(self) -> dict[str, Any]:
        """Return every figure as JSON values. Pictures and single answers are left out, and curves are thinned."""
        kinds = {member.name: member.kind for member in self.controls}
        curves = {title: {name: thinned(v) for name, v in losses.items()} for title, losses in self.curves.items()}
        exact = {"null": "exact", "n_queries": self.exact.suspects[0].score.n_queries, "audit": self.audit.to_json()}
        return {
            "format": FORMAT,
            "created": self.created,
            "statistic": self.statistic_name,
            "null": self.main.suspects[0].significance.null,
            "n_controls": len(self.controls),
            "n_images": self.n_images,
            "floor": self.main.floor,
            "critical": self.main.critical(),
            "keys": [key.to_json(kinds) for key in self.keys],
            "exact": {**self.exact.to_json(kinds), **exact},
            "false_claims": [asdict(row) for row in self.claims()],
            "accuracies": [asdict(accuracy) for accuracy in self.accuracies],
            "curves": curves,
            "settings": {heading: dict(values) for heading, values in self.settings.items()},
            "seconds": dict(self.seconds),
            "versions": dict(self.versions),
            "public_seed": self.public_seed,
        }


def thinned(values: Sequence[float]) -> list[float]:
    """Return at most `CURVE_POINTS` of the values, evenly spread, including first and last."""
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), CURVE_POINTS)).round().astype(int))
    return [float(values[i]) for i in chosen]


def _figures(score: Score) -> dict[str, float | None]:
    exact = {} if score.evidence is None else {"log2_pvalue": score.evidence.log2_pvalue}
    return {"statistic": score.value, "watermark_rate": score.watermark_rate, **exact}


def _rates(scores: Sequence[Score]) -> Rates:
    rates = np.array([score.watermark_rate for score in scores])
    return Rates(float(np.median(rates)), float((rates > THRESHOLD).mean()))


def _kind_rank(kind: str) -> tuple[int, str]:
    first = kind.partition(" ")[0]
    return (_KIND_ORDER.index(first) if first in _KIND_ORDER else len(_KIND_ORDER), kind)
