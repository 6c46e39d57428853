"""Left witnesses against the two-pass oracle, what each finds and what leaves it unmoved, and their nulls."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import mpmath
import numpy as np
import pytest
from scipy import stats

from helpers.exact_oracle import left_span, sphere, unit
from sslguard.errors import UsageError
from sslguard.stats import left as module
from sslguard.stats.corrections import fisher, holm
from sslguard.stats.left import FAMILY, left_family, left_test, left_witnesses, log2_share_tail
from sslguard.stats.moments import Moments
from sslguard.stats.spectra import Spectra

B, R = 32, 4
ROTATIONS = tuple(one for one in FAMILY if one.leading is not None)


@dataclass(frozen=True, eq=False)
class Bed:
    """Clean embeddings h (n, d) of length 1, functions ψ (n, B) that h tells in part, a left secret A and a mark."""

    h: np.ndarray
    psi: np.ndarray
    left: np.ndarray
    right: np.ndarray

    def marked(self, strength: float = 0.2, noise: float = 0.05) -> np.ndarray:
        added = strength / np.sqrt(R) * self.psi @ self.left @ self.right
        return self.h + added + noise * np.random.default_rng(9).standard_normal(self.h.shape) / 5


def bed(seed: int, n: int = 2000, d: int = 40) -> Bed:
    rng = np.random.default_rng(seed)
    items = rng.standard_normal((n, 60))
    h = unit(np.tanh(items[:, :40] @ rng.standard_normal((40, d)) / 5) * np.geomspace(1, 0.2, d))
    psi = np.abs(items @ rng.standard_normal((60, B)) / 5)
    psi = psi - psi.mean(0) + 0.3 * h @ rng.standard_normal((d, B))
    return Bed(h, psi / psi.std(0), sphere(R, B, rng).T, sphere(R, d, rng))


def spectra_of(b: Bed, g: np.ndarray) -> Spectra:
    moments = Moments(b.h.shape[1], B, g.shape[1])
    for rows in np.array_split(np.arange(len(g)), 4):
        moments.update(b.h[rows], b.psi[rows], g[rows])
    return Spectra(moments)


def witnesses_of(b: Bed, g: np.ndarray) -> dict[str, np.ndarray]:
    return left_witnesses(spectra_of(b, g))


def bits(b: Bed, g: np.ndarray) -> dict[str, float]:
    return {name: -left_test(s, b.left) for name, s in witnesses_of(b, g).items()}


def gaussian(d: int, m: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((d, m))


def rotation(d: int, seed: int = 2) -> np.ndarray:
    return np.linalg.qr(gaussian(d, d, seed))[0]


def bent(d: int, condition: float = 1e4) -> np.ndarray:
    return rotation(d) * np.geomspace(1, 1 / condition, d) @ rotation(d, 5)


def labels(g: np.ndarray, b: Bed, classes: int = 10) -> np.ndarray:
    """One-hot less what h tells of it linearly."""
    found = np.eye(classes)[(g @ gaussian(40, classes)).argmax(1)]
    x = np.hstack((b.h, np.ones((len(g), 1))))
    return found - x @ np.linalg.lstsq(x, found, rcond=None)[0]


MADE = {
    "as it is": lambda g, b: g,
    "rotated": lambda g, b: g @ rotation(40),
    "gaussian map, shifted": lambda g, b: g @ gaussian(40, 40) + 5,
    "condition 1e4": lambda g, b: g @ bent(40),
    "half, rotated": lambda g, b: (g @ rotation(40))[:, :20],
    "wider": lambda g, b: g @ gaussian(40, 60),
    "logits": lambda g, b: g @ gaussian(40, 10),
    "labels": labels,
    "two numbers": lambda g, b: g @ gaussian(40, 2),
    "one number": lambda g, b: g @ gaussian(40, 1),
}


@pytest.fixture(scope="module")
def plain() -> Bed:
    return bed(1)


def test_no_argument_exists_through_which_a_secret_could_come_in() -> None:
    assert list(inspect.signature(left_witnesses).parameters) == ["spectra"]
    assert list(inspect.signature(module._coefficients).parameters) == ["spectra", "ridge", "leading"]
    assert list(inspect.signature(module._shrunk).parameters) == ["coefficients", "columns"]


def test_too_few_queries_for_the_columns_give_no_witness() -> None:
    """Some mixtures of answers and functions are then equal, whoever answers: rounding would choose the witness."""
    few = bed(2, n=150)
    for width, leads in ((150 - B - 1, True), (150 - B, False), (200, False)):
        found = witnesses_of(few, gaussian(150, width))
        assert {one.name: found[one.name].any() for one in left_family(width)} == {
            one.name: leads or one.leading is not None for one in left_family(width)
        }, width


@pytest.mark.parametrize("suspect", MADE)
@pytest.mark.parametrize("innocent", [False, True], ids=["marked", "innocent"])
def test_every_witness_agrees_with_the_oracle(suspect: str, innocent: bool, plain: Bed) -> None:
    g = MADE[suspect](plain.marked(0.0 if innocent else 0.2), plain)
    found = witnesses_of(plain, g)
    family = left_family(g.shape[1])
    assert list(found) == [one.name for one in family]
    for one in family:
        s, k = found[one.name], min(one.columns, g.shape[1])
        options = {"ridge": one.ridge, "leading": one.leading, "columns": one.columns}
        np.testing.assert_allclose(s.T @ s, np.eye(k), atol=1e-9)
        np.testing.assert_allclose(s @ s.T, left_span(plain.h, plain.psi, g, **options), atol=1e-5, err_msg=one.name)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_the_family_finds(seed: int) -> None:
    b = bed(seed)
    for name, made in MADE.items():
        found = max(bits(b, made(b.marked(), b)).values())
        least = {"labels": 10, "two numbers": 40, "one number": 20}.get(name, 140)
        assert found > least, (name, found)


@pytest.mark.parametrize("suspect", MADE)
def test_innocents_are_not_found(suspect: str, plain: Bed) -> None:
    rng = np.random.default_rng(4)
    other = Bed(plain.h, plain.psi, sphere(R, B, rng).T, plain.right)
    independent = np.tanh(3 * plain.h @ gaussian(40, 40, 6)) + np.abs(plain.psi @ gaussian(B, 40, 7)) / 10
    for g in (plain.marked(0.0), other.marked(), independent):
        assert max(bits(plain, MADE[suspect](g, plain)).values()) < 20


def test_any_invertible_map_leaves_what_keeps_all_components(plain: Bed) -> None:
    g = plain.marked()
    known = witnesses_of(plain, g)
    scales = 10.0 ** np.random.default_rng(4).integers(-100, 100, 40)
    for other in (g @ bent(40) + 5, g @ gaussian(40, 40) * 1e200, g * scales, g[:, ::-1] - 1e3, -g):
        found = witnesses_of(plain, other)
        for one in FAMILY:
            if one.leading is None:
                s, t = known[one.name], found[one.name]
                np.testing.assert_allclose(s @ s.T, t @ t.T, atol=1e-5, err_msg=one.name)


def test_rotations_shifts_and_scales_leave_every_witness(plain: Bed) -> None:
    g = plain.marked()
    known = witnesses_of(plain, g)
    for other in (g @ rotation(40), 1e250 * g @ rotation(40, 9), g - 3, 1e-250 * g):
        found = witnesses_of(plain, other)
        for name, s in known.items():
            np.testing.assert_allclose(s @ s.T, found[name] @ found[name].T, atol=1e-6, err_msg=name)
    # A map that changes which components lead changes the witnesses that keep these.
    found = witnesses_of(plain, g @ bent(40))
    for one in ROTATIONS:
        s, t = known[one.name], found[one.name]
        assert np.abs(s @ s.T - t @ t.T).max() > 0.01


def test_what_h_tells_of_the_answers_counts_for_nothing(plain: Bed) -> None:
    g = plain.marked()
    wide = np.hstack((g, 100 * plain.h @ gaussian(40, 5)))
    known, found = bits(plain, g), bits(plain, wide)
    for one in FAMILY:
        if one.leading is None:
            assert found[one.name] == pytest.approx(known[one.name], rel=0.25), one.name


def test_family_depends_on_the_width_alone() -> None:
    assert left_family(25) == FAMILY
    assert len(FAMILY) == len({one.name for one in FAMILY}) == 9
    for width, size in ((1, 2), (2, 2), (4, 4), (7, 4), (10, 6), (24, 6), (25, 9), (4096, 9)):
        assert len(left_family(width)) == size
        assert all(one.columns <= max(2, width) for one in left_family(width))


@pytest.mark.parametrize("suspect", ["zeros", "constant", "exact copy", "map of h", "few queries"])
def test_what_carries_nothing_gives_a_witness_of_zero(suspect: str, plain: Bed) -> None:
    b = plain
    if suspect == "few queries":  # h fits ψ exactly: nothing of it is left, whatever the answers are
        b = Bed(plain.h[:30], plain.psi[:30], plain.left, plain.right)
    g = {
        "zeros": np.zeros_like(b.h),
        "constant": np.full_like(b.h, 1 / 3),
        "exact copy": b.h.copy(),
        "map of h": b.h @ gaussian(40, 50),
        "few queries": np.tanh(b.h @ gaussian(40, 40)),
    }[suspect]
    for name, s in witnesses_of(b, g).items():
        assert s.shape[0] == B
        assert not s.any(), name
        assert left_test(s, b.left) == 0


def test_moments_are_left_alone_and_the_answer_repeats(plain: Bed) -> None:
    spectra = spectra_of(plain, plain.marked())
    before = {name: spectra.moments.covariance(name, "phi") for name in ("h", "phi", "g")}
    one, again = left_witnesses(spectra), witnesses_of(plain, plain.marked())
    for name, s in one.items():
        assert np.array_equal(s, again[name])
    for name, known in before.items():
        assert np.array_equal(spectra.moments.covariance(name, "phi"), known)


def test_missing_answers_dilute_and_do_not_destroy(plain: Bed) -> None:
    g = plain.marked()
    whole = max(bits(plain, g).values())
    g[::4] = 0
    assert 20 < max(bits(plain, g).values()) < whole


# The tail.


def exact_tail(share: mpmath.mpf, dimension: int, columns: int) -> float:
    """I_{1−x}((B−k)/2, k/2) as a quadrature-free sum: the hypergeometric series in 60 digits (DLMF 8.17.8)."""
    a, b, y = mpmath.mpf(dimension - columns) / 2, mpmath.mpf(columns) / 2, 1 - share
    series = mpmath.hyp2f1(a + b, 1, a + 1, y, maxterms=10**6)
    return float(mpmath.log(y**a * share**b * series / (a * mpmath.beta(a, b)), 2))


@pytest.mark.parametrize(("dimension", "columns"), [(2, 1), (3, 2), (16, 1), (48, 4), (64, 8), (64, 63), (128, 2)])
def test_tail_against_mpmath(dimension: int, columns: int) -> None:
    with mpmath.workdps(60):
        for rest in (1e-30, 1e-15, 1e-9, 1e-3, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999):
            share = 1 - mpmath.mpf(rest)
            found = log2_share_tail(float(share), rest, dimension, columns)
            assert found == pytest.approx(exact_tail(share, dimension, columns), rel=1e-11, abs=1e-11), rest


def test_tail_at_its_ends() -> None:
    assert log2_share_tail(0.0, 1.0, 64, 4) == 0
    assert log2_share_tail(0.7, 0.3, 4, 4) == 0
    assert log2_share_tail(0.7, 0.3, 4, 8) == 0
    assert -7000 < log2_share_tail(1.0, 0.0, 128, 1) < -6000  # no answer holds more digits than this
    shares = np.linspace(0, 1, 200)
    tails = [log2_share_tail(x, 1 - x, 64, 2) for x in shares]
    assert (np.diff(tails) < 0).all()


# The test.


def test_evidence_is_fishers_sum_over_columns() -> None:
    rng = np.random.default_rng(5)
    s, a = np.linalg.qr(rng.standard_normal((B, 3)))[0], sphere(R, B, rng).T
    shares = np.square(s.T @ a).sum(0) / np.square(a).sum(0)
    assert left_test(s, a) == pytest.approx(fisher([log2_share_tail(x, 1 - x, B, 3) for x in shares]), abs=1e-9)
    assert left_test(s, a * [1, 2, 3, 4]) == pytest.approx(left_test(s, a))
    assert left_test(s[:, ::-1] @ rotation(3), a) == pytest.approx(left_test(s, a))
    assert left_test(np.linalg.qr(a)[0], a) < -1000


@pytest.mark.parametrize(
    ("witness", "left"),
    [
        (np.eye(5)[:, :2], np.ones((4, 2))),
        (np.ones(4), np.ones((4, 2))),
        (np.eye(4)[:, :2], np.ones(4)),
        (np.eye(4)[:, :2], np.array([[1.0, 0.0]] * 4)),
    ],
    ids=["rows", "vector", "a vector for A", "a column of 0"],
)
def test_shapes_that_are_refused(witness: np.ndarray, left: np.ndarray) -> None:
    with pytest.raises(UsageError, match="a row for each function"):
        left_test(witness, left)


DRAWS = 2000


@pytest.fixture(scope="module")
def redrawn() -> np.ndarray:
    rng = np.random.default_rng(13)
    return np.stack([sphere(R, B, rng).T for _ in range(DRAWS)])


def suspects(b: Bed) -> dict[str, np.ndarray]:
    """None of them saw the secrets that are drawn."""
    rng = np.random.default_rng(12)
    logits = np.tanh(3 * b.h @ gaussian(40, 10))
    outlier = np.tanh(b.h @ gaussian(40, 30))
    outlier[5, 2] = 1e12
    return {
        "copy in single precision": b.h.astype(np.float32),
        "copy with noise": b.marked(0.0),
        "independent, of the same items": np.abs(b.psi @ gaussian(B, 40)),
        "logits": logits,
        "one-hot labels": np.eye(10)[logits.argmax(1)],
        "one column": logits[:, :1],
        "Cauchy": rng.standard_cauchy((len(b.h), 30)),
        "one outlier": outlier,
        "this very mark": b.marked(),  # of secrets that are then redrawn
        "half missing": outlier * (np.arange(len(b.h)) % 2)[:, None],
    }


def pvalues(s: np.ndarray, redrawn: np.ndarray) -> np.ndarray:
    """`left_test` for every draw at once."""
    shares = np.square(np.einsum("bk,dbr->dkr", s, redrawn)).sum(1) / np.square(redrawn).sum(1)
    tails = stats.beta(s.shape[1] / 2, (B - s.shape[1]) / 2).logsf(shares)
    return stats.gamma(R).sf(-tails.sum(1))


def test_pvalues_of_innocents_are_uniform_over_redrawn_secrets(redrawn: np.ndarray) -> None:
    b = bed(3, n=500)
    cells: dict[tuple[str, str], float] = {}
    for suspect, g in suspects(b).items():
        for name, s in witnesses_of(b, g).items():
            if s.any():
                p = pvalues(s, redrawn)
                some = [2 ** left_test(s, a) for a in redrawn[:5]]
                np.testing.assert_allclose(p[:5], some, rtol=1e-6)
                cells[suspect, name] = stats.kstest(p, "uniform").pvalue
    assert {suspect for suspect, _ in cells} == set(suspects(b))
    adjusted = 2 ** holm(np.log2(list(cells.values())))
    assert adjusted.min() > 0.01, min(cells.items(), key=lambda cell: cell[1])


def test_the_best_of_the_family_after_its_charge_is_never_below_uniform(redrawn: np.ndarray) -> None:
    b = bed(3, n=500)
    for g in (b.marked(0.0), np.tanh(3 * b.h @ gaussian(40, 10))):
        found = list(witnesses_of(b, g).values())
        p = np.minimum(1, len(found) * np.min([pvalues(s, redrawn) for s in found], axis=0))
        assert stats.kstest(p, "uniform", alternative="greater").pvalue > 0.01


def test_a_witness_that_has_seen_its_secret_would_not_pass(redrawn: np.ndarray) -> None:
    b = bed(3, n=500)
    s = witnesses_of(b, b.marked(0.0))[FAMILY[1].name]
    peeked = [np.linalg.qr(s + 0.3 * a)[0] for a in redrawn]
    p = 2.0 ** np.array([left_test(t, a) for t, a in zip(peeked[:400], redrawn, strict=False)])
    assert stats.kstest(p, "uniform").pvalue < 1e-6


def test_columns_that_were_normalised_one_by_one_would_pass_too(redrawn: np.ndarray) -> None:
    """Only directions of columns count on this side."""
    s = np.eye(B)[:, :4]
    each = redrawn / np.linalg.norm(redrawn, axis=1, keepdims=True)
    assert np.allclose([left_test(s, a) for a in redrawn[:50]], [left_test(s, a) for a in each[:50]])
