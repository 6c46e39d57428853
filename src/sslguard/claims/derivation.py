"""Check that an opened key follows from its secret and F, so that its owner was not free to choose any part of it.

Scheme exact: both secrets are drawn from the key's secret, and a key never stores them. For a key with sub-keys this
holds for each sub-key. That their secrets follow from a master secret can be seen only if the whole key was opened. The
bank of functions comes from the claimant's marking data. Both secrets are bound to all of it, so they cannot be fitted
to anything; they can only be drawn again as a whole. The size of the mark is free, and no witness reads it.

Scheme sslguard: mask and secret vector are drawn from the secret. Trigger and decoder are trained. The commitment binds
them, and only its date shows that they were not fitted to a suspect.

Scheme sslguard-cured: mask, trigger and secret vector are drawn from the secret. A key never stores its directions:
they are drawn from the secret, bound to all that is read of a suspect, so they can only be drawn again as a whole.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sslguard.encoders.base import Encoder
from sslguard.schemes.base import Key
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.sslguard.key import CuredKey, SSLGuardKey
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
    drawn = draw_trigger(key.secret, context, clean, share)
    mask = drawn.mask.numpy()
    if key.trigger.mask.shape != mask.shape or not np.array_equal(key.trigger.mask.numpy(), mask):
        return "its mask is not the one that its secret gives with this F"
    if isinstance(key, CuredKey) and not _close(key.trigger.pattern.detach().numpy(), drawn.pattern.detach().numpy()):
        return "its trigger is not the one that its secret gives with this F"
    return None


def _close(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> bool:
    return found.shape == wanted.shape and bool(np.allclose(found, wanted, rtol=_TOLERANCE, atol=_TOLERANCE))
