"""Receipts: which secret went to which recipient, signed by him, without showing any secret."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from helpers.claim_bed import AUTHORITY, COMMITTED, SEED, SEEN, Bed, words
from helpers.command_line import done, sslguard
from helpers.envelopes import disclosed, predicate_of
from sslguard.claims.bundle import OF_CLAIMS, read_bundle
from sslguard.claims.commitment import (
    OF_COMMITMENTS,
    OpenedKey,
    commit,
    key_salt,
    parse_commitment,
    publish,
    timestamp_file,
)
from sslguard.claims.documents import sign_document, sign_statement
from sslguard.claims.openings import opened_at, read_openings
from sslguard.claims.page import render_page
from sslguard.claims.receipts import OF_RECEIPTS, SignedReceipt, handed, parse_signed, sign_receipt, write_receipt
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import save_encoder
from sslguard.errors import ClaimError, OutputError, UsageError
from sslguard.schemes.base import Key
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.marking import headed
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
        first = done("recipients", "receipt", stored.folder, "acme", "--secret", 1, "--out", tmp_path / "first.json")
        assert first["rotation"] == 0
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


SIGNED = datetime(2025, 3, 1, tzinfo=UTC)
PRIVATE = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
PUBLIC = PRIVATE.public_key().public_bytes_raw().hex()


class TestClaims:
    """A claim on one recipient: it opens his secret alone, and the audit asks for what he signed."""

    @pytest.fixture
    def bed(self, stored: StoredKey, images: Callable[..., Data], tiny: Callable[..., Encoder], tmp_path: Path) -> Bed:
        """A dated receipt of acme's second secret."""
        made = Bed(tmp_path, stored.key, tiny(7), images(300, seed=5), owner=stored.owner, key_folder=stored.folder)
        receipt, _ = write_receipt(stored, "acme", made.commitment)
        timestamp_file(made.commitment).write_bytes(AUTHORITY.token(receipt.document.content, COMMITTED))
        return made

    @staticmethod
    def copy(bed: Bed, name: str, rotation: int = 0) -> Encoder:
        """What a recipient was given."""
        assert isinstance(bed.key, ExactKey)
        return headed(bed.key.clean, bed.key.bank, *bed.key.handed_to(bed.key.recipient(name, rotation)))

    @staticmethod
    def signed(bed: Bed, when: datetime = SIGNED, private: Ed25519PrivateKey = PRIVATE) -> SignedReceipt:
        """Acme's signature on the receipt, at a time of its clock."""
        said = {"receipt": bed.commitment.read_text(), "time": when.isoformat()}
        said["owner"] = private.public_key().public_bytes_raw().hex()
        return parse_signed(sign_statement(private, OF_RECEIPTS, said), "the receipt")

    def test_the_secret_is_shown_alone_and_the_level_is_shared_among_all(self, bed: Bed) -> None:
        verdict = bed.claim(self.copy(bed, "acme", 1))
        assert (verdict.decision, verdict.n_claims) == ("derived", 3 + 1)
        found = bed.audit(receipt=self.signed(bed), recipient_key=PUBLIC)
        assert found.decision == "derived", found.checks
        (check,) = [one for one in found.checks if one.name == "recipient"]
        assert (check.status, "'acme' signed for this secret on 2025-03-01" in check.words) == ("passed", True)
        assert found.verdict is not None
        assert found.n_tries == 4 * found.verdict.null.charge(dated=True)
        assert "He holds all secrets" in words(found, "assumed")
        assert "3 secrets of recipients were compared" in words(found, "assumed")
        assert "acme" in render_page(found)
        assert "one recipient's" in found.propositions["claim"]

    def test_neither_the_master_secret_nor_anothers_is_in_the_bundle(self, bed: Bed) -> None:
        bed.claim(self.copy(bed, "acme", 1))
        assert isinstance(bed.key, ExactKey)
        content = disclosed(*(path.read_bytes() for path in bed.bundle.iterdir()))
        for secret, there in (
            (bed.key.recipient("acme", 1).secret, True),
            (bed.key.recipient("acme", 0).secret, False),
            (bed.key.recipient("Zoë AG").secret, False),
            (bed.key.secret, False),
        ):
            assert (secret.reveal().hex().encode() in content) is there

    def test_another_recipients_copy_and_the_clean_encoder_show_nothing(self, bed: Bed) -> None:
        for suspect in (self.copy(bed, "Zoë AG"), self.copy(bed, "acme", 0), bed.clean):
            verdict = bed.claim(suspect)
            assert verdict.decision == "not shown"
            assert verdict.significance.log2_pvalue > -12
            assert bed.audit(receipt=self.signed(bed), recipient_key=PUBLIC).decision == "not shown"
            shutil.rmtree(bed.bundle)

    def test_without_a_receipt_the_evidence_stands_and_whose_it_is_does_not(self, bed: Bed) -> None:
        bed.claim(self.copy(bed, "acme", 1))
        late = self.signed(bed, SEEN + timedelta(days=1))
        for terms, said in (
            ({}, "To whom is not checkable: the owner says that this secret was given to 'acme'"),
            ({"receipt": self.signed(bed)}, "is his public key, which the examiner did not give"),
            ({"receipt": late, "recipient_key": PUBLIC}, "who had the secret before is not shown"),
        ):
            found = bed.audit(**terms)
            (check,) = [one for one in found.checks if one.name == "recipient"]
            assert (found.decision, check.status, said in check.words) == ("derived", "assumed", True), check.words

    def test_a_receipt_of_another_secret_or_of_anothers_key_is_forged(self, bed: Bed, stored: StoredKey) -> None:
        bed.claim(self.copy(bed, "acme", 1))
        other = replace(bed, folder=bed.folder / "other")
        other.folder.mkdir()
        write_receipt(stored, "Zoë AG", other.commitment)
        stranger = Ed25519PrivateKey.generate()
        for receipt, said in (
            (self.signed(other), "of another secret"),
            (self.signed(bed, private=stranger), "not the recipient's"),
        ):
            found = bed.audit(receipt=receipt, recipient_key=PUBLIC)
            assert (found.decision, said in words(found, "failed")) == ("forged", True), found.checks

    def test_undated_sixty_four_bits_are_charged_too(self, bed: Bed) -> None:
        timestamp_file(bed.commitment).unlink()
        bed.claim(self.copy(bed, "acme", 1))
        found = bed.audit(not_after=None, receipt=self.signed(bed), recipient_key=PUBLIC)
        assert found.verdict is not None
        assert found.n_tries == 4 * found.verdict.null.charge(dated=False)

    def test_the_record_of_openings_knows_it_and_the_common_mark_stays_secret(self, bed: Bed) -> None:
        bed.claim(self.copy(bed, "acme", 1))
        assert bed.key_folder is not None
        assert list(read_openings(bed.key_folder)) == ["recipient 1 acme"]
        assert opened_at(bed.key_folder, 0) is None
        assert opened_at(bed.key_folder, "recipient 1 acme") is not None
        assert opened_at(bed.key_folder, "recipient 0 acme") is None

    @pytest.mark.parametrize("compared", [None, 0, -1, True, 1 << 41, "3", 1.5])
    def test_what_a_claim_cannot_say(self, compared: Any, bed: Bed) -> None:
        bed.claim(self.copy(bed, "acme", 1))
        path = bed.bundle / "claim.json"
        said = {name: value for name, value in predicate_of(path.read_bytes()).items() if name != "compared"}
        said |= {} if compared is None else {"compared": compared}
        path.write_bytes(sign_document(bed.owner, OF_CLAIMS, {k: v for k, v in said.items() if k != "owner"}).content)
        with pytest.raises(ClaimError):
            read_bundle(bed.bundle)

    def test_a_receipt_where_it_does_not_belong(self, bed: Bed) -> None:
        receipt = self.signed(bed)
        with pytest.raises(UsageError, match="64 hexadecimal digits"):
            replace(bed.terms, recipient_key="ff")
        publish(bed.stored, bed.folder / "whole.json")
        bed.claim(bed.clean, commitment=bed.folder / "whole.json")
        with pytest.raises(UsageError, match="on no recipient"):
            bed.audit(receipt=receipt)

    def test_on_the_command_line(self, bed: Bed, tmp_path: Path) -> None:
        pictures = np.random.default_rng(5).integers(0, 256, (300, 16, 16), dtype=np.uint8)
        np.save(tmp_path / "items.npy", pictures)
        save_encoder(self.copy(bed, "acme", 1), tmp_path / "copy")
        save_encoder(bed.clean, tmp_path / "clean")
        (tmp_path / "signed.json").write_bytes(self.signed(bed).document.content)
        data = ("--data", tmp_path / "items.npy", "--seed", SEED)
        line = ("claim", bed.key_folder, tmp_path / "copy", *data, "--commitment", bed.commitment, "--out")
        claimed = sslguard(*line, bed.bundle)
        assert claimed.code == 0, claimed.err
        assert "opens the secret 2 of the recipient 'acme', and no other" in claimed.err
        again = sslguard(*line, tmp_path / "again")
        assert "the secret called 'recipient 1 acme' was opened on" in again.err
        audit = ("audit", bed.bundle, *data, "--own-data", "--clean", tmp_path / "clean")
        signed = ("--receipt", tmp_path / "signed.json", "--recipient-key", PUBLIC)
        found = done(*audit, *signed)
        assert (found["decision"], found["recipient"]["name"]) == ("derived", "acme")
        (tmp_path / "signed.json").write_bytes(b"{}\n")
        for given, code in ((signed, 3), (("--recipient-key", "x"), 2), (("--receipt", tmp_path / "nowhere"), 3)):
            assert sslguard(*audit, *given).code == code
