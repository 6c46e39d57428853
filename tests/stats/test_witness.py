"""Witnesses against the two-pass oracle, what each finds and what leaves it unmoved, and their nulls."""

from __future__ import annotations

import doctest
import inspect
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import scipy.linalg
from scipy import stats

from helpers.exact_oracle import Bed, bed, sphere, unit, witness, z
from sslguard.errors import UsageError
from sslguard.stats import witness as module
from sslguard.stats.corrections import holm
from sslguard.stats.decomposition import row_space, thin_svd
from sslguard.stats.direction import direction_test, log2_tail
from sslguard.stats.moments import Moments
from sslguard.stats.spectra import Spectra
from sslguard.stats.witness import family

NAMES = module.WITNESSES
OWN = ("own_space", "difference", "own_whitened")


def spectra_of(b: Bed, g: np.ndarray) -> Spectra:
    same = g.shape[1] == b.f.shape[1]
    placed = b.placed(g) if same else unit(g)
    moments = Moments(b.h.shape[1], b.phi.shape[1], g.shape[1], same=same)
    for rows in np.array_split(np.arange(len(g)), 4):
        moments.update(b.h[rows], b.phi[rows], g[rows], placed[rows])
    return Spectra(moments)


def of_suspect(b: Bed, g: np.ndarray) -> tuple[str, ...]:
    return family(same=g.shape[1] == b.f.shape[1])


def score(name: str, b: Bed, g: np.ndarray, *, within: bool = False) -> tuple[float, float]:
    """z of the direction test, and bits before the cap; `within` the range of the fit."""
    v, basis = module.witness(name, spectra_of(b, g), b.spread)
    result = direction_test(v, b.directions, n_queries=len(g), basis=basis if within else None)
    return result.statistic, -result.details["log2_tail"]


def noisy(b: Bed, *, noise: float = 0.02, seed: int = 1) -> np.ndarray:
    return b.marked() + noise * np.random.default_rng(seed).standard_normal(b.f.shape)


def rotation(d: int, seed: int = 2) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


def gaussian(d: int, m: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((d, m))


def ill_conditioned(d: int, m: int, condition: float = 1e4) -> np.ndarray:
    left, _, right = np.linalg.svd(gaussian(d, m), full_matrices=False)
    return (left * np.geomspace(1, 1 / condition, min(d, m))) @ right


def leading(g: np.ndarray, m: int) -> np.ndarray:
    """Its first m principal components."""
    centred = g - g.mean(0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:m].T


def first(b: Bed, n: int) -> Bed:
    """Its first n queries, along the axes of all."""
    return replace(b, f=b.f[:n], phi=b.phi[:n])


# Suspects that answer what the mark gave them, in spaces of 24, 8, 30 and 5 columns.
DERIVED = {
    "head": lambda b: b.marked(),
    "noisy": noisy,
    "rotated": lambda b: noisy(b) @ rotation(24),
    "gaussian map, shifted": lambda b: noisy(b) @ gaussian(24, 24) + 5,
    "condition 1e4": lambda b: noisy(b) @ ill_conditioned(24, 24),
    "PCA 8": lambda b: leading(noisy(b), 8),
    "wider": lambda b: noisy(b) @ np.linalg.qr(gaussian(30, 24))[0].T,
    "logits": lambda b: noisy(b) @ gaussian(24, 5),
    "ReLU of a rotation": lambda b: np.maximum(noisy(b) @ rotation(24), 0),
    "sign bits": lambda b: np.sign(noisy(b)),
    "strong noise": lambda b: noisy(b, noise=0.3),
}


@pytest.fixture(scope="module")
def plain() -> Bed:
    return bed(1)


@pytest.fixture(scope="module")
def flat() -> Bed:
    return bed(1, flat=True)


def test_examples_of_the_docstrings_hold() -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 2
    assert result.failed == 0


def test_no_argument_exists_through_which_directions_could_come_in() -> None:
    assert list(inspect.signature(module.witness).parameters) == ["name", "spectra", "spread"]
    assert list(inspect.signature(module.witnesses).parameters) == ["spectra", "spread", "chosen"]
    assert list(inspect.signature(Spectra).parameters) == ["moments"]
    assert list(inspect.signature(Moments.update).parameters) == ["self", "h", "phi", "g", "unit"]
    assert "direction" not in "".join(vars(module)).lower()


@pytest.mark.parametrize("collinear", [False, True], ids=["plain", "flat"])
@pytest.mark.parametrize("suspect", DERIVED)
def test_every_witness_agrees_with_the_oracle(suspect: str, collinear: bool, plain: Bed, flat: Bed) -> None:
    b = flat if collinear else plain
    g = DERIVED[suspect](b)
    for name in of_suspect(b, g):
        expected = z(witness(name, b, g), b.directions)
        assert score(name, b, g)[0] == pytest.approx(expected, abs=1e-6), name


# What each witness must find (z at least, where 13.9 is all there is: √D, D = 192) and cannot find (None: |z| below 4).
# Bounds stand some 10 % below the least of three beds. Without a map all find the mark; a rotation blinds own_space
# and the others of h's own space; an ill-conditioned map costs all of them half.
@pytest.mark.parametrize(
    ("suspect", "least"),
    [
        (
            "head",
            {
                "own_space": 10.5,
                "difference": 12.2,
                "own_whitened": 10.1,
                "leading": 11.7,
                "mapped": 11.7,
                "procrustes": 10.5,
                "whitened": 9.5,
            },
        ),
        (
            "noisy",
            {
                "own_space": 10.5,
                "difference": 12.2,
                "own_whitened": 10.1,
                "leading": 11.7,
                "mapped": 11.7,
                "procrustes": 10.5,
                "whitened": 9.4,
            },
        ),
        (
            "rotated",
            {
                "own_space": None,
                "difference": None,
                "own_whitened": None,
                "leading": 11.7,
                "mapped": 11.3,
                "procrustes": 10.5,
                "whitened": 9.4,
            },
        ),
        (
            "gaussian map, shifted",
            {
                "own_space": None,
                "difference": None,
                "own_whitened": None,
                "leading": 6.7,
                "mapped": 10.4,
                "procrustes": 8.5,
                "whitened": 7.3,
            },
        ),
        (
            "condition 1e4",
            {
                "own_space": None,
                "difference": None,
                "own_whitened": None,
                "leading": 2.7,
                "mapped": 4.7,
                "procrustes": 4.6,
                "whitened": 3.7,
            },
        ),
        (
            "PCA 8",
            {
                "leading": 5.9,
                "mapped": 5.7,
                "procrustes": 5.8,
                "whitened": 4.3,
            },
        ),
        (
            "wider",
            {
                "leading": 11.7,
                "mapped": 11.3,
                "procrustes": 10.5,
                "whitened": 9.4,
            },
        ),
        (
            "logits",
            {
                "leading": None,
                "mapped": None,
                "procrustes": 4,
                "whitened": 4.2,
            },
        ),
        (
            "ReLU of a rotation",
            {
                "own_space": None,
                "difference": None,
                "own_whitened": None,
                "leading": 9.4,
                "mapped": 9.7,
                "procrustes": 8.2,
                "whitened": 8.3,
            },
        ),
        (
            "sign bits",
            {
                "own_space": 9.5,
                "difference": 10.6,
                "own_whitened": 10.0,
                "leading": 11.5,
                "mapped": 11.6,
                "procrustes": 9.3,
                "whitened": 9.6,
            },
        ),
        (
            "strong noise",
            {
                "own_space": 10,
                "difference": 11.3,
                "own_whitened": 9.7,
                "leading": 11.2,
                "mapped": 10.8,
                "procrustes": 9.9,
                "whitened": 9.1,
            },
        ),
    ],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_each_witness_finds(suspect: str, least: dict[str, float | None], seed: int) -> None:
    b = bed(seed)
    g = DERIVED[suspect](b)
    assert set(least) == set(of_suspect(b, g))
    for name, bound in least.items():
        found = score(name, b, g)[0]
        assert abs(found) < 4 if bound is None else found > bound, (name, found)


@pytest.mark.parametrize("suspect", ["copy", "map", "independent", "another key's mark"])
def test_innocents_are_not_found(suspect: str, plain: Bed) -> None:
    rng = np.random.default_rng(11)
    other = replace(plain, directions=sphere(8, 24, rng))
    g = {
        "copy": plain.f + 1e-4 * rng.standard_normal(plain.f.shape),
        "map": plain.f @ gaussian(24, 24) + 1e-4 * rng.standard_normal(plain.f.shape),
        "independent": np.tanh(3 * plain.f @ gaussian(24, 24)),
        "another key's mark": other.marked(),
    }[suspect]
    for name in NAMES:
        assert abs(score(name, plain, g)[0]) < 4, name


def test_procrustes_is_unchanged_by_rotations_and_by_padding(plain: Bed) -> None:
    g = noisy(plain)
    reference = score("procrustes", plain, g)[0]
    wider = np.hstack((g, np.zeros((len(g), 6)))) @ rotation(30)
    for other in (g @ rotation(24), 1e250 * g @ rotation(24, 9), wider):
        assert score("procrustes", plain, other)[0] == pytest.approx(reference, abs=1e-6)
    # A narrower suspect is one that has been padded with columns of 0.
    narrow = leading(g, 8)
    padded = np.hstack((narrow, np.zeros((len(g), 16)))) @ rotation(24)
    assert score("procrustes", plain, padded)[0] == pytest.approx(score("procrustes", plain, narrow)[0], abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_scale_of_answers_and_of_the_spread_do_not_count(name: str, plain: Bed) -> None:
    g = noisy(plain)
    reference = direction_test(
        module.witness(name, spectra_of(plain, g), plain.spread)[0], plain.directions, n_queries=1
    )
    for factor, size in ((1e300, 1.0), (1e-300, 1.0), (-1.0, 1.0), (1.0, 1e200), (1.0, 1e-200)):
        v = module.witness(name, spectra_of(plain, factor * g), size * plain.spread)[0]
        again = direction_test(v, plain.directions, n_queries=1)
        sign = -1 if factor < 0 and name in OWN else 1
        assert again.statistic == pytest.approx(sign * reference.statistic, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_direction_of_the_embeddings_loses_nothing(name: str, plain: Bed) -> None:
    # One more coordinate, constant but for single precision, turned among the others: what a layer norm leaves. It is
    # no axis, and the answers still hold it: z may lose a tenth, not the 60 of a naive fit.
    rng, turn = np.random.default_rng(5), rotation(25, 6)

    def widened(a: np.ndarray) -> np.ndarray:
        return np.hstack((a, 0.3 + 1e-7 * rng.standard_normal((len(a), 1)))) @ turn

    wide, answers = Bed(widened(plain.f), plain.phi, plain.directions, plain.axes @ turn[:24]), widened(noisy(plain))
    assert wide.h.shape[1] == 24
    maps = [np.eye(25)] if name in OWN else [np.eye(25), rotation(25, 7), ill_conditioned(25, 25, 3)]
    for map_ in maps:
        without = score(name, plain, noisy(plain) @ map_[:24, :24])[0]
        assert score(name, wide, answers @ map_)[0] > 0.9 * without


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suspect", ["zeros", "constant", "exact copy", "few queries"])
def test_what_carries_nothing_gives_a_witness_of_zero(name: str, suspect: str, plain: Bed) -> None:
    b = plain
    if (suspect, name) == ("exact copy", "mapped"):
        pytest.skip("what it undoes of g's covariance is linear, and not the same in every direction")
    if suspect == "few queries":  # h fits φ exactly: nothing of φ is left, whatever g is
        if name in ("difference", "leading", "mapped"):
            pytest.skip("it reads what is linear as well")
        b = first(plain, 20)
    g = {
        "zeros": np.zeros_like(b.f),
        "constant": np.full_like(b.f, 1 / 3),
        "exact copy": b.f.copy(),
        "few queries": np.tanh(b.f @ gaussian(24, 24)),
    }[suspect]
    v, basis = module.witness(name, spectra_of(b, g), b.spread)
    assert v.shape == (8, 24)
    assert not v.any()
    assert basis is None
    assert direction_test(v, b.directions, n_queries=len(g)).pvalue == 1


def test_an_outlier_costs_one_answer_and_not_the_mark(plain: Bed) -> None:
    g = noisy(plain)
    g[7, 3] = 1e12
    for name in (*OWN, "leading", "procrustes"):
        assert score(name, plain, g)[0] > 9, name


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_own_whitened_sees_through_what_a_new_task_has_moved(seed: int) -> None:
    # A new task: it moves the answers in two directions, and is not without correlation with the features.
    b, rng = bed(seed), np.random.default_rng(8)
    tuned = noisy(b) + 0.2 * np.tanh(b.phi @ rng.standard_normal((8, 2))) @ rng.standard_normal((2, 24))
    assert score("own_whitened", b, tuned)[0] > 8
    for name in ("own_space", "difference"):
        assert score(name, b, tuned)[0] < 4, name


def test_leading_is_confined_to_the_leading_axes() -> None:
    b = bed(4, d=48)
    g = np.maximum(noisy(b, noise=0.1) @ rotation(48), 0)
    part, basis = module.witness("leading", spectra_of(b, g), b.spread)
    assert basis is not None
    assert basis.shape == (48, 24)
    np.testing.assert_allclose(part @ basis @ basis.T, part, atol=1e-9 * np.abs(part).max())
    order = np.argsort(-b.h.std(0))[:24]
    np.testing.assert_allclose(np.square(basis[order]).sum(), 24, atol=1e-6)


def test_missing_answers_dilute_and_do_not_destroy(plain: Bed) -> None:
    g = noisy(plain)
    whole = score("own_space", plain, g)[0]
    g[::2] = 0
    assert 5 < score("own_space", plain, g)[0] < whole


def test_family_depends_on_the_width_alone(plain: Bed) -> None:
    assert family(same=True) == NAMES
    assert family(same=False) == tuple(name for name in NAMES if name not in OWN)
    for suspect, same in (("rotated", True), ("PCA 8", False), ("wider", False)):
        assert spectra_of(plain, DERIVED[suspect](plain)).moments.same == same


@pytest.mark.parametrize("suspect", ["PCA 8", "logits"])
def test_a_known_range_gives_more_bits_for_the_same_answers(suspect: str, plain: Bed) -> None:
    g = DERIVED[suspect](plain)
    for name in of_suspect(plain, g):
        v, basis = module.witness(name, spectra_of(plain, g), plain.spread)
        assert basis is not None
        assert basis.shape == (24, g.shape[1])
        np.testing.assert_allclose(basis.T @ basis, np.eye(g.shape[1]), atol=1e-12)
        np.testing.assert_allclose(v @ basis @ basis.T, v, atol=1e-9 * np.abs(v).max())
        assert score(name, plain, g, within=True)[1] > 1.1 * score(name, plain, g)[1]


@pytest.mark.parametrize("suspect", ["head", "noisy", "gaussian map, shifted", "wider", "strong noise"])
def test_a_suspect_of_full_rank_has_no_range_of_its_own(suspect: str, plain: Bed) -> None:
    # `head` differs from a linear map of h by the mark alone: the residual's few directions must not become the range.
    g = DERIVED[suspect](plain)
    spectra = spectra_of(plain, g)
    ranges = [module.witness(name, spectra, plain.spread)[1] for name in of_suspect(plain, g)]
    assert ranges.count(None) >= 3


def test_no_axis_of_a_collinear_encoder_is_left_out_of_the_range(flat: Bed) -> None:
    assert flat.h.shape[1] == 23
    np.testing.assert_allclose(flat.axes @ np.ones(24), 0, atol=1e-6)
    assert module.witness("procrustes", spectra_of(flat, noisy(flat)), flat.spread)[1] is None


def test_mixtures_of_functions_are_functions(plain: Bed) -> None:
    mixture, g = gaussian(8, 3), noisy(plain)
    mixed = replace(plain, phi=plain.phi @ mixture)
    shared = spectra_of(plain, g)
    for _ in range(2):  # what is kept from the first mixture must not come out of the second
        found = module.witnesses(shared.mixed(mixture), plain.spread)
        for name, (v, basis) in module.witnesses(spectra_of(mixed, g), plain.spread).items():
            one, other = (each / np.linalg.norm(each) for each in (found[name][0], v))
            np.testing.assert_allclose(one, other, atol=1e-9, err_msg=name)
            assert (found[name][1] is None) == (basis is None)
        mixture = gaussian(8, 3, seed=4)
        mixed = replace(plain, phi=plain.phi @ mixture)


@pytest.mark.parametrize(
    ("spread", "complaint"),
    [
        (np.zeros(24), "24 positive numbers"),
        (np.ones(23), r"24 positive numbers, not of shape \(23,\)"),
        (np.append(np.ones(23), -0.1), "24 positive numbers"),
        (np.append(np.ones(23), 0.0), "24 positive numbers"),
        (np.eye(24), "spread must be"),
        (np.full(24, np.nan), "spread must be finite"),
        ("wide", "spread must be"),
    ],
    ids=["zero", "short", "negative", "an axis of 0", "a matrix", "nan", "text"],
)
@pytest.mark.parametrize("name", NAMES)
def test_spreads_that_are_refused(name: str, spread: object, complaint: str, plain: Bed) -> None:
    spectra = spectra_of(plain, plain.f)
    for call in (lambda: module.witness(name, spectra, spread), lambda: module.witnesses(spectra, spread)):  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=complaint):
            call()


def test_all_at_once_is_each_alone_to_the_bit(plain: Bed) -> None:
    for suspect in ("noisy", "PCA 8"):
        g = DERIVED[suspect](plain)
        found = module.witnesses(spectra_of(plain, g), plain.spread)
        assert tuple(found) == of_suspect(plain, g)
        for name, (v, basis) in found.items():
            alone, range_alone = module.witness(name, spectra_of(plain, g), plain.spread)
            assert np.array_equal(v, alone)
            assert (basis is None) == (range_alone is None)
            assert basis is None or np.array_equal(basis, range_alone)


def test_what_else_is_refused(plain: Bed) -> None:
    with pytest.raises(UsageError, match="of 24 columns, not 8: ask"):
        module.witness("own_space", spectra_of(plain, plain.f[:, :8]), plain.spread)
    with pytest.raises(
        UsageError,
        match=f"one of {', '.join(NAMES)}, not 'best'",
    ):
        module.witness("best", spectra_of(plain, plain.f), plain.spread)
    for name in NAMES:
        with pytest.raises(UsageError, match="no queries"):
            module.witness(name, Spectra(Moments(24, 8, 24, same=True)), plain.spread)


def test_moments_and_spread_are_left_alone_and_the_answer_repeats(plain: Bed) -> None:
    spectra, spread = spectra_of(plain, noisy(plain)), plain.spread.copy()
    moments = spectra.moments
    blocks = ("h", "phi", "g", "unit")
    before = {pair: moments.covariance(*pair) for pair in product(blocks, blocks)}
    for name in NAMES:
        (one, _), (again, _) = (module.witness(name, spectra, spread) for _ in range(2))
        np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(spread, plain.spread)
    for pair, known in before.items():
        np.testing.assert_array_equal(moments.covariance(*pair), known)


# Innocents: none of them saw the directions.
DRAWS = 2000


def innocents() -> dict[str, tuple[Bed, np.ndarray]]:
    b, rng = bed(3, n=400, d=16, k=4), np.random.default_rng(12)
    few = replace(first(b, 10), f=b.f[:10, :4] @ gaussian(4, 16))
    outlier = np.tanh(b.f @ gaussian(16, 16))
    outlier[5, 2] = 1e12
    logits = np.tanh(3 * b.f @ gaussian(16, 10))
    suspects = {
        "copy in single precision": b.f.astype(np.float32),
        "linear map in single precision": (b.f @ gaussian(16, 16)).astype(np.float32),
        "copy with noise": b.f + 0.01 * rng.standard_normal(b.f.shape),
        "independent": np.tanh(3 * b.f @ gaussian(16, 16)),
        "logits": logits,
        "one-hot labels": np.eye(10)[logits.argmax(1)],
        "one column": logits[:, :1],
        "Cauchy": rng.standard_cauchy((400, 16)),
        "one outlier": outlier,
        "another mark": replace(b, directions=sphere(4, 16, rng)).marked(2.0),
        "this very mark": b.marked(),  # of directions that are then redrawn
        "half missing": outlier * (np.arange(400) % 2)[:, None],
    }
    return {**{name: (b, g) for name, g in suspects.items()}, "n < d": (few, np.tanh(few.f @ gaussian(16, 16)))}


@pytest.fixture(scope="module")
def redrawn() -> np.ndarray:
    rng = np.random.default_rng(13)
    return np.stack([sphere(4, 16, rng) for _ in range(DRAWS)])


def log2_pvalues(v: np.ndarray, redrawn: np.ndarray, basis: np.ndarray | None) -> np.ndarray:
    """`direction_test` for every draw at once."""
    if basis is not None:
        v, redrawn = v @ basis, redrawn @ basis
    lengths = np.linalg.norm(redrawn, axis=(1, 2)) * np.linalg.norm(v)
    return log2_tail((redrawn * v).sum((1, 2)) / lengths, v.size)


def test_pvalues_of_innocents_are_uniform_over_redrawn_directions(redrawn: np.ndarray) -> None:
    cells: dict[tuple[str, str, bool], float] = {}
    for suspect, (b, g) in innocents().items():
        spectra = spectra_of(b, g)
        for name in of_suspect(b, g):
            v, known = module.witness(name, spectra, b.spread)
            for basis in {None: None, "basis": known}.values():
                if not v.any():
                    continue
                values = log2_pvalues(v, redrawn, basis)
                some = [direction_test(v, u, n_queries=1, basis=basis).log2_pvalue for u in redrawn[:5]]
                np.testing.assert_allclose(values[:5], some, rtol=1e-9)
                cells[suspect, name, basis is not None] = stats.kstest(2**values, "uniform").pvalue
    # Every kind of innocent gives a witness to some member of the family, and a known range to some.
    assert {suspect for suspect, *_ in cells} == set(innocents())
    assert sum(within for *_, within in cells) >= 8
    adjusted = 2 ** holm(np.log2(list(cells.values())))
    assert adjusted.min() > 0.01, min(cells.items(), key=lambda cell: cell[1])


def test_a_witness_that_has_seen_its_directions_would_not_pass(redrawn: np.ndarray) -> None:
    b, g = innocents()["independent"]
    v = module.witness("own_space", spectra_of(b, g), b.spread)[0]
    v /= np.linalg.norm(v)
    peeked = np.stack([v + 0.02 * u for u in redrawn])
    lengths = np.linalg.norm(peeked, axis=(1, 2)) * np.linalg.norm(redrawn, axis=(1, 2))
    p = 2 ** log2_tail((peeked * redrawn).sum((1, 2)) / lengths, v.size)
    assert stats.kstest(p, "uniform").pvalue < 1e-6


def test_singular_values_are_found_where_the_fast_routine_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, fast = np.random.default_rng(0).standard_normal((7, 4)), scipy.linalg.svd

    def svd(given: np.ndarray, *, full_matrices: bool, lapack_driver: str = "gesdd") -> tuple[np.ndarray, ...]:
        if lapack_driver == "gesdd":
            raise scipy.linalg.LinAlgError("SVD did not converge")
        return fast(given, full_matrices=full_matrices, lapack_driver=lapack_driver)

    monkeypatch.setattr(scipy.linalg, "svd", svd)
    left, sizes, right = thin_svd(matrix)
    np.testing.assert_allclose(left * sizes @ right, matrix, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "rank"), [((7, 4), 4), ((4, 7), 4), ((7, 4), 3), ((4, 7), 2), ((5, 5), 5), ((5, 5), 1)]
)
@pytest.mark.parametrize("least", [1e-5, 1e-7], ids=["told", "rounding"])
def test_row_space_is_that_of_the_singular_values(shape: tuple[int, int], rank: int, least: float) -> None:
    rng = np.random.default_rng(1)
    left, _, right = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    sizes = np.zeros(min(shape))
    sizes[:rank] = np.geomspace(1, least, rank) if rank > 1 else 1
    kept = rank if rank == 1 or least > 1e-6 else int((sizes > 1e-6).sum())
    for scale in (1e-120, 1.0, 1e120):
        axes = row_space(scale * (left * sizes) @ right, 1e-6)
        if kept == shape[1]:
            assert axes is None
            continue
        assert axes is not None
        assert axes.shape == (shape[1], kept)
        np.testing.assert_allclose(axes.T @ axes, np.eye(kept), atol=1e-12)
        np.testing.assert_allclose(right[:kept] @ axes @ axes.T, right[:kept], atol=1e-9)
