"""Sub-keys of the exact scheme: each a key by itself, one opened and the others as secret as before."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy import stats

from helpers.claim_bed import SEED, SEEN, Bed, words
from helpers.command_line import done, sslguard
from helpers.envelopes import disclosed
from sslguard.claims.commitment import commit
from sslguard.claims.derivation import undue_freedom
from sslguard.claims.openings import opened_at, read_openings, record_opening
from sslguard.crypto.secrets import Secret
from sslguard.encoders.folder import save_encoder
from sslguard.errors import ClaimError, KeyFileError, OutputError, UsageError
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.marking import headed
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import OPENINGS, StoredKey, key_hash, load_key, open_key, save_key, serialise_tensors
from sslguard.stats.left import FAMILY
from sslguard.verification.verdict import score_suspect

S = 3
THREE = Exact(Protocol(n_queries=250), mode="head", sub_keys=S, largest=0.1, share=0.6, overlap=0)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def marked(tiny, images):
    return THREE.watermark(tiny(7), images(400), secret=Secret.from_seed(1))


@pytest.fixture(scope="module")
def asked(images):
    return images(300, seed=5)


@pytest.fixture
def bed(marked, tiny, asked, tmp_path):
    return Bed(tmp_path, marked.key, tiny(7), asked)


def bits(key, suspect, data):
    return -score_suspect(key, suspect, data).evidence.log2_pvalue


class TestMark:
    def test_found_by_the_whole_key_and_by_each_sub_key(self, marked, tiny, asked):
        for key in (marked.key, *marked.key.split()):
            assert bits(key, marked.encoder, asked) > 100
            assert bits(key, tiny(8), asked) < 14
            assert bits(key, tiny(7), asked) < 14

    def test_is_one_mark_shared_alike(self, marked):
        """|A|² = |G|² = s·r of the whole, and a sub-key's share of either about one in s, in its own direction."""
        whole, r = marked.key, THREE.protocol.rank
        a, g = whole.left(), whole.right()
        for secret in (a, g):
            assert np.square(secret).sum() == pytest.approx(S * r)
        shares = zip(np.split(a, S, axis=1), np.split(g, S), whole.split(), strict=True)
        for left, right, one in shares:
            assert np.square(left).sum() == pytest.approx(r, rel=0.3)
            assert np.square(right).sum() == pytest.approx(r, rel=0.3)
            np.testing.assert_allclose(left / np.linalg.norm(left), one.left() / np.sqrt(r), atol=1e-12)
            np.testing.assert_allclose(right / np.linalg.norm(right), one.right() / np.sqrt(r), atol=1e-12)
            assert one.size == pytest.approx(whole.size / S)

    def test_what_each_adds_sums_up_to_the_whole(self, marked):
        """A sub-key's own sphere makes its share a little longer or shorter than in the whole."""
        parts = [one.mixtures() @ one.rows() for one in marked.key.split()]
        whole = marked.key.mixtures() @ marked.key.rows()
        together = np.linalg.lstsq(np.stack([part.ravel() for part in parts], 1), whole.ravel(), rcond=None)
        assert together[1] < 1e-12 * np.square(whole).sum()
        assert together[0] == pytest.approx(np.ones(S), rel=0.3)

    def test_secrets_of_no_two_are_alike_and_the_bank_is_common(self, marked):
        keys = [marked.key, *marked.key.split()]
        assert len({key.bank.digest() for key in keys}) == 1
        assert len({key.secret.reveal() for key in keys}) == 1 + S
        for i, one in enumerate(keys[1:]):
            for other in keys[i + 2 :]:
                for a, b in ((one.left(), other.left()), (one.right(), other.right())):
                    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.3

    def test_pvalues_are_uniform_given_that_another_sub_key_is_known(self, tiny, images, asked):
        """The suspect carries what sub-key 1 marks, as whoever saw it opened can make: sub-key 2 says nothing of it."""
        clean, found = tiny(7), []
        first = THREE.watermark(clean, images(400), secret=Secret.from_seed(0)).key
        for seed in range(24):
            one, two = replace(first, secret=Secret.from_seed(seed), _embedded={}).split()[:2]
            planted = headed(clean, one.bank, one.mixtures(), np.sqrt(S) * one.rows())
            details = score_suspect(two, planted, asked).evidence.details
            left, right = (details[f"log2 p of {name}"] for name in (f"left, {FAMILY[0].name}", "right, procrustes"))
            found.append((2**left, 2**right))
        assert bits(one, planted, asked) > 100
        left, right = np.transpose(found)
        assert min(stats.kstest(p, "uniform").pvalue for p in (left, right)) > 0.005

    def test_as_many_as_there_is_room_for(self):
        for count in (0, 17):
            with pytest.raises(UsageError, match="sub_keys must be at least 1 and at most 16"):
                Exact(sub_keys=count)
        with pytest.raises(UsageError, match="rank times sub_keys must be at most 64, not 8 times 9"):
            Exact(Protocol(rank=8), sub_keys=9)


class TestOpened:
    def test_holds_nothing_of_the_master_secret_or_the_others(self, marked):
        one, *others = marked.key.split()
        fields, tensors = one.to_parts()
        content = json.dumps(fields).encode() + serialise_tensors(tensors)
        kept = {name: tensor for name, tensor in tensors.items() if name.startswith("bank.")}
        for key in (marked.key, *others):
            assert key.secret.reveal() not in content
            assert key.secret.reveal().hex().encode() not in content
        for other in (marked.key, *others):
            for array in (other.left(), other.right(), other.mixtures(), other.rows()):
                assert array.tobytes()[:64] not in content
        # Not a view of the whole key's memory.
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in kept.values())

    def test_is_a_key_like_any_other(self, marked, asked, tmp_path, tiny):
        save_key(marked.key.opened(2), tmp_path / "key")
        again = load_key(tmp_path / "key")
        assert isinstance(again, ExactKey)
        assert again.split() == []
        assert undue_freedom(again, tiny(7)) is None
        assert bits(again, marked.encoder, asked) == bits(marked.key.opened(2), marked.encoder, asked)

    @pytest.mark.parametrize("number", [0, 4, -1])
    def test_numbers_that_are_none(self, marked, number):
        with pytest.raises(UsageError, match="this key has the sub-keys 1 to 3"):
            marked.key.opened(number)
        with pytest.raises(UsageError, match="this key has no sub-keys"):
            marked.key.opened(1).opened(1)

    def test_keys_of_sslguard_have_none(self, key_of):
        with pytest.raises(UsageError, match="no sub-keys, only those of exact"):
            StoredKey(key_of(), None, False).opened(1)


class TestFolder:
    def test_comes_back(self, marked, tmp_path):
        save_key(marked.key, tmp_path / "key")
        again = load_key(tmp_path / "key")
        assert np.array_equal(again.left(), marked.key.left())
        assert np.array_equal(again.right(), marked.key.right())
        assert [one.secret.reveal() for one in again.split()] == [one.secret.reveal() for one in marked.key.split()]

    @pytest.mark.parametrize("count", [0, 17, 10**9, "x", None])
    def test_other_numbers_are_refused(self, marked, count):
        fields, tensors = marked.key.to_parts()
        with pytest.raises(KeyFileError):
            ExactKey.from_parts({**fields, "sub_keys": count}, tensors)

    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_with_another_number_it_is_another_key(self, marked, asked, count):
        fields, tensors = marked.key.to_parts()
        other = ExactKey.from_parts({**fields, "sub_keys": count}, tensors)
        assert key_hash(other) != key_hash(marked.key)
        found = -score_suspect(other, marked.encoder, asked).evidence.details["right_bits"]
        assert (found < -14) == (count > 1)  # sub-keys of the same name are the same, and the master's own is none


class TestClaims:
    def test_every_sub_key_has_a_commitment_of_its_own(self, bed, marked):
        whole = commit(bed.stored)
        assert len(set(whole.keys)) == 1 + S
        one = StoredKey(marked.key.opened(1), bed.owner, False)
        assert commit(one).keys[0] not in whole.keys  # the same key under another salt

    @pytest.mark.parametrize("number", [1, 3])
    def test_one_is_opened_and_audited(self, bed, marked, number):
        bed.commit()
        one = replace(bed, sub_key=number)
        claimed = one.claim(marked.encoder)
        assert (claimed.decision, claimed.n_claims) == ("derived", 1 + S)
        content = disclosed(*(file.read_bytes() for file in bed.bundle.iterdir()))
        assert marked.key.opened(number).secret.reveal().hex().encode() in content
        for other in (marked.key, *(k for i, k in enumerate(marked.key.split(), 1) if i != number)):
            assert other.secret.reveal().hex().encode() not in content
        found = bed.audit()
        assert (found.decision, found.n_tries) == ("derived", (1 + S) << 26)
        assert "one of 4 keys" in words(found, "passed")

    def test_the_whole_key_can_be_opened_too(self, bed, marked):
        bed.commit().claim(marked.encoder)
        assert bed.audit().decision == "derived"

    def test_one_that_was_not_committed_to(self, bed, marked, tiny, images):
        bed.commit()
        other = THREE.watermark(tiny(7), images(400), secret=Secret.from_seed(2)).key
        with pytest.raises(ClaimError, match="does not commit to this key"):
            replace(bed, key=other, sub_key=1).claim(marked.encoder)

    def test_opened_before_it_says_nothing_of_younger_suspects(self, bed, marked, tmp_path):
        """The claimant's own record says so, whatever the examiner knows."""
        save_key(marked.key, tmp_path / "key", owner=bed.owner)
        stored = open_key(tmp_path / "key").opened(1)
        record_opening(stored)
        bed.commit()
        again = replace(bed, sub_key=1, key_folder=tmp_path / "key")
        again.claim(marked.encoder)
        assert bed.audit(not_after=SEEN).decision == "derived"
        late = bed.audit(not_after=datetime.now(UTC) + DAY)
        assert (late.exit_code, "anybody could have marked it" in words(late, "not checkable")) == (4, True)


class TestOpenings:
    def test_the_first_time_stays_and_the_others_are_told_apart(self, marked, tmp_path):
        save_key(marked.key, tmp_path / "key")
        stored = open_key(tmp_path / "key")
        assert opened_at(stored.folder, 0) is None
        early = '{"format":"sslguard-openings","opened":{"2":"2020-01-01T00:00:00+00:00"},"version":1}\n'
        (tmp_path / "key" / OPENINGS).write_text(early)
        for number in (2, 1):
            record_opening(stored.opened(number))
        found = read_openings(stored.folder)
        assert (found.keys(), found[2].year) == ({1, 2}, 2020)
        assert opened_at(stored.folder, 0) == found[2]
        assert opened_at(stored.folder, 1) == found[1] > found[2]
        assert opened_at(stored.folder, 3) is None
        record_opening(stored)
        assert opened_at(stored.folder, 3) is not None
        assert opened_at(None, 0) is None

    @pytest.mark.parametrize(
        "content",
        [
            *("", "{}", "[]\n", '{"opened":{}}\n', "x" * (2 << 20)),
            '{"format":"sslguard-openings","opened":{"99":"2020-01-01T00:00:00+00:00"},"version":1}\n',
            '{"format":"sslguard-openings","opened":{"1":"2020-01-01"},"version":1}\n',
            '{"format":"sslguard-openings","opened":{"1":5},"version":1}\n',
        ],
    )
    def test_damaged_records(self, tmp_path, content):
        (tmp_path / OPENINGS).write_text(content)
        with pytest.raises(ClaimError):
            read_openings(tmp_path)

    def test_where_none_can_be_kept_nobody_is_asked(self, bed, marked, tmp_path, counting, monkeypatch):
        save_key(marked.key, tmp_path / "key", owner=bed.owner)
        monkeypatch.setattr("os.access", lambda path, mode: False)
        suspect = counting(64)
        with pytest.raises(OutputError, match="must be writable"):
            replace(bed.commit(), key_folder=tmp_path / "key").claim(suspect)
        assert suspect.asked == 0


def test_command_line(tiny, tmp_path):
    save_encoder(tiny(7), tmp_path / "clean")
    pictures = np.random.default_rng(0).integers(0, 256, (600, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    line = ("watermark", tmp_path / "clean", "--data", f"{tmp_path}/pictures.npy[0:300]", "--out", tmp_path / "m")
    exact = ("--scheme", "exact", "--mode", "head", "--n-queries", "250", "--sub-keys", "2")
    pool = ("--pool", f"{tmp_path}/pictures.npy[300:600]")
    assert sslguard(*line, "--scheme", "sslguard", "--sub-keys", "2").code == 2
    assert done(*line, *exact, *pool)["settings"]["sub_keys"] == 2
    key, suspect = tmp_path / "m/key", tmp_path / "m/encoder"
    asked = ("--data", f"{tmp_path}/pictures.npy[300:600]")
    done("commit", key, "--out", tmp_path / "c.json")
    for more, shared in (((), 1), (("--sub-key", 2), 3), (("--sub-key", 2, "--claims", 2), 6)):
        found = done("verify", key, suspect, *asked, *more)
        assert (found["decision"], found["n_claims"]) == ("derived", shared)
    claim = ("claim", key, suspect, *asked, "--seed", SEED, "--commitment", tmp_path / "c.json")
    first = sslguard(*claim, "--sub-key", 2, "--out", tmp_path / "b")
    assert (first.code, "opened" in first.err) == (0, False)
    audited = sslguard("audit", tmp_path / "b", *asked, "--seed", SEED, "--clean", tmp_path / "clean")
    assert (audited.code, "one of 4 keys and secret orders" in " ".join(audited.out.split())) == (0, True)
    assert "this key, or a part of it, was opened on 20" in sslguard("verify", key, suspect, *asked).err
    assert "opened on" not in sslguard("verify", key, suspect, *asked, "--sub-key", 1).err
    assert sslguard(*claim, "--sub-key", 3, "--out", tmp_path / "no").code == 2
    assert "all of its 2 sub-keys" in sslguard(*claim, "--out", tmp_path / "whole").err
    done("protect", key, "--clear")
    assert set(read_openings(key)) == {0, 2}
