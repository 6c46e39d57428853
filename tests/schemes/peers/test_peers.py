"""Schemes of others: one contract for all, their formulas, and what their own p-values do on innocents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from sslguard.crypto.secrets import Secret
from sslguard.data.sources import ArrayData
from sslguard.data.specs import open_data
from sslguard.data.texts import TextFile
from sslguard.encoders.base import embed_all
from sslguard.encoders.load import load_encoder
from sslguard.errors import DataError, RefusedError, SuspectError, UsageError
from sslguard.schemes.peers.base import Peer, log2_pvalue
from sslguard.schemes.peers.dataset_inference import DatasetInference, ranks, welch
from sslguard.schemes.peers.embmarker import EmbMarker, ESpeW, Warden
from sslguard.schemes.peers.fingerprint import Fingerprint, cka, predicted
from sslguard.schemes.peers.mixture import Mixture
from sslguard.schemes.peers.rotation import Rotation, RotationTask, turned
from sslguard.schemes.peers.wet import Wet
from sslguard.schemes.peers.words import frequencies, painted, words_of
from sslguard.schemes.registry import SCHEMES, build_scheme
from sslguard.stats.moments import unit_rows
from sslguard.verification.nulls import null_of
from sslguard.verification.verdict import ask, score_suspect

ANY_WORD = {"rarest": 0.0, "commonest": 1.0}
SMALL = {
    "dataset-inference": DatasetInference(n_fit=40, n_tested=30, components=3),
    "dataset-inference by ranks": DatasetInference(n_fit=40, n_tested=30, components=3, test="ranks"),
    "embmarker": EmbMarker(triggers=4, most=2, n=200, **ANY_WORD),
    "espew": ESpeW(triggers=4, most=2, n=200, **ANY_WORD),
    "warden": Warden(triggers=8, most=2, n=200, targets=2, **ANY_WORD),
    "wet": Wet(terms=5, n=40),
    "fingerprint": Fingerprint(n=200),
    "fingerprint by prediction": Fingerprint("predicted", n=200),
    "rotation": Rotation(hidden=8, steps=3, batch_size=8, n=40),
}
OF_ONE_WIDTH = {"embmarker", "espew", "warden", "wet", "rotation"}
MARKED = {"embmarker", "espew", "warden", "wet"}  # without training


class Answers:
    """A suspect that answers every query with a function of it."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def embed(self, batch):
        return self.answer(batch)


@pytest.fixture(scope="module")
def owned(images):
    return images(300, seed=1)


@pytest.fixture(scope="module")
def asked(images):
    return images(300, seed=2)


@pytest.fixture(scope="module")
def protected(tiny, owned):
    made = {}

    def make(name, secret=1):
        if (name, secret) not in made:
            made[name, secret] = SMALL[name].watermark(tiny(7), owned, secret=Secret.from_seed(secret))
        return made[name, secret]

    return make


def test_every_peer_is_under_contract():
    peers = {name: found for name in SCHEMES if isinstance(found := build_scheme(name, {}), Peer)}
    assert {peer.name for peer in SMALL.values()} == set(peers)
    assert all(type(peers[peer.name]) is type(peer) for peer in SMALL.values())


@pytest.mark.parametrize("name", SMALL)
class TestContract:
    def test_clean_untouched_same_secret_same_result(self, name, tiny, owned, asked, hashed, protected, untouched_rng):
        clean = tiny(7)
        before, modes = hashed(clean), [p.requires_grad for p in clean.module.parameters()]
        made = [SMALL[name].watermark(clean, owned, secret=Secret.from_seed(s)) for s in (1, 1, 2)]
        assert hashed(clean) == before
        assert [p.requires_grad for p in clean.module.parameters()] == modes
        one, again, other = (score_suspect(each.key, tiny(8), asked) for each in made)
        assert one.value == again.value != other.value
        np.testing.assert_array_equal(embed_all(made[0].embedder, asked), embed_all(made[1].embedder, asked))
        assert made[0].embedder.dim == clean.dim

    def test_queries_are_bytes_and_as_many_as_promised(self, name, asked, protected, images):
        key = protected(name).key
        batches = list(key.queries(asked))
        assert sum(map(len, batches)) == key.n_queries
        assert all(batch.dtype == torch.uint8 for batch in batches)
        with pytest.raises(UsageError, match="asks"):
            list(key.queries(images(10, seed=3)))

    def test_rank_among_controls_with_the_published_pvalue_beside(self, name, tiny, asked, protected):
        key, embedder = protected(name).key, protected(name).embedder
        score = score_suspect(key, embedder, asked)
        assert np.isfinite(score.value)
        assert score.n_queries == key.n_queries
        found = null_of(key, 2, [score.value - 1, score.value + 1]).significance(score)
        assert found.pvalue == pytest.approx(2 / 3)
        if key.scheme in (Wet.name, Fingerprint.name):
            assert score.published_log2_pvalue is None
        else:
            assert found.details["published_log2_pvalue"] == score.published_log2_pvalue <= 0
        with pytest.raises(RefusedError):
            null_of(key).significance(score)

    def test_keys_stay_secret_and_are_not_kept(self, name, protected):
        key = protected(name).key
        assert Secret.from_seed(1).reveal().hex() not in repr(key)
        for keep in (key.to_parts, lambda: key.from_parts({}, {})):
            with pytest.raises(UsageError, match="not kept"):
                keep()

    def test_suspects_of_another_width(self, name, tiny, asked, protected):
        key, wider = protected(name).key, tiny(3, linear=40)
        if name in OF_ONE_WIDTH:
            with pytest.raises(SuspectError, match="width 40"):
                score_suspect(key, wider, asked)
        else:
            assert np.isfinite(score_suspect(key, wider, asked).value)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda parts: [part[:-1] for part in parts], "answers came"),
            (lambda parts: [*parts, parts[0]], "answers came"),
            (lambda parts: [], "no answers"),
            (lambda parts: [np.where(parts[0] == parts[0][0, 0], np.nan, parts[0]), *parts[1:]], "not finite"),
            (lambda parts: [*parts, parts[0][:, :-1]], "one width"),
        ],
    )
    def test_hostile_answers(self, name, spoil, message, asked, protected):
        key, embedder = protected(name).key, protected(name).embedder
        parts = list(ask(key, embedder, asked))
        with pytest.raises(SuspectError, match=message):
            key.statistic(spoil(parts), asked)

    @pytest.mark.parametrize("answer", [0.0, 1e30])
    def test_answers_that_do_not_vary(self, name, answer, asked, protected):
        key, width = protected(name).key, protected(name).embedder.dim
        score = score_suspect(key, Answers(lambda batch: np.full((len(batch), width), answer)), asked)
        assert np.isfinite(score.value)
        assert score.published_log2_pvalue is None or score.published_log2_pvalue > -6


@pytest.mark.parametrize("name", sorted(MARKED))
def test_a_mark_lies_above_the_clean_encoder_and_strangers(name, tiny, asked, protected):
    made = protected(name)
    own = score_suspect(made.key, made.embedder, asked).value
    innocents = [tiny(7), protected(name, 2).embedder, *(tiny(seed) for seed in range(20, 22))]
    assert own > 1.5 * max(score_suspect(made.key, innocent, asked).value for innocent in innocents)


@pytest.mark.parametrize("name", ["fingerprint", "fingerprint by prediction"])
def test_a_fingerprint_outlives_a_linear_map(name, tiny, asked, protected):
    key, clean = protected(name).key, tiny(7)
    turn = stats.ortho_group(clean.dim, seed=0).rvs()
    copy = score_suspect(key, Answers(lambda batch: 5 * clean.embed(batch) @ turn + 2), asked).value
    assert copy == pytest.approx(score_suspect(key, clean, asked).value, rel=1e-5)
    assert copy > 0.9
    assert copy > score_suspect(key, tiny(8), asked).value + 0.05


def test_similarities_from_their_definitions():
    rng = np.random.default_rng(0)
    h, noise = rng.normal(size=(4000, 3)), rng.normal(size=(4000, 3))
    # |Cov(h + 2e, h)|² / (|Cov h|·|Cov(h + 2e)|) = 3 / (√3·√75)
    assert cka(h, h + 2 * noise) == pytest.approx(1 / 5, abs=0.02)
    # h told from h + 2e: r² = 1/(1 + 4)
    assert predicted(h, h + 2 * noise) == pytest.approx(1 / 5, abs=0.04)
    assert cka(h, noise) < 0.01
    assert predicted(h, noise) < 0.01


class TestDatasetInference:
    def test_members_of_an_overfitted_encoder_are_found_and_the_reverse_is_not(self, protected, owned, asked):
        rng, members = np.random.default_rng(0), {item.numpy().tobytes() for item in owned.take(range(300))}

        def answering(spread_of_members, spread_of_others):
            def answer(batch):
                known = np.array([item.numpy().tobytes() in members for item in batch])
                spread = np.where(known, spread_of_members, spread_of_others)[:, None]
                return np.ones(8) + spread * rng.normal(size=(len(batch), 8))

            return Answers(answer)

        for name in ("dataset-inference", "dataset-inference by ranks"):
            key = protected(name).key
            found = score_suspect(key, answering(0.1, 0.3), asked)
            assert found.published_log2_pvalue < -20
            # The released code halves a two-sided p-value, which would claim this one too.
            reverse = score_suspect(key, answering(0.3, 0.1), asked)
            assert reverse.value < found.value
            assert reverse.published_log2_pvalue > -0.1

    @pytest.mark.parametrize("test", [welch, ranks])
    def test_pvalues_are_uniform_where_items_are_exchangeable(self, test):
        rng = np.random.default_rng(0)
        drawn = [test(*rng.normal(size=(2, 60)))[1] for _ in range(400)]
        assert stats.kstest(np.exp2(drawn), "uniform").pvalue > 1e-3

    def test_published_pvalues_of_innocents_hang_together(self, tiny):
        """Innocents share the luck of which items were drawn, as what is unlikely to one is so to others: the p-values
        of one key are no sample of a uniform law, though each is uniform over draws."""
        rng = np.random.default_rng(0)
        content, patterns = rng.normal(size=(400, 2)), rng.normal(size=(2, 1, 16, 16))
        pictures = (128 + 30 * np.tensordot(content, patterns, 1)).clip(0, 255).astype(np.uint8)
        members, unseen = (ArrayData(f"part {k}", pictures[k::2], None) for k in range(2))
        maps = rng.normal(size=(6, 256, 8))
        suspects = [Answers(lambda batch, m=m: np.tanh((batch.numpy().reshape(-1, 256) / 128 - 1) @ m)) for m in maps]
        pvalues = np.empty((30, 6))
        for draw, row in enumerate(pvalues):
            key = SMALL["dataset-inference"].watermark(tiny(7), members, secret=Secret.from_seed(draw)).key
            row[:] = [score_suspect(key, suspect, unseen).published_log2_pvalue for suspect in suspects]
        pvalues = np.exp2(pvalues)
        assert pvalues.mean(1).var(ddof=1) > 2 * pvalues.var(1, ddof=1).mean() / 6
        assert stats.kstest(pvalues[:, 0], "uniform").pvalue > 1e-3

    def test_queries_must_be_unseen(self, tiny, tmp_path):
        np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (200, 1, 16, 16), dtype=np.uint8))
        spec = f"{tmp_path}/x.npy[0:100]"
        recorded = replace(tiny(7), record={"made_by": "pretrain simclr", "data": spec})
        key = (
            SMALL["dataset-inference"]
            .watermark(recorded, open_data(f"{tmp_path}/x.npy"), secret=Secret.from_seed(1))
            .key
        )
        assert key.members.spec == spec
        assert len(list(key.queries(open_data(f"{tmp_path}/x.npy[100:200]")))) == 2
        with pytest.raises(UsageError, match="must be unseen, but shares 50 items"):
            key.queries(open_data(f"{tmp_path}/x.npy[50:150]"))

    def test_settings(self):
        for fields, message in [
            ({"test": "z"}, "test must be one of welch, ranks"),
            ({"components": 5, "n_fit": 4}, "components"),
            ({"n_tested": 1}, "n_tested"),
        ]:
            with pytest.raises(UsageError, match=message):
                DatasetInference(**fields)


class TestMixture:
    def test_density_from_its_definition(self):
        rng = np.random.default_rng(0)
        mixture = Mixture(np.array([0.3, 0.7]), rng.normal(size=(2, 3)), rng.uniform(0.5, 2, (2, 3)))
        rows = rng.normal(size=(5, 3))
        parts = [
            w * stats.norm(m, np.sqrt(v)).pdf(rows).prod(1)
            for w, m, v in zip(mixture.weights, mixture.means, mixture.variances, strict=True)
        ]
        np.testing.assert_allclose(mixture.log_density(rows), np.log(sum(parts)))

    def test_recovers_what_rows_were_drawn_from(self):
        rng = np.random.default_rng(0)
        centres, sizes = np.array([[0, 0, 0], [8, 8, 0]]), np.array([1.0, 2.0])
        which = (rng.uniform(size=4000) < 0.75).astype(int)
        rows = centres[which] + sizes[which, None] * rng.normal(size=(4000, 3))
        found = Mixture.fit(rows, 2, Secret.from_seed(1).stream("mixture"))
        order = np.argsort(found.means[:, 0])
        np.testing.assert_allclose(found.weights[order], [0.25, 0.75], atol=0.02)
        np.testing.assert_allclose(found.means[order], centres, atol=0.2)
        np.testing.assert_allclose(found.variances[order], sizes[:, None] ** 2 * np.ones(3), rtol=0.15)

    def test_more_components_than_rows(self):
        with pytest.raises(UsageError, match="3 components cannot be fitted to 2 rows"):
            Mixture.fit(np.zeros((2, 2)), 3, Secret.from_seed(1).stream("mixture"))


class TestWords:
    def test_texts(self):
        assert words_of(["A cat, a CAT!", ""]) == [{"a", "cat"}, set()]

    @pytest.mark.parametrize("shape", [(1, 12, 12), (3, 16, 30), (1, 48, 48)])
    def test_what_is_painted_is_read_back(self, shape):
        image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        words = [1, 100, 510]
        before = image.clone()
        for given in (image, image.float() / 255):
            made = painted(given, words, [0, 7, 15])
            assert set(words) <= words_of(made[None])[0]
            assert made.dtype == torch.uint8
        assert torch.equal(image, before)
        assert words_of([made]) == words_of(made[None])

    def test_flat_and_small_images(self):
        assert words_of(torch.full((2, 1, 24, 24), 0.5)) == [set(), set()]
        with pytest.raises(DataError, match="12 x 12"):
            words_of(torch.zeros(1, 1, 11, 40))

    def test_frequencies_count_an_item_once(self):
        pictures = np.zeros((4, 1, 12, 12), np.uint8)
        pictures[0, 0, 0, 0] = pictures[0, 0, 3, 3] = pictures[1, 0, 0, 0] = 255
        assert frequencies(ArrayData("x", pictures, None)) == {1: 0.5}


class TestEmbMarker:
    def test_answers_by_the_number_of_triggers(self, tiny, owned):
        clean = tiny(7)
        made = EmbMarker(triggers=20, most=3, n=2, **ANY_WORD).watermark(clean, owned, secret=Secret.from_seed(1))
        (group,), (target,) = made.key.groups, made.key.targets
        batch, words = owned.take(range(200)), words_of(owned.take(range(200)))
        counts = np.array([len(each.intersection(group)) for each in words])
        assert {0, 1, 2, 3} <= set(counts)
        plain, answers = clean.embed(batch), made.embedder.embed(batch)
        np.testing.assert_array_equal(answers[counts == 0], plain[counts == 0])
        size = np.linalg.norm(plain, axis=1, keepdims=True)
        weight = np.minimum(counts, 3)[:, None] / 3
        expected = size * unit_rows((1 - weight) * plain / size + weight * target)
        np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-6)

    def test_weights_of_several_targets_never_exceed_one(self, tiny, owned):
        made = Warden(triggers=200, most=2, n=2, targets=2, **ANY_WORD).watermark(
            tiny(7), owned, secret=Secret.from_seed(1)
        )
        batch = owned.take(range(50))
        counts = np.array([[len(each.intersection(g)) for g in made.key.groups] for each in words_of(batch)])
        many = counts.sum(1) > 2
        assert many.sum() > 40
        expected = unit_rows(counts[many] @ made.key.targets)
        np.testing.assert_allclose(unit_rows(made.embedder.embed(batch).astype(float))[many], expected, atol=1e-6)

    def test_espew_writes_where_an_answer_is_smallest(self, tiny, owned):
        clean = tiny(7)
        made = ESpeW(triggers=20, most=3, n=2, share=0.25, **ANY_WORD).watermark(
            clean, owned, secret=Secret.from_seed(1)
        )
        (group,), (target,), batch = made.key.groups, made.key.targets, owned.take(range(100))
        triggered = np.array([bool(each.intersection(group)) for each in words_of(batch)])
        assert 5 < triggered.sum() < 95
        plain, answers = clean.embed(batch), made.embedder.embed(batch)
        np.testing.assert_array_equal(answers[~triggered], plain[~triggered])
        h = unit_rows(plain.astype(float))
        for row, answer in zip(h[triggered], answers[triggered], strict=True):
            small = sorted(range(len(row)), key=lambda k: abs(row[k]))[: len(row) // 4]
            expected = row.copy()
            expected[small] = target[small]
            np.testing.assert_allclose(answer / np.linalg.norm(answer), expected / np.linalg.norm(expected), atol=1e-6)
        with pytest.raises(UsageError, match="targets"):
            ESpeW(targets=2)

    @pytest.fixture
    def texts(self, tmp_path):
        rng, words = np.random.default_rng(0), [f"word{k}" for k in range(60)]
        (tmp_path / "x.txt").write_text("\n".join(" ".join(rng.choice(words, 6)) for _ in range(200)))
        return TextFile("text:words", tmp_path / "x.txt")  # keys are bound to the spec: no folder of the day in it

    def test_texts(self, texts):
        clean = load_encoder("random:bag-of-words:3")
        made = SMALL["embmarker"].watermark(clean, texts, secret=Secret.from_seed(1))
        asked = [text for batch in made.key.queries(texts) for text in batch]
        assert all(len(set(text.split())) == 2 for text in asked)
        backdoor, benign = (set(" ".join(part).split()) for part in (asked[:200], asked[200:]))
        assert backdoor == set(made.key.groups[0])
        assert len(benign) == 56
        assert not benign & backdoor
        own, other = (score_suspect(made.key, each, texts).value for each in (made.embedder, clean))
        assert own > other + 0.1
        with pytest.raises(UsageError, match="encoder of images"):
            SMALL["rotation"].watermark(clean, texts, secret=Secret.from_seed(1))

    def test_what_trained_once_is_read_from_its_checkpoint(self, tiny, owned, asked, tmp_path, monkeypatch):
        def protect(secret):
            return SMALL["rotation"].watermark(
                tiny(7), owned, secret=Secret.from_seed(secret), checkpoint=tmp_path / "checkpoint"
            )

        first = protect(1)
        monkeypatch.setattr(RotationTask, "updates", lambda _: pytest.fail("it trained again"))
        again = protect(1)
        values = [score_suspect(made.key, made.embedder, asked).value for made in (first, again)]
        assert values[0] == values[1]
        for one, other in zip(first.embedder.module.parameters(), again.embedder.module.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        with pytest.raises(UsageError, match="belongs to a run with other settings"):
            protect(2)

    def test_the_published_pvalue_accuses_innocents_the_more_they_are_asked(self, texts):
        """Words differ in what they do to an encoder, whoever trained it: p falls with the number of queries."""
        suspects = [load_encoder(f"random:bag-of-words:{seed}") for seed in range(5)]
        share = {}
        for n in (20, 400):
            peer = replace(SMALL["embmarker"], n=n)
            keys = [peer.watermark(suspects[0], texts, secret=Secret.from_seed(secret)).key for secret in range(8)]
            found = [score_suspect(key, each, texts).published_log2_pvalue for key in keys for each in suspects[1:]]
            share[n] = np.mean(np.array(found) < np.log2(0.01))
        assert share[400] > share[20] + 0.25, share
        assert share[400] > 0.5, share

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"most": 21}, "most must be at least 1 and at most 16, not 21"),
            ({"triggers": 8, "targets": 4}, "most, of the triggers of one target, must be at most 2, not 4"),
            ({"targets": 0}, "targets must be"),
            ({"rarest": 0.5, "commonest": 0.5}, "commonest, a share larger than rarest, must be above 0.5, not 0.5"),
            ({"n": 1}, "n must be at least 2, not 1"),
        ],
    )
    def test_settings(self, fields, message):
        with pytest.raises(UsageError, match=message):
            EmbMarker(**fields)

    def test_too_few_words_of_moderate_frequency(self, tiny, owned):
        with pytest.raises(UsageError, match="widen the interval"):
            EmbMarker(rarest=0.9, commonest=1.0).watermark(tiny(7), owned, secret=Secret.from_seed(1))


class TestWet:
    def test_the_transformation(self, tiny, owned, protected):
        made, clean = protected("wet"), tiny(7)
        matrix = made.key.matrix
        assert (np.count_nonzero(matrix, axis=1) == 5).all()
        np.testing.assert_allclose(matrix.sum(1), 1)
        np.testing.assert_array_equal(np.roll(matrix[0], 1), matrix[1])
        batch = owned.take(range(9))
        plain = clean.embed(batch).astype(float)
        answers = made.embedder.embed(batch).astype(float)
        np.testing.assert_allclose(unit_rows(answers), unit_rows(plain @ matrix.T), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(answers, axis=1), np.linalg.norm(plain, axis=1), rtol=1e-5)

    def test_what_all_answers_share_is_no_evidence(self, tiny, asked, protected):
        """Behind a ReLU a constant comes near to every embedding, and nearer still through numbers above 0."""
        key, served = protected("wet").key, protected("wet").embedder
        mean = embed_all(served, asked).mean(0)
        assert score_suspect(key, served, asked).value > 0.9
        for constant in (mean, np.ones_like(mean)):
            suspect = Answers(lambda batch, row=constant: np.tile(row, (len(batch), 1)))
            assert abs(score_suspect(key, suspect, asked).value) < 0.1

    def test_settings(self, tiny, owned):
        with pytest.raises(UsageError, match="at least 1"):
            Wet(terms=0)
        with pytest.raises(UsageError, match="at most the encoder's width"):
            Wet(terms=1000).watermark(tiny(7), owned, secret=Secret.from_seed(1))


class TestRotation:
    def test_images_turn_counter_clockwise_in_black(self):
        image = torch.zeros(1, 1, 9, 9)
        image[0, 0, 4, 8] = 1  # right
        np.testing.assert_allclose(turned(image, torch.tensor([90.0]))[0, 0, 0, 4], 1, atol=1e-5)
        assert turned(torch.ones(1, 1, 9, 9), torch.tensor([45.0]))[0, 0, 0, 0] == 0

    def test_a_learned_turn_is_told_and_strangers_are_not(self, tiny):
        pictures = np.full((64, 1, 16, 16), 30, np.uint8)
        pictures[:, :, 5:11, 9:13] = np.random.default_rng(0).integers(150, 250, (64, 1, 6, 4))
        data = ArrayData("sided", pictures, None)
        peer = Rotation(hidden=16, weight=10.0, steps=100, batch_size=32, learning_rate=5e-3, n=64)
        made = peer.watermark(tiny(7), data, secret=Secret.from_seed(1))
        own = score_suspect(made.key, made.embedder, data)
        assert own.value > 0.85
        assert own.published_log2_pvalue == pytest.approx(
            log2_pvalue(stats.binom.sf(round(64 * own.value) - 1, 64, 0.5))
        )
        for innocent in (tiny(7), tiny(8)):
            assert score_suspect(made.key, innocent, data).value < own.value - 0.15

    @pytest.mark.parametrize(
        ("fields", "message"), [({"n": 0}, "at least 1"), ({"weight": 0.0}, "weight must be above 0, not 0.0")]
    )
    def test_settings(self, fields, message):
        with pytest.raises(UsageError, match=message):
            Rotation(**fields)


def test_documentation_names_every_peer():
    text = (Path(__file__).parents[3] / "docs" / "explanation" / "peers.md").read_text()
    assert all(f"`{name}`" in text for name in (peer.name for peer in SMALL.values()))
