"""What a peer is: a published scheme, rebuilt from its paper, that scores suspects by its own statistic.

A peer's p-value is not trusted here: it is reported as published, beside a rank among controls. Its keys live as long
as a benchmark does and are not kept in files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Encoder
from sslguard.errors import SuspectError, UsageError
from sslguard.schemes.base import Key, Scheme

Array = NDArray[np.float64]

QUERY_BATCH = 128


class PeerKey(Key):
    """A key of a peer. Subclasses are frozen dataclasses; their answers' rows of zeros are answers like others."""

    def to_parts(self) -> NoReturn:
        """Raise UsageError: keys of peers are not kept."""
        raise UsageError(f"a key of {self.scheme} is for benchmarks and is not kept in files: protect again")

    @classmethod
    def from_parts(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> NoReturn:  # noqa: ARG003
        """Raise UsageError: keys of peers are not kept."""
        raise UsageError(f"a key of {cls.scheme} is for benchmarks and is not kept in files: protect again")


class Peer(Scheme):
    """A scheme of others. Its keys are made again from the secret; its training, if any, is always the same.

    Attributes:
        trains: Whether it trains what it serves, and so has use for a checkpoint.
    """

    trains: ClassVar[bool] = False


@dataclass(frozen=True, eq=False, repr=False)
class ComparingKey(PeerKey):
    """A key that compares a suspect's answers with the clean encoder's to the same items.

    Attributes:
        clean: The owner's encoder, which the test asks as well.
        n: Items that a verification asks.
    """

    secret: Secret
    clean: Encoder
    n: int
    _embedded: dict[str, Array] = field(default_factory=dict, kw_only=True)

    @property
    def n_queries(self) -> int:
        """Number of queries that a verification asks."""
        return self.n

    def queries(self, data: Data) -> Iterator[Batch]:
        """Yield the queries in order, batch by batch."""
        return asked(data, drawn(self.secret, self.scheme, data, self.n))

    def own(self, data: Data) -> Array:
        """Return the clean encoder's answers to the queries, (n, d); the last set's are kept."""
        if data.spec not in self._embedded:
            answers = [self.clean.embed(batch) for batch in self.queries(data)]
            self._embedded.clear()
            self._embedded[data.spec] = np.concatenate(answers).astype(np.float64)
        return self._embedded[data.spec]


def drawn(secret: Secret, name: str, data: Data, n: int) -> NDArray[np.int64]:
    """Draw `n` different items of `data` by the secret's stream `name`.

    Raises:
        UsageError: There are fewer.
    """
    if len(data) < n:
        raise UsageError(f"this key asks {n} items, but {data.spec} has only {len(data)}")
    return secret.stream(name, data.spec.encode()).permutation(len(data))[:n]


def asked(data: Data, order: Sequence[int] | NDArray[np.integer]) -> Iterator[Batch]:
    """Yield items of `data` in this order, ≤ 128 at a time, images of one size as bytes."""
    for start in range(0, len(order), QUERY_BATCH):
        batch = data.take(order[start : start + QUERY_BATCH])
        yield as_bytes(batch) if isinstance(batch, Tensor) else batch


def as_bytes(images: Tensor) -> Tensor:
    """Convert images to uint8; floats from [0, 1]."""
    return (images * 255).round().to(torch.uint8) if images.is_floating_point() else images


def gathered(answers: Iterable[NDArray[np.floating]], n: int, *, width: int | None = None) -> Array:
    """Return all answers, float64 (n, m).

    Args:
        answers: Batch by batch.
        n: How many there must be.
        width: M where the scheme can only score answers of the owner's width.

    Raises:
        SuspectError: The answers are not finite, of changing or another width, or not as many as the queries.
    """
    parts = [np.asarray(part, dtype=np.float64) for part in answers]
    if not parts or any(part.ndim != 2 or part.shape[1] != parts[0].shape[1] for part in parts):
        raise SuspectError("the suspect gave no answers, or answers that are no rows of one width")
    rows = np.concatenate(parts)
    if len(rows) != n:
        raise SuspectError(f"this key asks {n} queries, but {len(rows)} answers came")
    if width is not None and rows.shape[1] != width:
        raise SuspectError(
            f"this key compares answers with vectors of width {width}, but the suspect's have width {rows.shape[1]}: "
            "this scheme cannot score it"
        )
    if not np.isfinite(rows).all():
        raise SuspectError("the suspect answered with values that are not finite")
    return rows


def log2_pvalue(pvalue: float) -> float:
    """Return the base-2 logarithm of a p-value, in bits; one that underflowed counts as 2^-1022."""
    return math.log2(min(1.0, max(pvalue, float(np.finfo(np.float64).tiny))))
