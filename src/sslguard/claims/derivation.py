"""Check that an opened key follows from its secret and F, so that its owner was not free to choose any part of it.

Scheme exact: both secrets are drawn from the key's secret, and a key never stores them. For a key with sub-keys this
holds for each sub-key. That their secrets follow from a master secret can be seen only if the whole key was opened. The
bank of functions comes from the claimant's marking data. Both secrets are bound to all of it, so they cannot be fitted
to anything; they can only be drawn again as a whole. The size of the mark is free, and no witness reads it.

Scheme sslguard: mask, secret vector and the directions of the carrier are drawn from the secret. Trigger and decoder
are trained. The commitment binds them, and only its date shows that they were not fitted to a suspect.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sslguard.encoders.base import Encoder
from sslguard.schemes.base import Key
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.sslguard.carrier import Carrier
from sslguard.schemes.sslguard.key import SSLGuardKey
from sslguard.schemes.sslguard.parts import draw_sk, draw_trigger

# Relative and absolute, for numbers that are computed in double precision and stored as float32.
_TOLERANCE = 1e-3


def undue_freedom(key: Key, clean: Encoder) -> str | None:
    """Describe what in a key does not follow from its secret and F; return None if all of it does.

    Args:
        key: The opened key, complete.
        clean: F, from the examiner.

    Returns:
        The first such part, as the end of a sentence.
    """
    if isinstance(key, ExactKey):
        return None
    if isinstance(key, SSLGuardKey):
        return _of_sslguard(key, clean)
    return f"no check is known for keys of type {type(key).__name__}"


def _of_sslguard(key: SSLGuardKey, clean: Encoder) -> str | None:
    context = key.context
    if not _close(key.sk.numpy(), draw_sk(key.secret, context, len(key.sk)).numpy()):
        return "its secret vector is not the one that its secret gives with this F"
    share = key.settings.get("mask_probability")
    if not isinstance(share, float) or not 0 < share < 1:
        return "its mask_probability is missing or not in (0, 1)"
    mask = draw_trigger(key.secret, context, clean, share).mask.numpy()
    if key.trigger.mask.shape != mask.shape or not np.array_equal(key.trigger.mask.numpy(), mask):
        return "its mask is not the one that its secret gives with this F"
    if key.carrier is not None and not _carrier_follows(key, key.carrier, context):
        return "the directions of its carrier are not those that its secret gives with this F"
    return None


def _carrier_follows(key: SSLGuardKey, carrier: Carrier, context: bytes) -> bool:
    """Return whether v_k and b, in the whitened space, are the orthonormal rows that the stream gives."""
    (k, d), rank = carrier.read.shape, carrier.rank
    if k > d - rank:
        return False
    stream = key.secret.stream("carrier", context)
    stream.normal((d - rank, k))
    left, _, right = np.linalg.svd(stream.normal((k + 1, rank)), full_matrices=False)
    written = np.concatenate([carrier.write.numpy(), carrier.shift.numpy()[None]]).astype(np.float64)
    white = written @ carrier.whitener.numpy().astype(np.float64).T
    lengths = np.linalg.norm(white, axis=1, keepdims=True)
    return bool((lengths > 0).all()) and _close(white / lengths, left @ right)


def _close(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> bool:
    return found.shape == wanted.shape and bool(np.allclose(found, wanted, rtol=_TOLERANCE, atol=_TOLERANCE))
