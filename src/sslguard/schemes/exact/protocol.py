"""All that the exact test depends on, fixed before anything is asked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Annotated, Any, Self

from sslguard.errors import UsageError
from sslguard.settings import Checked, Count, NotNegative, Positive, Range

MAX_STATISTICS = 96
"""`encoders.statistics.N_STATISTICS`, known here without torch."""

_FIXED = MappingProxyType(
    {
        "binding": 2,
        "queries": "first n of a secret permutation",
        "statistics_version": 2,
        "witnesses": "linear-4",
    }
)
"""Rules of the one protocol, which nobody can set. They stand in each key file and in the hash that every secret stream
is bound to: a key of other rules is refused, and a change here makes other keys of the same secrets."""


@dataclass(frozen=True)
class Protocol(Checked):
    """Part of every key, and bound into each of its secret streams. docs/explanation/theory.md has the symbols.

    Attributes:
        components: Leading principal components of the embedding that the secret features read (q).
        spread_power: Spread of the mark over directions (α in M): 0 marks all alike, 1 in proportion to the embedding's
            own spread.
        n_features: Secret features of the embedding (K₁).
        n_statistics: Secret features of the input (K₂): combinations of its simple statistics beyond what the embedding
            tells linearly. Copies learn them first, so that they still show in a copy behind an unknown linear map.
        frequency: Frequency of the features of the embedding over its whitened components (f).
        epsilon: Root-mean-square length of the mark, for embeddings of length 1 (ε).
        n_queries: Queries that a verification asks (n). A missing answer counts as zero.
    """

    components: Count = 6
    spread_power: NotNegative = 0.35
    n_features: Count = 6
    n_statistics: Annotated[int, Range(least=0, most=MAX_STATISTICS)] = 12
    frequency: Positive = 1.5
    epsilon: Positive = 0.2
    n_queries: Count = 2000

    @property
    def n_directions(self) -> int:
        """Return K."""
        return self.n_features + self.n_statistics

    def digest(self) -> bytes:
        """Return SHA-256 of every setting and rule."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True, allow_nan=False).encode()).digest()

    def to_json(self) -> dict[str, Any]:
        """Return every setting and every fixed rule, by name."""
        return {**asdict(self), **_FIXED}

    @classmethod
    def from_json(cls, found: Any) -> Self:
        """Return the protocol that `to_json` described.

        Raises:
            UsageError: A rule is not this program's, or a setting lies outside its range.
            TypeError: It is no such description.
        """
        if not isinstance(found, dict):
            raise TypeError("a protocol is described by an object")
        for name, value in _FIXED.items():
            there = found.get(name)
            # 2.0 and True are equal to whole numbers.
            if type(there) is not type(value) or there != value:
                raise UsageError(f"this program reads keys of protocols whose {name} is {value!r}, not {there!r:.40}")
        protocol = cls(**{name: value for name, value in found.items() if name not in _FIXED})
        for name, value in asdict(cls()).items():
            if type(getattr(protocol, name)) is not type(value):
                raise TypeError(f"{name} must be of type {type(value).__name__}")
        return protocol
