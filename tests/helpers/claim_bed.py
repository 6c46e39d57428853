"""What tests of claims share: an owner with a key, a commitment, a dated timestamp, and an examiner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from helpers.timestamp_authority import Authority
from sslguard.claims.audit import audit
from sslguard.claims.claim import claim
from sslguard.claims.commitment import publish, timestamp_file
from sslguard.claims.outcome import Audit, Terms
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.schemes.base import Key
from sslguard.schemes.keyfile import Owner, StoredKey
from sslguard.verification.verdict import Verdict

COMMITTED = datetime(2025, 1, 1, tzinfo=UTC)
SEEN = datetime(2025, 6, 1, tzinfo=UTC)  # when the suspect could first be asked
SEED = "5eed" * 16
AUTHORITY = Authority()
TERMS = Terms(seed=SEED, alpha=1e-6, not_after=SEEN, roots=(AUTHORITY.root,), own_data=True)


class Answers:
    """A suspect that answers every batch with a function of it."""

    def __init__(self, answer: Callable[[Any], np.ndarray]) -> None:
        """Keep the function."""
        self.answer = answer

    def embed(self, batch: Any) -> np.ndarray:
        """Return its answers to a batch."""
        return self.answer(batch)


@dataclass
class Bed:
    """A claimant's table: `commit` and `claim` write beside each other into `folder`.

    Attributes:
        sub_key: which a claim opens; 0 opens the whole key.
        key_folder: where the key lies, for a record of its openings.
    """

    folder: Path
    key: Key
    clean: Encoder
    data: Data
    owner: Owner = field(default_factory=lambda: Owner(b"s" * 32, b"k" * 32))
    terms: Terms = TERMS
    sub_key: int = 0
    key_folder: Path | None = None

    @property
    def stored(self) -> StoredKey:
        """Return the key as its folder would hold it."""
        return StoredKey(self.key, self.owner, False, folder=self.key_folder)

    @property
    def commitment(self) -> Path:
        """Return the path of the commitment."""
        return self.folder / "commitment.json"

    @property
    def bundle(self) -> Path:
        """Return the path of the bundle."""
        return self.folder / "bundle"

    def commit(self, when: datetime | None = COMMITTED, authority: Authority = AUTHORITY) -> Bed:
        """Publish the commitment, and have it dated unless `when` is None."""
        made, _ = publish(self.stored, self.commitment)
        if when is not None:
            timestamp_file(self.commitment).write_bytes(authority.token(made.document.content, when))
        return self

    def claim(self, suspect: Any, **changes: Any) -> Verdict:
        """Claim a suspect, and write the bundle."""
        given = {"seed": SEED, "commitment": self.commitment, "out": self.bundle, "alpha": 1e-6, **changes}
        stored = self.stored.opened(self.sub_key) if self.sub_key else self.stored
        return claim(stored, suspect, given.pop("data", self.data), **given)

    def audit(self, clean: Encoder | None = None, suspect: Any = None, data: Data | None = None, **terms: Any) -> Audit:
        """Audit the bundle, under the bed's terms with some of them changed."""
        chosen = replace(self.terms, **terms)
        return audit(self.bundle, data or self.data, chosen, clean=clean or self.clean, suspect=suspect)


def words(found: Audit, *statuses: str) -> str:
    """Return what an audit says of the checks that ended so."""
    return " ".join(check.words for check in found.checks if check.status in statuses)
