"""Commitments: they bind and hide, are signed by their owner, and dated by authorities that somebody vouches for."""

from __future__ import annotations

import base64
import json
import shutil
import socketserver
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.command_line import done, sslguard
from helpers.envelopes import disclosed, enveloped, forged, predicate_of, statement_of
from helpers.timestamp_authority import Authority, asked, refusal, serving
from sslguard.claims.bundle import OF_CLAIMS
from sslguard.claims.commitment import (
    OF_COMMITMENTS,
    OpenedKey,
    commit,
    key_salt,
    parse_commitment,
    publish,
    timestamp_file,
)
from sslguard.claims.documents import MAX_DOCUMENT, sign_document
from sslguard.claims.timestamps import MAX_TOKEN, claimed_time, read_roots, request_token, verified_time
from sslguard.crypto.secrets import Secret
from sslguard.errors import ClaimError, KeyFileError, OutputError, UsageError
from sslguard.files import canonical_json
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import Owner, StoredKey, load_key, open_key, save_key

OWNER = Owner(b"s" * 32, b"k" * 32)
NEW_YEAR = datetime(2025, 1, 1, tzinfo=UTC)


@contextmanager
def speaking(answer):
    """A server that says what `answer` writes on its connection; yields its address."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1 << 16)
            with suppress(OSError):
                answer(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(scope="module")
def exact(tiny, images):
    scheme = Exact(Protocol(n_queries=200), mode="head")
    return scheme.watermark(tiny(7), images(400), secret=Secret.from_seed(1)).key


@pytest.fixture
def stored(key_of):
    return StoredKey(key_of(), OWNER, False)


GOLDEN = Path(__file__).parents[1] / "golden"


class TestOpening:
    def test_is_a_function_of_the_key_wherever_it_was(self, exact, tmp_path):
        save_key(exact, tmp_path / "key", owner=OWNER)
        again = open_key(tmp_path / "key")
        assert commit(again) == commit(StoredKey(exact, OWNER, False))

    def test_binds_every_part(self, exact):
        opened = OpenedKey.of(exact)
        digests = {opened.digest(b"s" * 32), opened.digest(b"t" * 32)}
        changes = 2
        for name in opened.fields:
            digests.add(replace(opened, fields={**opened.fields, name: "other"}).digest(b"s" * 32))
            changes += 1
        for name, tensor in opened.tensors.items():
            digests.add(replace(opened, tensors={**opened.tensors, name: tensor + 1}).digest(b"s" * 32))
            changes += 1
        digests.add(replace(opened, scheme="sslguard").digest(b"s" * 32))
        assert len(digests) == changes + 1

    def test_comes_back_with_its_encoder_and_no_other(self, exact, tiny):
        opened = OpenedKey.of(exact)
        assert not any(name.startswith(("clean.", "file.")) for name in opened.tensors)
        again = opened.with_clean(tiny(7))
        assert np.array_equal(again.left(), exact.left())
        assert np.array_equal(again.right(), exact.right())
        with pytest.raises(KeyFileError, match="clean encoder"):
            opened.with_clean(tiny(8))
        with pytest.raises(ClaimError, match="another architecture"):
            opened.with_clean(tiny(7, linear=32))
        smuggled = replace(opened, tensors={**opened.tensors, "clean.0.weight": torch.ones(3)})
        with pytest.raises(ClaimError, match="must not hold weights of F"):
            smuggled.with_clean(tiny(7))

    def test_holds_no_path(self, exact):
        assert exact.clean.source not in json.dumps(dict(OpenedKey.of(exact).fields))

    def test_salts_of_keys_are_their_own(self):
        assert key_salt(OWNER) != key_salt(OWNER, 1) != OWNER.salt != key_salt(OWNER)


class TestCommitment:
    def test_hides_the_key_and_names_the_owner(self, stored, key_of):
        content = commit(stored).document.content
        found = parse_commitment(content, "it")
        assert found == commit(stored)
        assert found.document.owner == OWNER.public
        for secret in (stored.key.secret.reveal(), OWNER.salt, OWNER.signing_key, key_salt(OWNER)):
            assert secret.hex().encode() not in disclosed(content)
        assert commit(StoredKey(key_of(secret=2), OWNER, False)).keys != found.keys
        assert commit(StoredKey(key_of(), Owner(b"t" * 32, b"k" * 32), False)).keys != found.keys

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda c: b"", "not JSON"),
            (lambda c: c[:-2], "not JSON"),
            (lambda c: c[:-1], "canonical"),
            (lambda c: c + b"\n", "canonical"),
            (lambda c: c.replace(b",", b", ", 1), "canonical"),
            (lambda c: b'{"payload":"","payload":' + c[len(b'{"payload":') :], "canonical"),
            (lambda c: b"[" * 200_000, "not JSON"),
            (lambda c: b"NaN\n", "not in canonical"),
            (lambda c: b"[]\n", "canonical"),
            (lambda c: b"{}\n", "is not a signed document"),
            (lambda c: b" " * (MAX_DOCUMENT + 1), "larger than"),
            (lambda c: changed(c, keys=["ab" * 32]), "signature"),
            (lambda c: changed(c, owner="ab" * 32), "signature"),
            (lambda c: changed(c, owner="AB" * 32), "hexadecimal"),
            (lambda c: changed(c, owner=None), "hexadecimal"),
            (lambda c: changed(c, owner="\ud800"), "hexadecimal"),
            (
                lambda c: forged(c, lambda s: s.update(_type="https://in-toto.io/Statement/v0.1")),
                "no in-toto statement",
            ),
            (lambda c: forged(c, lambda s: s.update(predicate=[])), "no in-toto statement"),
            (lambda c: forged(c, lambda s: s.update(predicateType=OF_CLAIMS.type)), "no commitment of sslguard"),
            (lambda c: forged(c, lambda s: s.update(predicateType=3)), "no commitment of sslguard"),
            (lambda c: forged(c, lambda s: s.update(more=1)), "subject"),
            (lambda c: forged(c, lambda s: s.pop("subject")), "subject"),
            (lambda c: forged(c, lambda s: s["subject"].pop()), "subject"),
            (lambda c: forged(c, lambda s: s["subject"][0]["digest"].update(sha256="cd" * 32)), "subject"),
            (lambda c: forged(c, lambda s: s["subject"][0]["digest"].update(sha1="cd" * 20)), "subject"),
            (lambda c: sealed(c, b"not JSON"), "payload of it is damaged"),
            (lambda c: sealed(c, b'{"_type": 1}'), "payload of it is not in canonical JSON"),
            (lambda c: sealed(c, b"[" * 200_000), "payload of it is damaged"),
            (lambda c: wrapped(c, payload=3), "DSSE envelope with one"),
            (lambda c: wrapped(c, payload="%%%"), "DSSE envelope with one"),
            (lambda c: wrapped(c, payload="\ud800"), "DSSE envelope with one"),
            (lambda c: wrapped(c, payload="eyJ9-_"), "DSSE envelope"),
            (lambda c: wrapped(c, payloadType="text/plain"), "DSSE envelope of application"),
            (lambda c: wrapped(c, payloadType=["application/vnd.in-toto+json"]), "DSSE envelope of application"),
            (lambda c: wrapped(c, more=1), "DSSE envelope of application"),
            (lambda c: wrapped(c, signatures=[]), "with one signature"),
            (lambda c: wrapped(c, signatures={}), "with one signature"),
            (lambda c: wrapped(c, signatures=[3]), "with one signature"),
            (lambda c: wrapped(c, signatures=[{"sig": ""}]), "with one signature"),
            (lambda c: wrapped(c, signatures=[{"keyid": [], "sig": ""}]), "with one signature"),
            (lambda c: wrapped(c, signatures=[{"keyid": "", "sig": ""}]), "signature"),
            (lambda c: wrapped(c, signatures=2 * json.loads(c)["signatures"]), "with one signature"),
            (lambda c: other_signature(c, keyid="0" * 64), "signature"),
            (lambda c: other_signature(c, sig="AAAA"), "signature"),
            (lambda c: other_signature(c, cert="x"), "without more fields"),
            (lambda c: wrapped(c, signatures=[*json.loads(c)["signatures"], {"keyid": "x", "sig": "AA=="}]), "one sig"),
            (lambda c: enveloped(statement_of(c), other_kind()), "signature"),
            (lambda c: signed(keys=[]), "1 to 64 keys"),
            (lambda c: signed(keys=["ab" * 32] * 2), "each once"),
            (lambda c: signed(keys=["ab" * 31]), "hexadecimal"),
            (lambda c: signed(keys={"a": 1}), "is not a commitment"),
            (lambda c: signed(keys=list(range(70_000))), "larger than|1 to 64 keys"),
            (lambda c: signed(keys=[["ab" * 32]]), "hexadecimal"),
            (lambda c: signed(keys=["ab" * 32], more=1), "is not a commitment"),
        ],
    )
    def test_hostile_files(self, stored, spoil, message):
        content = spoil(commit(stored).document.content)
        with pytest.raises(ClaimError, match=message):
            parse_commitment(content, "it")

    def test_another_owners_signature(self, stored):
        """Whoever copies a commitment cannot sign it as its owner, only as somebody else."""
        said = dict(commit(stored).document.predicate)
        mallory = sign_document(Owner(b"s" * 32, b"m" * 32), OF_COMMITMENTS, said).content
        assert parse_commitment(mallory, "it").document.owner != OWNER.public
        with pytest.raises(ClaimError, match="signature"):
            parse_commitment(changed(mallory, owner=OWNER.public), "it")


def changed(content, **fields):
    """A commitment that says something else, its subject to match, under the old signature."""
    return enveloped(OF_COMMITMENTS.statement({**predicate_of(content), **fields}), content)


def wrapped(content, **fields):
    """An envelope with other fields."""
    return canonical_json({**json.loads(content), **fields}) + b"\n"


def other_signature(content, **fields):
    (signature,) = json.loads(content)["signatures"]
    return wrapped(content, signatures=[{**signature, **fields}])


def sealed(content, payload):
    """An envelope of any bytes."""
    return wrapped(content, payload=base64.b64encode(payload).decode())


def other_kind():
    """A claim, which the same owner signed."""
    return sign_document(OWNER, OF_CLAIMS, {}).content


def signed(**fields):
    return sign_document(OWNER, OF_COMMITMENTS, fields).content


class TestTimestamps:
    def test_of_a_trusted_authority(self, authority):
        token = authority.token(b"these bytes", NEW_YEAR)
        assert claimed_time(token, b"these bytes", "it") == NEW_YEAR
        assert verified_time(token, b"these bytes", [authority.root], "it") == NEW_YEAR

    def test_openssl_thinks_so_too(self, authority, tmp_path):
        """Of the tests' own authority, whose DER is made by hand."""
        if shutil.which("openssl") is None:
            pytest.skip("no openssl here")
        for name, content in (
            ("t.tsr", authority.token(b"x", NEW_YEAR)),
            ("x", b"x"),
            ("y", b"y"),
            ("ca", authority.roots()),
        ):
            (tmp_path / name).write_bytes(content)
        for name, good in (("x", True), ("y", False)):
            command = f"openssl ts -verify -data {name} -in t.tsr -CAfile ca".split()
            assert (subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0) == good

    @pytest.mark.parametrize(
        ("forge", "message"),
        [
            (lambda a: Authority("another").token(b"x", NEW_YEAR), "vouch for"),
            (lambda a: a.token(b"x", NEW_YEAR).replace(b"20250101", b"20240101"), "vouch for"),
            (lambda a: a.token(b"y", NEW_YEAR), "not over this"),
            (lambda a: a.token(b"x", NEW_YEAR, algorithm="2.16.840.1.101.3.4.2.3"), "another hash"),
            (lambda a: a.token(b"x", datetime(1990, 1, 1, tzinfo=UTC)), "vouch for"),
            (lambda a: refusal(), "the authority refused, with status 2"),
            (lambda a: b"", "no timestamp"),
            (lambda a: b"\x30" * 500, "no timestamp"),
            (lambda a: a.token(b"x", NEW_YEAR)[:-1], "no timestamp"),
            (lambda a: bytes(MAX_TOKEN + 1), "larger than"),
        ],
    )
    def test_forged(self, authority, forge, message):
        with pytest.raises(ClaimError, match=message):
            verified_time(forge(authority), b"x", [authority.root], "it")

    def test_asked_for_over_http(self, authority):
        def answer(request):
            digest, nonce = asked(request)
            return 200, authority.token_over(digest, NEW_YEAR, nonce=nonce)

        with serving(answer) as url:
            token = request_token(url, b"x")
        assert verified_time(token, b"x", [authority.root], "it") == NEW_YEAR

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (lambda a, r: (500, b""), "status 500"),
            (lambda a, r: (302, b""), "redirects to another server"),
            (lambda a, r: (200, b"hello"), "no timestamp"),
            (lambda a, r: (200, refusal()), "status 2"),
            (lambda a, r: (200, bytes(10 * MAX_TOKEN)), "more than"),
            (lambda a, r: (200, a.token(b"another", NEW_YEAR, nonce=asked(r)[1])), "not over this commitment"),
            (lambda a, r: (200, a.token_over(asked(r)[0], NEW_YEAR, nonce=1)), "nonce"),
            (lambda a, r: (200, a.token_over(asked(r)[0], NEW_YEAR)), "nonce"),
        ],
    )
    def test_hostile_authorities(self, authority, answer, message):
        with serving(lambda request: answer(authority, request)) as url, pytest.raises(ClaimError, match=message):
            request_token(url, b"x")

    def test_no_authority_there(self):
        with pytest.raises(ClaimError, match="gave no timestamp"):
            request_token("http://127.0.0.1:9/", b"x")
        for address in ("ftp://x/", "file:///etc/passwd", "127.0.0.1"):
            with pytest.raises(UsageError, match="begins with http"):
                request_token(address, b"x")

    def test_what_an_address_holds_is_not_shown(self):
        with pytest.raises(UsageError, match="holds no user or password") as caught:
            request_token("http://user:hunter2@127.0.0.1:1/tsa", b"x")
        assert "hunter2" not in str(caught.value)
        with pytest.raises(ClaimError) as refused:
            request_token("http://127.0.0.1:9/tsa?apikey=SECRETKEY", b"x")
        assert "SECRETKEY" not in str(refused.value)

    def test_the_time_covers_all_of_it(self, monkeypatch):
        """An authority whose headers trickle."""

        def trickle(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            for _ in range(100):
                connection.sendall(b"X-Slow: 1\r\n")
                time.sleep(0.1)

        monkeypatch.setattr("sslguard.claims.timestamps.TIMEOUT", 0.5)
        with speaking(trickle) as url, pytest.raises(ClaimError, match=r"within 0.5 s"):
            request_token(url, b"x")


class TestPublish:
    def test_without_a_timestamp_and_one_added_later(self, stored, tmp_path, authority):
        out = tmp_path / "commitment.json"
        made, when = publish(stored, out)
        assert (out.read_bytes(), when) == (made.document.content, None)
        assert {f.name for f in tmp_path.iterdir()} == {"commitment.json"}
        (tmp_path / "t.tsr").write_bytes(authority.token(made.document.content, NEW_YEAR))
        assert publish(stored, out, token=tmp_path / "t.tsr") == (made, NEW_YEAR)
        assert timestamp_file(out).read_bytes() == (tmp_path / "t.tsr").read_bytes()
        assert publish(stored, out) == (made, NEW_YEAR)
        with pytest.raises(OutputError, match="earlier timestamp is worth more"):
            publish(stored, out, token=tmp_path / "t.tsr")

    def test_overwrites_nothing(self, stored, key_of, tmp_path, authority):
        out = tmp_path / "commitment.json"
        publish(stored, out)
        before = out.read_bytes()
        with pytest.raises(OutputError, match="not this key's commitment"):
            publish(StoredKey(key_of(secret=2), OWNER, False), out)
        assert out.read_bytes() == before
        (tmp_path / "t.tsr").write_bytes(authority.token(b"something else", NEW_YEAR))
        with pytest.raises(ClaimError, match="not over this"):
            publish(stored, tmp_path / "new", token=tmp_path / "t.tsr")
        assert not (tmp_path / "new").exists()

    def test_a_broken_authority_leaves_nothing(self, stored, tmp_path):
        with serving(lambda request: (200, b"")) as url, pytest.raises(ClaimError):
            publish(stored, tmp_path / "c", authority=url)
        assert not list(tmp_path.iterdir())

    def test_roots(self, tmp_path, authority):
        (tmp_path / "roots.pem").write_bytes(authority.roots() + Authority("b").roots())
        assert len(read_roots(tmp_path / "roots.pem")) == 2
        for content in (b"", b"-----BEGIN CERTIFICATE-----\n", b"\xff" * 100):
            (tmp_path / "bad").write_bytes(content)
            with pytest.raises(UsageError, match="PEM"):
                read_roots(tmp_path / "bad")
        with pytest.raises(UsageError, match="missing"):
            read_roots(tmp_path / "nowhere")


class TestCommandLine:
    def test_commit(self, key_of, tmp_path, authority):
        def answer(request):
            digest, nonce = asked(request)
            return 200, authority.token_over(digest, NEW_YEAR, nonce=nonce)

        save_key(key_of(), tmp_path / "key", owner=OWNER)
        (tmp_path / "roots").write_bytes(authority.roots())
        line = ("commit", tmp_path / "key", "--out", tmp_path / "c.json")
        plain = sslguard(*line)
        assert (plain.code, "no timestamp" in plain.err) == (0, True)
        with serving(answer) as url:
            said = done(*line, "--authority", url, "--authority-roots", tmp_path / "roots")
        assert said["timestamp"] == "2025-01-01T00:00:00+00:00"
        assert said["owner"] == OWNER.public
        assert sslguard(*line, "--authority", "x", "--token", "y").code == 2
        assert (
            sslguard("commit", tmp_path / "key", "--out", tmp_path / "d", "--token", tmp_path / "key/key.json").code
            == 3
        )
        assert not (tmp_path / "d").exists()
        assert load_key(tmp_path / "key").secret.reveal().hex() not in json.dumps(said)

    def test_a_golden_commitment(self):
        """What key and commitment hash to, as written on the day they were made."""
        stored = open_key(GOLDEN / "key-clear")
        assert commit(stored).document.content == (GOLDEN / "commitment.json").read_bytes()
        assert parse_commitment((GOLDEN / "commitment.json").read_bytes(), "it").keys == commit(stored).keys
