"""Answers on disk, so that a verification that was killed goes on without asking again.

One SQLite file for each suspect, as it was asked: its name is the SHA-256 of the identity (address, protocol, model,
request). Table `answers`: `query`, SHA-256 of the item; `answer`, its float32 numbers, little-endian. A row is there
whole or not at all, at once when its request is answered. Whoever may write to the folder may change the answers.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Batch
from sslguard.encoders.base import Embedder
from sslguard.errors import OutputError, SuspectError
from sslguard.suspects.base import MAX_WIDTH

Answers = NDArray[np.floating]
_ROW = np.dtype("<f4")


class AnswerStore:
    """The answers of one suspect in one file; several threads and processes may use it at once.

    Attributes:
        path: the file.
        width: numbers in an answer; None before the first.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        """Open or make the file, readable by its owner alone.

        Raises:
            OutputError: the folder cannot be written, or the file is damaged.
        """
        self.path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.sqlite"
        self._lock = threading.Lock()
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self._base = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
            with self._base:
                self._base.execute(
                    "CREATE TABLE IF NOT EXISTS answers (query BLOB PRIMARY KEY, answer BLOB NOT NULL) WITHOUT ROWID"
                )
            found = self._base.execute("SELECT length(answer) FROM answers LIMIT 1").fetchone()
        width = found[0] // _ROW.itemsize if found and isinstance(found[0], int) else 0
        self.width = width if 1 <= width <= MAX_WIDTH else None

    def __len__(self) -> int:
        with self._lock, self._explained():
            return int(self._base.execute("SELECT count(*) FROM answers").fetchone()[0])

    def get(self, query: bytes) -> Answers | None:
        """The answer, float32 (width,), or None where there is none that is whole and finite."""
        with self._lock, self._explained():
            found = self._base.execute("SELECT answer FROM answers WHERE query = ?", (query,)).fetchone()
        if self.width is None or found is None or not isinstance(found[0], bytes):
            return None
        if len(found[0]) != self.width * _ROW.itemsize:
            return None
        row = np.frombuffer(found[0], _ROW).astype(np.float32)
        return row if np.isfinite(row).all() else None

    def put(self, queries: list[bytes], answers: Answers) -> None:
        """Store float (n, m), all of it or nothing.

        Raises:
            SuspectError: m is not the width of the answers before.
        """
        if not queries:
            return
        with self._lock:
            self.width = self.width or answers.shape[1]
        if answers.shape[1] != self.width:
            raise SuspectError(
                f"{self.path} holds answers of {self.width} numbers, and {answers.shape[1]} came now: it is another "
                "model; give another folder to ask it from the start"
            )
        rows = [(query, row.astype(_ROW).tobytes()) for query, row in zip(queries, answers, strict=True)]
        with self._lock, self._explained(), self._base:
            self._base.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def close(self) -> None:
        with self._lock:
            self._base.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise OutputError(
                f"the cache {self.path} cannot be used ({error!s:.200}): make room, or remove it and ask anew"
            ) from error


class Cached:
    """An Embedder that asks nothing twice. Rows of NaN are no answers and are not kept.

    Attributes:
        n_cached: queries that were answered from disk so far.
    """

    def __init__(self, embedder: Embedder, store: AnswerStore) -> None:
        self.embedder, self.store = embedder, store
        self.n_cached = 0
        self._lock = threading.Lock()

    def embed(self, batch: Batch, /) -> Answers:
        queries = [digest(item) for item in batch]
        found = [self.store.get(query) for query in queries]
        missing = [i for i, row in enumerate(found) if row is None]
        known = [row for row in found if row is not None]
        with self._lock:
            self.n_cached += len(known)
        if not missing:
            return np.stack(known)
        asked = self.embedder.embed(_items(batch, missing))
        answered = ~np.isnan(asked).all(axis=1)
        self.store.put([queries[i] for i, good in zip(missing, answered, strict=True) if good], asked[answered])
        answers = np.empty((len(batch), asked.shape[1]), np.float32)
        answers[missing] = asked
        if known:
            answers[[i for i, row in enumerate(found) if row is not None]] = np.stack(known)
        return answers


def digest(item: Tensor | str) -> bytes:
    """SHA-256 of a query: of a text's UTF-8, or of an image's type, shape and values."""
    if isinstance(item, str):
        return hashlib.sha256(b"text\0" + item.encode("utf-8", "surrogatepass")).digest()
    array = np.ascontiguousarray(item.detach().cpu().numpy())
    return hashlib.sha256(f"{array.dtype.str}{array.shape}\0".encode() + array.tobytes()).digest()


def _items(batch: Batch, positions: list[int]) -> Batch:
    if isinstance(batch, Tensor):
        return batch[positions]
    return [batch[i] for i in positions]  # type: ignore[return-value]
