"""The stages of the demonstration. Each is a function of the results of earlier stages."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sslguard import api
from sslguard.claims.commitment import timestamp_file
from sslguard.claims.outcome import Audit
from sslguard.controls.making import progress_bar
from sslguard.controls.members import Member
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.demo.inputs import Inputs, ProbeTask, Tested
from sslguard.demo.result import Accuracy, Bar, Decision, Examined, Role, Suspect, TriggerPictures
from sslguard.demo.settings import CLEAN
from sslguard.encoders.base import Encoder
from sslguard.errors import RefusedError
from sslguard.probes.baselines import accuracy_kept, baseline
from sslguard.probes.evaluate import probe_encoder
from sslguard.schemes.base import Key, Scheme, Score, Watermarked
from sslguard.schemes.sslguard.key import SSLGuardKey
from sslguard.stats.significance import rejects
from sslguard.training.base import History
from sslguard.training.distillation import distil
from sslguard.training.recipes import Distillation
from sslguard.verification.nulls import Null, null_of
from sslguard.verification.verdict import score_control, score_suspect

N_PICTURES = 5
Probed = tuple[str, Role, Encoder]


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
    with progress_bar(len(controls), shown=progress) as advance:
        for member in controls:
            encoder = member.load()
            for key, found in zip(keys, scores, strict=True):
                found[member.name] = score_control(key, member.name, encoder, data)
            advance(member.name)
    return scores


def shared_claims(null: Null, alpha: float, n_suspects: int) -> tuple[int, str | None]:
    """Choose how many claims share alpha.

    All suspects share it if the null allows that. Otherwise each suspect is tested at alpha by itself, and the report
    says so.

    Args:
        null: Null distribution that the suspects are compared with.
        alpha: Level of the test.
        n_suspects: Number of suspects.

    Returns:
        The number of claims, and the reason why no decision can be made, or None if one can.
    """
    refusal = None
    for n_claims in (n_suspects, 1):
        try:
            null.check(alpha, n_claims)
        except RefusedError as error:
            refusal = str(error)
        else:
            return n_claims, None
    return 1, refusal


def examine(
    name: str, key: Key, tested: Sequence[Tested], data: Data, controls: Mapping[str, Score], *, alpha: float
) -> Examined:
    """Verify suspects under a key. Where no decision can be made, they are scored and ranked all the same.

    Args:
        name: Name of the key in the report.
        key: Key whose queries are asked.
        tested: Suspects.
        data: Items that the queries are made from.
        controls: Scores of known innocents, by name. A key whose null is exact does not need them.
        alpha: Level of the test.
    """
    null = null_of(key, len(controls), [control.value for control in controls.values()])
    n_claims, refusal = shared_claims(null, alpha, len(tested))
    suspects = []
    for one in tested:
        score = score_suspect(key, one.encoder, data)
        significance = null.significance(score)
        decision: Decision = "refused"
        if refusal is None:
            decision = "derived" if rejects(significance, alpha, n_claims=n_claims) else "not shown"
        suspects.append(Suspect(one.name, one.story, one.derived, decision, score, significance))
    return Examined(name, tuple(suspects), controls, alpha, n_claims, refusal)


def probe(inputs: Inputs, derived: Sequence[Probed]) -> tuple[Accuracy, ...]:
    """Probe F, the encoders derived from it, and both baselines on every task."""
    return tuple(_probe_task(task, inputs.clean, derived) for task in inputs.tasks)


def _probe_task(task: ProbeTask, clean: Encoder, derived: Sequence[Probed]) -> Accuracy:
    if task.train is None or task.test is None:
        return Accuracy(task.title, skipped=task.skipped)
    chosen: dict[str, Any] = {"per_class": task.per_class, "seeds": task.seeds}
    without = baseline(clean, task.train, task.test, **chosen)
    bars = [] if without.pixels is None else [Bar("raw pixels", "baseline", without.pixels.accuracy)]
    bars.append(Bar("untrained network", "baseline", without.random.accuracy))
    reference = None
    for name, role, encoder in ((CLEAN, "clean", clean), *derived):
        accuracy = probe_encoder(encoder, task.train, task.test, **chosen).accuracy
        reference = accuracy if reference is None else reference
        # The share kept is undefined if the clean encoder is not above its baselines.
        above = reference > without.accuracy
        kept = accuracy_kept(accuracy, reference, without.accuracy) if above else None
        bars.append(Bar(name, role, accuracy, kept))
    return Accuracy(task.title, tuple(bars))


def pictures(marked: Watermarked, data: Data) -> TriggerPictures:
    """Return the first pictures before and after the trigger, as prepared for the encoder."""
    key = marked.key
    assert isinstance(key, SSLGuardKey)
    plain = marked.encoder.preprocess.prepare(data.take(range(min(N_PICTURES, len(data)))))
    with torch.inference_mode():
        triggered = key.trigger(plain)
    mask, pattern = key.trigger.mask, key.trigger.pattern.detach().clamp(0, 1)
    return TriggerPictures(plain.numpy(), triggered.numpy(), mask.numpy(), pattern.numpy())


def claim_and_audit(
    files: Mapping[str, Path], clean: Encoder, suspect: Encoder, data: Data, *, alpha: float, seed: int | None
) -> Audit:
    """Commit to a key, claim the suspect on queries that an examiner's seed draws, and audit the claim.

    Owner, examiner and suspect are one program here, so nothing shows the date of the commitment. The audit charges 64
    bits for that.

    Args:
        files: "exact-key", the owner's key, is read; "commitment", "claim" and "audit", the examiner's page, are
            written. Earlier ones are replaced.
        clean: F.
        suspect: Encoder that the claim is about.
        data: Data set that the queries are drawn from.
        alpha: Level of the test, in (0, 1).
        seed: Makes the examiner's seed repeatable; None draws it at random.
    """
    key, commitment, bundle = (files[name] for name in ("exact-key", "commitment", "claim"))
    for old in (commitment, timestamp_file(commitment)):
        old.unlink(missing_ok=True)
    if bundle.exists():
        shutil.rmtree(bundle)
    drawn = secrets.token_hex(16) if seed is None else f"demonstration {seed}"
    api.commit(key, commitment)
    api.claim(key, suspect, data, seed=drawn, commitment=commitment, out=bundle, alpha=alpha)
    terms = {"seed": drawn, "own_data": True, "alpha": alpha}
    return api.audit(bundle, data, clean=clean, suspect=suspect, report=files["audit"], **terms)
