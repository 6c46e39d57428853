"""The HTML page of an audit: what is shown, what is not shown, and what was assumed.

The template escapes every text, because names of suspects and versions come from the claimant.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from sslguard.claims.outcome import Audit, Decision
from sslguard.claims.strength import Strength
from sslguard.errors import OutputError
from sslguard.files import write_atomic
from sslguard.report.html import is_page, render
from sslguard.schemes.registry import key_class

_ANSWERS: dict[Decision, str] = {
    "derived": "It is shown, if what was assumed below is true.",
    "not shown": "What was examined does not show it.",
    "forged": "The submitted files contradict themselves or were changed. They show nothing.",
    "not checkable": "No verdict can be given: something is missing.",
}
# Label of each fact, and whether readers compare it digit by digit.
_FACTS = {
    "suspect": ("suspect, as the claimant calls it", False),
    "owner": ("claimant’s public key", True),
    "scheme": ("scheme of the key", False),
    "recipient": ("recipient, as the owner calls him", False),
    "commitment_sha256": ("SHA-256 of the commitment", True),
    "committed": ("time of the commitment", False),
    "claim_sha256": ("SHA-256 of the claim", True),
    "clean_hash": ("SHA-256 of F’s weights", True),
    "watermarked_hash": ("SHA-256 of F*’s weights", True),
    "seed": ("seed in the claim", True),
    "asked_sha256": ("SHA-256 of the items that were asked about", True),
    "answers_sha256": ("SHA-256 of the answers", True),
    "asked_at": ("when they were asked, by the claimant’s clock", False),
    "claimed_by": ("programs of the claimant", False),
    "audited_by": ("programs of this audit", False),
}
_LABELS = {"against": "speaks against", "failed": "failed"}


def render_page(audit: Audit, *, when: datetime | None = None) -> str:
    """Return the page, HTML5. It loads nothing from any address.

    Args:
        audit: Result of the audit.
        when: Time of the audit; without it the page has no date.
    """
    return render("claims/page.html.j2", **_context(audit, when))


def write_page(audit: Audit, path: Path) -> None:
    """Write the page, dated now. Only a page that sslguard wrote is replaced.

    Args:
        audit: Result of the audit.
        path: File of the page.

    Raises:
        OutputError: `path` holds something else, or cannot be written.
    """
    check_page(path)
    write_atomic(path, render_page(audit, when=datetime.now(UTC)).encode())


def check_page(path: Path) -> None:
    """Check that a page may be written to `path`. Called before long work.

    Raises:
        OutputError: `path` holds something else.
    """
    if not os.path.lexists(path):
        return
    ours = False
    # Reading a pipe would block.
    with suppress(OSError):
        ours = path.is_file() and is_page(path)
    if not ours:
        raise OutputError(f"{path} exists and is not a report of sslguard. It is not overwritten: choose another name")


def _context(audit: Audit, when: datetime | None) -> dict[str, Any]:
    facts, significance = audit.facts, None if audit.verdict is None else audit.verdict.significance
    problems, kind = audit.of("failed", "not checkable", "against"), key_class(facts["scheme"])
    bits = 0.0 if significance is None else abs(significance.log2_pvalue)
    stands = "The verdict stands on them." if significance is not None else "A verdict would stand on them."
    return {
        "decision": audit.decision,
        "answer": " ".join([_ANSWERS[audit.decision], *(check.words for check in problems[:1])]),
        "sections": [
            ("What is not shown", "Each of these prevents a claim.", problems),
            ("What is shown", "Each of these was checked here, none taken on trust.", audit.of("passed")),
            ("What was assumed", f"No check was made of these. {stands}", audit.of("assumed")),
        ],
        "labels": _LABELS,
        "facts": facts,
        "tables": [
            ("terms", "What the examiner decided by", "Given to this audit, not taken from the claim.", _terms(audit)),
            ("facts", "What was examined", "To repeat this audit: the same bundle, F, data and seed.", _facts(facts)),
        ],
        "terms": audit.terms,
        "propositions": audit.propositions,
        "strength": _strength(audit.strength),
        "errors": _errors() if facts["scheme"] == "exact" else (),
        "exact": kind is not None and not kind.needs_controls,
        "by_weights": audit.by_weights,
        "significance": significance,
        "bits": f"{bits:.0f}",
        "odds": round(bits * math.log10(2)) if bits > 10 else None,
        "capped": significance is not None and bits >= -math.log2(significance.floor) - 1e-6,
        "needed": f"{math.log2(audit.n_tries) - math.log2(audit.terms.alpha):.1f}",
        "level": audit.terms.alpha / audit.n_tries,
        "tries": _tries(audit.n_tries),
        "when": None if when is None else _moment(when),
    }


def _strength(found: Strength | None) -> dict[str, str] | None:
    if found is None:
        return None
    return {
        "least": _power(found.least),
        "most": _power(found.most),
        "support": found.support,
        "p": f"2<sup>−{-found.log2_pvalue:.0f}</sup>" if found.log2_pvalue < -10 else f"{2**found.log2_pvalue:.2g}",
    }


def _errors() -> list[tuple[str, str, str]]:
    """Return the measured error rates of the scheme exact: of what, the count, and its interval."""
    found = json.loads((files("sslguard") / "assets" / "validation.json").read_bytes())
    asked = [(f"innocents called derived at a level of {level}", rate) for level, rate in found["innocents"].items()]
    for mark, kinds in found["copies"].items():
        asked += [(f"copies found, {mark}, that give {kind}", rate) for kind, rate in kinds.items()]
    return [(of, f"{r['found']:,} of {r['n']:,}", f"{r['low']:.1%} to {r['high']:.1%}") for of, r in asked]


def _power(log10: float) -> str:
    return f"10<sup>{math.floor(log10)}</sup>" if log10 >= 4 else f"{10**log10:,.3g}"


def _tries(n: int) -> str:
    if n < 1 << 20:
        return "one claim" if n == 1 else f"{n:,} claims"
    return f"2<sup>{math.log2(n):.0f}</sup> claims that may have been tried"


def _terms(audit: Audit) -> list[tuple[str, str, bool]]:
    terms, roots = audit.terms, []
    if terms.roots:
        from cryptography.hazmat.primitives.hashes import SHA256

        roots = [f"SHA-256 {root.fingerprint(SHA256()).hex()}" for root in terms.roots]
    return [
        ("data to draw from", str(audit.facts["data"]), False),
        ("who chose the data", "the examiner" if terms.own_data else "not the examiner", False),
        ("seed", terms.seed, True),
        ("alpha", f"{terms.alpha:g}", False),
        ("claims that share it", f"{terms.n_claims:,}", False),
        ("suspect could first be asked", "not given" if terms.not_after is None else _moment(terms.not_after), False),
        ("commitment seen before", terms.commitment or "not given", terms.commitment is not None),
        ("key opened or lost", "not known" if terms.opened is None else _moment(terms.opened), False),
        *[("certificate of an authority", root, True) for root in roots],
        *([] if roots else [("certificate of an authority", "none given", False)]),
        *([("known innocents", ", ".join(terms.controls), False)] if terms.controls else []),
    ]


def _facts(facts: dict[str, Any]) -> list[tuple[str, str, bool]]:
    rows = []
    for name, (label, code) in _FACTS.items():
        value = facts[name]
        if name == "committed" and value is not None:
            value = _moment(datetime.fromisoformat(value))
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        rows.append((label, "not shown" if value is None else str(value), code and value is not None))
    return rows


def _moment(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M %Z").strip()
