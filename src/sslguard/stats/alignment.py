"""Estimates of the mark from answers that an unknown map has moved out of the clean encoder's space.

Two functions estimate X, the mark's directions in the clean space, from moments alone. `rotated` finds the best
rotation. `mapped` first undoes most of the answers' own covariance, as is needed if a linear map was applied to them.
Both fit map and mark together. A map that is fitted to h alone would absorb the part of the mark that is linear in h,
and would turn a marked encoder the wrong way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from sslguard.stats.decomposition import thin_svd
from sslguard.stats.spectra import CARRIED, RANK, Spectra

Array = NDArray[np.float64]

# Components of h used to find a rotation, or a map. Later ones are too small for that.
_ROTATED, _MAPPED = 128, 64
_ROUNDS = 12
_RIDGE = 0.3  # of the fit of X, in mean variances of φ
# Answers are multiplied by (Cov g + …)^-0.4. Full whitening, -0.5, would raise noise to the level of the signal.
_WHITENING, _NOISE_FLOOR = 0.4, 0.03


def rotated(spectra: Spectra) -> tuple[Array, Array]:
    """Estimate X with g/|g|·R ≈ h·D + φ·X, by alternating least squares.

    R is a rotation and D holds a gain for each principal component of h.

    Args:
        spectra: Of the moments of h, φ and g.

    Returns:
        X, float64 (K, r), in the r leading principal components of h; and these components, float64 (r, d). r is at
        most 128, and at most the number of columns of g.
    """
    axes, variances = _components(spectra, _ROTATED)
    answers, features = spectra.natural("unit", "h") @ axes.T, spectra.natural("unit", "phi")
    size = np.sqrt(np.trace(spectra.natural("unit", "unit")))
    return _in_turns(spectra, answers, features, axes @ spectra.natural("h", "phi"), variances, size), axes


def mapped(spectra: Spectra) -> tuple[Array, Array]:
    """Estimate X as `rotated` does, from standardised answers times (Cov g)^-0.4.

    It uses the r ≤ 64 leading components of h, scaled to variance 1.

    Args:
        spectra: Of the moments of h, φ and g.

    Returns:
        X, float64 (K, r), times the components' standard deviations to the power ½; and the components, float64
        (r, d).
    """
    axes, variances = _components(spectra, _MAPPED)
    values, vectors = spectra.eigen("standard")
    floor = _NOISE_FLOOR * values.mean() or 1.0
    whitener = (vectors * (np.maximum(values, 0) + floor) ** -_WHITENING) @ vectors.T
    sizes = np.sqrt(variances)
    answers = whitener @ (spectra.natural("standard", "h") @ axes.T / sizes)
    features = whitener @ spectra.natural("standard", "phi")
    clean = axes @ spectra.natural("h", "phi") / sizes[:, None]
    size = np.sqrt(len(whitener)) * np.abs(whitener).max()
    mark = _in_turns(spectra, answers, features, clean, np.ones(len(axes)), size)
    return mark * np.sqrt(sizes), axes


def _in_turns(spectra: Spectra, answers: Array, features: Array, clean: Array, variances: Array, size: float) -> Array:
    """Return X (K, r) of g·R ≈ h·D + φ·X, from covariances of g with h (m, r) and φ (m, K), and of h with φ (r, K).

    X is 0 if g shows nothing of φ beyond rounding. `size` is the spread of g.
    """
    gram = spectra.covariance("phi", "phi")
    factor = cho_factor(gram + (_RIDGE * np.diag(gram).mean() or 1.0) * np.eye(len(gram)))
    least = CARRIED * np.sqrt(np.diag(gram))[:, None] * size
    r, k = answers.shape[1], len(gram)
    if len(answers) > r + k:
        # R turns only the span of these columns, so an orthonormal basis of that span serves as well as all columns.
        triangle: Array = np.linalg.qr(np.hstack((answers, features)), mode="r")  # type: ignore[assignment]
        answers, features = triangle[:, :r], triangle[:, r:]
    gains, mark = np.ones(r), np.zeros((k, r))
    for _ in range(_ROUNDS):
        left, _, right = thin_svd(answers * gains + features @ mark)
        rotation = left @ right
        told = np.einsum("mr,mr->r", rotation, answers) - np.einsum("kr,rk->r", mark, clean)
        gains = np.maximum(told / variances, 0)
        moved = features.T @ rotation - gains * clean.T
        if not (np.abs(moved) > least).any():
            return np.zeros_like(mark)
        mark = np.asarray(cho_solve(factor, moved))
    return mark


def _components(spectra: Spectra, most: int) -> tuple[Array, Array]:
    """Return leading principal components of h, in rows, and their variances.

    There is at least one, and there are no more than g has columns.
    """
    most = min(most, spectra.moments.width)
    values, vectors = spectra.eigen("h")
    values, vectors = np.ldexp(values[::-1][:most], 2 * spectra.moments.exponent("h")), vectors[:, ::-1][:, :most]
    keep = values > RANK**2 * values[0]
    if not keep.any():
        return vectors[:, :1].T, np.ones(1)
    return vectors[:, keep].T, values[keep]
