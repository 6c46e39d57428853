"""Corrections for many claims, and the combination of independent tests, on base-2 logarithms of p-values."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, logsumexp

from sslguard.errors import UsageError
from sslguard.stats.arguments import count, finite_vector


def bonferroni(log2_pvalues: ArrayLike, n: int | None = None) -> NDArray[np.float64]:
    """Apply Bonferroni's correction, min(1, n·p).

    Args:
        log2_pvalues: Shape (m,). Base-2 logarithms of p-values, each finite and ≤ 0.
        n: How many claims were made in all, n ≥ m, those included whose p-values are not given. Default m.

    Returns:
        float64 (m,). Base-2 logarithms of the adjusted p-values, in the order of the input. Comparing each with
        log2(alpha) bounds the probability of any false claim by alpha.

    Raises:
        UsageError: A value is not the logarithm of a p-value, or n < m.

    Notes:
        Null hypothesis: All claims whose suspects are innocent.

        Assumptions: Each p-value is valid by itself; any dependence between them is allowed.

        Randomness: That of the p-values; none is drawn here.

    References:
        .. [1] O. J. Dunn, "Multiple comparisons among means", Journal of the American Statistical Association
               56(293), 52-64 (1961).

    Examples:
        >>> from sslguard.stats.corrections import bonferroni
        >>> bonferroni([-10.0, -1.0], n=4).tolist()
        [-8.0, 0.0]
    """
    values = _log2_pvalues(log2_pvalues)
    return np.minimum(0.0, values + math.log2(_claims(n, len(values))))


def holm(log2_pvalues: ArrayLike, n: int | None = None) -> NDArray[np.float64]:
    """Apply Holm's step-down correction: never larger than Bonferroni's, under the same assumptions.

    Args:
        log2_pvalues: Shape (m,). Base-2 logarithms of p-values, each finite and ≤ 0.
        n: How many claims were made in all, n ≥ m; those not given are taken to have larger p-values. Default m.

    Returns:
        float64 (m,). Base-2 logarithms of the adjusted p-values, in the order of the input: the running maximum of (n +
        1 − i)·p_(i) over p_(1) ≤ … ≤ p_(m), at most 1. Equal to R's `p.adjust(p, "holm", n)`.

    Raises:
        UsageError: A value is not the logarithm of a p-value, or n < m.

    Notes:
        Null hypothesis: All claims whose suspects are innocent.

        Assumptions: Each p-value is valid by itself; any dependence between them is allowed.

        Randomness: That of the p-values; none is drawn here.

    References:
        .. [1] S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
               Statistics 6(2), 65-70 (1979).

    Examples:
        >>> from sslguard.stats.corrections import holm
        >>> holm([-1.0, -10.0]).tolist()
        [-1.0, -9.0]
    """
    values = _log2_pvalues(log2_pvalues)
    if not len(values):
        return values
    order = np.argsort(values, kind="stable")
    stepped = values[order] + np.log2(_claims(n, len(values)) - np.arange(len(values)))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(0.0, np.maximum.accumulate(stepped))
    return adjusted


def fisher(log2_pvalues: ArrayLike) -> float:
    """Combine p-values of one hypothesis by Fisher's product, in closed form.

    Args:
        log2_pvalues: Shape (m,). Base-2 logarithms of p-values, each finite and ≤ 0.

    Returns:
        Base-2 logarithm of P(∏ U_i ≤ ∏ p_i) for m independent uniform U_i: e^(−x)·Σ_(i<m) x^i/i! with x = −Σ ln p_i.
        0.0 for no p-values. It is computed on logarithms, and is exact to some 1e-9 bits far beyond what a float can
        hold.

    Raises:
        UsageError: A value is not the logarithm of a p-value.

    Notes:
        Null hypothesis: That of every p-value.

        Assumptions: The p-values are independent, or each is valid given those before it: P(p_i ≤ a | p_1 … p_(i−1)) ≤
        a for every a. Either suffices for P(result ≤ a) ≤ a.

        Randomness: That of the p-values; none is drawn here.

    References:
        .. [1] R. A. Fisher, Statistical Methods for Research Workers, 4th edition, §21.1 (1932).

    Examples:
        >>> from sslguard.stats.corrections import fisher
        >>> fisher([-3.0])
        -3.0
        >>> round(fisher([-1000.0, -1000.0]), 1)
        -1989.6
    """
    values = _log2_pvalues(log2_pvalues)
    x = -float(values.sum()) * math.log(2)
    if x == 0:
        return 0.0
    i = np.arange(len(values))
    return min(0.0, (float(logsumexp(i * math.log(x) - gammaln(i + 1))) - x) / math.log(2))


def fisher_rows(log2_pvalues: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `fisher` of each row, for rows of at most 16: float64 (n, m) → (n,).

    Args:
        log2_pvalues: Each at most 0. They are not checked.
    """
    x, total = -log2_pvalues.sum(1) * math.log(2), np.ones(len(log2_pvalues))
    for i in range(log2_pvalues.shape[1] - 1, 0, -1):  # Horner's scheme
        total = 1 + total * x / i
    return np.minimum(0.0, (np.log(total) - x) / math.log(2))


def _log2_pvalues(values: ArrayLike) -> NDArray[np.float64]:
    vector = finite_vector("log2_pvalues", values)
    if (vector > 0).any():
        raise UsageError(f"log2_pvalues must be logarithms of p-values, at most 0, not {vector.max()}")
    return vector


def _claims(n: int | None, given: int) -> int:
    return count("n, the number of claims,", max(1, given) if n is None else n, minimum=max(1, given))
