"""Arguments of the statistical functions, checked: each function returns what it was given as a plain number or
float64 array, or says which argument broke which rule."""

from __future__ import annotations

import math
import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sslguard.errors import UsageError


def finite(name: str, value: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be a finite number, not {value!r}") from error
    if not math.isfinite(number):
        raise UsageError(f"{name} must be a finite number, not {number}")
    return number


def finite_vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
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
    try:
        number = operator.index(value)
    except TypeError as error:
        raise UsageError(f"{name} must be a whole number, not {value!r}") from error
    if number < minimum:
        raise UsageError(f"{name} must be at least {minimum}, not {number}")
    return number


def finite_matrix(name: str, values: ArrayLike, *, columns: int, remedy: str = "") -> NDArray[np.float64]:
    """Real finite numbers of shape (any, columns); `remedy` ends the message about one that is not finite."""
    try:
        matrix = np.asarray(values)
        if matrix.dtype.kind == "c":
            raise TypeError("complex numbers have no place here")
        matrix = matrix.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be a matrix of numbers: {error}") from error
    if matrix.ndim != 2 or matrix.shape[1] != columns:
        raise UsageError(f"{name} must be of shape (n, {columns}), not {matrix.shape}")
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise UsageError(f"{name} must be finite numbers; row {row}, column {column} is {matrix[row, column]}{remedy}")
    return matrix
