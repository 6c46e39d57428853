"""What a peer is: a published scheme, rebuilt from its paper, that scores suspects by its own statistic.

A peer's p-value is not trusted here: it is reported as published, beside a rank among controls. Its keys live as long
as a benchmark does and are not kept in files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Encoder
from sslguard.schemes.base import Key, Scheme
from sslguard.schemes.queries import asked, drawn

Array = NDArray[np.float64]


class Peer(Scheme):
    """A scheme of others. Its keys are made again from the secret; its training, if any, is always the same.

    Attributes:
        trains: Whether it trains what it serves, and so has use for a checkpoint.
    """

    trains: ClassVar[bool] = False


@dataclass(frozen=True, eq=False, repr=False)
class ComparingKey(Key):
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
        return asked(data, drawn(self.secret.stream(self.scheme, data.spec.encode()), data, self.n))

    def own(self, data: Data) -> Array:
        """Return the clean encoder's answers to the queries, (n, d); the last set's are kept."""
        if data.spec not in self._embedded:
            answers = [self.clean.embed(batch) for batch in self.queries(data)]
            self._embedded.clear()
            self._embedded[data.spec] = np.concatenate(answers).astype(np.float64)
        return self._embedded[data.spec]


def log2_pvalue(pvalue: float) -> float:
    """Return the base-2 logarithm of a p-value, in bits; one that underflowed counts as 2^-1022."""
    return math.log2(min(1.0, max(pvalue, float(np.finfo(np.float64).tiny))))
