"""The last part of the demonstration: a claim that somebody else can check, and the check."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from sslguard import api
from sslguard.claims.bundle import read_bundle
from sslguard.claims.commitment import parse_commitment, timestamp_file
from sslguard.claims.documents import MAX_DOCUMENT, read_file
from sslguard.claims.outcome import Audit
from sslguard.claims.page import check_page
from sslguard.data.base import Data
from sslguard.demo.result import AuditReport
from sslguard.encoders.base import Encoder
from sslguard.errors import OutputError, SslguardError
from sslguard.schemes.keyfile import open_key

COMMITMENT, BUNDLE, PAGE = "commitment.json", "claim", "audit.html"


def check_replaceable(out: Path, key: Path) -> None:
    """Check that commitment, bundle and page in a folder are missing, or come from an earlier demonstration.

    Others are never replaced, because nobody can make an earlier commitment again.

    Args:
        out: Folder that the demonstration writes to.
        key: Folder of the earlier demonstration's key.

    Raises:
        OutputError: One of them belongs to another key, or is something else.
    """
    commitment, bundle = out / COMMITMENT, out / BUNDLE
    for path, owner_in in ((commitment, _committed_by), (bundle, _claimed_by)):
        if not (path.exists() or path.is_symlink()):
            continue
        try:
            ours = not path.is_symlink() and owner_in(path) == open_key(key).owner.public
        except SslguardError:
            ours = False
        if not ours:
            raise OutputError(f"{path} holds something else, which is not overwritten: choose another --out")
    check_page(out / PAGE)


def _committed_by(path: Path) -> str:
    return parse_commitment(read_file(path, MAX_DOCUMENT), str(path)).document.owner


def _claimed_by(folder: Path) -> str:
    return read_bundle(folder).claim.owner


def claim_and_audit(
    out: Path, key: Path, clean: Encoder, suspect: Encoder, data: Data, *, alpha: float, seed: int | None
) -> AuditReport:
    """Commit to the key, claim the suspect on queries that an examiner's seed draws, and audit the claim.

    Owner, examiner and suspect are one program here, so nothing shows the date of the commitment. The audit charges 64
    bits for that.

    Args:
        out: Folder for commitment, bundle and the examiner's page; earlier ones are replaced.
        key: Folder of the owner's key.
        clean: F.
        suspect: Encoder that the claim is about.
        data: Data set that the queries are drawn from.
        alpha: Level of the test, in (0, 1).
        seed: Makes the examiner's seed repeatable; None draws it at random.
    """
    commitment, bundle, page = out / COMMITMENT, out / BUNDLE, out / PAGE
    for old in (commitment, timestamp_file(commitment)):
        old.unlink(missing_ok=True)
    if bundle.exists():
        shutil.rmtree(bundle)
    drawn = secrets.token_hex(16) if seed is None else f"demonstration {seed}"
    api.commit(key, commitment)
    api.claim(key, suspect, data, seed=drawn, commitment=commitment, out=bundle, alpha=alpha)
    found = api.audit(bundle, data, seed=drawn, clean=clean, suspect=suspect, alpha=alpha, report=page)
    return _report(found, page)


def _report(found: Audit, page: Path) -> AuditReport:
    bits = None if found.verdict is None else -found.verdict.significance.log2_pvalue
    checks = tuple((check.name, check.status, check.words) for check in found.checks)
    return AuditReport(found.decision, bits, found.n_tries, checks, page.name)
