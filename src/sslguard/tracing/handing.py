"""Marking a copy of the clean encoder for one recipient, by a key that exists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from sslguard.data.base import Data
from sslguard.data.watched import MAX_FINGERPRINTS, Fingerprints, Watched
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import weights_hash
from sslguard.errors import UsageError
from sslguard.schemes.base import Watermarked
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import StoredKey
from sslguard.tracing.recipients import Recipient

TRAINING = ("steps", "batch_size", "learning_rate")
"""Settings that may be chosen for one recipient. All others are the key's."""
_SAMPLE = 16


def scheme_for(mode: Literal["head", "distilled"], settings: Mapping[str, Any]) -> Exact:
    """Return how a recipient's copy is marked.

    Raises:
        UsageError: A setting is the key's, or out of range.
    """
    if others := [name for name in settings if name not in TRAINING]:
        raise UsageError(f"{others[0]} is fixed by the key: of a recipient's copy choose {', '.join(TRAINING)} alone")
    return Exact(mode=mode, **settings)


def check_handed(stored: StoredKey, one: Recipient, encoder: Encoder | None, data: Data) -> None:
    """Check, before anything is trained, that a recipient's copy can be marked by this key.

    Raises:
        UsageError: The key is of another scheme, the recipient was revoked, the encoder is not the key's, or the items
            are not those that the key was made with.
    """
    if not isinstance(stored.key, ExactKey):
        raise UsageError(f"a key of the scheme {stored.key.scheme} marks for no recipients: only those of exact do")
    if one.revoked is not None:
        raise UsageError(
            f"the recipient {one.name!r} was revoked on {one.revoked}: `sslguard recipients rotate` serves him again"
        )
    if encoder is not None and weights_hash(encoder.module) != stored.key.clean_hash:
        raise UsageError(f"{encoder.source} is not the clean encoder of this key: give the one that it was made with")
    sample = Watched(data)
    sample.take(np.linspace(0, len(data) - 1, min(_SAMPLE, len(data))).astype(int))
    _check_known(sample.fingerprints, stored.marked, data)


def marked_for(stored: StoredKey, one: Recipient, data: Data, scheme: Exact, **loop: Any) -> Watermarked:
    """Return the copy for one recipient, as `check_handed` allows it. See `Exact.watermark_for`.

    Raises:
        UsageError: An item took no part when the key was made, so that a later test could ask about it.
    """
    assert isinstance(stored.key, ExactKey)
    watched = Watched(data)
    made = scheme.watermark_for(stored.key, watched, name=one.name, rotation=one.rotation, **loop)
    _check_known(watched.fingerprints, stored.marked, data)
    encoder = made.encoder
    return replace(made, embedder=replace(encoder, record={**encoder.record, "base": stored.key.clean.source}))


def _check_known(found: Fingerprints, marked: Fingerprints, data: Data) -> None:
    # A key that was made with very many items knows the smallest fingerprints alone.
    within = found <= marked[-1] if len(marked) == MAX_FINGERPRINTS else np.ones(len(found), bool)
    if not np.isin(found[within], marked).all():
        raise UsageError(
            f"{data.spec} holds items that this key was not made with, and that a test would ask about: give the same "
            "--data as to the watermark command that made the key"
        )
