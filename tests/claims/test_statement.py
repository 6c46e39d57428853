"""The outcome of an audit as a document that the examiner signs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from helpers.claim_bed import Bed
from helpers.command_line import sslguard
from helpers.envelopes import disclosed, predicate_of, statement_of
from sslguard.claims.bundle import OF_CLAIMS
from sslguard.claims.commitment import OF_COMMITMENTS
from sslguard.claims.documents import PAYLOAD_TYPE, STATEMENT, parse_document, sign_document
from sslguard.claims.statement import OF_VERDICTS, Examiner
from sslguard.crypto.secrets import Secret
from sslguard.errors import ClaimError, OutputError, UsageError
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import Owner

OWNER = Owner(b"s" * 32, b"k" * 32)
EXAMINER = ed25519.Ed25519PrivateKey.from_private_bytes(b"x" * 32)


def pem(key: Any, sealed: KeySerializationEncryption | None = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed or NoEncryption())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with an examiner's key in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examiner.pem").write_bytes(pem(EXAMINER))
    return tmp_path


@pytest.fixture(scope="module")
def bed(tiny: Any, images: Any, tmp_path_factory: pytest.TempPathFactory) -> Bed:
    clean = tiny(7)
    marked = Exact(Protocol(n_queries=200), mode="head").watermark(clean, images(400), secret=Secret.from_seed(1))
    bed = Bed(tmp_path_factory.mktemp("bed"), marked.key, clean, images(290, seed=5))
    bed.commit().claim(marked.encoder)
    return bed


class TestOutcome:
    def test_is_signed_and_names_the_bundle(self, bed: Bed, place: Path) -> None:
        found = bed.audit()
        Examiner(place / "examiner.pem", place / "verdict.json").sign(found)
        content = (place / "verdict.json").read_bytes()
        envelope = Envelope.from_dict(json.loads(content))
        assert envelope.payload_type == PAYLOAD_TYPE
        envelope.verify([SSlibKey.from_crypto(EXAMINER.public_key())], threshold=1)
        other = ed25519.Ed25519PrivateKey.generate().public_key()
        with pytest.raises(VerificationError):
            envelope.verify([SSlibKey.from_crypto(other)], threshold=1)
        statement = statement_of(content)
        assert (statement["_type"], statement["predicateType"]) == (STATEMENT, OF_VERDICTS.type)
        assert {one["name"]: one["digest"]["sha256"] for one in statement["subject"]} == {
            "claim.json": found.facts["claim_sha256"],
            "commitment.json": found.facts["commitment_sha256"],
            "answers.npy": found.facts["answers_sha256"],
        }
        said = statement["predicate"]
        assert said["examiner"] == EXAMINER.public_key().public_bytes_raw().hex()
        assert said["audit"] == json.loads(json.dumps(found.to_json()))
        assert said["audit"]["decision"] == "derived"

    def test_discloses_no_secret(self, bed: Bed, place: Path) -> None:
        Examiner(place / "examiner.pem", place / "verdict.json").sign(bed.audit())
        content = disclosed((place / "verdict.json").read_bytes())
        for secret in (bed.key.secret.reveal(), bed.owner.salt, bed.owner.signing_key, b"x" * 32):
            assert secret.hex().encode() not in content
        assert bed.key.secret.reveal().hex().encode() in disclosed((bed.bundle / "claim.json").read_bytes())

    def test_is_taken_for_no_claim(self, bed: Bed, place: Path) -> None:
        """Each kind says what it is, so that a signature over one cannot be used for another."""
        Examiner(place / "examiner.pem", place / "verdict.json").sign(bed.audit())
        content = (place / "verdict.json").read_bytes()
        for kind in (OF_CLAIMS, OF_COMMITMENTS):
            with pytest.raises(ClaimError, match=f"no {kind.name} of sslguard"):
                parse_document(content, "it", kind)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"no key",
            pem(EXAMINER).replace(b"MC4C", b"AAAA"),
            pem(EXAMINER, BestAvailableEncryption(b"password")),
            pem(ec.generate_private_key(ec.SECP256R1())),
            b"x" * 20_000,
            None,
        ],
    )
    def test_other_keys_are_refused_before_the_audit(self, place: Path, content: bytes | None) -> None:
        path = place / "key.pem"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UsageError, match=r"Ed25519 private key|larger than|is missing"):
            Examiner(path, place / "verdict.json")

    def test_nothing_is_overwritten(self, place: Path) -> None:
        (place / "verdict.json").write_text("mine")
        with pytest.raises(OutputError, match="already"):
            Examiner(place / "examiner.pem", place / "verdict.json")

    def test_on_the_command_line(self, bed: Bed, place: Path) -> None:
        given = ("audit", bed.bundle, "--data", "mnist:test", "--seed", "x")
        for half in (("--statement", "v.json"), ("--signing-key", "examiner.pem")):
            ran = sslguard(*given, *half, "--json")
            assert (ran.code, "needs both" in ran.err) == (2, True), ran.err
        assert not (place / "v.json").exists()


def test_a_document_says_what_its_owner_says() -> None:
    document = sign_document(OWNER, OF_COMMITMENTS, {"keys": ["ab" * 32], "order": "cd" * 32})
    assert predicate_of(document.content) == dict(document.predicate)
    assert [one["name"] for one in statement_of(document.content)["subject"]] == ["key", "order"]
