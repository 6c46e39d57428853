"""Whether an opened key is what its secret gives with this F: nothing in it was free.

Of the exact scheme: frequencies and phases of the features, and the directions, which a key never stores; of a key with
sub-keys, of each of them, and that a master secret gives theirs only where the whole key was opened. μ, P, M and
the features' fit come from the claimant's marking data; the directions, of every sub-key, are bound to all of them, so
that they cannot be fitted to anything, only drawn again as a whole.

Of the scheme sslguard: mask, secret vector and the directions of the carrier. Trigger and decoder are trained; the
commitment binds them, and its date alone says that they were not fitted to a suspect.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sslguard.encoders.base import Encoder
from sslguard.schemes.base import Key
from sslguard.schemes.exact import ExactKey
from sslguard.schemes.exact.key import stream_context
from sslguard.schemes.sslguard import SSLGuardKey
from sslguard.schemes.sslguard.carrier import Carrier
from sslguard.schemes.sslguard.parts import draw_sk, draw_trigger

# Of numbers that were stored as float32 after some arithmetic in double precision.
_TOLERANCE = 1e-3


def undue_freedom(key: Key, clean: Encoder) -> str | None:
    """What of `key` does not follow from its secret and `clean`, in words; None where all of it does."""
    if isinstance(key, ExactKey):
        return _of_exact(key, clean)
    if isinstance(key, SSLGuardKey):
        return _of_sslguard(key, clean)
    return f"nothing is known of how keys of {type(key).__name__} follow from a secret"


def _of_exact(key: ExactKey, clean: Encoder) -> str | None:
    if key.redraw:
        return f"its directions are redraw {key.redraw} of the secret's, which is for calibration"
    for one in key.split() or [key]:
        if not _features_follow(one, clean):
            return "its features are not those that its secret gives with this F"
    return None


def _features_follow(key: ExactKey, clean: Encoder) -> bool:
    protocol, bank = key.protocol, key.bank
    stream = key.secret.stream("features", stream_context(clean, protocol) + bank.geometry.digest())
    q, k = protocol.components, protocol.n_features
    frequencies = stream.normal((q, k)) * (protocol.frequency / np.sqrt(q))
    phases = 2 * np.pi * stream.uniform((k,))
    return _close(bank.frequencies, frequencies) and _close(bank.phases, phases)


def _of_sslguard(key: SSLGuardKey, clean: Encoder) -> str | None:
    context = key.context
    if not _close(key.sk.numpy(), draw_sk(key.secret, context, len(key.sk)).numpy()):
        return "its secret vector is not the one that its secret gives with this F"
    share = key.settings.get("mask_probability")
    if not isinstance(share, float) or not 0 < share < 1:
        return "it does not say how large its mask was to be"
    mask = draw_trigger(key.secret, context, clean, share).mask.numpy()
    if key.trigger.mask.shape != mask.shape or not np.array_equal(key.trigger.mask.numpy(), mask):
        return "its mask is not the one that its secret gives with this F"
    if key.carrier is not None and not _carrier_follows(key, key.carrier, context):
        return "the directions of its carrier are not those that its secret gives with this F"
    return None


def _carrier_follows(key: SSLGuardKey, carrier: Carrier, context: bytes) -> bool:
    """Whether v_k and b, in the whitened space, are the orthonormal rows that the stream gives."""
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
