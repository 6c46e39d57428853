"""What a commitment adds to evidence by a secret order: that the order is older than the suspect.

Without it, a claimant could put the units of his own network in the order of an innocent's, and call that secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sslguard.claims.commitment import order_digest, parse_commitment, timestamp_file
from sslguard.claims.documents import MAX_DOCUMENT, read_file
from sslguard.claims.timestamps import MAX_TOKEN, verified_time
from sslguard.errors import ClaimError
from sslguard.schemes.keyfile import StoredKey
from sslguard.verification.nulls import DATED_TRIES, UNDATED_TRIES

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


class Dated(NamedTuple):
    """What a commitment to a secret order is worth.

    Attributes:
        bits: Bits that are subtracted for other orders that the owner may have tried.
        words: Why, in words.
    """

    bits: int
    words: str


def dated(
    stored: StoredKey, commitment: Path, *, not_after: datetime | None = None, roots: Sequence[Certificate] = ()
) -> Dated:
    """Check a commitment to a key's secret order, and say how many bits an examiner subtracts.

    Args:
        stored: The key.
        commitment: File of the commitment; its timestamp lies beside it.
        not_after: When the suspect could first be read.
        roots: Certificates that must vouch for the timestamp.

    Raises:
        ClaimError: The commitment is not to this order, or its timestamp is not good.
    """
    found = parse_commitment(read_file(commitment, MAX_DOCUMENT), str(commitment))
    if found.document.owner != stored.owner.public or found.order is None or found.order != order_digest(stored):
        raise ClaimError(
            f"{commitment} does not commit to the secret order of this key: give the file that sslguard commit wrote"
        )
    beside = timestamp_file(commitment)
    if not beside.exists() or not roots or not_after is None:
        missing = "a timestamp" if not beside.exists() else "certificates for it" if not roots else "the suspect's date"
        return Dated(
            UNDATED_TRIES, f"without {missing} it proves no date: up to 2^{UNDATED_TRIES} orders may have been tried"
        )
    when = verified_time(read_file(beside, MAX_TOKEN), found.document.content, roots, str(beside))
    if when > not_after:
        words = f"it is of {when:%Y-%m-%d}, and the suspect is older: the order may have been chosen to fit"
        return Dated(UNDATED_TRIES, words)
    return Dated(DATED_TRIES, f"it is of {when:%Y-%m-%d}, older than the suspect")
