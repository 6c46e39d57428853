"""Where data lies on disk, and how what cannot be memory-mapped as it lies is unpacked there, once."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslguard.data.places import cache_dir
from sslguard.errors import DataError

MAX_IN_MEMORY = 2 * 1024**3  # bytes: beyond, a cache that cannot be written is an error
_BLOCK = 1024  # items written at a time

# The size in bytes of a .npy file, and its content in pieces. Reading errors are raised as DataError, so that
# an OSError met while storing the pieces can only mean the cache.
NpyStream = tuple[int, Iterable[bytes]]


class _CannotStoreError(Exception):
    """The cache folder cannot hold a file; the message says why."""


def unpacked(sources: Sequence[Path], part: str, stream: Callable[[], NpyStream]) -> NDArray[Any]:
    """Return the array that `stream` writes, memory-mapped read-only from `cache_dir()/unpacked`.

    It is written once for each state of its sources (path, size, time of change) and may be deleted at any
    time. Where the cache cannot be written, arrays of up to `MAX_IN_MEMORY` bytes are read into memory.

    Args:
        sources: the files that the array is made from.
        part: which array of these files it is.
        stream: called when the array is not in the cache yet.

    Raises:
        DataError: a source cannot be read, or the array fits neither the cache nor the memory allowed.
    """
    target = cache_dir() / "unpacked" / _name(sources, part)
    if (array := _mapped(target)) is not None:
        return array
    try:
        size, pieces = stream()
        _store(target, size, _exactly(size, pieces, sources[0]))
        if (array := _mapped(target)) is not None:
            return array
        reason = "what was written there cannot be read back"
    except _CannotStoreError as error:
        reason = str(error)
    size, pieces = stream()
    if size > MAX_IN_MEMORY:
        raise DataError(
            f"{sources[0]} unpacks to {size} bytes, and the cache folder {target.parent} cannot hold them "
            f"({reason}): set SSLGUARD_CACHE to a folder with room"
        )
    return np.load(io.BytesIO(b"".join(_exactly(size, pieces, sources[0]))), allow_pickle=False)


def unpacked_file(source: Path, part: str, pieces: Callable[[], Iterator[bytes]]) -> Path:
    """Return a file of the cache that holds what `pieces` yields, written once for each state of its source.

    Args:
        source: the file that it is made from.
        part: what is made of it; its end is the end of the file's name.
        pieces: called when the file is not in the cache yet. Reading errors are raised as DataError.

    Raises:
        DataError: the source cannot be read, or the cache cannot hold the file.
    """
    target = cache_dir() / "unpacked" / f"{_name([source], part)}{Path(part).suffix}"
    if not target.exists():
        try:
            _store(target, 0, pieces())
        except _CannotStoreError as error:
            raise DataError(
                f"{source} must be unpacked, and the cache folder {target.parent} cannot hold it ({error}): set "
                "SSLGUARD_CACHE to a folder with room"
            ) from error
    return target


def npy_stream(array: NDArray[Any]) -> NpyStream:
    """Return `array` (n, …) as a .npy file, C order, a block of items at a time."""
    header = npy_header(array.shape, array.dtype)

    def pieces() -> Iterator[bytes]:
        yield header
        for start in range(0, len(array), _BLOCK):
            yield array[start : start + _BLOCK].tobytes()

    return len(header) + array.nbytes, pieces()


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Return the bytes that come before the content of a C-ordered array in a .npy file."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _exactly(size: int, pieces: Iterable[bytes], source: Path) -> Iterator[bytes]:
    """Yield the pieces, as long as they add up: an archive may lie about the length of what it holds."""
    left = size
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            break
        yield piece
    if left:
        raise DataError(f"{source} promises {size} bytes of content and holds another number of them: it is damaged")


def _name(sources: Sequence[Path], part: str) -> str:
    """Return a name made of the sources' paths, sizes and times: a changed file never meets an old copy."""
    digest = hashlib.sha256(part.encode())
    for source in sources:
        try:
            found = source.stat()
        except OSError as error:
            raise DataError(f"{source} cannot be read: {error.strerror}") from error
        digest.update(f"\0{source.resolve()}\0{found.st_size}\0{found.st_mtime_ns}".encode())
    return f"{sources[0].name}-{digest.hexdigest()[:24]}.npy"


def _mapped(target: Path) -> NDArray[Any] | None:
    """Return the array in `target`, or None where it is missing or was cut off (a crash, a full disk)."""
    try:
        return np.lib.format.open_memmap(target, mode="r")
    except (OSError, ValueError):
        return None


def _store(target: Path, size: int, pieces: Iterable[bytes]) -> None:
    """Write all pieces, then rename: other processes see the whole file or none."""
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(target.parent).free) < size:
            raise _CannotStoreError(f"{free} bytes are free")
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".unpacking-")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
        temporary.replace(target)
    except OSError as error:
        raise _CannotStoreError(error.strerror or str(error)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
