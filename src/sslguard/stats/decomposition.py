"""Decompositions: singular values that are found even where LAPACK's fast routine gives up, and what is cheaper."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[np.float64]


def thin_svd(matrix: Array) -> tuple[Array, Array, Array]:
    """Left singular vectors (m, r), singular values (r,) and right ones (r, n) of an (m, n) matrix, r = min(m, n).

    Divide and conquer (gesdd) does not converge on some matrices, such as those of answers that a suspect rounds to
    two levels; QR iteration (gesvd) is slower and does.
    """
    try:
        found = linalg.svd(matrix, full_matrices=False)
    except linalg.LinAlgError:
        found = linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd")
    left, sizes, right = found
    return left, sizes, right


def symmetric(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors in columns, of a symmetric matrix, by divide and conquer."""
    values, vectors = linalg.eigh(matrix, driver="evd")
    return values, vectors


def row_space(matrix: Array, tolerance: float) -> Array | None:
    """Orthonormal columns (n, k) that span the rows of an (r, n) matrix, not 0; None where they span all of R^n.

    Singular values up to `tolerance`, at least 1e-7, of the largest count as 0.
    """
    r, n = matrix.shape
    matrix = matrix / np.abs(matrix).max()
    axes, small = np.linalg.qr(matrix.T) if r < n else (None, matrix.T)
    gram = small @ small.T
    # Its norm is no less than its largest eigenvalue. Where every eigenvalue is larger than what is taken off, a factor
    # exists, and the singular value decomposition is saved: nearly always.
    gram[np.diag_indices_from(gram)] -= 4 * tolerance**2 * np.linalg.norm(gram)
    try:
        linalg.cholesky(gram, overwrite_a=True, check_finite=False)
    except linalg.LinAlgError:
        _, sizes, rows = thin_svd(matrix)
        axes = rows[sizes > tolerance * sizes[0]].T
        return axes if axes.shape[1] < n else None
    return axes
