"""Items that stay in memory, for whoever takes them several times: drawing one costs more than keeping it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Batch, Data, Extent, as_batch

MOST = 1 << 28
"""Bytes of items that are kept."""
_AROUND = 512  # bytes that an item takes besides its own


class Kept(Data):
    """A data set that keeps the items taken from it in memory, the first ones up to a number of bytes.

    Args:
        whole: The data set.
        most: Bytes that are kept at most.

    Attributes:
        spec: The text that opens the data set again.
    """

    def __init__(self, whole: Data, most: int = MOST) -> None:
        self.whole, self.spec, self.labels = whole, whole.spec, whole.labels
        self._items: dict[int, Any] = {}
        self._left = most

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.whole)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Batch:
        """Return the items at `indices`, as one batch; those that were taken before come from memory."""
        places = self.positions(indices).tolist()
        missing = [place for place in dict.fromkeys(places) if place not in self._items]
        if not missing:
            return as_batch([self._items[place] for place in places])
        taken = self.whole.take(missing)
        if len(missing) == len(places):
            found: Batch = taken
        else:
            new = dict(zip(missing, taken, strict=True))
            found = as_batch([new[place] if place in new else self._items[place] for place in places])
        for place, item in zip(missing, taken, strict=True):
            size = _AROUND + (item.nbytes if isinstance(item, Tensor) else len(item))
            if size > self._left:
                break
            # A part of a batch would keep all of the batch.
            self._items[place] = item.clone() if isinstance(item, Tensor) else item
            self._left -= size
        return found

    def extent_of(self, start: int, stop: int) -> Extent:
        """Return which items of that origin the items start ≤ i < stop are made from."""
        return self.whole.extent_of(start, stop)

    def identity(self) -> dict[str, Any]:
        """Return what tells this set from another of the same name."""
        return self.whole.identity()
