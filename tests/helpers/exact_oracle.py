"""What the exact test computes, on plain arrays in two passes: an oracle for tests of the streaming product.

Every formula works on the rows themselves: orthonormal bases by singular value decomposition of the data, where the
product has eigenvalues of second moments. Shapes as in `sslguard.stats.witness`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Bed:
    """A smooth synthetic clean encoder's embeddings h (n, d), rows of length 1.

    With features φ (n, K) of unit variance, directions U (K, d) on the sphere of radius √K, and spread M (d, d).
    """

    h: Array
    phi: Array
    directions: Array
    spread: Array

    def marked(self, strength: float = 0.3) -> Array:
        """Return h with the mark added."""
        return self.h + strength * self.phi @ self.directions @ self.spread / np.sqrt(len(self.directions))


def bed(seed: int, *, n: int = 3000, d: int = 24, k: int = 8, flat: bool = False, least: float = 0.1) -> Bed:
    """Make a bed.

    `least` is the spread of the last of d directions beside the first; `flat` embeddings sum to a constant, as after
    a layer norm.
    """
    rng = np.random.default_rng(seed)
    h = rng.standard_normal((n, d)) * np.linspace(1, least, d)
    if flat:
        h -= h.mean(1, keepdims=True)
    h /= np.linalg.norm(h, axis=1, keepdims=True)
    return Bed(h, fourier_features(h, k, rng), sphere(k, d, rng), spread_of(h))


def sphere(k: int, d: int, rng: np.random.Generator) -> Array:
    """Draw K directions on the sphere of radius √K."""
    z = rng.standard_normal((k, d))
    return z * np.sqrt(k) / np.linalg.norm(z)


def fourier_features(h: Array, k: int, rng: np.random.Generator, *, q: int = 6, frequency: float = 1.5) -> Array:
    """Draw K random Fourier features of h, of unit variance."""
    centred = h - h.mean(0)
    left, _, _ = np.linalg.svd(centred, full_matrices=False)
    angles = left[:, :q] * np.sqrt(len(h)) @ rng.standard_normal((q, k)) * frequency / np.sqrt(q)
    raw = np.cos(angles + rng.uniform(0, 2 * np.pi, k))
    return (raw - raw.mean(0)) / raw.std(0)


def spread_of(h: Array, alpha: float = 0.5) -> Array:
    """Return M (d, d) of embeddings h."""
    _, sizes, axes = np.linalg.svd(h - h.mean(0), full_matrices=False)
    spread = (axes.T * sizes**alpha) @ axes
    return spread * np.sqrt(len(spread)) / np.linalg.norm(spread)


def witness(name: str, h: Array, phi: Array, g: Array, spread: Array) -> Array:
    """Return V (K, d) of the suspect answering g (n, m)."""
    features = phi - phi.mean(0)
    features = features - _projected(features, _span(h))
    back = np.linalg.inv(spread + 0.3 * np.trace(spread) / len(spread) * np.eye(len(spread)))
    if name in ("own_space", "procrustes"):
        unit = g / np.linalg.norm(g, axis=1, keepdims=True)
        rotation = np.eye(g.shape[1])
        if name == "procrustes":
            left, _, right = np.linalg.svd((unit - unit.mean(0)).T @ (h - h.mean(0)), full_matrices=False)
            rotation = left @ right
        return features.T @ unit @ rotation @ back
    if name == "own_whitened":
        unit = g / np.linalg.norm(g, axis=1, keepdims=True)
        covariance = (unit - unit.mean(0)).T @ (unit - unit.mean(0)) / len(g)
        floor = 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        return features.T @ unit @ np.linalg.inv(covariance + floor) @ spread
    if name == "difference":
        clean, unit = h - h.mean(0), g / np.linalg.norm(g, axis=1, keepdims=True)
        centred, unit = phi - phi.mean(0), unit - unit.mean(0)
        added = unit - np.vdot(unit, clean) / np.vdot(clean, clean) * clean
        gram = centred.T @ centred
        return np.linalg.inv(gram + 0.3 * np.diag(gram).mean() * np.eye(len(gram))) @ centred.T @ added @ back
    if name == "predicted":
        return features.T @ _projected(h - h.mean(0), _span(g)) @ back
    if name in ("aligned", "leading", "shifted", "mapped"):
        return _in_turns(name, h - h.mean(0), phi - phi.mean(0), g)
    assert name == "whitened"
    answers = g - g.mean(0)
    fit = np.linalg.lstsq(h - h.mean(0), answers, rcond=1e-3)[0]
    residual = answers - (h - h.mean(0)) @ fit
    _, sizes, axes = np.linalg.svd(residual, full_matrices=False)
    axes, variances = axes[sizes > 1e-4 * sizes[0]], sizes[sizes > 1e-4 * sizes[0]] ** 2 / len(g)
    weights = (axes.T / (variances + 0.1 * variances.mean())) @ axes
    return features.T @ residual @ weights @ fit.T @ spread


def z(v: Array, u: Array) -> float:
    """Return the statistic of a witness V against directions U."""
    return float(np.vdot(u, v) / np.linalg.norm(u) / np.linalg.norm(v) * np.sqrt(u.size))


def _span(a: Array) -> Array:
    left, sizes, _ = np.linalg.svd(a - a.mean(0), full_matrices=False)
    return left[:, sizes > 1e-6 * sizes[0]]


def _projected(a: Array, basis: Array) -> Array:
    return basis @ (basis.T @ a)


def _in_turns(name: str, h: Array, phi: Array, g: Array) -> Array:
    """Fit rotation, gains and mark by turns, on rows."""
    n, whitened = len(h), name == "mapped"
    axes = np.linalg.svd(h, full_matrices=False)[2][: min(g.shape[1], 64 if whitened else 128)]
    scores = h @ axes.T
    sizes = scores.std(0) if whitened else np.ones(len(axes))
    scores, rows = scores / sizes, g if name == "shifted" else g / np.linalg.norm(g, axis=1, keepdims=True)
    if whitened:
        rows = (g - g.mean(0)) / g.std(0)
        values, vectors = np.linalg.eigh(rows.T @ rows / n)
        rows = rows @ vectors @ np.diag((values + 0.03 * values.mean()) ** -0.4) @ vectors.T
    rows = rows - rows.mean(0)
    gram = phi.T @ phi
    gains, mark = np.ones(len(axes)), np.zeros((phi.shape[1], len(axes)))
    for _ in range(12):
        left, _, right = np.linalg.svd(rows.T @ (scores * gains + phi @ mark), full_matrices=False)
        turned = rows @ left @ right
        gains = np.maximum(np.sum((turned - phi @ mark) * scores, 0) / np.sum(scores**2, 0), 0)
        mark = np.linalg.solve(gram + 0.3 * np.diag(gram).mean() * np.eye(len(gram)), phi.T @ (turned - scores * gains))
    kept = 24 if name == "leading" else len(axes)
    return (mark * np.sqrt(sizes))[:, :kept] @ axes[:kept]
