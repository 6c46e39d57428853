"""The demonstration's last part: a claim that somebody else can check, and the check."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from sslguard.claims.audit import audit
from sslguard.claims.bundle import FILES
from sslguard.claims.claim import claim
from sslguard.claims.commitment import publish, timestamp_file
from sslguard.claims.outcome import Audit, Terms
from sslguard.claims.page import write_page
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.keyfile import open_key
from sslguard.report.data import AuditReport

COMMITMENT, BUNDLE, PAGE = "commitment.json", "claim", "audit.html"


def is_bundle(folder: Path) -> bool:
    """Only what a claim's folder holds."""
    return folder.is_dir() and not folder.is_symlink() and {entry.name for entry in folder.iterdir()} <= FILES


def claim_and_audit(
    out: Path, key: Path, clean: Encoder, suspect: Encoder, data: Data, *, alpha: float, seed: int | None
) -> AuditReport:
    """Commit to the key, claim the suspect on what an examiner's seed draws, and decide anew as that examiner.

    Owner, examiner and suspect are one program here, so the date of the commitment is nobody's word: the audit charges
    64 bits for it.

    Args:
        out: where commitment, bundle and the examiner's page are written; former ones are replaced.
        seed: of the examiner; None draws it.
    """
    commitment, bundle, page = out / COMMITMENT, out / BUNDLE, out / PAGE
    for old in (commitment, timestamp_file(commitment)):
        old.unlink(missing_ok=True)
    if bundle.exists():
        shutil.rmtree(bundle)
    stored, drawn = open_key(key), secrets.token_hex(16) if seed is None else f"demonstration {seed}"
    publish(stored, commitment)
    claim(stored, suspect, data, seed=drawn, commitment=commitment, out=bundle, alpha=alpha)
    found = audit(bundle, data, Terms(seed=drawn, alpha=alpha), clean=clean, suspect=suspect)
    write_page(found, page)
    return _report(found, page)


def _report(found: Audit, page: Path) -> AuditReport:
    bits = None if found.verdict is None else -found.verdict.significance.log2_pvalue
    checks = tuple((check.name, check.status, check.words) for check in found.checks)
    return AuditReport(found.decision, bits, found.n_tries, checks, page.name)
