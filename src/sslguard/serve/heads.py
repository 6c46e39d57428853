"""Watermarking while serving: the mark is added to the answers, and the encoder on disk stays unchanged."""

from __future__ import annotations

from sslguard.encoders.base import Encoder
from sslguard.errors import UsageError
from sslguard.schemes.base import Key
from sslguard.schemes.exact.bank import stream_context
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.marking import headed


def with_head(encoder: Encoder, key: Key) -> Encoder:
    """Return `encoder` with the key's mark as a head on its output.

    It answers as the encoder that `watermark` wrote in the mode "head". A key of the mode "distilled" gives the head
    that its mark was distilled from.

    Args:
        encoder: The clean encoder that the key was made for.
        key: Key of the scheme exact.

    Raises:
        UsageError: The key is of another scheme, or was made for another clean encoder.
    """
    exact = check_head(encoder, key)
    return headed(encoder, exact.bank, exact.mixtures(), exact.rows())


def check_head(encoder: Encoder, key: Key) -> ExactKey:
    """Return a key whose mark can be put on the answers of `encoder`.

    Raises:
        UsageError: The key is of another scheme, or was made for another clean encoder.
    """
    if not isinstance(key, ExactKey):
        raise UsageError(f"a head is made by a key of the scheme exact, not {key.scheme}")
    if stream_context(encoder, key.protocol) != key.context:
        raise UsageError(
            f"{encoder.source:.200} is not the clean encoder of this key, which is {key.clean.source:.200}: its "
            "weights or its preprocessing differ, and the mark would not be the key's"
        )
    return key
