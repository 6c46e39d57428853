"""Tracing: who is named, who is not, and the same result however the list of recipients is cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from helpers.claim_bed import Answers
from helpers.command_line import done, sslguard
from sslguard import api
from sslguard.crypto.secrets import Secret, first_normals
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import save_encoder
from sslguard.errors import RefusedError, UsageError
from sslguard.schemes.base import Watermarked
from sslguard.schemes.exact.answers import beyond, without
from sslguard.schemes.exact.bank import LEFT, recipient_stream
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.marking import headed
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import save_key
from sslguard.stats.corrections import fisher, fisher_rows
from sslguard.stats.left import left_test, log2_share_tail, log2_share_tails
from sslguard.stats.spectra import Spectra
from sslguard.tracing import trace as tracing
from sslguard.tracing.recipients import Recipient, add, revoke, rotate
from sslguard.tracing.screening import BLOCK, Drawing, merged, screen
from sslguard.tracing.trace import corrected_common, processes, shortlist, trace_spectra, trace_suspect
from sslguard.verification.verdict import score_suspect

SCHEME = Exact(Protocol(n_queries=250), mode="head", largest=0.1, share=0.6, overlap=0)
TIME = "2026-12-01T00:00:00+00:00"
MANY = [Recipient(f"customer {i}", (TIME,)) for i in range(12)]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few take both tests in full: what is left out has p = 1."""
    monkeypatch.setattr(tracing, "FINALISTS", 3)


@pytest.fixture(scope="module")
def marked(tiny: Callable[..., Encoder], images: Callable[..., Data]) -> Watermarked:
    return SCHEME.watermark(tiny(7), images(400), secret=Secret.from_seed(1))


@pytest.fixture(scope="module")
def key(marked: Watermarked) -> ExactKey:
    assert isinstance(marked.key, ExactKey)
    return marked.key


@pytest.fixture(scope="module")
def asked(images: Callable[..., Data]) -> Data:
    return images(300, seed=5)


@pytest.fixture(scope="module")
def handed(key: ExactKey) -> Encoder:
    """What customer 11 gets."""
    return headed(key.clean, key.bank, *key.handed_to(key.recipient("customer 11")))


def spectra_of(key: ExactKey, encoder: Encoder, data: Data) -> Spectra:
    answers = [encoder.embed(batch) for batch in key.queries(data)]
    return key.spectra(iter(answers), data)[0]


class TestSecrets:
    def test_each_name_and_each_rotation_has_its_own(self, key: ExactKey) -> None:
        """Also where digits of a rotation could be read as part of a name."""
        given = [("a", 0), ("b", 0), ("a", 1), ("0 a", 0), ("1 a", 0), ("a", 11), ("1 a", 1)]
        secrets = {key.recipient(*one).secret.reveal() for one in given}
        assert len(secrets) == len(given)
        assert key.secret.reveal() not in secrets

    def test_two_recipients_share_the_common_mark_and_nothing_else(self, key: ExactKey) -> None:
        one, other = (key.handed_to(key.recipient(name)) for name in ("a", "b"))
        r = key.protocol.rank
        np.testing.assert_array_equal(one[0][:, :r], other[0][:, :r])
        np.testing.assert_array_equal(one[1][:r], other[1][:r])
        assert abs(np.corrcoef(one[0][:, r:].ravel(), other[0][:, r:].ravel())[0, 1]) < 0.2
        assert np.isclose(one[1][r:], other[1][r:]).mean() < 0.1
        np.testing.assert_allclose(one[1][:r], math.sqrt(0.5) * key.rows())

    def test_both_marks_together_have_the_size_of_one(self, key: ExactKey, asked: Data) -> None:
        functions = key._clean_answers(asked, 250)[1]
        alone = np.square(key.mark(functions)).sum(1).mean()
        together = [key.handed_to(key.recipient(str(i))) for i in range(20)]
        sizes = [np.square(functions @ mixtures @ rows).sum(1).mean() for mixtures, rows in together]
        assert np.mean(sizes) == pytest.approx(alone, rel=0.25)

    def test_the_key_of_a_recipient_says_nothing_of_the_master(self, key: ExactKey) -> None:
        one = key.recipient("a")
        assert key.secret.reveal().hex() not in repr(one.to_parts()[0])
        assert one.context == replace(one, _embedded={}).context


class TestScreening:
    def test_blocks_draw_what_each_key_draws(self, key: ExactKey) -> None:
        drawing = drawing_of(key)
        drawn = drawing.draw([recipient_stream("a", 0), recipient_stream("Zoë", 3)])
        for found, one in zip(drawn, (key.recipient("a"), key.recipient("Zoë", 3)), strict=True):
            left = one.left()
            np.testing.assert_allclose(found / np.linalg.norm(found), left / np.linalg.norm(left), rtol=1e-12)

    def test_first_normals_are_those_of_the_streams(self) -> None:
        secrets = [Secret.from_seed(i) for i in range(3)]
        expected = [one.stream("x", b"y").normal((7,)) for one in secrets]
        found = first_normals([one.derive("x", b"y").reveal() for one in secrets], 7)
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize(("dimension", "columns"), [(64, 2), (64, 4), (48, 8), (64, 1), (64, 3), (4, 4), (60, 24)])
    def test_tails_of_many_shares_are_those_of_each(self, dimension: int, columns: int) -> None:
        shares = np.array([0.0, 1e-9, 0.03, 0.2, 0.7, 0.99, 1 - 1e-9])
        expected = [log2_share_tail(x, 1 - x, dimension, columns) for x in shares]
        np.testing.assert_allclose(log2_share_tails(shares, dimension, columns), expected, rtol=1e-6, atol=1e-9)

    def test_fisher_of_rows_is_that_of_each(self) -> None:
        values = -np.random.default_rng(0).exponential(30, (50, 4))
        np.testing.assert_allclose(fisher_rows(values), [fisher(row) for row in values], rtol=1e-9)
        assert fisher_rows(np.zeros((1, 4)))[0] == 0

    def test_tails_are_those_of_the_exact_left_test(self, key: ExactKey, handed: Encoder, asked: Data) -> None:
        spectra = spectra_of(key, handed, asked)
        found = shortlist(key, spectra, [recipient_stream(one.name, 0) for one in MANY])
        for tail, place in zip(found.log2_tails, found.places, strict=True):
            left = key.recipient(MANY[place].name).left()
            best = min(left_test(witness, left) for witness in key.left_witnesses(spectra).values())
            assert tail == pytest.approx(best, rel=1e-6, abs=1e-6)

    def test_a_list_cut_in_pieces_gives_the_same(self, key: ExactKey, handed: Encoder, asked: Data) -> None:
        witnesses = list(key.left_witnesses(spectra_of(key, handed, asked)).values())
        names = [recipient_stream(f"customer {i}", 0) for i in range(7 * BLOCK - 50)]
        whole = screen(witnesses, drawing_of(key), names, most=50)
        assert whole.places[0] == 11
        for count in (3, 7):
            cut = tracing._pieces(len(names), count, BLOCK)
            assert len(cut) == count
            parts = [screen(witnesses, drawing_of(key), names[a:b], most=50, start=a) for a, b in cut]
            found = merged(parts, 50)
            np.testing.assert_array_equal(found.places, whole.places)
            np.testing.assert_array_equal(found.log2_tails, whole.log2_tails)

    def test_of_a_suspect_without_evidence_every_tail_is_one(self, key: ExactKey) -> None:
        witness = np.zeros((key.bank.size, 4))
        found = screen([witness], drawing_of(key), ["a", "b"], most=5)
        assert found.log2_tails.tolist() == [0, 0]

    def test_tails_of_innocents_are_uniform(self, key: ExactKey) -> None:
        witness = np.linalg.qr(np.random.default_rng(1).standard_normal((key.bank.size, 4)))[0]
        found = screen([witness], drawing_of(key), [f"{i}" for i in range(4000)], most=4000)
        assert stats.kstest(2.0**found.log2_tails, "uniform").pvalue > 1e-3


class TestTrace:
    def test_names_whose_copy_it_is_and_nobody_else(self, key: ExactKey, handed: Encoder, asked: Data) -> None:
        found = trace_suspect(key, handed, asked, MANY, alpha=1e-6)
        assert found.named == ["customer 11"]
        assert found.derived
        assert found.exit_code == 0
        assert (found.n_compared, found.n_recipients) == (12, 12)
        first, answers = found.compared[0], [handed.embed(batch) for batch in key.queries(asked)]
        freed, _ = key.spectra(iter(answers), asked, known=key.mixtures())
        expected = max(key.recipient("customer 11").sides(freed).both, -256)
        assert first.log2_pvalue == pytest.approx(expected + math.log2(2 * 12))
        assert -found.common_log2_pvalue > 60

    @pytest.mark.parametrize("suspect", ["clean", "independent", "whole"])
    def test_names_nobody_for_innocents_and_for_the_common_mark_alone(
        self, suspect: str, key: ExactKey, marked: Watermarked, tiny: Callable[..., Encoder], asked: Data
    ) -> None:
        encoder = {"clean": tiny(7), "independent": tiny(8), "whole": marked.encoder}[suspect]
        found = trace_suspect(key, encoder, asked, MANY, alpha=0.01)
        assert found.named == []
        assert found.exit_code == 1
        assert found.derived == (suspect == "whole")
        assert len(found.compared) == 3

    def test_the_same_in_threads_as_here(self, key: ExactKey, handed: Encoder, asked: Data) -> None:
        spectra = spectra_of(key, handed, asked)
        here = trace_spectra(key, spectra, MANY, alpha=0.01)
        with ThreadPoolExecutor(3) as threads:
            assert trace_spectra(key, spectra, MANY, alpha=0.01, pool=threads, workers=7) == here

    @pytest.mark.heavy
    def test_the_same_in_processes_as_here(self, key: ExactKey, handed: Encoder, asked: Data) -> None:
        spectra = spectra_of(key, handed, asked)
        with processes(2) as pool:
            assert pool is not None
            found = trace_spectra(key, spectra, MANY, alpha=0.01, pool=pool, workers=2)
        assert found == trace_spectra(key, spectra, MANY, alpha=0.01)

    def test_a_secret_that_was_rotated_out_is_still_found(self, key: ExactKey, handed: Encoder, asked: Data) -> None:
        rotated = [one if i != 11 else Recipient(one.name, (TIME, TIME), TIME) for i, one in enumerate(MANY)]
        found = trace_suspect(key, handed, asked, rotated, alpha=1e-6)
        assert found.named == ["customer 11"]
        assert (found.compared[0].rotation, found.compared[0].revoked) == (0, TIME)
        assert found.n_compared == 13

    def test_more_recipients_and_more_claims_take_bits_off(self, key: ExactKey, handed: Encoder, asked: Data) -> None:
        spectra = spectra_of(key, handed, asked)
        few, many = (trace_spectra(key, spectra, some, alpha=0.01)[0] for some in (MANY[6:], MANY))
        claims = trace_spectra(key, spectra, MANY, alpha=0.01, n_claims=8)[0]
        assert many.log2_pvalue - few.log2_pvalue == pytest.approx(1)
        assert claims.log2_pvalue - many.log2_pvalue == pytest.approx(3)
        common = key.test(*key.spectra(iter([handed.embed(b) for b in key.queries(asked)]), asked))
        assert corrected_common(common, 4) == pytest.approx(common.log2_pvalue + 3)

    def test_left_out_witnesses_are_charged_for(self, key: ExactKey, handed: Encoder, asked: Data) -> None:
        spectra, one = spectra_of(key, handed, asked), key.recipient("customer 11")
        quick, full = one.sides(spectra, tracing.QUICK), one.sides(spectra)
        assert len(quick.each) == len(full.each) - 2
        assert quick.right >= full.right
        assert quick.left == full.left

    def test_innocents_are_named_no_more_often_than_the_level_says(
        self, key: ExactKey, tiny: Callable[..., Encoder], asked: Data
    ) -> None:
        """24 lists of 3 recipients against one innocent's answers: recipients have half of the level, so 6 expected."""
        spectra, count = spectra_of(key, tiny(8), asked), 0
        for i in range(24):
            fresh = [Recipient(f"{i}/{j}", (TIME,)) for j in range(3)]
            count += any(one.named for one in trace_spectra(key, spectra, fresh, alpha=0.5))
        assert count <= stats.binom.ppf(1 - 1e-4, 24, 0.25)

    def test_a_coalition_frames_nobody(self, key: ExactKey, asked: Data) -> None:
        """The average of two copies names its two members alone; the common mark stands in it whole."""
        copies = [headed(key.clean, key.bank, *key.handed_to(key.recipient(f"customer {i}"))) for i in (3, 4)]
        average = Answers(lambda batch: sum(one.embed(batch) for one in copies) / 2)
        found = trace_suspect(key, average, asked, MANY, alpha=0.01)
        assert set(found.named) <= {"customer 3", "customer 4"}
        assert found.named
        assert found.derived

    def test_pvalues_of_those_outside_a_coalition_are_never_below_uniform(self, key: ExactKey, asked: Data) -> None:
        """Also where the suspect holds the common mark and others' whole, and the common one was taken off."""
        copies = [headed(key.clean, key.bank, *key.handed_to(key.recipient(f"customer {i}"))) for i in (3, 4)]
        answers = [sum(one.embed(batch) for one in copies) / 2 for batch in key.queries(asked)]
        spectra, _ = key.spectra(iter(answers), asked, known=key.mixtures())
        sides = [key.recipient(f"outsider {i}").sides(spectra, ("own_space", "difference")) for i in range(200)]
        for side in ("left", "right", "both"):
            pvalues = [2.0 ** getattr(one, side) for one in sides]
            assert stats.kstest(pvalues, "uniform", alternative="greater").pvalue > 1e-3
        assert abs(stats.spearmanr([one.left for one in sides], [one.right for one in sides])[0]) < 0.25

    def test_what_the_common_mark_adds_is_taken_off_first(self, key: ExactKey, handed: Encoder, asked: Data) -> None:
        answers = [handed.embed(batch) for batch in key.queries(asked)]
        freed, _ = key.spectra(iter(answers), asked, known=key.mixtures())
        assert key.sides(freed).left > -15
        assert key.recipient("customer 11").sides(freed).both < -60
        silent = np.concatenate(answers).astype(np.float64)
        silent[::3] = 0
        h, functions = key._clean_answers(asked, len(silent))
        left = without(silent, beyond(functions @ key.mixtures(), h))
        assert not left[::3].any()
        assert left[1::3].any(axis=1).all()

    def test_nobody_is_asked_where_no_level_can_be_reached(self, key: ExactKey, asked: Data) -> None:
        def never(batch: Any) -> Any:
            raise AssertionError

        with pytest.raises(RefusedError):
            trace_suspect(key, Answers(never), asked, MANY, alpha=1e-80)
        with pytest.raises(UsageError, match="no recipients"):
            trace_suspect(key, Answers(never), asked, [], alpha=0.01)


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Encoder]) -> tuple[Path, Path, str]:
    """A folder, a key in it that was made with 400 images, and these and others as a file."""
    root = tmp_path_factory.mktemp("tracing")
    save_encoder(tiny(7), root / "clean")
    images = np.random.default_rng(0).integers(0, 256, (700, 16, 16), dtype=np.uint8)
    np.save(root / "images.npy", images)
    words = ("--mode", "head", "--n-queries", "250", "--overlap", "0", "--quiet")
    done("watermark", root / "clean", "--data", f"{root}/images.npy[0:400]", "--out", root / "marked", *words)
    return root, root / "marked" / "key", f"{root}/images.npy"


class TestCommands:
    def test_from_a_name_to_a_trace(self, bed: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
        root, key, data = bed
        monkeypatch.chdir(root)
        added = done("recipients", "add", key, "acme", "bob")
        assert added["added"] == 2
        mark = ("watermark", root / "clean", "--data", f"{data}[0:400]", "--key", key, "--mode", "head", "--quiet")
        made = done(*mark, "--recipient-mark", "acme", "--out", root / "acme")
        assert made["took"]
        assert not (root / "acme" / "key").exists()
        suspect = ("trace", key, root / "acme" / "encoder", "--data", f"{data}[400:700]")
        ran = sslguard(*suspect, "--json")
        assert ran.code == 0
        assert ran.json["named"] == ["acme"]
        assert ran.json["common"]["decision"] == "derived"
        assert ran.json["n_compared"] == 2
        assert sslguard(*suspect, "--json", "--cluster", "debug", "--workers", 2).json == ran.json
        assert not list(root.glob(".sslguard-trace-*"))
        spoken = sslguard(*suspect)
        assert "named        acme" in spoken.out
        assert "common mark  derived" in spoken.out
        clean = sslguard("trace", key, root / "clean", "--data", f"{data}[400:700]", "--json")
        assert clean.code == 1
        assert clean.json["named"] == []
        verified = sslguard("verify", key, root / "acme" / "encoder", "--data", f"{data}[400:700]", "--json")
        assert verified.code == 0
        done("recipients", "revoke", key, "acme")
        refused = sslguard(*mark, "--recipient-mark", "acme", "--out", root / "again")
        assert refused.code == 2
        assert "revoked" in refused.err
        listed = done("recipients", "list", key)
        assert [one["name"] for one in listed["recipients"]] == ["acme", "bob"]

    def test_a_file_of_names(self, bed: tuple[Path, Path, str], tmp_path: Path) -> None:
        (tmp_path / "names.txt").write_text("one\ntwo\n", encoding="utf-8")
        assert done("recipients", "add", bed[1], "--names", tmp_path / "names.txt")["added"] == 2

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--recipient-mark", "nobody"), "no recipient 'nobody'"),
            (("--recipient-mark", "carol", "--data", "DATA[0:500]"), "was not made with"),
            (("--recipient-mark", "carol", "--overlap", "0.5"), "is fixed by the key"),
            (("--recipient-mark", "carol", "--preset", "strong"), "no more"),
            (("--recipient-mark", "carol", "--encoder", "random:resnet-narrow"), "not the clean encoder"),
            ((), "go together"),
        ],
    )
    def test_what_does_not_go_together_is_refused(
        self, words: tuple[str, ...], message: str, bed: tuple[Path, Path, str], tmp_path: Path
    ) -> None:
        root, key, data = bed
        given = {
            "--data": "DATA[0:400]",
            "--encoder": str(root / "clean"),
            **dict(zip(words[::2], words[1::2], strict=True)),
        }
        if not sslguard("recipients", "add", key, "carol").code:
            assert "carol" in sslguard("recipients", "list", key).out
        encoder = given.pop("--encoder")
        options = [word.replace("DATA", data) for pair in given.items() for word in pair]
        ran = sslguard("watermark", encoder, *options, "--mode", "head", "--key", key, "--out", tmp_path / "out")
        assert ran.code == 2
        assert message in ran.err
        assert not (tmp_path / "out").exists()

    def test_weights_of_two_recipients_stand_in_different_orders(
        self, key: ExactKey, images: Callable[..., Data], tmp_path: Path
    ) -> None:
        from sslguard.data.watched import Watched

        watched = Watched(images(400))
        watched.take_all()
        save_key(key, tmp_path / "key", marked=watched.fingerprints)
        add(tmp_path / "key", ["a", "b"])
        settings = {"steps": 2, "batch_size": 8}
        copies = [
            api.watermark_for(name, tmp_path / "key", images(400), mode="distilled", settings=settings)
            for name in ("a", "b")
        ]
        states = zip(*(one.encoder.module.state_dict().values() for one in copies), strict=True)
        assert any(not np.allclose(a.numpy(), b.numpy(), atol=0.05) for a, b in states)

    def test_revoked_and_rotated_names_are_compared(self, bed: tuple[Path, Path, str]) -> None:
        root, key, data = bed
        before = sslguard("trace", key, root / "clean", "--data", f"{data}[400:700]", "--json").json["n_compared"]
        add(key, ["dora"])
        rotate(key, "dora")
        revoke(key, "dora")
        after = sslguard("trace", key, root / "clean", "--data", f"{data}[400:700]", "--json").json["n_compared"]
        assert after == before + 2


def drawing_of(key: ExactKey) -> Drawing:
    return Drawing.bound(
        *(key.secret.reveal(), key.context, key.draw_context + key.bank.digest()),
        stream=LEFT,
        functions=key.bank.size,
        rank=key.protocol.rank,
    )


def test_the_common_mark_is_found_as_before(key: ExactKey, handed: Encoder, asked: Data) -> None:
    assert -score_suspect(key, handed, asked).evidence.log2_pvalue > 60  # pyrefly: ignore[missing-attribute]
