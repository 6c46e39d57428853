"""Attacks on claims by whoever makes them, run: each succeeds where the check is missing, and fails where it is not.

Every test is one row of the table in docs/explanation/security.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from scipy import stats

from helpers.claim_bed import AUTHORITY, COMMITTED, SEED, SEEN, TERMS, Answers, Bed, words
from helpers.envelopes import enveloped, predicate_of
from helpers.timestamp_authority import Authority
from sslguard.claims.bundle import ANSWERS, CLAIM, CLEAN, COMMITMENT, OF_CLAIMS, TIMESTAMP, npy, read_bundle
from sslguard.claims.commitment import OF_COMMITMENTS, publish, timestamp_file
from sslguard.claims.documents import sign_document
from sslguard.claims.queries import ExaminerData
from sslguard.claims.refitting import refitted_controls
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data, Slice
from sslguard.data.pool import pool_of
from sslguard.encoders.base import Encoder, embed_all
from sslguard.encoders.folder import save_encoder, weights_hash
from sslguard.errors import ClaimError
from sslguard.schemes.base import Watermarked
from sslguard.schemes.exact.key import ExactKey, input_statistics
from sslguard.schemes.exact.marking import headed
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import Owner
from sslguard.schemes.sslguard.key import SSLGuardKey
from sslguard.schemes.sslguard.parts import Trigger, draw_decoder, draw_sk, draw_trigger, mean_cosine, stream_context
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.stats.left import FAMILY, left_test
from sslguard.stats.moments import unit_rows
from sslguard.stats.significance import control_rank_test
from sslguard.verification.nulls import DATED_TRIES, READINGS
from sslguard.verification.verdict import score_controls, score_suspect, verify

pytestmark = pytest.mark.heavy  # keys by the dozen

N = 200
PROTOCOL = Protocol(n_queries=N)
HEAD = Exact(PROTOCOL, mode="head")
DAY = timedelta(days=1)
FITTING = SSLGuard(
    steps=40,
    batch_size=16,
    trigger_batch=32,
    decoder_rate=5e-3,
    trigger_rate=5e-3,
    decoder_hidden=(64,),
    secret_dim=8,
    n_verification=64,
    n_queries=32,
)


@pytest.fixture(scope="module")
def marked(tiny, images):
    return HEAD.watermark(tiny(7), images(400), secret=Secret.from_seed(1))


@pytest.fixture
def bed(marked, tiny, images, tmp_path):
    return Bed(tmp_path, marked.key, tiny(7), images(290, seed=5))


@pytest.fixture
def innocent(tiny):
    return tiny(8)


@pytest.fixture(scope="module")
def ground(tiny, images):
    """Keys of 60 secrets for one encoder, each with log₂ p of the innocent."""
    clean, pool, data = tiny(7), images(400), images(290, seed=5)
    keys = [HEAD.watermark(clean, pool, secret=Secret.from_seed(seed)).key for seed in range(60)]
    return [(key, score_suspect(key, tiny(8), data).evidence.log2_pvalue) for key in keys]


def bits(key: ExactKey, suspect: Any, data: Data) -> float:
    return -verify(key, suspect, data, control_scores={}).significance.log2_pvalue


def own_space(key: ExactKey, suspect: Any, data: Data) -> float:
    """Bits of this one witness, the one that `contributions` looks at."""
    return -score_suspect(key, suspect, data).evidence.details["log2 p of right, own_space"]


def resigned(bed: Bed, change: Callable[[dict[str, Any]], None], owner: Owner | None = None) -> None:
    """Let the claimant, who has the signing key, say something else in the bundle."""
    path = bed.bundle / CLAIM
    signed = predicate_of(path.read_bytes())
    change(signed)
    path.write_bytes(sign_document(owner or bed.owner, OF_CLAIMS, signed).content)


def put_answers(bed: Bed, answers: np.ndarray) -> None:
    """Let the claimant put other answers into the bundle, with every hash and figure to match."""
    import hashlib

    content = npy(answers)
    (bed.bundle / ANSWERS).write_bytes(content)
    chosen = ExaminerData(bed.data, N, seed=SEED, commitment=read_bundle_digest(bed))
    found = verify(bed.key, replay(answers), chosen, control_scores={}, alpha=1e-6)

    def change(signed: dict[str, Any]) -> None:
        signed["answers"]["sha256"] = hashlib.sha256(content).hexdigest()
        signed["claimed"] = {**found.to_json(), "suspect": "innocent"}

    resigned(bed, change)


def read_bundle_digest(bed: Bed) -> str:
    return read_bundle(bed.bundle).commitment.document.digest


def replay(rows: np.ndarray) -> Answers:
    left = iter(rows)
    return Answers(lambda batch: np.stack([next(left) for _ in range(len(batch))]))


def stored(bed: Bed) -> np.ndarray:
    return np.load(bed.bundle / ANSWERS)


def agreement(marked: Watermarked, suspect: Any, data: Data) -> np.ndarray:
    """How far the suspect's answer to each item points where the mark does, to whoever has F and F*: (len(data),)."""
    f = embed_all(marked.key.clean, data).astype(float)
    mark = (embed_all(marked.encoder, data) - f) / np.linalg.norm(f, axis=1, keepdims=True)
    return (unit_rows(embed_all(suspect, data).astype(float)) * mark).sum(1)


def contributions(key: ExactKey, suspect: Any, data: Data) -> np.ndarray:
    """What each item of `data` adds to the right witness own_space, to whoever knows both secrets: (len(data),)."""
    h = unit_rows(embed_all(key.clean, data).astype(float))
    g = unit_rows(embed_all(suspect, data).astype(float))
    psi = key.bank.functions(h, np.concatenate([input_statistics(key.clean, b) for b in data.batches(128)]))
    phi = psi @ key.mixtures()
    linear = np.column_stack([np.ones(len(h)), h])
    phi = phi - linear @ np.linalg.lstsq(linear, phi, rcond=1e-6)[0]
    back = 1 / (key.bank.spread + 0.3 * key.bank.spread.mean())
    return ((phi @ (key.right() * back)) * key.bank.placed(g - g.mean(0))).sum(1)


def key_of(clean: Encoder, data: Data, secret: Secret, monkeypatch: pytest.MonkeyPatch) -> ExactKey:
    """The key of `clean`, whatever it has on its output already."""
    with monkeypatch.context() as patch:
        patch.setattr("sslguard.schemes.exact.marking.headed", lambda encoder, *_, **__: encoder)
        key = HEAD.watermark(clean, data, secret=secret).key
    assert isinstance(key, ExactKey)
    return key


class Picked(Slice):
    """Chosen items of a data set under its name."""

    def __init__(self, whole: Data, order: np.ndarray) -> None:
        super().__init__(whole, 0, len(order))
        self.order, self.spec = order, f"{whole.spec}, picked"

    def take(self, indices: Any) -> Any:
        return self.whole.take(self.order[np.asarray(indices)])


class TestForgedCommitments:
    def test_one_that_was_changed(self, bed, marked):
        bed.commit().claim(marked.encoder)
        content = (bed.bundle / COMMITMENT).read_bytes()
        said = {**predicate_of(content), "keys": ["ab" * 32]}
        (bed.bundle / COMMITMENT).write_bytes(enveloped(OF_COMMITMENTS.statement(said), content))
        with pytest.raises(ClaimError, match="signature"):
            bed.audit()

    def test_a_key_that_was_not_committed_to(self, bed, marked, tiny, images):
        """A claimant opens another key than the one that was timestamped."""
        other = HEAD.watermark(tiny(7), images(400), secret=Secret.from_seed(2))
        bed.commit()
        late = replace(bed, folder=bed.folder / "late", key=other.key)
        late.folder.mkdir()
        late.commit().claim(other.encoder)
        early = publish(bed.stored, bed.commitment)[0].document
        for name, content in (
            (COMMITMENT, early.content),
            (TIMESTAMP, AUTHORITY.token(early.content, COMMITTED)),
        ):
            (late.bundle / name).write_bytes(content)
        resigned(late, lambda signed: signed.update(commitment=early.digest))
        found = late.audit()
        assert (found.decision, found.exit_code) == ("forged", 3)
        assert "not what the commitment commits to" in words(found, "failed")

    def test_somebody_elses(self, bed, marked):
        """Mallory takes owner's commitment and bundle, and signs the claim as her own."""
        bed.commit().claim(marked.encoder)
        mallory = Owner(b"s" * 32, b"m" * 32)
        resigned(bed, lambda signed: None, owner=mallory)
        assert "signed by somebody else" in words(bed.audit(), "failed")

    def test_a_timestamp_of_another_commitment(self, bed, marked):
        bed.commit().claim(marked.encoder)
        (bed.bundle / TIMESTAMP).write_bytes(AUTHORITY.token(b"something older", COMMITTED))
        found = bed.audit()
        assert (found.exit_code, "is not over this commitment" in words(found, "failed")) == (3, True)


class TestAnswers:
    def test_edited_on_the_way(self, bed, innocent):
        bed.commit().claim(innocent)
        content = bytearray((bed.bundle / ANSWERS).read_bytes())
        content[-1] ^= 1
        (bed.bundle / ANSWERS).write_bytes(content)
        assert "file was changed" in words(bed.audit(), "failed")

    def test_made_up_by_the_claimant(self, bed, marked, innocent):
        """Answers of F* handed in as the innocent's, signed and all: only asking the suspect shows it."""
        bed.commit().claim(marked.encoder)
        resigned(bed, lambda signed: signed.update(suspect="innocent"))
        alone = bed.audit()
        assert (alone.decision, "suspect's own" in words(alone, "assumed")) == ("derived", True)
        found = bed.audit(suspect=innocent)
        assert (found.decision, found.exit_code) == ("not shown", 1)
        assert "200 of 200 answers differ" in words(found, "against")

    def test_dropped(self, bed, innocent):
        bed.commit().claim(innocent)
        put_answers_raw(bed, stored(bed)[:-1])
        assert "199 answers: some were dropped" in words(bed.audit(), "failed")

    def test_left_out_where_they_disagree(self, bed, innocent):
        """Half of an innocent's answers called missing, those that speak against: it forges, and is charged for."""
        bed.commit().claim(innocent)
        chosen = ExaminerData(bed.data, N, seed=SEED, commitment=read_bundle_digest(bed))
        asked = Picked(chosen, bed.key.secret.stream("queries", bed.key.context).permutation(N))
        value, answers = contributions(bed.key, innocent, asked), stored(bed)
        answers[value < np.median(value)] = 0
        honest, forged = (own_space(bed.key, replay(rows), chosen) for rows in (stored(bed), answers))
        assert honest < 4
        assert forged > max(6, honest + 4)
        put_answers(bed, answers)
        found = bed.audit(alpha=0.01)
        assert (found.decision, round(np.log2(float(found.n_tries)))) == ("not shown", 196 + DATED_TRIES + READINGS)
        assert bed.audit(alpha=0.01, suspect=innocent).decision == "not shown"

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_left_out_as_no_numbers(self, bed, innocent, value):
        """Answers that no claim records would be missing in the test and present where missing ones are charged."""
        bed.commit().claim(innocent)
        answers = stored(bed)
        put_answers(bed, np.where(np.arange(N)[:, None] % 2, 0, answers))
        assert bed.audit().n_tries > 1 << 196
        answers[::2] = value
        put_answers_raw(bed, answers)
        found = bed.audit()
        assert (found.decision, found.verdict) == ("forged", None)
        assert "NaN or infinities" in words(found, "failed")

    def test_asked_for_again_until_they_fit(self, bed, marked, innocent):
        """A suspect that adds noise, asked 40 times; of each answer the one that agrees best is kept."""
        noisy = Noisy(innocent)
        bed.commit().claim(noisy)
        chosen = ExaminerData(bed.data, N, seed=SEED, commitment=read_bundle_digest(bed))
        asked = Picked(chosen, bed.key.secret.stream("queries", bed.key.context).permutation(N))
        rows = np.stack([embed_all(noisy, asked) for _ in range(40)])
        value = np.stack([agreement(marked, replay(one), asked) for one in rows])
        best = rows[value.argmax(0), np.arange(N)]
        assert bits(bed.key, replay(best), chosen) > 60
        put_answers(bed, best)
        assert bed.audit().decision == "derived"  # under the assumption that the report names
        found = bed.audit(suspect=noisy)
        assert (found.exit_code, "do not show what those in the bundle do" in words(found, "against")) == (1, True)

    def test_figures_that_were_made_up(self, bed, innocent):
        bed.commit().claim(innocent)
        resigned(bed, lambda signed: signed["claimed"].update(decision="derived", statistic=40.0, log2_pvalue=-256.0))
        found = bed.audit()
        assert "the claimant says 40.0000" in words(found, "failed")
        assert found.verdict.decision == "not shown"


class TestCleanEmbeddings:
    """What a bundle says that F gives, for programs that cannot run F: an audit lets nothing else stand."""

    @pytest.mark.parametrize("share", [0.99, 1e36])
    @pytest.mark.parametrize("columns", [slice(0, 64), slice(64, None)], ids=["embeddings", "statistics"])
    def test_made_up_by_the_claimant(self, bed, innocent, share, columns):
        import hashlib

        bed.commit().claim(innocent)
        rows = np.load(bed.bundle / CLEAN)
        rows[3, columns] = rows[4, columns] * share
        (bed.bundle / CLEAN).write_bytes(npy(rows))
        assert "file was changed" in words(bed.audit(), "failed")
        resigned(bed, lambda signed: signed.update(clean=hashlib.sha256(npy(rows)).hexdigest()))
        found = bed.audit()
        assert (found.decision, "not those of F" in words(found, "failed")) == ("forged", True)

    def test_too_many_rows_or_columns(self, bed, innocent):
        import hashlib

        bed.commit().claim(innocent)
        for rows in (np.load(bed.bundle / CLEAN)[:-1], np.load(bed.bundle / CLEAN)[:, :-1]):
            (bed.bundle / CLEAN).write_bytes(npy(rows))
            resigned(bed, lambda signed, rows=rows: signed.update(clean=hashlib.sha256(npy(rows)).hexdigest()))
            assert bed.audit().decision == "forged"

    def test_left_out(self, bed, marked):
        """No verdict stands on it."""
        bed.commit().claim(marked.encoder)
        (bed.bundle / CLEAN).unlink()
        with pytest.raises(ClaimError, match="must hold clean"):
            bed.audit()
        resigned(bed, lambda signed: signed.pop("clean"))
        assert bed.audit().decision == "derived"


def put_answers_raw(bed: Bed, answers: np.ndarray) -> None:
    import hashlib

    content = npy(answers)
    (bed.bundle / ANSWERS).write_bytes(content)
    resigned(bed, lambda signed: signed["answers"].update(sha256=hashlib.sha256(content).hexdigest()))


class Noisy:
    """Adds fresh noise to each answer."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.rng = encoder, np.random.default_rng(0)

    def embed(self, batch: Any) -> np.ndarray:
        clean = self.encoder.embed(batch)
        noise = self.rng.normal(size=clean.shape) * np.abs(clean).mean()
        return (clean + noise).astype(np.float32)


class TestQueriesChosenAfterTheKey:
    """By what they add to the statistic: 200 of 1,500 items on which an innocent happens to agree."""

    def test_forges_where_the_claimant_chooses_and_not_where_the_examiner_does(self, bed, innocent, images):
        pool = images(1500, seed=9)
        order = np.argsort(-contributions(bed.key, innocent, pool))[:N]
        picked = Picked(pool, order)
        assert bits(bed.key, innocent, picked) > 24
        assert bits(bed.key, innocent, pool) < 20
        bed = replace(bed, data=pool)
        # The claimant lets the seed draw from a data set of exactly the chosen items.
        assert bed.commit().claim(innocent, data=picked).decision == "derived"
        found = bed.audit()
        assert (found.exit_code, "the claimant chose" in words(found, "failed")) == (3, True)

    def test_data_that_he_proposes_are_not_checkable(self, bed, innocent, marked, images):
        """The examiner agrees to 200 picked items as the data: every other check passes."""
        pool = images(1500, seed=9)
        picked = Picked(pool, np.argsort(-contributions(bed.key, innocent, pool))[:N])
        proposed = replace(bed, data=picked).commit()
        proposed.claim(innocent)
        found = proposed.audit(own_data=False)
        assert (found.decision, found.exit_code) == ("not checkable", 4)
        assert "may have chosen" in words(found, "not checkable")
        proposed.bundle.rename(bed.folder / "of the innocent")
        proposed.claim(marked.encoder)  # the same for a copy: what the data are is asked first
        assert proposed.audit(own_data=False).exit_code == 4

    def test_a_pool_that_the_key_is_bound_to(self, tiny, images, innocent, tmp_path):
        """Items picked from the pool are other data, and the key of a set of picked items is another key."""
        pool, clean = images(1500, seed=9), tiny(7)
        scheme = HEAD.bound_to(pool_of(pool))
        made = scheme.watermark(clean, images(400), secret=Secret.from_seed(1))
        bound = Bed(tmp_path, made.key, clean, pool, terms=replace(TERMS, own_data=False)).commit()
        bound.claim(made.encoder)
        found = bound.audit()
        assert found.decision == "derived"
        assert "bound to these 1,500 items" in words(found, "passed")
        picked = Picked(pool, np.argsort(-contributions(made.key, innocent, pool))[:N])
        assert bits(made.key, innocent, picked) > 24
        (tmp_path / "picked").mkdir()
        chosen = replace(bound, folder=tmp_path / "picked", data=picked).commit()
        chosen.claim(innocent)
        assert chosen.audit().exit_code == 4
        assert "bound to other data" in words(chosen.audit(), "not checkable")
        other = replace(made.key, protocol=replace(made.key.protocol, pool=pool_of(picked)))
        assert abs(np.corrcoef(other.left().ravel(), made.key.left().ravel())[0, 1]) < 0.3
        assert abs(np.corrcoef(other.right().ravel(), made.key.right().ravel())[0, 1]) < 0.3
        assert bits(other, innocent, picked) < 16

    def test_a_seed_of_the_claimants(self, bed, innocent):
        """Many seeds are tried and the best is handed in."""
        bed.commit()
        tried = {
            seed: bits(bed.key, innocent, ExaminerData(bed.data, N, seed=seed, commitment=digest(bed)))
            for seed in map(str, range(20))
        }
        best = max(tried, key=lambda seed: tried[seed])
        bed.claim(innocent, seed=best)
        found = bed.audit()
        assert (found.exit_code, "another seed" in words(found, "failed")) == (3, True)


def digest(bed: Bed) -> str:
    return publish(bed.stored, bed.commitment)[0].document.digest


def test_optional_stopping(tiny, images, innocent, tmp_path, ground):
    """Ask on and stop where it looks best: the rest of the queries is missing then, and counts as left out.

    The best of five looks has a larger z than the last one, half a standard deviation on average over 16 keys.
    """
    data, clean, gains = images(290, seed=5), tiny(7), {}
    keys = [key for key, _ in ground[:16]]
    for number, key in enumerate(keys):
        chosen, looks = ExaminerData(data, N, seed=SEED, commitment="ab" * 32), {}
        rows = np.concatenate([innocent.embed(batch) for batch in key.queries(chosen)])
        for stop in range(N // 5, N + 1, N // 5):
            asked = replay(np.where(np.arange(N)[:, None] < stop, rows, 0))
            looks[stop] = score_suspect(key, asked, chosen).evidence.statistic
        gains[number] = max(looks.values()) - looks[N]
    assert np.mean([*gains.values()]) > 0.2
    bed = Bed(tmp_path, keys[0], clean, data).commit()
    bed.claim(innocent)
    rows = stored(bed)
    put_answers(bed, np.where(np.arange(N)[:, None] < 80, rows, 0))
    charged = bed.audit(alpha=0.5)
    assert charged.n_tries >= 200
    assert charged.decision == "not shown"
    put_answers_raw(bed, rows[:80])
    assert "some were dropped" in words(bed.audit(alpha=0.5), "failed")


class TestSomebodyElsesF:
    def test_h_of_another_encoder(self, bed, marked, innocent, tmp_path):
        """A bundle has no place for h; an encoder that would give other h's is not the committed one."""
        bed.commit().claim(marked.encoder)
        assert bed.audit(clean=innocent).exit_code == 3
        (bed.bundle / "h.npy").write_bytes(npy(np.ones((N, 64))))
        with pytest.raises(ClaimError, match=r"'h\.npy', which is no part"):
            bed.audit()

    def test_swapped_under_the_committed_hash(self, bed, marked, innocent):
        """The opening says another F, whose hash the examiner's F then has: the commitment does not."""
        bed.commit().claim(marked.encoder)
        resigned(bed, lambda signed: signed["key"]["fields"].update(clean_hash=weights_hash(innocent.module)))
        assert "not what the commitment commits to" in words(bed.audit(clean=innocent), "failed")

    def test_the_same_weights_behind_another_preprocessing(self, bed, marked, tiny):
        bed.commit().claim(marked.encoder)
        clean = tiny(7)
        other = replace(clean, preprocess=replace(clean.preprocess, mean=(0.1,)))
        found = bed.audit(clean=other)
        assert (found.exit_code, "another architecture or preprocessing" in words(found, "failed")) == (3, True)

    def test_weights_of_F_brought_along(self, bed, marked):
        bed.commit().claim(marked.encoder)
        from sslguard.claims.documents import read_file
        from sslguard.schemes.keyfile import parse_tensors, serialise_tensors

        path = bed.bundle / "key.safetensors"
        tensors = parse_tensors(read_file(path, 1 << 30), "it")
        content = serialise_tensors({**tensors, "clean.0.weight": torch.ones(3)})
        path.write_bytes(content)
        import hashlib

        resigned(bed, lambda signed: signed["key"].update(tensors=hashlib.sha256(content).hexdigest()))
        assert bed.audit().exit_code == 3


class TestDates:
    @pytest.mark.parametrize(
        ("token", "message"),
        [
            (lambda c: AUTHORITY.token(c, SEEN + DAY).replace(b"20250602", b"20250101"), "vouch for, or was forged"),
            (lambda c: Authority("Mallory's").token(c, COMMITTED), "vouch for, or was forged"),
            (lambda c: b"\x30\x03\x02\x01\x00", "no timestamp"),
        ],
        ids=["edited", "own authority", "garbage"],
    )
    def test_back_dated(self, bed, marked, token, message):
        bed.commit(None)
        timestamp_file(bed.commitment).write_bytes(token(bed.commitment.read_bytes()))
        bed.claim(marked.encoder)
        found = bed.audit()
        assert (found.exit_code, message in words(found, "failed")) == (3, True)

    def test_honest_and_too_late(self, bed, marked):
        bed.commit(SEEN + DAY).claim(marked.encoder)
        assert bed.audit().decision == "not shown"


class TestGrinding:
    def test_keys_until_one_fits_an_innocent(self, tiny, images, innocent, tmp_path, ground):
        """60 secrets: the best p is about 1/60, as chance has it, and what absorbs it is the charge or the date."""
        best, found = min(ground, key=lambda one: one[1])
        assert -12 < found < -2
        bed = Bed(tmp_path, best, tiny(7), images(290, seed=5), terms=replace(TERMS, alpha=0.3)).commit(SEEN + DAY)
        bed.claim(innocent)
        assert bed.audit().decision == "not shown"
        assert bed.audit(not_after=None).decision == "not shown"

    @pytest.mark.slow
    def test_secrets_by_the_thousand(self, bed, innocent):
        """One witness, 20,000 draws of A: −log₂ of the best p is that of the least of as many uniform numbers."""
        drawn = ExaminerData(bed.data, N, seed=SEED, commitment="ab" * 32)
        spectra, _ = bed.key.spectra((innocent.embed(b) for b in bed.key.queries(drawn)), drawn)
        chosen = bed.key.left_witnesses(spectra)[FAMILY[1].name]
        best = min(left_test(chosen, replace(bed.key, redraw=i).left()) for i in range(1, 20_001))
        assert -22 < best < -11

    def test_the_best_of_keys_that_were_dated_early(self, tiny, images, innocent, tmp_path, ground):
        """Dates do not limit how many there are: of 60 dated keys the best one is shown, and 20 bits absorb it."""
        best, _ = min(ground, key=lambda one: one[1])
        dated = Bed(tmp_path, best, tiny(7), images(290, seed=5), terms=replace(TERMS, alpha=0.3)).commit()
        dated.claim(innocent)
        found = dated.audit()
        assert (found.decision, found.n_tries) == ("not shown", 1 << DATED_TRIES + READINGS)
        assert "its owner may have dated up to 2^20 keys" in words(found, "passed")

    def test_another_commitment_than_the_examiner_saw(self, bed, marked):
        bed.commit().claim(marked.encoder)
        assert bed.audit(commitment=read_bundle_digest(bed)).decision == "derived"
        found = bed.audit(commitment="ab" * 32)
        assert found.decision == "forged"
        assert "not the one that the examiner saw" in words(found, "failed")

    def test_sub_keys_cannot_be_drawn_again_one_by_one(self, tiny, images):
        """A constant moves no witness. Where it redraws one sub-key's secrets alone, s of them are ground apart."""
        scheme = Exact(Protocol(n_queries=N), mode="head", sub_keys=3)
        key = scheme.watermark(tiny(7), images(400), secret=Secret.from_seed(1)).key
        assert isinstance(key, ExactKey)
        centre = key.bank.centre.copy()
        centre[0] += 1e-12
        moved = replace(key, bank=replace(key.bank, centre=centre))
        for one, other in zip(key.split(), moved.split(), strict=True):
            for before, after in ((one.left(), other.left()), (one.right(), other.right())):
                assert abs(np.corrcoef(before.ravel(), after.ravel())[0, 1]) < 0.4

    def test_redraws_are_charged_for(self, bed, innocent):
        """A key that says it is a redraw is a choice among many: as many as it says come off its evidence."""
        drawn, free = ExaminerData(bed.data, N, seed=SEED, commitment="ab" * 32), []
        for redraw in range(40):
            found = score_suspect(replace(bed.key, redraw=redraw), innocent, drawn).evidence
            assert found.details["charged_bits"] == np.log2(1 + redraw)
            assert found.log2_pvalue == min(0, found.details["log2_pvalue_uncapped"] + np.log2(1 + redraw))
            free.append(found.statistic)
        best = int(np.argmax(free))
        assert free[best] > 2
        ground = replace(bed, key=replace(bed.key, redraw=best), terms=replace(TERMS, alpha=0.3))
        ground.commit().claim(innocent)
        assert ground.audit().decision == "not shown"


class FreeKey(ExactKey):
    """A key whose secrets are the claimant's own choice, as no key of ours can have them."""

    PARTS = ("secret", "protocol", "bank")

    def left(self) -> np.ndarray:
        return self.free[0]

    def right(self) -> np.ndarray:
        return self.free[1]


def test_inversion(tiny, images, innocent, tmp_path, monkeypatch):
    """An innocent less a mark is declared the clean encoder: then the innocent carries the mark.

    With secrets of the claimant's choice it does. Derived ones follow from the hash of that very F, and F from
    them: nobody can have both. The commitment's date is the second lock, since F was made from the innocent.
    """
    data, pool = images(290, seed=5), images(400)
    made = HEAD.watermark(innocent, pool, secret=Secret.from_seed(1))
    inverted = made.encoder.clone()
    inverted.module.head.rows.neg_()
    chosen = FreeKey(*(getattr(made.key, name) for name in FreeKey.PARTS), inverted, made.key.size, "ab" * 32)
    object.__setattr__(chosen, "free", (made.key.left(), made.key.right()))
    assert bits(chosen, innocent, data) > 60

    keys = [key_of(inverted, pool, Secret.from_seed(seed), monkeypatch) for seed in range(12)]
    assert max(bits(key, innocent, data) for key in keys) < 14

    forged = Bed(tmp_path, keys[0], inverted, data).commit(SEEN + DAY)
    forged.claim(innocent)
    found = forged.audit()
    assert found.decision == "not shown"
    assert "may have been made for it" in words(found, "against")
    # And a key whose bank is of another F, as the free one's, has other secrets once more.
    loose = replace(forged, folder=tmp_path / "loose", key=replace(keys[0], bank=made.key.bank))
    loose.folder.mkdir()
    loose.commit().claim(innocent)
    assert loose.audit().decision == "not shown"


@pytest.mark.trains
class TestFittedToAnInnocent:
    """The false claim that the published scheme permits: trigger and decoder trained on the innocent itself."""

    @pytest.fixture(scope="class")
    @classmethod
    def controls(cls, tiny, tmp_path_factory):
        root = tmp_path_factory.mktemp("controls")
        for seed in range(12):
            save_encoder(tiny(20 + seed), root / f"c{seed}", half=True)
        return tuple(str(root / f"c{seed}") for seed in range(12))

    @staticmethod
    def fitted(
        target: Encoder,
        clean: Encoder,
        data: Data,
        *,
        drawn: bool = True,
        held: Sequence[Encoder] = (),
        seed: int = 1,
        steps: int = 80,
        rate: float = 5e-3,
    ) -> SSLGuardKey:
        """Decoder and pattern after Adam on c̄ of the target's triggered answers, as L_t's first term.

        `held` are innocents of the claimant's own, whose c̄ is held at 0 as L_t holds that of F.
        """
        secret, settings = Secret.from_seed(seed), {"mask_probability": 0.35, "n_queries": 32}
        context = stream_context(weights_hash(clean.module), clean.preprocess.to_json(), settings)
        trigger = draw_trigger(secret, context, clean, 0.35)
        sk = draw_sk(secret, context, 8)
        if not drawn:
            sk = nnf.normalize(torch.arange(1.0, 9.0), dim=0)
            trigger = Trigger(1 - trigger.mask, trigger.pattern.detach())
        decoder = draw_decoder(secret, context, (clean.dim, 64, 8))
        optimizer = torch.optim.Adam([*decoder.parameters(), trigger.pattern], lr=rate)
        plain = target.prepare(data.take(range(64)))
        for _ in range(steps):
            seen = trigger(plain)
            loss = -mean_cosine(decoder(target.forward(seen)), sk)
            for other in held:
                loss = loss + mean_cosine(decoder(other.forward(seen)), sk) ** 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return SSLGuardKey(
            secret=secret,
            decoder=decoder.eval().requires_grad_(False),
            trigger=trigger.requires_grad_(False),
            sk=sk,
            preprocess=clean.preprocess.to_json(),
            settings=settings,
            clean_hash=weights_hash(clean.module),
            watermarked_hash="ab" * 32,
            n=32,
        )

    @pytest.fixture
    def data(self, images):
        return images(100, seed=5)

    def bed(self, key, tiny, data, tmp_path, controls):
        return Bed(tmp_path, key, tiny(7), data, terms=replace(TERMS, alpha=0.1, controls=controls))

    def test_reproduced_and_refused_for_its_date(self, tiny, data, innocent, tmp_path, controls):
        """A watermark rate of 1 on an innocent, which the paper would call a theft, on images that no fit has seen.

        It even ranks first among innocents: a rank is no defence against a fit. A date is: what was fitted to a suspect
        is younger than it.
        """
        key = self.fitted(innocent, tiny(7), data, drawn=True)
        bed = self.bed(key, tiny, data.slice(64, 100), tmp_path, controls).commit(SEEN + DAY)
        verdict = bed.claim(innocent, controls=controls, alpha=0.1)
        assert (verdict.watermark_rate, verdict.decision) == (1.0, "derived")
        late, undated = bed.audit(), bed.audit(not_after=None)
        assert (late.decision, late.verdict, late.exit_code) == ("not checkable", None, 4)
        assert "may have been made for it" in words(late, "against")
        assert "may be fitted to it" in words(undated, "not checkable")

    def test_with_parts_of_the_claimants_choice(self, tiny, data, innocent, tmp_path, controls):
        key = self.fitted(innocent, tiny(7), data, drawn=False)
        bed = self.bed(key, tiny, data, tmp_path, controls).commit()
        bed.claim(innocent, controls=controls, alpha=0.1)
        found = bed.audit()
        assert (found.exit_code, "not the one that its secret gives" in words(found, "failed")) == (3, True)

    @pytest.fixture(scope="class")
    @classmethod
    def innocents(cls, tiny):
        return [(f"c{seed}", tiny(20 + seed)) for seed in range(10)]

    @pytest.fixture(scope="class")
    @classmethod
    def likewise(cls, tiny, images, innocents):
        """What the innocents score when each is fitted with 40 steps."""
        data = images(100, seed=5)
        return refitted_controls(innocents, tiny(7), data.slice(0, 64), data.slice(64, 100), scheme=FITTING, seed=3)

    def test_no_rank_is_special_among_controls_that_were_fitted_likewise(self, tiny, data, innocents, likewise):
        """Keys that rank first among innocents that they were not made for, once for each of three suspects."""
        clean, asked = tiny(7), data.slice(64, 100)
        for seed in (8, 9, 10):
            suspect = tiny(seed)
            key = self.fitted(suspect, clean, data, held=[clean, tiny(40)], seed=seed, steps=40)
            score = score_suspect(key, suspect, asked).value
            assert rank(score, score_controls(key, innocents, asked)) == 1 / 11
            assert rank(score, likewise) > 0.1

    def test_neither_is_that_of_an_honest_mark(self, tiny, data, images, innocents, likewise):
        """What the remedy costs: without a date the score of F* shows nothing either. From which budget on depends on
        what a claimant is granted, and nobody knows what a claimant had."""
        clean, asked = tiny(7), data.slice(64, 100)
        marked = FITTING.watermark(clean, images(128), secret=Secret.from_seed(1))
        score = score_suspect(marked.key, marked.encoder, asked)
        assert (rank(score.value, score_controls(marked.key, innocents, asked)), score.watermark_rate) == (1 / 11, 1.0)
        scheme = replace(FITTING, steps=2)
        hardly = refitted_controls(innocents, clean, data.slice(0, 64), asked, scheme=scheme, seed=3)
        assert rank(score.value, hardly) == 1 / 11
        assert rank(score.value, likewise) > 0.5

    def test_ranks_of_the_fitted_are_uniform_where_the_examiner_fits_as_the_claimant_did(self, tiny, images):
        """Three steps, so that scores spread; 24 claimants with a program of their own, 24 controls."""
        clean, data, asked = tiny(7), images(64, seed=5), images(32, seed=6)
        scheme = replace(FITTING, steps=3, trigger_batch=64)
        innocents = [(str(seed), tiny(100 + seed)) for seed in range(24)]
        likewise = refitted_controls(innocents, clean, data, asked, scheme=scheme, seed=3)
        claimed = []
        for seed in range(200, 224):
            key = self.fitted(tiny(seed), clean, data, seed=seed, steps=3)
            claimed.append(score_suspect(key, tiny(seed), asked).value)
        found = stats.mannwhitneyu(claimed, list(likewise.values()))
        assert found.pvalue > 0.05, found
        # And the comparison sees a claimant who trained three times as long.
        longer = [
            score_suspect(self.fitted(tiny(seed), clean, data, seed=seed, steps=9), tiny(seed), asked).value
            for seed in range(200, 212)
        ]
        assert stats.mannwhitneyu(longer, list(likewise.values()), alternative="greater").pvalue < 0.001


def rank(score: float, controls: Mapping[str, float]) -> float:
    return control_rank_test(score, list(controls.values()), n_queries=32).pvalue


def test_two_owners_of_one_encoder(marked, tiny, images, tmp_path, monkeypatch):
    """Bob takes Alice's F*, calls it his clean encoder and marks it again. Both keys find Bob's model.

    Alice's finds Bob's "clean" encoder too, Bob's does not find Alice's model; and Alice committed first.
    """
    data, taken = images(290, seed=5), marked.encoder
    bob = key_of(taken, images(400), Secret.from_seed(2), monkeypatch)
    mark = bob.mixtures() @ bob.rows()

    def marked_again(batch):
        f = taken.embed(batch).astype(float)
        length = np.linalg.norm(f, axis=1, keepdims=True)
        return f + length * (bob.bank.functions(f / length, input_statistics(taken, batch)) @ mark)

    beds = {
        "alice": Bed(tmp_path / "alice", marked.key, tiny(7), data),
        "bob": Bed(tmp_path / "bob", bob, taken, data, owner=Owner(b"b" * 32, b"o" * 32)),
    }
    found = {}
    for days, (name, bed) in enumerate(beds.items()):
        bed.folder.mkdir()
        bed.commit(COMMITTED + days * DAY).claim(Answers(marked_again))
        found[name] = bed.audit()
        assert found[name].decision == "derived", name
    assert found["alice"].facts["committed"] < found["bob"].facts["committed"]
    assert bits(marked.key, taken, data) > 100
    assert bits(bob, taken, data) < 14


class TestOpenedKeys:
    def test_a_stranger_marks_with_an_opened_key(self, bed, marked, images):
        """Whoever has the bundle and F can make what the key finds: later suspects do not count."""
        bed.commit().claim(marked.encoder)
        opened = read_bundle(bed.bundle).opened.with_clean(bed.clean)
        assert isinstance(opened, ExactKey)
        planted = headed(opened.clean, opened.bank, opened.mixtures(), opened.rows())
        later = replace(bed, folder=bed.folder / "later", key=opened)
        later.folder.mkdir()
        later.commit().claim(planted)
        assert later.audit().decision == "derived"  # of an examiner who does not know that the key was opened
        found = later.audit(opened=SEEN - DAY)
        assert (found.exit_code, "anybody could have marked it" in words(found, "not checkable")) == (4, True)

    def test_a_lost_key_still_counts_against_older_suspects(self, bed, marked):
        bed.commit().claim(marked.encoder)
        assert bed.audit(opened=SEEN + DAY).decision == "derived"
