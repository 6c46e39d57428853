"""Wrappers between a verification and a remote suspect. Each is an Embedder around an Embedder.

From the outside in: `Concurrent` splits a batch into requests; `cached.Cached` answers what was asked before;
`Tolerant` replaces the answers to a request that failed for good by rows of NaN; `Splitting` asks the parts of a
request that was refused as a whole; `Retrying` asks again; `RateLimited` or `Paced` waits for its turn; `base.Counted`
keeps to the budget. Several threads may use each of them at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from random import Random

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Batch, picked
from sslguard.encoders.base import Embedder, Suspect
from sslguard.errors import SuspectError
from sslguard.suspects.base import UnansweredError
from sslguard.suspects.clock import Clock

Answers = NDArray[np.floating]
FIRST_REFUSALS = 3
"""Number of single queries that may be refused while nothing was ever answered; then the request itself is wrong."""


class RateLimited:
    """Embedder that asks at most so many queries a second, evenly spaced. Unused time is not saved up.

    Attributes:
        embedder: Embedder to ask.
        per_second: Largest number of queries a second.
        clock: Time limit of the suspect.
    """

    def __init__(self, embedder: Embedder, per_second: float, clock: Clock) -> None:
        self.embedder, self.per_second, self.clock = embedder, per_second, clock
        self._free = clock.now()
        self._lock = threading.Lock()

    def embed(self, batch: Batch, /) -> Answers:
        """Wait until the rate allows this batch, and return the answers (n, m)."""
        with self._lock:
            turn = max(self._free, self.clock.now())
            self._free = turn + len(batch) / self.per_second
        self.clock.sleep(turn - self.clock.now())
        return self.embedder.embed(batch)


class Paced:
    """Embedder that asks at random times, whether or not the answer to the last request has come.

    Attributes:
        embedder: Embedder to ask.
        gap: Draws the seconds between two requests.
        clock: Time limit of the suspect.
    """

    def __init__(self, embedder: Embedder, gap: Callable[[], float], clock: Clock) -> None:
        self.embedder, self.gap, self.clock = embedder, gap, clock
        self._free = clock.now()
        self._lock = threading.Lock()

    def embed(self, batch: Batch, /) -> Answers:
        """Wait until it is this request's turn, and return the answers (n, m)."""
        with self._lock:
            turn = max(self._free, self.clock.now())
            self._free = turn + self.gap()
        self.clock.sleep(turn - self.clock.now())
        return self.embedder.embed(batch)


class Retrying:
    """Embedder that asks again when that may help.

    It waits 1, 2, 4 … times `first` seconds, or as long as the suspect asks for.

    Attributes:
        embedder: Embedder to ask.
        clock: Time limit of the suspect.
        attempts: Largest number of times that a batch is asked.
        first: Seconds of the first wait.
        most: Seconds of the longest wait, whatever the suspect asks for.
        n_again: Number of repetitions so far, over all batches.
    """

    def __init__(
        self, embedder: Embedder, clock: Clock, *, attempts: int = 5, first: float = 0.5, most: float = 60.0
    ) -> None:
        self.embedder, self.clock = embedder, clock
        self.attempts, self.first, self.most = attempts, first, most
        self.n_again = 0
        self._lock = threading.Lock()

    def embed(self, batch: Batch, /) -> Answers:
        """Return the answers (n, m) of the first attempt that succeeds.

        Raises:
            UnansweredError: No attempt is left; the message is that of the last.
        """
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


class Splitting:
    """Embedder that splits a refused request into halves, down to single queries.

    So a query that a server refuses does not cost the answers to the others. If both halves of a request are answered
    in full, the request was too large, and later requests are cut to that size from the start.

    Attributes:
        embedder: Embedder to ask.
        size: Largest number of queries in a request; None until a request was too large.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.size: int | None = None
        self._answered, self._refused = False, 0
        self._lock = threading.Lock()

    def embed(self, batch: Batch, /) -> Answers:
        """Return answers (n, m), a row of NaN for each single query that was refused.

        Raises:
            UnansweredError: No query of the batch was answered.
        """
        size = self.size or len(batch)
        if len(batch) <= size:
            return self._whole(batch)
        answers = self._parts([batch[start : start + size] for start in range(0, len(batch), size)])
        if answers is None:
            raise UnansweredError(f"{len(batch)} queries went unanswered in requests of {size}", again=False)
        return answers

    def _whole(self, batch: Batch) -> Answers:
        half = (len(batch) + 1) // 2
        try:
            answers = self.embedder.embed(batch)
        except UnansweredError as error:
            # If nothing was ever answered, the request itself may be wrong: give up after a few single queries.
            if not error.smaller or self._hopeless(len(batch)):
                raise
            parts = self._parts([batch[:half], batch[half:]])
            if parts is None:
                raise
        else:
            self._answered = True
            return answers
        if not np.isnan(parts).any():
            with self._lock:
                self.size = min(self.size or half, half)
        return parts

    def _hopeless(self, n: int) -> bool:
        with self._lock:
            self._refused += n == 1
            return n == 1 or (not self._answered and self._refused >= FIRST_REFUSALS)

    def _parts(self, parts: list[Batch]) -> Answers | None:
        """Return the answers to all parts, rows of NaN for those without any; None where no part was answered."""
        found: list[Answers | None] = []
        for part in parts:
            try:
                found.append(self.embed(part))
            except UnansweredError:
                found.append(None)
        width = next((answers.shape[1] for answers in found if answers is not None), None)
        if width is None:
            return None
        return np.concatenate(
            [
                np.full((len(part), width), np.nan, np.float32) if answers is None else answers
                for part, answers in zip(parts, found, strict=True)
            ]
        )


class Tolerant:
    """Embedder that answers with rows of NaN for a batch that failed, until too many in a row do.

    Attributes:
        embedder: Embedder to ask.
        width: Width of the answers; None before the first. The first batch must be answered.
        patience: Number of failed batches in a row after which an error is raised.
    """

    def __init__(self, embedder: Embedder, *, width: int | None = None, patience: int = 8) -> None:
        self.embedder, self.width, self.patience = embedder, width, patience
        self._failures = 0
        self._lock = threading.Lock()

    def embed(self, batch: Batch, /) -> Answers:
        """Return the answers (n, m), or rows of NaN if none came.

        Raises:
            SuspectError: Nothing was ever answered, or `patience` batches in a row failed.
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
    """Embedder that splits a batch into requests and asks several at the same time. Answers come back in order.

    The very first request is asked alone, so that a mistake costs only one.

    Attributes:
        embedder: Embedder to ask.
        size: Queries in one request.
        workers: Requests at the same time.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        size: int = 16,
        workers: int = 4,
        random: Random | None = None,
        sizes: Callable[[], int] | None = None,
    ) -> None:
        """Ask nothing yet.

        Args:
            embedder: Embedder to ask.
            size: Queries in one request.
            workers: Requests at the same time.
            random: Source of the order of queries; None keeps it.
            sizes: Draws the number of queries of each request, at least 1, of which `size` are sent at most; None fills
                every request.
        """
        self.embedder, self.size, self.workers = embedder, size, workers
        self._sizes = sizes or (lambda: size)
        self._random = random
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="sslguard-suspect")
        self._begun = False

    def embed(self, batch: Batch, /) -> Answers:
        """Return the answers (n, m) to the whole batch.

        If a request fails, its error is raised, and requests that have not begun are not sent.
        """
        order = list(range(len(batch)))
        if self._random is not None:
            self._random.shuffle(order)
        answers = self._in_parts([picked(batch, places) for places in self._places(order)])
        back = np.empty_like(answers)
        back[order] = answers
        return back

    def _places(self, order: list[int]) -> Iterator[list[int]]:
        """Yield the places in the batch of each request's queries."""
        start = 0
        while start < len(order):
            size = min(self._sizes(), self.size)
            yield order[start : start + size]
            start += size

    def _in_parts(self, parts: list[Batch]) -> Answers:
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
        """Return the answers to one request, or an empty array if another request failed before it began."""
        if failed.is_set():
            return np.empty((0, 0))
        try:
            return self.embedder.embed(part)
        except BaseException:
            failed.set()
            raise

    def close(self) -> None:
        """Send no more requests. Requests in progress end on their own."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Complete:
    """A suspect as a teacher for training, which must answer every query.

    Attributes:
        suspect: Suspect that answers.
        source: Name of the suspect.
    """

    def __init__(self, suspect: Suspect) -> None:
        self.suspect, self.source = suspect, suspect.name

    def embed(self, batch: Batch, /) -> Answers:
        """Return the suspect's answers to a batch, (n, m).

        Raises:
            SuspectError: A query of the batch was not answered.
        """
        before = self.suspect.n_missing
        answers = self.suspect.embed(batch)
        if missing := self.suspect.n_missing - before:
            raise SuspectError(
                f"{self.source} left {missing} of {len(batch)} queries unanswered, and training needs all answers: "
                "run the same command again; with --cache it asks for the missing answers only"
            )
        return answers
