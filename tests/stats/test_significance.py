"""The rank test's level under exchangeability, its table, and corrections against R."""

from __future__ import annotations

import copy
import doctest
import json
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslguard.errors import RefusedError, UsageError
from sslguard.stats import corrections, significance
from sslguard.stats.corrections import bonferroni, holm
from sslguard.stats.significance import Significance, check_floor, control_rank_test, rejects


def rank_pvalue(statistic: float, controls: list[float]) -> float:
    return control_rank_test(statistic, controls, n_queries=8).pvalue


def supports(result: Significance, alpha: float, *, n_claims: int = 1) -> bool:
    try:
        check_floor(result.floor, alpha, n_claims=n_claims)
    except RefusedError:
        return False
    return True


@pytest.mark.parametrize(("module", "examples"), [(significance, 8), (corrections, 4)])
def test_examples_of_the_docstrings_hold(module, examples: int) -> None:  # type: ignore[no-untyped-def]
    result = doctest.testmod(module)
    assert result.attempted >= examples
    assert result.failed == 0


@pytest.mark.parametrize(
    ("statistic", "controls", "numerator"),
    [
        (5.0, [1.0, 2.0, 3.0, 4.0], 1),
        (3.5, [1.0, 2.0, 3.0, 4.0], 2),
        (0.0, [1.0, 2.0, 3.0, 4.0], 5),
        (4.0, [1.0, 2.0, 3.0, 4.0], 2),
        (2.0, [2.0, 2.0, 2.0, 4.0], 5),
        (-1.0, [-1.5], 1),
    ],
)
def test_exact_table(statistic: float, controls: list[float], numerator: int) -> None:
    result = control_rank_test(statistic, controls, n_queries=7, statistic_name="WR")
    n = len(controls)
    assert result.log2_pvalue == math.log2(numerator / (n + 1))
    assert result.floor == float(Fraction(1, n + 1))
    assert (result.null, result.n_controls, result.n_queries) == ("controls", n, 7)
    assert result.details["controls_at_least"] == numerator - 1
    assert result.details["controls_max"] == max(controls)
    assert result.statistic_name == "WR"


def test_uniform_under_exchangeability_without_ties() -> None:
    # A p-value of n + 1 exchangeable continuous values is uniform on the multiples of 1/(n+1).
    n, draws = 19, 4000
    values = np.random.default_rng(5).standard_normal((draws, n + 1))
    ranks = np.array([round(rank_pvalue(row[0], row[1:]) * (n + 1)) for row in values])
    counts = np.bincount(ranks, minlength=n + 2)[1:]
    chi2 = ((counts - draws / (n + 1)) ** 2 / (draws / (n + 1))).sum()
    assert chi2 < 43.8  # the 0.999 quantile of chi² with 19 degrees of freedom


def test_super_uniform_with_ties() -> None:
    n, draws = 9, 4000
    values = np.random.default_rng(6).integers(0, 3, (draws, n + 1)).astype(float)
    p = np.array([rank_pvalue(row[0], row[1:]) for row in values])
    for k in range(1, n + 2):
        level = k / (n + 1)
        slack = 3.3 * math.sqrt(level * (1 - level) / draws)
        assert (p <= level * (1 + 1e-12)).mean() <= level + slack
    # Had ties counted for the claim, the smallest p-value would come up about a third of the time.
    assert (p <= 1 / (n + 1) * (1 + 1e-12)).mean() < 0.02


@given(st.floats(-10, 10), st.floats(0, 10), st.lists(st.floats(-10, 10), min_size=1, max_size=20))
def test_monotone_and_never_below_the_floor(statistic: float, more: float, controls: list[float]) -> None:
    low = control_rank_test(statistic, controls, n_queries=1)
    high = control_rank_test(statistic + more, controls, n_queries=1)
    assert high.log2_pvalue <= low.log2_pvalue <= 0
    assert high.log2_pvalue >= math.log2(high.floor)


def test_a_tie_counts_against_the_claim() -> None:
    assert rank_pvalue(1.0, [1.0, 0.0, 0.0]) == 0.5
    assert rank_pvalue(np.nextafter(1.0, 2.0), [1.0, 0.0, 0.0]) == 0.25


def test_no_controls_is_refused() -> None:
    with pytest.raises(RefusedError, match="no controls") as caught:
        control_rank_test(1.0, [], n_queries=1)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("statistic", "controls", "n_queries", "complaint"),
    [
        (math.nan, [0.0], 1, "statistic"),
        (math.inf, [0.0], 1, "statistic"),
        ("large", [0.0], 1, "statistic"),
        (None, [0.0], 1, "statistic"),
        (0.0, [0.0, math.nan], 1, "number 1 is nan"),
        (0.0, [-math.inf], 1, "number 0 is -inf"),
        (0.0, [[0.0]], 1, "one-dimensional"),
        (0.0, ["a"], 1, "controls"),
        (0.0, [0.0], 0, "n_queries"),
        (0.0, [0.0], 1.5, "n_queries"),
    ],
)
def test_hostile_input(statistic: object, controls: object, n_queries: object, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        control_rank_test(statistic, controls, n_queries=n_queries)  # type: ignore[arg-type]


def test_details_are_kept_copied_and_finite() -> None:
    given_details = {"threshold": 0.5}
    result = control_rank_test(1.0, [0.0], n_queries=1, details=given_details)
    given_details["threshold"] = 9.0
    assert result.details["threshold"] == 0.5
    with pytest.raises(UsageError, match="threshold"):
        control_rank_test(1.0, [0.0], n_queries=1, details={"threshold": math.nan})


@pytest.mark.parametrize(
    "fields",
    [
        {"log2_pvalue": -8.0},
        {"log2_pvalue": 0.1},
        {"log2_pvalue": math.nan},
        {"floor": 0.0},
        {"floor": math.nan},
        {"floor": 1.5},
        {"null": "guessed"},
        {"n_controls": 0},
        {"null": "exact"},
        {"statistic": math.inf},
    ],
    ids=str,
)
def test_a_result_that_outruns_its_null_cannot_be_made(fields: dict[str, object]) -> None:
    sound: dict[str, object] = {
        "statistic": 1.0,
        "log2_pvalue": -2.0,
        "floor": 0.25,
        "null": "controls",
        "n_queries": 1,
        "n_controls": 3,
    }
    Significance(**sound)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        Significance(**{**sound, **fields})  # type: ignore[arg-type]


def test_an_exact_null_reaches_far_below_floats() -> None:
    result = Significance(36.0, -256.0, 2.0**-256, "exact", 15_000)
    assert rejects(result, 1e-70)
    with pytest.raises(RefusedError, match="smallest p-value"):
        rejects(result, 1e-80)


def test_results_travel() -> None:
    result = control_rank_test(1.0, [0.0, 2.0], n_queries=3)
    assert pickle.loads(pickle.dumps(result)) == copy.deepcopy(result) == result
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["pvalue"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("n", [9, 19, 29, 99, 299, 999, 1499, 9999])
@pytest.mark.parametrize("n_claims", [1, 2, 3, 5, 7])
def test_supports_and_rejects_at_the_very_floor(n: int, n_claims: int) -> None:
    # The level that meets the floor exactly, and one a millionth below it.
    result = control_rank_test(1.0, np.zeros(n), n_queries=1)
    alpha = n_claims / (n + 1)
    assert supports(result, alpha, n_claims=n_claims)
    assert rejects(result, alpha, n_claims=n_claims)
    assert not supports(result, alpha * (1 - 1e-6), n_claims=n_claims)
    with pytest.raises(RefusedError, match=f"at least {n + 1} controls"):
        rejects(result, alpha * (1 - 1e-6), n_claims=n_claims)


def test_rejects_at_and_just_above_the_level() -> None:
    at_level = control_rank_test(1.0, [2.0] * 4 + [0.0] * 95, n_queries=1)
    above = control_rank_test(1.0, [2.0] * 5 + [0.0] * 94, n_queries=1)
    assert rejects(at_level, 0.05)
    assert not rejects(above, 0.05)
    assert not rejects(at_level, 0.05, n_claims=2)


@pytest.mark.parametrize(("alpha", "n_claims"), [(0.0, 1), (1.0, 1), (-0.1, 1), (math.nan, 1), (0.05, 0), (0.05, 1.5)])
def test_levels_out_of_range(alpha: float, n_claims: int) -> None:
    result = control_rank_test(1.0, [0.0], n_queries=1)
    with pytest.raises(UsageError, match=r"alpha|n_claims"):
        supports(result, alpha, n_claims=n_claims)


# What R's definition in `p.adjust`, pmin(1, cummax((n + 1 - i) * p[o]))[ro], gives:
#   > p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")        [1] 0.05 0.08 0.09 0.09 0.09
#   > p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")             [1] 0.03 0.06 0.06 0.02
#   > p.adjust(c(0.01, 0.02), "holm", n = 5)                   [1] 0.05 0.08
#   > p.adjust(c(0.7, 0.6), "holm")                            [1] 1 1
#   > p.adjust(c(0.01, 0.04, 0.03, 0.005), "bonferroni")       [1] 0.04 0.16 0.12 0.02
#   > p.adjust(c(0.01, 0.3), "bonferroni", n = 5)              [1] 0.05 1.00
@pytest.mark.parametrize(
    ("correct", "p", "n", "expected"),
    [
        (holm, [0.01, 0.02, 0.03, 0.04, 0.05], None, [0.05, 0.08, 0.09, 0.09, 0.09]),
        (holm, [0.01, 0.04, 0.03, 0.005], None, [0.03, 0.06, 0.06, 0.02]),
        (holm, [0.01, 0.02], 5, [0.05, 0.08]),
        (holm, [0.7, 0.6], None, [1.0, 1.0]),
        (bonferroni, [0.01, 0.04, 0.03, 0.005], None, [0.04, 0.16, 0.12, 0.02]),
        (bonferroni, [0.01, 0.3], 5, [0.05, 1.0]),
    ],
)
def test_corrections_against_r(correct, p: list[float], n: int | None, expected: list[float]) -> None:  # type: ignore[no-untyped-def]
    np.testing.assert_allclose(2 ** correct(np.log2(p), n), expected, rtol=1e-12)


@given(st.lists(st.floats(-300, 0), min_size=1, max_size=12), st.integers(0, 5))
def test_holm_lies_between_the_raw_and_bonferroni(values: list[float], more: int) -> None:
    n = len(values) + more
    adjusted = holm(values, n)
    assert (adjusted >= np.array(values)).all()
    assert (adjusted <= bonferroni(values, n)).all()
    assert (np.diff(adjusted[np.argsort(values, kind="stable")]) >= 0).all()


def test_holm_bounds_the_chance_of_any_false_claim() -> None:
    # Five dependent nulls (three share one p-value) at level 0.1.
    uniform = np.random.default_rng(7).random((4000, 3))
    p = np.column_stack([uniform[:, :1].repeat(3, axis=1), uniform[:, 1:]])
    false_claim = [(holm(np.log2(row)) <= math.log2(0.1)).any() for row in p]
    assert np.mean(false_claim) <= 0.1 + 3.3 * math.sqrt(0.09 / 4000)


@pytest.mark.parametrize("correct", [bonferroni, holm])
@pytest.mark.parametrize(
    ("values", "n", "complaint"),
    [
        ([0.5], None, "at most 0"),
        ([math.nan], None, "finite"),
        ([-math.inf], None, "finite"),
        ([[-1.0]], None, "one-dimensional"),
        ([-1.0, -2.0], 1, "at least 2"),
        ([-1.0], 1.5, "whole number"),
    ],
)
def test_corrections_refuse(correct, values: object, n: object, complaint: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=complaint):
        correct(values, n)


@pytest.mark.parametrize("correct", [bonferroni, holm])
def test_corrections_leave_their_input_alone(correct) -> None:  # type: ignore[no-untyped-def]
    values = np.array([-3.0, -5.0])
    correct(values)
    assert values.tolist() == [-3.0, -5.0]
    assert correct([]).shape == (0,)
