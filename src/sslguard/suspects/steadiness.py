"""Whether a suspect answers the same when it is asked the same: at once, and when everything else has been asked.

Answers that differ at once measure how far the suspect is from deterministic. Answers that agreed at once and differ at
the end show that another model answers now. Nothing is decided here: a verdict stands on the first answer to each
query, whatever came later.
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
"""A distance, 1 − cosine, that arithmetic in half precision stays below."""


@dataclass(frozen=True)
class Agreement:
    """First and later answers to the same queries.

    Attributes:
        n: queries that were asked again and answered.
        median, worst: of 1 − cosine between both answers, in [0, 2].
        n_equal: answers that were the same bit by bit.
    """

    n: int
    median: float
    worst: float
    n_equal: int

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


class Steadiness:
    """Keeps a few queries with their answers and asks them again.

    Kept are the first ones, which are asked again at once, and one each of the batches 2, 4, 8 …, which with the first
    ones are asked again at the end.

    Attributes:
        n: how many first queries; 0 asks nothing again.
        at_once, at_end: what was found; None where nothing was asked or answered.
        n_changed: queries whose answers agreed with themselves less at the end than noise explains.
    """

    def __init__(self, again: Embedder, n: int = 4) -> None:
        """Args: again: who is asked again; it must not answer from memory."""
        if n < 0:
            raise UsageError(f"0 or more queries are asked again, not {n}")
        self.again, self.n = again, n
        self.at_once: Agreement | None = None
        self.at_end: Agreement | None = None
        self.n_changed = 0
        self._items: list[Tensor | str] = []
        self._first: list[Answers] = []
        self._batches = 0
        self._lock = threading.Lock()

    def see(self, batch: Batch, answers: Answers, answered: NDArray[np.bool_]) -> None:
        """Note a batch and its answers (n, m); `answered` (n,) says where there is one."""
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
        """Ask everything that was kept again."""
        if not self._items:
            return
        distances = self._distances()
        self.at_end = _agreement(distances)
        noise = 0.0 if self.at_once is None else self.at_once.worst
        self.n_changed = int((distances > TOLERANCE + 3 * noise).sum())

    def _distances(self) -> NDArray[np.float64]:
        """1 − cosine of each answer to its repetition, (n,); −1 where both are the same; () where none came."""
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
