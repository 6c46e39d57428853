"""All that the exact test depends on, fixed before anything is asked."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Self

from sslguard.encoders.statistics import N_STATISTICS, STATISTICS_VERSION, check_version
from sslguard.errors import UsageError
from sslguard.stats.witness import FAMILIES, NEWEST

# Settings that older keys do not have.
_VERSIONS = ("statistics_version", "binding")


@dataclass(frozen=True)
class Protocol:
    """Part of every key, and bound into each of its secret streams.

    Attributes:
        components: q, how many leading principal components of h the features read.
        spread_power: α in M: 0 marks all directions alike, 1 along the embedding's own spread.
        n_features: K₁, secret functions of h.
        n_statistics: K₂, secret combinations of simple statistics of the input, beyond what h tells linearly. Copies
            learn them first, so that they still show where a copy answers behind an unknown linear map. K = K₁ + K₂.
        frequency: f, of the functions of h over whitened components.
        epsilon: ε, size of the mark: its root-mean-square length beside |h| = 1, M taken at its mean.
        n_queries: n; a missing answer counts as zero.
        witnesses: the family that is asked of a suspect, by name; see `stats.witness.family`. Bonferroni charges for
            every member that applies to the suspect's width. A key keeps the family of its day.
        queries: the rule by which n items are drawn from what the verifier brings.
        statistics_version: of the simple statistics. Keys of before there were two have the first.
        binding: what streams are bound to. 2: to the description of F's network as well, and a sub-key's directions to
            the features of all sub-keys, so that none can be drawn again by itself. 1: keys of before.
    """

    components: int = 6
    spread_power: float = 0.35
    n_features: int = 6
    n_statistics: int = 12
    frequency: float = 1.5
    epsilon: float = 0.2
    n_queries: int = 2000
    witnesses: str = NEWEST
    queries: str = "first n of a secret permutation"
    statistics_version: int = STATISTICS_VERSION
    binding: int = 2

    def __post_init__(self) -> None:
        if min(self.components, self.n_features, self.n_queries) < 1:
            raise UsageError("components, n_features and n_queries must be at least 1")
        if not 0 <= self.n_statistics <= N_STATISTICS:
            raise UsageError(f"n_statistics must lie in 0 to {N_STATISTICS}, not {self.n_statistics}")
        check_version(self.statistics_version)
        if self.binding not in (1, 2):
            raise UsageError(f"binding must be 1 or 2, not {self.binding}")
        for name in ("spread_power", "frequency", "epsilon"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0) or (name != "spread_power" and value == 0):
                raise UsageError(f"{name} must be positive and finite (spread_power may be 0), not {value}")
        if self.witnesses not in FAMILIES or self.queries != "first n of a secret permutation":
            raise UsageError(f"this version knows no witnesses {self.witnesses!r} with queries {self.queries!r}")

    @property
    def n_directions(self) -> int:
        """K."""
        return self.n_features + self.n_statistics

    def digest(self) -> bytes:
        """SHA-256 of every setting."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True, allow_nan=False).encode()).digest()

    def to_json(self) -> dict[str, Any]:
        """Every setting by name, but for first versions: that is how older keys are written."""
        return {name: value for name, value in asdict(self).items() if name not in _VERSIONS or value != 1}

    @classmethod
    def from_json(cls, found: Any) -> Self:
        """The inverse of `to_json`. Raises UsageError or TypeError for anything else."""
        protocol = cls(**{**dict.fromkeys(_VERSIONS, 1), **found})
        for name, value in asdict(cls()).items():
            if type(getattr(protocol, name)) is not type(value):
                raise TypeError(f"{name} must be of type {type(value).__name__}")
        return protocol
