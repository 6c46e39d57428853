"""The time limit of a suspect, and waiting that another thread can end."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from sslguard.errors import SuspectError


class Clock:
    """A time limit for everything that one suspect is asked. It runs from the first call of `left` or `sleep`.

    Attributes:
        limit: Limit in seconds; None for no limit.
    """

    def __init__(self, limit: float | None = None, *, now: Callable[[], float] = time.monotonic) -> None:
        """Set the limit. The time does not run yet.

        Args:
            limit: Limit in seconds; None for no limit.
            now: Function that returns a time in seconds and never decreases; tests replace it.
        """
        self.limit = limit
        self.now = now
        self._start: float | None = None
        self._stopped = threading.Event()

    def left(self) -> float:
        """Return the seconds that are left; infinite without a limit.

        Raises:
            SuspectError: No time is left, or `stop` was called.
        """
        if self._stopped.is_set():
            raise SuspectError("this suspect was closed: no more queries are sent")
        if self.limit is None:
            return math.inf
        if self._start is None:
            self._start = self.now()
        left = self._start + self.limit - self.now()
        if left <= 0:
            raise SuspectError(
                f"the time limit of {self.limit:g} s ended before all queries were answered: raise the limit; with "
                "--cache the same command goes on where it stopped"
            )
        return left

    def sleep(self, seconds: float) -> None:
        """Wait that many seconds, or until the limit or until `stop`.

        Raises:
            SuspectError: No time is left, or `stop` was called.
        """
        self._stopped.wait(max(0.0, min(seconds, self.left())))
        self.left()

    def stop(self) -> None:
        """End all waiting, now and later."""
        self._stopped.set()
