"""The claimant's side of a claim: ask a suspect the queries that the examiner's seed draws, and write a bundle."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sslguard.claims.bundle import MAX_CLEAN, OF_CLAIMS, fill_bundle, n_tests, npy, text
from sslguard.claims.commitment import OpenedKey, key_salt, parse_commitment, timestamp_file
from sslguard.claims.documents import MAX_DOCUMENT, read_file, sign_document
from sslguard.claims.openings import check_recordable, opened_at, record_opening
from sslguard.claims.queries import ExaminerData, items_hash, n_items
from sslguard.claims.receipts import handed
from sslguard.claims.timestamps import MAX_TOKEN
from sslguard.controls.members import count_controls
from sslguard.data.base import Batch, Data
from sslguard.data.kept import Kept
from sslguard.data.watched import Watched
from sslguard.encoders.base import Embedder
from sslguard.encoders.wrapped import as_suspect
from sslguard.errors import ClaimError
from sslguard.files import atomic_folder
from sslguard.schemes.base import Key
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.keyfile import StoredKey, serialise_tensors
from sslguard.verification.nulls import null_of
from sslguard.verification.scores import ControlScores, control_scores
from sslguard.verification.verdict import DEFAULT_ALPHA, Verdict, verify


class Recorded:
    """A suspect whose answers are kept, in the order in which they were given."""

    def __init__(self, suspect: Embedder) -> None:
        """Record the answers of `suspect`."""
        self.suspect = as_suspect(suspect)
        self.name = self.suspect.name
        self._parts: list[NDArray[np.floating]] = []

    @property
    def n_missing(self) -> int:
        """Number of queries so far that went unanswered."""
        return self.suspect.n_missing

    def embed(self, batch: Batch, /) -> NDArray[np.floating]:
        """Return the suspect's answers to a batch, and keep a copy."""
        answers = self.suspect.embed(batch)
        self._parts.append(np.array(answers))
        return answers

    def finish(self) -> None:
        """Tell the suspect that no more queries follow."""
        self.suspect.finish()

    def answers(self) -> NDArray[np.floating]:
        """Return all answers so far, (n, m): float32, or float64 if any answer came in another dtype."""
        single = all(part.dtype == np.float32 for part in self._parts)
        return np.concatenate(self._parts).astype(np.float32 if single else np.float64, copy=False)


def claim(
    stored: StoredKey,
    suspect: Embedder,
    data: Data,
    *,
    seed: str,
    commitment: Path,
    out: Path,
    controls: Sequence[str] = (),
    alpha: float = DEFAULT_ALPHA,
    n_claims: int = 1,
    progress: bool = False,
) -> Verdict:
    """Ask a suspect, decide, and write a bundle from which somebody else can decide again.

    The bundle opens the key, or the sub-key that `stored` is (`StoredKey.opened`). Where the commitment is a receipt,
    it opens that recipient's key and no other. The key's folder records that.

    Args:
        stored: The key, with its owner and folder.
        suspect: Who is asked.
        data: Data set that the examiner agreed to; the seed draws from it. None of it may have taken part in marking.
        seed: Seed that the examiner gave after seeing the commitment.
        commitment: File of the commitment; its timestamp, if any, lies beside it.
        out: Folder of the bundle.
        controls: Specifications of known innocents, for a key that needs controls.
        alpha: Level of the test, in (0, 1).
        n_claims: How many claims share the level. It is multiplied by the number of keys in the commitment; of a
            recipient's key by the number of all recipients' secrets, and one for the common mark.
        progress: Show a progress bar on standard error.

    Raises:
        ClaimError: The commitment is not to this key, or it or the record of openings is damaged. The suspect was not
            asked then.
        RefusedError: The null cannot support `alpha`. The suspect was not asked then.
        UsageError: An item took part in marking, as far as the key's folder knows; or the commitment is a receipt, and
            `stored` is not the whole key of its recipient. The suspect was not asked then.
        OutputError: The bundle cannot be written.
    """
    found = Opening(stored, commitment)
    stored, key = found.stored, found.stored.key
    n_claims *= found.n_tests
    null_of(key, count_controls(controls)).check(alpha, n_claims)
    found.check()
    fair = Watched(Kept(data), stored.marked, allowed=False)
    chosen = ExaminerData(fair, n_items(key, fair), seed=seed, commitment=found.committed.document.digest)
    asked = items_hash(chosen)
    # The output folder is reserved before anybody is asked.
    with atomic_folder(out) as partial:
        innocents = ControlScores({}, stored=False, kept=False)
        if key.needs_controls:
            innocents = control_scores(key, controls, chosen, progress=progress)
        scores = innocents.values
        clean = _of_clean(key, chosen)
        recorded, begun = Recorded(suspect), _now()
        known = innocents.kinds
        verdict = verify(
            key, recorded, chosen, control_scores=scores, control_kinds=known, alpha=alpha, n_claims=n_claims
        )
        answers = recorded.answers()
        said = {
            "seed": seed,
            "data": {"spec": text(data.spec, 1000), "items": len(data), "asked": asked},
            "controls": [text(name) for name in scores],
            **_found(verdict, answers, begun),
        }
        found.fill(partial, said, answers, clean)
    return verdict


class Opening:
    """A key that a claim opens, and the commitment to it."""

    def __init__(self, stored: StoredKey, commitment: Path) -> None:
        """Read the commitment.

        Raises:
            ClaimError: It is damaged.
            UsageError: It is a receipt, and this is not the whole key of its recipient.
        """
        self.committed = parse_commitment(read_file(commitment, MAX_DOCUMENT), str(commitment))
        recipient = self.committed.recipient
        self.compared: int | None = None
        if recipient is not None:
            stored, self.compared = handed(stored, recipient.name, recipient.rotation)
        self.stored, self.path = stored, commitment
        self.opened, self.salt = OpenedKey.of(stored.key), key_salt(stored.owner, stored.number)
        self.token: bytes | None = None
        self.before: datetime | None = None

    @property
    def n_tests(self) -> int:
        """Number of tests that share the level: see `bundle.n_tests`."""
        return n_tests(self.committed, self.compared)

    def check(self) -> None:
        """Check that the commitment is to this key, and that the opening can be recorded. Read the timestamp.

        Raises:
            ClaimError: It is to another key, or the timestamp cannot be read.
            OutputError: The key's folder cannot be written to.
        """
        digest, owner = self.opened.digest(self.salt), self.stored.owner.public
        if self.committed.document.owner != owner or not self.committed.holds(digest):
            raise ClaimError(
                f"{self.path} does not commit to this key: give the file that sslguard commit wrote for it"
            )
        beside = timestamp_file(self.path)
        self.token = read_file(beside, MAX_TOKEN) if beside.exists() else None
        self.before = opened_at(self.stored.folder, self.stored.number)
        check_recordable(self.stored)

    def fill(
        self,
        folder: Path,
        said: dict[str, Any],
        answers: NDArray[np.floating] | None,
        clean: NDArray[np.float32] | None = None,
    ) -> None:
        """Write the bundle into an empty folder, and record the opening.

        Args:
            folder: The folder.
            said: What the claim says.
            answers: The suspect's answers, (n, m); None of a claim by weights.
            clean: What the test takes of F, (n, d + p); None where the bundle does not show it.
        """
        document = self.committed.document
        fields = {**said, "commitment": document.digest, "key": _opening(self.opened, self.salt)}
        if self.compared is not None:
            fields["compared"] = self.compared
        if self.before is not None:
            fields["opened"] = self.before.isoformat()
        if clean is not None:
            fields["clean"] = hashlib.sha256(npy(clean)).hexdigest()
        fill_bundle(
            folder,
            claim=sign_document(self.stored.owner, OF_CLAIMS, {"versions": versions(), **fields}),
            commitment=document.content,
            token=self.token,
            opened=self.opened,
            answers=answers,
            clean=clean,
        )
        # Recorded before anybody can read the bundle. If the program is killed here, an unopened key counts as opened,
        # but never the reverse.
        record_opening(self.stored)


def _of_clean(key: Key, chosen: Data) -> NDArray[np.float32] | None:
    """Return what the test takes of F, for programs that cannot run F; None of another scheme, or where it is large."""
    if not isinstance(key, ExactKey):
        return None
    numbers = key.asks(len(chosen)) * (key.clean.dim + len(key.bank.centre))
    if 4 * numbers > MAX_CLEAN - (1 << 10):  # of a header
        return None
    return key.recorded(chosen)


def _now() -> str:
    return datetime.now(UTC).replace(microsecond=0).isoformat()


def _found(verdict: Verdict, answers: NDArray[np.floating], begun: str) -> dict[str, Any]:
    """Return what a claim says about the suspect."""
    suspect = text(verdict.suspect)
    answered = {"sha256": hashlib.sha256(npy(answers)).hexdigest(), "missing": verdict.n_missing}
    return {
        "suspect": suspect,
        "answers": {**answered, "begun": begun, "ended": _now()},
        "claimed": {**verdict.to_json(), "suspect": suspect},
    }


def _opening(opened: OpenedKey, salt: bytes) -> dict[str, Any]:
    """Return what a claim shows of the key, except the tensors themselves."""
    return {
        "scheme": opened.scheme,
        "fields": dict(opened.fields),
        "salt": salt.hex(),
        "tensors": hashlib.sha256(serialise_tensors(opened.tensors)).hexdigest(),
    }


def versions() -> dict[str, Any]:
    """Return the versions of the programs that compute the figures here."""
    return {
        "sslguard": version("sslguard"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
