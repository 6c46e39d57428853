"""Tails of fixed points, against enumeration, exact fractions and simulation; Fisher's product, against exact sums."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from sslguard.errors import UsageError
from sslguard.stats.corrections import fisher
from sslguard.stats.fixed_points import log2_fixed_points, log2_fixed_points_bound


def exact_tail(k: int, n: int) -> Fraction:
    """P(at least k fixed points of a uniform permutation of n), by the number of derangements of the rest."""
    deranged = [sum(Fraction((-1) ** i, math.factorial(i)) for i in range(m + 1)) for m in range(n + 1)]
    return sum((deranged[n - j] / math.factorial(j) for j in range(k, n + 1)), Fraction())


def log2_of(value: Fraction) -> float:
    with localcontext() as context:
        context.prec = 60
        return float((Decimal(value.numerator).ln() - Decimal(value.denominator).ln()) / Decimal(2).ln())


def test_tail_counts_what_enumeration_counts() -> None:
    fixed = np.array([sum(i == x for i, x in enumerate(p)) for p in permutations(range(6))])
    for k in range(7):
        assert 2 ** log2_fixed_points(k, 6) == pytest.approx(np.mean(fixed >= k), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 40])
def test_tail_agrees_with_exact_fractions(n: int) -> None:
    for k in range(1, n + 1):
        assert log2_fixed_points(k, n) == pytest.approx(log2_of(exact_tail(k, n)), rel=1e-12, abs=1e-12)


def test_tail_of_a_hundred_thousand_is_that_of_its_factorial() -> None:
    n = 100_000
    factorial = math.factorial(n)
    beyond = factorial.bit_length() - 60
    bits = beyond + math.log2(factorial >> beyond)
    assert log2_fixed_points(n, n) == pytest.approx(-bits, abs=1e-6)
    assert log2_fixed_points_bound(n) == pytest.approx(-bits, abs=1e-6)


def test_tail_falls_with_k_and_stays_below_the_bound() -> None:
    for n in (2, 5, 500):
        values = [log2_fixed_points(k, n) for k in range(n + 1)]
        assert values == sorted(values, reverse=True)
        assert all(value <= log2_fixed_points_bound(k) + 1e-9 for k, value in enumerate(values))


def test_bound_holds_for_any_function_behind_a_permutation() -> None:
    """Nearest partners may coincide: the number of items that are their own partner still has the tail 1/k!."""
    rng = np.random.default_rng(1)
    for f in (np.arange(30), np.zeros(30, int), np.repeat(np.arange(10), 3)):
        found = np.array([(rng.permutation(30)[f] == np.arange(30)).sum() for _ in range(20_000)])
        for k in range(1, 6):
            assert np.mean(found >= k) <= 2 ** log2_fixed_points_bound(k) + 4 * math.sqrt(0.25 / 20_000)


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 2), (0, 0), (1.5, 2)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    with pytest.raises(UsageError, match="number of"):
        log2_fixed_points(k, n)


def test_fisher_is_the_chi_square_test_of_the_product() -> None:
    rng = np.random.default_rng(0)
    for m in (1, 2, 5, 40):
        values = np.log2(rng.uniform(size=m))
        expected = chi2.logsf(-2 * values.sum() * math.log(2), 2 * m) / math.log(2)
        assert fisher(values) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_fisher_is_uniform_on_independent_uniform_values() -> None:
    rng = np.random.default_rng(2)
    found = [2 ** fisher(np.log2(rng.uniform(size=7))) for _ in range(4000)]
    assert kstest(found, "uniform").pvalue > 1e-4


def test_fisher_is_exact_where_no_float_reaches() -> None:
    """Against the sum in 60 digits, at 2^-100,000."""
    values = [-100_000.0 / 8] * 8
    with localcontext() as context:
        context.prec = 60
        x = Decimal(100_000) * Decimal(2).ln()
        total = sum((x**i / math.factorial(i) for i in range(8)), Decimal())
        expected = float((total.ln() - x) / Decimal(2).ln())
    assert fisher(values) == pytest.approx(expected, abs=1e-9)


def test_fisher_of_nothing_and_of_certainty_is_no_evidence() -> None:
    assert fisher([]) == fisher([0.0, 0.0]) == 0.0
    assert fisher([-5.0]) == pytest.approx(-5.0)


@pytest.mark.parametrize("values", [[0.1], [float("nan")], [-math.inf], ["x"]])
def test_fisher_refuses_what_is_no_pvalue(values: list[float]) -> None:
    with pytest.raises(UsageError, match="log2_pvalues"):
        fisher(values)
