"""Data that a program has in memory or loads itself: arrays, tensors, lists, and what `torch.utils.data` knows."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate, default_convert

from sslguard.data.arrays import as_pictures
from sslguard.data.base import Batch, Data, Extent, as_batch
from sslguard.errors import DataError, first_line

MAX_STREAM = 1 << 31
"""Bytes of a data set without an order that are kept in memory."""
_SAMPLED = 32
# What the input of a network is called in samples that are mappings.
_INPUTS = (
    "pixel_values",
    "image",
    "images",
    "img",
    "input_values",
    "inputs",
    "input",
    "x",
    "text",
    "texts",
    "sentence",
)


def own_data(items: Any) -> Data:
    """Return a data set of what a program has in its hands.

    Args:
        items: Array or tensor with a row for each item (images as in `arrays`); list of texts, of images or of arrays;
            a `Dataset` or a `DataLoader` of torch, or anything with a length and items by number. Of a sample that is
            a tuple the first part counts, of a mapping the input. A loader's own `collate_fn` is used; its order, its
            workers and its size of batches are not.

    Raises:
        DataError: There are no items, or they are of no kind that an encoder takes, or change when they are read again.
    """
    if isinstance(items, np.ndarray | Tensor):
        return _Loaded(_rows(items), "items in memory")
    if isinstance(items, DataLoader):
        collate = None if items.collate_fn in (default_collate, default_convert) else items.collate_fn
        return _listed(items.dataset, type(items.dataset).__qualname__, collate)
    if isinstance(items, list | tuple):
        return _listed(items, "items in memory", None)
    return _listed(items, type(items).__qualname__, None)


def _listed(items: Any, name: str, collate: Callable[[Any], Any] | None) -> Data:
    if isinstance(items, IterableDataset):
        items = _kept(items, name)
    if not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
        raise DataError(
            f"data are an array, a tensor, a list, a Dataset with a length, a DataLoader of one, or a text that names "
            f"them; not {items!r:.80}"
        )
    return _Loaded(items, name, collate)


def _kept(stream: Iterable[Any], name: str) -> list[Any]:
    """Return the items of a data set that only runs from begin to end. Raise DataError where they are too many."""
    found, size = [], 0
    for sample in stream:
        item = _item(sample)
        size += item.numel() * item.element_size() if isinstance(item, Tensor) else sys.getsizeof(item)
        if size > MAX_STREAM:
            raise DataError(
                f"{name} is an IterableDataset of more than {MAX_STREAM:,} bytes, which cannot be asked by number: "
                "give a Dataset with a length, or write it to tar shards and name them (wds:shards-{000..099}.tar)"
            )
        found.append(item)
    return found


class _Loaded(Data):
    """Items that are read by number, when they are asked for."""

    def __init__(self, items: Any, name: str, collate: Callable[[Any], Any] | None = None) -> None:
        self._items, self._collate = items, collate
        if len(items) == 0:
            raise DataError(f"{name}: there are no items")
        places = np.unique(np.linspace(0, len(items) - 1, _SAMPLED).astype(np.int64))
        sample = self._digest(places)
        if isinstance(items, np.ndarray | Tensor):
            whole = np.ascontiguousarray(items)
            sample = hashlib.sha256(f"{whole.dtype} {whole.shape}".encode() + whole.tobytes()).hexdigest()
        elif self._digest(places) != sample:
            raise DataError(f"{name} gives other items when it is read again: leave random augmentation out of it")
        self.spec = f"{name} ({len(items)}, sha256 {sample[:16]})"

    def _digest(self, places: NDArray[np.int64]) -> str:
        digest = hashlib.sha256()
        for item in self.take(places):
            content = item.encode("utf-8", "surrogatepass") if isinstance(item, str) else item.cpu().numpy().tobytes()
            digest.update(len(content).to_bytes(8, "little") + content)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._items)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Batch:
        """Return the items at `indices`, as one batch."""
        index = self.positions(indices).tolist()
        if isinstance(self._items, Tensor):
            return self._items[index]
        try:
            samples = [self._items[place] for place in index]
            if self._collate is None:
                return as_batch([_item(sample) for sample in samples])
            batch = input_of(self._collate(samples))
        except DataError:
            raise
        except Exception as error:  # the user's code
            raise DataError(f"an item cannot be read: {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(batch, Tensor | list | tuple) or len(batch) != len(index):
            raise DataError(f"collate_fn must return a row for each of {len(index)} items, not {batch!r:.80}")
        return batch if isinstance(batch, Tensor) else as_batch([_item(one) for one in batch])

    def extent_of(self, start: int, stop: int) -> Extent:
        """Return the items start ≤ i < stop of this set."""
        return Extent(self.spec, start, stop)


def _rows(items: NDArray[Any] | Tensor) -> Tensor:
    """Return an array as a tensor with a row for each item; pictures as (n, C, H, W)."""
    array = items.detach().cpu().numpy() if isinstance(items, Tensor) else items
    if array.dtype == np.uint8 and array.ndim in (3, 4):
        array = as_pictures(array, "the array")
    elif array.dtype.kind == "f" and array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = np.moveaxis(array, 3, 1)
    if array.ndim < 2 or array.dtype.kind not in "fiu":
        raise DataError(f"an array of items has two axes at least and holds numbers, not {array.dtype} {array.shape}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=_dtype(array.dtype)))


def _dtype(dtype: np.dtype[Any]) -> Any:
    return np.float32 if dtype.kind == "f" else dtype if dtype == np.uint8 else np.int64


def _item(sample: Any) -> Tensor | str:
    """Return the input of a sample: a text, or a tensor; pictures as (C, H, W)."""
    found = input_of(sample)
    if isinstance(found, str | Tensor):
        return found.float() if isinstance(found, Tensor) and found.dtype == torch.float64 else found
    if hasattr(found, "getbands"):  # a picture of Pillow's
        array = np.asarray(found if found.mode == "L" else found.convert("RGB"))
        return torch.from_numpy((array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)).copy())
    if isinstance(found, np.ndarray) and found.dtype.kind in "fiu":
        if found.dtype == np.uint8 and found.ndim in (2, 3):
            return torch.from_numpy(np.ascontiguousarray(as_pictures(found[None], "an item")[0]))
        return torch.from_numpy(np.ascontiguousarray(found, dtype=_dtype(found.dtype)))
    if isinstance(found, list) and found and isinstance(found[0], int | float):
        return torch.tensor(found)
    raise DataError(f"an item must be a text, a tensor, an array or a picture, not {found!r:.80}")


def input_of(sample: Any) -> Any:
    """Return the input of a sample, or of a batch: of a tuple the first part, of a mapping what is called so."""
    if isinstance(sample, Mapping):
        if "input_ids" in sample:
            ids = torch.as_tensor(sample["input_ids"]).long()
            mask = (
                torch.as_tensor(sample["attention_mask"]).long() if "attention_mask" in sample else torch.ones_like(ids)
            )
            return torch.stack((ids, mask), -2)
        return next((sample[name] for name in _INPUTS if name in sample), next(iter(sample.values()), None))
    return input_of(sample[0]) if isinstance(sample, tuple) and sample else sample
