"""Fixed points of a uniform permutation: how many units of two independent networks match in place by chance."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaln, logsumexp

from sslguard.errors import UsageError
from sslguard.stats.arguments import count

# Terms of the alternating series, and of the tail: 1/60! is 2^-272 of the first.
_TERMS = 60


def log2_fixed_points(k: int, n: int) -> float:
    """Return how unlikely it is that a uniform permutation of n items leaves at least k of them in place.

    Args:
        k: Fixed points, 0 ≤ k ≤ n.
        n: Number of items, at least 1.

    Returns:
        Base-2 logarithm of P(X ≥ k) = Σ_(j=k)^n 1/j! · Σ_(i=0)^(n−j) (−1)^i/i!, in bits. Its absolute error stays below
        1e-8 bits up to n = 10^5.

    Raises:
        UsageError: k or n is out of range.

    Notes:
        Null hypothesis: The permutation is uniform. The law is de Montmort's; it is nearly Poisson's with mean 1, and
        its tail is at most 1/k!.

        Assumptions: None beyond the null hypothesis. A matching that leaves out some items is a uniform permutation
        after it is completed at random, with no fewer fixed points: the result is then an upper bound.

        Randomness: That of the permutation; none is drawn here.

    References:
        .. [1] P. R. de Montmort, Essay d'analyse sur les jeux de hazard, 2nd edition (1713), problem of "treize".

    Examples:
        >>> from sslguard.stats.fixed_points import log2_fixed_points
        >>> round(2 ** log2_fixed_points(1, 3), 6)
        0.666667
        >>> round(log2_fixed_points(448, 448))
        -3305
    """
    count("n, the number of items,", n, minimum=1)
    if count("k, the number of fixed points,", k, minimum=0) == 0:
        return 0.0
    if k > n:
        raise UsageError(f"k, the number of fixed points, must be at most n = {n}, not {k}")
    i = np.arange(_TERMS + 1)
    deranged = np.cumsum((-1.0) ** i * np.exp(-gammaln(i + 1)))
    j = np.arange(k, min(n, k + _TERMS) + 1)
    left = deranged[np.minimum(n - j, _TERMS)]
    possible = left > 0  # one item alone cannot be out of place
    logs = np.log(left[possible]) - gammaln(j[possible] + 1)
    return min(0.0, float(logsumexp(logs)) / math.log(2))


def log2_fixed_points_bound(k: int) -> float:
    """Return log2(1/k!), a bound for matchings in which several items may have the same partner.

    Args:
        k: Items that are matched with themselves, at least 0.

    Returns:
        Base-2 logarithm of 1/k!, in bits.

    Raises:
        UsageError: k is negative.

    Notes:
        Null hypothesis: Item i is matched with π(f(i)), where f is any function from items to items and π a uniform
        permutation that is independent of f.

        Proof: Let X count the i with π(f(i)) = i. The expected number of ordered k-tuples of such items is the sum,
        over the n!/(n − k)! tuples of distinct items, of P(π(f(i)) = i for all k). If the k values f(i) are distinct,
        that probability is (n − k)!/n!. If two are equal, it is 0, as π cannot map one item to two. So the expectation
        is at most 1. It is k!·E[C(X, k)], and P(X ≥ k) ≤ E[C(X, k)] ≤ 1/k!.

        Randomness: That of π; none is drawn here.

    Examples:
        >>> from sslguard.stats.fixed_points import log2_fixed_points_bound
        >>> log2_fixed_points_bound(2)
        -1.0
    """
    return -float(gammaln(count("k, the number of fixed points,", k, minimum=0) + 1)) / math.log(2) + 0.0
