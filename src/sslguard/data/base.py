"""What a data set is here: items by index, in batches, labels beside them, and where they came from.

A `Batch` is whatever the encoder's preprocessing takes. Images of one size come as a uint8 tensor
(n, C, H, W), images of several sizes as a list of uint8 tensors (C, H, W), texts as a list of strings.
Float images must lie in [0, 1]. Memory is bounded by the batch: items are read when they are asked for.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, stack

from sslguard.errors import DataError, UsageError

Batch: TypeAlias = "Tensor | list[Tensor] | list[str]"
_SAMPLED = 64


def as_batch(items: Sequence[Tensor | str]) -> Batch:
    """Return items as a batch: texts as a list, images of one shape and dtype as one tensor, others as a list."""
    texts = [item for item in items if isinstance(item, str)]
    if texts:
        return texts
    images = [item for item in items if isinstance(item, Tensor)]
    alike = len({(image.shape, image.dtype) for image in images}) == 1
    return stack(images) if alike else images


def picked(batch: Batch, places: Sequence[int]) -> Batch:
    """Return the items of a batch at `places`, in that order."""
    if isinstance(batch, Tensor):
        return batch[list(places)]
    return [batch[place] for place in places]  # type: ignore[return-value]


@dataclass(frozen=True)
class Extent:
    """The items of one origin that a data set is made from: indices start ≤ i < stop of `origin`."""

    origin: str
    start: int
    stop: int


class Data(ABC):
    """A finite, indexable data set.

    Attributes:
        spec: the text that opens it again.
        labels: the class of each item, int64 (len,), or None where the set has no labels.
    """

    spec: str
    labels: NDArray[np.int64] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of items."""

    @abstractmethod
    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Batch:
        """Return the items at `indices` (0 ≤ i < len), in that order, as one batch."""

    @abstractmethod
    def extent_of(self, start: int, stop: int) -> Extent:
        """Return which items of which origin the items start ≤ i < stop are made from.

        An overlap may be overstated, never missed: a set in an order of its own may name its whole origin.
        """

    def extent(self) -> Extent:
        """Return which items of which origin this set is made from: what disjointness is decided on."""
        return self.extent_of(0, len(self))

    def positions(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        """Return `indices` as int64, each one checked to be an item: 0 ≤ i < len.

        Without the check an index beyond a slice would quietly read its neighbour's items.

        Raises:
            UsageError: indices are not one row of whole numbers, or one lies outside.
        """
        index = np.asarray(indices)
        if index.ndim != 1 or (len(index) and index.dtype.kind not in "iu"):
            raise UsageError(f"indices must be one row of whole numbers, not {index.dtype} of shape {index.shape}")
        index = index.astype(np.int64)
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise UsageError(
                f"{self.spec} has the items 0 to {len(self) - 1}; asked for {index.min()} to {index.max()}"
            )
        return index

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield the items in order, `size` at a time; the last batch may be smaller."""
        if size < 1:
            raise UsageError(f"batch size must be at least 1, not {size}")
        for start in range(0, len(self), size):
            yield self.take(range(start, min(start + size, len(self))))

    def identity(self) -> dict[str, Any]:
        """Return what tells this set from another of the same name, as JSON values.

        They are its size, and a hash of its labels and of 64 items from all over it: a file that was written again
        under its name is another set.
        """
        digest, places = hashlib.sha256(), np.unique(np.linspace(0, max(len(self) - 1, 0), _SAMPLED).astype(np.int64))
        for item in self.take(places) if len(self) else []:
            if isinstance(item, str):
                digest.update(b"text " + item.encode("utf-8", "surrogatepass"))
            else:
                digest.update(f"{item.dtype} {tuple(item.shape)}".encode() + item.cpu().contiguous().numpy().tobytes())
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        return {"spec": self.spec, "items": len(self), "sample": digest.hexdigest()}

    def slice(self, start: int | None, stop: int | None) -> Data:
        """Return the items start ≤ i < stop.

        Raises:
            DataError: The slice is empty or leaves the set: silently fewer items would mislead.
        """
        begin = 0 if start is None else start
        end = len(self) if stop is None else stop
        if not 0 <= begin < end <= len(self):
            raise DataError(
                f"{self.spec} has {len(self)} items: the slice [{begin}:{end}] must satisfy "
                f"0 <= start < stop <= {len(self)}"
            )
        return Slice(self, begin, end)


class Slice(Data):
    """Contiguous items of another data set."""

    def __init__(self, whole: Data, start: int, stop: int) -> None:
        """Keep the set and the bounds, which `Data.slice` has checked."""
        self.whole, self.start, self.stop = whole, start, stop
        self.spec = f"{whole.spec}[{start}:{stop}]"
        self.labels = None if whole.labels is None else whole.labels[start:stop]

    def __len__(self) -> int:
        """Return the number of items."""
        return self.stop - self.start

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Batch:
        """Return the items at `indices`, as one batch."""
        return self.whole.take(self.positions(indices) + self.start)

    def extent_of(self, start: int, stop: int) -> Extent:
        """Return which items of that origin the items start ≤ i < stop are made from."""
        return self.whole.extent_of(self.start + start, self.start + stop)


class Chosen(Data):
    """Some items of another data set, in any order."""

    def __init__(self, whole: Data, indices: Sequence[int] | NDArray[np.integer], spec: str) -> None:
        """Keep the set and the indices of its items."""
        self.whole, self.indices, self.spec = whole, np.asarray(indices, np.int64), spec
        self.labels = None if whole.labels is None else whole.labels[self.indices]

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.indices)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Batch:
        """Return the items at `indices`, as one batch."""
        return self.whole.take(self.indices[self.positions(indices)])

    def extent_of(self, start: int, stop: int) -> Extent:
        """Return all items of the origin between the first and the last of those that are chosen here."""
        chosen = self.indices[start:stop]
        return self.whole.extent_of(int(chosen.min()), int(chosen.max()) + 1)


def without_unreadable(data: Data) -> tuple[Data, list[str]]:
    """Return the items that can be read, and one message for each that cannot.

    Every item is read once.

    Raises:
        DataError: no item can be read.
    """
    good: list[int] = []
    bad: list[str] = []
    for index in range(len(data)):
        try:
            data.take([index])
        except DataError as error:
            bad.append(str(error))
        else:
            good.append(index)
    if not good:
        raise DataError(f"none of the {len(data)} items of {data.spec} can be read; the first: {bad[0]}")
    return (Chosen(data, good, data.spec) if bad else data), bad


class Joined(Data):
    """The items of several data sets, one set after the other. Labels are those of the parts, where all have them."""

    def __init__(self, parts: Sequence[Data], spec: str | None = None) -> None:
        self.parts = tuple(parts)
        self.spec = spec or " + ".join(part.spec for part in self.parts)
        if len({isinstance(part.take([0])[0], str) for part in self.parts}) > 1:
            raise DataError(f"{self.spec} joins pictures and texts: join sets of one kind")
        self._ends = np.cumsum([len(part) for part in self.parts])
        labels = [part.labels for part in self.parts if part.labels is not None]
        self.labels = np.concatenate(labels) if len(labels) == len(self.parts) else None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Batch:
        """Return the items at `indices`, each from the set that holds it."""
        index = self.positions(indices)
        items: dict[int, Any] = {}
        which = np.searchsorted(self._ends, index, side="right")
        for number in np.unique(which):
            places = np.flatnonzero(which == number)
            part = self.parts[number]
            taken = part.take(index[places] - (self._ends[number] - len(part)))
            items.update(zip(places.tolist(), taken, strict=True))
        return as_batch([items[place] for place in range(len(index))])

    def slice(self, start: int | None, stop: int | None) -> Data:
        """Return the items start ≤ i < stop, as slices of the parts: `overlap` asks each part for its origin."""
        bounds = range(len(self))[start:stop]
        super().slice(start, stop)
        parts = []
        for part, end in zip(self.parts, self._ends.tolist(), strict=True):
            first = end - len(part)
            low, high = max(bounds.start - first, 0), min(bounds.stop - first, len(part))
            if low < high:
                parts.append(part.slice(low, high))
        return Joined(parts)

    def extent_of(self, start: int, stop: int) -> Extent:
        """Return items of this set: `overlap` asks its parts."""
        return Extent(self.spec, start, stop)


def overlap(one: Data, other: Data) -> int:
    """Return how many items of their common origin both sets may be made from (0 for different origins).

    An origin is a named set or a resolved path: copies of the same pictures under two paths are two origins.
    """
    for joined, single in ((one, other), (other, one)):
        if isinstance(joined, Joined):
            return sum(overlap(part, single) for part in joined.parts)
    a, b = one.extent(), other.extent()
    if a.origin != b.origin:
        return 0
    return max(0, min(a.stop, b.stop) - max(a.start, b.start))


def check_unseen(asked: Data, *trained_on: Data) -> None:
    """Raise UsageError if verification would ask about items that somebody trained on."""
    for other in trained_on:
        if shared := overlap(other, asked):
            raise UsageError(
                f"{other.spec} and {asked.spec} share {shared} items: verification takes items that nobody trained on"
            )
