"""What the exact test computes, on plain arrays in two passes: an oracle for tests of the streaming product.

Every formula works on the rows themselves: orthonormal bases by singular value decomposition of the data, where the
product has eigenvalues of second moments. Shapes as in `sslguard.stats.witness` and `sslguard.stats.left`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Bed:
    """A smooth synthetic clean encoder's embeddings f (n, d), rows of length 1, and a mark to put on them.

    With functions φ (n, K) of unit variance, and directions U (K, q) on the sphere of radius √K along the q principal
    axes (q, d) of f.
    """

    f: Array
    phi: Array
    directions: Array
    axes: Array

    @cached_property
    def h(self) -> Array:
        """Return the embeddings along their axes, (n, q)."""
        return self.f @ self.axes.T

    @cached_property
    def spread(self) -> Array:
        """Return the diagonal of M, (q,)."""
        return spread_of(self.h)

    def marked(self, strength: float = 0.3) -> Array:
        """Return f with the mark added."""
        mark = self.phi @ self.directions * self.spread @ self.axes
        return self.f + strength * mark / np.sqrt(len(self.directions))

    def placed(self, g: Array) -> Array:
        """Return answers as wide as f, scaled to length 1, along the axes."""
        return unit(g) @ self.axes.T


def bed(seed: int, *, n: int = 3000, d: int = 24, k: int = 8, flat: bool = False, least: float = 0.1) -> Bed:
    """Make a bed.

    `least` is the spread of the last of d directions beside the first; `flat` embeddings sum to a constant, as after
    a layer norm, so that they have an axis less.
    """
    rng = np.random.default_rng(seed)
    f = rng.standard_normal((n, d)) * np.linspace(1, least, d)
    if flat:
        f -= f.mean(1, keepdims=True)
    return bed_of(unit(f), k, rng)


def bed_of(f: Array, k: int, rng: np.random.Generator) -> Bed:
    """Make a bed of these embeddings."""
    _, sizes, axes = np.linalg.svd(f - f.mean(0), full_matrices=False)
    axes = axes[sizes > 1e-4 * sizes[0]]
    return Bed(f, fourier_features(f, k, rng), sphere(k, len(axes), rng), axes)


def unit(g: Array) -> Array:
    """Return rows scaled to length 1; rows of zeros stay."""
    there = g.any(axis=1)
    rows = g[there] / np.abs(g[there]).max(1, keepdims=True)
    found = np.zeros(g.shape)
    found[there] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


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
    """Return the diagonal of M, (q,), of embeddings along their axes."""
    spread = h.std(0) ** alpha
    return spread / np.sqrt(np.mean(spread**2))


def witness(name: str, b: Bed, g: Array) -> Array:
    """Return V (K, q) of the suspect answering g (n, m)."""
    h, phi, spread = b.h, b.phi, b.spread
    features = phi - phi.mean(0)
    features = features - _projected(features, _span(h))
    back = 1 / (spread + 0.3 * spread.mean())
    rows = b.placed(g) if g.shape[1] == b.f.shape[1] else unit(g)
    if name == "own_space":
        return features.T @ rows * back
    if name == "procrustes":
        left, _, right = np.linalg.svd((rows - rows.mean(0)).T @ (h - h.mean(0)), full_matrices=False)
        return features.T @ rows @ left @ right * back
    if name == "own_whitened":
        covariance = np.cov(rows.T, bias=True)
        floor = 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        return features.T @ rows @ np.linalg.inv(covariance + floor) * spread
    if name == "difference":
        clean, centred = h - h.mean(0), phi - phi.mean(0)
        rows = rows - rows.mean(0)
        added = rows - np.vdot(rows, clean) / np.vdot(clean, clean) * clean
        gram = centred.T @ centred
        return np.linalg.inv(gram + 0.3 * np.diag(gram).mean() * np.eye(len(gram))) @ centred.T @ added * back
    if name in ("leading", "mapped"):
        return _in_turns(name, h - h.mean(0), phi - phi.mean(0), g if name == "mapped" else rows)
    assert name == "whitened"
    answers = g - g.mean(0)
    fit = np.linalg.lstsq(h - h.mean(0), answers, rcond=1e-3)[0]
    residual = answers - (h - h.mean(0)) @ fit
    _, sizes, axes = np.linalg.svd(residual, full_matrices=False)
    axes, variances = axes[sizes > 1e-4 * sizes[0]], sizes[sizes > 1e-4 * sizes[0]] ** 2 / len(g)
    weights = (axes.T / (variances + 0.1 * variances.mean())) @ axes
    return features.T @ residual @ weights @ fit.T * spread


def z(v: Array, u: Array) -> float:
    """Return the statistic of a witness V against directions U."""
    return float(np.vdot(u, v) / np.linalg.norm(u) / np.linalg.norm(v) * np.sqrt(u.size))


def left_span(h: Array, psi: Array, g: Array, *, ridge: float, leading: int | None, columns: int) -> Array:
    """Return the projector (B, B) onto the span of the left witness: what answers g know of ψ beyond (1, h).

    Canonical correlations by way of orthonormal bases of the rows, and no covariance of anything.
    """
    n, about = len(h), psi - psi.mean(0)
    functions = about - _projected(about, _span(h))
    white = _span(g)[:, :leading] * np.sqrt(n)
    left, sizes, _ = np.linalg.svd(white - _projected(white, _span(h)), full_matrices=False)
    variances = sizes**2 / n
    answers = left * sizes / np.sqrt(variances + ridge * variances.sum() / white.shape[1])
    _, values, vectors = np.linalg.svd(functions / np.sqrt(n), full_matrices=False)
    inverse = (vectors.T / np.maximum(values**2, 0.01 * values[0] ** 2)) @ vectors
    regression = inverse @ functions.T @ answers / n
    regression = regression @ np.linalg.svd(functions @ regression, full_matrices=False)[2].T
    m = regression.shape[1]
    first, behind = regression[:, :columns], min(8, m // 2)
    noise = (regression[:, behind:] ** 2).mean(1) if m > behind + 1 else regression[:, -1] ** 2
    band = np.searchsorted(_band_ends(len(regression)), np.arange(len(regression)), side="right")
    kept = np.zeros_like(first)
    for one in np.unique(band):
        here = band == one
        power = np.maximum((first[here] ** 2).mean(0) - noise[here].mean(), 0.02 * noise[here].mean())
        kept[here] = first[here] * np.sqrt(power) / (power + noise[here].mean())
    basis = np.linalg.svd(kept, full_matrices=False)[0]
    return basis @ basis.T


def _band_ends(functions: int) -> Array:
    """Return where each of eight bands of the index ends: the same factor apart, rounded."""
    return np.round((functions + 1.0) ** (np.arange(1, 9) / 8)) - 1


def _span(a: Array) -> Array:
    left, sizes, _ = np.linalg.svd(a - a.mean(0), full_matrices=False)
    return left[:, sizes > 1e-6 * sizes[0]]


def _projected(a: Array, basis: Array) -> Array:
    return basis @ (basis.T @ a)


def _in_turns(name: str, h: Array, phi: Array, rows: Array) -> Array:
    """Fit rotation, gains and mark by turns, on rows."""
    n, whitened = len(h), name == "mapped"
    axes = np.linalg.svd(h, full_matrices=False)[2][: min(rows.shape[1], 64 if whitened else 128)]
    scores = h @ axes.T
    sizes = scores.std(0) if whitened else np.ones(len(axes))
    scores = scores / sizes
    if whitened:
        rows = (rows - rows.mean(0)) / rows.std(0)
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
