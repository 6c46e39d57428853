"""Witnesses of the right secret: where in embedding space the answers carry the functions that the mark adds.

A witness V (K, q) estimates the right secret G from moments of clean embeddings, the K functions that the mark adds and
the suspect's answers, and from the spread of the mark. The functions are mixed by the left secret, which is known here.
**No argument exists through which G could come in.** This makes the p-value of `direction.direction_test` exact, and
every choice made here affects power alone.

========  ==========================================================================================
F, h      clean encoder; its embedding of a query along its principal axes, (q,)
g         the suspect's answer, (m,), any m; along the same axes where it is as wide as F's
φ, φ̃      the K functions (ψ∘s)·A of the input; what of them is not linear in (1, h)
M, M⁻     spread of the mark, diagonal, (q,); 1/(M + 0.3·mean M), so that every axis comes back with equal gain
========  ==========================================================================================

The mark is h + √(E/K)·Σ_k φ_k·M g_k, so φ̃ᵀh* M⁻ is near G, and φ̃ᵀh = 0. The witnesses differ in how they bring g
back to h's space, and in which part of g they treat as the suspect's own:

============  ==========================================  =======================================================
own_space     φ̃ᵀ(g/|g|) M⁻                                answers in h's own space
difference    G_λ⁻¹φᵀ(g/|g| − a·h) M⁻                     the same, and what of the mark is linear in h
own_whitened  φ̃ᵀ(g/|g|) C_λ⁻¹ M                           the same, after training on something else
leading       φ beside a rotation R and gains             h* rotated; mark and rotation are fitted together
procrustes    φ̃ᵀ(g/|g|) R M⁻                              h rotated, or padded
mapped        `leading`, most of Cov g undone             h* behind an unknown linear map
whitened      φ̃ᵀ r W L̂ᵀ M                                 logits, strong maps, noisy answers
============  ==========================================  =======================================================

None is best on every suspect. `family` names those that are computed for a suspect of m columns; it is fixed before the
suspect answers. No witness depends on the scale of g or of M. V is 0 if the suspect carries nothing of φ̃ beyond
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve, solve

from sslguard.errors import UsageError
from sslguard.stats import alignment
from sslguard.stats.arguments import finite_vector
from sslguard.stats.decomposition import row_space, symmetric, thin_svd
from sslguard.stats.moments import Moments
from sslguard.stats.spectra import RANK, Spectra, or_zero

Array = NDArray[np.float64]
Witness = tuple[Array, Array | None]

# Where h hardly varies, the fitted map from h to g is noise. Where the residual hardly varies, its covariance is noise.
_FIT_RANK, _RESIDUAL_RANK = 1e-3, 1e-4
_GAIN_FLOOR, _NOISE_FLOOR = 0.3, 0.1
# Components of h in which a copy's rotation can be estimated well.
_LEADING = 24
_OWN = frozenset({"own_space", "difference", "own_whitened"})


def witness(name: str, spectra: Spectra, spread: ArrayLike) -> Witness:
    """Return the witness of this name, and the subspace that its rows can lie in.

    A suspect of m < d columns, or of lower rank, shows the directions only through the range of the fit between its
    space and h's. Within it the same evidence stands against fewer dimensions. The subspace depends on h and g, not
    on φ̃ᵀg: the row space of V itself would be a worse choice.

    Args:
        name: One of `WITNESSES`.
        spectra: Of the moments of h, φ and the suspect's answers g, any m; m = q for "own_space", "difference" and
            "own_whitened".
        spread: Diagonal of M, (q,), positive. Chosen without G, not even through its scale.

    Returns:
        V, float64 (K, q), of arbitrary scale; and orthonormal columns, float64 (q, r), 0 < r < q, the `basis` of
        `direction_test`: None where the range is R^q, or V is 0.

    Raises:
        UsageError: There is no witness of this name; the moments hold no query, or their m is not q where it must be;
            or the spread is not as described.
    """
    if name not in _FACTORS:
        raise UsageError(f"witness must be one of {', '.join(WITNESSES)}, not {name!r}")
    return _with_range(_FACTORS[name](spectra, _Spread(spread, spectra.moments.dim)))


def witnesses(spectra: Spectra, spread: ArrayLike, chosen: Collection[str] | None = None) -> dict[str, Witness]:
    """Return every witness of the suspect's `family`, what they share computed once.

    Args:
        spectra: As in `witness`.
        spread: As in `witness`.
        chosen: Names of those of the family that are computed; None for all.

    Returns:
        Name to what `witness` gives, bit for bit.

    Raises:
        UsageError: As in `witness`.
    """
    checked, names = _Spread(spread, spectra.moments.dim), family(same=spectra.moments.same)
    return {n: _with_range(_FACTORS[n](spectra, checked)) for n in names if chosen is None or n in chosen}


def family(*, same: bool) -> tuple[str, ...]:
    """Return the names of what is asked of a suspect: all that applies, and all that Bonferroni charges for.

    Args:
        same: Whether its answers are as wide as the clean embedding: known before the first query that counts.

    Returns:
        `WITNESSES`; without "own_space", "difference" and "own_whitened" where they are not.

    Examples:
        >>> from sslguard.stats.witness import family
        >>> len(family(same=True))
        7
        >>> family(same=False)
        ('leading', 'procrustes', 'mapped', 'whitened')
    """
    return tuple(name for name in WITNESSES if same or name not in _OWN)


def _with_range(factors: _Factors) -> Witness:
    left, right, whole = factors
    v = or_zero(left @ right, np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=0))
    return v, None if whole or not v.any() else row_space(right, RANK)


class _Spread:
    """The diagonals of M, after a check, and of M⁻, which brings each axis of the mark back with nearly equal gain."""

    def __init__(self, spread: ArrayLike, dim: int) -> None:
        diagonal = finite_vector("spread", spread)
        if len(diagonal) != dim or not (diagonal > 0).all():
            raise UsageError(f"spread must be {dim} positive numbers, not of shape {diagonal.shape} with others")
        self.diagonal = diagonal / diagonal.max()
        self.inverse = 1 / (self.diagonal + _GAIN_FLOOR * self.diagonal.mean())


# A witness is the product of two factors, (K, r) and (r, d): only the first sees φ, and the second spans V's rows;
# True where that is known to be R^q, as of M⁻, whose least number is at least 0.3/(q + 0.3) of the largest.
_Factors = tuple[Array, Array, bool]


def _own_space(shared: Spectra, spread: _Spread) -> _Factors:
    """φ̃ᵀ(g/|g|) M⁻, of answers in the clean encoder's own space."""
    _check_own_space("own_space", shared.moments)
    return shared.beyond_linear("unit"), np.diag(spread.inverse), True


def _difference(shared: Spectra, spread: _Spread) -> _Factors:
    """G_λ⁻¹φᵀ(g/|g| − a·h) M⁻, of answers in the clean encoder's own space and scale.

    The part of the mark that is linear in h counts here, and a surrogate learns that part best; `own_space` leaves it
    out. In exchange, every linear change of h by the suspect is noise, beyond its overall gain a (least squares).
    G_λ = Cov φ + 0.3·mean(diag Cov φ)·I undoes the correlation of the features.
    """
    _check_own_space("difference", shared.moments)
    # Both in units of 1; φ's own unit is common to them.
    unit, clean = shared.natural("phi", "unit"), shared.natural("phi", "h")
    gain = np.trace(shared.natural("unit", "h")) / (np.trace(shared.natural("h", "h")) or 1.0)
    sizes = np.ldexp(shared.deviations("unit"), shared.moments.exponent("unit"))
    moved = or_zero(unit - gain * clean, shared.deviations("phi"), sizes)
    gram = shared.covariance("phi", "phi")
    ridge = _GAIN_FLOOR * np.diag(gram).mean() or 1.0
    return np.asarray(solve(gram + ridge * np.eye(len(gram)), moved, assume_a="pos")), np.diag(spread.inverse), True


def _own_whitened(shared: Spectra, spread: _Spread) -> _Factors:
    """φ̃ᵀ(g/|g|) C_λ⁻¹ M with C_λ = Cov(g/|g|) + 0.1·mean(diag Cov)·I, of a suspect that has learned something else.

    Fine-tuning changes an encoder most in the directions of its new task, and hides the mark there. Here each direction
    is weighted by the inverse of the answers' own variance. On an untouched copy, where nothing hides the mark,
    `own_space` and `difference` are stronger.
    """
    _check_own_space("own_whitened", shared.moments)
    answers = shared.covariance("unit", "unit")
    floor = _NOISE_FLOOR * np.diag(answers).mean() or 1.0
    factor = cho_factor(answers + floor * np.eye(len(answers)))
    return np.asarray(cho_solve(factor, shared.beyond_linear("unit").T)).T, np.diag(spread.diagonal), False


def _check_own_space(name: str, moments: Moments) -> None:
    if not moments.same:
        raise UsageError(
            f"{name} needs answers in the clean encoder's space, of {moments.dim} columns, not {moments.width}: "
            "ask witness.family which witnesses apply"
        )


def _procrustes(shared: Spectra, spread: _Spread) -> _Factors:
    """φ̃ᵀ(g/|g|) R M⁻ with R (m, d) the orthogonal map that brings g/|g| nearest to h.

    R is the polar factor of their covariance. For m ≠ d it is the rotation after the narrower one is padded with
    columns of 0. Directions that the covariance does not determine are left out of R. Unchanged by rotations of g
    about 0.
    """
    left, sizes, right = thin_svd(shared.covariance("unit", "h"))
    # Squared, for these are the product of two spreads.
    keep = sizes > RANK**2 * sizes[0]
    whole = keep.sum() == shared.moments.dim
    return shared.beyond_linear("unit") @ left[:, keep], right[keep] * spread.inverse, bool(whole)


def _leading(shared: Spectra, spread: _Spread) -> _Factors:  # noqa: ARG001
    """Return what φ adds in the 24 leading axes of h, once R and gains are fitted with it (`alignment.rotated`).

    The part of the mark that is linear in h then counts, as far as no rotation could produce it. In smaller axes the
    copy's own errors hide its rotation against h: what is left out is mostly noise, and with fewer dimensions the same
    evidence is stronger. Rotations of g about 0 change nothing.
    """
    mark, axes = alignment.rotated(shared)
    return mark[:, :_LEADING], axes[:_LEADING], False


def _mapped(shared: Spectra, spread: _Spread) -> _Factors:  # noqa: ARG001
    """Return what φ adds once most of g's covariance is undone, for suspects behind an unknown linear map.

    Map and mark are fitted together (`alignment.mapped`).
    """
    return *alignment.mapped(shared), False


def _whitened(shared: Spectra, spread: _Spread) -> _Factors:
    """φ̃ᵀ r W L̂ᵀ M, where g ≈ h L̂ + r is the regression on (1, h): for logits, strong maps and noisy answers.

    W = (Cov r + λI)⁻¹ gives each direction of g the weight that its noise leaves it; λ is a tenth of r's mean variance.
    """
    answers, axes = shared.covariance("g", "g"), shared.whitener("h", _FIT_RANK)
    fit = axes.T @ shared.covariance("h", "g")
    noise, directions = symmetric(answers - fit.T @ fit)
    keep = noise > max(_RESIDUAL_RANK**2 * noise[-1], RANK**2 * np.trace(answers))
    if not keep.any():
        return np.zeros((shared.n_features, 0)), np.zeros((0, shared.moments.dim)), False
    noise, directions = noise[keep], directions[:, keep]
    weights = directions / (noise + _NOISE_FLOOR * noise.mean())
    return shared.beyond_linear("g") @ weights @ directions.T, fit.T @ (axes.T * spread.diagonal), False


_FACTORS: Mapping[str, Callable[[Spectra, _Spread], _Factors]] = {
    "own_space": _own_space,
    "difference": _difference,
    "own_whitened": _own_whitened,
    "leading": _leading,
    "procrustes": _procrustes,
    "mapped": _mapped,
    "whitened": _whitened,
}
WITNESSES = tuple(_FACTORS)
"""Names of the witnesses, in the order in which they are computed."""
