"""Master secrets, and named, independent streams of numbers that are derived from them.

stream = SHAKE-256 of HMAC-SHA-256(secret, SHA-256(context) ‖ name). Only hashes and exactly specified arithmetic are
used, so a stream is the same on every machine and under every version of every library. The context binds a stream to
its use; it is the hash of the clean encoder and the protocol.

The secret comes from the operating system's generator. It is never printed: `repr` shows nothing of it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets as system_secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sslguard.errors import KeyFileError, UsageError

SECRET_BYTES = 32


class Stream:
    """An endless sequence of numbers. Each call takes the next ones."""

    def __init__(self, seed: bytes) -> None:
        """Start the stream that `seed` determines."""
        self._seed, self._block = seed, 0

    def _bytes(self, n: int) -> bytes:
        out = hashlib.shake_256(self._seed + self._block.to_bytes(8, "big")).digest(n)
        self._block += 1
        return out

    def uniform(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """Return uniform numbers (k + ½)/2⁵², 0 ≤ k < 2⁵², as float64 of this shape.

        They are exact, and never 0 or 1. With one bit more, k + ½ would be rounded.
        """
        n = int(np.prod(shape, dtype=np.int64))
        return _uniform(self._bytes(8 * n)).reshape(tuple(shape))

    def normal(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """Return standard normal numbers, float64 of this shape, by the inverse distribution function."""
        from scipy.special import ndtri

        return np.asarray(ndtri(self.uniform(shape)))

    def permutation(self, n: int) -> NDArray[np.int64]:
        """Return a uniform permutation of 0 … n − 1, int64 (n,): the order of n uniform numbers."""
        return np.argsort(self.uniform((n,)), kind="stable").astype(np.int64)

    def words(self, n: int) -> NDArray[np.uint32]:
        """Return uniform integers, 0 ≤ k < 2³², uint32 (n,)."""
        return np.frombuffer(self._bytes(4 * n), dtype=">u4").astype(np.uint32)

    def integer(self) -> int:
        """Return a uniform integer, 0 ≤ k < 2⁶³, to seed a generator of another library."""
        return int.from_bytes(self._bytes(8), "big") >> 1


def _uniform(content: bytes) -> NDArray[np.float64]:
    words = np.frombuffer(content, dtype=">u8") >> np.uint64(12)
    return (words.astype(np.float64) + 0.5) / float(1 << 52)


def first_normals(seeds: Sequence[bytes], n: int) -> NDArray[np.float64]:
    """Return the first n normal numbers of many streams, (m, n): what `Stream(seed).normal((n,))` gives of each."""
    from scipy.special import ndtri

    start = (0).to_bytes(8, "big")
    content = b"".join([hashlib.shake_256(seed + start).digest(8 * n) for seed in seeds])
    return np.asarray(ndtri(_uniform(content))).reshape(len(seeds), n)


def derived(value: bytes, name: str, hashed: bytes) -> bytes:
    """Return the 32 bytes of the secret called `name` that is derived from a secret's bytes: see `Secret.derive`.

    Args:
        value: The secret's bytes.
        name: What the derived one is called.
        hashed: SHA-256 of the context, which many derivations may share.
    """
    return hmac.digest(value, hashed + name.encode(), "sha256")


@dataclass(frozen=True, eq=False, repr=False)
class Secret:
    """A master secret of 32 bytes."""

    _value: bytes

    def __post_init__(self) -> None:
        """Check the length."""
        if not isinstance(self._value, bytes) or len(self._value) != SECRET_BYTES:
            raise KeyFileError(f"a master secret has {SECRET_BYTES} bytes")

    @classmethod
    def generate(cls) -> Secret:
        """Draw a secret from the operating system's generator."""
        return cls(system_secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def from_seed(cls, seed: int) -> Secret:
        """Derive a secret from a small number, so that anybody can repeat it.

        This is for tests and published tables, never for a key that must prove something.

        Raises:
            UsageError: `seed` is negative.
        """
        if seed < 0:
            raise UsageError(f"seed must not be negative, but is {seed}")
        return cls(hashlib.sha256(b"sslguard public test secret" + seed.to_bytes(16, "big")).digest())

    def reveal(self) -> bytes:
        """Return the secret's bytes. Only the key file may hold them."""
        return self._value

    def stream(self, name: str, context: bytes = b"") -> Stream:
        """Return the stream called `name`, bound to `context`."""
        return Stream(self.derive(name, context).reveal())

    def derive(self, name: str, context: bytes = b"") -> Secret:
        """Return the secret called `name`, bound to `context`.

        It reveals neither this secret nor others that are derived from it.
        """
        return Secret(derived(self._value, name, hashlib.sha256(context).digest()))

    def __repr__(self) -> str:
        """Return a text without the secret."""
        return "Secret(hidden)"
