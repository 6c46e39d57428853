"""Checks of the arguments of statistical functions.

Each check returns its value as a plain number or a float64 array, or raises a UsageError that names the argument and
the rule.
"""

from __future__ import annotations

import math
import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sslguard.errors import UsageError


def finite(name: str, value: float) -> float:
    """Return a number as a float; zero without a sign.

    Args:
        name: Name of the argument, for error messages.
        value: Number to check.

    Raises:
        UsageError: It is not a finite number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be a finite number, not {value!r}") from error
    if not math.isfinite(number):
        raise UsageError(f"{name} must be a finite number, not {number}")
    return number + 0.0  # which is 0.0 for -0.0


def finite_vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return numbers as a float64 array (n,).

    Args:
        name: Name of the argument, for error messages.
        values: Shape (n,). Numbers to check.

    Raises:
        UsageError: They are not finite numbers, or not one-dimensional.
    """
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be a sequence of numbers: {error}") from error
    if vector.ndim != 1:
        raise UsageError(f"{name} must be one-dimensional, not of shape {vector.shape}")
    if not np.isfinite(vector).all():
        where = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise UsageError(f"{name} must be finite numbers; number {where} is {vector[where]}")
    return vector


def count(name: str, value: int, *, minimum: int) -> int:
    """Return a whole number as an int.

    Args:
        name: Name of the argument, for error messages.
        value: Number to check.
        minimum: The smallest number allowed.

    Raises:
        UsageError: It is not a whole number, or it is below `minimum`.
    """
    try:
        number = operator.index(value)
    except TypeError as error:
        raise UsageError(f"{name} must be a whole number, not {value!r}") from error
    if number < minimum:
        raise UsageError(f"{name} must be at least {minimum}, not {number}")
    return number


def finite_matrix(name: str, values: ArrayLike, *, columns: int, remedy: str = "") -> NDArray[np.float64]:
    """Return real numbers as a float64 array (n, columns).

    Args:
        name: Name of the argument, for error messages.
        values: Shape (n, columns). Numbers to check.
        columns: Number of columns required.
        remedy: End of the error message about a number that is not finite.

    Raises:
        UsageError: They are not real finite numbers, or have another shape.
    """
    try:
        matrix = np.asarray(values)
        if matrix.dtype.kind == "c":
            raise TypeError("complex numbers are not allowed")
        matrix = matrix.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be a matrix of numbers: {error}") from error
    if matrix.ndim != 2 or matrix.shape[1] != columns:
        raise UsageError(f"{name} must be of shape (n, {columns}), not {matrix.shape}")
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise UsageError(f"{name} must be finite numbers; row {row}, column {column} is {matrix[row, column]}{remedy}")
    return matrix
