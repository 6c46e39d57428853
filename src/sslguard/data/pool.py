"""Pools: data that the secrets of a key are bound to, so that nobody can choose them to fit the key.

A claimant who knows his secrets can pick, among many items, those on which an innocent suspect agrees with them. So the
items that a verification draws from are fixed first: their number and their root enter what the secrets are drawn from.
Other items are then another key, and a claim is charged for the keys that its owner may have tried.
"""

from __future__ import annotations

import hashlib

from sslguard.data.base import Data
from sslguard.data.watched import digest

_BATCH = 256


def pool_of(data: Data) -> str:
    """Return the number of a data set's items and the root of their hashes, as "N:ROOT".

    Args:
        data: At least one item. Each is read.

    Notes:
        The root is that of the Merkle tree of [1]_, section 2.1, SHA-256, over each item's `watched.digest` in order.
        It allows an owner to show that an item belongs to the pool without showing the others.

    References:
        .. [1] B. Laurie, A. Langley, E. Kasper, "Certificate Transparency", RFC 6962, 2013.
    """
    level = [hashlib.sha256(b"\0" + digest(item)).digest() for batch in data.batches(_BATCH) for item in batch]
    n = len(level)
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [hashlib.sha256(b"\1" + one + other).digest() for one, other in pairs] + level[len(level) // 2 * 2 :]
    return f"{n}:{level[0].hex()}"
