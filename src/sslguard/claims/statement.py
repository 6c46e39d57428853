"""The outcome of an audit as a signed document, which an examiner hands on.

Its predicate has the examiner's Ed25519 public key, hex, as `examiner`; the time by his clock, ISO 8601, as `time`; and
`audit`, what `Audit.to_json` gives. Its subject are the files of the bundle: claim, commitment and answers. It holds
neither the key that was opened nor any answer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslguard.claims.bundle import ANSWERS, CLAIM, COMMITMENT
from sslguard.claims.documents import Kind, read_signing_key, sign_statement
from sslguard.claims.outcome import Audit
from sslguard.errors import OutputError
from sslguard.files import write_atomic

if TYPE_CHECKING:
    pass


def _hashes(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hashes of a bundle's files in an audit."""
    facts = predicate["audit"]
    found = {CLAIM: facts["claim_sha256"], COMMITMENT: facts["commitment_sha256"], ANSWERS: facts["answers_sha256"]}
    return {name: digest for name, digest in found.items() if digest is not None}


OF_VERDICTS = Kind("verdict", _hashes)


class Examiner:
    """Who signs the outcome of an audit, and where it is written."""

    def __init__(self, key: Path, out: Path) -> None:
        """Read the examiner's private key.

        Args:
            key: File of an Ed25519 private key, PEM without a password, as `openssl genpkey -algorithm ed25519` writes.
            out: File of the document. Nothing may be there.

        Raises:
            UsageError: The key cannot be read, or is none of this kind.
            OutputError: `out` is taken.
        """
        if os.path.lexists(out):
            raise OutputError(f"{out} is there already: name a new file for the signed outcome")
        self._key, self._out = read_signing_key(key), out

    def sign(self, found: Audit) -> None:
        """Write the signed outcome of an audit.

        Raises:
            OutputError: The file cannot be written.
        """
        public = self._key.public_key().public_bytes_raw().hex()
        now = datetime.now(UTC).replace(microsecond=0).isoformat()
        predicate = {"examiner": public, "time": now, "audit": found.to_json()}
        write_atomic(self._out, sign_statement(self._key, OF_VERDICTS, predicate))
