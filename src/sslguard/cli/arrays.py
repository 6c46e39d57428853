"""Arrays that are written to a `.npy` file as they come, so that memory is bounded by the batch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslguard.errors import EncoderError, UsageError
from sslguard.files import atomic_file

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_rows(path: Path) -> None:
    """Raise UsageError unless `path` ends in .npy."""
    if path.suffix != ".npy":
        raise UsageError(f"--out must be a file that ends in .npy, not {path}")


def write_rows(path: Path, n: int, parts: Iterable[NDArray[Any]], *, private: bool = False) -> tuple[int, ...]:
    """Write parts of together `n` rows as one array; the file stands whole or not at all.

    Args:
        path: ends in .npy.
        n: rows of all parts together, at least 1.
        parts: arrays of one dtype and one shape but for their number of rows.
        private: only the owner may read the file.

    Returns:
        The shape of the array, (n, …).

    Raises:
        UsageError: `path` does not end in .npy.
        OutputError: it cannot be written.
        EncoderError: the parts do not fit together.
    """
    import numpy as np

    check_rows(path)
    rows, like = 0, None
    with atomic_file(path, private=private) as file:
        for part in parts:
            if like is None:
                like = part[:0]
                header = {"descr": part.dtype.str, "fortran_order": False, "shape": (n, *part.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            if part.dtype != like.dtype or part.shape[1:] != like.shape[1:]:
                raise EncoderError(f"a batch of {part.dtype} {part.shape} came after ones of {like.dtype} {like.shape}")
            rows += len(part)
            file.write(np.ascontiguousarray(part).tobytes())
        if like is None or rows != n:
            raise EncoderError(f"{rows} rows came where {n} were expected")
    return (n, *like.shape[1:])
