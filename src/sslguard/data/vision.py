"""The paper's data sets, in the layouts that torchvision downloads and reads, under the data root.

| set | under the data root |
|---|---|
| stl10 | `stl10_binary/{train,test}_{X,y}.bin`, `stl10_binary/unlabeled_X.bin` |
| cifar10 | `cifar-10-batches-py/data_batch_{1..5}`, `test_batch`, `batches.meta` |
| svhn | `svhn/{train,test,extra}_32x32.mat` |
| gtsrb, train | `gtsrb/GTSRB/Training/{00000..00042}/*.ppm` |
| gtsrb, test | `gtsrb/GTSRB/Final_Test/Images/*.ppm`, `gtsrb/GT-final_test.csv` |
| imagenet | `imagenet/{train,val}/CLASS/*.JPEG` |

What is missing is downloaded by torchvision, except ImageNet. STL-10 is mapped where it lies; CIFAR-10 and
SVHN are read by torchvision, which checks their published MD5 sums before it unpickles anything, and unpacked
into the cache, so that only the first opening holds a whole split; GTSRB and ImageNet are decoded a file at a
time.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Data, Joined
from sslguard.data.cache import npy_stream, unpacked
from sslguard.data.download import from_torchvision
from sslguard.data.folders import ImageFiles, open_folder
from sslguard.data.places import data_root
from sslguard.data.sources import ArrayData
from sslguard.errors import DataError

_STL_SHAPE = (3, 96, 96)
_STL_TRAIN = 5000  # train+unlabeled counts its items on from here


def stl10(split: str) -> Data:
    """Open STL-10 (Coates et al. 2011), colour 96×96: 5,000 train, 8,000 test (10 classes), 100,000 unlabeled.

    `train+unlabeled` is both, in that order, without labels.
    """
    root = data_root()
    folder = root / "stl10_binary"
    names = split.split("+")
    if not all((folder / f"{name}_X.bin").is_file() for name in names):
        wanted = f"the files of stl10_binary.tar.gz into {folder}"
        from_torchvision(f"stl10:{split}", "STL10", root, wanted, split="test", download=True)
    parts = [_stl10_part(folder, name) for name in names]
    return parts[0] if len(parts) == 1 else Joined(parts, f"stl10:{split}")


def _stl10_part(folder: Path, name: str) -> ArrayData:
    raw = _bytes(folder / f"{name}_X.bin")
    size = int(np.prod(_STL_SHAPE))
    if len(raw) % size:
        raise DataError(f"{folder / name}_X.bin has {len(raw)} bytes, not a multiple of {size}: it is cut off")
    # The file runs down the columns of each channel.
    pictures = raw.reshape(-1, *_STL_SHAPE).transpose(0, 1, 3, 2)
    spec = f"stl10:{name}"
    if name == "test":
        return ArrayData(spec, pictures, _stl10_labels(folder / "test_y.bin", len(pictures)))
    origin = "stl10:train+unlabeled"
    if name == "unlabeled":
        return ArrayData(spec, pictures, None, origin=origin, offset=_STL_TRAIN)
    if len(pictures) > _STL_TRAIN:
        raise DataError(f"{folder / name}_X.bin holds {len(pictures)} pictures, and STL-10 has {_STL_TRAIN}")
    return ArrayData(spec, pictures, _stl10_labels(folder / "train_y.bin", len(pictures)), origin=origin)


def _stl10_labels(path: Path, n: int) -> NDArray[np.int64]:
    labels = _bytes(path).astype(np.int64) - 1
    if len(labels) != n or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path} must hold {n} labels from 1 to 10, one byte each")
    return labels


def _bytes(path: Path) -> NDArray[np.uint8]:
    try:
        return np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be mapped: {error}") from error


def cifar10(split: str) -> ArrayData:
    """Open CIFAR-10 (Krizhevsky 2009), colour 32×32, 10 classes: 50,000 train, 10,000 test."""
    root, train = data_root(), split == "train"
    folder = root / "cifar-10-batches-py"
    files = [folder / f"data_batch_{k}" for k in range(1, 6)] if train else [folder / "test_batch"]

    def load(download: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """Read the network."""
        wanted = f"the files of cifar-10-python.tar.gz, unchanged, into {folder}"
        found = from_torchvision(f"cifar10:{split}", "CIFAR10", root, wanted, train=train, download=download)
        return found.data.transpose(0, 3, 1, 2), np.asarray(found.targets, dtype=np.int64)

    return _converted(f"cifar10:{split}", files, load)


def svhn(split: str) -> ArrayData:
    """Open SVHN (Netzer et al. 2011), colour 32×32, 10 digits: 73,257 train, 26,032 test, 531,131 extra."""
    folder = data_root() / "svhn"
    file = folder / f"{split}_32x32.mat"

    def load(download: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """Read the network."""
        wanted = f"{file.name}, unchanged, into {folder}"
        found = from_torchvision(f"svhn:{split}", "SVHN", folder, wanted, split=split, download=download)
        return found.data, found.labels.astype(np.int64)

    return _converted(f"svhn:{split}", [file], load)


def _converted(
    spec: str, files: Sequence[Path], load: Callable[[bool], tuple[NDArray[Any], NDArray[Any]]]
) -> ArrayData:
    """Return what torchvision loads whole, unpacked into the cache once and mapped from there.

    `load(download)` gives pictures (n, C, H, W) and labels (n,).
    """
    missing = not all(file.is_file() for file in files)
    once = functools.cache(lambda: load(missing))
    if missing:
        once()
    pictures = unpacked(files, f"{spec} pictures", lambda: npy_stream(once()[0]))
    labels = unpacked(files, f"{spec} labels", lambda: npy_stream(once()[1]))
    return ArrayData(spec, pictures, np.array(labels))


def gtsrb(split: str) -> ImageFiles:
    """Open GTSRB (Stallkamp et al. 2012), 43 traffic signs, colour of many sizes: 26,640 train, 12,630 test."""
    root, spec = data_root(), f"gtsrb:{split}"
    base = root / "gtsrb"
    folder = base / "GTSRB" / ("Training" if split == "train" else "Final_Test/Images")
    listing = base / "GT-final_test.csv"
    if not folder.is_dir() or (split == "test" and not listing.is_file()):
        wanted = f"the pictures into {folder}" + (f" and their listing into {listing}" if split == "test" else "")
        from_torchvision(spec, "GTSRB", root, wanted, split=split, download=True)
    if split == "train":
        return open_folder(spec, folder, origin=spec, extensions=(".ppm",))
    names, labels = _gtsrb_listing(listing)
    return ImageFiles(spec, folder, names, labels, origin=spec)


def _gtsrb_listing(path: Path) -> tuple[list[str], NDArray[np.int64]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                (row["Filename"], int(row["ClassId"]))
                for row in csv.DictReader(file, delimiter=";", skipinitialspace=True)
            ]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{path} must be a table with the columns Filename and ClassId: {error!r}") from error
    if not rows or any(Path(name).name != name or label < 0 for name, label in rows):
        raise DataError(f"{path} must list file names without folders, and classes of at least 0")
    return [name for name, _ in rows], np.array([label for _, label in rows], dtype=np.int64)


def imagenet(split: str) -> ImageFiles:
    """Open ImageNet (ILSVRC 2012), 1,000 classes, many sizes: one folder a class, named by its WordNet id.

    That is what `torchvision.datasets.ImageNet(ROOT/imagenet)` unpacks the original archives to, and its
    order of classes. Its licence asks every user to fetch it, so it is never downloaded here.
    """
    spec, folder = f"imagenet:{split}", data_root() / "imagenet" / split
    if not folder.is_dir():
        raise DataError(
            f"{spec} is never downloaded: put its pictures, one folder a class, into {folder}, "
            "or set SSLGUARD_DATA to the folder that has imagenet/ in it"
        )
    return open_folder(spec, folder, origin=spec)
