"""The queries of a claim: items that neither side chose, drawn by the examiner's seed after the key was committed to.

The order is a permutation from the stream (see `secrets.Stream`) of SHA-256("sslguard examiner's queries" ‖ SHA-256 of
the commitment's file ‖ SHA-256 of the seed ‖ number of items, 8 bytes, big-endian). The first n items are asked. A key
may ask them in another order; no statistic depends on it. What matters is that nobody who knows the secret chose them.

What it does not protect against: a seed that the claimant knew before committing, or chose.
"""

from __future__ import annotations

import hashlib

from torch import Tensor

from sslguard.crypto.secrets import Stream
from sslguard.data.base import Chosen, Data
from sslguard.errors import UsageError
from sslguard.schemes.base import Key
from sslguard.schemes.keyfile import tensor_bytes
from sslguard.schemes.queries import check_enough
from sslguard.schemes.sslguard.key import SSLGuardKey

MAX_SEED = 256  # characters
_BATCH = 128


class ExaminerData(Chosen):
    """The items of a data set that the examiner's seed draws, in the order in which it draws them.

    Args:
        whole: Data set to draw from.
        n: Number of items to draw.
        seed: Seed of the examiner, 1 to 256 characters.
        commitment: SHA-256 of the commitment's file, hex.

    Raises:
        UsageError: `whole` has fewer than n items, or the seed is not valid.
    """

    def __init__(self, whole: Data, n: int, *, seed: str, commitment: str) -> None:
        """Draw the items' order; see the class for the arguments."""
        check_seed(seed)
        check_enough(whole, n)
        parts = (bytes.fromhex(commitment), hashlib.sha256(seed.encode()).digest(), len(whole).to_bytes(8, "big"))
        digest = hashlib.sha256(b"sslguard examiner's queries" + b"".join(parts))
        order = Stream(digest.digest()).permutation(len(whole))[:n]
        # A key may cache what it computed for a data set by this name, so the name must be unique.
        super().__init__(whole, order, f"{whole.spec} as drawn by {digest.hexdigest()}")


def check_seed(seed: str) -> None:
    """Check an examiner's seed.

    Raises:
        UsageError: It is not a text of 1 to 256 printable ASCII characters.
    """
    if not isinstance(seed, str) or not 1 <= len(seed) <= MAX_SEED or not seed.isprintable() or not seed.isascii():
        raise UsageError(
            f"a seed has 1 to {MAX_SEED} printable ASCII characters, such as the output of openssl rand -hex 32"
        )


def n_items(key: Key, data: Data) -> int:
    """Return how many items of `data` a verification under `key` asks about. Some may be asked twice."""
    return key.n if isinstance(key, SSLGuardKey) else key.asks(len(data))


def items_hash(data: Data) -> str:
    """Return SHA-256, hex, of every item of `data` in order, as it comes from its source."""
    digest = hashlib.sha256()
    for batch in data.batches(_BATCH):
        for item in batch:
            content = tensor_bytes(item) if isinstance(item, Tensor) else item.encode("utf-8", "surrogatepass")
            digest.update(f"{type(item).__name__} {len(content)}\n".encode() + content)
    return digest.hexdigest()
