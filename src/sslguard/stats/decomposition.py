"""Matrix decompositions that also work where LAPACK's fastest routine does not converge."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[np.float64]


def thin_svd(matrix: Array) -> tuple[Array, Array, Array]:
    """Compute the thin singular value decomposition of a matrix.

    Divide and conquer (gesdd) does not converge on some matrices, such as those of answers that a suspect rounds to
    two levels. QR iteration (gesvd) is slower and then takes its place.

    Args:
        matrix: Shape (m, n). Finite numbers.

    Returns:
        Left singular vectors (m, r), singular values (r,) and right singular vectors (r, n), with r = min(m, n).
    """
    try:
        found = linalg.svd(matrix, full_matrices=False)
    except linalg.LinAlgError:
        found = linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd")
    left, sizes, right = found
    return left, sizes, right


def symmetric(matrix: Array) -> tuple[Array, Array]:
    """Return eigenvalues, ascending, and eigenvectors, in columns, of a symmetric matrix, by divide and conquer."""
    values, vectors = linalg.eigh(matrix, driver="evd")
    return values, vectors


def row_space(matrix: Array, tolerance: float) -> Array | None:
    """Return orthonormal columns (n, k) that span the rows of a matrix, or None if the rows span all of R^n.

    Args:
        matrix: Shape (r, n). Not all 0.
        tolerance: Singular values up to this share of the largest count as 0; at least 1e-7.
    """
    r, n = matrix.shape
    matrix = matrix / np.abs(matrix).max()
    axes, small = np.linalg.qr(matrix.T) if r < n else (None, matrix.T)
    gram = small @ small.T
    # The norm is at least the largest eigenvalue. If every eigenvalue exceeds what is subtracted, a Cholesky factor
    # exists, and no singular value decomposition is needed. That is nearly always so.
    gram[np.diag_indices_from(gram)] -= 4 * tolerance**2 * np.linalg.norm(gram)
    try:
        linalg.cholesky(gram, overwrite_a=True, check_finite=False)
    except linalg.LinAlgError:
        _, sizes, rows = thin_svd(matrix)
        axes = rows[sizes > tolerance * sizes[0]].T
        return axes if axes.shape[1] < n else None
    return axes
