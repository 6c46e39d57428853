"""The scheme's key: what it asks, and what answers are worth; and the carrier that it is drawn for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from sslguard.errors import RefusedError, SuspectError, UsageError
from sslguard.schemes.sslguard import Carrier, Decoder, SSLGuard
from sslguard.schemes.sslguard.parts import drifted, stranger
from sslguard.secrets import Secret
from sslguard.training import isolated_rng


class TestStatistic:
    def test_rate_and_mean_by_hand(self, key_of):
        # Cosines to (1, 0): 1, 3/5, ½, −1. ½ itself is not above ½.
        answers = np.array([[7.0, 0.0], [3.0, 4.0], [1.0, 3**0.5], [-2.0, 0.0]])
        score = key_of().statistic([answers[:1], answers[1:]])
        np.testing.assert_allclose(score.cosines, [1, 0.6, 0.5, -1], atol=1e-6)
        assert score.value == pytest.approx(1.1 / 4)
        assert score.n_queries == 4
        assert key_of().statistic([np.array([[2.0, 0], [3, 4], [1, 2], [-1, 0]])]).watermark_rate == 0.5

    def test_missing_answers_count_as_nothing_whatever_the_decoder_makes_of_them(self, key_of):
        decoder = Decoder((2, 2))
        decoder[0].weight.data, decoder[0].bias.data = torch.zeros(2, 2), torch.tensor([1.0, 0.0])
        score = key_of(decoder).statistic([np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])])
        assert score.cosines.tolist() == [1, 0, 0, 0]
        assert (score.value, score.watermark_rate, score.n_queries) == (0.25, 0.25, 4)

    @pytest.mark.parametrize(
        ("answers", "message"),
        [
            ([np.ones((4, 3))], r"takes answers of width 2, but the suspect's have shape \(4, 3\)"),
            ([np.ones((2, 2)), np.ones((2, 1))], "width 2"),
            ([np.ones(4)], "width 2"),
            ([np.ones((3, 2))], "asks 4 queries, but 3 answers came"),
            ([np.ones((5, 2))], "asks 4 queries, but 5 answers came"),
            ([], "no answers"),
            ([np.array([[1, 1], [1, np.nan], [1, 1], [1, 1]])], "not finite"),
            ([np.array([[1, 1], [1, np.inf], [1, 1], [1, 1]])], "not finite"),
            ([np.array([[1, 1], [1, 1e300], [1, 1], [1, 1]])], "not finite"),
        ],
    )
    def test_answers_that_cannot_be_scored(self, answers, message, key_of):
        with pytest.raises(SuspectError, match=message), np.errstate(over="ignore"):
            key_of().statistic(answers)

    def test_ranks_among_controls_and_refuses_without(self, key_of):
        answers = [np.array([[1.0, 0.0]] * 4)]
        key = key_of()
        significance = key.score(answers, controls=[0.1, 0.2, 1.0])
        assert significance.pvalue == pytest.approx(2 / 4)  # the tie counts against the claim
        assert significance.details["watermark_rate"] == 1
        with pytest.raises(RefusedError):
            key.score(answers)


class TestQueries:
    def test_are_triggered_images_as_bytes(self, images, key_of):
        data, key = images(9), key_of()
        (batch,) = key.queries(data)
        assert batch.dtype == torch.uint8
        assert batch.shape == (4, 1, 16, 16)
        order = Secret.from_seed(1).stream("queries", key.clean_hash.encode()).permutation(9)[:4]
        expected = data.take(order).clone()
        expected[:, :, :, 1::2] = round(0.7 * 255)
        assert torch.equal(batch, expected)

    def test_are_the_same_every_time_and_for_another_key_others(self, images, key_of):
        data = images(300)
        ask = lambda key: torch.cat(list(key.queries(data)))  # noqa: E731
        one, again, other = ask(key_of(n=200)), ask(key_of(n=200)), ask(key_of(n=200, secret=2))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        assert [len(b) for b in key_of(n=200).queries(data)] == [128, 72]
        assert len(torch.unique(one, dim=0)) == 200

    def test_too_few_images(self, images, key_of):
        with pytest.raises(UsageError, match=r"asks 4 queries, but noise-0-3 has only 3 items"):
            list(key_of().queries(images(3)))

    def test_a_key_shows_no_secret(self, key_of):
        key = key_of()
        assert Secret.from_seed(1).reveal().hex()[:10] not in f"{key!r} {key}"
        assert key.n_queries == 4


class TestCarrier:
    """Not the paper's: a secret shift of plain answers that surrogates inherit."""

    @pytest.fixture
    def embeddings(self):
        return np.random.default_rng(0).normal(3, [9, 7, 5, 4, 3, 2, 0.1, 0.1], (500, 8)).astype(np.float32)

    def test_shift_by_hand(self, embeddings):
        carrier = Carrier(embeddings, 0.3, Secret.from_seed(1).stream("carrier"))
        h = embeddings.astype(np.float64)
        mean, p, v = (getattr(carrier, name).double().numpy() for name in ("mean", "projection", "direction"))
        z = (h - h.mean(0)) @ p
        expected = 3 * np.tanh(z / 3)[:, None] * v
        np.testing.assert_allclose(carrier(torch.from_numpy(embeddings)), expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(mean, h.mean(0), rtol=1e-5)
        assert z.var() == pytest.approx(1, rel=1e-4)
        # |v| is the share that was asked for of the embeddings' spread.
        assert np.linalg.norm(v) == pytest.approx(0.3 * np.sqrt(h.var(0).sum()), rel=1e-5)
        assert carrier.spread == pytest.approx(np.sqrt(h.var(0).mean()), rel=1e-5)

    def test_reads_the_leading_components_alone(self, embeddings):
        carrier = Carrier(embeddings, 0.3, Secret.from_seed(1).stream("carrier"))
        _, _, axes = np.linalg.svd(embeddings - embeddings.mean(0), full_matrices=False)
        parts = axes @ carrier.projection.numpy()
        assert np.abs(parts[6:]).max() < 1e-4 < 1e-2 < np.abs(parts[:6]).min()

    def test_is_the_secrets(self, embeddings):
        one, two = (Carrier(embeddings, 0.3, Secret.from_seed(s).stream("carrier")) for s in (1, 2))
        assert abs(float(one.direction @ two.direction)) < 0.9 * float(one.direction @ one.direction)
        assert not torch.allclose(one.projection, two.projection)

    def test_of_an_encoder_that_answers_all_alike_is_refused(self):
        with pytest.raises(UsageError, match="answers every image alike"):
            Carrier(np.ones((9, 4), np.float32), 0.3, Secret.from_seed(1).stream("carrier"))

    def test_needs_negatives(self):
        with pytest.raises(UsageError, match="carrier needs negatives"):
            SSLGuard(carrier=0.3)

    @pytest.mark.parametrize("name", ["decoder_noise", "drift", "agreement", "strangers"])
    def test_what_is_nothing_without_it_is_refused(self, name):
        with pytest.raises(UsageError, match="need a carrier"):
            SSLGuard(negatives="shadow", **{name: 1})
        with pytest.raises(UsageError, match="must not be negative"):
            SSLGuard(negatives="shadow", carrier=0.3, **{name: -1})

    def test_pairs_differ_by_the_shift_alone_where_it_is_large(self, embeddings, monkeypatch):
        monkeypatch.setattr(Carrier, "ASIDE", 0)
        carrier = Carrier(embeddings, 0.3, Secret.from_seed(1).stream("carrier"))
        h = torch.from_numpy(embeddings)
        # With a shift of nothing both of a pair are where the answers were moved to.
        direction, carrier.direction = carrier.direction, torch.zeros(8)
        with isolated_rng(3):
            far, same = carrier.pairs(h, carrier.mean)
        assert torch.equal(far, same)
        z = (far - carrier.mean) @ carrier.projection
        assert ((z.abs() >= 1.99) & (z.abs() <= 8.01)).all()
        assert 0.4 < (z > 0).double().mean() < 0.6
        # Moved along one axis, which raises z by 1 a unit and lies in the span that z reads.
        moves = (far - h) / (z - (h - carrier.mean) @ carrier.projection)[:, None]
        torch.testing.assert_close(moves, carrier.axis.expand_as(moves), rtol=1e-3, atol=1e-3)
        assert float(carrier.axis @ carrier.projection) == pytest.approx(1, rel=1e-4)

        carrier.direction = direction
        with isolated_rng(3):
            marked, unmarked = carrier.pairs(h, carrier.mean)
        unit = carrier(far)
        share = lambda pair: ((pair - far) * unit).sum(1) / (unit * unit).sum(1)  # noqa: E731
        assert (share(marked).min(), share(marked).max()) == pytest.approx((0.8, 1.4), abs=0.02)
        assert (share(unmarked).min(), share(unmarked).max()) == pytest.approx((-1, 0.4), abs=0.02)

    def test_pairs_lie_about_the_way_to_triggered_answers(self, embeddings, monkeypatch):
        monkeypatch.setattr(Carrier, "ASIDE", 0)
        carrier = Carrier(embeddings, 0.3, Secret.from_seed(1).stream("carrier"))
        carrier.direction = torch.zeros(8)
        # A way that z does not see, and answers that have not set out on it.
        way = nnf.normalize(torch.randn(8, generator=torch.Generator().manual_seed(0)), dim=0)
        way -= carrier.projection * (way @ carrier.projection) / (carrier.projection @ carrier.projection)
        way -= carrier.axis * (way @ carrier.axis) / (carrier.axis @ carrier.axis)
        with isolated_rng(3):
            far, _ = carrier.pairs(carrier.mean.expand(2000, 8), carrier.mean + 7 * way)
        gone = (far - carrier.mean) @ way / (way @ way) / 7
        assert (gone.min().item(), gone.max().item()) == pytest.approx((-1, 2), abs=0.05)
        assert gone.mean().item() == pytest.approx(0.5, abs=0.1)

    def test_pairs_wander_as_plain_answers_vary_and_in_every_direction(self, embeddings):
        carrier = Carrier(embeddings, 0.3, Secret.from_seed(1).stream("carrier"))
        carrier.direction = torch.zeros(8)
        h = torch.from_numpy(embeddings).repeat(8, 1)
        with isolated_rng(3):
            far, _ = carrier.pairs(h, carrier.mean)
        # Off what p reads, variances add: the answer, two others times 1.5 N(0, 1), and noise 1.5 U N(0, spread).
        ways = torch.linalg.svd(torch.stack([carrier.projection, carrier.axis])).Vh[2:]
        expected = (h @ ways.T).var(0) * (1 + 2 * 1.5**2) + 1.5**2 / 3 * carrier.spread**2
        torch.testing.assert_close((far @ ways.T).var(0), expected, rtol=0.1, atol=0)


class TestOtherCopies:
    """Answers as copies and strangers might give them."""

    def test_without_drift_and_noise_answers_stay(self):
        answers = torch.randn(5, 3)
        assert torch.equal(drifted(answers, torch.zeros(3), 1.0, drift=0, noise=0), answers)

    def test_noise_has_the_spread_asked_for(self):
        with isolated_rng(1):
            noise = drifted(torch.zeros(4000, 4), torch.zeros(4), 3.0, drift=0, noise=0.5)
        assert noise.std().item() == pytest.approx(1.5, rel=0.03)
        assert noise.mean().item() == pytest.approx(0, abs=0.03)

    def test_drift_stretches_rows_mixes_and_moves(self):
        answers, mean = torch.randn(6000, 4, generator=torch.Generator().manual_seed(0)), torch.full((4,), 9.0)
        with isolated_rng(1):
            out = drifted(answers + mean, mean, 2.0, drift=0.3, noise=0) - mean
        # One affine map for the batch, times a stretch of each row in 10^±0.3, about a point off the mean.
        move = torch.linalg.lstsq(torch.cat([answers, torch.ones(6000, 1)], 1), out).solution
        assert 0 < move[4].norm() < 0.3 * 2 * 4
        stretched = out - move[4]
        whole = torch.linalg.lstsq(answers, stretched).solution
        ratio = (stretched.norm(dim=1) / (answers @ whole).norm(dim=1)).log10()
        assert ratio.max() - ratio.min() == pytest.approx(0.6, abs=0.02)
        mix = whole / whole.diagonal().mean() - torch.eye(4)
        assert 0.02 < mix.abs().mean() < 0.3

    def test_a_stranger_is_turned_or_reordered(self):
        answers = torch.rand(50, 6, generator=torch.Generator().manual_seed(0))
        kinds = []
        for seed in range(20):
            with isolated_rng(seed):
                out = stranger(answers)
            # Turned: distances between rows keep their ratios. Reordered: each column is one of the old, scaled.
            ratios = torch.pdist(out) / torch.pdist(answers)
            turned = (ratios.max() / ratios.min()).item() < 1.001
            alike = torch.corrcoef(torch.cat([answers, out], 1).T)[:6, 6:]
            reordered = torch.allclose(alike.max(0).values, torch.ones(6), atol=1e-4) and bool((out >= 0).all())
            assert turned != reordered
            kinds.append(turned)
        assert 4 < sum(kinds) < 16
