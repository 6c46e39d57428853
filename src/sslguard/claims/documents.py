"""Signed documents: one spelling, one size, one signature. What commitments and claims have in common.

A document is a file of one line, canonical JSON (`files.canonical_json`) and a newline::

    {"signature":"…","signed":{"format":"…","owner":"…",…,"version":1}}

`signature` is Ed25519, hex, over the canonical JSON of `signed`; `owner` is the public key that it is good under, hex.
Any other spelling of the same values is refused, so that a document has one hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sslguard.errors import ClaimError
from sslguard.files import canonical_json
from sslguard.schemes.keyfile import Owner

MAX_DOCUMENT = 1 << 20  # bytes
_HEX = {32: re.compile(r"[0-9a-f]{64}"), 64: re.compile(r"[0-9a-f]{128}")}


@dataclass(frozen=True)
class Document:
    """A document whose signature is good.

    Attributes:
        signed: What the owner says.
        content: The bytes of the file.
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
    """The document in which `owner` says so."""
    signed = {**fields, "owner": owner.public}
    signature = owner.sign(canonical_json(signed)).hex()
    return Document(signed, canonical_json({"signature": signature, "signed": signed}) + b"\n")


def parse_document(content: bytes, what: str, *, format_: str, version: int) -> Document:
    """A document with a good signature, in its one spelling.

    Raises:
        ClaimError: It is anything else.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    found = parse_line(content, what)
    if found.keys() != {"signature", "signed"} or not isinstance(found["signed"], dict):
        raise ClaimError(f"{what} is no signed document")
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
    """A JSON object in its canonical spelling and one newline.

    Raises:
        ClaimError: It is anything else.
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
    """`n` bytes, 32 or 64, from lower-case hexadecimal digits. Raises ClaimError for anything else."""
    if not isinstance(value, str) or not _HEX[n].fullmatch(value):
        raise ClaimError(f"{what} must have {2 * n} hexadecimal digits")
    return bytes.fromhex(value)


def moment(value: Any, what: str) -> datetime:
    """A time with its zone from ISO 8601. Raises ClaimError for anything else."""
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        found = None
    if found is None or found.tzinfo is None:
        raise ClaimError(f"{what} must be a time with its zone, as 2026-01-31T12:00:00+00:00")
    return found


def read_file(path: Path, most: int) -> bytes:
    """A plain file of at most `most` bytes, no link and nothing that blocks.

    Raises:
        ClaimError: It is anything else.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ClaimError(f"{path!s:.200} is not a plain file")
            content = file.read(most + 1)
    except FileNotFoundError:
        raise ClaimError(f"{path!s:.200} is missing") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ClaimError(f"{path!s:.200} cannot be read as a plain file: {reason}") from None
    if len(content) > most:
        raise ClaimError(f"{path!s:.200} is larger than {most} bytes")
    return content
