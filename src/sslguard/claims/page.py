"""An audit as one HTML file for people who have to decide: what is shown, what is not, and what was assumed.

Every text goes through the template's escaping: names of suspects and versions come from the claimant.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from sslguard.claims.outcome import Audit, Decision
from sslguard.errors import OutputError
from sslguard.files import write_atomic

GENERATOR = '<meta name="generator" content="sslguard">'
_HEAD = 4096  # bytes of a page within which it says who made it
_ANSWERS: dict[Decision, str] = {
    "derived": "The evidence shows it, under the assumptions below.",
    "not shown": "What was examined does not show it.",
    "forged": "What was handed in contradicts itself or was changed. It shows nothing.",
    "not checkable": "No verdict can be given: something is missing.",
}
_LABELS = {"against": "speaks against", "failed": "failed"}


def render_page(audit: Audit) -> str:
    """The page, HTML5. No address is loaded from anywhere."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["line"] = _line
    template = (files("sslguard.claims") / "page.html.j2").read_text(encoding="utf-8")
    return str(environment.from_string(template).render(**_context(audit)))


def write_page(audit: Audit, path: Path) -> None:
    """Write the page to `path`; only a page of sslguard's is replaced.

    Raises:
        OutputError: something else stands there, or it cannot be written.
    """
    check_page(path)
    write_atomic(path, render_page(audit).encode())


def check_page(path: Path) -> None:
    """Raises OutputError where a page must not be written to `path`: before the work, not after it."""
    if not os.path.lexists(path):
        return
    head = b""
    # A pipe would block.
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(_HEAD)
    if GENERATOR.encode() not in head:
        raise OutputError(
            f"{path} is there and is no report of sslguard's, and is not overwritten: choose another name"
        )


def _context(audit: Audit) -> dict[str, Any]:
    facts, significance = audit.facts, None if audit.verdict is None else audit.verdict.significance
    problems = audit.of("failed", "not checkable", "against")
    return {
        "decision": audit.decision,
        "answer": _ANSWERS[audit.decision],
        "sections": [
            ("What is not shown", "Any of these stands in the way of a claim.", problems),
            ("What is shown", "Each of these was checked here, none taken on trust.", audit.of("passed")),
            ("What was assumed", "No check was made of these. The verdict stands on them.", audit.of("assumed")),
        ],
        "labels": _LABELS,
        "facts": facts,
        "table": _table(facts),
        "terms": audit.terms,
        "significance": significance,
        "bits": None if significance is None else f"{abs(significance.log2_pvalue):.0f}",
        "tries": "one claim" if audit.n_tries == 1 else f"2^{math.log2(audit.n_tries):.1f} claims",
        "generator": GENERATOR,
    }


def _table(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(name.replace("_", " "), str(facts[name])) for name in facts if name not in ("claimed_by", "audited_by")]
    for name in ("claimed_by", "audited_by"):
        rows.append((name.replace("_", " "), ", ".join(f"{k} {v}" for k, v in facts[name].items())))
    return rows


def _line(text: object, most: int = 600) -> str:
    """On one line, control characters escaped, cut where it is too long."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= most else f"{line[: most - 1]}…"
