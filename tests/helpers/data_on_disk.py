"""Small data sets in their formats on disk, for the tests of data."""

from __future__ import annotations

import gzip
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sslguard.data import sources
from sslguard.data.base import Data


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty data root and cache, no installed data, no network."""

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(sources, "SYSTEM_FASHION_MNIST", tmp_path / "no-system-package")
    monkeypatch.setenv("SSLGUARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SSLGUARD_DATA", str(tmp_path / "root"))
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Return random bytes of this shape."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def everything(data: Data) -> Any:
    """Return all items as one batch."""
    return data.take(range(len(data)))


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write pixels as an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def idx(array: np.ndarray) -> bytes:
    """Return an array as the bytes of an IDX file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, *, packed: bool, n: int = 7, seed: int = 0) -> np.ndarray:
    """Write a small set in MNIST's format, and return its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures, labels = noise(n, 28, 28, seed=seed), np.arange(n, dtype=np.uint8) % 10
    for prefix in ("train", "t10k"):
        for name, array in (("images-idx3", pictures), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{name}-ubyte"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(idx(array)))
            else:
                path.write_bytes(idx(array))
    return pictures


def accept_any_checksum(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Small files cannot have the published MD5 sums that torchvision compares: that they exist is enough."""
    monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: Path(path).is_file())
