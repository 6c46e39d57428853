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
from sslguard.verification.nulls import null_of
from sslguard.verification.scores import ControlScores, control_scores
from sslguard.verification.verdict import DEFAULT_ALPHA, Verdict
from sslguard.verification.verdict import verify as verify_key

DEFAULT_QUERIES = 12_000


def as_data(data: Data | str) -> Data:
    """Return a data set, opened where it is a specification."""
    return open_data(data) if isinstance(data, str) else data


def as_encoder(encoder: Encoder | str | Path) -> Encoder:
    """Return an encoder, loaded where it is a specification."""
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
        encoder: Clean encoder. It is left as it is.
        data: Unlabelled items to mark with. SSLGuard sets part of them aside as D_v.
        scheme: Scheme with its settings; `SSLGuard.cured()` unless given, `SSLGuard()` for the published losses,
            `Exact()` for evidence with an exact p-value.
        secret: Master secret; a fresh one from the operating system unless given.
        checkpoint: File from which an interrupted run goes on, written on the way.
        progress: Whether to show bars on standard error.
        loop: `devices`, `nodes`, `accelerator`, `precision`; see `training.Loop`.

    Raises:
        UsageError: A setting is out of range, or encoder and data do not go together.
        EncoderError: The encoder cannot be loaded.
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
    """Train a surrogate on the victim's answers alone.

    Args:
        victim: Encoder, or what `suspects.open_remote` gives for an address, which must answer every query.
        data: What the victim is asked.
        recipe: How the surrogate learns; `Distillation()` unless given.
        queries: Number of items of `data`, from the first, that are asked; None for all.
        augment: Whether to ask and learn from random views, each a query of its own.
        seed: Seed of initialisation, order and views.
        checkpoint: File from which an interrupted run goes on, written on the way.
        progress: Whether to show bars on standard error.
        loop: `devices`, `nodes`, `accelerator`, `precision`; see `training.Loop`.

    Raises:
        UsageError: A setting is out of range, or victim and data do not go together.
        SuspectError: The victim gave no usable answer.
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
    """Return what known innocents score under a key on `data`: the null that `verify` ranks suspects in.

    A key given by its folder keeps them there, so that later verifications on the same data need not ask the
    controls again: see `verification.scores`.

    Args:
        key: Key, or its folder.
        data: Items to ask about, as in `verify`.
        controls: Known innocents, as in `verify`.
        folder: Folder of a key that is given as an object.
        rescore: Whether to score anew what the key's folder may hold.
        progress: Whether to show bars on standard error.
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
    """Test whether `suspect` is derived from the key's watermarked encoder.

    Args:
        key: Key, or its folder. The controls' scores are kept in the folder and used again while nothing has changed.
        suspect: What embeds, or a specification: see `suspects.open_suspect`.
        data: Items to ask about, none of which took part in marking.
        controls: Known innocents to rank among: encoders, folders of populations, or "shipped", the population
            of the test bed, which is the default. A key with an exact null needs none, and asks those that are given
            only to show them.
        alpha: Level of the test, in (0, 1), shared among `n_claims`.
        n_claims: Number of claims (suspects, keys, looks) that share the level.
        rescore: Whether to score the controls anew, as an examiner must who does not trust the folder's owner.
        progress: Whether to show bars on standard error.

    Raises:
        RefusedError: The controls cannot support alpha. Nothing is asked then.
        SuspectError: The suspect gave no usable answer.
        KeyFileError: The key is damaged, or does not fit what it is asked about.
    """
    loaded, folder = _with_folder(key)
    opened = as_data(data)
    if controls is None:
        controls = ("shipped",) if loaded.needs_controls else ()
    null_of(loaded, count_controls(controls)).check(alpha, n_claims)
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
        key: Folder of the key, or what `keyfile.open_key` gave. The bundle opens it.
        suspect: Suspect, as in `verify`.
        data: What the examiner agreed to draw from.
        seed: Seed of the examiner, given after the commitment was seen.
        commitment: File that `claims.commitment.publish` wrote.
        out: Folder of the bundle.
        controls: Known innocents, as in `verify`.
        alpha: Level of the test, in (0, 1).
        n_claims: Number of claims that share the level.
        progress: Whether to show bars on standard error.
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
        bundle: Folder of the bundle.
        data: What the examiner agreed to draw queries from.
        terms: What the examiner knows and demands.
        clean: Clean encoder F; without it there is no verdict.
        suspect: Suspect to ask again, where the examiner can.
        progress: Whether to show bars on standard error.
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
    """Return the key, loaded where it is a folder, and that folder."""
    return (load_key(Path(key)), Path(key)) if isinstance(key, str | Path) else (key, None)
