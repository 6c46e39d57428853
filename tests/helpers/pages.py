"""Plain numbers from which each page can be made without a run."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sslguard.claims.outcome import Audit, Check, Terms
from sslguard.claims.page import render_page as audit_page
from sslguard.controls.members import Member
from sslguard.demo.over_api import ApiResult, ApiSettings, Asked
from sslguard.demo.over_api import render_page as api_page
from sslguard.demo.page import render_page as demo_page
from sslguard.demo.result import (
    Accuracy,
    Bar,
    Decision,
    Examined,
    ReportData,
    Suspect,
    TriggerPictures,
)
from sslguard.schemes.base import Score
from sslguard.stats.significance import Significance

LONG = "a name that goes on for as long as anybody would want to read of one encoder"


def scores(mean: float, spread: float = 0.05) -> Score:
    cosines = mean + spread * np.linspace(-1, 1, 32)
    return Score(float(cosines.mean()), 32, float((cosines > 0.5).mean()), cosines)


def suspect(
    name: str, story: str, derived: bool, decision: Decision, pvalue: float, score: Score | None = None
) -> Suspect:
    """A suspect with an exact p-value."""
    score = score or scores(0.9 if derived else -0.2)
    found = Significance(score.value, math.log2(pvalue), 2.0**-256, "exact", 32)
    return Suspect(name, story, derived, decision, score, found)


def exactly() -> Examined:
    """Two suspects under the exact null, and three controls, one of them below 0.01."""

    def score(log2_pvalue: float) -> Score:
        found = Significance(-log2_pvalue, log2_pvalue, 2.0**-256, "exact", 100)
        return Score(-log2_pvalue, 100, evidence=found)

    def shown(name: str, derived: bool, decision: Decision, log2_pvalue: float) -> Suspect:
        found = score(log2_pvalue)
        assert found.evidence is not None
        return Suspect(name, "x", derived, decision, found, found.evidence)

    suspects = (shown("F* (exact)", True, "derived", -256.0), shown("other", False, "not shown", -0.5))
    controls = {f"control-{n}": score(log2_pvalue) for n, log2_pvalue in enumerate((-7.0, -1.0, -0.1))}
    return Examined("exact", suspects, controls, 1e-6, 2)


def examined(n_controls: int = 8, **changes: Any) -> Examined:
    """Two suspects and controls at 0, 0.01 … under the key that decides."""
    suspects = (
        suspect("F*", "marked", True, "derived", 1 / 9),
        suspect("other", "somebody else's", False, "not shown", 1.0),
    )
    controls = {f"control-{i}": scores(i / 100) for i in range(n_controls)}
    return replace(Examined("cured", suspects, controls, 0.2, 1), **changes)


def report_data(main: Examined | None = None, **changes: Any) -> ReportData:
    """Two suspects and controls, half of a kind each, under two keys."""
    main = main or examined()
    members = [Member(name, ("random", "surrogate of F")[i % 2], None, Path()) for i, name in enumerate(main.controls)]
    false = {name: scores(0.4 + i / 20) for i, name in enumerate(main.controls)}
    beside = tuple(replace(one, score=scores(0.9 if one.derived else 0.7)) for one in main.suspects)
    bars = (Bar("raw pixels", "baseline", 0.2), Bar("F", "clean", 0.6, 1.0), Bar("F*", "marked", 0.58, 0.95))
    values: dict[str, Any] = {
        "created": "2025-01-01 00:00 UTC",
        "keys": (main, replace(main, name="published", suspects=beside, controls=false)),
        "exact": exactly(),
        "audit": replace(audit(), verdict=None),
        "controls": members,
        "statistic_name": "mean cosine",
        "trigger": TriggerPictures(
            np.zeros((2, 1, 4, 4)), np.ones((2, 1, 4, 4)), np.ones((1, 4, 4)), np.ones((1, 4, 4))
        ),
        "accuracies": (Accuracy("garments", bars), Accuracy("digits", skipped="not installed")),
        "curves": {"marking": {"shadow": [0.0, -0.5, -1.0]}},
        "settings": {"Marking": {"steps": 3}},
        "seconds": {"mark": 1.5},
        "versions": {"sslguard": "0"},
        "commands": ("sslguard verify 'a key' \\\n    --data x",),
    }
    return ReportData(**{**values, **changes})


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
        **dict.fromkeys(("asked_sha256", "answers_sha256", "asked_at"), "cd" * 32),
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
