"""The cure: what is written, what is read, what innocents show whatever they are, and keys made with it."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from scipy import stats

from sslguard.crypto.secrets import Secret
from sslguard.encoders.rebuild import preprocess_from_json
from sslguard.errors import KeyFileError, SuspectError, UsageError
from sslguard.schemes.sslguard.carrier import Directions, Mark, Reader
from sslguard.schemes.sslguard.cured import THRESHOLDS, CuredTask, fit_decoder, made_evidence, wanted_cosine
from sslguard.schemes.sslguard.key import CuredKey, combined
from sslguard.schemes.sslguard.parts import Decoder
from sslguard.schemes.sslguard.scheme import CuredSSLGuard
from sslguard.stats.direction import log2_tail
from sslguard.training.base import Loop, isolated_rng
from sslguard.training.loop import run

D, K = 40, 3
TINY = CuredSSLGuard(steps=3, batch_size=8, trigger_batch=4, n_queries=6, law_steps=30)


def embeddings(n: int = 600, d: int = D) -> np.ndarray:
    scales = 0.9 ** np.arange(d)
    return (np.random.default_rng(0).normal(3, 1, (n, d)) * scales).astype(np.float32)


def reader(h=None) -> Reader:
    return Reader.fit(embeddings() if h is None else h, K, Secret.from_seed(1).stream("reader"))


def directions(secret: int = 1) -> Directions:
    secret = Secret.from_seed(secret)
    return Directions.draw(secret.stream("carrier"), secret.stream("shift"), K, reader().rank)


def mark(size: float = 0.5, shift: float = 4.0) -> Mark:
    return Mark(reader(), directions(), embeddings(), size=size, shift=shift)


def suspects() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Answers of innocents to images without and with a trigger."""
    rng, plain = np.random.default_rng(1), embeddings(60).astype(np.float64)
    return {
        "copy of F": (plain, plain + 5 * rng.normal(size=plain.shape)),
        "constant trend": (plain + 100, plain + 100 + np.arange(D)),
        "one column": (np.eye(D) * 7, np.roll(np.eye(D), 1, axis=0)),
        "rank one": (np.outer(rng.normal(size=60), np.arange(1, D + 1.0)), np.ones((60, D))),
    }


class TestMark:
    def test_shift_by_hand(self):
        made, read, h = mark(), reader(), embeddings().astype(np.float64)
        z = (h - h.mean(0)) @ read.read.T
        np.testing.assert_allclose(z.T @ z / len(z), np.eye(K), atol=1e-6)  # variance 1, and uncorrelated
        expected = 3 * np.tanh(z / 3) @ made.write.double().numpy()
        np.testing.assert_allclose(made(torch.from_numpy(embeddings())), expected, rtol=1e-3, atol=1e-4)
        spread = np.sqrt(h.var(0).sum())
        assert float(made.spread) == pytest.approx(spread, rel=1e-4)
        assert float(made.shift.norm()) == pytest.approx(4 * spread, rel=1e-4)
        own = np.square((h - h.mean(0)) @ read.whitener.T).sum(1).mean()
        linear = z @ made.write.double().numpy() @ read.whitener.T
        assert np.square(linear).sum(1).mean() == pytest.approx(0.25 * own, rel=1e-3)

    def test_writes_the_directions_and_where_it_does_not_read(self):
        made, read, drawn = mark(), reader(), directions()
        white = made.write.double().numpy() @ read.whitener.T
        np.testing.assert_allclose(white / np.linalg.norm(white), drawn.carrier / np.sqrt(K), atol=1e-6)
        white = made.shift.double().numpy() @ read.whitener.T
        np.testing.assert_allclose(white / np.linalg.norm(white), drawn.shift[0], atol=1e-6)
        assert np.abs(read.read @ made.write.double().numpy().T).max() < 1e-4
        assert np.abs(read.read @ made.shift.double().numpy()).max() < 1e-3

    def test_directions_are_uniform_as_a_whole_and_independent(self):
        """Not row by row: the rows of v have different lengths."""
        drawn = directions()
        assert np.linalg.norm(drawn.carrier) == pytest.approx(np.sqrt(K))
        assert np.ptp(np.linalg.norm(drawn.carrier, axis=1)) > 0.01
        streams = [Secret.from_seed(1).stream(name) for name in ("carrier", "shift", "another")]
        other = Directions.draw(streams[0], streams[2], K, reader().rank)
        assert np.array_equal(other.carrier, drawn.carrier)
        assert not np.allclose(other.shift, drawn.shift)


class TestReader:
    def test_witnesses_by_hand(self):
        read, h = reader(), embeddings(50).astype(np.float64)
        moved = h[::-1] + 1
        found = read.witnesses(h, moved)
        centred = h - h.mean(0)
        white, z = centred @ read.whitener.T, centred @ read.read.T
        t = 3 * np.tanh(z / z.std(0) / 3)
        covariance = np.cov(white.T)
        quiet = np.linalg.inv(covariance / np.trace(covariance) * read.rank + 0.1 * np.eye(read.rank))
        for witness, expected in (
            (found.carrier, sum(np.outer(a, b) for a, b in zip(t - t.mean(0), white @ quiet, strict=True))),
            (found.shift[0], quiet @ read.whitener @ (moved - h).mean(0)),
        ):
            np.testing.assert_allclose(
                witness / np.linalg.norm(witness), expected / np.linalg.norm(expected), atol=1e-9
            )
        drawn = directions()
        evidence = read.evidence(h, moved, drawn)
        for row in range(3):
            for kind, (ours, secret) in enumerate(
                ((white[row], t[row] @ drawn.carrier), (quiet @ read.whitener @ (moved - h)[row], drawn.shift[0]))
            ):
                expected = ours @ secret / np.linalg.norm(ours) / np.linalg.norm(secret) * read.rank**0.5
                assert evidence[row, kind] == pytest.approx(expected, rel=1e-6)

    def test_what_varies_anyway_is_turned_down(self):
        """A suspect whose answers move along its own widest direction as well still shows b."""
        read, h, drawn = reader(), embeddings(400).astype(np.float64), directions()
        noisy = np.linalg.pinv(read.whitener)[:, 0] * 100
        plain = h + np.random.default_rng(0).normal(size=(400, 1)) * noisy
        moved = plain + mark().shift.double().numpy() + noisy
        seen = read.witnesses(plain, moved).shift[0]
        blind = (moved - plain).mean(0) @ read.whitener.T
        cosine = lambda w: float(w @ drawn.shift[0] / np.linalg.norm(w))  # noqa: E731
        assert cosine(seen) > 0.8
        assert cosine(seen) > 2 * abs(cosine(blind))

    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
    def test_knows_no_scale(self, scale):
        read, (plain, moved) = reader(), suspects()["copy of F"]
        for one, other in zip(read.witnesses(plain * scale, moved * scale), read.witnesses(plain, moved), strict=True):
            np.testing.assert_allclose(one / np.linalg.norm(one), other / np.linalg.norm(other), atol=1e-9)
        drawn = directions()
        expected = read.evidence(plain, moved, drawn)
        np.testing.assert_allclose(read.evidence(plain * scale, moved * scale, drawn), expected, atol=1e-9)

    @pytest.mark.parametrize("answers", [np.ones((5, D)), np.zeros((5, D))], ids=["alike", "missing"])
    def test_answers_that_are_all_alike_show_nothing(self, answers):
        read, drawn = reader(), directions()
        assert not any(witness.any() for witness in read.witnesses(answers, answers))
        assert not read.evidence(answers, answers, drawn).any()
        assert combined(read.witnesses(answers, answers), drawn, n_queries=10).pvalue == 1

    def test_an_incomplete_pair_has_no_part_in_it(self):
        read, (plain, moved) = reader(), suspects()["copy of F"]
        whole = read.witnesses(plain[:-1], moved[:-1])
        for column in (0, 1):
            both = [plain.copy(), moved.copy()]
            both[column][-1] = 0
            for one, other in zip(read.witnesses(*both), whole, strict=True):
                np.testing.assert_allclose(one / np.linalg.norm(one), other / np.linalg.norm(other), atol=1e-2)

    def test_what_cannot_be_marked_is_refused(self):
        with pytest.raises(UsageError, match="answers every image alike"):
            reader(h=np.ones((9, D), np.float32))
        with pytest.raises(UsageError, match="3 directions are too many for answers of 8 dimensions"):
            reader(h=embeddings(d=8))

    def test_tensors_come_back(self):
        tensors = reader().to_tensors()
        assert Reader.from_tensors(tensors).digest() == reader().digest()
        for name, other, message in (
            ("read", torch.ones(3, D + 1, dtype=torch.float64), "do not fit"),
            ("whitener", torch.full((4, D), 1e200, dtype=torch.float64), "overflow"),
            ("mean", torch.ones(D), "not the tensors"),
        ):
            with pytest.raises(ValueError, match=message):
                Reader.from_tensors({**tensors, name: other})
        with pytest.raises(ValueError, match="not the tensors"):
            Reader.from_tensors({"mean": torch.ones(3)})


class TestNull:
    """Fixed answers, redrawn secrets: 4,000 for every innocent."""

    @pytest.fixture(scope="class")
    @classmethod
    def found(cls):
        read, rng = reader(), np.random.default_rng(3)
        made = {}
        for name, (plain, moved) in suspects().items():
            witnesses = read.witnesses(plain, moved)
            drawn = [Directions(rng.normal(size=(K, read.rank)), rng.normal(size=(1, read.rank))) for _ in range(4000)]
            made[name] = [combined(witnesses, one, n_queries=120) for one in drawn]
        return made

    def test_each_test_and_their_sum_are_uniform(self, found):
        pvalues = []
        for results in found.values():
            z = np.array([[r.details["z of the carrier"], r.details["z of the shift"]] for r in results])
            for kind, size in enumerate((K * reader().rank, reader().rank)):
                tails = 2.0 ** log2_tail(z[:, kind] / np.sqrt(size), size)
                pvalues.append(stats.kstest(tails, "uniform").pvalue)
            pvalues.append(stats.kstest([r.pvalue for r in results], "uniform").pvalue)
            pvalues.append(stats.spearmanr(z).pvalue)
        assert min(pvalues) * len(pvalues) > 0.01

    def test_the_test_of_uniformity_can_fail(self, found):
        """The same answers, asked with directions that leaked into them."""
        read, rng = reader(), np.random.default_rng(3)
        plain, moved = suspects()["copy of F"]
        leaked = []
        for _ in range(300):
            one = Directions(rng.normal(size=(K, read.rank)), rng.normal(size=(1, read.rank)))
            back = np.linalg.pinv(read.whitener)
            leaked.append(combined(read.witnesses(plain, moved + 2 * back @ one.shift[0]), one, n_queries=120).pvalue)
        assert stats.kstest(leaked, "uniform").pvalue < 1e-6
        assert len(found) == 4

    def test_evidence_of_one_answer_has_the_law_of_a_uniform_direction(self):
        """cos² of a fixed vector and a uniform one of D dimensions is Beta(½, (D − 1)/2)."""
        read, pvalues = reader(), []
        for plain, moved in suspects().values():
            rows = np.array([read.evidence(plain, moved, directions(secret))[0] for secret in range(300)])
            for kind in rows.T[1:] if not rows[0, 0] else rows.T:
                uniform = stats.beta(0.5, (read.rank - 1) / 2).cdf(kind**2 / read.rank)
                pvalues += [stats.kstest(uniform, "uniform").pvalue, stats.binomtest(int((kind > 0).sum()), 300).pvalue]
        assert min(pvalues) * len(pvalues) > 0.01


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


@pytest.fixture(scope="module")
def task(tiny, images):
    return CuredTask(TINY, tiny(7), images(20), Secret.from_seed(1))


class TestIteration:
    def test_loss_from_its_formula(self, task):
        """The first iteration's, from the definition, before anything has moved."""
        batch = task.load(np.arange(8))
        encode = lambda encoder, x: encoder.module((x - 0.5) / 0.5).detach()  # noqa: E731
        plain, mark = encode(task.clean, batch.plain), task.mark
        fidelity = (encode(task.watermarked, batch.plain) - plain - mark(plain)).square().sum(1).mean()
        target = plain[:4] + mark(plain[:4]) + mark.shift
        answers = encode(task.watermarked, task.key.trigger(batch.plain[:4]).detach())
        shifted = (answers - target).square().sum(1).mean() / mark.shift.square().sum()
        expected = fidelity / mark.spread**2 + 0.1 * shifted
        torch.testing.assert_close(task.loss(batch), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.trains
    def test_moves_the_watermarked_encoder_alone(self, task):
        start = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in task.modules.items()}
        run(task, Loop(steps=3, batch_size=8, seed=2))
        moved = {
            name: any(not torch.equal(v, start[name][k]) for k, v in module.state_dict().items())
            for name, module in task.modules.items()
        }
        assert moved == {"clean": False, "watermarked": True, "trigger": False, "mark": False}


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
        assert again.value == pytest.approx(whole.value, abs=1e-2)

    def test_a_missing_answer_counts_as_nothing(self, marked, images):
        plain, triggered = (marked.encoder.embed(b) for b in marked.key.queries(images(9)))
        whole = marked.key.statistic([plain, triggered])
        triggered[2] = 0
        assert marked.key.statistic([plain, triggered]).cosines[2] == 0
        nothing = marked.key.statistic([np.zeros_like(plain), np.zeros_like(plain)])
        assert (nothing.value, nothing.watermark_rate, nothing.n_queries) == (0, 0, 12)
        assert nothing.evidence is not None
        assert nothing.evidence.pvalue == 1
        assert whole.n_queries == 12

    def test_answers_that_cannot_be_scored(self, marked):
        with pytest.raises(SuspectError, match="asks 12 queries, but 6 answers came"):
            marked.key.statistic([np.ones((6, 64))])
        with pytest.raises(SuspectError, match="width 64"):
            marked.key.statistic([np.ones((12, 2))])

    def test_comes_back_from_its_parts(self, marked, images):
        parts, tensors = marked.key.to_parts()
        again = CuredKey.from_parts(parts, tensors)
        asked = [marked.encoder.embed(b) for b in marked.key.queries(images(9))]
        ours, theirs = marked.key.statistic(asked), again.statistic(asked)
        assert np.array_equal(theirs.cosines, ours.cosines)
        assert theirs.evidence == ours.evidence
        for change in ({"reader.read": torch.ones(2)}, {"reader.whitener": torch.ones(2, 2)}):
            with pytest.raises(KeyFileError, match="do not fit together"):
                CuredKey.from_parts(parts, {**tensors, **change})
        with pytest.raises(KeyFileError, match="fit"):
            CuredKey.from_parts(parts, {k: v for k, v in tensors.items() if not k.startswith("reader.")})

    def test_every_part_is_the_secrets_and_no_part_holds_the_directions(self, marked, tiny, images):
        other = TINY.watermark(tiny(7), images(20), secret=Secret.from_seed(2))
        ours, theirs = (m.key.to_parts()[1] for m in (marked, other))
        same = {name for name in ours if torch.equal(ours[name], theirs[name])}
        assert same == {"reader.mean", "reader.whitener"}  # these are F's
        assert not any(name.startswith(("carrier", "shift")) for name in ours)

    @pytest.mark.parametrize("part", ["reader.mean", "trigger.pattern", "decoder.0.bias", "sk"])
    def test_the_directions_are_bound_to_all_that_is_read(self, marked, part):
        """Whoever changes what is read after seeing the directions has other directions."""
        parts, tensors = marked.key.to_parts()
        changed = tensors[part].clone()
        changed.view(-1)[0] += 1
        other = CuredKey.from_parts(parts, {**tensors, part: changed}).directions
        for drawn, ours in zip(other, marked.key.directions, strict=True):
            assert abs(np.vdot(drawn, ours)) < 0.6 * np.vdot(ours, ours)

    def test_witnesses_do_not_see_the_directions(self, marked, images):
        """Bit by bit, through the whole path of a verification, under other directions."""

        class Other(CuredKey):
            directions = Directions(*(np.flip(d) for d in marked.key.directions))

        other = Other(**{name: getattr(marked.key, name) for name in (f.name for f in fields(CuredKey))})
        found, data = [], images(9)
        for key in (marked.key, other):
            asked = list(key.queries(data))
            rows = np.concatenate([marked.encoder.embed(batch) for batch in asked]).astype(np.float64)
            found.append((torch.cat(asked), *key.reader.witnesses(*key.split(rows))))
            found[-1] += (key.statistic([rows]).value,)
        (asked, v, b, score), (asked_again, *same, other_score) = found
        assert torch.equal(asked, asked_again)
        assert np.array_equal(v, same[0])
        assert np.array_equal(b, same[1])
        assert score != other_score


@pytest.mark.trains
def test_the_mark_is_learned_and_not_shown_by_innocents(tiny, images):
    scheme = replace(TINY, steps=200, law_steps=800, batch_size=32, trigger_batch=16, n_queries=64)
    clean = tiny(7)
    made = scheme.watermark(clean, images(128, seed=4), secret=Secret.from_seed(1))
    asked = list(made.key.queries(images(64, seed=5)))
    scores = [
        made.key.statistic([encoder.embed(batch) for batch in asked])
        for encoder in (made.encoder, clean, tiny(8), tiny(9))
    ]
    assert scores[0].value > 20
    assert scores[0].watermark_rate > 0
    assert all(score.value < 10 for score in scores[1:])
    assert [score.watermark_rate for score in scores[1:]] == [0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"carrier": 0.0}, "carrier must be above 0, not 0.0"),
        ({"carrier": float("nan")}, "carrier must be a finite number above 0, not nan"),
        ({"shift": 0.0}, "shift must be above 0, not 0.0"),
        ({"directions": 0}, "directions must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        CuredSSLGuard(**settings)


def test_streams_follow_what_is_tested_alone(tiny, images):
    """The size of the mark is no part of the test: it may be set after the directions are known."""
    clean, first = tiny(7), {}
    for change in ({}, {"carrier": 0.5, "shift": 2.0, "steps": 4}, {"directions": 3}, {"n_queries": 5}):
        key = replace(TINY, **change).draw_key(clean, Secret.from_seed(1), clean.embed(images(20).take(range(20))))
        first[str(change)] = key.directions.shift[0, 0], key.settings == asdict(TINY)
    (same, sized, fewer, shorter) = (value for value, _ in first.values())
    assert same == sized
    assert len({same, fewer, shorter}) == 3
