"""A cache of answers on disk, so that a verification that was killed continues without asking again.

Each suspect has one SQLite file. Its name is the SHA-256 of how the suspect is asked: address, protocol, model and
request. Table `answers` has the columns `query`, the SHA-256 of the item, and `answer`, its float32 numbers,
little-endian. A row is written whole or not at all, as soon as its request is answered. Whoever can write to the folder
can change the answers.
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

from sslguard.data.base import Batch, picked
from sslguard.data.watched import digest
from sslguard.encoders.base import Embedder
from sslguard.errors import OutputError, SuspectError
from sslguard.suspects.base import MAX_WIDTH

Answers = NDArray[np.floating]
_ROW = np.dtype("<f4")


class AnswerStore:
    """The answers of one suspect in one file. Several threads and processes may use it at the same time.

    Attributes:
        path: Path of the file.
        width: Width of the answers; None before the first.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        """Open the file, or create it so that only its owner can read it.

        Args:
            folder: Folder of the file; created if it does not exist.
            identity: Text that identifies the suspect and how it is asked.

        Raises:
            OutputError: The folder cannot be written, or the file is damaged.
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
        """Return the stored answer, float32 (width,), or None if there is none that is whole and finite.

        Args:
            query: SHA-256 of the item; see `digest`.
        """
        with self._lock, self._explained():
            found = self._base.execute("SELECT answer FROM answers WHERE query = ?", (query,)).fetchone()
        if self.width is None or found is None or not isinstance(found[0], bytes):
            return None
        if len(found[0]) != self.width * _ROW.itemsize:
            return None
        row = np.frombuffer(found[0], _ROW).astype(np.float32)
        return row if np.isfinite(row).all() else None

    def put(self, queries: list[bytes], answers: Answers) -> None:
        """Store answers, all of them or none.

        Args:
            queries: SHA-256 of each item.
            answers: float (n, m), one row for each query.

        Raises:
            SuspectError: m differs from the width of the stored answers.
        """
        if not queries:
            return
        with self._lock:
            self.width = self.width or answers.shape[1]
        if answers.shape[1] != self.width:
            raise SuspectError(
                f"{self.path} holds answers of width {self.width}, and answers of width {answers.shape[1]} came now, "
                "so another model answers: give another --cache folder to ask it from the start"
            )
        rows = [(query, row.astype(_ROW).tobytes()) for query, row in zip(queries, answers, strict=True)]
        with self._lock, self._explained(), self._base:
            self._base.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # sqlite quotes names that are no text
            raise OutputError(
                f"the cache {self.path} cannot be used ({error!s:.200}): free disk space, or delete it and ask again"
            ) from error


class Cached:
    """An Embedder that asks nothing twice. A row of NaN means no answer and is not stored.

    Attributes:
        embedder: Embedder that answers what is not stored.
        store: The stored answers.
        n_cached: Queries answered from disk so far.
    """

    def __init__(self, embedder: Embedder, store: AnswerStore) -> None:
        self.embedder, self.store = embedder, store
        self.n_cached = 0
        self._lock = threading.Lock()

    def embed(self, batch: Batch, /) -> Answers:
        """Return stored answers, and ask for the rest: float32 (n, m). A row is NaN if no answer came."""
        queries = [digest(item) for item in batch]
        found = [self.store.get(query) for query in queries]
        missing = [i for i, row in enumerate(found) if row is None]
        known = [row for row in found if row is not None]
        with self._lock:
            self.n_cached += len(known)
        if not missing:
            return np.stack(known)
        asked = self.embedder.embed(picked(batch, missing))
        answered = np.logical_not(np.isnan(asked).all(axis=1))
        self.store.put([queries[i] for i, good in zip(missing, answered, strict=True) if good], asked[answered])
        answers = np.empty((len(batch), asked.shape[1]), np.float32)
        answers[missing] = asked
        if known:
            answers[[i for i, row in enumerate(found) if row is not None]] = np.stack(known)
        return answers
