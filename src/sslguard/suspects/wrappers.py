"""What stands between a verification and a suspect that is far away; each is an Embedder around an Embedder.

From the outside in: `Concurrent` splits a batch into requests, `cached.Cached` answers those that were answered
before, `Tolerant` hands a request that failed for good on as rows of NaN, `Retrying` asks again, `RateLimited` waits
for its turn, `base.Counted` keeps the budget. All of them may be used by several threads at once.
"""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Batch
from sslguard.encoders.base import Embedder
from sslguard.errors import SuspectError, UsageError
from sslguard.suspects.base import Suspect, UnansweredError
from sslguard.suspects.clock import Clock

Answers = NDArray[np.floating]


class RateLimited:
    """At most so many queries a second, evenly spaced; what was not used is not saved up."""

    def __init__(self, embedder: Embedder, per_second: float, clock: Clock) -> None:
        if not 0 < per_second < float("inf"):
            raise UsageError(f"a rate must be a positive number of queries a second, not {per_second}")
        self.embedder, self.per_second, self.clock = embedder, per_second, clock
        self._free = clock.now()
        self._lock = threading.Lock()

    def embed(self, batch: Batch, /) -> Answers:
        with self._lock:
            turn = max(self._free, self.clock.now())
            self._free = turn + len(batch) / self.per_second
        self.clock.sleep(turn - self.clock.now())
        return self.embedder.embed(batch)


class Retrying:
    """Asks again where that may help, after 1, 2, 4 … times `first` seconds, or as long as the suspect says.

    Attributes:
        attempts: how often a batch is asked at most.
        first, most: seconds of the first and of the longest wait; `most` also bounds what the suspect may ask for.
        n_again: batches that were asked again so far, once for each time.
    """

    def __init__(
        self, embedder: Embedder, clock: Clock, *, attempts: int = 5, first: float = 0.5, most: float = 60.0
    ) -> None:
        if attempts < 1:
            raise UsageError(f"a batch must be asked at least once, not {attempts} times")
        if not 0 <= first <= most:
            raise UsageError(f"waits must grow from first to most seconds, not from {first} to {most}")
        self.embedder, self.clock = embedder, clock
        self.attempts, self.first, self.most = attempts, first, most
        self.n_again = 0
        self._lock = threading.Lock()

    def embed(self, batch: Batch, /) -> Answers:
        """Raises UnansweredError with the last reason when no attempt is left."""
        for attempt in range(self.attempts):
            try:
                return self.embedder.embed(batch)
            except UnansweredError as error:
                if not error.again or attempt + 1 == self.attempts:
                    raise
                self.clock.sleep(min(self.most, max(error.after or 0.0, self.first * 2**attempt)))
                with self._lock:
                    self.n_again += 1
        raise AssertionError("unreachable")


class Tolerant:
    """Rows of NaN for a batch that went unanswered, until too many in a row did.

    Attributes:
        width: numbers in an answer; None before the first. The first batch must be answered.
        patience: unanswered batches in a row that end it all.
    """

    def __init__(self, embedder: Embedder, *, width: int | None = None, patience: int = 8) -> None:
        if patience < 1:
            raise UsageError(f"patience must be at least 1 batch, not {patience}")
        self.embedder, self.width, self.patience = embedder, width, patience
        self._failures = 0
        self._lock = threading.Lock()

    def embed(self, batch: Batch, /) -> Answers:
        """Answers (n, m), a row of NaN where none came.

        Raises:
            SuspectError: nothing was ever answered, or the patience is at its end.
        """
        try:
            answers = self.embedder.embed(batch)
        except UnansweredError as error:
            with self._lock:
                self._failures += 1
                failures, width = self._failures, self.width
            if width is None:
                raise SuspectError(f"the first request went unanswered: {error}") from error
            if failures >= self.patience:
                raise SuspectError(f"{failures} requests in a row went unanswered, the last because {error}") from error
            return np.full((len(batch), width), np.nan, np.float32)
        with self._lock:
            self._failures, self.width = 0, answers.shape[1]
        return answers


class Concurrent:
    """Splits a batch into requests and asks several at a time; answers come back in order.

    The very first request is asked alone, so that a mistake costs one.

    Attributes:
        size: queries of a request.
        workers: requests at a time.
    """

    def __init__(self, embedder: Embedder, *, size: int = 16, workers: int = 4) -> None:
        if size < 1 or workers < 1:
            raise UsageError(f"size and workers must be at least 1, not {size} and {workers}")
        self.embedder, self.size, self.workers = embedder, size, workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="sslguard-suspect")
        self._begun = False

    def embed(self, batch: Batch, /) -> Answers:
        """Answers (n, m) to the whole batch; the first failure is raised, and what has not begun is not asked."""
        parts = [batch[start : start + self.size] for start in range(0, len(batch), self.size)]
        done: list[Answers] = []
        if not self._begun and parts:
            done.append(self.embedder.embed(parts.pop(0)))
            self._begun = True
        failed = threading.Event()
        futures = [self._pool.submit(self._asked, part, failed) for part in parts]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            failed.set()
        for future in futures:
            if future.done() and (error := future.exception()) is not None:
                raise error
        return np.concatenate([*done, *(future.result() for future in futures)])

    def _asked(self, part: Batch, failed: threading.Event) -> Answers:
        """Answers to one request, or none where another one failed before it began."""
        if failed.is_set():
            return np.empty((0, 0))
        try:
            return self.embedder.embed(part)
        except BaseException:
            failed.set()
            raise

    def close(self) -> None:
        """No more is asked; requests under way are left to end on their own."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Complete:
    """A suspect as a teacher: who learns from answers has no use for the zeros that stand for missing ones.

    Attributes:
        source: its name.
    """

    def __init__(self, suspect: Suspect) -> None:
        self.suspect, self.source = suspect, suspect.name

    def embed(self, batch: Batch, /) -> Answers:
        """Raises SuspectError where a query of the batch went unanswered."""
        before = self.suspect.n_missing
        answers = self.suspect.embed(batch)
        if missing := self.suspect.n_missing - before:
            raise SuspectError(
                f"{self.source} left {missing} of {len(batch)} queries unanswered; a thief cannot do without: "
                "run the same command again; with --cache it asks for the missing answers alone"
            )
        return answers
