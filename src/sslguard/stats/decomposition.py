"""Singular values that are found even where LAPACK's fast routine gives up."""

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
