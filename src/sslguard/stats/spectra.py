"""Covariances and decompositions that several witnesses need of the same moments, each computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from sslguard.stats.decomposition import symmetric
from sslguard.stats.moments import Block, Moments

Array = NDArray[np.float64]
_T = TypeVar("_T")

# Columns that are a linear combination of others up to this share of the largest singular value carry rounding, not
# information: single precision leaves 1e-7 in a direction that a layer norm has flattened. On moments, which hold
# squared singular values with 1e-16 of the largest, it is also the last share that can be told from 0.
RANK = 1e-6
# Below this correlation with every column of g, φ shows only rounding: single precision averages to some 1e-9.
CARRIED = 1e-10


class Spectra:
    """Moments that have all answers, read only, with what was asked of them so far. Arrays are shared: never write.

    Attributes
    ----------
    moments : Moments
        As given; must not change afterwards.
    """

    def __init__(self, moments: Moments) -> None:
        self.moments = moments
        self._kept: dict[tuple[str, ...], object] = {}

    def covariance(self, rows: Block, columns: Block) -> Array:
        """`Moments.covariance`."""
        if rows > columns:
            return self.covariance(columns, rows).T
        return self.once(("covariance", rows, columns), lambda: self.moments.covariance(rows, columns))

    def natural(self, rows: Block, columns: Block) -> Array:
        """A covariance in units of 1, but for φ's and g's own units, which are common to all that has them in it."""
        power = sum(self.moments.exponent(name) for name in (rows, columns) if name not in ("phi", "g"))
        return self.covariance(rows, columns) * 2.0**power

    def eigen(self, block: Block) -> tuple[Array, Array]:
        """Eigenvalues, ascending, and eigenvectors in columns, of the covariance of a block with itself."""
        return self.once(("eigen", block), lambda: symmetric(self.covariance(block, block)))

    def deviations(self, block: Block) -> Array:
        """Standard deviation of each column."""
        return self.once(("deviations", block), lambda: np.sqrt(np.diag(self.covariance(block, block))))

    def whitener(self, block: Block, tolerance: float) -> Array:
        """Axes (p, r), r its rank, that turn the block's columns into orthonormal ones; singular values of the columns
        up to `tolerance` of the largest count as 0."""
        values, vectors = self.eigen(block)
        keep = values > max(tolerance**2 * values[-1], 0.0)
        return np.asarray(vectors[:, keep] / np.sqrt(values[keep]))

    def beyond_linear(self, block: Block) -> Array:
        """Covariance (K, ·) of φ̃ with a block of columns, φ̃ what of φ is not linear in (1, h)."""
        linear = self.once(("linear",), self._linear) @ self.covariance("h", block)
        left = self.covariance("phi", block) - linear
        return or_zero(left, self.deviations("phi"), self.deviations(block))

    def _linear(self) -> Array:
        """Coefficients (K, d) of the regression of φ on h."""
        axes = self.whitener("h", RANK)
        return self.covariance("phi", "h") @ axes @ axes.T

    def once(self, name: tuple[str, ...], compute: Callable[[], _T]) -> _T:
        """What `compute` gave when it was first asked for under this name."""
        if name not in self._kept:
            self._kept[name] = compute()
        return cast(_T, self._kept[name])


def or_zero(difference: Array, row_sizes: Array, column_sizes: Array) -> Array:
    """0 in place of what terms of these sizes leave when they cancel: another machine would round otherwise."""
    if (np.abs(difference) > CARRIED * np.outer(row_sizes, column_sizes)).any():
        return difference
    return np.zeros_like(difference)
