"""The exact scheme: its formulas, its keys, and that no direction finds its way into a witness."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.command_line import done, sslguard
from helpers.exact_oracle import spread_of
from sslguard.crypto.secrets import Secret
from sslguard.encoders.base import embed_all
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.errors import KeyFileError, RefusedError, SuspectError, UsageError
from sslguard.schemes.exact.bank import Bank, Geometry, draw_directions
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.exact.key import ExactKey, folded
from sslguard.schemes.exact.marking import DistilMark
from sslguard.schemes.exact.power import expected_power
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import load_key, save_key
from sslguard.stats.direction import direction_test, log2_tail
from sslguard.stats.moments import Moments, unit_rows
from sslguard.stats.witness import witness
from sslguard.verification.verdict import score_suspect, verify

D, K = 64, 18
SMALL = Protocol(n_queries=200)
HEAD = Exact(SMALL, mode="head")


class Answers:
    """A suspect that answers every query with a function of it."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def embed(self, batch):
        return self.answer(batch)


def remembered(suspect, data):
    """The suspect, asked about each item of `data` once: no embedding depends on the batch that it is in."""
    items = (item.numpy().tobytes() for item in data.take(range(len(data))))
    answers = dict(zip(items, embed_all(suspect, data), strict=True))
    return Answers(lambda batch: np.stack([answers[item.numpy().tobytes()] for item in batch]))


def one_witness(key, moments):
    """What `key.witnesses` gives for "predicted", without the others."""
    spread = key.bank.geometry.spread
    return {"predicted": witness("predicted", moments, spread)}


@pytest.fixture(scope="module")
def marked(tiny, images):
    return HEAD.watermark(tiny(7), images(400), secret=Secret.from_seed(1))


@pytest.fixture(scope="module")
def asked(images):
    return images(300, seed=5)


class TestGeometry:
    def test_spread_and_whitener_from_their_definitions(self):
        h = unit_rows(np.random.default_rng(0).normal(size=(500, 12)) * np.linspace(1, 0.1, 12) + 0.5)
        for power in (0.0, 0.5, 1.0):
            found = Geometry.of(3 * h, Protocol(spread_power=power, components=4))
            np.testing.assert_allclose(found.spread, spread_of(h, power), atol=1e-9)
            assert np.square(found.spread).sum() == pytest.approx(12)
        z = (h - found.mean) @ found.whitener.T
        np.testing.assert_allclose(z.T @ z / len(z), np.eye(4), atol=1e-9)

    def test_answers_that_vary_too_little(self):
        flat = np.ones((50, 8)) + np.outer(np.linspace(0, 1, 50), np.arange(8))
        with pytest.raises(UsageError, match="a protocol of 6 components"):
            Geometry.of(flat, Protocol())
        with pytest.raises(UsageError, match="vary in 0 of 8"):
            Geometry.of(np.ones((50, 8)), Protocol())


class TestBank:
    def test_features_have_mean_0_and_nothing_linear_in_h_where_they_were_made(self, marked, images):
        h = unit_rows(embed_all(marked.key.clean, images(400)).astype(float))
        phi = marked.key.bank.features(h, all_statistics(marked.key.clean, images(400)))
        assert phi.shape == (400, K)
        np.testing.assert_allclose(phi.mean(0), 0, atol=1e-9)
        np.testing.assert_allclose(phi[:, :6].std(0), 1, atol=1e-6)
        others, centred = phi[:, 6:], h - h.mean(0)
        np.testing.assert_allclose(others.T @ centred / 400, 0, atol=1e-6)  # nothing of them is linear in h

    def test_features_have_variance_1_on_items_that_they_were_not_made_of(self, marked, images):
        """Else a head of few items would move new answers by more than it says."""
        new = images(3000, seed=5)
        h = unit_rows(embed_all(marked.key.clean, new).astype(float))
        sizes = marked.key.bank.features(h, all_statistics(marked.key.clean, new)).std(0)
        assert np.sqrt(np.square(sizes[6:]).mean()) == pytest.approx(1, abs=0.07)

    def test_features_of_the_input_turn_with_the_secret_and_span_the_same(self, tiny, images):
        keys = [HEAD.watermark(tiny(7), images(400), secret=Secret.from_seed(s)).key for s in (1, 2)]
        one, two = (key.bank.axes for key in keys)
        turn = np.linalg.lstsq(one, two, rcond=None)[0]
        np.testing.assert_allclose(turn.T @ turn, np.eye(12), atol=1e-6)
        assert np.abs(turn - np.eye(12)).max() > 0.1

    def test_inputs_without_statistics_of_their_own(self, tiny):
        h, same = np.random.default_rng(0).normal(size=(60, 24)), np.ones((60, 96))
        with pytest.raises(UsageError, match=r"60 marking items are too much alike: need 12 .* lower n_statistics"):
            Bank.draw(Secret.from_seed(1), h, same, Protocol(), b"")
        assert Bank.draw(Secret.from_seed(1), h, same, Protocol(n_statistics=0), b"").size == 6

    def test_too_few_items_for_statistics_of_the_input(self):
        rng, protocol = np.random.default_rng(0), Protocol()
        for n in (36, 37):
            h, psi = rng.normal(size=(n, 24)), rng.normal(size=(n, 96))
            if n == 36:
                with pytest.raises(UsageError, match="at least 37 marking items for an encoder of width 24; got 36"):
                    Bank.draw(Secret.from_seed(1), h, psi, protocol, b"")
            else:
                assert Bank.draw(Secret.from_seed(1), h, psi, protocol, b"").size == 18

    def test_directions_are_one_point_on_the_sphere(self):
        drawn = np.stack([draw_directions(Secret.from_seed(s), 3, 5, b"x") for s in range(400)])
        lengths = np.linalg.norm(drawn.reshape(400, -1), axis=1)
        np.testing.assert_allclose(lengths, np.sqrt(3))
        assert np.linalg.norm(drawn, axis=2).std() > 0.05  # rows are not normalised one by one
        uniform = stats.beta(0.5, 7).cdf((drawn[:, 0, 0] ** 2) / 3)
        assert stats.kstest(uniform, "uniform").pvalue > 1e-3

    def test_directions_are_bound_to_the_network_beside_its_weights(self, marked):
        """Some descriptions make another network of the same weights: one with other answers."""
        clean = marked.key.clean
        other = replace(clean, architecture={**clean.architecture, "pooling": "mean"})
        described = replace(marked.key, clean=other)
        assert described.clean_hash == marked.key.clean_hash
        assert abs(np.vdot(described.directions(), marked.key.directions())) < 0.5 * K

    def test_directions_are_bound_to_all_that_the_test_depends_on(self, tiny, images):
        base = HEAD.watermark(tiny(7), images(400), secret=Secret.from_seed(1)).key
        others = {
            "secret": HEAD.watermark(tiny(7), images(400), secret=Secret.from_seed(2)).key,
            "encoder": HEAD.watermark(tiny(8), images(400), secret=Secret.from_seed(1)).key,
            "data of the geometry": HEAD.watermark(tiny(7), images(400, seed=3), secret=Secret.from_seed(1)).key,
            "protocol": replace(HEAD, protocol=replace(SMALL, epsilon=0.25))
            .watermark(tiny(7), images(400), secret=Secret.from_seed(1))
            .key,
            "number of queries": replace(HEAD, protocol=replace(SMALL, n_queries=201))
            .watermark(tiny(7), images(400), secret=Secret.from_seed(1))
            .key,
        }
        for name, other in others.items():
            assert abs(np.vdot(base.directions(), other.directions())) < 0.5 * K, name
        again = HEAD.watermark(tiny(7), images(400), secret=Secret.from_seed(1)).key
        assert np.array_equal(base.directions(), again.directions())


class TestHead:
    def test_formula(self, marked, asked):
        key = marked.key
        f = embed_all(key.clean, asked).astype(float)
        length = np.linalg.norm(f, axis=1, keepdims=True)
        h = f / length
        mark = key.bank.features(h, all_statistics(key.clean, asked)) @ key.directions() @ key.bank.geometry.spread
        expected = length * (h + 0.2 / np.sqrt(K) * mark)
        np.testing.assert_allclose(embed_all(marked.encoder, asked), expected, rtol=1e-3, atol=1e-4)

    def test_comes_back_from_its_folder(self, marked, asked, tmp_path):
        save_encoder(marked.encoder, tmp_path / "e")
        again = load_folder(tmp_path / "e")
        assert np.array_equal(embed_all(again, asked), embed_all(marked.encoder, asked))

    def test_exports(self, marked):
        x = torch.rand(3, 1, 16, 16)
        module = marked.encoder.module.eval()
        exported = torch.export.export(module, (x,)).module()
        torch.testing.assert_close(exported(x), module(x))

    def test_a_second_head_is_refused(self, marked, images):
        with pytest.raises(UsageError, match="carries a head already"):
            HEAD.watermark(marked.encoder, images(400), secret=Secret.from_seed(2))


class TestKey:
    def test_finds_its_own_mark_and_no_other(self, marked, tiny, images, asked):
        suspects = {
            "F": tiny(7),
            "independent": tiny(8),
            "another key's": HEAD.watermark(tiny(7), images(400), secret=Secret.from_seed(3)).encoder,
        }
        own = verify(marked.key, marked.encoder, asked, control_scores={}, alpha=1e-6)
        assert (own.decision, own.exit_code, own.watermark_rate, own.significance.null) == ("derived", 0, None, "exact")
        for name, suspect in suspects.items():
            found = verify(marked.key, suspect, asked, control_scores={}, alpha=1e-3)
            assert (found.decision, found.exit_code) == ("not shown", 1), name

    def test_witnesses_and_queries_are_the_same_to_the_bit_under_other_directions(self, marked, tiny, asked):
        """The whole production path up to the test, with nothing changed but the stream of directions."""
        one, two = marked.key, replace(marked.key, redraw=1)
        assert abs(np.vdot(one.directions(), two.directions())) < 0.5 * K
        for a, b in zip(one.queries(asked), two.queries(asked), strict=True):
            assert torch.equal(a, b)
        for suspect in (marked.encoder, tiny(8)):
            seen = []
            for key in (one, two):
                answers = (suspect.embed(batch) for batch in key.queries(asked))
                seen.append(key.witnesses(key.moments(answers, asked)))
            assert seen[0].keys() == seen[1].keys()
            for name, (v, basis) in seen[0].items():
                assert np.array_equal(v, seen[1][name][0]), name
                assert (basis is None) == (seen[1][name][1] is None)
                assert basis is None or np.array_equal(basis, seen[1][name][1])
                assert v.any()

    def test_pvalues_of_innocents_are_uniform_over_whole_pipelines(self, tiny, images, asked):
        """Fresh master secrets, marking and all. One witness alone, since Bonferroni over all leaves p too large."""
        clean, logits = tiny(7), np.random.default_rng(0).normal(size=(D, 10))
        suspects = {
            "F": clean,
            "independent": tiny(8),
            "logits of F": Answers(lambda batch: clean.embed(batch) @ logits),
            "another key's": HEAD.watermark(clean, images(400), secret=Secret.from_seed(1000)).encoder,
        }
        suspects, n = {name: remembered(suspect, asked) for name, suspect in suspects.items()}, 60
        each = {name: [] for name in suspects}
        for seed in range(n):
            key = HEAD.watermark(clean, images(400), secret=Secret.from_seed(seed)).key
            for name, suspect in suspects.items():
                moments = key.moments((suspect.embed(batch) for batch in key.queries(asked)), asked)
                each[name].append(key.test(one_witness(key, moments), n_queries=moments.n).pvalue)
        witness, basis = key.witnesses(moments)["predicted"]
        assert np.array_equal(one_witness(key, moments)["predicted"][0], witness)
        assert np.array_equal(one_witness(key, moments)["predicted"][1], basis)
        pvalues = [stats.kstest(values, "uniform").pvalue for values in each.values()]
        assert min(pvalues) * len(pvalues) > 0.01

    def test_corrects_for_every_witness(self, marked, tiny, asked):
        found = score_suspect(marked.key, tiny(8), asked).evidence
        answers = (tiny(8).embed(batch) for batch in marked.key.queries(asked))
        witnesses = marked.key.witnesses(marked.key.moments(answers, asked))
        alone = [marked.key.test({name: w}, n_queries=200).log2_pvalue for name, w in witnesses.items()]
        assert len(witnesses) == found.details["n_witnesses"] == 10
        assert found.log2_pvalue == pytest.approx(min(0, min(alone) + np.log2(10)))
        narrow = Answers(lambda batch: tiny(8).embed(batch)[:, :10])
        assert score_suspect(marked.key, narrow, asked).evidence.details["n_witnesses"] == 7

    def test_bits_end_at_the_secret(self, marked):
        perfect = {"own_space": (marked.key.directions(), None)}
        found = marked.key.test(perfect, n_queries=9)
        assert found.log2_pvalue == -256
        assert found.details["log2_pvalue_uncapped"] < -300
        with pytest.raises(RefusedError):
            verify(marked.key, Answers(None), None, control_scores={}, alpha=2.0**-300)

    def test_missing_answers_count_as_zero(self, marked, asked):
        key = marked.key
        whole = [marked.encoder.embed(batch) for batch in key.queries(asked)]
        half = [part * (np.arange(len(part)) % 2)[:, None] for part in whole]
        full, less = (key.statistic(iter(parts), asked) for parts in (whole, half))
        assert less.n_queries == full.n_queries == 200
        assert less.evidence.statistic < full.evidence.statistic
        nothing = key.statistic([np.zeros_like(part) for part in whole], asked)
        assert nothing.evidence.pvalue == 1

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (lambda batch: np.full((len(batch), D), np.nan), "NaN"),
            (lambda batch: np.ones((len(batch) - 1, D)), "gave 127 answers"),
            (lambda batch: np.ones(len(batch)), "shape"),
        ],
    )
    def test_hostile_suspects(self, marked, asked, answer, message):
        with pytest.raises(SuspectError, match=message):
            score_suspect(marked.key, Answers(answer), asked)

    def test_wide_answers_are_folded_and_still_show_the_mark(self, marked, tiny, asked):
        """Zeros behind the answers change no inner product; without folding they took memory by their square."""
        bits = {}
        for name, encoder in (("marked", marked.encoder), ("innocent", tiny(8))):
            for width in (500, 16_384):
                padded = Answers(lambda b, e=encoder, w=width: np.pad(e.embed(b), ((0, 0), (0, w - D))))
                bits[name, width] = -score_suspect(marked.key, padded, asked).evidence.log2_pvalue
        assert bits["marked", 16_384] > 0.8 * bits["marked", 500] > 50
        assert max(bits["innocent", width] for width in (500, 16_384)) < 10
        rows = np.random.default_rng(0).normal(size=(40, 5000))
        np.testing.assert_allclose(folded(rows) @ folded(rows).T / 5000, rows @ rows.T / 5000, atol=0.12)

    @pytest.mark.parametrize("value", [0.0, 1.0, 1e30, 1e-30])
    def test_constant_suspects_show_nothing(self, marked, asked, value):
        constant = Answers(lambda batch: np.full((len(batch), D), value, np.float32))
        assert score_suspect(marked.key, constant, asked).evidence.pvalue == 1

    def test_answers_that_do_not_fit_the_queries(self, marked, asked):
        parts = [np.ones((128, D)), np.ones((72, D))]
        with pytest.raises(SuspectError, match="asks 200 queries"):
            marked.key.statistic(parts[:1], asked)
        with pytest.raises(SuspectError, match="more answers came"):
            marked.key.statistic([*parts, np.ones((1, D))], asked)
        with pytest.raises(SuspectError, match="change their width"):
            marked.key.statistic([parts[0], np.ones((72, 3))], asked)

    def test_too_few_items(self, marked, images):
        with pytest.raises(UsageError, match="asks about 200 items, but"):
            list(marked.key.queries(images(199)))

    def test_comes_back_from_its_folder(self, marked, asked, tmp_path):
        save_key(marked.key, tmp_path / "key")
        again = load_key(tmp_path / "key")
        assert isinstance(again, ExactKey)
        assert np.array_equal(again.directions(), marked.key.directions())
        one, two = (score_suspect(key, marked.encoder, asked).evidence for key in (again, marked.key))
        assert one == two

    def test_what_was_changed_is_refused_or_has_other_directions(self, marked):
        fields, tensors = marked.key.to_parts()
        weight = next(name for name in tensors if name.startswith("clean.") and tensors[name].ndim == 4)
        with pytest.raises(KeyFileError, match="not the one that its streams are bound to"):
            ExactKey.from_parts(fields, {**tensors, weight: tensors[weight] + 1})
        moved = ExactKey.from_parts(fields, {**tensors, "bank.mean": tensors["bank.mean"] + 1e-9})
        assert abs(np.vdot(moved.directions(), marked.key.directions())) < 0.5 * K
        for changed, message in (
            ({**tensors, "bank.phases": torch.ones(3)}, "fit together"),
            ({name: t for name, t in tensors.items() if name != "bank.scale"}, "fit together"),
        ):
            with pytest.raises(KeyFileError, match=message):
                ExactKey.from_parts(fields, changed)
        for lacking in fields:
            with pytest.raises(KeyFileError, match=f"lacks '{lacking}'|not the one that its streams"):
                ExactKey.from_parts({n: v for n, v in fields.items() if n != lacking}, tensors)
        with pytest.raises(KeyFileError, match="fit together"):
            ExactKey.from_parts({**fields, "protocol": {**fields["protocol"], "epsilon": "0.3"}}, tensors)
        for whole in ("", "ab", "AB" * 32, 5):
            with pytest.raises(KeyFileError, match="whole_bank is no hash"):
                ExactKey.from_parts({**fields, "whole_bank": whole}, tensors)
        for endless in ("redraw", "sub_keys"):
            with pytest.raises(KeyFileError, match="fit together"):
                ExactKey.from_parts({**fields, endless: float("inf")}, tensors)

    def test_shows_nothing_of_the_secret(self, marked):
        assert marked.key.secret.reveal().hex() not in repr(marked.key)


class TestDistilled:
    def test_learns_the_head_and_moves_no_statistics(self, tiny, images):
        """On noise nothing carries over to other images, so it is read off those that it was learned on."""
        scheme = Exact(SMALL, steps=250, batch_size=32, learning_rate=3e-3)
        clean = tiny(7)
        made = scheme.watermark(clean, images(400), secret=Secret.from_seed(1))
        losses = made.history.losses["loss"]
        assert losses[-1] < 0.85 * losses[0]
        assert made.encoder.architecture == clean.architecture
        before, after = clean.module.state_dict(), made.encoder.module.state_dict()
        assert all(torch.equal(before[n], after[n]) for n in before if "running" in n or "batches" in n)
        own, clean_score = (score_suspect(made.key, e, images(400)).evidence for e in (made.encoder, clean))
        assert own.log2_pvalue < -20 < clean_score.log2_pvalue


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be above 0, not 0.0"),
        ({"frequency": float("nan")}, "frequency must be a finite number above 0, not nan"),
        ({"n_features": 0}, "at least 1"),
    ],
)
def test_protocols_that_make_no_sense(settings, message):
    with pytest.raises(UsageError, match=message):
        Protocol(**settings)


def test_banks_that_are_none():
    with pytest.raises(ValueError, match="not the arrays of a bank"):
        Bank.from_arrays({"mean": np.ones(3)})


def test_command_line(tiny, tmp_path: Path):
    save_encoder(tiny(7), tmp_path / "clean")
    save_encoder(tiny(8), tmp_path / "other")
    pictures = np.random.default_rng(0).integers(0, 256, (600, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    line = ("watermark", tmp_path / "clean", "--data", f"{tmp_path}/pictures.npy[0:300]", "--scheme", "exact")
    made = done(*line, "--mode", "head", "--epsilon", "0.2", "--n-queries", "250", "--out", tmp_path / "marked")
    assert made["settings"]["protocol"]["epsilon"] == 0.2
    key, asked = tmp_path / "marked/key", ("--data", f"{tmp_path}/pictures.npy[300:600]")
    assert done("verify", key, tmp_path / "marked/encoder", *asked)["null"] == "exact"
    assert sslguard("verify", key, tmp_path / "other", *asked).code == 1
    for wrong, words in (
        ((*line, "--shadow-rate", "0.1"), "--shadow-rate belongs to --scheme sslguard"),
        ((*line, "--control", "shipped", "--verify-data", "x"), "needs no controls"),
        ((*line[:-1], "sslguard", "--epsilon", "0.1"), "--epsilon belongs to --scheme exact"),
    ):
        ran = sslguard(*wrong, "--out", tmp_path / "no")
        assert (ran.code, words in ran.err) == (2, True), ran.err


class TestPower:
    def test_what_comes_is_what_was_expected(self):
        """Synthetic suspects of a known fidelity, made as the model says; z within an eighth, or 0.8: eight draws."""
        rng = np.random.default_rng(0)
        protocol = Protocol(components=4, n_features=8, n_statistics=0)
        h = unit_rows(rng.normal(size=(6000, 24)) * np.linspace(1, 0.2, 24) + 0.4)
        power = expected_power(h, np.zeros((6000, 96)), protocol)
        for n, fidelity in ((300, 1.0), (300, 0.6), (3000, 0.8), (3000, 0.4)):
            z = []
            for seed in range(8):
                bank = Bank.draw(Secret.from_seed(seed), h, np.zeros((6000, 96)), protocol, b"x")
                u, other = (draw_directions(Secret.from_seed(seed), 8, 24, name) for name in (b"u", b"other"))
                rows = h[rng.permutation(6000)[:n]]
                mark = fidelity * u + np.sqrt(1 - fidelity**2) * other
                noise = rng.multivariate_normal(np.zeros(24), np.cov(h.T), size=n)
                phi = bank.features(rows, np.zeros((n, 96)))
                g = rows + protocol.epsilon / np.sqrt(8) * phi @ mark @ bank.geometry.spread
                g += np.sqrt(1 / fidelity**2 - 1) * noise
                moments = Moments(24, 8, 24)
                moments.update(rows, phi, g)
                v = witness("own_space", moments, bank.geometry.spread)[0]
                z.append(direction_test(v, u, n_queries=n).statistic)
            assert np.mean(z) == pytest.approx(power.cosine(n, fidelity) * np.sqrt(8 * 24), rel=0.125, abs=0.8)

    def test_least_number_of_queries(self):
        h = np.random.default_rng(0).normal(size=(2000, 24)) + 0.4
        power = expected_power(h, np.zeros((len(h), 96)), Protocol(components=4, n_statistics=0))
        n = power.n_queries(32, 0.8)
        assert power.bits(n, 0.8) >= 32 > power.bits(n - 1, 0.8)
        assert power.cosine(25, 1.0) == 0  # a linear fit on 24 columns and a constant leaves nothing
        assert power.n_queries(256, 0.05) is None
        for bad in (0, 257):
            with pytest.raises(UsageError, match="bits must lie in"):
                power.n_queries(bad, 0.5)
        with pytest.raises(UsageError, match="fidelity must lie in"):
            power.cosine(100, 1.5)
        with pytest.raises(UsageError, match="at least 48 items"):
            expected_power(h[:47], np.zeros((47, 96)), Protocol(components=4, n_statistics=0))

    def test_charges_for_all_ten_witnesses(self):
        h = np.random.default_rng(0).normal(size=(2000, 24)) + 0.4
        power = expected_power(h, np.zeros((len(h), 96)), Protocol(components=4, n_statistics=0), seeds=(0,))
        alone = -float(log2_tail(power.cosine(500, 0.5), power.n_features * power.dim))
        assert alone - power.bits(500, 0.5) == pytest.approx(np.log2(10))

    def test_command_line(self, tiny, tmp_path: Path):
        save_encoder(tiny(7), tmp_path / "clean")
        pictures = np.random.default_rng(0).integers(0, 256, (300, 16, 16), dtype=np.uint8)
        np.save(tmp_path / "pictures.npy", pictures)
        line = ("power", tmp_path / "clean", "--data", tmp_path / "pictures.npy", "--bits", 64, "--fidelity", 0.9)
        found = done(*line, "--out", tmp_path / "power.svg")
        assert found["queries"]["0.9"]["64.0"] > 65
        assert (tmp_path / "power.svg").read_bytes().startswith(b"<?xml")
        assert sslguard(*line, "--out", tmp_path / "power.gif").code == 2


def test_answers_that_are_there_are_not_asked_for_again(marked, images):
    clean, data = marked.key.clean, images(400)
    answers = embed_all(clean, data)
    psi = all_statistics(clean, data)
    both = [DistilMark(Exact(SMALL), clean, marked.encoder.clone(), data, answers[:n], psi[:n]) for n in (400, 399)]
    some = np.array([3, 1, 399])
    torch.testing.assert_close(both[0].load(some).target, both[1].load(some).target, rtol=1e-4, atol=1e-5)


def test_a_key_with_impossible_numbers_failed_and_no_suspect_did(marked, images):
    """Finite numbers whose features overflow: nobody's answers are to blame."""
    bank = marked.key.bank
    worn = replace(bank, offset=np.full_like(bank.offset, 1.7e308), scale=np.full_like(bank.scale, 0.5))
    with pytest.raises(KeyFileError, match="the key is damaged"):
        score_suspect(replace(marked.key, bank=worn), marked.encoder, images(400))
