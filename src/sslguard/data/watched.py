"""Fingerprints of the items that took part in marking, for a verification that must not ask about them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Batch, Data, Extent
from sslguard.errors import UsageError

Fingerprints = NDArray[np.int64]
"""The first 8 bytes of each item's SHA-256, in increasing order, each once."""

MAX_FINGERPRINTS = 1 << 16
"""Of more items the smallest fingerprints are kept: half a megabyte, and a fair sample of the items."""
NOTHING: Fingerprints = np.empty(0, np.int64)


def digest(item: Tensor | str) -> bytes:
    """Return the SHA-256 of an item: of a text's UTF-8, or of an image's dtype, shape and values."""
    if isinstance(item, str):
        return hashlib.sha256(b"text\0" + item.encode("utf-8", "surrogatepass")).digest()
    array = np.ascontiguousarray(item.detach().cpu().numpy())
    return hashlib.sha256(f"{array.dtype.str}{array.shape}\0".encode() + array.tobytes()).digest()


class Watched(Data):
    """A data set that keeps the fingerprints of all items that are taken from it.

    Args:
        whole: The data set.
        known: Fingerprints of the items that took part in marking.
        allowed: Whether items that took part in marking may be taken. If not, taking one raises `UsageError`.

    Attributes:
        spec: The text that opens the data set again.
    """

    def __init__(self, whole: Data, known: Fingerprints = NOTHING, *, allowed: bool = True) -> None:
        self.whole, self.spec, self.labels = whole, whole.spec, whole.labels
        self._known, self._allowed = known, allowed
        self._seen = np.zeros(len(whole), bool)
        self._fingerprints = np.zeros(len(whole), np.int64)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.whole)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Batch:
        """Return the items at `indices`, as one batch.

        Raises:
            UsageError: One of them took part in marking, and that is not allowed.
        """
        index = self.positions(indices)
        batch = self.whole.take(index)
        for place, item in zip(index, batch, strict=True):
            if not self._seen[place]:
                self._fingerprints[place] = _fingerprint(item)
        self._seen[index] = True
        if not self._allowed and self.n_known:
            raise UsageError(
                f"of the first {self._seen.sum():,} items of {self.spec} that a suspect is asked about, {self.n_known} "
                "took part in marking, where the mark shows better than on others: give other data (`verify` may ask "
                "about them with --allow-overlap, and then names the overlap)"
            )
        return batch

    def take_all(self) -> None:
        """Take every item, so that the fingerprints are those of the whole set."""
        for _ in self.batches(256):
            pass

    @property
    def n_known(self) -> int:
        """Return how many of the items that were taken are known to have taken part in marking."""
        return int(np.isin(self._fingerprints[self._seen], self._known).sum())

    @property
    def fingerprints(self) -> Fingerprints:
        """Return those of the items that were taken, at most the 65,536 smallest."""
        return np.unique(self._fingerprints[self._seen])[:MAX_FINGERPRINTS]

    def extent_of(self, start: int, stop: int) -> Extent:
        """Return which items of that origin the items start ≤ i < stop are made from."""
        return self.whole.extent_of(start, stop)

    def identity(self) -> dict[str, Any]:
        """Return what tells this set from another of the same name."""
        return self.whole.identity()


def _fingerprint(item: Tensor | str) -> int:
    if isinstance(item, Tensor) and item.is_floating_point():
        item = (item * 255).round().to(torch.uint8)  # as queries are asked
    return int.from_bytes(digest(item)[:8], "little", signed=True)
