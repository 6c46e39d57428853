"""The command line's verbs as functions: what `import sslguard` offers.

Encoders, keys and data may be given as objects or as the texts that the command line takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sslguard.attacks.stealing import Distil
from sslguard.claims.audit import audit as audit_bundle
from sslguard.claims.claim import claim as make_claim
from sslguard.claims.outcome import Audit, Terms
from sslguard.controls import count_controls
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.data.specs import open_data
from sslguard.encoders.base import Embedder, Encoder
from sslguard.encoders.load import load_encoder
from sslguard.schemes.base import Key, Scheme, Watermarked
from sslguard.schemes.keyfile import StoredKey, load_key, open_key
from sslguard.schemes.sslguard import SSLGuard
from sslguard.suspects import Complete, RemoteSuspect, open_suspect
from sslguard.training import shared
from sslguard.training.augmentation import MILD
from sslguard.training.recipes import Distillation
from sslguard.verification.scores import ControlScores, control_scores
from sslguard.verification.verdict import DEFAULT_ALPHA, Verdict, check_null
from sslguard.verification.verdict import verify as verify_key

DEFAULT_QUERIES = 12_000


def as_data(data: Data | str) -> Data:
    """A data set, opened where it is a specification."""
    return open_data(data) if isinstance(data, str) else data


def as_encoder(encoder: Encoder | str | Path) -> Encoder:
    """An encoder, loaded where it is a specification."""
    return encoder if isinstance(encoder, Encoder) else load_encoder(encoder)


def watermark(
    encoder: Encoder | str | Path,
    data: Data | str,
    *,
    scheme: Scheme | None = None,
    secret: Secret | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
    **loop: Any,
) -> Watermarked:
    """Mark a copy of `encoder` and return it with its secret key.

    For a key that knows its null: `save_key(marked.key, folder)`, then `score_controls(folder, data)`.

    Args:
        data: unlabelled items to mark with; part of them becomes D_v.
        scheme: settings; `SSLGuard.cured()` unless given, `SSLGuard()` for the published losses, `Exact()` for
            evidence that is a theorem.
        secret: master secret; a fresh one from the operating system unless given.
        loop: `devices`, `nodes`, `accelerator`, `precision`; see `training.Loop`.
    """
    if secret is None:
        secret = shared(Secret.generate, **loop)
    return (scheme or SSLGuard.cured()).watermark(
        as_encoder(encoder),
        as_data(data),
        secret=secret,
        checkpoint=checkpoint,
        progress=progress,
        **loop,
    )


def steal(
    victim: Embedder | str | Path,
    data: Data | str,
    *,
    recipe: Distillation | None = None,
    queries: int | None = None,
    augment: bool = False,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = False,
    **loop: Any,
) -> Encoder:
    """A surrogate trained on the victim's answers alone.

    Args:
        victim: one behind an address is what `suspects.open_remote` gives; it must answer every query.
        data: what the victim is asked.
        recipe: how the surrogate learns; `augment` puts it on augmented views.
        queries: ask only the first so many items of `data`.
    """
    chosen = recipe or Distillation()
    if augment:
        chosen = replace(chosen, augmentation=MILD)
    asked = as_data(data)
    if queries is not None:
        asked = asked.slice(0, queries)
    target: Embedder = load_encoder(victim) if isinstance(victim, str | Path) else victim
    if isinstance(target, RemoteSuspect):
        target = Complete(target)
    return Distil(chosen)(target, asked, seed=seed, checkpoint=checkpoint, progress=progress, **loop)


def score_controls(
    key: Key | str | Path,
    data: Data | str,
    *,
    controls: Sequence[str] = ("shipped",),
    folder: Path | None = None,
    rescore: bool = False,
    progress: bool = False,
) -> ControlScores:
    """What known innocents score under a key on `data`: the null that `verify` ranks suspects in.

    A key given by its folder keeps them there, so that later verifications on the same data need not ask the
    controls again: see `verification.scores`.

    Args:
        data, controls: as in `verify`.
        folder: where a key that is given as an object stands.
        rescore: score anew what the key's folder may hold.
    """
    loaded, found = _with_folder(key)
    folder = folder or found
    return control_scores(loaded, controls, as_data(data), folder=folder, rescore=rescore, progress=progress)


def verify(
    key: Key | str | Path,
    suspect: Embedder | str,
    data: Data | str,
    *,
    controls: Sequence[str] | None = None,
    alpha: float = DEFAULT_ALPHA,
    n_claims: int = 1,
    rescore: bool = False,
    progress: bool = False,
) -> Verdict:
    """Whether `suspect` is shown to be derived from the key's watermarked encoder.

    Args:
        key: where it is a folder, the controls' scores are kept there and used again while nothing has changed.
        data: items to ask about, none of which took part in marking.
        controls: known innocents to rank among: encoders, folders of populations, or "shipped", the population
            of the test bed, which is the default. A key with an exact null needs none, and asks those that are given
            only to show them.
        alpha: level of the test, shared among `n_claims`.
        rescore: score the controls anew, as an examiner must who does not trust the folder's owner.

    Raises:
        RefusedError: the controls cannot support alpha. Nothing is asked then.
    """
    loaded, folder = _with_folder(key)
    opened = as_data(data)
    if controls is None:
        controls = ("shipped",) if loaded.null == "controls" else ()
    check_null(count_controls(controls), alpha, n_claims, null=loaded.null)
    target = open_suspect(suspect) if isinstance(suspect, str) else suspect
    null = ControlScores({}, stored=False, kept=False)
    if controls:
        null = control_scores(loaded, controls, opened, folder=folder, rescore=rescore, progress=progress)
    verdict = verify_key(loaded, target, opened, control_scores=null.values, alpha=alpha, n_claims=n_claims)
    return replace(verdict, stored_controls=null.stored)


def claim(
    key: StoredKey | str | Path,
    suspect: Embedder | str,
    data: Data | str,
    *,
    seed: str,
    commitment: str | Path,
    out: str | Path,
    controls: Sequence[str] = (),
    alpha: float = DEFAULT_ALPHA,
    n_claims: int = 1,
    progress: bool = False,
) -> Verdict:
    """Ask a suspect what an examiner's seed draws, and write the evidence to `out`: see `claims.claim`.

    Args:
        key: its folder, or what `keyfile.open_key` gave. The bundle opens it.
        seed: the examiner's, given after the commitment was seen.
        commitment: the file that `claims.commitment.publish` wrote.
    """
    stored = open_key(Path(key)) if isinstance(key, str | Path) else key
    return make_claim(
        stored,
        open_suspect(suspect) if isinstance(suspect, str) else suspect,
        as_data(data),
        seed=seed,
        commitment=Path(commitment),
        out=Path(out),
        controls=controls,
        alpha=alpha,
        n_claims=n_claims,
        progress=progress,
    )


def audit(
    bundle: str | Path,
    data: Data | str,
    terms: Terms,
    *,
    clean: Encoder | str | Path | None = None,
    suspect: Embedder | str | None = None,
    progress: bool = False,
) -> Audit:
    """Check a bundle and decide anew, by an examiner's terms: see `claims.audit`.

    Args:
        clean: F; without it there is no verdict.
        suspect: asked again, where the examiner can.
    """
    return audit_bundle(
        Path(bundle),
        as_data(data),
        terms,
        clean=None if clean is None else as_encoder(clean),
        suspect=open_suspect(suspect) if isinstance(suspect, str) else suspect,
        progress=progress,
    )


def _with_folder(key: Key | str | Path) -> tuple[Key, Path | None]:
    """The key, loaded where it is a folder, and that folder."""
    return (load_key(Path(key)), Path(key)) if isinstance(key, str | Path) else (key, None)
