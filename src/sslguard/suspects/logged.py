"""A suspect that was asked elsewhere: its answers were logged, in the order of the queries.

The file is a NumPy array (.npy, never pickled) of floats (n, m), where row i is the answer to query i. A query without
an answer is a row of NaN. It stays in its place as a zero vector and counts as asked: whoever could drop queries after
seeing the answers could keep only those that agree.
"""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslguard.data.arrays import check_header
from sslguard.data.base import Batch
from sslguard.errors import SuspectError, first_line
from sslguard.suspects.base import MAX_WIDTH, checked

# Errors that NumPy's parser is known to raise on bytes that are not a header.
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    OverflowError,
    SyntaxError,
    TokenError,
    MemoryError,
    RecursionError,
)


class LoggedAnswers:
    """Answers from a file, returned in order. The file is memory-mapped, so that memory is bounded by the batch.

    Attributes:
        path: Path of the file.
        name: Name of the suspect in reports.
        n_rows: Answers in the file.
        n_used: Answers returned so far.
        n_missing: Answers returned so far that were rows of NaN.
    """

    def __init__(self, path: str | Path, *, name: str | None = None) -> None:
        """Open the file and check its header. Values are checked when they are returned.

        Args:
            path: Path of the .npy file.
            name: Name of the suspect in reports; None makes one of the path.

        Raises:
            SuspectError: The file is missing, truncated, pickled, or not a float array (n, m).
        """
        self.path = Path(path)
        self.name = f"answers:{self.path}" if name is None else name
        self._rows = _open_rows(self.path)
        self.n_rows = len(self._rows)
        self.n_used = 0
        self.n_missing = 0

    def embed(self, batch: Batch, /) -> NDArray[np.floating]:
        """Return the next len(batch) answers, float32 or float64 (n, m). The items are not read.

        Raises:
            SuspectError: Fewer answers are left, or one is partly NaN, infinite or beyond the range of float32.
        """
        start, stop = self.n_used, self.n_used + len(batch)
        if stop > self.n_rows:
            raise SuspectError(
                f"{self.path} holds {self.n_rows} answers, and query {self.n_rows + 1} was asked: log one row "
                "for every query, and a row of NaN if no answer came"
            )
        rows = np.array(self._rows[start:stop])
        if rows.dtype.kind in "iu":
            rows = rows.astype(np.float64)
        missing = np.isnan(rows).all(axis=1)
        given = rows[~missing]
        if missing.any() and rows.shape[1] == 1 and (given == np.round(given)).all():
            raise SuspectError(
                f"{self.path} holds one number a query, and a missing one cannot be told from a label 0: log a row "
                "with a single 1 for each label, and a row of NaN where no label came"
            )
        rows[missing] = 0
        answers = checked(rows, len(batch), name=f"{self.path}, rows {start} to {stop - 1},")
        self.n_used = stop
        self.n_missing += int(missing.sum())
        return answers

    def finish(self) -> None:
        """Check that every row was used.

        Raises:
            SuspectError: Rows are left over, so that rows and queries may not belong together.
        """
        if self.n_used != self.n_rows:
            raise SuspectError(
                f"{self.path} holds {self.n_rows} answers for {self.n_used} queries: log exactly one row for "
                "every query, in the order of the queries"
            )


def _open_rows(path: Path) -> NDArray[np.floating]:
    rows = _open_array(path)
    if rows.dtype.kind not in "fiu" or rows.dtype.itemsize > 8:
        raise SuspectError(f"{path} must hold an array of numbers of at most 8 bytes, not {rows.dtype}")
    if rows.ndim == 1:
        rows = rows[:, None]
    if rows.ndim != 2:
        raise SuspectError(f"{path} must hold one row a query: an array (n, m), not shape {rows.shape}")
    if not 1 <= rows.shape[1] <= MAX_WIDTH:
        raise SuspectError(f"{path} must hold 1 to {MAX_WIDTH:,} numbers a query, not {rows.shape[1]:,}")
    return rows


def _open_array(path: Path) -> NDArray[Any]:
    try:
        # Reading a pipe or a device could block or never end.
        if not path.is_file():
            raise SuspectError(f"there is no file of logged answers {path!s:.200}")
        # Unlike numpy.load, this opens .npy files only and never unpickles. A shape that overflows is refused below.
        with path.open("rb") as file:
            check_header(file)
        with np.errstate(over="ignore"):
            rows = np.lib.format.open_memmap(path, mode="r")
        promised, size = rows.offset + rows.nbytes, path.stat().st_size
    except _UNREADABLE as error:
        raise SuspectError(
            f"{path!s:.200} cannot be read as logged answers, a NumPy array (.npy) of floats: {first_line(error)}"
        ) from error
    if size != promised:
        raise SuspectError(
            f"{path} should have {promised} bytes and has {size}: it was truncated or extended; log the answers again"
        )
    return rows
