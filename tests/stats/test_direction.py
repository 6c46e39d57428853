"""The tail of a uniform direction's first coordinate, against mpmath and closed forms; the test that stands on it."""

from __future__ import annotations

import doctest
import json
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslguard.errors import RefusedError, UsageError
from sslguard.stats import direction as module
from sslguard.stats.direction import SECRET_BITS, direction_test, log2_tail
from sslguard.stats.significance import rejects


def exact(cosine: float, dimension: int) -> float:
    """½·I_{1−c²}((D−1)/2, ½) = x^a·√(1−x)/(2a·B(a, ½))·₂F₁(a + ½, 1; a + 1; x) (DLMF 8.17.8), in 60 digits."""
    with mpmath.workdps(60):
        c, a = mpmath.mpf(cosine), mpmath.mpf(dimension - 1) / 2
        x, half = 1 - c**2, mpmath.mpf(1) / 2
        series = mpmath.hyp2f1(a + half, 1, a + 1, x, maxterms=10**7) * abs(c) if c else None
        tail = half if series is None else x**a * series / (2 * a * mpmath.beta(a, half))
        return float(mpmath.log(tail if c >= 0 else 1 - tail, 2))


def test_examples_of_the_docstrings_hold() -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 8
    assert result.failed == 0


Z = (1e-8, 1e-5, 1e-3, 0.1, 0.5, 1.0, 1.7, 2.0, 3.0, 4.9, 5.0, 7.0, 10.0, 19.99, 20.0, 20.01, 36.0, 67.0)


@pytest.mark.parametrize("dimension", [2, 3, 4, 5, 16, 60, 61, 62, 799, 801, 1024, 6144, 20_480])
def test_tail_against_mpmath(dimension: int) -> None:
    cosines = [z / math.sqrt(dimension) for z in Z if z**2 < dimension]
    cosines += [0.7071, 0.70711, 0.9, 0.999, 1 - 1e-6, 1 - 1e-12, 1 - 2.0**-52]
    cosines = [sign * c for c in cosines for sign in (1, -1)]
    expected = np.array([exact(c, dimension) for c in cosines])
    error = np.abs(log2_tail(cosines, dimension) - expected) / np.maximum(1, np.abs(expected))
    assert error.max() < 1e-12, (cosines[int(error.argmax())], error.max())


# In a million dimensions mpmath 1.3.0's hypergeometric functions do not converge in the far tail; its quadrature of the
# density (1 − t²)^((D−3)/2)/B((D−1)/2, ½) does.
@pytest.mark.parametrize("z", [1e-6, 1e-3, 0.1, 1.0, 3.0, 5.0, 12.0, 19.9, 20.1, 36.0, 100.0, 300.0, 900.0, 999.9])
def test_tail_in_a_million_dimensions(z: float) -> None:
    dimension, cosine = 10**6, z / 1000
    with mpmath.workdps(40):
        c, power = mpmath.mpf(cosine), mpmath.mpf(dimension - 3) / 2
        # The density falls by e^-100 within this step from c, and is smooth over it.
        step = 100 * (1 - c * c) / (2 * power * c + mpmath.sqrt(2 * power))
        ends = mpmath.linspace(c, min(mpmath.mpf(1), c + step), 12)
        inside = mpmath.quad(lambda t: ((1 - t * t) / (1 - c * c)) ** power, ends)
        log_tail = mpmath.log(inside) + power * mpmath.log(1 - c * c)
        log_tail -= mpmath.log(mpmath.beta(power + 1, mpmath.mpf(1) / 2))
        expected = float(log_tail / mpmath.log(2))
        other = float(mpmath.log(1 - mpmath.exp(log_tail), 2))
    assert log2_tail(cosine, dimension) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert log2_tail(-cosine, dimension) == pytest.approx(other, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("c", [-0.999, -0.5, 0.0, 1e-9, 0.3, 0.7, 0.99])
def test_tail_in_closed_form(c: float) -> None:
    # Arc, cap and three-sphere.
    for dimension, tail in {
        2: math.acos(c) / math.pi,
        3: (1 - c) / 2,
        4: (math.acos(c) - c * math.sqrt(1 - c * c)) / math.pi,
    }.items():
        assert log2_tail(c, dimension) == pytest.approx(math.log2(tail), rel=1e-12)


def test_ends_of_the_tail() -> None:
    for dimension in (2, 3, 1000, 10**6):
        ends = log2_tail([-1.0, 0.0, 1.0], dimension)
        assert ends.tolist() == [0.0, pytest.approx(-1.0, abs=1e-15), -math.inf]
        assert math.copysign(1, ends[0]) == 1
    # In one dimension a direction is a sign.
    assert log2_tail([-1.0, 1.0], 1).tolist() == [0.0, -1.0]
    assert log2_tail(np.zeros((2, 3)), 5).shape == (2, 3)
    assert log2_tail(0.5, 5).shape == ()


@given(st.floats(-1, 1), st.floats(-1, 1), st.integers(2, 10**6))
def test_tail_falls_and_its_two_sides_add_up(one: float, other: float, dimension: int) -> None:
    low, high = sorted((one, other))
    assert log2_tail(high, dimension) <= log2_tail(low, dimension) + 1e-12
    assert 2 ** log2_tail(one, dimension) + 2 ** log2_tail(-one, dimension) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("cosine", "dimension", "complaint"),
    [(1.0000001, 5, "between -1 and 1"), (math.nan, 5, "between"), (0.5, 0, "dimension"), (0.5, 2.5, "dimension")],
)
def test_tail_refuses(cosine: float, dimension: object, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        log2_tail(cosine, dimension)  # type: ignore[arg-type]


def drawn(seed: int, k: int = 16, d: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((k, d))


def test_result_holds_its_null_and_the_numbers_behind_it() -> None:
    u, v = drawn(0), drawn(0) + 2 * drawn(1)
    result = direction_test(v, u, n_queries=15_000)
    cosine = float(np.vdot(u, v) / np.linalg.norm(u) / np.linalg.norm(v))
    assert (result.null, result.n_queries, result.n_controls) == ("exact", 15_000, 0)
    assert result.floor == 2.0**-256
    assert result.statistic == pytest.approx(32 * cosine, rel=1e-12)
    assert result.details["cosine"] == pytest.approx(cosine, rel=1e-12)
    assert result.details["dimension"] == 1024
    assert result.log2_pvalue == result.details["log2_tail"] == pytest.approx(exact(cosine, 1024), rel=1e-11)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["null"] == "exact"


def test_bits_end_at_the_entropy_of_the_secret() -> None:
    u = drawn(0)
    for v, score in ((u + drawn(1), -490), (u + 1e-3 * drawn(1), -9000), (u + 1e-9 * drawn(1), -20_000), (u, -50_000)):
        result = direction_test(v, u, n_queries=1)
        assert result.log2_pvalue == -SECRET_BITS
        assert math.isfinite(result.details["log2_tail"])
        assert result.details["log2_tail"] < score
    assert rejects(result, 2.0**-256)
    with pytest.raises(RefusedError):
        rejects(result, 2.0**-257)
    against = direction_test(-u, u, n_queries=1)
    assert against.pvalue == 1
    assert against.statistic == pytest.approx(-32)


def test_close_directions_are_told_apart_by_their_sine() -> None:
    # 1 − c² from c alone has no digit left here: c differs from 1 by 5e-21.
    u = np.zeros((4, 16))
    u[0, 0] = 1.0
    v = u.copy()
    v[1, 1] = 1e-10
    with mpmath.workdps(40):
        x, a = mpmath.mpf("1e-20"), mpmath.mpf(63) / 2
        expected = float(mpmath.log(mpmath.betainc(a, 0.5, 0, x, regularized=True) / 2, 2))
    assert direction_test(v, u, n_queries=1).details["log2_tail"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("basis", [None, np.eye(64)[:, :5]], ids=["whole", "basis"])
def test_a_witness_of_nothing_proves_nothing(basis: np.ndarray | None) -> None:
    result = direction_test(np.zeros((16, 64)), drawn(0), n_queries=9, basis=basis)
    assert (result.statistic, result.log2_pvalue) == (0.0, 0.0)


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e12, 1e300])
def test_lengths_do_not_count(scale: float) -> None:
    u, v = drawn(0), drawn(0) + 3 * drawn(1)
    plain = direction_test(v, u, n_queries=1)
    for scaled in (direction_test(scale * v, u, n_queries=1), direction_test(v, scale * u, n_queries=1)):
        assert scaled.statistic == pytest.approx(plain.statistic, rel=1e-12)
        assert scaled.log2_pvalue == pytest.approx(plain.log2_pvalue, rel=1e-12)


def test_a_known_range_counts_its_own_dimensions() -> None:
    u, q = drawn(0), np.linalg.qr(drawn(2, 64, 64))[0][:, :8]
    v = (u + 2 * drawn(1)) @ q @ q.T
    whole, within = direction_test(v, u, n_queries=1), direction_test(v, u, n_queries=1, basis=q)
    coordinates = direction_test(v @ q, u @ q, n_queries=1)
    assert within.details["dimension"] == coordinates.details["dimension"] == 128
    assert within.statistic == pytest.approx(coordinates.statistic, rel=1e-12)
    assert within.details["cosine"] > whole.details["cosine"]
    assert within.log2_pvalue < whole.log2_pvalue


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"witness": np.ones((16, 63))}, r"one shape, but are \(16, 63\) and \(16, 64\)"),
        ({"witness": np.ones(64)}, "shape"),
        ({"witness": np.full((16, 64), np.nan)}, "witness must be finite"),
        ({"witness": [["a"]]}, "witness must be a matrix of numbers"),
        ({"directions": np.zeros((16, 64))}, "all 0"),
        ({"directions": np.full((16, 64), np.inf)}, "directions must be finite"),
        ({"directions": np.zeros((0, 64))}, "directions must be of shape"),
        ({"n_queries": 0}, "n_queries"),
        ({"basis": np.ones((64, 2))}, "orthonormal"),
        ({"basis": np.eye(63)}, "64 rows"),
        ({"basis": np.zeros((64, 0))}, "basis must be of shape"),
        ({"basis": np.eye(64)[0]}, "basis"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_hostile_input(change: dict[str, object], complaint: str) -> None:
    sound: dict[str, object] = {"witness": drawn(1), "directions": drawn(0), "n_queries": 1}
    direction_test(**sound)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=complaint):
        direction_test(**{**sound, **change})  # type: ignore[arg-type]


def test_arguments_are_left_alone() -> None:
    u, v, q = drawn(0), drawn(1), np.eye(64)[:, :3].copy()
    before = [a.copy() for a in (u, v, q)]
    direction_test(v, u, n_queries=1, basis=q)
    for now, then in zip((u, v, q), before, strict=True):
        np.testing.assert_array_equal(now, then)
