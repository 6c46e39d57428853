"""The public bank of functions, and the two secrets that are drawn on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.exact_oracle import spread_of
from sslguard.crypto.secrets import Secret
from sslguard.encoders.base import embed_all
from sslguard.encoders.heads import StatisticsHead
from sslguard.errors import UsageError
from sslguard.schemes.exact.bank import Bank, draw_left, draw_right, on_sphere
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.exact.marking import headed
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.stats.moments import unit_rows

SMALL = Protocol(functions=24, rank=3, n_queries=200)
HEAD = Exact(SMALL, mode="head", overlap=0)


def items(n: int, seed: int = 0, d: int = 24, p: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings, and statistics that they tell in part, of n items of one kind."""
    rng, world = np.random.default_rng(seed), np.random.default_rng(99)
    hidden = rng.standard_normal((n, 40))
    h = np.tanh(hidden[:, :24] @ world.standard_normal((24, d)) / 4) * np.geomspace(1, 0.1, d) + 0.2
    return h, np.maximum(hidden @ world.standard_normal((40, p)) / 4, 0)


@pytest.fixture(scope="module")
def of_images(tiny, images):
    clean, data = tiny(7), images(1000)
    return clean, Bank.of(embed_all(clean, data), all_statistics(clean, data), SMALL)


class TestAxes:
    def test_spread_and_axes_from_their_definitions(self):
        f, statistics = items(500)
        bank, h = Bank.of(3 * f, statistics, SMALL), unit_rows(f)
        np.testing.assert_allclose(bank.mean, h.mean(0), atol=1e-12)
        np.testing.assert_allclose(bank.axes @ bank.axes.T, np.eye(24), atol=1e-9)
        along = bank.placed(h - bank.mean)
        np.testing.assert_allclose(along.T @ along / len(h), np.diag(bank.deviations**2), atol=1e-12)
        assert (np.diff(bank.deviations) < 0).all()
        assert bank.variance == pytest.approx(np.square(h - h.mean(0)).sum(1).mean())
        effective = bank.variance**2 / (bank.deviations**4).sum()
        assert 0.35 < SMALL.spread / effective < 1.0
        np.testing.assert_allclose(bank.spread, spread_of(bank.placed(h), SMALL.spread / effective), rtol=1e-6)
        assert np.square(bank.spread).mean() == pytest.approx(1)

    @pytest.mark.parametrize(("spread", "power"), [(1e-3, 0.35), (1e3, 1.0)])
    def test_power_of_the_spread_has_ends(self, spread, power):
        f, statistics = items(500)
        bank = Bank.of(f, statistics, replace(SMALL, spread=spread))
        np.testing.assert_allclose(bank.spread, spread_of(bank.placed(unit_rows(f)), power), rtol=1e-6)

    def test_collinear_embeddings_of_a_layer_norm_lose_their_constant_direction(self):
        f, statistics = items(500)
        flat = (f - f.mean(1, keepdims=True)).astype(np.float32)
        bank = Bank.of(flat, statistics, SMALL)
        assert bank.axes.shape == (23, 24)
        np.testing.assert_allclose(bank.axes.sum(1), 0, atol=1e-5)
        gain = np.abs(bank.axes.T @ bank.linear).max()
        assert gain < 1e3  # what tells functions from embeddings does not live on their rounding

    def test_wide_embeddings_are_marked_along_their_first_axes(self, monkeypatch):
        monkeypatch.setattr("sslguard.schemes.exact.bank.MOST_AXES", 10)
        f, statistics = items(500)
        assert Bank.of(f, statistics, SMALL).axes.shape == (10, 24)

    def test_answers_that_do_not_vary(self):
        _, statistics = items(50)
        for f in (np.ones((50, 8)), np.outer(np.linspace(1, 2, 50), np.arange(8))):
            with pytest.raises(UsageError, match="answers do not vary"):
                Bank.of(f, statistics, SMALL)


def told(psi: np.ndarray, h: np.ndarray) -> float:
    """Share of the functions' variance that is linear in (1, h)."""
    psi, h = psi - psi.mean(0), h - h.mean(0)
    return float(np.square(h @ np.linalg.lstsq(h, psi, rcond=1e-6)[0]).mean() / np.square(psi).mean())


class TestFunctions:
    def test_have_mean_0_and_nothing_linear_in_h_but_for_the_ridge(self):
        f, statistics = items(4000)
        bank = Bank.of(f, statistics, SMALL)
        h = unit_rows(f)
        psi = bank.functions(h, statistics)
        assert psi.shape == (4000, 24)
        np.testing.assert_allclose(psi.mean(0), 0, atol=1e-9)
        np.testing.assert_allclose(np.cov(psi.T, bias=True), np.eye(24), atol=0.1)
        assert told(psi, h) < 0.02
        assert told(statistics, h) > 0.1

    @pytest.mark.parametrize(
        ("n", "least", "linear"), [(300, 0.55, 0.1), (1000, 0.75, 0.04), (4000, 0.9, 0.02), (20_000, 0.97, 0.01)]
    )
    def test_have_variance_1_or_less_on_items_that_they_were_not_made_of(self, n, least, linear):
        """Else a head of few items would move new answers by more than it says. The first components of few items have
        more variance there than elsewhere, so of few it is less than 1."""
        bank, (new, statistics) = Bank.of(*items(n), SMALL), items(5000, seed=1)
        h = unit_rows(new)
        psi = bank.functions(h, statistics)
        assert least < np.square(psi).mean() < 1.03
        assert told(psi, h) < linear  # 24/5000 by chance

    def test_of_an_encoder_of_images_have_variance_1_on_others(self, of_images, images):
        clean, bank = of_images
        new = images(2000, seed=5)
        h = unit_rows(embed_all(clean, new).astype(float))
        psi = bank.functions(h, all_statistics(clean, new))
        assert np.square(psi).mean() == pytest.approx(1, abs=0.15)
        assert told(psi, h) < 0.15  # 64/2000 by chance

    def test_easy_ones_come_first_and_hold_more_of_the_mark(self, of_images):
        _, bank = of_images
        assert (np.diff(bank.weights) < 0).all()
        assert np.square(bank.weights).mean() == pytest.approx(1)
        sizes = np.linalg.norm(bank.mixing, axis=0)  # of functions of variance 1: larger where the statistics vary less
        assert sizes[-6:].mean() > sizes[:6].mean()

    def test_are_the_same_of_embeddings_of_another_length_and_of_shifted_statistics(self):
        f, statistics = items(500)
        one = Bank.of(f, statistics, SMALL)
        two = Bank.of(f * np.random.default_rng(0).uniform(0.1, 9, (500, 1)), 5 * statistics - 3, SMALL)
        psi, other = one.functions(unit_rows(f), statistics), two.functions(unit_rows(f), 5 * statistics - 3)
        signs = np.sign((psi * other).sum(0))
        np.testing.assert_allclose(psi, other * signs, atol=1e-6)

    def test_texts_have_at_most_48(self):
        assert Bank.of(*items(500), Protocol(functions=64)).size == 48
        assert Bank.of(*items(500), Protocol(functions=32)).size == 32
        assert Bank.of(*items(500, p=356), Protocol(functions=64)).size == 64

    def test_few_items_give_fewer_functions_and_too_few_are_refused(self):
        for n in (9, 20, 60, 200):
            bank, (new, statistics) = Bank.of(*items(n, p=356), Protocol()), items(2000, seed=1, p=356)
            assert bank.size <= min(64, n)
            assert np.isfinite(bank.functions(unit_rows(new), statistics)).all()
        with pytest.raises(UsageError, match=r"the 3 marking items are too few or .* a mark needs 4"):
            Bank.of(*items(3), Protocol())

    def test_inputs_without_statistics_of_their_own(self):
        f, _ = items(60)
        for statistics in (np.ones((60, 96)), np.zeros((60, 356))):
            with pytest.raises(UsageError, match="varies in 0 directions, and a mark needs 4"):
                Bank.of(f, statistics, Protocol())


class TestRounding:
    @pytest.mark.parametrize("collinear", [False, True])
    @pytest.mark.parametrize("n", [60, 500])
    def test_single_precision_of_embeddings_moves_the_head_by_nothing(self, collinear, n):
        f, statistics = items(n)
        if collinear:
            f = f - f.mean(1, keepdims=True)
        f = unit_rows(f)
        bank = Bank.of(f.astype(np.float32), statistics, Protocol())
        mixtures, rows, _ = mark(bank, 4, 0.05)
        rounding = 5e-7 * np.random.default_rng(1).choice([-1, 1], f.shape)
        moved = (bank.functions(f + rounding, statistics) - bank.functions(f, statistics)) @ mixtures @ rows
        assert np.abs(moved).max() < 1e-5

    def test_bank_of_rounded_embeddings_is_nearly_the_same(self):
        f, statistics = items(500)
        one, two = (Bank.of(a, statistics, SMALL) for a in (f, f.astype(np.float32)))
        psi, other = (bank.functions(unit_rows(f), statistics) for bank in (one, two))
        np.testing.assert_allclose(psi, other * np.sign((psi * other).sum(0)), atol=1e-4)


def mark(bank: Bank, rank: int, size: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixtures (B, r), rows (r, d) and right secret of a mark of this size."""
    rng = np.random.default_rng(seed)
    left = on_sphere(rng.standard_normal((bank.size, rank)), rank)
    right = on_sphere(rng.standard_normal((rank, len(bank.deviations))), rank)
    return bank.weights[:, None] * left, np.sqrt(size / rank) * right * bank.spread @ bank.axes, right


class TestHead:
    def test_formula(self, of_images, images):
        clean, bank = of_images
        data = images(50, seed=3)
        mixtures, rows, right = mark(bank, 3, 0.04)
        f = embed_all(clean, data).astype(float)
        length = np.linalg.norm(f, axis=1, keepdims=True)
        psi = bank.functions(f / length, all_statistics(clean, data))
        spread = bank.axes.T @ np.diag(bank.spread) @ bank.axes
        expected = f + length * np.sqrt(0.04 / 3) * psi @ mixtures @ (right @ bank.axes) @ spread
        found = headed(clean, bank, mixtures, rows)
        np.testing.assert_allclose(embed_all(found, data), expected, rtol=1e-3, atol=1e-4)

    def test_size_is_the_mean_square_of_what_is_added(self):
        """Over draws of both secrets, since E|ψ∘s·A·G·M|² = r for |A|² = |G|² = r; a single draw lies beside it."""
        f, statistics = items(3000)
        bank, found = Bank.of(f, statistics, SMALL), []
        psi = bank.functions(unit_rows(f), statistics)
        for seed in range(100):
            mixtures, rows, _ = mark(bank, 3, 0.05, seed)
            found.append(np.square(psi @ mixtures @ rows).sum(1).mean())
        assert np.mean(found) == pytest.approx(0.05, rel=0.1)

    def test_without_buffers_it_changes_nothing_and_zeros_stay(self, of_images):
        clean, bank = of_images
        head = StatisticsHead(64, 356, 3)
        f, x = torch.randn(5, 64), torch.randn(5, 356)
        assert torch.equal(head(f, x), f)
        marked = headed(clean, bank, *mark(bank, 3, 0.04)[:2]).module.head
        assert not marked(torch.zeros(5, 64), x).any()


class TestSecrets:
    def test_each_is_one_point_on_its_sphere(self):
        bank = Bank.of(*items(300), Protocol(functions=5, rank=3))
        protocol = Protocol(functions=5, rank=3)
        lefts, rights = [], []
        for seed in range(400):
            secret = Secret.from_seed(seed)
            left = draw_left(secret, protocol, bank, b"x")
            lefts.append(on_sphere(left, 3))
            rights.append(on_sphere(draw_right(secret, protocol, bank, left, b"x"), 3))
        for drawn, shape in ((np.stack(lefts), (5, 3)), (np.stack(rights), (3, 24))):
            assert drawn.shape[1:] == shape
            np.testing.assert_allclose(np.linalg.norm(drawn.reshape(400, -1), axis=1), np.sqrt(3))
            rows = np.linalg.norm(drawn, axis=1 if shape == (5, 3) else 2)
            assert rows.std() > 0.05  # mixtures are not normalised one by one
            size = shape[0] * shape[1]
            uniform = stats.beta(0.5, (size - 1) / 2).cdf(np.square(drawn[:, 0, 0]) / 3)
            assert stats.kstest(uniform, "uniform").pvalue > 1e-3

    def test_streams_are_bound_to_all_before_them(self):
        bank = Bank.of(*items(300), SMALL)
        moved = replace(bank, centre=bank.centre + 1e-12)
        assert moved.digest() != bank.digest()

        def drawn(secret=1, bank=bank, context=b"x", change=0.0):
            left = draw_left(Secret.from_seed(secret), SMALL, bank, context)
            return left, draw_right(Secret.from_seed(secret), SMALL, bank, left + change, context)

        left, right = drawn()
        assert np.array_equal(left, drawn()[0])
        assert np.array_equal(right, drawn()[1])
        for other in ({"secret": 2}, {"bank": moved}, {"context": b"y"}):
            for one, two in zip((left, right), drawn(**other), strict=True):
                assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.5
        assert abs(np.corrcoef(right.ravel(), drawn(change=1e-12)[1].ravel())[0, 1]) < 0.5

    @pytest.mark.parametrize("name", Bank.__dataclass_fields__)
    def test_every_array_is_in_the_digest(self, name):
        bank = Bank.of(*items(300), SMALL)
        assert replace(bank, **{name: getattr(bank, name) * (1 + 1e-15) + 1e-15}).digest() != bank.digest()


class TestArrays:
    def test_come_back_in_any_order_of_memory(self):
        bank = Bank.of(*items(300), SMALL)
        again = Bank.from_arrays({name: np.asfortranarray(array) for name, array in bank.to_arrays().items()})
        assert again.digest() == bank.digest()
        f, statistics = items(50, seed=3)
        assert np.array_equal(again.functions(unit_rows(f), statistics), bank.functions(unit_rows(f), statistics))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda a: {"mean": a["mean"]}, "not the arrays of a bank"),
            (lambda a: {**a, "more": a["mean"]}, "not the arrays of a bank"),
            (lambda a: {**a, "weights": a["weights"][1:]}, "do not fit together"),
            (lambda a: {**a, "axes": a["axes"][1:]}, "do not fit together"),
            (lambda a: {**a, "mean": a["mean"][None]}, "wrong shapes"),
            (lambda a: {**a, "axes": 2 * a["axes"]}, "not orthonormal"),
            (lambda a: {**a, "deviations": 0 * a["deviations"]}, "no deviation"),
            (lambda a: {**a, "spread": -a["spread"]}, "no deviation"),
            (lambda a: {**a, "linear": np.full_like(a["linear"], np.nan)}, "impossible numbers"),
            (lambda a: {**a, "mixing": np.full_like(a["mixing"], np.inf)}, "impossible numbers"),
            (lambda a: {**a, "centre": np.zeros(400), "mixing": np.zeros((400, 24))}, "do not fit together"),
            (lambda a: {**a, "centre": np.zeros(0), "mixing": np.zeros((0, 24))}, "do not fit together"),
        ],
    )
    def test_of_no_bank_are_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            Bank.from_arrays(change(Bank.of(*items(300), SMALL).to_arrays()))
