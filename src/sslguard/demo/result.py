"""The content of a report: plain numbers, arrays and texts, from which pages, pictures and tables are made.

Names and kinds come from files that others may have written, so they are untrusted text. `printable` makes them safe
for a terminal and a picture, and the page's template escapes them once more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sslguard.errors import UsageError

FORMAT = "sslguard-report"
VERSION = 1
THRESHOLD = 0.5
"""Threshold of the paper: an answer whose cosine to the secret vector exceeds it counts towards the watermark rate."""
CURVE_POINTS = 200

Decision = Literal["derived", "not shown", "refused"]

# Controls that were made from clean encoders come first, because they are the hard ones.
_KIND_ORDER = ("surrogate", "fine-tuned", "pruned", "clean", "independent", "supervised", "public", "random")


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one encoder under one key.

    Attributes:
        statistic: Number that is ranked; the mean of `cosines`.
        watermark_rate: Share of `cosines` above ½, in [0, 1].
        cosines: Cosine of each answer to the secret vector, float (n_images,), in [-1, 1]. An image may come twice.
    """

    statistic: float
    watermark_rate: float
    cosines: NDArray[np.floating]

    def __post_init__(self) -> None:
        """Check the cosines."""
        if self.cosines.ndim != 1 or not len(self.cosines) or not np.isfinite(self.cosines).all():
            raise UsageError(f"cosines must be finite, of shape (n,) with n >= 1, not {self.cosines.shape}")


@dataclass(frozen=True)
class Suspect:
    """A suspect and its verdict.

    Attributes:
        name: Name, unique in the report.
        story: How it was made, one sentence.
        derived: Whether it really derives from F*, as known in a demonstration; None if unknown.
        decision: "derived", "not shown", or "refused" if the null supports no decision.
        pvalue: P-value in (0, 1]; None without controls.
    """

    name: str
    story: str
    derived: bool | None
    decision: Decision
    pvalue: float | None


@dataclass(frozen=True)
class KeyReport:
    """Scores under one key.

    Attributes:
        name: Name of the key, a few words.
        suspects: Scores by suspect's name. The watermarked encoder has the same name under every key, but each key has
            its own.
        controls: Scores by control's name.
        own_pvalue: P-value of the key's own watermarked encoder among the controls; None without controls.
    """

    name: str
    suspects: Mapping[str, Scores]
    controls: Mapping[str, Scores]
    own_pvalue: float | None = None


@dataclass(frozen=True)
class ExactRow:
    """One suspect under a key whose null is exact.

    Attributes:
        name: As in `Suspect`.
        story: As in `Suspect`.
        derived: As in `Suspect`.
        decision: Decision at alpha, shared among all rows by Bonferroni.
        log2_pvalue: Base-2 logarithm of this suspect's p-value, at most 0.
        kept: Share of accuracy kept on the first task; None if it was not measured.
    """

    name: str
    story: str
    derived: bool | None
    decision: Decision
    log2_pvalue: float
    kept: float | None = None


@dataclass(frozen=True)
class AuditReport:
    """Result of an examiner's audit of the owner's claim.

    Attributes:
        decision: "derived", "not shown", "forged" or "not checkable".
        bits: −log₂ of the recomputed p-value; None without a verdict.
        n_tries: How many claims alpha was shared among, including the charge for a key without a date.
        checks: Name, status and words of each check.
        page: File name of the examiner's own page, beside this one.
    """

    decision: str
    bits: float | None
    n_tries: int
    checks: tuple[tuple[str, str, str], ...]
    page: str


@dataclass(frozen=True)
class ExactReport:
    """A second scheme beside the first, on the same clean encoder.

    Attributes:
        rows: Suspects, in the order in which they are shown.
        controls: Base-2 logarithm of each control's p-value, by name. The test does not need them; they illustrate that
            the null is exact.
        n_queries: Number of queries of each verification.
        alpha: Level of the test, shared among the rows.
        most_bits: Largest possible evidence in bits: the entropy of the secret.
        audit: Audit of a claim on the surrogate; None if there was none.
    """

    rows: tuple[ExactRow, ...]
    controls: Mapping[str, float]
    n_queries: int
    alpha: float
    most_bits: int
    audit: AuditReport | None = None

    @property
    def level(self) -> float:
        """Level that a row's p-value is compared with."""
        return self.alpha / len(self.rows)

    def below(self, level: float) -> int:
        """Return how many controls have a p-value of at most `level`."""
        return sum(value <= math.log2(level) for value in self.controls.values())

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {
            "null": "exact",
            "n_queries": self.n_queries,
            "alpha": self.alpha,
            "most_bits": self.most_bits,
            "suspects": [
                {
                    "name": row.name,
                    "story": row.story,
                    "truly_derived": row.derived,
                    "decision": row.decision,
                    "log2_pvalue": row.log2_pvalue,
                    "kept": row.kept,
                }
                for row in self.rows
            ],
            "controls": dict(self.controls),
            "audit": None if self.audit is None else asdict(self.audit),
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
    role: Literal["baseline", "clean", "marked", "stolen"]
    accuracy: float
    kept: float | None = None


@dataclass(frozen=True)
class Accuracy:
    """A downstream task and the accuracy of each encoder. `skipped` says why there are no bars."""

    task: str
    bars: tuple[Bar, ...] = ()
    skipped: str | None = None


@dataclass(frozen=True)
class Curve:
    """Losses of one training run, each with one value a step."""

    title: str
    losses: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Claims:
    """Watermark rates of one kind of innocent under every key.

    Attributes:
        kind: Family of controls.
        n: Number of encoders.
        medians: Median watermark rate under each key, in the order of the report's keys.
        shares: Share of encoders whose watermark rate exceeds ½, under each key.
        probe: Median accuracy of a linear probe; None if it is not known.
    """

    kind: str
    n: int
    medians: tuple[float, ...]
    shares: tuple[float, ...]
    probe: float | None = None


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that the page, the pictures and the tables are made from.

    Attributes:
        created: Date and time of the run.
        suspects: Suspects, in the order in which they are shown.
        keys: Scores by key. Decisions are made under the first key; others are shown for comparison.
        kinds: Family that a control is reported under, by the control's name.
        alpha: Level of the test.
        n_claims: How many claims share the level, by Bonferroni.
        statistic_name: What is ranked.
        trigger: Pictures before and after the trigger.
        accuracies: Linear-probe accuracies by task.
        curves: Losses of the training runs.
        settings: Settings of the run: heading → name → value.
        seconds: Wall-clock seconds by stage.
        versions: Versions of the programs.
        refusal: Why no decision is made; None if decisions are made.
        public_seed: Seed that the secret was made from; None if the secret came from the operating system.
        commands: Commands to run next.
        limits: Sentences on the limits of this run.
        probes: Linear-probe accuracy by control's name, where it is known.
        exact: Results of the scheme whose null is exact, on the same encoder; None if it was not run.
    """

    created: str
    suspects: tuple[Suspect, ...]
    keys: tuple[KeyReport, ...]
    kinds: Mapping[str, str]
    alpha: float
    n_claims: int
    statistic_name: str
    trigger: TriggerPictures
    accuracies: tuple[Accuracy, ...]
    curves: tuple[Curve, ...]
    settings: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    refusal: str | None = None
    public_seed: int | None = None
    commands: tuple[str, ...] = ()
    limits: tuple[str, ...] = field(default=())
    probes: Mapping[str, float] = field(default_factory=dict)
    exact: ExactReport | None = None

    def __post_init__(self) -> None:
        """Check that the first key has scores of every suspect."""
        missing = [s.name for s in self.suspects if s.name not in self.keys[0].suspects]
        if missing:
            raise UsageError(f"suspect {missing[0]!r:.80} has no scores under the key {self.keys[0].name!r:.80}")

    @property
    def n_controls(self) -> int:
        """Number of controls."""
        return len(self.keys[0].controls)

    @property
    def floor(self) -> float:
        """The smallest p-value that this many controls can give: 1/(n + 1)."""
        return 1 / (self.n_controls + 1)

    @property
    def level(self) -> float:
        """Level that a p-value is compared with: alpha / n_claims."""
        return self.alpha / self.n_claims

    @property
    def family_level(self) -> float:
        """Upper bound on the probability of any false verdict, by the union bound over the suspects."""
        return min(1.0, self.level * len(self.suspects))

    @property
    def n_images(self) -> int:
        """Number of images in each verification."""
        return len(next(iter(self.keys[0].suspects.values())).cosines)

    def critical(self) -> float | None:
        """Return the value that a suspect's statistic must exceed to be shown derived; None if no value suffices."""
        if self.refusal is not None or not self.n_controls:
            return None
        allowed = math.floor(self.level * (self.n_controls + 1) * (1 + 1e-12)) - 1
        ordered = sorted((s.statistic for s in self.keys[0].controls.values()), reverse=True)
        return ordered[allowed] if 0 <= allowed < len(ordered) else None

    def count(self, *, derived: bool, decision: Decision | None = None) -> int:
        """Return how many suspects are known to be derived, or not; all of them, or those with one decision."""
        known = [s for s in self.suspects if s.derived is derived]
        return sum(decision is None or s.decision == decision for s in known)

    def kinds_present(self) -> list[str]:
        """Return the controls' families: first those made from clean encoders, then independent ones."""
        return sorted(set(self.kinds.values()), key=_kind_rank)

    def scores_of_kind(self, key: KeyReport, kind: str) -> list[Scores]:
        """Return the scores of the controls of one family under `key`."""
        return [scores for name, scores in key.controls.items() if self.kinds[name] == kind]

    def claims(self) -> list[Claims]:
        """Return watermark rates of each kind of innocent under every key."""
        table = []
        for kind in self.kinds_present():
            rates = [np.array([s.watermark_rate for s in self.scores_of_kind(key, kind)]) for key in self.keys]
            probes = [self.probes[name] for name, of in self.kinds.items() if of == kind and name in self.probes]
            table.append(_claims(kind, rates, float(np.median(probes)) if probes else None))
        innocent = [s.name for s in self.suspects if s.derived is False]
        asked = [name for name in innocent if all(name in key.suspects for key in self.keys)]
        if asked:
            rates = [np.array([key.suspects[name].watermark_rate for name in asked]) for key in self.keys]
            table.append(_claims("innocent suspects", rates))
        return table

    def to_json(self) -> dict[str, Any]:
        """Return every figure as JSON values. Pictures and single answers are left out, and curves are thinned."""
        main = self.keys[0]
        return {
            "format": FORMAT,
            "version": VERSION,
            "created": self.created,
            "statistic": self.statistic_name,
            "null": "controls",
            "alpha": self.alpha,
            "n_claims": self.n_claims,
            "n_suspects": len(self.suspects),
            "n_controls": self.n_controls,
            "n_images": self.n_images,
            "floor": self.floor,
            "critical": self.critical(),
            "refusal": self.refusal,
            "suspects": [self._suspect_json(suspect, main) for suspect in self.suspects],
            "keys": [self._key_json(key) for key in self.keys],
            "false_claims": [self._claims_json(row) for row in self.claims()],
            "accuracies": [_accuracy_json(accuracy) for accuracy in self.accuracies],
            "curves": {c.title: {name: thinned(v) for name, v in c.losses.items()} for c in self.curves},
            "settings": {heading: dict(values) for heading, values in self.settings.items()},
            "seconds": dict(self.seconds),
            "versions": dict(self.versions),
            "public_seed": self.public_seed,
            "exact": None if self.exact is None else self.exact.to_json(),
        }

    @staticmethod
    def _suspect_json(suspect: Suspect, key: KeyReport) -> dict[str, Any]:
        scores = key.suspects[suspect.name]
        return {
            "name": suspect.name,
            "story": suspect.story,
            "truly_derived": suspect.derived,
            "decision": suspect.decision,
            "statistic": scores.statistic,
            "pvalue": suspect.pvalue,
            "watermark_rate": scores.watermark_rate,
        }

    def _key_json(self, key: KeyReport) -> dict[str, Any]:
        def row(scores: Scores) -> dict[str, float]:
            return {"statistic": scores.statistic, "watermark_rate": scores.watermark_rate}

        return {
            "name": key.name,
            "own_pvalue": key.own_pvalue,
            "suspects": {name: row(scores) for name, scores in key.suspects.items()},
            "controls": {n: {"kind": self.kinds[n], **row(s)} for n, s in key.controls.items()},
        }

    def _claims_json(self, row: Claims) -> dict[str, Any]:
        per_key = zip(self.keys, row.medians, row.shares, strict=True)
        keys = {key.name: {"median_watermark_rate": m, "share_above_half": s} for key, m, s in per_key}
        return {"kind": row.kind, "n": row.n, "median_probe_accuracy": row.probe, "keys": keys}


def thinned(values: Sequence[float]) -> list[float]:
    """Return at most `CURVE_POINTS` of the values, evenly spread, including first and last."""
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), CURVE_POINTS)).round().astype(int))
    return [float(values[i]) for i in chosen]


def _claims(kind: str, rates: Sequence[NDArray[np.floating]], probe: float | None = None) -> Claims:
    return Claims(
        kind,
        len(rates[0]),
        tuple(float(np.median(r)) for r in rates),
        tuple(float((r > THRESHOLD).mean()) for r in rates),
        probe,
    )


def _accuracy_json(accuracy: Accuracy) -> dict[str, Any]:
    bars = [{"name": b.name, "role": b.role, "accuracy": b.accuracy, "kept": b.kept} for b in accuracy.bars]
    return {"task": accuracy.task, "skipped": accuracy.skipped, "bars": bars}


def _kind_rank(kind: str) -> tuple[int, str]:
    first = kind.partition(" ")[0]
    return (_KIND_ORDER.index(first) if first in _KIND_ORDER else len(_KIND_ORDER), kind)
