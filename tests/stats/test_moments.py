"""One pass equals two passes, whatever the scale, the order and the split."""

from __future__ import annotations

import doctest
import math
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sslguard.errors import UsageError
from sslguard.stats import moments as module
from sslguard.stats.moments import Moments, unit_rows

D, K, M = 5, 3, 4
BLOCKS = ("h", "phi", "g", "unit")
PAIRS = [(a, b) for a in BLOCKS for b in BLOCKS if {a, b} != {"g", "unit"}]


def rows(n: int, *, seed: int = 0, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated columns of spreads 0.1 to 10, each with a mean `offset` times its spread."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((D + K + M, D + K + M)) * np.geomspace(0.1, 10, D + K + M)
    values = rng.standard_normal((n, D + K + M)) @ mix
    values += offset * values.std(0)
    return values[:, :D], values[:, D : D + K], values[:, D + K :]


def gathered(h: np.ndarray, phi: np.ndarray, g: np.ndarray, batches: Sequence[int] = ()) -> Moments:
    """Moments of all rows, cut before each row in `batches`."""
    moments = Moments(h.shape[1], phi.shape[1], g.shape[1])
    for part in zip(*(np.split(a, sorted(batches)) for a in (h, phi, g)), strict=True):
        moments.update(*part)
    return moments


def covariance(moments: Moments, a: str, b: str) -> np.ndarray:
    return np.ldexp(moments.covariance(a, b), moments.exponent(a) + moments.exponent(b))  # type: ignore[arg-type]


def two_pass(h: np.ndarray, phi: np.ndarray, g: np.ndarray, a: str, b: str) -> np.ndarray:
    """In extended precision where the machine has it, and on the row lengths themselves."""
    blocks = {"h": h, "phi": phi, "g": g, "unit": g / np.linalg.norm(g.astype(np.longdouble), axis=1, keepdims=True)}
    left, right = (blocks[name].astype(np.longdouble) for name in (a, b))
    return ((left - left.mean(0)).T @ (right - right.mean(0)) / len(h)).astype(float)


def assert_same(moments: Moments, data: tuple[np.ndarray, np.ndarray, np.ndarray], tolerance: float) -> None:
    """Relative to the spreads of both columns: a covariance near 0 has no relative error to speak of."""
    for a, b in PAIRS:
        spreads = [np.sqrt(np.diag(two_pass(*data, name, name))) for name in (a, b)]
        error = np.abs(covariance(moments, a, b) - two_pass(*data, a, b)) / np.outer(*spreads)
        assert error.max() < tolerance, (a, b)


def test_examples_of_the_docstrings_hold() -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 5
    assert result.failed == 0


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("batches", [[], [1, 2, 3], [7] * 3, [100, 1500, 2999], list(range(0, 3000, 64))], ids=len)
def test_one_pass_equals_two(offset: float, batches: list[int]) -> None:
    data = rows(3000, offset=offset)
    assert_same(gathered(*data, batches), data, 1e-9)


def test_the_textbook_formula_would_fail_this() -> None:
    # E[xy] − E[x]E[y], which `assert_same` must be able to tell from a centred sum.
    h, phi, g = rows(3000, offset=1e4)
    naive = h.T @ h / len(h) - np.outer(h.mean(0), h.mean(0))
    error = np.abs(naive - two_pass(h, phi, g, "h", "h")) / np.outer(h.std(0), h.std(0))
    assert error.max() > 1e-9


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 200), max_size=6), st.randoms())
def test_any_split_and_order(cuts: list[int], shuffle) -> None:  # type: ignore[no-untyped-def]
    data = rows(200, seed=1, offset=1e4)
    parts = list(zip(*(np.split(a, sorted(cuts)) for a in data), strict=True))
    shuffle.shuffle(parts)
    total = Moments(D, K, M)
    for part in parts:
        total.update(*part)
    assert total.n == 200
    assert_same(total, data, 1e-9)
    assert repr(total) == f"Moments(dim={D}, n_features={K}, width={M}, n=200)"


@pytest.mark.parametrize("power", [-1000, -500, 0, 500, 1000])
def test_powers_of_two_change_nothing_but_the_unit(power: int) -> None:
    h, phi, g = rows(300)
    plain, scaled = gathered(h, phi, g), gathered(h, phi, np.ldexp(g, power), [100, 200])
    reference = gathered(h, phi, g, [100, 200])
    assert scaled.exponent("g") == plain.exponent("g") + power
    for a, b in PAIRS:
        np.testing.assert_array_equal(scaled.covariance(a, b), reference.covariance(a, b))  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(1e300, 1.0), (1.0, 1e300), (1e-300, 1e300), (1e300, 1e-300), (5e-324, 1.7e308)])
def test_answers_of_every_size_neither_overflow_nor_become_nan(sizes: tuple[float, float]) -> None:
    h, phi, g = rows(40)
    g = np.clip(g / np.abs(g).max(), -1, 1)
    g = np.vstack((g[:20] * sizes[0], g[20:] * sizes[1]))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        once = gathered(h, phi, g, [20])
        whole = gathered(h, phi, g)
        for moments in (once, whole):
            for a, b in [*PAIRS, ("standard", "standard"), ("phi", "standard")]:
                assert np.isfinite(moments.covariance(a, b)).all()  # type: ignore[arg-type]
            assert 0 < moments.covariance("g", "g").max() <= 1
    np.testing.assert_allclose(once.covariance("g", "g"), whole.covariance("g", "g"), rtol=1e-12, atol=1e-15)


def test_columns_of_very_different_size_keep_their_correlation() -> None:
    h, phi, g = rows(300)
    factors = np.array([1e-300, 1e-100, 1.0, 1e300])
    small = g / np.abs(g).max()
    moments = gathered(h, phi, small * factors)
    np.testing.assert_allclose(moments.covariance("standard", "standard"), np.corrcoef(small.T), atol=1e-12)
    expected = np.corrcoef(np.hstack((phi, small)).T)[:K, K:] * phi.std(0)[:, None]
    got = np.ldexp(moments.covariance("phi", "standard"), moments.exponent("phi"))
    np.testing.assert_allclose(got, expected, atol=1e-12)
    # In one unit, what is 1e-300 of the largest is 0.
    assert moments.covariance("g", "g")[0, 0] == 0 < moments.covariance("g", "g")[3, 3]


def test_missing_answers_are_rows_of_zeros_and_count() -> None:
    h, phi, g = rows(60)
    g[::2] = 0
    moments = gathered(h, phi, g, [7])
    assert moments.n == 60
    np.testing.assert_allclose(covariance(moments, "g", "g"), np.cov(g.T, bias=True), rtol=1e-12)
    unit = np.where(g.any(1, keepdims=True), g, 0) / np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(covariance(moments, "unit", "unit"), np.cov(unit.T, bias=True), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("value", [0.0, 0.3, 1 / 3, 1e300, 1e-300, -7.7e11])
def test_a_constant_column_has_moments_of_exactly_zero(value: float) -> None:
    h, phi, g = rows(2500)
    g[:] = value * np.arange(1, M + 1) if abs(value) < 1e299 else value
    total = gathered(h, phi, g, [1, 77, 1201, 2101])
    for block in ("h", "phi", "g", "unit", "standard"):
        assert not total.covariance(block, "g").any()  # type: ignore[arg-type]
        assert not total.covariance(block, "standard").any()  # type: ignore[arg-type]
        assert not total.covariance(block, "unit").any()  # type: ignore[arg-type]


def test_what_is_kept_does_not_grow_with_the_queries() -> None:
    moments = Moments(D, K, M)
    sizes = set()
    for seed in range(5):
        moments.update(*rows(2000, seed=seed))
        sizes.add(len(pickle.dumps(moments)))
    assert max(sizes) - min(sizes) < 16  # the count itself


@pytest.mark.parametrize("batch", [10_000, 128, 3], ids="batches of {}".format)
def test_rows_are_multiplied_in_blocks_not_one_by_one(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    calls = []

    def counted(*args: object, **kwargs: object) -> np.ndarray:
        calls.append(args)
        return product(*args, **kwargs)

    product = module.dsyrk
    monkeypatch.setattr(module, "dsyrk", counted)
    data = rows(10_000)
    moments = gathered(*data, batches=range(batch, 10_000, batch))
    assert moments.n == 10_000
    assert_same(moments, data, 1e-12)
    assert len(calls) <= 1 + math.ceil(10_000 / 1024)


@pytest.mark.parametrize(
    ("place", "change", "complaint"),
    [
        (0, lambda a: a[:, 1:], r"h must be of shape \(n, 5\), not \(9, 4\)"),
        (1, lambda a: a[1:], "9, 8, 9 and 9"),
        (1, lambda a: a[0], "phi must be of shape"),
        (2, lambda a: a * np.where(np.arange(M) == 2, np.nan, 1), r"g must be finite.*row 0, column 2 is nan.*zeros"),
        (2, lambda a: a + np.inf, "a row of zeros"),
        (2, lambda a: a.astype(complex), "complex"),
        (2, lambda a: np.full(a.shape, "x"), "matrix of numbers"),
        (2, lambda a: None, "g must be"),
    ],
)
def test_a_refused_batch_adds_nothing(place: int, change, complaint: str) -> None:  # type: ignore[no-untyped-def]
    moments = gathered(*rows(9))
    before = [covariance(moments, *pair) for pair in PAIRS]
    batch = list(rows(9, seed=1))
    batch[place] = change(batch[place])
    with pytest.raises(UsageError, match=complaint):
        moments.update(*batch)
    assert moments.n == 9
    for pair, known in zip(PAIRS, before, strict=True):
        np.testing.assert_array_equal(covariance(moments, *pair), known)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, -1, 1), (1, 1, 1.5), (1, 1, "many")])
def test_sizes_are_whole_and_positive(sizes: tuple[object, ...]) -> None:
    with pytest.raises(UsageError, match="must be"):
        Moments(*sizes)  # type: ignore[arg-type]


def test_no_queries_have_no_covariance() -> None:
    moments = Moments(D, K, M)
    moments.update(np.zeros((0, D)), np.zeros((0, K)), np.zeros((0, M)))
    with pytest.raises(UsageError, match="no queries"):
        moments.covariance("h", "h")
    moments.update(*rows(1))
    assert not moments.covariance("g", "g").any()
    with pytest.raises(UsageError, match="one of h, phi, g, standard, unit"):
        moments.covariance("h", "directions")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, bool])
def test_real_numbers_of_every_type_are_taken(dtype: type) -> None:
    h, phi, g = rows(64)
    answers = (g > 0).astype(dtype)
    moments = gathered(h, phi, answers, [30])
    np.testing.assert_allclose(covariance(moments, "g", "g"), np.cov(answers.astype(float).T, bias=True), rtol=1e-12)


def test_unit_rows_of_any_size() -> None:
    g = np.array([[3.0, 4.0], [3e300, 4e300], [3e-320, 4e-320], [0.0, 0.0], [1.7e308, 1.7e308], [5e-324, 0.0]])
    expected = [[0.6, 0.8]] * 3 + [[0, 0], [math.sqrt(0.5)] * 2, [1, 0]]
    np.testing.assert_allclose(unit_rows(g), expected, rtol=1e-3)
    np.testing.assert_allclose(unit_rows(g)[:2], expected[:2], rtol=1e-15)
