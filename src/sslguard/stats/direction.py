"""The exact test of whether a witness points along the secret directions more than a random direction would.

The secret directions are one uniform point on a sphere. Whatever a suspect that is independent of them answers, the
cosine between its witness and them is then the first coordinate of such a point, and its tail is known in closed form.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincc, gammaln

from sslguard.errors import UsageError
from sslguard.stats.arguments import count, finite_matrix
from sslguard.stats.significance import Significance

# Bits of a secret of 32 bytes. It can be guessed with probability 2^−256, so no p-value is smaller.
SECRET_BITS = 256
# Where c² is below both, scipy's `betaincc` is far from underflow and takes c² as it is; elsewhere the continued
# fraction needs some tens of terms, and takes 1 − c².
_SHALLOW_Z2, _SHALLOW_C2 = 400.0, 0.5
# In log Γ(a + ½)/Γ(a) the difference of two logarithms loses digits as a grows; from here Stirling's series is exact.
_STIRLING = 30.0


def log2_tail(cosine: ArrayLike, dimension: int) -> NDArray[np.float64]:
    """Compute the base-2 logarithm of P(c' ≥ c) for the first coordinate c' of a uniform point on the unit sphere.

    Args:
        cosine: Any shape. c, between −1 and 1.
        dimension: D of R^D, at least 1; accurate up to 10⁶ and beyond.

    Returns:
        float64 of the same shape. At most 0; −inf at c = 1 (D ≥ 2). The error is below 1e-12 of the value, or 1e-12 for
        values within 1 of 0.

    Raises:
        UsageError: A cosine is not between −1 and 1, or the dimension is not a whole number of at least 1.

    Notes:
        For c ≥ 0 the probability is ½·I_{1−c²}((D−1)/2, ½), and that of −c is 1 less this [1]_. In the tail it comes in
        logarithms from the continued fraction of the incomplete beta function (8.17.22 of [2]_), which converges faster
        the deeper the tail; elsewhere from scipy's `betainc`.

    References:
        .. [1] K.-T. Fang, S. Kotz, K. W. Ng, "Symmetric Multivariate and Related Distributions", Chapman and Hall,
               section 3.1 (1990).
        .. [2] NIST Digital Library of Mathematical Functions, https://dlmf.nist.gov/8.17.

    Examples:
        >>> from sslguard.stats.direction import log2_tail
        >>> log2_tail([0.0, 0.5, -0.5], 2).round(6).tolist()
        [-1.0, -1.584963, -0.584963]
        >>> round(float(log2_tail(0.9, 20480)), 3)
        -24541.446
    """
    cosines = np.asarray(cosine, dtype=np.float64)
    if not (np.abs(cosines) <= 1).all():
        raise UsageError(f"cosine must lie between -1 and 1, not {cosines}")
    return _log2_tail(cosines, (1 - cosines) * (1 + cosines), count("dimension", dimension, minimum=1))


def direction_test(
    witness: ArrayLike, directions: ArrayLike, *, n_queries: int, basis: ArrayLike | None = None
) -> Significance:
    """Test whether a witness points along the secret directions, exactly.

    Args:
        witness: Shape (K, d). V, computed from a suspect's answers by a rule that cannot see the directions; see
            `witness.witness`. Finite, of any scale. All 0 is a suspect that carries nothing.
        directions: Shape (K, d). U, the secret directions: one uniform point on a sphere of R^(K·d). Finite, not 0; its
            length is not used.
        n_queries: Queries that the suspect was asked, those without an answer included, at least 1.
        basis: Shape (d, r). Orthonormal columns of a subspace that holds the rows of V and was found without U; see
            `witness.witness`. Both are projected onto it, and the test is of dimension K·r.

    Returns:
        Result with null "exact", floor 2**-256, the entropy of the secret. The statistic is z = c·√D, c = ⟨U,
        V⟩/(|U||V|), D = K·d or K·r. Its details are `cosine` (c), `dimension` (D) and `log2_tail`, the logarithm of the
        tail itself: where it lies below −256 it is a score, not a probability. V = 0 gives p = 1.

    Raises:
        UsageError: Shapes differ, a number is not finite, U is 0, or the basis is not orthonormal.

    Notes:
        Null hypothesis: The suspect is independent of U. Given everything else, the clean encoder, the features, the
        queries and the answers, c is then the first coordinate of a uniform point on the unit sphere of R^D, whatever V
        ≠ 0 is, at any number of queries. So p = P(c' ≥ c) is uniform: exact, not asymptotic.

        Assumptions: U was drawn as one uniform point: a Gaussian matrix normalised as a whole, never row by row. V and
        the basis were computed without U; and which queries were asked, in which order, which were dropped and when
        asking stopped was fixed without U. Nothing is assumed about the suspect or the data.

        Randomness: None is drawn here. The probability is over the draw of U. One key's p-values on many suspects share
        U and are dependent; several witnesses of one suspect need a correction, `corrections.bonferroni`.

    References:
        .. [1] R. J. Muirhead, "Aspects of Multivariate Statistical Theory", Wiley, theorem 1.5.7 (1982): a fixed and a
               uniform direction.

    Examples:
        >>> import numpy as np
        >>> from sslguard.stats.direction import direction_test
        >>> directions = np.random.default_rng(7).standard_normal((16, 64))
        >>> found = direction_test(directions + 3 * np.ones((16, 64)), directions, n_queries=1000)
        >>> round(found.statistic, 2), round(found.log2_pvalue, 1)
        (7.37, -44.4)
        >>> direction_test(np.zeros((16, 64)), directions, n_queries=1000).pvalue
        1.0
    """
    u, v = _matrix("directions", directions), _matrix("witness", witness)
    if u.shape != v.shape:
        raise UsageError(f"witness and directions must be of one shape, but are {v.shape} and {u.shape}")
    if not u.any():
        raise UsageError("directions must not be all 0: draw them uniformly on the sphere")
    u, v = u / np.abs(u).max(), v / (np.abs(v).max() or 1.0)
    if basis is not None:
        q = _orthonormal(basis, u.shape[1])
        u, v = u @ q, v @ q
    cosine, remainder = _angle(u, v)
    tail = float(_log2_tail(np.array(cosine), np.array(remainder), u.size)) if v.any() else 0.0
    return Significance(
        statistic=cosine * math.sqrt(u.size),
        log2_pvalue=max(tail, -float(SECRET_BITS)),
        floor=2.0**-SECRET_BITS,
        null="exact",
        n_queries=count("n_queries", n_queries, minimum=1),
        statistic_name="z of the direction test",
        details={"cosine": cosine, "dimension": u.size, "log2_tail": tail},
    )


def _angle(u: NDArray[np.float64], v: NDArray[np.float64]) -> tuple[float, float]:
    """Return the cosine c of two arrays of moderate size, and 1 − c² without cancellation; 0 and 1 if one is 0."""
    lengths = float(np.linalg.norm(u)), float(np.linalg.norm(v))
    if 0.0 in lengths:
        return 0.0, 1.0
    u, v = u / lengths[0], v / lengths[1]
    cosine = min(1.0, max(-1.0, float(np.vdot(u, v))))
    # The last bits of u and v do not tell directions apart that are closer than this.
    sine = max(float(np.linalg.norm(v - cosine * u)), float(np.finfo(np.float64).eps))
    return cosine, min(1.0, sine**2)


def _log2_tail(cosines: NDArray[np.float64], remainders: NDArray[np.float64], dimension: int) -> NDArray[np.float64]:
    """Compute `log2_tail` from c and 1 − c²."""
    if dimension == 1:
        return np.where(cosines > -1, -1.0, 0.0)
    a, square = (dimension - 1) / 2, cosines**2
    deep = (square * dimension >= _SHALLOW_Z2) | (square > _SHALLOW_C2)
    shallow = square[~deep]
    # Near c = 0 scipy's complement loses digits, and the difference none.
    near = shallow * dimension < 1
    upper = np.empty_like(cosines)
    upper[~deep] = np.log(np.where(near, 1 - betainc(0.5, a, shallow), betaincc(0.5, a, shallow)) / 2)
    upper[deep] = _log_tail(np.abs(cosines[deep]), remainders[deep], a)
    # At c = −1 the logarithm of the other side is −inf. Adding 0.0 turns −0.0 into 0.0.
    with np.errstate(divide="ignore"):
        return np.where(cosines >= 0, upper, np.log1p(-np.exp(upper))) / math.log(2) + 0.0


def _log_tail(cosines: NDArray[np.float64], remainders: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Return log ½·I_x(a, ½) for x = 1 − c² < (a + 1)/(a + 5/2) and c > 0.

    The formula is x^a·c·Γ(a + ½)/(2·√π·Γ(a)·a) times 1/(1 + d₁/(1 + …)).
    """
    small = cosines < 0.5
    with np.errstate(divide="ignore"):
        log_x = np.where(small, np.log1p(-(np.where(small, cosines, 0.0) ** 2)), np.log(remainders))
    front = a * log_x + np.log(cosines) - math.log(2 * a) - math.log(math.pi) / 2 + _log_gamma_ratio(a)
    return front + np.log(_continued_fraction(remainders, a))


def _continued_fraction(x: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Return 1/(1 + d₁/(1 + d₂/(1 + …))) of I_x(a, ½), by Lentz's method. No denominator comes near 0 for these d."""
    b = 0.5
    d = 1 / (1 - (a + b) * x / (a + 1))
    c, value = np.ones_like(x), d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = 1 / (1 + even * d), 1 + even / c
        value = value * (d * c)
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1 / (1 + odd * d), 1 + odd / c
        factor = d * c
        value = value * factor
        if (np.abs(factor - 1) < 1e-15).all():
            break
    return value


def _log_gamma_ratio(a: float) -> float:
    """Return log Γ(a + ½)/Γ(a), a > 0."""
    if a < _STIRLING:
        return float(gammaln(a + 0.5) - gammaln(a))
    return math.log(a) / 2 - (1 / 8 - (1 / 192 - (1 / 640 - 17 / (14336 * a**2)) / a**2) / a**2) / a


def _matrix(name: str, values: ArrayLike) -> NDArray[np.float64]:
    shape = np.shape(values)
    if len(shape) != 2 or 0 in shape:
        raise UsageError(f"{name} must be of shape (K, d), not {shape}")
    return finite_matrix(name, values, columns=shape[1])


def _orthonormal(basis: ArrayLike, d: int) -> NDArray[np.float64]:
    q = _matrix("basis", basis)
    if q.shape[0] != d or q.shape[1] > d or np.abs(q.T @ q - np.eye(q.shape[1])).max() > 1e-8:
        raise UsageError(f"basis must have {d} rows and at most as many orthonormal columns, not shape {q.shape}")
    return q
