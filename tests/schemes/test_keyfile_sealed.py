"""Sealed keys: ordinary age files, opened by environment or prompt alone, and everything else refused."""

from __future__ import annotations

import json
import os
import pty
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyrage
import pytest
import torch
from safetensors.torch import load

from helpers.age_oracle import decrypt_by_passphrase, decrypt_to_identity, encrypt_by_passphrase
from helpers.claim_bed import Answers
from helpers.command_line import done, sslguard
from sslguard.claims.commitment import commit
from sslguard.crypto import sealing
from sslguard.crypto.sealing import IDENTITY, MAX_WORK_FACTOR, PASSPHRASE, Seal, read_recipients, unseal
from sslguard.data.specs import open_data
from sslguard.errors import KeyFileError, OutputError, UsageError
from sslguard.files import canonical_json
from sslguard.schemes.keyfile import Owner, is_key_folder, key_hash, load_key, open_key, reseal_key, save_key
from sslguard.verification.scores import control_scores
from sslguard.verification.verdict import score_suspect

GOLDEN = Path(__file__).parents[1] / "golden"
ME = pyrage.x25519.Identity.generate()
STRANGER = pyrage.x25519.Identity.generate()
TO_ME = Seal(recipients=(str(ME.to_public()),))


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in (PASSPHRASE, IDENTITY):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def as_me(tmp_path, monkeypatch):
    (tmp_path / "me.txt").write_text(f"# created: some day\n{ME}\n")
    monkeypatch.setenv(IDENTITY, str(tmp_path / "me.txt"))


@pytest.fixture
def folder(key_of, tmp_path):
    save_key(key_of(), tmp_path / "key", seal=TO_ME)
    return tmp_path / "key"


def test_comes_back_as_it_was(key_of, folder, as_me):
    stored = open_key(folder)
    assert stored.sealed
    assert key_hash(stored.key) == key_hash(key_of())
    assert json.loads((folder / "key.json").read_bytes())["id"] == stored.owner.public


def test_nothing_of_the_key_can_be_read(key_of, folder, as_me):
    key = key_of()
    for file in folder.iterdir():
        content = file.read_bytes()
        owner = open_key(folder).owner
        for secret in (key.secret.reveal(), owner.salt, owner.signing_key, key.sk.numpy().tobytes()):
            assert secret not in content
            assert secret.hex().encode() not in content
    header = json.loads((folder / "key.json").read_bytes())
    assert header.keys() == {"format", "version", "scheme", "id", "protection"}


def test_modes_whatever_the_umask(key_of, tmp_path):
    before = os.umask(0)
    try:
        save_key(key_of(), tmp_path / "key", seal=TO_ME)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o700
    assert {f.name for f in (tmp_path / "key").iterdir()} == {"key.json", "secret.json.age", "tensors.safetensors.age"}
    assert {stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / "key").iterdir()} == {0o600}


def test_any_program_that_reads_age_opens_it(key_of, folder):
    """By a reader of our own that shares no code with pyrage: first the body, and by what it holds, the tensors."""
    body = json.loads(decrypt_to_identity((folder / "secret.json.age").read_bytes(), str(ME)))
    assert body["fields"]["secret"] == key_of().secret.reveal().hex()
    tensors = load(decrypt_to_identity((folder / "tensors.safetensors.age").read_bytes(), body["identity"]))
    assert torch.equal(tensors["sk"], key_of().sk)


def test_by_a_passphrase(key_of, tmp_path, monkeypatch):
    """The one test that waits for pyrage's scrypt."""
    monkeypatch.setenv(PASSPHRASE, "correct horse")
    save_key(key_of(), tmp_path / "key", seal=sealing.seal_from_environment())
    assert key_hash(load_key(tmp_path / "key")) == key_hash(key_of())


def test_the_oracle_reads_what_it_writes():
    assert decrypt_by_passphrase(encrypt_by_passphrase(b"plain", "correct horse"), "correct horse") == b"plain"


def by_passphrase(folder, passphrase, **scrypt):
    """Seal the body of a key anew, by a scrypt that takes no time."""
    body = decrypt_to_identity((folder / "secret.json.age").read_bytes(), str(ME))
    (folder / "secret.json.age").write_bytes(encrypt_by_passphrase(body, passphrase, **scrypt))


class TestWhatOpensIt:
    def test_nothing(self, folder):
        with pytest.raises(KeyFileError, match=f"sealed to recipients: set {IDENTITY}"):
            load_key(folder)
        by_passphrase(folder, "right")
        with pytest.raises(KeyFileError, match=f"sealed by a passphrase: set {PASSPHRASE}"):
            load_key(folder)

    def test_another_identity(self, folder, tmp_path, monkeypatch):
        (tmp_path / "other").write_text(str(STRANGER))
        monkeypatch.setenv(IDENTITY, str(tmp_path / "other"))
        with pytest.raises(KeyFileError, match="no identity at hand opens"):
            load_key(folder)

    def test_one_of_several(self, key_of, tmp_path, monkeypatch):
        both = Seal(recipients=(str(STRANGER.to_public()), str(ME.to_public())))
        save_key(key_of(), tmp_path / "key", seal=both)
        for identity in (ME, STRANGER):
            (tmp_path / "id").write_text(str(identity))
            monkeypatch.setenv(IDENTITY, str(tmp_path / "id"))
            assert key_hash(load_key(tmp_path / "key")) == key_hash(key_of())

    @pytest.mark.parametrize("content", [None, b"", b"# nothing\n", b"\xff\xfe", b"hello", b"x" * 70_000])
    def test_files_of_identities_that_are_none(self, folder, tmp_path, monkeypatch, content):
        if content is not None:
            (tmp_path / "id").write_bytes(content)
        monkeypatch.setenv(IDENTITY, str(tmp_path / "id"))
        with pytest.raises(KeyFileError, match=r"identity|identities"):
            load_key(folder)

    def test_passphrases(self, key_of, folder, monkeypatch):
        by_passphrase(folder, "right")
        monkeypatch.setenv(PASSPHRASE, "wrong")
        with pytest.raises(KeyFileError, match="passphrase does not open") as caught:
            load_key(folder)
        assert "wrong" not in str(caught.value)
        monkeypatch.setenv(PASSPHRASE, "right")
        assert key_hash(load_key(folder)) == key_hash(key_of())

    def test_a_scrypt_that_would_fill_all_memory(self, folder, monkeypatch):
        by_passphrase(folder, "right")
        monkeypatch.setenv(PASSPHRASE, "right")
        content = (folder / "secret.json.age").read_bytes().replace(b" 6\n", b" %d\n" % (MAX_WORK_FACTOR + 1), 1)
        (folder / "secret.json.age").write_bytes(content)
        with pytest.raises(KeyFileError, match=r"scrypt with 2\^23 blocks; at most 2\^22"):
            load_key(folder)

    def test_at_a_terminal_it_is_asked_for_and_not_shown(self, folder, key_of):
        by_passphrase(folder, "right one")
        code = (
            "import sys; from pathlib import Path; from sslguard.schemes.keyfile import key_hash, load_key; "
            "print(key_hash(load_key(Path(sys.argv[1]))))"
        )
        primary, terminal = pty.openpty()
        ran = subprocess.Popen(
            [sys.executable, "-c", code, folder],
            stdin=terminal,
            stderr=terminal,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        os.close(terminal)
        shown = b""
        while b"Passphrase" not in shown:
            shown += os.read(primary, 1024)
        os.write(primary, b"right one\n")
        out, _ = ran.communicate(timeout=60)
        assert out.decode().strip() == key_hash(key_of())
        assert b"right" not in shown


def replaced(name, content):
    return lambda folder: (folder / name).write_bytes(content((folder / name).read_bytes()))


def of_another_key(name):
    def spoil(folder):
        other = folder.parent / "other"
        save_key(load_key(folder), other, seal=TO_ME)
        shutil.copy(other / name, folder / name)

    return spoil


HOSTILE = {
    "no body": (lambda f: (f / "secret.json.age").unlink(), "secret.json.age is missing"),
    "no tensors": (lambda f: (f / "tensors.safetensors.age").unlink(), "age is missing"),
    "empty": (replaced("secret.json.age", lambda c: b""), "not an age file"),
    "no age": (replaced("secret.json.age", lambda c: b"{}"), "not an age file"),
    "cut": (replaced("secret.json.age", lambda c: c[:-1]), "damaged"),
    "cut header": (replaced("secret.json.age", lambda c: c[:60]), "damaged"),
    "added to": (replaced("secret.json.age", lambda c: c + b"x"), "damaged"),
    "one bit": (replaced("secret.json.age", lambda c: c[:-5] + bytes([c[-5] ^ 1]) + c[-4:]), "damaged"),
    "one bit of the tensors": (
        replaced("tensors.safetensors.age", lambda c: c[:-5] + bytes([c[-5] ^ 1]) + c[-4:]),
        "damaged",
    ),
    "no JSON": (replaced("secret.json.age", lambda c: TO_ME.close(b"[")), "holds no JSON"),
    "deep": (replaced("secret.json.age", lambda c: TO_ME.close(b"[" * 200_000)), "holds no JSON"),
    "a list": (replaced("secret.json.age", lambda c: TO_ME.close(b"[]")), "does not open the tensors"),
    "an empty body": (replaced("secret.json.age", lambda c: TO_ME.close(b'{"identity":"x"}')), "scheme None"),
    "another header": (
        replaced("key.json", lambda c: canonical_json({**json.loads(c), "id": "ab" * 32})),
        "its id and its scheme",
    ),
    "the body of another key": (of_another_key("secret.json.age"), r"its id|no identity"),
    "the tensors of another key": (of_another_key("tensors.safetensors.age"), "no identity at hand"),
    "too large": (replaced("secret.json.age", lambda c: c + bytes(3 << 20)), "larger than"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_sentence(folder, as_me, name, key_of):
    spoil, message = HOSTILE[name]
    spoil(folder)
    with pytest.raises(KeyFileError, match=message) as caught:
        load_key(folder)
    said = str(caught.value)
    assert "\n" not in said
    assert key_of().secret.reveal().hex()[:12] not in said
    assert str(ME) not in said


class TestSeals:
    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (lambda: Seal(), "a passphrase or recipients"),
            (lambda: Seal("x", ("age1",)), "a passphrase or recipients"),
            (lambda: Seal("  "), "must not be empty"),
            (lambda: Seal(recipients=("age1nonsense",)), "age public key"),
            (lambda: Seal(recipients=(str(ME.to_public()),) * 65), "at most 64"),
            (lambda: read_recipients(["nowhere.txt"]), "nowhere.txt is missing"),
        ],
    )
    def test_that_are_none(self, made, message):
        with pytest.raises(UsageError, match=message):
            made()

    def test_an_identity_for_a_recipient_is_not_repeated(self):
        with pytest.raises(UsageError, match="which is secret") as caught:
            Seal(recipients=(str(ME),))
        assert str(ME)[20:] not in str(caught.value)

    def test_recipients_from_files(self, tmp_path):
        (tmp_path / "team").write_text(f"# the team\n{ME.to_public()}\n\n{STRANGER.to_public()}\n")
        team = (str(ME.to_public()), str(STRANGER.to_public()))
        assert read_recipients([str(tmp_path / "team")]) == team
        assert read_recipients([team[0]]) == team[:1]
        (tmp_path / "nobody").write_text("# nobody\n")
        with pytest.raises(UsageError, match="holds no recipient"):
            read_recipients([str(tmp_path / "nobody")])

    def test_secrets_show_in_no_repr(self):
        owner = Owner(b"s" * 32, b"k" * 32)
        assert "horse" not in repr(Seal("horse"))
        assert "sss" not in repr(owner) + str(owner)

    @pytest.mark.parametrize("plain", [b"", b"x", bytes(CHUNK := 1 << 16), bytes(CHUNK + 1)])
    def test_of_any_length(self, plain, as_me):
        assert unseal(TO_ME.close(plain), "it") == plain
        assert decrypt_to_identity(TO_ME.close(plain), str(ME)) == plain


class TestProtect:
    """The command, and the function below it."""

    def test_there_and_back_with_owner_and_scores(self, key_of, tmp_path, as_me):
        save_key(key_of(), tmp_path / "key")
        owner = open_key(tmp_path / "key").owner
        (tmp_path / "key" / "controls.json").write_bytes(b"scores")
        assert done("protect", tmp_path / "key", "--recipient", ME.to_public())["sealed"]
        assert is_key_folder(tmp_path / "key")
        stored = open_key(tmp_path / "key")
        assert (stored.sealed, key_hash(stored.key)) == (True, key_hash(key_of()))
        assert stored.owner.public == owner.public
        assert stored.owner.salt == owner.salt
        assert not done("protect", tmp_path / "key", "--clear")["sealed"]
        assert (tmp_path / "key" / "controls.json").read_bytes() == b"scores"
        assert {f.name for f in (tmp_path / "key").iterdir()} == {"key.json", "tensors.safetensors", "controls.json"}

    def test_what_is_no_part_of_a_key_is_not_lost_with_the_old_one(self, key_of, tmp_path):
        """A commitment kept beside its key, with a timestamp that nobody can get again."""
        save_key(key_of(), tmp_path / "key")
        (tmp_path / "key" / "commitment.json.tsr").write_bytes(b"early")
        (tmp_path / "key" / ".controls.json.0a1b2c3d.partial").write_bytes(b"left by a kill")
        before = {f.name: f.read_bytes() for f in (tmp_path / "key").iterdir()}
        ran = sslguard("protect", tmp_path / "key", "--clear")
        assert (ran.code, "'commitment.json.tsr', which is no part of a key" in ran.err) == (2, True), ran.err
        with pytest.raises(OutputError, match="would be lost"):
            save_key(key_of(), tmp_path / "key")
        assert {f.name: f.read_bytes() for f in (tmp_path / "key").iterdir()} == before
        (tmp_path / "key" / "commitment.json.tsr").unlink()
        assert not done("protect", tmp_path / "key", "--clear")["sealed"]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ((), "say how to protect"),
            (("--clear", "--ask-passphrase"), "no terminal"),
            (("--clear", "--recipient", ME.to_public()), "--clear takes"),
            (("--recipient", ME.to_public(), "--ask-passphrase"), "exclude each other"),
            (("--recipient", "age1x"), "age public key"),
        ],
    )
    def test_usage(self, key_of, tmp_path, options, words):
        save_key(key_of(), tmp_path / "key")
        before = {f.name: f.read_bytes() for f in (tmp_path / "key").iterdir()}
        ran = sslguard("protect", tmp_path / "key", *options)
        assert (ran.code, words in ran.err) == (2, True), ran.err
        assert {f.name: f.read_bytes() for f in (tmp_path / "key").iterdir()} == before

    def test_stored_scores_serve_a_sealed_key(self, key_of, tmp_path, images, as_me, tiny, monkeypatch):
        from sslguard.encoders.folder import save_encoder

        monkeypatch.chdir(tmp_path)
        for seed in range(2):
            save_encoder(tiny(seed, linear=2), tmp_path / f"control-{seed}")
        save_key(key_of(), tmp_path / "key", seal=TO_ME)
        names = ["control-0", "control-1"]
        first = control_scores(load_key(tmp_path / "key"), names, images(9), folder=tmp_path / "key")
        again = control_scores(load_key(tmp_path / "key"), names, images(9), folder=tmp_path / "key")
        assert (first.stored, first.kept, again.stored) == (False, True, True)
        reseal_key(tmp_path / "key", None)
        assert control_scores(load_key(tmp_path / "key"), names, images(9), folder=tmp_path / "key").stored


class TestWatermark:
    @pytest.fixture
    def line(self, tiny, tmp_path):
        from sslguard.encoders.folder import save_encoder

        save_encoder(tiny(7), tmp_path / "clean")
        pictures = np.random.default_rng(0).integers(0, 256, (500, 16, 16), dtype=np.uint8)
        np.save(tmp_path / "pictures.npy", pictures)
        head = ("--scheme", "exact", "--mode", "head", "--n-queries", "200", "--out", tmp_path / "marked")
        return ("watermark", tmp_path / "clean", "--data", f"{tmp_path}/pictures.npy[0:300]", *head)

    def test_seals_for_a_recipient(self, line, tmp_path, as_me):
        ran = sslguard(*line, "--recipient", ME.to_public())
        assert ran.code == 0, ran.err
        assert "clear" not in ran.err
        assert open_key(tmp_path / "marked" / "key").sealed
        asked = ("--data", f"{tmp_path}/pictures.npy[300:500]")
        assert sslguard("verify", tmp_path / "marked" / "key", tmp_path / "marked" / "encoder", *asked).code == 0

    def test_says_that_a_key_is_in_the_clear(self, line, tmp_path):
        ran = sslguard(*line)
        assert (ran.code, ran.err.count("in the clear")) == (0, 1)
        assert not open_key(tmp_path / "marked" / "key").sealed

    def test_bad_recipients_are_known_before_the_work(self, line, tmp_path):
        ran = sslguard(*line, "--recipient", "age1x")
        assert (ran.code, (tmp_path / "marked").exists()) == (2, False)


class TestGolden:
    """Keys as they were written on the day of the golden files: they open, and say what they said then."""

    EXPECTED = json.loads((GOLDEN / "expected.json").read_bytes())

    @pytest.mark.parametrize("name", sorted(EXPECTED["keys"]))
    def test_opens(self, name, monkeypatch):
        monkeypatch.setenv(IDENTITY, str(GOLDEN / "identity.txt"))
        monkeypatch.setenv(PASSPHRASE, self.EXPECTED["passphrase"])
        wanted, stored = self.EXPECTED["keys"][name], open_key(GOLDEN / name)
        assert key_hash(stored.key) == wanted["key_hash"]
        assert stored.sealed == wanted["sealed"]
        assert stored.owner.public == wanted["id"]
        assert stored.key.secret.reveal().hex() == wanted["secret"]

    @pytest.mark.parametrize("golden", ["key-clear", "key-exact", "key-exact-sub-keys"])
    def test_a_key_in_the_clear_is_written_as_then(self, tmp_path, golden):
        stored = open_key(GOLDEN / golden)
        save_key(stored.key, tmp_path / "key", owner=stored.owner)
        for name in ("key.json", "tensors.safetensors"):
            assert (tmp_path / "key" / name).read_bytes() == (GOLDEN / golden / name).read_bytes()

    @pytest.mark.parametrize("name", [name for name in sorted(EXPECTED["keys"]) if "exact" in name])
    def test_keys_of_the_exact_scheme_score_as_then(self, name, monkeypatch):
        """Bits of the whole key, then of each sub-key, on answers of the marked encoder of that day."""
        monkeypatch.setenv(IDENTITY, str(GOLDEN / "identity.txt"))
        wanted, stored = self.EXPECTED["keys"][name], open_key(GOLDEN / name)
        texts = (GOLDEN / "texts.txt").read_text().splitlines()
        known = dict(zip(texts, np.load(GOLDEN / wanted["answers"]), strict=True))
        suspect = Answers(lambda batch: np.stack([known[text] for text in batch]))
        keys = [stored.key, *stored.key.split()]
        found = [score_suspect(key, suspect, open_data(f"text:{GOLDEN}/texts.txt")).evidence.statistic for key in keys]
        assert found == pytest.approx(wanted["bits"], rel=1e-5)
        assert list(commit(stored).keys) == wanted["commitment"]
