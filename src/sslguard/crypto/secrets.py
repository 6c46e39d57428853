"""One master secret → named, independent streams of numbers.

stream = SHAKE-256 of HMAC-SHA-256(secret, SHA-256(context) ‖ name): nothing but hashes and exactly specified
arithmetic, so that a stream is the same on every machine and under every version of every library. The context
binds a stream to what it is used for: the hash of the clean encoder and the protocol.

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
    """An endless sequence of numbers; each call takes the next ones."""

    def __init__(self, seed: bytes) -> None:
        self._seed, self._block = seed, 0

    def _bytes(self, n: int) -> bytes:
        out = hashlib.shake_256(self._seed + self._block.to_bytes(8, "big")).digest(n)
        self._block += 1
        return out

    def uniform(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """Numbers (k + ½)/2⁵², 0 ≤ k < 2⁵²: exact, and never 0 or 1. With one bit more, k + ½ would be rounded."""
        n = int(np.prod(shape, dtype=np.int64))
        words = np.frombuffer(self._bytes(8 * n), dtype=">u8") >> np.uint64(12)
        return ((words.astype(np.float64) + 0.5) / float(1 << 52)).reshape(tuple(shape))

    def normal(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """Standard normal numbers, by the inverse distribution function."""
        from scipy.special import ndtri

        return np.asarray(ndtri(self.uniform(shape)))

    def permutation(self, n: int) -> NDArray[np.int64]:
        """A uniform order of 0 … n − 1: the order of n uniform numbers."""
        return np.argsort(self.uniform((n,)), kind="stable").astype(np.int64)

    def integer(self) -> int:
        """A uniform integer, 0 ≤ k < 2⁶³, for seeding a generator that is not ours."""
        return int.from_bytes(self._bytes(8), "big") >> 1


@dataclass(frozen=True, eq=False, repr=False)
class Secret:
    """A master secret of 32 bytes."""

    _value: bytes

    def __post_init__(self) -> None:
        if not isinstance(self._value, bytes) or len(self._value) != SECRET_BYTES:
            raise KeyFileError(f"a master secret has {SECRET_BYTES} bytes")

    @classmethod
    def generate(cls) -> Secret:
        """A fresh secret from the operating system."""
        return cls(system_secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def from_seed(cls, seed: int) -> Secret:
        """A secret that anybody can derive from a small number: for tests and published tables, never for a key
        that is to prove something."""
        if seed < 0:
            raise UsageError(f"seed must not be negative, but is {seed}")
        return cls(hashlib.sha256(b"sslguard public test secret" + seed.to_bytes(16, "big")).digest())

    def reveal(self) -> bytes:
        """The bytes themselves, for the key file alone."""
        return self._value

    def stream(self, name: str, context: bytes = b"") -> Stream:
        """The stream called `name`, bound to `context`."""
        return Stream(self.derive(name, context).reveal())

    def derive(self, name: str, context: bytes = b"") -> Secret:
        """The secret called `name`, bound to `context`. Nothing leads back from it to this one, or to its siblings."""
        message = hashlib.sha256(context).digest() + name.encode()
        return Secret(hmac.new(self._value, message, hashlib.sha256).digest())

    def __repr__(self) -> str:
        return "Secret(hidden)"
