"""Witnesses of the exact test: estimates of the secret directions from a suspect's answers, made without the secret.

A witness V (K, d) estimates the secret directions from moments of clean embeddings, secret features and the suspect's
answers, and from the spread of the mark. **No argument exists through which the directions could come in.** This makes
the p-value of `direction.direction_test` exact, and every choice made here affects power alone.

========  ==========================================================================================
F, h      clean encoder; its embedding of a query, (d,)
g         the suspect's answer, (m,), any m
φ, φ̃      K secret features of h and of the input; what of them is not linear in (1, h)
M, M⁻     spread of the mark, (d, d); (M + 0.3·mean(diag M)·I)⁻¹, so that every direction comes back with equal gain
========  ==========================================================================================

The mark is h + ε·K^(-1/2)·Σ_k φ_k·M u_k, so φ̃ᵀh* M⁻ is near U, and φ̃ᵀh = 0. The witnesses differ in how they bring g
back to h's space, and in which part of g they treat as the suspect's own:

============  ==========================================  =======================================================
own_space     φ̃ᵀ(g/|g|) M⁻                                answers in h's own space
difference    G_λ⁻¹φᵀ(g/|g| − a·h) M⁻                     the same, and what of the mark is linear in h
own_whitened  φ̃ᵀ(g/|g|) C_λ⁻¹ M                           the same, after training on something else
aligned       φ beside a rotation R and gains             h* rotated; mark and rotation are fitted together
leading       `aligned` in 24 components of h             the same, where a rotation can be told well
shifted       `aligned` of g as it is                     the same, with another mean
procrustes    φ̃ᵀ(g/|g|) R M⁻                              h rotated, or padded
mapped        `aligned`, most of Cov g undone             h* behind an unknown linear map
predicted     φ̃ᵀĥ M⁻, ĥ the regression of h on (1, g)     h behind any linear map
whitened      φ̃ᵀ r W L̂ᵀ M                                 logits, strong maps, noisy answers
============  ==========================================  =======================================================

None is best on every suspect. `family` names those that are computed for a suspect of m columns; it is fixed before the
suspect answers. No witness depends on the scale of g or of M. V is 0 if the suspect carries nothing of φ̃ beyond
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve

from sslguard.errors import UsageError
from sslguard.stats import alignment
from sslguard.stats.arguments import count, finite_matrix
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


def witness(name: str, moments: Moments, spread: ArrayLike) -> Witness:
    """Return the witness of this name, and the subspace that its rows can lie in.

    A suspect of m < d columns, or of lower rank, shows the directions only through the range of the fit between its
    space and h's. Within it the same evidence stands against fewer dimensions. The subspace depends on h and g, not
    on φ̃ᵀg: the row space of V itself would be a worse choice.

    Args:
        name: One of `WITNESSES`.
        moments: Of h with rows of length 1, φ and the suspect's answers g, any m; m = d for "own_space", "difference"
            and "own_whitened".
        spread: M, (d, d), symmetric and positive semidefinite, not 0. Chosen without the directions, not even through
            its scale.

    Returns:
        V, float64 (K, d), of arbitrary scale; and orthonormal columns, float64 (d, r), 0 < r < d, the `basis` of
        `direction_test`: None where the range is R^d, or V is 0.

    Raises:
        UsageError: There is no witness of this name; the moments hold no query, or their m is not d where it must be;
            or the spread is not as described.
    """
    if name not in _FACTORS:
        raise UsageError(f"witness must be one of {', '.join(WITNESSES)}, not {name!r}")
    return _with_range(_FACTORS[name](Spectra(moments), _Spread(spread, moments.dim)))


def witnesses(moments: Moments, spread: ArrayLike) -> dict[str, Witness]:
    """Return every witness of the suspect's `family`, what they share computed once.

    Args:
        moments: As in `witness`.
        spread: As in `witness`.

    Returns:
        Name to what `witness` gives, bit for bit.

    Raises:
        UsageError: As in `witness`.
    """
    shared, checked = Spectra(moments), _Spread(spread, moments.dim)
    return {name: _with_range(_FACTORS[name](shared, checked)) for name in family(moments.dim, moments.width)}


def family(dim: int, width: int) -> tuple[str, ...]:
    """Return the names of what is asked of a suspect: all that applies, and all that Bonferroni charges for.

    Args:
        dim: d, columns of the clean embedding.
        width: m, columns of the suspect's answers: known before the first query that counts.

    Returns:
        `WITNESSES` where m = d; without "own_space", "difference" and "own_whitened" elsewhere.

    Raises:
        UsageError: A size is not a whole number of at least 1.

    Examples:
        >>> from sslguard.stats.witness import family
        >>> len(family(64, 64))
        10
        >>> family(64, 10)
        ('aligned', 'leading', 'shifted', 'procrustes', 'mapped', 'predicted', 'whitened')
    """
    same = count("dim", dim, minimum=1) == count("width", width, minimum=1)
    return tuple(name for name in WITNESSES if same or name not in _OWN)


def equal_gain(spread: ArrayLike) -> Array:
    """Return M⁻ = (M + 0.3·mean(diag M)·I)⁻¹, which brings every direction of the mark back with nearly equal gain.

    Args:
        spread: M, as in `witness`.

    Returns:
        M⁻, float64 (d, d).

    Raises:
        UsageError: The spread is not as described.
    """
    matrix = finite_matrix("spread", spread, columns=np.shape(spread)[-1])
    return _Spread(matrix, matrix.shape[1]).inverse / float(np.abs(matrix).max())


def _with_range(factors: _Factors) -> Witness:
    left, right, whole = factors
    v = or_zero(left @ right, np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=0))
    return v, None if whole or not v.any() else row_space(right, RANK)


class _Spread:
    """M, after a check, and M⁻."""

    def __init__(self, spread: ArrayLike, dim: int) -> None:
        matrix = finite_matrix("spread", spread, columns=dim)
        size = float(np.abs(matrix).max())
        if len(matrix) != dim or size == 0 or np.abs(matrix - matrix.T).max() > 1e-9 * size:
            raise UsageError(f"spread must be a symmetric matrix of {dim} rows, not 0; it came in shape {matrix.shape}")
        self.matrix = (matrix / size + (matrix / size).T) / 2
        floor = _GAIN_FLOOR * np.diag(self.matrix).mean()
        if not _has_factor(self.matrix, 1e-9 * np.diag(self.matrix).max()):
            values, _ = symmetric(self.matrix)
            if values[0] < -1e-9 * values[-1]:
                raise UsageError(
                    f"spread must be positive semidefinite; its eigenvalues begin at {size * values[0]:.3g}"
                )
        factor = cho_factor(self.matrix + floor * np.eye(dim))
        self.inverse = np.asarray(cho_solve(factor, np.eye(dim)))


def _has_factor(matrix: Array, ridge: float) -> bool:
    """Return whether all eigenvalues of a symmetric matrix are larger than −ridge."""
    try:
        cho_factor(matrix + ridge * np.eye(len(matrix)))
    except LinAlgError:
        return False
    return True


# A witness is the product of two factors, (K, r) and (r, d): only the first sees φ, and the second spans V's rows;
# True where that is known to be R^d, as of M⁻, whose least singular value is at least 0.3/(d + 0.3) of the largest.
_Factors = tuple[Array, Array, bool]


def _own_space(shared: Spectra, spread: _Spread) -> _Factors:
    """φ̃ᵀ(g/|g|) M⁻, of answers in the clean encoder's own space."""
    _check_own_space("own_space", shared.moments)
    return shared.beyond_linear("unit"), spread.inverse, True


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
    return np.asarray(solve(gram + ridge * np.eye(len(gram)), moved, assume_a="pos")), spread.inverse, True


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
    return np.asarray(cho_solve(factor, shared.beyond_linear("unit").T)).T, spread.matrix, False


def _check_own_space(name: str, moments: Moments) -> None:
    if moments.width != moments.dim:
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
    return shared.beyond_linear("unit") @ left[:, keep], right[keep] @ spread.inverse, bool(whole)


def _aligned(shared: Spectra, spread: _Spread) -> _Factors:  # noqa: ARG001
    """Return what φ adds once R and gains are fitted with it (`alignment.rotated`).

    The part of the mark that is linear in h then counts, as far as no rotation could produce it. The result does not
    change under rotations of g about 0.
    """
    return *_rotated(shared), False


def _leading(shared: Spectra, spread: _Spread) -> _Factors:  # noqa: ARG001
    """Return the part of `aligned` in the 24 leading principal components of h, which are also its range.

    In smaller components the copy's own errors hide its rotation against h. What is left out is mostly noise, and with
    fewer dimensions the same evidence is stronger.
    """
    mark, axes = _rotated(shared)
    return mark[:, :_LEADING], axes[:_LEADING], False


def _rotated(shared: Spectra) -> tuple[Array, Array]:
    return shared.once(("rotated",), lambda: alignment.rotated(shared))


def _shifted(shared: Spectra, spread: _Spread) -> _Factors:  # noqa: ARG001
    """Return what `aligned` gives on answers that are not scaled to length 1, for thieves who moved their mean.

    The result does not change under rotations and shifts of g.
    """
    return *alignment.rotated(shared, "g"), False


def _mapped(shared: Spectra, spread: _Spread) -> _Factors:  # noqa: ARG001
    """Return what `aligned` gives once most of g's covariance is undone, for suspects behind an unknown linear map.

    `predicted` finds the map that gives h back best, and treats the mark as noise. Here map and mark are fitted
    together (`alignment.mapped`).
    """
    return *alignment.mapped(shared), False


def _predicted(shared: Spectra, spread: _Spread) -> _Factors:
    """φ̃ᵀĥ M⁻ with ĥ the regression of h on (1, g): unchanged by every affine map of g that rounding survives."""
    axes = shared.whitener("standard", RANK)
    right = axes.T @ shared.covariance("standard", "h") @ spread.inverse
    return shared.beyond_linear("standard") @ axes, right, False


def _whitened(shared: Spectra, spread: _Spread) -> _Factors:
    """φ̃ᵀ r W L̂ᵀ M, where g ≈ h L̂ + r is the regression on (1, h): for logits, strong maps and noisy answers.

    W = (Cov r + λI)⁻¹ gives each direction of g the weight that its noise leaves it; λ is a tenth of r's mean variance.
    """
    answers, axes = shared.covariance("g", "g"), shared.whitener("h", _FIT_RANK)
    fit = axes.T @ shared.covariance("h", "g")
    noise, directions = symmetric(answers - fit.T @ fit)
    keep = noise > max(_RESIDUAL_RANK**2 * noise[-1], RANK**2 * np.trace(answers))
    if not keep.any():
        return np.zeros((shared.moments.n_features, 0)), np.zeros((0, shared.moments.dim)), False
    noise, directions = noise[keep], directions[:, keep]
    weights = directions / (noise + _NOISE_FLOOR * noise.mean())
    return shared.beyond_linear("g") @ weights @ directions.T, fit.T @ (axes.T @ spread.matrix), False


_FACTORS: Mapping[str, Callable[[Spectra, _Spread], _Factors]] = {
    "own_space": _own_space,
    "difference": _difference,
    "own_whitened": _own_whitened,
    "aligned": _aligned,
    "leading": _leading,
    "shifted": _shifted,
    "procrustes": _procrustes,
    "mapped": _mapped,
    "predicted": _predicted,
    "whitened": _whitened,
}
WITNESSES = tuple(_FACTORS)
"""Names of the witnesses, in the order in which they are computed."""
