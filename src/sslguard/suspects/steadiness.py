"""Checks whether a suspect gives the same answer to the same query: at once, and after everything else was asked.

Answers that differ at once show how far the suspect is from deterministic. Answers that agreed at once and differ at
the end show that another model answers now. Nothing is decided here: a verdict uses the first answer to each query,
whatever came later.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Batch
from sslguard.encoders.base import Embedder
from sslguard.errors import SuspectError, UsageError

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
    """A record of a few queries and their answers, which asks these queries again.

    The first queries are kept and asked again at once. One query each of batches 2, 4, 8 … is kept as well. All kept
    queries are asked again at the end.

    Attributes:
        again: Embedder that is asked again.
        n: Number of first queries to keep; 0 asks nothing again.
        at_once: Comparison at once; None if nothing was asked or answered.
        at_end: Comparison at the end; None if nothing was asked or answered.
        n_changed: Queries whose answers differed more at the end than noise explains.
    """

    def __init__(self, again: Embedder, n: int = 4) -> None:
        """Keep nothing yet.

        Args:
            again: Embedder to ask again. It must not answer from a cache.
            n: Number of first queries to keep, at least 0.
        """
        if n < 0:
            raise UsageError(f"the number of queries that are asked again must be at least 0, not {n}")
        self.again, self.n = again, n
        self.at_once: Agreement | None = None
        self.at_end: Agreement | None = None
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
        if number == 1 and self._items:
            self.at_once = _agreement(self._distances())

    def finish(self) -> None:
        """Ask all kept queries again, and fill in `at_end` and `n_changed`."""
        if not self._items:
            return
        distances = self._distances()
        self.at_end = _agreement(distances)
        noise = 0.0 if self.at_once is None else self.at_once.worst
        self.n_changed = int((distances > TOLERANCE + 3 * noise).sum())

    def _distances(self) -> NDArray[np.float64]:
        """Return 1 − cosine of each answer and its repetition, (n,).

        It is −1 where both are equal. The array is empty if no repetition was answered.
        """
        try:
            later = self.again.embed(_batch(self._items))
        except SuspectError:
            return np.empty(0)
        first = np.stack(self._first).astype(np.float64)
        if later.shape != first.shape:
            return np.full(len(first), 2.0)
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(later.astype(np.float64), axis=1)
        cosines = (first * later).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
        return np.where((first == later).all(axis=1), -1.0, np.clip(1 - cosines, 0, 2))


def _agreement(distances: NDArray[np.float64]) -> Agreement | None:
    if not len(distances):
        return None
    sizes = np.maximum(distances, 0)
    return Agreement(len(distances), float(np.median(sizes)), float(sizes.max()), int((distances < 0).sum()))


def _batch(items: list[Tensor | str]) -> Batch:
    texts = [item for item in items if isinstance(item, str)]
    if texts:
        return texts
    images = [item for item in items if isinstance(item, Tensor)]
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images
