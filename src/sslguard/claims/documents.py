"""Signed documents: the file format that commitments and claims share.

A document is a file of one line: canonical JSON (`files.canonical_json`) and a newline::

    {"signature":"…","signed":{"format":"…","owner":"…",…,"version":1}}

`signature` is an Ed25519 signature, hex, over the canonical JSON of `signed`. `owner` is the public key that verifies
it, hex. Any other spelling of the same values is refused, so that a document has one hash.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sslguard.errors import ClaimError
from sslguard.files import canonical_json, read_plain
from sslguard.schemes.keyfile import Owner

MAX_DOCUMENT = 1 << 20  # bytes
_HEX = {32: re.compile(r"[0-9a-f]{64}"), 64: re.compile(r"[0-9a-f]{128}")}


@dataclass(frozen=True)
class Document:
    """A document with a valid signature.

    Attributes:
        signed: What the owner signed.
        content: Content of the file.
    """

    signed: Mapping[str, Any]
    content: bytes

    @property
    def owner(self) -> str:
        """The Ed25519 public key that signed it, hex."""
        return str(self.signed["owner"])

    @property
    def digest(self) -> str:
        """SHA-256 of the file, hex."""
        return hashlib.sha256(self.content).hexdigest()


def sign_document(owner: Owner, fields: Mapping[str, Any]) -> Document:
    """Sign fields and return the document. `owner` is added to the fields as the owner's public key."""
    signed = {**fields, "owner": owner.public}
    signature = owner.sign(canonical_json(signed)).hex()
    return Document(signed, canonical_json({"signature": signature, "signed": signed}) + b"\n")


def parse_document(content: bytes, what: str, *, format_: str, version: int) -> Document:
    """Read a document and check its spelling and its signature.

    Args:
        content: Content of the file.
        what: Its name, for error messages.
        format_: The format that it must have.
        version: The version that it must have.

    Raises:
        ClaimError: The content is no such document, or the signature is not valid.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    found = parse_line(content, what)
    if found.keys() != {"signature", "signed"} or not isinstance(found["signed"], dict):
        raise ClaimError(f"{what} is not a signed document: it must have the fields signature and signed")
    signed = found["signed"]
    if signed.get("format") != format_ or type(signed.get("version")) is not int or signed["version"] != version:
        raise ClaimError(f"{what} is no {format_} of version {version}")
    owner = hex_bytes(signed.get("owner"), 32, f"the owner of {what}")
    signature = hex_bytes(found["signature"], 64, f"the signature of {what}")
    try:
        Ed25519PublicKey.from_public_bytes(owner).verify(signature, canonical_json(signed))
    except (InvalidSignature, ValueError):
        raise ClaimError(f"the signature of {what} is not its owner's: it was changed, or forged") from None
    return Document(signed, content)


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
        n: Number of bytes, 32 or 64.
        what: Name of the value, for error messages.

    Raises:
        ClaimError: The value is anything else.
    """
    if not isinstance(value, str) or not _HEX[n].fullmatch(value):
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
