"""The stages of the demonstration. Each is a function of the results of earlier stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch

from sslguard.controls.members import Member
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.demo.inputs import Inputs, ProbeTask
from sslguard.demo.result import (
    Accuracy,
    Bar,
    Decision,
    ExactReport,
    ExactRow,
    KeyReport,
    Scores,
    Suspect,
    TriggerPictures,
)
from sslguard.demo.settings import CLEAN, CURED, EXACT_MARKED, EXACT_STOLEN, MARKED, PUBLISHED, STOLEN, DemoSettings
from sslguard.encoders.base import Encoder
from sslguard.errors import RefusedError, SuspectError, UsageError
from sslguard.probes.baselines import accuracy_kept, baseline
from sslguard.probes.evaluate import probe_encoder
from sslguard.schemes.base import Key, Scheme, Score, Watermarked
from sslguard.schemes.sslguard.key import SSLGuardKey
from sslguard.stats.direction import SECRET_BITS
from sslguard.training.base import History
from sslguard.training.distillation import distil
from sslguard.training.recipes import Distillation
from sslguard.verification.nulls import ExactNull, RankNull, null_of
from sslguard.verification.verdict import score_suspect, verify

N_PICTURES = 5
Probed = tuple[str, Literal["marked", "stolen"], Encoder]


def mark(inputs: Inputs, scheme: Scheme, secret: Secret, *, progress: bool) -> Watermarked:
    """Mark F; return F* and its key.

    Keys of one secret share mask, first trigger and D_v, so they differ only by the losses.
    """
    return scheme.watermark(inputs.clean, inputs.mark, secret=secret, progress=progress)


def steal(
    inputs: Inputs, recipe: Distillation, victim: Encoder, *, seed: int, progress: bool
) -> tuple[Encoder, History]:
    """Train a surrogate on the victim's answers to the thief's own pictures; return it and its losses."""
    return distil(recipe, victim, inputs.thief, seed=seed, progress=progress, title="steal")


def score_controls(
    keys: Sequence[Key], controls: Sequence[Member], data: Data, *, progress: bool
) -> list[dict[str, Score]]:
    """Score every control under every key, with one network in memory at a time.

    Args:
        keys: Keys whose queries are asked.
        controls: Known innocents.
        data: Items that the queries are made from.
        progress: Show a progress bar on standard error.

    Returns:
        Scores by control's name, one mapping for each key.

    Raises:
        UsageError: A control cannot be scored. It is not dropped, because that would change the null.
    """
    scores: list[dict[str, Score]] = [{} for _ in keys]
    for member in _tracked(controls, progress):
        encoder = member.load()
        for key, found in zip(keys, scores, strict=True):
            try:
                found[member.name] = score_suspect(key, encoder, data)
            except SuspectError as error:
                raise UsageError(f"control {member.name!r:.80} cannot be scored: {error}") from error
    return scores


def shared_claims(n_controls: int, alpha: float, n_suspects: int) -> tuple[int, str | None]:
    """Choose how many claims share alpha.

    All suspects share it if the number of controls allows that. Otherwise each suspect is tested at alpha by itself,
    and the report says so.

    Args:
        n_controls: Number of controls.
        alpha: Level of the test.
        n_suspects: Number of suspects.

    Returns:
        The number of claims, and the reason why no decision can be made, or None if one can.
    """
    refusal = None
    for n_claims in (n_suspects, 1):
        try:
            RankNull(n_controls).check(alpha, n_claims)
        except RefusedError as error:
            refusal = str(error)
        else:
            return n_claims, None
    return 1, refusal


def examine_suspects(
    inputs: Inputs,
    settings: DemoSettings,
    marked: Watermarked,
    surrogate: Encoder,
    control_scores: Mapping[str, Score],
) -> tuple[tuple[Suspect, ...], KeyReport]:
    """Verify every suspect: F*, the surrogate, and the innocents; return the verdicts and the key's scores."""
    thief = settings.thief
    recipe = f"trained on F*’s answers to the thief’s own pictures ({thief.loss} loss"
    tested = [
        (MARKED, "the owner’s watermarked encoder itself", True, marked.encoder),
        (STOLEN, recipe + (", augmented views)" if thief.augmentation else ")"), True, surrogate),
        *((name, innocent.story, False, innocent.encoder) for name, innocent in inputs.innocents.items()),
    ]
    suspects, scores = [], {}
    for name, story, derived, encoder in tested:
        decision, pvalue, scores[name] = _examine(
            marked.key, encoder, inputs.verify, control_scores, alpha=settings.alpha, n_suspects=len(tested)
        )
        suspects.append(Suspect(name, story, derived, decision, pvalue))
    controls = {name: _scores(score) for name, score in control_scores.items()}
    return tuple(suspects), KeyReport(CURED, scores, controls, suspects[0].pvalue)


def score_beside(inputs: Inputs, marked: Watermarked, control_scores: Mapping[str, Score]) -> KeyReport:
    """Score a second key's own F* and the same innocents under that key. No verdict depends on these scores."""
    own = score_suspect(marked.key, marked.encoder, inputs.verify)
    scores = {MARKED: _scores(own)}
    for name, innocent in inputs.innocents.items():
        scores[name] = _scores(score_suspect(marked.key, innocent.encoder, inputs.verify))
    controls = {name: _scores(score) for name, score in control_scores.items()}
    return KeyReport(PUBLISHED, scores, controls, _pvalue(marked.key, own, control_scores))


def examine_exactly(
    inputs: Inputs,
    settings: DemoSettings,
    marked: Watermarked,
    surrogate: Encoder,
    controls: Mapping[str, Score],
    kept: Mapping[str, float | None],
) -> ExactReport:
    """Verify every suspect under a key whose null is exact.

    Args:
        inputs: Inputs of all stages.
        settings: Settings of the run.
        marked: F* of this scheme, and its key.
        surrogate: Surrogate of that F*.
        controls: Scores of the other key's controls under this key. The test does not need them.
        kept: Share of accuracy kept, by encoder's name.
    """
    tested: list[tuple[str, str, bool, Encoder]] = [
        (EXACT_MARKED, "the clean encoder with this scheme’s mark on its output", True, marked.encoder),
        (EXACT_STOLEN, f"trained on its answers ({settings.exact_thief.loss} loss)", True, surrogate),
        *((name, innocent.story, False, innocent.encoder) for name, innocent in inputs.innocents.items()),
    ]
    rows = []
    for name, story, derived, encoder in tested:
        verdict = verify(
            marked.key, encoder, inputs.verify, control_scores={}, alpha=settings.exact_alpha, n_claims=len(tested)
        )
        rows.append(ExactRow(name, story, derived, verdict.decision, verdict.significance.log2_pvalue, kept.get(name)))
    others = {name: ExactNull().significance(score).log2_pvalue for name, score in controls.items()}
    return ExactReport(tuple(rows), others, marked.key.n_queries, settings.exact_alpha, SECRET_BITS)


def _examine(
    key: Key, suspect: Encoder, data: Data, controls: Mapping[str, Score], *, alpha: float, n_suspects: int
) -> tuple[Decision, float | None, Scores]:
    n_claims, refusal = shared_claims(len(controls), alpha, n_suspects)
    if refusal is not None:
        score = score_suspect(key, suspect, data)
        return "refused", _pvalue(key, score, controls), _scores(score)
    values = {name: score.value for name, score in controls.items()}
    verdict = verify(key, suspect, data, control_scores=values, alpha=alpha, n_claims=n_claims)
    found = verdict.significance
    return verdict.decision, found.pvalue, Scores(found.statistic, _rate(verdict.watermark_rate), verdict.cosines)


def _pvalue(key: Key, score: Score, controls: Mapping[str, Score]) -> float | None:
    if not controls:
        return None
    return null_of(key, len(controls), [control.value for control in controls.values()]).significance(score).pvalue


def _scores(score: Score) -> Scores:
    return Scores(score.value, _rate(score.watermark_rate), score.cosines)


def _rate(watermark_rate: float | None) -> float:
    """Return a watermark rate that is known to exist: all keys of the demonstration with controls have one."""
    assert watermark_rate is not None
    return watermark_rate


def probe(inputs: Inputs, derived: Sequence[Probed]) -> tuple[Accuracy, ...]:
    """Probe F, the encoders derived from it, and both baselines on every task."""
    return tuple(_probe_task(task, inputs.clean, derived) for task in inputs.tasks)


def kept_on_first(accuracies: Sequence[Accuracy]) -> dict[str, float | None]:
    """Return the share of accuracy kept on the first task that was measured, by encoder's name."""
    return next(({bar.name: bar.kept for bar in task.bars} for task in accuracies if task.bars), {})


def _probe_task(task: ProbeTask, clean: Encoder, derived: Sequence[Probed]) -> Accuracy:
    if task.train is None or task.test is None:
        return Accuracy(task.title, skipped=task.skipped)
    chosen: dict[str, Any] = {"per_class": task.per_class, "seeds": task.seeds}
    without = baseline(clean, task.train, task.test, **chosen)
    bars = [Bar("untrained network", "baseline", without.random.accuracy)]
    if without.pixels is not None:
        bars.insert(0, Bar("raw pixels", "baseline", without.pixels.accuracy))
    reference = probe_encoder(clean, task.train, task.test, **chosen).accuracy
    bars.append(Bar(CLEAN, "clean", reference, _kept(reference, reference, without.accuracy)))
    for name, role, encoder in derived:
        accuracy = probe_encoder(encoder, task.train, task.test, **chosen).accuracy
        bars.append(Bar(name, role, accuracy, _kept(accuracy, reference, without.accuracy)))
    return Accuracy(task.title, tuple(bars))


def _kept(accuracy: float, clean: float, without: float) -> float | None:
    """Return the share of accuracy kept, or None if the clean encoder is no better than the baseline."""
    return accuracy_kept(accuracy, clean, without) if clean > without else None


def pictures(marked: Watermarked, data: Data) -> TriggerPictures:
    """Return the first pictures before and after the trigger, as prepared for the encoder."""
    key = marked.key
    assert isinstance(key, SSLGuardKey)
    plain = marked.encoder.preprocess.prepare(data.take(range(min(N_PICTURES, len(data)))))
    with torch.inference_mode():
        triggered = key.trigger(plain)
    mask, pattern = key.trigger.mask, key.trigger.pattern.detach().clamp(0, 1)
    return TriggerPictures(plain.numpy(), triggered.numpy(), mask.numpy(), pattern.numpy())


def _tracked(controls: Sequence[Member], shown: bool) -> Iterable[Member]:
    if not shown:
        return controls
    from rich.console import Console
    from rich.progress import track

    return track(controls, "controls", console=Console(stderr=True), total=len(controls))
