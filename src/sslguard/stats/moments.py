"""Streaming second moments of clean embeddings, secret features and a suspect's answers.

They are all that a linear witness of the exact test needs of the data. The answers themselves are dropped, so memory
does not grow with the number of queries. Other directions on the same features need no new query.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.blas import dsyrk

from sslguard.errors import UsageError
from sslguard.stats.arguments import count, finite_matrix

Block = Literal["h", "phi", "g", "unit", "standard"]

# Rows taken at once: bounds the memory of an update, and is enough for BLAS to run at full speed.
_ROWS = 1024
# Below the exponent of the smallest float (2**-1074), so that a column's first entry that is not zero sets its unit.
_NO_EXPONENT = -1100


class Moments:
    """Mean and centred second moments of the columns (h, φ, g, g/|g|) over all queries, in one pass.

    Every column is kept in a unit of its own, a power of two just above its largest entry so far, so that
    answers of any size neither overflow nor vanish; changing a unit is exact. A batch is centred before it is
    multiplied, and joined to what came before by the rule of Chan, Golub and LeVeque [1]_; what a mean much
    larger than the spread costs is only the digits that the input itself has lost. A constant column has
    moments of exactly 0.

    Args:
        dim: d, columns of the clean embedding h.
        n_features: K, functions φ of the input.
        width: m, columns of the suspect's answers g.
        same: Whether the answers are as wide as the clean encoder's, and so may lie in its space. The rows g/|g| are
            then given beside g, as (n, d).

    Attributes:
        n: Queries so far, those without an answer included.
        dim: As given.
        n_features: As given.
        width: As given.
        same: As given.

    Raises:
        UsageError: A size is not a whole number of at least 1.

    Notes:
        Four blocks of columns have names: "h" (n, d), "phi" (n, K), "g" (n, m) and "unit", the rows g/|g|, 0 where g
        = 0. A query that was not answered is a row of zeros in g, and counts.

        With p columns in all, an update by n rows costs n·p² multiplications, all in matrix products, and 8·p² bytes
        stay. Sums depend on the order of the rows and on their split only by rounding.

    References:
        .. [1] T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance: analysis and
               recommendations", The American Statistician 37(3), 242-247 (1983).

    Examples:
        >>> import numpy as np
        >>> from sslguard.stats.moments import Moments
        >>> moments = Moments(1, 1, 1)
        >>> moments.update(h=[[1.0], [2.0]], phi=[[0.5], [-0.5]], g=[[3.0], [4.0]])
        >>> moments.update(h=[[3.0]], phi=[[0.0]], g=[[5.0]])
        >>> moments.n, moments.covariance("h", "g").item() * 2.0 ** (moments.exponent("h") + moments.exponent("g"))
        (3, 0.6666666666666666)
    """

    def __init__(self, dim: int, n_features: int, width: int, *, same: bool = False) -> None:
        """Create moments of no queries; see the class for the arguments."""
        self.n, self.same = 0, same
        self.dim = count("dim", dim, minimum=1)
        self.n_features = count("n_features", n_features, minimum=1)
        self.width = count("width", width, minimum=1)
        self._sizes = self.dim, self.n_features, self.width, self.dim if same else self.width
        columns = sum(self._sizes)
        self._exponents = np.full(columns, _NO_EXPONENT, dtype=np.int32)
        # Rows of small updates wait until there are enough for BLAS, or until somebody asks.
        self._waiting: list[NDArray[np.float64]] = []
        self._absorbed = 0
        self._mean = np.zeros(columns)
        # Only the upper triangle is kept up to date; BLAS adds in place to Fortran order.
        self._scatter = np.zeros((columns, columns), order="F")

    def __repr__(self) -> str:
        """Return the sizes and the number of queries."""
        return f"Moments(dim={self.dim}, n_features={self.n_features}, width={self.width}, n={self.n})"

    def update(self, h: ArrayLike, phi: ArrayLike, g: ArrayLike, unit: ArrayLike | None = None) -> None:
        """Add one batch of queries. If an argument is refused, nothing is added.

        Args:
            h: Shape (n, d). Clean embeddings, finite.
            phi: Shape (n, K). Functions of the same queries, finite.
            g: Shape (n, m). The suspect's answers, finite, of any size; a row of zeros for a query without an answer.
            unit: Shape (n, d). The rows g/|g| in the coordinates of h, where the answers are as wide as the clean
                encoder's; g/|g| itself by default.

        Raises:
            UsageError: An array has another shape, another number of rows than the others, or a value that is not
                finite.
        """
        embeddings = finite_matrix("h", h, columns=self.dim)
        features = finite_matrix("phi", phi, columns=self.n_features)
        answers = finite_matrix("g", g, columns=self.width, remedy="; an answer that is missing is a row of zeros")
        units = finite_matrix("unit", unit_rows(answers) if unit is None else unit, columns=self._sizes[3])
        if not len(embeddings) == len(features) == len(answers) == len(units):
            raise UsageError(
                "h, phi, g and unit must have one row per query, but have "
                f"{len(embeddings)}, {len(features)}, {len(answers)} and {len(units)}"
            )
        for start in range(0, len(embeddings), _ROWS):
            rows = slice(start, start + _ROWS)
            batch = np.hstack((embeddings[rows], features[rows], answers[rows], units[rows]))
            if self.n - self._absorbed + len(batch) > _ROWS:
                self._absorb()
            self._waiting.append(batch)
            self.n += len(batch)

    def covariance(self, rows: Block, columns: Block) -> NDArray[np.float64]:
        """Return the covariance of two blocks of columns, divided by n.

        Args:
            rows: Name of a block. "standard" is g with each column divided by its own standard deviation, or 0 if
                constant.
            columns: As `rows`.

        Returns:
            float64, one row for each column of the first block, one column for each of the second. The unit is
            2**(exponent(rows) + exponent(columns)), so that no answers make it overflow. A column of g that is 1e-300
            of the largest comes as 0, but not in "standard".

        Raises:
            UsageError: There is no query yet, or no block of this name.
        """
        first, second = self._span(rows), self._span(columns)
        if self.n == 0:
            raise UsageError("moments of no queries have no covariance: update them with answers first")
        self._absorb()
        if first.start > second.start:
            return self.covariance(columns, rows).T
        block = self._scatter[first, second] / self.n
        if first == second:
            block = _mirrored(block)
        return self._scale(rows)[:, None] * block * self._scale(columns)

    def exponent(self, block: Block) -> int:
        """Return the base-2 logarithm of the unit in which `covariance` gives a block's columns; 0 for "standard"."""
        self._absorb()
        return 0 if block == "standard" else int(self._exponents[self._span(block)].max())

    def _absorb(self) -> None:
        """Add the batches that wait."""
        if not self._waiting:
            return
        batch = np.concatenate(self._waiting)
        self._waiting.clear()
        largest = np.abs(batch).max(axis=0)
        exponents = np.where(largest > 0, np.frexp(largest)[1], _NO_EXPONENT).astype(np.int32)
        self._change_units(np.maximum(self._exponents, exponents))
        # One row more, so that a single product adds the batch and the step of the mean.
        scaled = np.empty((len(batch) + 1, len(largest)))
        rows = np.ldexp(batch, -self._exponents, out=scaled[:-1])
        # Shifting by the first row first makes a constant column exactly constant, whatever its mean rounds to.
        origin = rows[0].copy()
        rows -= origin
        offset = rows.mean(axis=0)
        rows -= offset
        scaled[-1] = self._join(len(batch), origin + offset)
        self._scatter = dsyrk(1.0, scaled.T, beta=1.0, c=self._scatter, overwrite_c=1)

    def _join(self, n: int, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add the count and mean of a batch in the same units.

        Return the vector whose outer product must still be added to the scatter.
        """
        step = mean - self._mean
        weight = np.sqrt(self._absorbed / (self._absorbed + n)) * np.sqrt(n)
        self._absorbed += n
        self._mean = self._mean + step * (n / self._absorbed)
        return weight * step

    def _change_units(self, exponents: NDArray[np.int32]) -> None:
        if (exponents == self._exponents).all():
            return
        factor = np.ldexp(1.0, self._exponents - exponents)
        self._exponents = exponents
        self._mean *= factor
        self._scatter *= factor
        self._scatter *= factor[:, None]

    def _span(self, block: Block) -> slice:
        ends = np.cumsum((0, *self._sizes))
        places = {"h": 0, "phi": 1, "g": 2, "standard": 2, "unit": 3}
        if block not in places:
            raise UsageError(f"a block of moments must be one of {', '.join(places)}, not {block!r}")
        return slice(int(ends[places[block]]), int(ends[places[block] + 1]))

    def _scale(self, block: Block) -> NDArray[np.float64]:
        """Return the factors from the units in which a block's columns are kept to those of `covariance`."""
        span = self._span(block)
        if block != "standard":
            return np.ldexp(1.0, self._exponents[span] - self.exponent(block))
        deviations = np.sqrt(np.diag(self._scatter)[span] / self.n)
        return np.divide(1.0, deviations, out=np.zeros_like(deviations), where=deviations > 0)


def unit_rows(g: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows of (n, m) finite numbers of any size, scaled to Euclidean length 1. Rows of zeros stay."""
    largest = np.abs(g).max(axis=1, keepdims=True)
    scaled = g / np.where(largest > 0, largest, 1.0)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.asarray(scaled / np.where(length > 0, length, 1.0))


def _mirrored(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the symmetric matrix with this upper triangle."""
    return np.asarray(np.triu(upper) + np.triu(upper, 1).T)
