"""Time as a suspect's wrappers see it: how much is left, and waiting that can be ended from outside."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from sslguard.errors import SuspectError, UsageError


class Clock:
    """A limit on everything that is asked of one suspect. It runs from when it is first looked at.

    Attributes:
        limit: seconds; None for none.
    """

    def __init__(self, limit: float | None = None, *, now: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            now: seconds that only grow; tests give their own.

        Raises:
            UsageError: the limit is not a positive number of seconds.
        """
        if limit is not None and not 0 < limit < math.inf:
            raise UsageError(f"a time limit must be a positive number of seconds, not {limit}")
        self.limit = limit
        self.now = now
        self._start: float | None = None
        self._stopped = threading.Event()

    def left(self) -> float:
        """Seconds, infinite without a limit.

        Raises:
            SuspectError: none are left, or `stop` was called.
        """
        if self._stopped.is_set():
            raise SuspectError("no more is asked of this suspect")
        if self.limit is None:
            return math.inf
        if self._start is None:
            self._start = self.now()
        left = self._start + self.limit - self.now()
        if left <= 0:
            raise SuspectError(
                f"the time limit of {self.limit:g} s is over before all queries were answered: raise the limit; with a "
                "cache the same command goes on where it stopped"
            )
        return left

    def sleep(self, seconds: float) -> None:
        """Wait so long, or to the end of the limit, or until `stop`; raises as `left` does."""
        self._stopped.wait(max(0.0, min(seconds, self.left())))
        self.left()

    def stop(self) -> None:
        """End all waiting, now and from now on."""
        self._stopped.set()
