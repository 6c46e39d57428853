"""The exact scheme: its marks, its keys, and what a verification makes of suspects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from helpers.claim_bed import Answers
from helpers.command_line import done, sslguard
from sslguard.crypto.secrets import Secret
from sslguard.encoders.base import embed_all
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.errors import KeyFileError, RefusedError, SuspectError, UsageError
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import load_key, save_key
from sslguard.stats.corrections import fisher
from sslguard.stats.moments import unit_rows
from sslguard.verification.verdict import score_suspect, verify

D = 64
SMALL = Protocol(n_queries=200)
HEAD = Exact(SMALL, mode="head", overlap=0)


@pytest.fixture(scope="module")
def marked(tiny, images):
    return HEAD.watermark(tiny(7), images(400), secret=Secret.from_seed(1))


@pytest.fixture(scope="module")
def asked(images):
    return images(300, seed=5)


def evidence(key, suspect, data):
    return score_suspect(key, suspect, data).evidence


def mapped(encoder, change):
    return Answers(lambda batch: change(encoder.embed(batch).astype(np.float64)))


def gaussian(d: int, m: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((d, m))


def rotation(d: int, seed: int = 2) -> np.ndarray:
    return np.linalg.qr(gaussian(d, d, seed))[0]


class TestMark:
    def test_formula(self, marked, asked):
        """h*(x) = h(x) + √(E/r)·(ψ(x)∘s)·A·G·M of the key's own secrets, with |A|² = |G|² = r."""
        key = marked.key
        f = embed_all(key.clean, asked).astype(float)
        length = np.linalg.norm(f, axis=1, keepdims=True)
        left, right = key.left(), key.right()
        assert np.square(left).sum() == pytest.approx(4)
        assert np.square(right).sum() == pytest.approx(4)
        psi = key.bank.functions(f / length, all_statistics(key.clean, asked))
        mark = psi * key.bank.weights @ left @ right * key.bank.spread @ key.bank.axes
        expected = length * (f / length + np.sqrt(key.size / 4) * mark)
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

    def test_is_bound_to_all_that_the_test_depends_on(self, marked, tiny, images):
        def made(clean=7, seed=0, secret=1, **settings):
            scheme = replace(HEAD, **settings)
            return scheme.watermark(tiny(clean), images(400, seed=seed), secret=Secret.from_seed(secret)).key

        base = marked.key
        others = {
            "secret": made(secret=2),
            "encoder": made(clean=8),
            "data of the bank": made(seed=3),
            "spread": made(protocol=replace(SMALL, spread=7.5)),
            "fewest queries": made(protocol=replace(SMALL, n_queries=201)),
            "redraw": made(redraw=1),
            # Some descriptions make another network of the same weights: one with other answers.
            "architecture": replace(
                base, clean=replace(base.clean, architecture={**base.clean.architecture, "pooling": "mean"})
            ),
        }
        for name, other in others.items():
            for one, two in ((base.left(), other.left()), (base.right()[:, :60], other.right()[:, :60])):
                assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.3, name
        again = made(largest=0.01)  # the size alone may change after the draw
        assert np.array_equal(base.left(), again.left())
        assert np.array_equal(base.right(), again.right())
        assert again.size < base.size


class TestVerification:
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

    def test_behind_maps_and_classifiers(self, marked, tiny, asked):
        """The left side carries what no map takes away; none of it shows an innocent."""
        bent = rotation(D) * np.geomspace(1, 1e-4, D) @ rotation(D, 5)
        mean = embed_all(marked.encoder, asked).mean(0)
        spread = (embed_all(marked.encoder, asked) - mean).std()
        classes = gaussian(D, 10) / spread / 4
        maps = {
            "rotated": (lambda g: g @ rotation(D), 500),
            "condition 1e4": (lambda g: g @ bent, 250),
            "half, rotated": (lambda g: (g @ rotation(D))[:, : D // 2], 200),
            "wider": (lambda g: g @ gaussian(D, 100), 250),
            "logits": (lambda g: (g - mean) @ classes, 30),
            "probabilities of 4 digits": (lambda g: np.round(softmax((g - mean) @ classes, axis=1), 4), 30),
        }
        for name, (change, least) in maps.items():
            found = evidence(marked.key, mapped(marked.encoder, change), asked)
            assert found.details["left_bits"] > min(least, 250) / 2, name
            assert found.statistic > least, name
            assert evidence(marked.key, mapped(tiny(8), change), asked).log2_pvalue > -14, name

    @pytest.mark.parametrize("n", [200, 299, 300, 760])
    def test_asks_the_most_of_the_grid(self, n, marked, images):
        data = images(n, seed=6)
        found = score_suspect(marked.key, marked.encoder, data)
        asks = {200: 200, 299: 200, 300: 300, 760: 750}[n]
        assert marked.key.asks(n) == found.n_queries == found.evidence.n_queries == asks
        batches = list(marked.key.queries(data))
        assert sum(map(len, batches)) == asks
        assert max(map(len, batches)) <= 128

    def test_too_few_items(self, marked, images):
        with pytest.raises(UsageError, match="asks about 200 items, but"):
            list(marked.key.queries(images(199)))

    def test_sums_up_both_sides(self, marked, tiny, asked):
        noisy = mapped(tiny(8), lambda g: g[:, :30])
        for suspect, n_left, n_right in ((tiny(8), 9, 7), (noisy, 9, 4)):
            found = evidence(marked.key, suspect, asked)
            each = {name: value for name, value in found.details.items() if name.startswith("log2 p of ")}
            sides = [[v for k, v in each.items() if k.startswith(f"log2 p of {side}, ")] for side in ("left", "right")]
            assert [len(side) for side in sides] == [n_left, n_right]
            best = [min(0.0, min(side) + np.log2(len(side))) for side in sides]
            assert [found.details["left_bits"], found.details["right_bits"]] == pytest.approx([-one for one in best])
            assert found.log2_pvalue == pytest.approx(fisher(best))

    def test_bits_end_at_the_secret(self, marked, asked):
        found = evidence(marked.key, marked.encoder, asked)
        assert found.log2_pvalue == -256
        assert found.floor == 2.0**-256
        assert found.statistic == -found.details["log2_pvalue_uncapped"] > 300
        with pytest.raises(RefusedError):
            verify(marked.key, Answers(None), None, control_scores={}, alpha=2.0**-300)

    @pytest.mark.parametrize(
        ("changes", "charged"),
        [
            ({}, 0),
            ({"answers": "embeddings"}, 2),
            ({"redraw": 1}, 1),
            ({"redraw": 3}, 2),
            ({"redraw": 7, "answers": "embeddings"}, 5),
        ],
    )
    def test_charges_come_off_after_the_cap(self, changes, charged, tiny, images, asked):
        scheme = replace(HEAD, redraw=changes.get("redraw", 0))
        made = scheme.watermark(tiny(7), images(400), secret=Secret.from_seed(1))
        found = evidence(replace(made.key, answers=changes.get("answers", "auto")), made.encoder, asked)
        assert found.details["log2_pvalue_uncapped"] < -300
        assert found.log2_pvalue == -256 + charged
        assert found.details["charged_bits"] == charged
        assert evidence(replace(made.key, **changes), tiny(8), asked).log2_pvalue <= 0

    def test_what_answers_are_can_be_said(self, marked, tiny, asked):
        """Probabilities as embeddings lose evidence, and answers that are none are refused."""
        spread = embed_all(tiny(7), asked).std() / 4
        suspect = mapped(marked.encoder, lambda g: softmax(g @ gaussian(D, 10) / spread / 40, axis=1))
        auto, said = (evidence(replace(marked.key, answers=kind), suspect, asked) for kind in ("auto", "probabilities"))
        assert auto.statistic == said.statistic
        assert auto.statistic_name.endswith("taken as probabilities")
        for kind in ("embeddings", "logits", "labels"):
            found = evidence(replace(marked.key, answers=kind), suspect, asked)
            assert found.statistic_name.endswith(f"taken as {kind}")
            assert found.statistic != auto.statistic
        with pytest.raises(SuspectError, match="must not be negative"):
            evidence(replace(marked.key, answers="probabilities"), marked.encoder, asked)

    def test_missing_answers_count_as_zero(self, marked, asked):
        key = marked.key
        whole = [marked.encoder.embed(batch) for batch in key.queries(asked)]
        mask = np.arange(300) % 4 > 0
        half = [part * m[:, None] for part, m in zip(whole, np.split(mask, [128, 256]), strict=True)]
        full, less = (key.statistic(iter(parts), asked) for parts in (whole, half))
        assert less.n_queries == full.n_queries == 300
        assert 20 < less.evidence.statistic < full.evidence.statistic
        nothing = key.statistic([np.zeros_like(part) for part in whole], asked)
        assert nothing.evidence.pvalue == 1

    @pytest.mark.parametrize("value", [0.0, 1.0, 1e30, 1e-30])
    @pytest.mark.parametrize("width", [1, 10, D])
    def test_constant_suspects_show_nothing(self, marked, asked, value, width):
        constant = Answers(lambda batch: np.full((len(batch), width), value, np.float32))
        assert evidence(marked.key, constant, asked).pvalue == 1

    def test_one_label_for_all_shows_nothing(self, marked, asked):
        found = evidence(marked.key, Answers(lambda batch: np.eye(10)[[4] * len(batch)]), asked)
        assert (found.pvalue, str(found.log2_pvalue)) == (1, "0.0")

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

    def test_answers_that_do_not_fit_the_queries(self, marked, asked):
        parts = [np.ones((128, D)), np.ones((128, D)), np.ones((44, D))]
        with pytest.raises(SuspectError, match="asks 300 queries"):
            marked.key.statistic(parts[:1], asked)
        with pytest.raises(SuspectError, match="asks 300 queries, but 301 answers came"):
            marked.key.statistic([*parts, np.ones((1, D))], asked)
        with pytest.raises(SuspectError, match="no rows of one width"):
            marked.key.statistic([*parts[:2], np.ones((44, 3))], asked)

    def test_wide_answers_are_folded_and_still_show_the_mark(self, marked, tiny, asked, monkeypatch):
        """Zeros behind the answers change no inner product; without folding they took memory by their square."""
        monkeypatch.setattr("sslguard.schemes.exact.answers.MOST_COLUMNS", 100)  # 1,024 take a second each
        bits = {}
        for name, encoder in (("marked", marked.encoder), ("innocent", tiny(8))):
            for width in (500, 16_384):
                padded = Answers(lambda b, e=encoder, w=width: np.pad(e.embed(b), ((0, 0), (0, w - D))))
                bits[name, width] = evidence(marked.key, padded, asked).statistic
        assert bits["marked", 16_384] > 0.8 * bits["marked", 500] > 50
        assert max(bits["innocent", width] for width in (500, 16_384)) < 10

    def test_clean_answers_are_kept_for_the_next_suspect_of_the_same_data(self, marked, asked, images, monkeypatch):
        key = replace(marked.key, _embedded={})
        evidence(key, marked.encoder, asked)
        n = key.asks(len(asked))
        kept = key._clean_answers(asked, n)
        assert key._clean_answers(asked, n) is kept
        assert key._clean_answers(images(300, seed=9), key.asks(300)) is not kept
        monkeypatch.setattr("sslguard.schemes.exact.key.KEPT_NUMBERS", 10)
        first = key._clean_answers(asked, n)
        assert key._clean_answers(asked, n) is not first


class TestKeyFile:
    def test_comes_back_from_its_folder(self, marked, asked, tmp_path):
        save_key(marked.key, tmp_path / "key")
        again = load_key(tmp_path / "key")
        assert isinstance(again, ExactKey)
        assert np.array_equal(again.left(), marked.key.left())
        assert np.array_equal(again.right(), marked.key.right())
        assert (again.size, again.redraw, again.answers) == (marked.key.size, 0, "auto")
        one, two = (evidence(key, marked.encoder, asked) for key in (again, marked.key))
        assert one == two

    def test_what_was_changed_is_refused_or_has_other_secrets(self, marked):
        fields, tensors = marked.key.to_parts()
        weight = next(name for name in tensors if name.startswith("clean.") and tensors[name].ndim == 4)
        with pytest.raises(KeyFileError, match="not the one that its streams are bound to"):
            ExactKey.from_parts(fields, {**tensors, weight: tensors[weight] + 1})
        moved = ExactKey.from_parts(fields, {**tensors, "bank.mean": tensors["bank.mean"] + 1e-9})
        assert abs(np.corrcoef(moved.left().ravel(), marked.key.left().ravel())[0, 1]) < 0.3
        for changed in (
            {**tensors, "bank.weights": torch.ones(3)},
            {name: t for name, t in tensors.items() if name != "bank.mixing"},
            {**tensors, "bank.spread": -tensors["bank.spread"]},
            {**tensors, "bank.linear": tensors["bank.linear"] * float("nan")},
        ):
            with pytest.raises(KeyFileError, match="fit together"):
                ExactKey.from_parts(fields, changed)

    def test_what_is_missing_is_refused(self, marked):
        fields, tensors = marked.key.to_parts()
        for lacking in fields:
            with pytest.raises(KeyFileError, match=f"lacks '{lacking}'|not the one that its streams"):
                ExactKey.from_parts({n: v for n, v in fields.items() if n != lacking}, tensors)

    @pytest.mark.parametrize(
        "change",
        [
            *({"size": size} for size in (0.0, -0.1, 1.5, float("nan"), float("inf"), "big", None)),
            *({"redraw": n} for n in (-1, 1 << 63, float("inf"), float("nan"), "x", None)),
            *({"sub_keys": n} for n in (0, 17, float("inf"), "x")),
            *({"secret": text} for text in ("", "ab", 5, "zz" * 32, "00" * 33)),
            *({"watermarked_hash": text} for text in ("", "AB" * 32, "a" * 63)),
            *({"protocol": p} for p in (None, {}, [])),
        ],
    )
    def test_impossible_fields_are_refused(self, marked, change):
        fields, tensors = marked.key.to_parts()
        with pytest.raises(KeyFileError):
            ExactKey.from_parts({**fields, **change}, tensors)

    def test_protocols_of_fewer_functions_or_other_rules_are_refused(self, marked):
        fields, tensors = marked.key.to_parts()
        for change in ({"functions": 63}, {"functions": "64"}, {"witnesses": "three-sided"}, {"epsilon": 0.3}):
            with pytest.raises(KeyFileError, match="fit together"):
                ExactKey.from_parts({**fields, "protocol": {**fields["protocol"], **change}}, tensors)

    def test_impossible_numbers_are_the_keys_fault_and_no_suspects(self, marked, images):
        """Finite numbers whose functions overflow: nobody's answers are to blame."""
        worn = replace(marked.key.bank, mixing=np.full_like(marked.key.bank.mixing, 1.7e308))
        with pytest.raises(KeyFileError, match="the key is damaged"):
            evidence(replace(marked.key, bank=worn, _embedded={}), marked.encoder, images(400))

    def test_shows_nothing_of_the_secret(self, marked):
        assert marked.key.secret.reveal().hex() not in repr(marked.key)
        fields, tensors = marked.key.to_parts()
        assert {name for name in tensors if name.startswith("bank.")} == {
            f"bank.{n}" for n in marked.key.bank.to_arrays()
        }
        h = unit_rows(np.random.default_rng(0).normal(size=(50, D)))
        mixed = marked.key.bank.placed(h) @ marked.key.right().T
        assert not any(np.allclose(mixed, t) for t in tensors.values() if t.shape == mixed.shape)
        assert fields["secret"] == marked.key.secret.reveal().hex()


def test_command_line(tiny, tmp_path: Path):
    save_encoder(tiny(7), tmp_path / "clean")
    save_encoder(tiny(8), tmp_path / "other")
    pictures = np.random.default_rng(0).integers(0, 256, (700, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    line = ("watermark", tmp_path / "clean", "--data", f"{tmp_path}/pictures.npy[0:350]", "--scheme", "exact")
    made = done(*line, "--mode", "head", "--rank", "3", "--n-queries", "250", "--out", tmp_path / "marked")
    assert made["settings"]["protocol"]["rank"] == 3
    assert made["took"] is True
    key, asked = tmp_path / "marked/key", ("--data", f"{tmp_path}/pictures.npy[350:700]")
    found = done("verify", key, tmp_path / "marked/encoder", *asked)
    assert (found["null"], found["n_queries"]) == ("exact", 300)
    said = done("verify", key, tmp_path / "marked/encoder", *asked, "--answers", "embeddings")
    assert (found["log2_pvalue"], said["log2_pvalue"]) == (-256, -254)
    assert sslguard("verify", key, tmp_path / "other", *asked).code == 1
    gentle = done(*line, "--preset", "gentle", "--mode", "head", "--out", tmp_path / "gentle")
    assert gentle["settings"]["overlap"] == Exact.gentle().overlap
    for wrong, words in (
        ((*line, "--shadow-rate", "0.1"), "--shadow-rate belongs to --scheme sslguard"),
        ((*line, "--control", "shipped", "--verify-data", "x"), "needs no controls"),
        ((*line[:-1], "sslguard", "--rank", "2"), "--rank belongs to --scheme exact"),
        ((*line, "--preset", "cured"), "gentle"),
    ):
        ran = sslguard(*wrong, "--out", tmp_path / "no")
        assert (ran.code, words in ran.err) == (2, True), ran.err
