"""Results as notebooks show them: a title, and a line for each figure."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from sslguard.report.text import line


def card(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """Return a result as HTML, in the colours of the page around it.

    Every text is made safe: names of suspects and files may come from anywhere.

    Args:
        title: What was found, such as a decision.
        rows: Label and text of each line; a line without a text is left out.
    """
    left, cell = "text-align:left;font-weight:normal;padding:0.1em 1.5em 0.1em 0", "text-align:left;padding:0.1em 0"
    lines = "".join(
        f'<tr><th style="{left}">{escape(label)}</th><td style="{cell}">{escape(line(text, 300))}</td></tr>'
        for label, text in rows
        if text not in ("", None)
    )
    return f"<div><strong>{escape(line(title))}</strong><table>{lines}</table></div>"
