"""Delivery receipts: which secret went to which recipient, and when.

A receipt is the owner's commitment to one recipient's key (see `commitment`): a hash of his secret with his name and
the date. It opens nothing. The recipient signs it by a key of his own, and the owner keeps what he signed: a signed
document (see `documents`), whose predicate has the recipient's public key, as `owner`, and::

    receipt  the receipt, the whole text of its file
    time     when he signed, by his own clock, ISO 8601

What it does not protect against: the owner holds every secret, and could put any recipient's mark into a model himself.
The receipt shows which secret went to whom and when, and no more.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslguard.claims.commitment import Commitment, parse_commitment, publish
from sslguard.claims.documents import (
    MAX_DOCUMENT,
    Document,
    Kind,
    moment,
    parse_document,
    read_file,
    read_signing_key,
    sign_statement,
)
from sslguard.errors import ClaimError, OutputError, UsageError
from sslguard.files import write_atomic
from sslguard.schemes.keyfile import Handed, StoredKey
from sslguard.tracing.recipients import find, read_recipients

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cryptography.x509 import Certificate


def _hashes(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hash of the receipt that a predicate holds."""
    return {"receipt": hashlib.sha256(str(predicate.get("receipt")).encode("utf-8", "replace")).hexdigest()}


OF_RECEIPTS = Kind("receipt", _hashes)


@dataclass(frozen=True)
class SignedReceipt:
    """A receipt that somebody signed.

    Attributes:
        document: What he signed.
        receipt: The owner's receipt in it.
        time: When he signed, by his own clock.
    """

    document: Document
    receipt: Commitment
    time: datetime

    @property
    def signer(self) -> str:
        """The Ed25519 public key that signed it, hex."""
        return self.document.owner

    @property
    def recipient(self) -> Handed:
        """Whose secret it names."""
        assert self.receipt.recipient is not None
        return self.receipt.recipient


def handed(stored: StoredKey, name: str, rotation: int | None = None) -> tuple[StoredKey, int]:
    """Return the key of a recipient's mark, and the number of all secrets of all recipients.

    Args:
        stored: The whole key, with its folder.
        name: The recipient; one who was revoked too.
        rotation: How many secrets he had before; None for the one in use.

    Raises:
        UsageError: There is no such recipient, or he had no such secret.
    """
    recipients = [] if stored.folder is None else read_recipients(stored.folder)
    one = find(recipients, name)
    number = one.rotation if rotation is None else rotation
    if not 0 <= number < len(one.secrets):
        raise UsageError(
            f"the recipient {one.name!r} has had {len(one.secrets)} secrets, and none of number {number + 1}"
        )
    key = stored.of_recipient(Handed(one.name, number, one.secrets[number]))
    return key, sum(len(each.secrets) for each in recipients)


def write_receipt(
    stored: StoredKey,
    name: str,
    out: Path,
    *,
    rotation: int | None = None,
    authority: str | None = None,
    token: Path | None = None,
    roots: Sequence[Certificate] = (),
) -> tuple[Commitment, datetime | None]:
    """Write the receipt of a recipient's secret, as `handed` takes it, and its timestamp: see `commitment.publish`."""
    return publish(handed(stored, name, rotation)[0], out, authority=authority, token=token, roots=roots)


def sign_receipt(receipt: Path, signing_key: Path, out: Path) -> SignedReceipt:
    """Sign a receipt, as its recipient.

    Args:
        receipt: File of the receipt.
        signing_key: File of an Ed25519 private key, PEM without a password, as `openssl genpkey -algorithm ed25519`
            writes it.
        out: File of the signed receipt. Nothing may be there.

    Raises:
        ClaimError: The receipt is damaged, or is none.
        UsageError: The key cannot be read, or is none of this kind.
        OutputError: `out` is taken, or cannot be written.
    """
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} is there already: name a new file for the signed receipt")
    content = read_file(receipt, MAX_DOCUMENT)
    if parse_commitment(content, str(receipt)).recipient is None:
        raise ClaimError(f"{receipt} names no recipient: sign what `sslguard recipients receipt` wrote")
    key, now = read_signing_key(signing_key), datetime.now(UTC).replace(microsecond=0).isoformat()
    said = {"receipt": content.decode(), "time": now, "owner": key.public_key().public_bytes_raw().hex()}
    signed = sign_statement(key, OF_RECEIPTS, said)
    write_atomic(out, signed)
    return parse_signed(signed, str(out))


def parse_signed(content: bytes, what: str) -> SignedReceipt:
    """Read a signed receipt from the content of its file.

    Args:
        content: Content of the file.
        what: Its name, for error messages.

    Raises:
        ClaimError: The content is no signed receipt, or a signature is not valid.
    """
    document = parse_document(content, what, OF_RECEIPTS)
    said = document.predicate
    if said.keys() != {"owner", "receipt", "time"} or not isinstance(said["receipt"], str):
        raise ClaimError(f"{what} is no signed receipt: its predicate must have the fields owner, receipt and time")
    receipt = parse_commitment(said["receipt"].encode("utf-8", "replace"), f"the receipt in {what}")
    if receipt.recipient is None:
        raise ClaimError(f"the receipt in {what} names no recipient")
    return SignedReceipt(document, receipt, moment(said["time"], f"the time in {what}"))
