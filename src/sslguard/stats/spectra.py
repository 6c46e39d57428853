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

# Singular values up to this share of the largest are rounding, not information: single precision leaves 1e-7 in a
# direction that a layer norm has flattened. Moments hold squared singular values with a precision of 1e-16 of the
# largest, so smaller shares could not be told from 0 anyway.
RANK = 1e-6
# Below this correlation with every column of g, φ shows only rounding: single precision averages to some 1e-9.
CARRIED = 1e-10


class Spectra:
    """Covariances and decompositions of complete moments, each kept once computed. Arrays are shared: never write.

    Attributes:
        moments: As given; must not change afterwards.
    """

    def __init__(self, moments: Moments) -> None:
        """Keep the moments; nothing is computed yet."""
        self.moments = moments
        self._kept: dict[tuple[str, ...], object] = {}
        self._whole: Spectra | None = None
        self._mixture: Array | None = None

    def mixed(self, mixture: Array) -> Spectra:
        """Return the spectra with mixtures of the functions, φ·mixture, in place of φ. All else is shared.

        Args:
            mixture: Shape (K, r).
        """
        other = Spectra(self.moments)
        other._whole, other._mixture = self, np.asarray(mixture, dtype=np.float64)
        return other

    @property
    def n_features(self) -> int:
        """Number of functions φ, or of their mixtures."""
        return self.moments.n_features if self._mixture is None else self._mixture.shape[1]

    def covariance(self, rows: Block, columns: Block) -> Array:
        """Return `Moments.covariance` of two blocks."""
        if rows > columns:
            return self.covariance(columns, rows).T
        return self.once(("covariance", rows, columns), lambda: self._covariance(rows, columns))

    def _covariance(self, rows: Block, columns: Block) -> Array:
        if self._whole is None or self._mixture is None:
            return self.moments.covariance(rows, columns)
        found = self._whole.covariance(rows, columns)
        found = self._mixture.T @ found if rows == "phi" else found
        return found @ self._mixture if columns == "phi" else found

    def natural(self, rows: Block, columns: Block) -> Array:
        """Return a covariance in units of 1, except for φ's and g's own units.

        These units are common to all covariances in which φ or g takes part.
        """
        power = sum(self.moments.exponent(name) for name in (rows, columns) if name not in ("phi", "g"))
        return self.covariance(rows, columns) * 2.0**power

    def eigen(self, block: Block) -> tuple[Array, Array]:
        """Return eigenvalues, ascending, and eigenvectors, in columns, of the covariance of a block with itself."""
        return self.once(("eigen", block), lambda: symmetric(self.covariance(block, block)))

    def deviations(self, block: Block) -> Array:
        """Return the standard deviation of each column, (p,)."""
        return self.once(("deviations", block), lambda: np.sqrt(np.diag(self.covariance(block, block))))

    def whitener(self, block: Block, tolerance: float) -> Array:
        """Return axes (p, r) that turn a block's columns into orthonormal ones.

        Args:
            block: Name of the block, of p columns and rank r.
            tolerance: Singular values of the columns up to this share of the largest count as 0.
        """
        values, vectors = self.eigen(block)
        keep = values > max(tolerance**2 * values[-1], 0.0)
        return np.asarray(vectors[:, keep] / np.sqrt(values[keep]))

    def beyond_linear(self, block: Block) -> Array:
        """Return the covariance (K, ·) of φ̃ with a block of columns; φ̃ is the part of φ not linear in (1, h)."""
        linear = self.once(("linear", "phi"), self._linear) @ self.covariance("h", block)
        left = self.covariance("phi", block) - linear
        return or_zero(left, self.deviations("phi"), self.deviations(block))

    def functions_gram(self) -> Array:
        """Return the covariance (K, K) of φ̃, the part of φ not linear in (1, h)."""
        told = self.covariance("phi", "h") @ self.whitener("h", RANK)
        return self.covariance("phi", "phi") - told @ told.T

    def _linear(self) -> Array:
        """Return the coefficients (K, d) of the regression of φ on h."""
        axes = self.whitener("h", RANK)
        return self.covariance("phi", "h") @ axes @ axes.T

    def once(self, name: tuple[str, ...], compute: Callable[[], _T]) -> _T:
        """Return what `compute` gave when it was first called under this name, which says "phi" where φ takes part."""
        if self._whole is not None and "phi" not in name:
            return self._whole.once(name, compute)
        if name not in self._kept:
            self._kept[name] = compute()
        return cast(_T, self._kept[name])


def or_zero(difference: Array, row_sizes: Array, column_sizes: Array) -> Array:
    """Return the difference of two terms, or 0 if it is only rounding, which differs between machines.

    Args:
        difference: Shape (r, c).
        row_sizes: Shape (r,). Size of the terms in each row.
        column_sizes: Shape (c,). Size of the terms in each column.
    """
    if (np.abs(difference) > CARRIED * np.outer(row_sizes, column_sizes)).any():
        return difference
    return np.zeros_like(difference)
