"""Receipts: which secret went to which recipient, signed by him, without showing any secret."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from helpers.command_line import done, sslguard
from sslguard.claims.commitment import OF_COMMITMENTS, OpenedKey, commit, key_salt, parse_commitment, timestamp_file
from sslguard.claims.documents import sign_document
from sslguard.claims.receipts import handed, parse_signed, sign_receipt, write_receipt
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.errors import ClaimError, OutputError, UsageError
from sslguard.schemes.base import Key
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import StoredKey, open_key, save_key
from sslguard.tracing.recipients import add, rotate


@pytest.fixture(scope="module")
def key(tiny: Callable[..., Encoder], images: Callable[..., Data]) -> ExactKey:
    made = Exact(Protocol(n_queries=250), mode="head").watermark(tiny(7), images(400), secret=Secret.from_seed(1)).key
    assert isinstance(made, ExactKey)
    return made


@pytest.fixture
def stored(key: ExactKey, tmp_path: Path) -> StoredKey:
    save_key(key, tmp_path / "key")
    add(tmp_path / "key", ["acme", "Zoë AG"])
    rotate(tmp_path / "key", "acme")
    return open_key(tmp_path / "key")


def pem(path: Path, key: Any = None, secret: bytes | None = None) -> Path:
    """Write a private key as `openssl genpkey` does."""
    sealing = NoEncryption() if secret is None else BestAvailableEncryption(secret)
    path.write_bytes((key or Ed25519PrivateKey.generate()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealing))
    return path


class TestReceipt:
    def test_it_is_of_the_secret_in_use_and_commits_to_nothing_else(self, stored: StoredKey, tmp_path: Path) -> None:
        made, when = write_receipt(stored, "acme", tmp_path / "receipt.json")
        read = parse_commitment((tmp_path / "receipt.json").read_bytes(), "it")
        assert read == made
        assert when is None
        assert made.recipient is not None
        assert (made.recipient.name, made.recipient.rotation, made.n_tests) == ("acme", 1, 1)
        assert isinstance(stored.key, ExactKey)
        for rotation, name, holds in ((1, "acme", True), (0, "acme", False), (1, "Zoë AG", False)):
            opened = OpenedKey.of(stored.key.recipient(name, rotation))
            assert made.holds(opened.digest(key_salt(stored.owner, f"recipient {rotation} {name}"))) is holds
        assert not set(made.keys) & set(commit(stored).keys)

    def test_the_same_secret_gives_the_same_receipt(self, stored: StoredKey, tmp_path: Path) -> None:
        for _ in range(2):
            write_receipt(stored, "acme", tmp_path / "receipt.json")
        with pytest.raises(OutputError, match="choose another name"):
            write_receipt(stored, "Zoë AG", tmp_path / "receipt.json")

    def test_it_shows_no_secret(self, stored: StoredKey, tmp_path: Path) -> None:
        write_receipt(stored, "acme", tmp_path / "receipt.json")
        content = (tmp_path / "receipt.json").read_text()
        one = handed(stored, "acme")[0].key
        assert isinstance(one, ExactKey)
        assert isinstance(stored.key, ExactKey)
        for secret in (one.secret, stored.key.secret):
            assert secret.reveal().hex() not in content

    def test_an_earlier_secret_and_the_number_of_all(self, stored: StoredKey) -> None:
        one, n = handed(stored, "acme", 0)
        assert one.handed is not None
        assert (one.handed.rotation, one.number, n) == (0, "recipient 0 acme", 3)
        with pytest.raises(UsageError, match="2 secrets, and none of number 3"):
            handed(stored, "acme", 2)
        with pytest.raises(UsageError, match="no recipient 'bob'"):
            handed(stored, "bob")
        with pytest.raises(UsageError, match="only a whole key"):
            one.of_recipient(one.handed)

    @pytest.mark.parametrize(
        "change",
        [
            {"recipient": None},
            {"recipient": {"name": "a", "rotation": 0}},
            {"recipient": {"name": " a", "rotation": 0, "given": "2026-12-01T00:00:00+00:00"}},
            {"recipient": {"name": "a", "rotation": -1, "given": "2026-12-01T00:00:00+00:00"}},
            {"recipient": {"name": "a", "rotation": True, "given": "2026-12-01T00:00:00+00:00"}},
            {"recipient": {"name": "a", "rotation": 0, "given": "2026-12-01T00:00:00"}},
            {"recipient": {"name": "a", "rotation": 0, "given": 3}},
            {"keys": ["0" * 64, "1" * 64]},
            {"order": "0" * 64},
        ],
        ids=str,
    )
    def test_what_its_owner_signed_and_is_no_receipt(self, change: dict[str, Any], stored: StoredKey) -> None:
        signed = commit(handed(stored, "acme")[0]).document.predicate
        fields = {name: value for name, value in signed.items() if name != "owner"}
        with pytest.raises(ClaimError):
            parse_commitment(resigned(stored, {**fields, **change}), "it")


def resigned(stored: StoredKey, fields: dict[str, Any]) -> bytes:
    return sign_document(stored.owner, OF_COMMITMENTS, fields).content


class TestSigned:
    @pytest.fixture
    def receipt(self, stored: StoredKey, tmp_path: Path) -> Path:
        write_receipt(stored, "acme", tmp_path / "receipt.json")
        return tmp_path / "receipt.json"

    def test_it_holds_the_receipt_and_says_who_signed_and_when(self, receipt: Path, tmp_path: Path) -> None:
        private = Ed25519PrivateKey.generate()
        made = sign_receipt(receipt, pem(tmp_path / "me.pem", private), tmp_path / "signed.json")
        read = parse_signed((tmp_path / "signed.json").read_bytes(), "it")
        assert read == made
        assert read.signer == private.public_key().public_bytes_raw().hex()
        assert read.receipt == parse_commitment(receipt.read_bytes(), "it")
        assert read.recipient.name == "acme"
        assert (datetime.now(read.time.tzinfo) - read.time).total_seconds() < 100

    def test_nothing_is_replaced_and_nothing_else_is_signed(
        self, receipt: Path, stored: StoredKey, tmp_path: Path
    ) -> None:
        private = pem(tmp_path / "me.pem")
        with pytest.raises(OutputError, match="there already"):
            sign_receipt(receipt, private, receipt)
        (tmp_path / "commitment.json").write_bytes(commit(stored).document.content)
        with pytest.raises(ClaimError, match="names no recipient"):
            sign_receipt(tmp_path / "commitment.json", private, tmp_path / "out.json")
        content = receipt.read_bytes()
        receipt.write_bytes(content.replace(content[60:64], content[60:64].swapcase()))
        with pytest.raises(ClaimError):
            sign_receipt(receipt, private, tmp_path / "out.json")
        assert not (tmp_path / "out.json").exists()

    def test_keys_of_other_kinds_are_refused(self, receipt: Path, tmp_path: Path) -> None:
        (tmp_path / "text.pem").write_text("no key")
        given = [
            tmp_path / "text.pem",
            pem(tmp_path / "other.pem", X25519PrivateKey.generate()),
            pem(tmp_path / "sealed.pem", secret=b"x"),
        ]
        for private in given:
            with pytest.raises(UsageError, match="Ed25519 private key"):
                sign_receipt(receipt, private, tmp_path / "out.json")

    def test_damaged_ones_are_refused(self, receipt: Path, tmp_path: Path) -> None:
        sign_receipt(receipt, pem(tmp_path / "me.pem"), tmp_path / "signed.json")
        content = (tmp_path / "signed.json").read_bytes()
        for damaged in (b"", content[:-1], content.swapcase(), content + content, b"[" * 100_000):
            with pytest.raises(ClaimError):
                parse_signed(damaged, "it")
        with pytest.raises(ClaimError, match="is no"):
            parse_signed(receipt.read_bytes(), "it")


class TestCommands:
    def test_receipt_and_sign(self, stored: StoredKey, tmp_path: Path) -> None:
        assert stored.folder is not None
        wrote = done("recipients", "receipt", stored.folder, "Zoë AG", "--out", tmp_path / "receipt.json")
        assert (wrote["name"], wrote["rotation"], wrote["timestamp"]) == ("Zoë AG", 0, None)
        assert not timestamp_file(tmp_path / "receipt.json").exists()
        given = ("--signing-key", pem(tmp_path / "me.pem"), "--out", tmp_path / "signed.json")
        signed = done("recipients", "sign", tmp_path / "receipt.json", *given)
        assert signed["owner"] == wrote["owner"] == stored.owner.public
        assert signed["signer"] == parse_signed((tmp_path / "signed.json").read_bytes(), "it").signer

    def test_codes(self, stored: StoredKey, key_of: Callable[..., Key], tmp_path: Path) -> None:
        save_key(key_of(), tmp_path / "other")
        (tmp_path / "text.json").write_text(json.dumps({"a": 1}))
        out = ("--out", tmp_path / "out.json")
        for arguments, code, complaint in (
            (("receipt", stored.folder, "bob"), 2, "no recipient 'bob'"),
            (("receipt", tmp_path / "other", "bob"), 2, "only those of exact"),
            (("sign", tmp_path / "text.json", "--signing-key", pem(tmp_path / "me.pem")), 3, "canonical JSON"),
            (("sign", tmp_path / "missing.json", "--signing-key", tmp_path / "me.pem"), 3, "is missing"),
        ):
            ran = sslguard("recipients", *arguments, *out)
            assert (ran.code, complaint in ran.err) == (code, True), ran.err
