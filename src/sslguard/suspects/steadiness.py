"""Check whether a suspect gives the same answer to the same query, after everything else was asked.

No query is repeated before the last new one: a server that remembers its queries would notice the verification, and
could answer the rest differently. A few queries are asked twice at the end. Two answers at the end that differ show how
far the suspect is from deterministic. A first answer that differs by more shows that another model answers now. Nothing
is decided here: a verdict uses the first answer to each query, whatever came later.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Batch, as_batch
from sslguard.encoders.base import Embedder
from sslguard.errors import SuspectError

Answers = NDArray[np.floating]
TOLERANCE = 0.01
"""Distance, 1 − cosine, below which answers may differ by rounding in half precision."""


@dataclass(frozen=True)
class Agreement:
    """Comparison of first and repeated answers to the same queries.

    Attributes:
        n: Number of queries that were asked again and answered.
        median: Median of 1 − cosine between both answers, in [0, 2].
        worst: Largest 1 − cosine between both answers, in [0, 2].
        n_equal: Number of answers that were equal bit by bit.
    """

    n: int
    median: float
    worst: float
    n_equal: int

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return dict(vars(self))


class Steadiness:
    """A record of a few queries and their answers, which asks these queries again at the end.

    The first queries are kept, and one query each of batches 2, 4, 8 …

    Attributes:
        n: Number of first queries to keep; 0 asks nothing again.
        noise: Comparison of both answers at the end; None if nothing was asked or answered.
        again: Comparison of the first answers with those at the end; None if nothing was asked or answered.
        n_changed: Queries whose first answer differs from that at the end by more than noise explains.
    """

    def __init__(self, again: Embedder, n: int = 4) -> None:
        """Keep nothing yet.

        Args:
            again: Embedder to ask again. It must not answer from a cache.
            n: Number of first queries to keep, at least 0.
        """
        self._asked, self.n = again, n
        self.noise: Agreement | None = None
        self.again: Agreement | None = None
        self.n_changed = 0
        self._items: list[Tensor | str] = []
        self._first: list[Answers] = []
        self._batches = 0
        self._lock = threading.Lock()

    def see(self, batch: Batch, answers: Answers, answered: NDArray[np.bool_]) -> None:
        """Note a batch and its answers.

        Args:
            batch: Queries.
            answers: Answers, (n, m).
            answered: Whether each query was answered, bool (n,).
        """
        if not self.n:
            return
        with self._lock:
            self._batches += 1
            number = self._batches
        if number & (number - 1):
            return
        wanted = self.n if number == 1 else 1
        for i in np.flatnonzero(answered)[:wanted]:
            self._items.append(batch[int(i)])
            self._first.append(answers[i].copy())

    def finish(self) -> None:
        """Ask everything that was kept again, twice."""
        if not self._items:
            return
        first, items = np.stack(self._first), as_batch(self._items)
        with suppress(SuspectError):
            later = self._asked.embed(items)
            changed = _distances(first, later)
            self.again = _agreement(changed)
            self.n_changed = int((changed > TOLERANCE).sum())
            self.noise = _agreement(_distances(later, self._asked.embed(items)))
            self.n_changed = int((changed > TOLERANCE + 3 * self.noise.worst).sum())


def _distances(first: Answers, later: Answers) -> NDArray[np.float64]:
    """Return 1 − cosine of answers (n, m) to their repetitions, (n,): −1 where both are equal, 2 at another width."""
    if later.shape != first.shape:
        return np.full(len(first), 2.0)
    a, b = first.astype(np.float64), later.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return np.where((a == b).all(axis=1), -1.0, np.clip(1 - cosines, 0, 2))


def _agreement(distances: NDArray[np.float64]) -> Agreement:
    sizes = np.maximum(distances, 0)
    return Agreement(len(distances), float(np.median(sizes)), float(sizes.max()), int((distances < 0).sum()))
