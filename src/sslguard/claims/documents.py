"""Signed documents: in-toto statements in DSSE envelopes, which commitments, claims and verdicts share.

A document is a file of one line, an envelope in canonical JSON (`files.canonical_json`) and a newline::

    {"payload":"…","payloadType":"application/vnd.in-toto+json","signatures":[{"keyid":"…","sig":"…"}]}

`payload` is a statement [1]_ in canonical JSON, in base64. `sig` is one Ed25519 signature over DSSE's encoding of type
and payload [2]_, in base64, by the key of `keyid`. The statement is::

    {"_type":"https://in-toto.io/Statement/v1","predicate":{…},"predicateType":"urn:uuid:…#…","subject":[…]}

`predicate` is what is said. In those that a claimant signs, `owner` is the public key that verifies the signature, hex.
`subject` repeats hashes of the predicate, under names, for tools that know nothing of predicates. Any other spelling
of the same values is refused, so that a document has one hash.

References:
    .. [1] in-toto Attestation Framework, Statement v1.
    .. [2] Dead Simple Signing Envelope, protocol 1.0.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslguard.errors import ClaimError, UsageError
from sslguard.files import canonical_json, read_plain
from sslguard.schemes.keyfile import Owner

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.dsse import Envelope

MAX_DOCUMENT, MAX_KEY = 1 << 20, 1 << 14  # bytes
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
TYPES = "urn:uuid:a502cd2c-e4ef-4c7a-8336-c1c841cb5b13"
"""What the types of our predicates begin with: a random UUID, which needs no domain and is nobody else's."""


@dataclass(frozen=True)
class Kind:
    """A kind of documents.

    Attributes:
        name: "commitment", "receipt", "claim" or "verdict".
        hashes: Names and SHA-256, hex, of what a predicate of this kind is about. It must take any JSON object.
    """

    name: str
    hashes: Callable[[Mapping[str, Any]], Mapping[str, Any]]

    @property
    def type(self) -> str:
        """The `predicateType`, a URI."""
        return f"{TYPES}#{self.name}"

    def statement(self, predicate: Mapping[str, Any]) -> dict[str, Any]:
        """Return the statement of a predicate."""
        subject = [{"name": name, "digest": {"sha256": digest}} for name, digest in self.hashes(predicate).items()]
        return {"_type": STATEMENT, "subject": subject, "predicateType": self.type, "predicate": dict(predicate)}


@dataclass(frozen=True)
class Document:
    """A document with a valid signature.

    Attributes:
        predicate: What its owner says.
        content: Content of the file.
    """

    predicate: Mapping[str, Any]
    content: bytes

    @property
    def owner(self) -> str:
        """The Ed25519 public key that signed it, hex."""
        return str(self.predicate["owner"])

    @property
    def digest(self) -> str:
        """SHA-256 of the file, hex."""
        return hashlib.sha256(self.content).hexdigest()


def sign_document(owner: Owner, kind: Kind, fields: Mapping[str, Any]) -> Document:
    """Sign fields and return the document. `owner` is added to the fields as the owner's public key."""
    predicate = {**fields, "owner": owner.public}
    return Document(predicate, sign_statement(owner.private_key(), kind, predicate))


def sign_statement(key: Ed25519PrivateKey, kind: Kind, predicate: Mapping[str, Any]) -> bytes:
    """Return the content of a document's file, signed by a key."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    envelope = Envelope(canonical_json(kind.statement(predicate)), PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(key))
    return canonical_json(envelope.to_dict()) + b"\n"


def parse_document(content: bytes, what: str, kind: Kind) -> Document:
    """Read a document that its owner signed, and check its spelling and its signature.

    Args:
        content: Content of the file.
        what: Its name, for error messages.
        kind: The kind that it must be of.

    Raises:
        ClaimError: The content is no such document, or the signature is not valid.
    """
    envelope = _envelope(content, what)
    statement = parse_line(envelope.payload + b"\n", f"the payload of {what}")
    predicate = statement.get("predicate")
    if statement.get("_type") != STATEMENT or not isinstance(predicate, dict):
        raise ClaimError(f"{what} is no in-toto statement of version 1 with a predicate")
    if statement.get("predicateType") != kind.type:
        raise ClaimError(f"{what} is no {kind.name} of sslguard: its predicateType must be {kind.type}")
    if statement != kind.statement(predicate):
        raise ClaimError(f"{what} must have as its subject what its predicate is about, and no further fields")
    _verify(envelope, hex_bytes(predicate.get("owner"), 32, f"the owner of {what}"), what)
    return Document(predicate, content)


def _envelope(content: bytes, what: str) -> Envelope:
    """Read an envelope with one signature. Raise ClaimError for anything else, other spellings included."""
    from securesystemslib.dsse import Envelope

    found = parse_line(content, what)
    try:
        # It takes what it reads apart.
        envelope = Envelope.from_dict(found)
        same = canonical_json(envelope.to_dict()) + b"\n" == content
        (signature,) = envelope.signatures.values()
    except Exception:  # a hostile envelope may fail in any step of a foreign parser
        raise ClaimError(f"{what} is not a signed document: it must be a DSSE envelope with one signature") from None
    if not same or signature.unrecognized_fields or envelope.payload_type != PAYLOAD_TYPE:
        raise ClaimError(f"{what} must be a DSSE envelope of {PAYLOAD_TYPE}, in canonical base64, without more fields")
    return envelope


def _verify(envelope: Envelope, owner: bytes, what: str) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from securesystemslib.signer import SSlibKey

    try:
        envelope.verify([SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(owner))], threshold=1)
    except Exception:  # as above
        raise ClaimError(f"the signature of {what} is not its owner's: it was changed, or forged") from None


def parse_line(content: bytes, what: str) -> dict[str, Any]:
    """Read a line that is a JSON object in its canonical spelling.

    Args:
        content: The line with its newline.
        what: Its name, for error messages.

    Raises:
        ClaimError: The content is anything else, or too large.
    """
    if len(content) > MAX_DOCUMENT:
        raise ClaimError(f"{what} is larger than {MAX_DOCUMENT} bytes")
    try:
        found = json.loads(content)
        canonical = isinstance(found, dict) and canonical_json(found) + b"\n" == content
    except (ValueError, RecursionError):
        raise ClaimError(f"{what} is damaged: not JSON") from None
    if not canonical:
        raise ClaimError(f"{what} is not in canonical JSON: it was written by something else, or changed")
    return dict(found)


def hex_bytes(value: Any, n: int, what: str) -> bytes:
    """Decode bytes from lower-case hexadecimal digits.

    Args:
        value: Text of 2·n digits.
        n: Number of bytes.
        what: Name of the value, for error messages.

    Raises:
        ClaimError: The value is anything else.
    """
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{2 * n}}}", value):
        raise ClaimError(f"{what} must have {2 * n} hexadecimal digits")
    return bytes.fromhex(value)


def moment(value: Any, what: str) -> datetime:
    """Read a time with its zone from ISO 8601.

    Args:
        value: The text.
        what: Name of the value, for error messages.

    Raises:
        ClaimError: The value is anything else.
    """
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        found = None
    if found is None or found.tzinfo is None:
        raise ClaimError(f"{what} must be a time with its zone, as 2026-01-31T12:00:00+00:00")
    return found


def read_file(path: Path, most: int) -> bytes:
    """Read a plain file of at most `most` bytes, which is no link. Raise ClaimError for anything else."""
    return read_plain(path, most, ClaimError, links=False)


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 private key, PEM without a password, as `openssl genpkey -algorithm ed25519` writes it.

    Raises:
        UsageError: The file cannot be read, or holds none of this kind.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_plain(path, MAX_KEY, UsageError), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            f"{path} must hold an Ed25519 private key, PEM without a password: "
            "openssl genpkey -algorithm ed25519 makes one"
        )
    return key
