"""Pictures in `.npy` and `.npz` files, memory-mapped. Nothing here unpickles."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sslguard.data.cache import unpacked
from sslguard.data.names import NPZ_SPLITS
from sslguard.data.sources import ArrayData
from sslguard.errors import DataError, first_line

_CHANNELS = (1, 3)
_CHUNK = 1 << 20
_MAX_HEADER = 1 << 16  # bytes of the description in a .npy file
_DEFLATE_RATIO = 1032

# split → names of the picture array, each with the names that its labels may have
_MEMBERS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    # arr_0 and arr_1 are numpy.savez's own names.
    "": (("images", ("labels", "y")), ("x", ("y", "labels")), ("arr_0", ("arr_1",))),
    **{split: ((f"x_{split}", (f"y_{split}",)), (f"{split}_images", (f"{split}_labels",))) for split in NPZ_SPLITS},
}


def open_npy(spec: str, path: Path) -> ArrayData:
    """Open a `.npy` file of pictures, memory-mapped: see `as_pictures` for its shapes.

    Raises:
        DataError: it is not an array of pictures.
    """
    try:
        _check_plain(path)
        with path.open("rb") as file:
            check_header(file)
        with np.errstate(over="ignore"):  # a shape that overflows is refused below
            array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a hostile header may fail in any step of numpy's parser
        raise DataError(f"{path} cannot be read as a .npy array: {first_line(error)}") from error
    return ArrayData(spec, as_pictures(array, str(path)), None, origin=str(path.resolve()))


def _check_plain(path: Path) -> None:
    if not path.is_file():
        raise ValueError("it is not a plain file")  # a pipe would block


def check_header(file: IO[bytes]) -> None:
    """Refuse a .npy file whose description is too long to be one: numpy reads it whole before it looks at it.

    Args:
        file: the open file; it is left at its begin.

    Raises:
        ValueError: the description is too long, or the file is no .npy file.
    """
    version = np.lib.format.read_magic(file)
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    file.seek(0)
    if length > _MAX_HEADER:
        raise ValueError(f"its description has {length:,} bytes, more than the {_MAX_HEADER:,} that are read")


def open_npz(spec: str, path: Path, split: str = "", name: str = "") -> ArrayData:
    """Open the picture array of an `.npz` file, and its labels where it has some.

    Names: `images` or `x` with `labels` or `y`; `arr_0` with `arr_1`; `x_train` with `y_train` or `train_images` with
    `train_labels`, and likewise for val and test. An archive with several of them is opened by its split:
    `FILE.npz:train`. Of other names one array of pictures is enough, or `FILE.npz#NAME` says which.
    The pictures are unpacked into the cache once and mapped from there.

    Raises:
        DataError: no such array, several of them, or one that is damaged.
    """
    try:
        _check_plain(path)
        with zipfile.ZipFile(path) as archive:
            pictures, labels = _chosen(path, archive, split, name)
            shape, dtype = _checked_header(path, archive, pictures)
            # Before anything is unpacked: what is no picture, or has labels that do not fit, costs nothing.
            _channel_axis(shape, dtype, what := f"{path}, array {pictures}")
            classes = None if labels is None else _labels(path, archive, labels, shape[0])
            size = archive.getinfo(f"{pictures}.npy").file_size
    except DataError:
        raise
    except Exception as error:  # a hostile archive may fail in any step of its parsers
        raise DataError(f"{path} cannot be read as an .npz archive: {first_line(error)}") from error
    array = unpacked([path], pictures, lambda: (size, _pieces(path, pictures)))
    return ArrayData(spec, as_pictures(array, what), classes, origin=f"{path.resolve()}#{pictures}")


def as_pictures(array: NDArray[Any], what: str) -> NDArray[Any]:
    """Return a view (n, C, H, W) of an array (n, H, W), (n, C, H, W) or (n, H, W, C) with C 1 or 3.

    Raises:
        DataError: another dtype than uint8 and floats, another rank, no items, or an ambiguous shape.
    """
    channels = _channel_axis(array.shape, array.dtype, what)
    return array[:, None] if channels is None else np.moveaxis(array, channels, 1)


def _channel_axis(shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> int | None:
    """Return 1, 3, or None where pictures have no axis of channels. Raises as `as_pictures`."""
    if dtype != np.uint8 and not (dtype.kind == "f" and dtype.itemsize <= 8):
        raise DataError(f"{what}: pictures must be uint8, or floating in [0, 1], not {dtype}")
    if len(shape) not in (3, 4):
        raise DataError(f"{what}: pictures have shape (n, H, W), (n, C, H, W) or (n, H, W, C), not {shape}")
    if 0 in shape:
        raise DataError(f"{what} holds no pictures: its shape is {shape}")
    if len(shape) == 3:
        if shape[2] in _CHANNELS:
            raise DataError(
                f"{what}: shape {shape} may be one colour picture or {shape[0]} grey ones; give it four axes"
            )
        return None
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    if first == last:
        problem = "may be (n, C, H, W) and (n, H, W, C)" if first else "has neither C = 1 nor C = 3 channels"
        raise DataError(f"{what}: shape {shape} {problem}; save it as (n, C, H, W), C 1 or 3, W neither")
    return 1 if first else 3


def _chosen(path: Path, archive: zipfile.ZipFile, split: str, name: str) -> tuple[str, str | None]:
    """Return the names of the picture array and of its labels (None where it has none)."""
    present = [member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy")]
    listed = ", ".join(sorted(present)[:12]) or "no arrays"
    if name:
        if name not in present:
            raise DataError(f"{path} has no array {name!r:.80}; it holds {listed}")
        return name, None
    wanted = [entry for key, entries in _MEMBERS.items() if split in ("", key) for entry in entries]
    found = [(pictures, labels) for pictures, labels in wanted if pictures in present]
    if len(found) == 1:
        pictures, labels = found[0]
        return pictures, next((label for label in labels if label in present), None)
    if not found and not split and len(present) == 1:
        return present[0], None
    if not found:
        names = ", ".join(pictures for pictures, _ in wanted)
        raise DataError(
            f"{path} must hold pictures as one of the arrays {names}; it holds {listed}. "
            "FILE.npz#NAME names another one"
        )
    raise DataError(
        f"{path} holds several arrays of pictures ({', '.join(pictures for pictures, _ in found)}): "
        f"name one as FILE.npz:SPLIT, SPLIT one of {', '.join(NPZ_SPLITS)}, or keep one"
    )


def _pieces(path: Path, name: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            while piece := file.read(_CHUNK):
                yield piece
    except Exception as error:  # nothing that goes wrong here may be mistaken for a full cache
        raise DataError(f"{path}, array {name}, cannot be unpacked: {first_line(error)}") from error


def _labels(path: Path, archive: zipfile.ZipFile, name: str, n: int) -> NDArray[np.int64]:
    """Return classes (n,), from an array (n,) or (n, 1) of whole numbers that are at least 0."""
    shape, dtype = _checked_header(path, archive, name)
    if shape not in ((n,), (n, 1)) or dtype.kind not in "iu":
        raise DataError(f"{path}, array {name}: labels must be whole numbers of shape ({n},), not {dtype} of {shape}")
    with archive.open(f"{name}.npy") as file:
        labels = np.lib.format.read_array(file, allow_pickle=False).reshape(n).astype(np.int64)
    if labels.min() < 0:
        raise DataError(f"{path}, array {name}: labels must be at least 0, not {labels.min()}")
    return labels


def _checked_header(path: Path, archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of a member, once its size is the one its header describes and its archive can hold."""
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as file:
        shape, dtype = _header(file)
        expected = file.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise DataError(f"{path}, array {name}, holds pickled objects, which are never loaded")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}, array {name}: save it with numpy.savez or numpy.savez_compressed")
    # The central directory's word is not enough: it may claim what no file of this size can hold.
    if entry.file_size != expected or expected > path.stat().st_size * _DEFLATE_RATIO:
        raise DataError(f"{path}, array {name}, promises shape {shape} and cannot hold it: it is damaged")
    return shape, dtype


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    check_header(file)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the .npy format is not one that pictures are written in")
    shape, _, dtype = readers[version](file)
    return shape, dtype
