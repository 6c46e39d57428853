"""Claims and their audits, as both sides should do them: what is shown, what is written, what decides again."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from helpers.claim_bed import AUTHORITY, COMMITTED, SEED, SEEN, TERMS, Answers, Bed, words
from helpers.command_line import done, sslguard
from helpers.envelopes import disclosed, predicate_of
from sslguard import api
from sslguard.claims.audit import audit
from sslguard.claims.bundle import ANSWERS, read_bundle
from sslguard.claims.derivation import undue_freedom
from sslguard.claims.documents import read_file
from sslguard.claims.openings import read_openings
from sslguard.claims.outcome import Audit, Check, Terms, foretold
from sslguard.claims.page import render_page, write_page
from sslguard.claims.queries import ExaminerData, items_hash
from sslguard.claims.timestamps import read_roots
from sslguard.crypto.secrets import Secret
from sslguard.data.specs import open_data
from sslguard.encoders.folder import save_encoder
from sslguard.errors import ClaimError, OutputError, RefusedError, UsageError
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import open_key, save_key
from sslguard.schemes.sslguard.scheme import CuredSSLGuard, SSLGuard
from sslguard.stats.significance import control_rank_test
from sslguard.suspects.logged import LoggedAnswers

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = {"steps": 1, "batch_size": 4, "trigger_batch": 4, "n_queries": 20}


@pytest.fixture(scope="module")
def marked(tiny, images):
    scheme = Exact(Protocol(n_queries=200), mode="head")
    return scheme.watermark(tiny(7), images(400), secret=Secret.from_seed(1))


@pytest.fixture
def bed(marked, tiny, images, tmp_path):
    return Bed(tmp_path, marked.key, tiny(7), images(290, seed=5))


class TestQueries:
    def test_are_a_function_of_seed_commitment_and_number_of_items(self, images):
        data = images(50)
        drawn = ExaminerData(data, 20, seed="a", commitment="ab" * 32)
        again = ExaminerData(data, 20, seed="a", commitment="ab" * 32)
        assert torch.equal(drawn.take(range(20)), again.take(range(20)))
        others = {
            "seed": ExaminerData(data, 20, seed="b", commitment="ab" * 32),
            "commitment": ExaminerData(data, 20, seed="a", commitment="cd" * 32),
            "items": ExaminerData(data.slice(0, 49), 20, seed="a", commitment="ab" * 32),
        }
        for name, other in others.items():
            assert items_hash(other) != items_hash(drawn), name
            assert other.spec != drawn.spec, name

    def test_golden(self, images):
        """The first items of a seed, as written on the day this was made: other machines must draw the same."""
        drawn = ExaminerData(images(1000), 8, seed=SEED, commitment="ab" * 32)
        assert drawn.indices.tolist() == GOLDEN_ORDER

    def test_uniform(self, images):
        """Each of 20 items is among 5 drawn for a quarter of 400 seeds, within five standard deviations."""
        counts = np.zeros(20)
        for seed in range(400):
            counts[ExaminerData(images(20), 5, seed=str(seed), commitment="ab" * 32).indices] += 1
        assert np.abs(counts - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)

    @pytest.mark.parametrize("seed", ["", "x" * 257, "a\nb", "ü", None])
    def test_seeds_that_are_none(self, images, seed):
        with pytest.raises(UsageError, match="a seed has"):
            ExaminerData(images(5), 2, seed=seed, commitment="ab" * 32)

    def test_every_item_counts(self, images):
        data = images(30)
        assert items_hash(data) == items_hash(images(30)) != items_hash(images(30, seed=1))
        assert items_hash(data.slice(0, 29)) != items_hash(data)

    def test_the_keys_own_order_has_no_say(self, bed):
        """All of the drawn items are asked, each once, whatever order the key puts them in."""
        drawn = ExaminerData(bed.data, 200, seed=SEED, commitment="ab" * 32)
        asked = torch.cat(list(bed.key.queries(drawn))).flatten(1)
        wanted = drawn.take(range(200)).flatten(1)
        assert sorted(map(bytes, asked.numpy())) == sorted(map(bytes, wanted.numpy()))


GOLDEN_ORDER = [839, 524, 889, 53, 680, 807, 683, 402]


class TestExact:
    def test_a_claim_and_its_audit(self, bed, marked):
        verdict = bed.commit().claim(marked.encoder)
        found = bed.audit()
        assert (verdict.decision, found.decision, found.exit_code, found.n_tries) == ("derived", "derived", 0, 1 << 26)
        # Not to the last bit: BLAS sums by where its arrays happen to lie.
        assert found.verdict.significance.statistic == pytest.approx(verdict.significance.statistic, rel=1e-9)
        assert {c.name for c in found.of("passed")} == {
            *("signature", "commitment", "date", "clean encoder", "derivation"),
            *("queries", "answers", "clean embeddings", "statistic", "verdict"),
        }
        assert not found.of("failed", "against", "not checkable")

    def test_asked_again(self, bed, marked):
        bed.commit().claim(marked.encoder)
        found = bed.audit(suspect=marked.encoder)
        assert found.decision == "derived"
        assert "gave the same answers" in words(found, "passed")

    def test_a_suspect_that_says_nothing_when_asked_again_makes_nobody_a_forger(self, bed, marked):
        """It may have gone, or have been told what to leave out: the claimant did neither."""

        def down(batch):
            raise OSError("connection refused")

        bed.commit().claim(marked.encoder)
        found = bed.audit(suspect=Answers(down))
        assert (found.decision, found.exit_code, found.verdict) == ("not checkable", 4, None)
        assert "connection refused" in words(found, "not checkable")
        silent = bed.audit(suspect=Answers(lambda batch: 0 * marked.encoder.embed(batch)))
        assert (silent.decision, silent.exit_code) == ("not shown", 1)
        assert "200 of them are missing or zero now" in words(silent, "against")

    def test_an_innocent(self, bed, tiny):
        verdict = bed.commit().claim(tiny(8))
        found = bed.audit()
        assert (verdict.exit_code, found.decision, found.exit_code) == (1, "not shown", 1)

    def test_without_a_date_the_key_is_taken_for_the_best_of_many(self, bed, marked):
        bed.commit(None).claim(marked.encoder)
        undated = bed.audit(not_after=None)
        assert (undated.decision, undated.n_tries) == ("derived", 1 << 70)
        assert "up to 2^64 keys were tried" in words(undated, "assumed")
        missing = bed.audit()
        assert (missing.decision, missing.exit_code) == ("not checkable", 4)

    def test_without_certificates_a_date_is_only_claimed(self, bed, marked):
        bed.commit().claim(marked.encoder)
        assert bed.audit(roots=()).exit_code == 4
        assert bed.audit(roots=(), not_after=None).n_tries == 1 << 70

    def test_corrections(self, bed, marked):
        """Evidence of some 50 bits passes among few claims, and not among 2^64."""
        weak = Answers(lambda batch: noisy(marked.encoder.embed(batch), share=2.2))
        bits = -bed.commit().claim(weak).significance.log2_pvalue
        assert 35 < bits < 60
        assert bed.audit(alpha=1e-3).decision == "derived"
        shared = 2 ** int(bits)
        assert bed.audit(alpha=1e-3, n_claims=shared).decision == "not shown"
        assert bed.audit(alpha=1e-3, not_after=None).decision == "not shown"
        assert bed.audit(alpha=1e-3, n_claims=1 << 300).decision == "not checkable"

    def test_a_claim_foretells_what_an_audit_decides(self, bed, marked, tiny):
        weak = Answers(lambda batch: noisy(marked.encoder.embed(batch), share=2.2))
        decided = []
        for number, suspect in enumerate((marked.encoder, weak, tiny(8))):
            one = replace(bed, folder=bed.folder / str(number))
            one.folder.mkdir()
            verdict = one.commit().claim(suspect, alpha=1e-3)
            found = [one.audit(alpha=1e-3, **terms).decision for terms in ({}, {"not_after": None})]
            assert [foretold(verdict, dated=dated) for dated in (True, False)] == found
            decided.append(found)
        assert decided == [["derived", "derived"], ["derived", "not shown"], ["not shown", "not shown"]]

    def test_missing_answers_count(self, bed, marked):
        few = Answers(lambda batch: marked.encoder.embed(batch) * (np.arange(len(batch)) % 4 > 0)[:, None])
        bed.commit().claim(few)
        found = bed.audit()
        assert "50 answers are zero" in words(found, "passed")
        # Which quarter is missing might be the claimant's choice, one of many, unless the suspect says so itself.
        assert (found.decision, found.n_tries) == ("derived", math.comb(200, 50) << 26)
        assert bed.audit(not_after=None, alpha=1e-12).exit_code == 4
        again = bed.audit(suspect=few)
        assert (again.decision, again.n_tries) == ("derived", 1 << 26)
        assert again.verdict.significance.n_queries == 200

    def test_logged_answers(self, bed, marked, tmp_path):
        """Answers that were logged elsewhere, a missing one among them, give the same verdict."""
        drawn = ExaminerData(bed.data, 200, seed=SEED, commitment=bed_digest(bed.commit()))
        rows = np.concatenate([marked.encoder.embed(batch) for batch in bed.key.queries(drawn)])
        rows[7] = np.nan
        np.save(tmp_path / "answers.npy", rows)
        verdict = bed.claim(LoggedAnswers(tmp_path / "answers.npy"))
        assert verdict.n_missing == 1
        found = bed.audit()
        assert found.decision == "derived"
        assert "1 answers are zero" in words(found, "passed")
        assert found.n_tries == 200 << 26

    def test_texts(self, tmp_path):
        """Any encoder: here one of texts, which has files beside its weights or none."""
        from sslguard.data.specs import open_data
        from sslguard.encoders.load import load_encoder

        rng = np.random.default_rng(0)
        lines = [" ".join(f"w{i}" for i in rng.zipf(1.3, rng.integers(3, 30)) % 997) for _ in range(1500)]
        (tmp_path / "t.txt").write_text("\n".join(lines))
        clean, data = load_encoder("random:bag-of-words"), open_data(f"text:{tmp_path}/t.txt")
        made = Exact(Protocol(n_queries=120), mode="head").watermark(
            clean, data.slice(0, 1000), secret=Secret.from_seed(3)
        )
        texts = Bed(tmp_path, made.key, load_encoder("random:bag-of-words"), data.slice(1000, 1500)).commit()
        assert texts.claim(made.encoder, alpha=0.01).decision == texts.audit(alpha=0.01).decision


def noisy(answers, share=5.0):
    """Answers with Gaussian noise as long as `share` of the first of them, the same whenever they are asked for."""
    noise = np.random.default_rng(0).normal(size=answers.shape)
    return (answers + share * np.linalg.norm(answers[0]) / 8 * noise).astype(np.float32)


def bed_digest(bed):
    from sslguard.claims.commitment import parse_commitment

    return parse_commitment(bed.commitment.read_bytes(), "it").document.digest


@pytest.fixture(scope="module")
def controls(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("controls")
    for seed in range(12):
        save_encoder(tiny(20 + seed), root / f"c{seed}", half=True)
    return tuple(str(root / f"c{seed}") for seed in range(12))


@pytest.fixture(scope="module")
def made(tiny, images):
    return SSLGuard(**SMALL, n_verification=8).watermark(tiny(7), images(100), secret=Secret.from_seed(1))


@pytest.fixture(scope="module")
def cured(tiny, images):
    return CuredSSLGuard(**SMALL, law_steps=3).watermark(tiny(7), images(100), secret=Secret.from_seed(1))


class TestSSLGuard:
    @pytest.fixture
    def bed(self, made, tiny, images, tmp_path, controls):
        terms = replace(TERMS, alpha=0.1, controls=controls)
        return Bed(tmp_path, made.key, tiny(7), images(60, seed=5), terms=terms)

    def test_decides_as_verify_does(self, bed, made, controls):
        verdict = bed.commit().claim(made.encoder, controls=controls, alpha=0.1)
        found = bed.audit()
        assert (found.verdict.significance.n_controls, found.verdict.decision) == (12, verdict.decision)
        assert found.verdict.significance.statistic == pytest.approx(verdict.significance.statistic)
        assert found.exit_code == verdict.exit_code
        assert foretold(verdict, dated=True) == found.decision
        assert foretold(verdict, dated=False) == bed.audit(not_after=None).decision == "not checkable"
        assert "date alone" in words(found, "passed")

    def test_an_undated_key_may_have_been_fitted(self, bed, made, controls):
        bed.commit(None).claim(made.encoder, controls=controls, alpha=0.1)
        found = bed.audit(not_after=None)
        assert (found.decision, found.verdict) == ("not checkable", None)
        assert "may be fitted to it" in words(found, "not checkable")

    def test_too_few_controls_are_refused_before_anybody_is_asked(self, bed, made, controls, counting):
        suspect = counting(64)
        with pytest.raises(RefusedError):
            bed.commit().claim(suspect, controls=controls[:3], alpha=0.1)
        assert suspect.asked == 0
        bed.claim(made.encoder, controls=controls, alpha=0.1)
        assert bed.audit(controls=controls[:3]).exit_code == 4
        assert bed.audit(controls=()).exit_code == 4

    @pytest.mark.parametrize("part", ["secret", "sk", "trigger.mask", "trigger.pattern"])
    @pytest.mark.parametrize("kind", ["made", "cured"])
    def test_keys_that_were_not_drawn(self, request, tiny, kind, part):
        key = request.getfixturevalue(kind).key
        assert undue_freedom(key, tiny(7)) is None
        if part == "secret":
            key = replace(key, secret=Secret.from_seed(2))
        elif part == "sk":
            key = replace(key, sk=key.sk.flip(0))
        else:
            fields, tensors = key.to_parts()
            key = type(key).from_parts(fields, {**tensors, part: 1 - tensors[part]})
        # The published losses train the trigger.
        free = kind == "made" and part == "trigger.pattern"
        assert (undue_freedom(key, tiny(7)) is None) == free


class TestCuredSSLGuard:
    """A key whose p-value is exact, and needs neither controls nor a date."""

    @pytest.fixture
    def bed(self, cured, tiny, images, tmp_path):
        return Bed(tmp_path, cured.key, tiny(7), images(60, seed=5), terms=replace(TERMS, alpha=0.01))

    @pytest.mark.parametrize("dated", [True, False])
    def test_decides_as_verify_does(self, bed, cured, dated):
        verdict = bed.commit(*(() if dated else (None,))).claim(cured.encoder, alpha=0.01)
        found = bed.audit(**({} if dated else {"not_after": None}))
        assert found.verdict.significance.null == "exact"
        assert found.verdict.significance.statistic == pytest.approx(verdict.significance.statistic)
        assert foretold(verdict, dated=dated) == found.decision

    def test_an_innocent_is_not_shown(self, bed, tiny):
        bed.commit().claim(tiny(3), alpha=0.01)
        assert bed.audit().decision == "not shown"


class TestBundle:
    def test_files_and_modes(self, bed, marked):
        before = os.umask(0)
        try:
            bed.commit().claim(marked.encoder)
        finally:
            os.umask(before)
        names = {"claim.json", "commitment.json", "commitment.json.tsr", "key.safetensors", "answers.npy", "clean.npy"}
        assert {f.name for f in bed.bundle.iterdir()} == names
        assert stat.S_IMODE(bed.bundle.stat().st_mode) == 0o700
        assert {stat.S_IMODE(f.stat().st_mode) for f in bed.bundle.iterdir()} == {0o600}

    def test_opens_the_key_and_not_the_owner_or_F(self, bed, marked):
        bed.commit().claim(marked.encoder)
        content = disclosed(*(f.read_bytes() for f in bed.bundle.iterdir()))
        assert bed.key.secret.reveal().hex().encode() in content
        for secret in (bed.owner.salt, bed.owner.signing_key):
            assert secret not in content
            assert secret.hex().encode() not in content
        opened = read_bundle(bed.bundle).opened
        assert not any(name.startswith("clean.") for name in opened.tensors)

    @pytest.mark.parametrize(
        "name", ["claim.json", "commitment.json.tsr", "key.safetensors", "answers.npy", "clean.npy"]
    )
    def test_leads_nowhere_else(self, bed, marked, name):
        """A link in a bundle is not followed, even to the very file that belongs there."""
        bed.commit().claim(marked.encoder)
        path, outside = bed.bundle / name, bed.folder / "outside"
        path.rename(outside)
        path.symlink_to(outside)
        if name.endswith(".npy"):
            assert bed.audit().exit_code == 3
        else:
            with pytest.raises(ClaimError, match="plain file"):
                bed.audit()

    def test_what_F_gives_is_left_out_where_it_is_large(self, bed, marked, monkeypatch):
        monkeypatch.setattr("sslguard.claims.claim.MAX_CLEAN", 4 * 200 * (64 + 356))  # less than that and a header
        bed.commit().claim(marked.encoder)
        assert not (bed.bundle / "clean.npy").exists()
        assert bed.audit().decision == "derived"

    def test_another_key_or_owner_cannot_claim(self, bed, marked, tiny, images):
        bed.commit()
        other = Exact(Protocol(n_queries=200), mode="head").watermark(tiny(7), images(400), secret=Secret.from_seed(2))
        for change in ({"key": other.key}, {"owner": type(bed.owner)(b"t" * 32, b"k" * 32)}):
            with pytest.raises(ClaimError, match="does not commit to this key"):
                replace(bed, **change).claim(marked.encoder)
        assert not bed.bundle.exists()

    def test_takes_nothing_that_is_there(self, bed, marked, counting):
        bed.commit().claim(marked.encoder)
        suspect = counting(64)
        with pytest.raises(OutputError, match="holds something else"):
            bed.claim(suspect)
        assert suspect.asked == 0

    def test_a_failing_suspect_leaves_nothing(self, bed):
        def fail(batch):
            raise RuntimeError("no")

        with pytest.raises(Exception, match="failed on a batch"):
            bed.commit().claim(Answers(fail))
        assert {f.name for f in bed.folder.iterdir()} == {"commitment.json", "commitment.json.tsr"}

    @pytest.mark.parametrize("after", [0.0, 0.3, 0.6])
    def test_killed_outright_it_leaves_all_or_nothing(self, bed, marked, tmp_path, after):
        """At three moments while answers still come; that the folder appears in one step is `files`' business."""
        bed.commit()
        pid = os.fork()
        if pid == 0:
            try:
                bed.claim(Answers(lambda batch: (time.sleep(0.4), marked.encoder.embed(batch))[1]))
            finally:
                os._exit(0)
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert not bed.bundle.exists()
        bed.claim(marked.encoder)
        assert bed.audit().decision == "derived"


class TestPage:
    @pytest.fixture
    def found(self, bed, marked):
        bed.commit().claim(marked.encoder)
        return bed.audit()

    def test_says_what_is_shown_and_what_was_assumed(self, found):
        page = render_page(found)
        assert page.index("What is shown") < page.index("What was assumed")
        assert "What is not shown" not in page
        assert "Derived is not stolen" in page
        for check in found.checks:
            assert check.words.replace("'", "&#39;").replace("&#39;", "'")[:20] in page.replace("&#39;", "'")
        assert "http" not in page.replace("http-equiv", "")

    def test_says_by_what_it_was_decided_and_when(self, found):
        when = datetime(2026, 2, 3, 4, 5, tzinfo=UTC)
        page = render_page(found, when=when)
        assert page.count("2026-02-03 04:05 UTC") == 2
        assert "UTC</footer" not in render_page(found)
        assert "45.9 bits had to be reached" in page  # alpha 1e-6, one claim, 2^20 keys, 2^6 readings
        assert "the probability that the suspect is innocent" in page
        for told in (SEED, "2025-06-01 00:00 UTC", "2025-01-01 00:00 UTC", "1e-06", found.facts["owner"]):
            assert told in page, told
        assert AUTHORITY.root.fingerprint(SHA256()).hex() in page
        bits = abs(found.verdict.significance.log2_pvalue)
        assert f"once in 2<sup>{bits:.0f}</sup> draws" in page

    def test_every_fact_has_a_place(self, found):
        """Those of the bundle and of the examiner's terms; none is left to the JSON alone."""
        named = {name: f"<{name}>" for name in found.facts}
        page = render_page(
            replace(found, facts=named | {"committed": None, "claimed_by": {}, "audited_by": {"sslguard": "1"}})
        )
        for name in found.facts.keys() - {"committed", "claimed_by", "audited_by"}:
            assert f"&lt;{name}&gt;" in page, name

    def test_of_a_key_whose_null_are_controls(self, found):
        ranked = control_rank_test(0.9, [0.1, 0.2, 0.3], n_queries=20)
        verdict = replace(found.verdict, significance=ranked)
        terms = replace(found.terms, controls=("shipped",), alpha=0.5)
        page = render_page(Audit(found.checks, verdict, 2, terms, {**found.facts, "scheme": "sslguard"}))
        assert "p = 0.25 among 3 known innocents" in page
        assert "p had to be at most 0.25: alpha 0.5" in page
        assert "shared among 2 claims" in page
        assert "trigger" in page

    def test_is_well_formed(self, found):
        class Tags(HTMLParser):
            def __init__(self):
                super().__init__()
                self.open = []

            def handle_starttag(self, tag, attrs):
                if tag not in ("meta", "link", "br", "img"):
                    self.open.append(tag)

            def handle_endtag(self, tag):
                assert self.open.pop() == tag

        parser = Tags()
        parser.feed(render_page(found))
        assert parser.open == []

    def test_hostile_names_are_escaped(self, found):
        evil = "<script>alert(1)</script>\x1b[2J"
        facts = {**found.facts, "suspect": evil, "claimed_by": {evil: evil}}
        checks = (*found.checks, Check(evil, "failed", evil))
        page = render_page(Audit(checks, found.verdict, 1, found.terms, facts))
        assert "<script" not in page
        assert "\x1b" not in page

    def test_every_decision_has_a_page(self, found):
        for status, verdict in (("failed", found.verdict), ("not checkable", None), ("against", found.verdict)):
            other = Audit((Check("x", status, "Why."),), verdict, 1 << 70, found.terms, found.facts)
            assert "What is not shown" in render_page(other)

    def test_overwrites_only_a_report(self, found, tmp_path):
        write_page(found, tmp_path / "r.html")
        write_page(found, tmp_path / "r.html")
        (tmp_path / "thesis").write_text("years")
        os.mkfifo(tmp_path / "pipe")
        for name in ("thesis", "pipe"):
            with pytest.raises(OutputError, match="not overwritten"):
                write_page(found, tmp_path / name)


class TestCommandLine:
    @pytest.mark.heavy
    def test_from_key_to_report_on_another_machine(self, bed, marked, tiny, tmp_path):
        """Another process that has nothing of the claimant's but bundle and F decides the same."""
        save_encoder(tiny(7), tmp_path / "clean")
        save_encoder(marked.encoder, tmp_path / "suspect")
        save_key(marked.key, tmp_path / "key")
        pictures = np.random.default_rng(5).integers(0, 256, (300, 16, 16), dtype=np.uint8)
        np.save(tmp_path / "p.npy", pictures)
        data = ("--data", tmp_path / "p.npy", "--seed", SEED)
        done("commit", tmp_path / "key", "--out", tmp_path / "c.json")
        line = ("claim", tmp_path / "key", tmp_path / "suspect", *data, "--commitment", tmp_path / "c.json")
        said = done(*line, "--out", tmp_path / "b")
        assert (said["decision"], said["audit"]) == ("derived", {"dated": "derived", "undated": "derived"})
        shutil.rmtree(tmp_path / "key")
        (tmp_path / "c.json").unlink()
        key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / "examiner.pem").write_bytes(key)
        command = [
            *("audit", tmp_path / "b", *data, "--own-data", "--clean", tmp_path / "clean"),
            *("--report", tmp_path / "r.html", "--json"),
            *("--statement", tmp_path / "v.json", "--signing-key", tmp_path / "examiner.pem"),
        ]
        ran = subprocess.run([sys.executable, "-m", "sslguard.cli", *map(str, command)], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["verdict"]["statistic"] == pytest.approx(said["statistic"], abs=1e-6)
        assert "Is " in (tmp_path / "r.html").read_text()
        assert predicate_of((tmp_path / "v.json").read_bytes())["audit"] == json.loads(ran.stdout)
        again = sslguard(
            *("audit", tmp_path / "b", *data, "--own-data"),
            *("--clean", tmp_path / "clean", "--suspect", tmp_path / "suspect"),
        )
        assert (again.code, "gave the same answers" in again.out) == (0, True)
        assert sslguard("audit", tmp_path / "b", *data).code == 4
        assert sslguard("audit", tmp_path / "nowhere", *data).code == 3
        for option in ("--not-after", "--opened"):
            assert sslguard("audit", tmp_path / "b", *data, option, "yesterday").code == 2

    def test_exit_codes(self, bed, marked, tiny, tmp_path):
        """Each of docs/explanation/security.md, by the decision and by what the command says of it."""
        save_encoder(tiny(7), tmp_path / "clean")
        np.save(tmp_path / "p.npy", np.random.default_rng(5).integers(0, 256, (300, 16, 16), dtype=np.uint8))
        pictures = str(tmp_path / "p.npy")
        plain = ("audit", bed.bundle, "--data", pictures, "--own-data", "--json")
        line = (*plain, "--seed", SEED, "--clean", tmp_path / "clean")
        bed.commit()

        def ran(*arguments):
            found = sslguard(*arguments)
            return found.code, found.json.get("decision", found.json.get("kind"))

        bed.claim(tiny(8), data=open_data(pictures))
        assert ran(*line) == (1, "not shown")
        shutil.rmtree(bed.bundle)
        bed.claim(marked.encoder, data=open_data(pictures))
        assert ran(*line) == (0, "derived")
        for wrong in (("--alpha", "2"), ("--not-after", "yesterday"), ("--cache", tmp_path), ("--unknown", "x")):
            assert ran(*line, *wrong) == (2, "UsageError"), wrong
        assert ran(*plain, "--seed", "another", "--clean", tmp_path / "clean") == (3, "forged")
        assert ran(*plain, "--seed", SEED) == (4, "not checkable")
        unbound = [word for word in line if word != "--own-data"]
        assert ran(*unbound) == (4, "not checkable")
        assert ran(*line, "--opened", "2020-01-01") == (4, "not checkable")
        assert ran(*line, "--alpha", "1e-90") == (4, "not checkable")
        (bed.bundle / ANSWERS).write_bytes(b"x")
        assert ran(*line) == (3, "forged")
        (bed.bundle / ANSWERS).unlink()
        assert ran(*line)[0] == 3
        shutil.rmtree(bed.bundle)
        assert ran(*line) == (3, "ClaimError")

    def test_help_is_quick(self):
        code = (
            "import sys; from sslguard.cli import main; main(['--help']); "
            "print('torch' in sys.modules, 'cryptography' in sys.modules)"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ran.stdout.endswith("False False\n")


class TestGolden:
    """A bundle as it was written on the day of the golden files: it opens, and shows what it showed."""

    EXPECTED = json.loads((GOLDEN / "expected.json").read_bytes())["bundle"]

    def test_audits_as_then(self):
        terms = replace(TERMS, roots=tuple(read_roots(GOLDEN / "authority.pem")))
        data, clean = open_data(f"text:{GOLDEN / 'texts.txt'}"), open_key(GOLDEN / "key-exact-sub-keys").key.clean
        found = audit(GOLDEN / "bundle", data, terms, clean=clean)
        assert (found.decision, found.n_tries) == ("derived", 3 << 26)  # the key and its two sub-keys
        assert found.verdict.significance.statistic == pytest.approx(self.EXPECTED["statistic"], rel=1e-5)
        assert found.facts["committed"] == COMMITTED.isoformat()
        assert found.facts["commitment_sha256"] == self.EXPECTED["commitment_sha256"]
        assert found.facts["seed"] == read_bundle(GOLDEN / "bundle")["seed"]

    def test_openings(self, tmp_path):
        shutil.copy(GOLDEN / "openings.json", tmp_path / "openings.json")
        assert read_openings(tmp_path) == {1: datetime(2026, 11, 28, 19, 22, 10, tzinfo=UTC)}
        assert read_bundle(GOLDEN / "bundle").opened_before == read_openings(tmp_path)[1]


class TestTerms:
    def test_openings(self, bed, marked):
        bed.commit().claim(marked.encoder)
        day = timedelta(days=1)
        assert bed.audit(opened=SEEN + day).decision == "derived"
        for opened in (SEEN, SEEN - day):
            found = bed.audit(opened=opened)
            assert (found.exit_code, "anybody could have marked it" in words(found, "not checkable")) == (4, True)
        assert bed.audit(opened=SEEN, not_after=None).exit_code == 4

    def test_dates(self, bed, marked):
        bed.commit().claim(marked.encoder)
        assert bed.audit(not_after=COMMITTED).decision == "derived"
        late = bed.audit(not_after=COMMITTED - timedelta(seconds=1))
        assert (late.decision, late.exit_code) == ("not shown", 1)
        assert "may have been made for it" in words(late, "against")

    @pytest.mark.parametrize(
        "terms",
        [
            {"not_after": SEEN.replace(tzinfo=None)},
            {"opened": SEEN.replace(tzinfo=None)},
            {"alpha": 0.0},
            {"alpha": 1.0},
            {"n_claims": 0},
        ],
    )
    def test_that_are_none(self, terms):
        with pytest.raises(UsageError):
            Terms(seed=SEED, **terms)

    def test_too_little_data(self, bed, marked, images):
        bed.commit().claim(marked.encoder)
        found = bed.audit(data=images(150, seed=5))
        assert (found.exit_code, "has only 150" in words(found, "not checkable")) == (4, True)

    def test_functions_of_the_api(self, bed, marked, tmp_path):
        (tmp_path / "roots.pem").write_bytes(AUTHORITY.roots())
        terms = {"seed": SEED, "alpha": TERMS.alpha, "not_after": SEEN, "authority_roots": tmp_path / "roots.pem"}
        terms["own_data"] = True
        api.claim(bed.commit().stored, marked.encoder, bed.data, seed=SEED, commitment=bed.commitment, out=bed.bundle)
        assert api.audit(bed.bundle, bed.data, clean=bed.clean, **terms).decision == "derived"
        assert audit(bed.bundle, bed.data, TERMS).decision == "not checkable"


def test_read_file_follows_no_link_and_waits_for_nobody(tmp_path):
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    assert read_file(tmp_path / "real", 1) == b"x"
    (tmp_path / "large").write_bytes(b"xx")
    for name in ("link", "pipe", "missing", "large", ".", "x" * 300, "a\0b"):
        with pytest.raises(ClaimError):
            read_file(tmp_path / name, 1)
    assert AUTHORITY.root is not None
