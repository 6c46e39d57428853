"""The interface of suspects, the check of their answers, and the count of queries.

A suspect is hostile: it may answer with the wrong number of rows, with another width each time, or with values that are
not numbers. All answers are checked here before anything computes with them.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Batch
from sslguard.encoders.base import Suspect
from sslguard.errors import SuspectError, UsageError, first_line

MAX_WIDTH = 65_536
_LARGEST = float(np.finfo(np.float32).max)


class UnansweredError(SuspectError):
    """One request got no usable answer. Its queries count as missing unless it is asked again.

    Attributes:
        again: Whether asking again may help.
        after: Seconds to wait before asking again, as requested by the suspect; None if it did not say.
        smaller: Whether smaller requests may help: this one was too large, or one of its queries spoiled it.
    """

    def __init__(self, message: str, *, again: bool, after: float | None = None, smaller: bool = False) -> None:
        super().__init__(message)
        self.again, self.after, self.smaller = again, after, smaller


def checked(answers: object, n: int, *, width: int | None = None, name: str = "the suspect") -> NDArray[np.floating]:
    """Return the answers to `n` queries as a float array (n, m), or raise an error of one sentence.

    Args:
        answers: What the suspect returned; anything that converts to an array of real numbers is accepted.
        n: Number of queries asked.
        width: Width m of earlier answers; None if these are the first.
        name: Name of the suspect, for error messages.

    Returns:
        float32 or float64 (n, m), 1 ≤ m ≤ 65,536, finite as float32. Other real dtypes are converted to float64.

    Raises:
        SuspectError: The answers are anything else.
    """
    array = _real_numbers(answers, name)
    if array.ndim != 2:
        raise SuspectError(f"{name} must answer with one row a query: an array ({n}, m), not shape {array.shape}")
    if len(array) != n:
        raise SuspectError(f"{name} was asked {n} queries and gave {len(array)} answers")
    if not 1 <= array.shape[1] <= MAX_WIDTH:
        raise SuspectError(f"{name} must answer with 1 to {MAX_WIDTH:,} numbers a query, not {array.shape[1]:,}")
    if width is not None and array.shape[1] != width:
        raise SuspectError(f"{name} answered {width} numbers a query before, and now {array.shape[1]}")
    # Comparisons with NaN are false, so NaN is refused too. Larger numbers would overflow in networks of float32.
    unusable = ~(np.abs(array) <= _LARGEST).all(axis=1)
    if unusable.any():
        raise SuspectError(
            f"{name} answered {int(unusable.sum())} of {n} queries with values that are NaN, infinite or beyond "
            f"float32; the first is query {int(np.flatnonzero(unusable)[0])} of the batch"
        )
    return array


class Counted:
    """A suspect that counts its queries, asks no more than a budget, and checks its answers.

    A query counts when it is asked, whatever happens to it: nobody may drop queries after seeing answers. Several
    threads may ask at the same time.

    Attributes:
        suspect: Suspect that answers.
        budget: Largest number of queries; None for any number.
        price: Price of one query, in a currency of the caller's choice.
        n_queries: Queries asked so far, unanswered ones included.
        n_requests: Batches asked so far.
        width: Width of the answers; None before the first.
    """

    def __init__(self, suspect: Suspect, *, budget: int | None = None, price: float = 0.0) -> None:
        self.suspect, self.budget, self.price = suspect, budget, price
        self.n_queries = 0
        self.n_requests = 0
        self.width: int | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Name of the suspect in reports."""
        return self.suspect.name

    @property
    def n_missing(self) -> int:
        """Number of queries so far without an answer."""
        return self.suspect.n_missing

    @property
    def cost(self) -> float:
        """Cost of all queries so far, unanswered ones included."""
        return self.n_queries * self.price

    def embed(self, batch: Batch, /) -> NDArray[np.floating]:
        """Return the checked answers to a batch, float (n, m).

        Raises:
            UsageError: The batch is empty.
            SuspectError: The batch exceeds the budget and was not asked; or the answers are not n finite rows of one
                width, the same in every batch.
        """
        if not len(batch):
            raise UsageError("a batch of queries must hold at least one item, not 0")
        self._spend(len(batch))
        answers = checked(self.suspect.embed(batch), len(batch), width=self.width, name=self.name)
        self.width = answers.shape[1]
        return answers

    def finish(self) -> None:
        """Tell the suspect that no more queries follow."""
        self.suspect.finish()

    def _spend(self, n: int) -> None:
        with self._lock:
            if self.budget is not None and self.n_queries + n > self.budget:
                raise SuspectError(
                    f"the budget of {self.budget:,} queries is too small: {self.name} was asked {self.n_queries:,}, "
                    f"and {n} more are needed now; raise --budget"
                )
            self.n_queries += n
            self.n_requests += 1


def _real_numbers(answers: object, name: str) -> NDArray[np.floating]:
    try:
        array = np.asarray(answers)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SuspectError(f"{name} answered with something that is not an array: {first_line(error)}") from error
    if array.dtype.kind not in "fiu":
        raise SuspectError(f"{name} must answer with real numbers, not with values of type {array.dtype}")
    if array.dtype in (np.float32, np.float64):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore"):
        return array.astype(np.float64)
