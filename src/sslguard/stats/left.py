"""Witnesses of the left secret: which public functions of the input the answers know beyond the clean embedding.

h, g      clean embedding of a query, (d,); the suspect's answer, (m,), any m
ψ, ψ̃      B public functions of the input; what of them is not linear in (1, h)
A         left secret, (B, r): which mixtures of ψ the mark adds

Behind any linear map the mark shows in ψ̃ᵀg as A times something: the map acts on the other side. A witness S is k
orthonormal columns of R^B, an estimate of the span of A made of h, ψ and g alone. **No argument exists through which a
secret could come in.** This makes the p-value of `left_test` exact, and every choice made here affects power alone.
The order of ψ matters for power: functions that copies learn first come first.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln

from sslguard.errors import UsageError
from sslguard.stats.corrections import fisher
from sslguard.stats.decomposition import symmetric, thin_svd
from sslguard.stats.spectra import RANK, Spectra

Array = NDArray[np.float64]


class Member(NamedTuple):
    """A witness of the family.

    Attributes:
        ridge: Of the second whitening, as a share of the mean variance.
        leading: Principal components of the answers that are kept; None for all. Those that keep some are unchanged by
            rotations of the answers, the others by every invertible affine map.
        columns: k.
    """

    ridge: float
    leading: int | None
    columns: int

    @property
    def name(self) -> str:
        """What reports call it."""
        kept = "all components" if self.leading is None else f"{self.leading} components"
        return f"{kept}, ridge {self.ridge:g}, {self.columns} directions"


FAMILY = tuple(Member(*kind, k) for kind in ((0.02, None), (0.5, None), (0.1, 24)) for k in (2, 4, 8))
_BANDS = 8
_GRAM_FLOOR = 1e-2
_BEHIND = 8
"""Directions of the answers behind so many hold noise, from which its size is told."""


def left_family(width: int) -> tuple[Member, ...]:
    """Return what is asked of a suspect of m columns: all that applies, and all that Bonferroni charges for."""
    # Of a single column a witness has one as well.
    return tuple(one for one in FAMILY if one.columns <= max(width, 2) and (one.leading is None or one.leading < width))


def left_witnesses(spectra: Spectra) -> dict[str, Array]:
    """Return S (B, k), orthonormal columns, of every member of the suspect's family, by name.

    S is 0 where the answers carry nothing of ψ̃ beyond rounding, and where there are no more queries than columns of ψ̃
    and of the answers together: some mixtures of both are equal then, whoever answers, and rounding would choose one.

    Args:
        spectra: Of the moments of h, ψ (as "phi") and the suspect's answers g, any m.
    """
    return {one.name: _witness(spectra, one) for one in left_family(spectra.moments.width)}


def _witness(spectra: Spectra, one: Member) -> Array:
    name = "left witness", one.name, "phi"
    return spectra.once(name, lambda: _shrunk(_coefficients(spectra, one.ridge, one.leading), one.columns))


def _coefficients(spectra: Spectra, ridge: float, leading: int | None) -> Array:
    """Return the regression (B, m') of the whitened answers on ψ̃, columns in the order of their canonical correlation.

    1 whiten the answers, which undoes any invertible linear map; 2 take off their linear fit on (1, h); 3 whiten what
    is left, with a ridge; 4 regress on ψ̃.
    """
    name = "coefficients", str(ridge), str(leading), "phi"
    return spectra.once(name, lambda: _canonical(spectra, ridge, leading))


def _canonical(spectra: Spectra, ridge: float, leading: int | None) -> Array:
    gram = spectra.functions_gram()
    values, vectors = symmetric(gram)
    inverse = (vectors / np.maximum(values, _GRAM_FLOOR * values[-1])) @ vectors.T
    covariance, left = spectra.once(("left", str(leading), "phi"), lambda: _whitened(spectra, leading))
    if not covariance.any():
        return np.zeros((len(gram), max(1, len(left))))
    coefficients = inverse @ (covariance / np.sqrt(left + ridge * left.mean() + 1e-300))
    # The canonical directions are eigenvectors of coefficientsᵀ·gram·coefficients. Of m' of them, all but B are 0.
    root = vectors * np.sqrt(np.maximum(values, 0))
    turned = np.zeros_like(coefficients)
    turn = thin_svd(root.T @ coefficients)[2]
    turned[:, : len(turn)] = coefficients @ turn.T
    return turned


def _whitened(spectra: Spectra, leading: int | None) -> tuple[Array, Array]:
    """Return the covariance (B, m') of ψ̃ with the axes of the whitened answers beyond (1, h), and variances (m',)."""
    # Full whitening comes out the same of standardised columns, which keep more digits.
    block = "standard" if leading is None else "g"
    values, axes = spectra.eigen(block)
    keep = values > max(RANK**2 * values[-1], 0.0)
    keep[: max(0, len(values) - (leading or len(values)))] = False
    covariance, m = spectra.beyond_linear(block), max(1, int(keep.sum()))
    if not covariance.any() or not keep.any() or m + len(covariance) >= spectra.moments.n:
        return np.zeros((len(covariance), m)), np.ones(m)
    white = axes[:, keep] / np.sqrt(values[keep])
    clean = spectra.whitener("h", RANK)
    fit = clean.T @ spectra.covariance("h", block) @ white
    left, turn = symmetric(np.eye(fit.shape[1]) - fit.T @ fit)
    return covariance @ white @ turn, np.maximum(left, 0)


def _shrunk(coefficients: Array, columns: int) -> Array:
    """Return orthonormal columns (B, k): the first ones, each a posterior mean.

    Gain and noise are constant over bands of the index of ψ; noise is what the directions behind the first ones hold.
    """
    b, m = coefficients.shape
    k, behind = min(columns, m), min(_BEHIND, m // 2)
    noise = np.square(coefficients[:, behind:]).mean(1) if m > behind + 1 else np.square(coefficients[:, -1])
    edges = np.unique(np.round(np.geomspace(1, b + 1, _BANDS + 1)).astype(int) - 1)
    shrunk = np.zeros((b, k))
    for start, stop in pairwise(edges):
        band = coefficients[start:stop, :k]
        floor = noise[start:stop].mean() + 1e-300
        signal = np.maximum(np.square(band).mean(0) - floor, 0.02 * floor)
        shrunk[start:stop] = band * np.sqrt(signal) / (signal + floor)
    if not shrunk.any():
        return shrunk
    return np.asarray(np.linalg.qr(shrunk)[0])


def left_test(witness: Array, left: Array) -> float:
    """Return log2 p of one witness S (B, k), orthonormal columns, against A (B, r).

    Null hypothesis: the suspect is independent of A, one uniform point on a sphere of R^(B·r), and S is a function of
    all the rest. The directions of A's columns are then independent and uniform, so each share |Sᵀa|²/|a|² is
    Beta(k/2, (B − k)/2), and their tails combine by Fisher's sum: p is uniform. S = 0 gives p = 1.

    Raises:
        UsageError: The shapes do not fit, or A has a column of 0.
    """
    if witness.ndim != 2 or left.ndim != 2 or len(witness) != len(left) or not left.any(axis=0).all():
        raise UsageError("a left witness and a left secret must have a row for each function")
    if not witness.any():
        return 0.0
    unit = left / np.linalg.norm(left, axis=0)
    outside = unit - witness @ (witness.T @ unit)
    shares = np.square(witness.T @ unit).sum(0), np.square(outside).sum(0)
    return float(fisher([log2_share_tail(*pair, *witness.shape) for pair in zip(*shares, strict=True)]))


def log2_share_tails(shares: Array, dimension: int, columns: int) -> Array:
    """Return `log2_share_tail` of many shares, of any shape, to some 1e-6 bits: fast where k is even.

    Of an even k the tail is a finite sum, y^a·Σ_(i<k/2) Γ(a+i)/(Γ(a)·i!)·(1 − y)^i with y = 1 − share, a = (B − k)/2.

    Args:
        shares: In [0, 1].
        dimension: B.
        columns: k.
    """
    if columns >= dimension:
        return np.zeros_like(shares)
    inside = np.clip(shares, 0.0, 1 - 1e-15)
    if columns % 2:
        return np.vectorize(lambda share: log2_share_tail(share, 1 - share, dimension, columns), otypes=[float])(inside)
    a = (dimension - columns) / 2
    total, term = np.ones_like(inside), np.ones_like(inside)
    for i in range(1, columns // 2):
        term = term * inside * ((a + i - 1) / i)
        total += term
    return np.minimum(0.0, (a * np.log1p(-inside) + np.log(total)) / math.log(2))


def log2_share_tail(share: float, rest: float, dimension: int, columns: int) -> float:
    """Return log2 P(share' ≥ share), the share of a uniform direction of R^B that lies in a fixed k-dimensional space.

    Args:
        share: In [0, 1].
        rest: 1 − share, without cancellation.
        dimension: B.
        columns: k, at most B.

    Notes:
        share' is Beta(k/2, (B − k)/2). Deep tails come in logarithms, from the series 8.17.8 of [1]_.

    References:
        .. [1] NIST Digital Library of Mathematical Functions, https://dlmf.nist.gov/8.17.
    """
    if columns >= dimension:
        return 0.0
    a, b = (dimension - columns) / 2, columns / 2
    y = min(1.0, max(rest, 1e-32))
    tail = float(betainc(a, b, y))
    if tail >= 1e-250:
        return math.log2(tail)
    total, term, i = 1.0, 1.0, 0
    while term > 1e-16 * total:
        term *= (a + b + i) / (a + 1 + i) * y
        total += term
        i += 1
    log = a * math.log(y) + b * math.log(max(share, 1e-300)) - math.log(a) - float(betaln(a, b)) + math.log(total)
    return log / math.log(2)
