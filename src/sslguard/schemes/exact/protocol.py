"""All that the exact test depends on, fixed before anything is asked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Annotated, Any, Self

from sslguard.errors import UsageError
from sslguard.settings import Checked, Count, Positive, Range

MOST_FUNCTIONS = 128
_GRID = (1.0, 1.5, 2.0, 3.0, 5.0, 7.5)

_FIXED = MappingProxyType(
    {
        "binding": 3,
        "grid": "1, 1.5, 2, 3, 5, 7.5 times powers of ten",
        "queries": "first n of a secret permutation",
        "statistics_version": 3,
        "witnesses": "two-sided-1",
    }
)
"""Rules of the one protocol, which nobody can set. They stand in each key file and in the hash that every secret stream
is bound to: a key of other rules is refused, and a change here makes other keys of the same secrets."""


@dataclass(frozen=True)
class Protocol(Checked):
    """Part of every key, and bound into each of its secret streams. docs/explanation/theory.md has the symbols.

    Attributes:
        functions: Public functions of the input that the mark is mixed from (B), those that a copy learns first. Texts
            have at most 48.
        rank: Secret mixtures of these functions, each added along a secret direction (r).
        spread: Sets how the mark spreads over the principal axes of the embeddings: in proportion to the power α of
            their deviation along each. α is this number over the effective number of axes, within 0.35 to 1: of
            embeddings that vary in few directions, a copy and its classifiers take over these alone.
        n_queries: Fewest queries that a verification asks. It asks the most of 1, 1.5, 2, 3, 5, 7.5 times 10, 100,
            1,000 ... that the data holds. A missing answer counts as zero.
        pool: Data that the secrets are bound to, as `data.pool.pool_of` gives them; "" where there are none.
    """

    functions: Annotated[int, Range(least=2, most=MOST_FUNCTIONS)] = 64
    rank: Annotated[int, Range(least=1, most=16)] = 4
    spread: Positive = 7.0
    n_queries: Count = 500
    pool: str = ""

    def asks(self, n_items: int) -> int:
        """Return how many of a data set's items a verification asks about: a function of their number alone.

        Where they are fewer than `n_queries`, that is returned.
        """
        return self.stages(n_items)[-1]

    def stages(self, n_items: int) -> tuple[int, ...]:
        """Return the numbers of queries after which a verification may stop early, increasing; the last is `asks`."""
        found, decade = [self.n_queries], 1
        while decade <= n_items:
            found += [int(step * decade) for step in _GRID if self.n_queries < step * decade <= n_items]
            decade *= 10
        return tuple(dict.fromkeys(found))

    def digest(self) -> bytes:
        """Return SHA-256 of every setting and rule."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True, allow_nan=False).encode()).digest()

    def to_json(self) -> dict[str, Any]:
        """Return every setting and every fixed rule, by name."""
        settings = {name: value for name, value in asdict(self).items() if value != ""}
        return {**settings, **_FIXED}

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
