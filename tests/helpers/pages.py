"""Plain numbers from which each page can be made without a run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sslguard.claims.outcome import Audit, Check, Terms
from sslguard.claims.page import render_page as audit_page
from sslguard.demo.over_api import ApiResult, ApiSettings, Asked
from sslguard.demo.over_api import render_page as api_page
from sslguard.demo.page import render_page as demo_page
from sslguard.demo.result import Accuracy, Bar, Curve, KeyReport, ReportData, Scores, Suspect, TriggerPictures

LONG = "a name that goes on for as long as anybody would want to read of one encoder"


def scores(mean: float, spread: float = 0.05) -> Scores:
    cosines = mean + spread * np.linspace(-1, 1, 32)
    return Scores(float(cosines.mean()), float((cosines > 0.5).mean()), cosines)


def report_data(n_controls: int = 8, **changes: object) -> ReportData:
    """Two suspects and controls at 0, 0.01 …, half of a kind each."""
    kinds = {f"control-{i}": ("random", "surrogate of F")[i % 2] for i in range(n_controls)}
    controls = {name: scores(i / 100) for i, name in enumerate(kinds)}
    false = {name: scores(0.4 + i / 20) for i, name in enumerate(kinds)}
    suspects = (
        Suspect("F*", "marked", True, "derived", 1 / (n_controls + 1)),
        Suspect("other", "somebody else's", False, "not shown", 1.0),
    )
    main = KeyReport("cured", {"F*": scores(0.9), "other": scores(-0.2)}, controls, 1 / (n_controls + 1))
    beside = KeyReport("published", {"F*": scores(0.9), "other": scores(0.7)}, false, 0.5)
    bars = (Bar("raw pixels", "baseline", 0.2), Bar("F", "clean", 0.6, 1.0), Bar("F*", "marked", 0.58, 0.95))
    values: dict[str, object] = {
        "created": "2025-01-01 00:00 UTC",
        "suspects": suspects,
        "keys": (main, beside),
        "kinds": kinds,
        "alpha": 0.2,
        "n_claims": 1,
        "statistic_name": "mean cosine",
        "trigger": TriggerPictures(
            np.zeros((2, 1, 4, 4)), np.ones((2, 1, 4, 4)), np.ones((1, 4, 4)), np.ones((1, 4, 4))
        ),
        "accuracies": (Accuracy("garments", bars), Accuracy("digits", skipped="not installed")),
        "curves": (Curve("marking", {"shadow": [0.0, -0.5, -1.0]}),),
        "settings": {"Marking": {"steps": 3}},
        "seconds": {"mark": 1.5},
        "versions": {"sslguard": "0"},
        "commands": ("sslguard verify 'a key' \\\n    --data x",),
    }
    return ReportData(**{**values, **changes})  # type: ignore[arg-type]


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
    names = ("passed", "against", "failed", "not checkable", "assumed")
    checks = tuple(Check(f"check {status}", status, f"{LONG}: {'5eed' * 16}.") for status in names)
    facts = {
        **dict.fromkeys(("owner", "commitment_sha256", "claim_sha256", "clean_hash", "watermarked_hash"), "ab" * 32),
        **{"suspect": f"https://example.org/{LONG}", "scheme": "exact", "seed": "5eed" * 16, "data": "a-folder"},
        **{"committed": "2025-01-01T00:00:00+00:00", "claimed_by": {"sslguard": "0"}, "audited_by": {"sslguard": "0"}},
    }
    significance = SimpleNamespace(log2_pvalue=-143.2, pvalue=2**-143.2, floor=2**-256.0, n_controls=0)
    verdict: Any = SimpleNamespace(significance=significance)
    return Audit(checks, verdict, 1 << 20, Terms("5eed" * 16), facts)


def written(folder: Path) -> dict[str, Path]:
    """Write the demo's two pages and an audit to a folder; returns them by name."""
    pages = {
        "demo": demo_page(report_data(commands=("sslguard verify " + "--a-long-option x " * 20,))),
        "api": api_page(api_result()),
        "audit": audit_page(audit(), when=datetime(2026, 1, 1, tzinfo=UTC)),
    }
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page)
    return {name: folder / f"{name}.html" for name in pages}
