"""The cure: what is written, what is read, what innocents show whatever they are, and keys made with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from sslguard.crypto.secrets import Secret
from sslguard.encoders.rebuild import preprocess_from_json
from sslguard.errors import KeyFileError, SuspectError, UsageError
from sslguard.schemes.sslguard.carrier import Background, Carrier
from sslguard.schemes.sslguard.cured import THRESHOLDS, CuredTask, fit_decoder, made_evidence, wanted_cosine
from sslguard.schemes.sslguard.key import SSLGuardKey
from sslguard.schemes.sslguard.parts import Decoder
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.schemes.sslguard.task import SSLGuardTask
from sslguard.training.base import Loop, isolated_rng
from sslguard.training.loop import run

D = 40
TINY = replace(SSLGuard.cured(), steps=3, batch_size=8, trigger_batch=4, n_verification=8, n_queries=6, law_steps=30)


def embeddings(n: int = 600, d: int = D) -> np.ndarray:
    scales = 0.9 ** np.arange(d)
    return (np.random.default_rng(0).normal(3, 1, (n, d)) * scales).astype(np.float32)


def carrier(secret: int = 1, size: float = 0.5, directions: int = 3, shift: float = 4.0, h=None) -> Carrier:
    stream = Secret.from_seed(secret).stream("carrier")
    return Carrier(embeddings() if h is None else h, size, directions=directions, shift=shift, stream=stream)


class TestCarrier:
    def test_shift_by_hand(self):
        made, h = carrier(), embeddings().astype(np.float64)
        read, write = made.read.double().numpy(), made.write.double().numpy()
        z = (h - h.mean(0)) @ read.T
        expected = 3 * np.tanh(z / 3) @ write
        np.testing.assert_allclose(made(torch.from_numpy(embeddings())), expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(z.T @ z / len(z), np.eye(3), atol=1e-3)  # variance 1, and uncorrelated
        spread = np.sqrt(h.var(0).sum())
        assert float(made.spread) == pytest.approx(spread, rel=1e-4)
        w = made.whitener.double().numpy()
        own = np.square((h - h.mean(0)) @ w.T).sum(1).mean()
        linear = (h - h.mean(0)) @ made.read.double().numpy().T @ write
        assert np.square(linear @ w.T).sum(1).mean() == pytest.approx(0.25 * own, rel=1e-3)
        assert float(made.shift.norm()) == pytest.approx(4 * spread, rel=1e-4)

    def test_writes_where_it_does_not_read(self):
        made = carrier()
        assert (made.read @ made.write.T).abs().max() < 1e-4
        assert (made.read @ made.shift).abs().max() < 1e-3

    def test_directions_are_orthogonal_and_equally_long_where_they_are_read(self):
        made = carrier()
        rows = torch.cat([made.write, made.shift[None]]) @ made.whitener.T
        gram = (rows @ rows.T) / torch.outer(rows.norm(dim=1), rows.norm(dim=1))
        torch.testing.assert_close(gram, torch.eye(4), atol=1e-4, rtol=0)
        assert made.rank == D - 6

    def test_is_the_secrets(self):
        one, again, two = carrier(1), carrier(1), carrier(2)
        for name in ("read", "write", "shift"):
            assert torch.equal(getattr(one, name), getattr(again, name))
            assert not torch.allclose(getattr(one, name), getattr(two, name))
        assert torch.equal(one.whitener, two.whitener)

    def test_evidence_by_hand(self):
        made, h = carrier(), torch.from_numpy(embeddings(50))
        marked, moved = h + made(h), h.flip(0) + made(h) + made.shift
        found = made.evidence(marked, moved, made.background(marked)).numpy()
        w = made.whitener.double().numpy()
        rows = marked.double().numpy() - marked.double().numpy().mean(0)
        covariance = np.cov((rows @ w.T).T)
        quiet = np.linalg.inv(covariance / np.trace(covariance) * made.rank + np.eye(made.rank))
        for row, c in enumerate(rows):
            m = 3 * np.tanh(made.read.double().numpy() @ c / 3) @ made.write.double().numpy()
            expected = (w @ c) @ (w @ m) / np.linalg.norm(w @ c) / np.linalg.norm(w @ m) * made.rank**0.5
            assert found[row, 0] == pytest.approx(expected, rel=1e-3, abs=1e-3)
            seen, b = quiet @ w @ (moved - marked).double().numpy()[row], w @ made.shift.double().numpy()
            expected = seen @ b / np.linalg.norm(seen) / np.linalg.norm(b) * made.rank**0.5
            assert found[row, 1] == pytest.approx(expected, rel=1e-3, abs=1e-3)

    def test_what_varies_anyway_is_turned_down(self):
        """A suspect whose answers move along its own widest direction as well still shows b."""
        made, h = carrier(), torch.from_numpy(embeddings(400))
        noisy = torch.linalg.pinv(made.whitener)[:, 0] * 100
        plain = h + torch.randn(400, 1, generator=torch.Generator().manual_seed(0)) * noisy
        moved = plain + made.shift + noisy
        blind = Background(plain.mean(0), torch.eye(made.rank))
        before, after = (made.evidence(plain, moved, b)[:, 1].mean() for b in (blind, made.background(plain)))
        assert after > 0.8 * made.rank**0.5
        assert after > 2 * before.abs()

    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
    def test_evidence_knows_no_scale(self, scale):
        made, h = carrier(), torch.from_numpy(embeddings(20))
        moved = h + torch.randn(20, D, generator=torch.Generator().manual_seed(0))
        second = made.evidence(h * scale, moved * scale, made.background(h * scale))[:, 1]
        torch.testing.assert_close(second, made.evidence(h, moved, made.background(h))[:, 1], rtol=1e-3, atol=1e-3)

    def test_answers_that_are_all_alike_show_nothing(self):
        made = carrier()
        same = torch.ones(5, D)
        assert torch.equal(made.evidence(same, same, made.background(same)), torch.zeros(5, 2))

    def test_innocents_have_the_law_of_a_uniform_direction_whatever_they_are(self):
        """cos² of a fixed vector and a uniform one of D dimensions is Beta(½, (D − 1)/2)."""
        generator = torch.Generator().manual_seed(0)
        plain = torch.from_numpy(embeddings(2))
        suspects = {
            "copy of F": (plain, plain + 5 * torch.randn(2, D, generator=generator)),
            "constant trend": (plain + 100, plain + 100 + torch.arange(D)),
            "one column": (torch.eye(D)[:2] * 7, torch.eye(D)[1:3]),
        }
        found = {name: [] for name in suspects}
        for secret in range(400):
            made = carrier(secret)
            for name, (before, after) in suspects.items():
                found[name].append(made.evidence(before, after, made.background(before))[0].tolist())
        rank = carrier().rank
        pvalues = []
        for values in found.values():
            for kind in np.array(values).T:
                uniform = stats.beta(0.5, (rank - 1) / 2).cdf(kind**2 / rank)
                pvalues += [stats.kstest(uniform, "uniform").pvalue, stats.binomtest(int((kind > 0).sum()), 400).pvalue]
        assert min(pvalues) * len(pvalues) > 0.01
        assert np.std(found["copy of F"], axis=0) == pytest.approx([1, 1], abs=0.12)

    def test_what_cannot_be_marked_is_refused(self):
        with pytest.raises(UsageError, match="answers every image alike"):
            carrier(h=np.ones((9, D), np.float32))
        with pytest.raises(UsageError, match="3 directions are too many for answers of 8 dimensions"):
            carrier(h=embeddings(d=8))

    def test_tensors_come_back(self):
        made = carrier()
        again = Carrier.from_tensors(made.state_dict())
        h = torch.from_numpy(embeddings(4))
        back = made.background(h)
        assert torch.equal(again.evidence(h, h.flip(0), back), made.evidence(h, h.flip(0), back))
        with pytest.raises(ValueError, match="do not fit"):
            Carrier.from_tensors({**made.state_dict(), "read": torch.ones(3, D + 1)})
        with pytest.raises(ValueError, match="not the tensors"):
            Carrier.from_tensors({"mean": torch.ones(3)})


class TestDecoder:
    def test_what_evidence_is_worth(self):
        first, second = THRESHOLDS
        worth = {
            (0, 0): 0,
            (first, 0): 0.5,
            (0, second): 0.5,
            (2 * first, -5): 1,
            (first / 5, -second): 0,
            (-9, -9): 0,
            (first / 2, second / 2): (0.5**0.5 - 0.25) / 1.5,  # two halves together, less than one whole
            (0.6 * first, 0.8 * second): 0.5,
        }
        assert wanted_cosine(torch.tensor(list(worth))).tolist() == pytest.approx(list(worth.values()), abs=1e-6)

    def test_learns_it_from_made_evidence(self):
        with isolated_rng(3):
            decoder, sk = Decoder((2, 64, 32)), torch.randn(32)
            fit_decoder(decoder, sk, 100, 800)
            rows = made_evidence(2000, 100, sk.device)
        with torch.no_grad():
            cosine = torch.nn.functional.cosine_similarity(decoder(rows), sk.expand(2000, 32), dim=1)
        assert (cosine - wanted_cosine(rows)).abs().mean() < 0.05
        assert ((cosine > 0.5) == (wanted_cosine(rows) > 0.5)).float().mean() > 0.95


class TestIteration:
    def test_losses_from_their_formulas(self, tiny, images):
        """The first iteration's, from the definitions, before anything has moved."""
        task = TINY.task(tiny(7), images(20), Secret.from_seed(1))
        with isolated_rng(5):
            batch = task.load(np.arange(8))
        encode = lambda encoder, x: encoder.module((x - 0.5) / 0.5).detach()  # noqa: E731
        plain, verification = encode(task.clean, batch.plain), encode(task.clean, batch.verification)
        triggered = task.trigger(batch.verification).detach()
        answers = encode(task.watermarked, triggered)
        target = verification + task.carrier(verification)
        fidelity = (encode(task.watermarked, batch.plain) - plain - task.carrier(plain)).square().sum(1).mean()
        shifted = (answers - target - task.carrier.shift).square().sum(1).mean() / task.carrier.shift.square().sum()
        plain_answers = encode(task.clean, torch.from_numpy(images(20).take(range(20)).numpy()).float() / 255)
        decoded = task.decoder(task.carrier.evidence(target, answers, task.carrier.background(plain_answers)))
        cosine = torch.nn.functional.cosine_similarity(decoded, task.sk.expand_as(decoded), dim=1).mean()
        expected = fidelity / task.carrier.spread**2 + 0.1 * shifted - 0.1 * cosine
        torch.testing.assert_close(task._watermark_loss(batch), expected, rtol=1e-4, atol=1e-5)

    def test_moves_what_it_shall_and_leaves_the_rest(self, tiny, images, hashed):
        task = TINY.task(tiny(7), images(20), Secret.from_seed(1))
        start = TINY.task(tiny(7), images(20), Secret.from_seed(1))
        run(task, Loop(steps=3, batch_size=8, seed=2))
        moved = {
            name: any(
                not torch.equal(a, b)
                for a, b in zip(module.state_dict().values(), start.modules[name].state_dict().values(), strict=True)
            )
            for name, module in task.modules.items()
        }
        assert moved == {"clean": False, "watermarked": True, "decoder": True, "trigger": True, "carrier": False}

    def test_the_carrier_makes_the_task(self, tiny, images):
        assert isinstance(TINY.task(tiny(7), images(20), Secret.from_seed(1)), CuredTask)
        small = replace(TINY, carrier=0.0)
        assert isinstance(small.task(tiny(7), images(20), Secret.from_seed(1)), SSLGuardTask)


@pytest.fixture(scope="module")
def marked(tiny, images):
    return TINY.watermark(tiny(7), images(20), secret=Secret.from_seed(1))


class TestKey:
    def test_asks_each_image_without_the_trigger_and_with_it(self, marked, images):
        plain, triggered = marked.key.queries(images(9))
        assert marked.key.n_queries == 12
        assert plain.shape == triggered.shape == (6, 1, 16, 16)
        asked = torch.round(marked.key.trigger(plain / 255) * 255).to(torch.uint8)
        assert torch.equal(asked, triggered)
        assert not torch.equal(plain, triggered)

    def test_an_encoder_that_crops_sees_the_trigger_whole(self, marked, images):
        """Its own crop, which meets every query, leaves of each what the trigger was put on."""
        cropping = {**marked.key.preprocess, "crop": 0.8}
        key = replace(marked.key, preprocess=cropping)
        plain, triggered = key.queries(images(9))
        assert plain.shape == triggered.shape == (6, 1, 20, 20)
        seen = preprocess_from_json(cropping)
        want = torch.round(key.trigger(seen.prepare(plain)).detach() * 255)
        assert torch.equal(torch.round(seen.prepare(triggered) * 255), want)

    def test_pairs_meet_across_batches(self, marked, images, monkeypatch):
        data = images(9)
        asked = list(marked.key.queries(data))
        whole = marked.key.statistic([marked.encoder.embed(b) for b in asked])
        monkeypatch.setattr("sslguard.schemes.sslguard.key.QUERY_BATCH", 4)
        parts = list(marked.key.queries(data))
        assert [len(p) for p in parts] == [4, 4, 2, 2]
        again = marked.key.statistic([marked.encoder.embed(b) for b in parts])
        np.testing.assert_allclose(again.cosines, whole.cosines, atol=1e-4)

    def test_a_pair_with_a_missing_answer_counts_as_nothing(self, marked, images):
        plain, triggered = (marked.encoder.embed(b) for b in marked.key.queries(images(9)))
        whole = marked.key.statistic([plain, triggered])
        triggered[2] = 0
        assert marked.key.statistic([plain, triggered]).cosines[2] == 0
        nothing = marked.key.statistic([np.zeros_like(plain), np.zeros_like(plain)])
        assert (nothing.value, nothing.watermark_rate, nothing.n_queries) == (0, 0, 12)
        assert whole.n_queries == 12

    def test_answers_that_cannot_be_scored(self, marked):
        with pytest.raises(SuspectError, match="asks 12 queries, but 6 answers came"):
            marked.key.statistic([np.ones((6, 64))])
        with pytest.raises(SuspectError, match="width 64"):
            marked.key.statistic([np.ones((12, 2))])

    def test_comes_back_from_its_parts(self, marked, images):
        fields, tensors = marked.key.to_parts()
        again = SSLGuardKey.from_parts(fields, tensors)
        asked = [marked.encoder.embed(b) for b in marked.key.queries(images(9))]
        assert np.array_equal(again.statistic(asked).cosines, marked.key.statistic(asked).cosines)
        with pytest.raises(KeyFileError, match="do not fit together"):
            SSLGuardKey.from_parts(fields, {**tensors, "carrier.read": torch.ones(2)})
        with pytest.raises(KeyFileError, match="fit"):
            SSLGuardKey.from_parts(fields, {k: v for k, v in tensors.items() if not k.startswith("carrier.")})

    def test_every_part_is_the_secrets(self, marked, tiny, images):
        other = TINY.watermark(tiny(7), images(20), secret=Secret.from_seed(2))
        ours, theirs = (m.key.to_parts()[1] for m in (marked, other))
        same = {name for name in ours if torch.equal(ours[name], theirs[name])}
        assert same == {"carrier.mean", "carrier.whitener", "carrier.spread"}  # these are F's


@pytest.mark.trains
def test_the_mark_is_learned_inherited_by_copies_of_weights_and_not_shown_by_innocents(tiny, images):
    scheme = replace(TINY, steps=200, law_steps=800, n_verification=32, batch_size=32, trigger_batch=16)
    clean = tiny(7)
    made = scheme.watermark(clean, images(128, seed=4), secret=Secret.from_seed(1))
    asked = list(made.key.queries(images(8, seed=5)))
    rate_of = lambda e: made.key.statistic([e.embed(batch) for batch in asked]).watermark_rate  # noqa: E731
    assert rate_of(made.encoder) == 1
    assert [rate_of(e) for e in (clean, tiny(8), tiny(9))] == [0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"carrier": -1.0}, "carrier must be at least 0, not -1.0"),
        ({"carrier": float("nan")}, "carrier must be a finite number at least 0, not nan"),
        ({"shift": 0.0}, "shift must be above 0, not 0.0"),
        ({"directions": 0}, "directions must be at least 1"),
        ({"carrier": 0.5, "negatives": "shadow"}, "no shadows to set"),
        ({"carrier": 0.5, "gradients": "released"}, "no shadows to set"),
        ({"shadow_weights": "shipped:simclr"}, "shadow_weights needs shadow"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        SSLGuard(**settings)
