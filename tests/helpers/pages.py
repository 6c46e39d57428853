"""Plain numbers from which each page can be made without a run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sslguard.claims.outcome import Audit, Check, Terms
from sslguard.claims.page import render_page as audit_page
from sslguard.demo.over_api import ApiResult, ApiSettings, Asked
from sslguard.demo.over_api import render_page as api_page
from sslguard.demo.page import render_page as demo_page

LONG = "a name that goes on for as long as anybody would want to read of one encoder"
CHECKS = tuple(
    Check(f"check {status}", status, f"{LONG}: {'5eed' * 16}.")
    for status in ("passed", "against", "failed", "not checkable", "assumed")
)


def suspect(name: str, derived: bool, answers: float, weights: float | None = None, **changes: Any) -> dict[str, Any]:
    """What the demo found of one suspect."""
    decision = "derived" if max(answers, weights or 0) > 24 else "not shown"
    told = {"name": name, "story": f"{name}: {LONG}", "derived": derived, "answers": answers, "weights": weights}
    return {**told, "units": None, "decision": decision, **changes}


def demo_fields(*more: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Figures of a demonstration with both schemes, three suspects each."""
    rows = [suspect("marked", True, 256.0, 256.0), suspect("copied", True, 0.0, 120.5), suspect("moco", False, 0.3)]
    settings = {"n_tests": 16, "alpha": 2.0**-20, "seed": None, "roles": {"verify": "pictures[0:100]"}}
    claim = {
        "decision": "derived",
        "bits": 143.2,
        "seed": "5eed",
        "checks": [[c.name, c.status, c.words] for c in CHECKS],
    }
    found = {
        "mark the encoder": {"overlap": 0.485},
        "steal it through its answers": {"queries": 12_000, "cpu_seconds": 31.5},
        **{f"ask {row['name']}": row for row in (*rows, *more)},
        "claim, and audit the claim": claim,
        "measure what the copies are worth": {"clean encoder": 0.61, "raw pixels": 0.4},
    }
    fields = {
        "created": "2026-01-01 00:00 UTC",
        "settings": settings,
        "found": found,
        "seconds": {"mark the encoder": 1.5},
        "versions": {"sslguard": "0"},
        "commands": ["sslguard verify 'a key' \\\n    --data x"],
        "paper": {"suspects": rows, "seconds": {"mark": 2.0}},
    }
    return {**fields, **changes}


def api_result() -> ApiResult:
    """A thief behind an address and an innocent behind another."""

    def asked(name: str, decision: str, bits: float) -> Asked:
        verdict = SimpleNamespace(decision=decision, significance=SimpleNamespace(log2_pvalue=-bits, n_queries=1000))
        report = {"n_asked": 1000, "n_missing": 3}
        return Asked(name, LONG, "http://127.0.0.1:43211/v1", verdict, report)  # type: ignore[arg-type]

    theft = {"remote": {"n_asked": 4000, "n_requests": 63}, "n_parameters": 4_123_456, "final_loss": 0.0123}
    files = {"key": Path("a folder/key"), "surrogate": Path("a folder/surrogate")}
    suspects = (asked("the thief's address", "derived", 143.2), asked("an innocent's address", "not shown", 0.4))
    return ApiResult(ApiSettings(), theft, suspects, {"mark": 12.0}, files)


def audit() -> Audit:
    """Checks with every status, hashes and long words."""
    facts = {
        **dict.fromkeys(("owner", "commitment_sha256", "claim_sha256", "clean_hash", "watermarked_hash"), "ab" * 32),
        **dict.fromkeys(("asked_sha256", "answers_sha256", "asked_at"), "cd" * 32),
        **{"suspect": f"https://example.org/{LONG}", "scheme": "exact", "seed": "5eed" * 16, "data": "a-folder"},
        **{
            "recipient": None,
            "committed": "2025-01-01T00:00:00+00:00",
            "claimed_by": {"sslguard": "0"},
            "audited_by": {"sslguard": "0"},
        },
    }
    significance = SimpleNamespace(log2_pvalue=-143.2, pvalue=2**-143.2, floor=2**-256.0, n_controls=0)
    verdict: Any = SimpleNamespace(significance=significance)
    return Audit(CHECKS, verdict, 1 << 20, Terms("5eed" * 16), facts)


def written(folder: Path) -> dict[str, Path]:
    """Write the demo's two pages and an audit to a folder; returns them by name."""
    pages = {
        "demo": demo_page(demo_fields(commands=["sslguard verify " + "--a-long-option x " * 20])),
        "api": api_page(api_result()),
        "audit": audit_page(audit(), when=datetime(2026, 1, 1, tzinfo=UTC)),
    }
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page)
    return {name: folder / f"{name}.html" for name in pages}
