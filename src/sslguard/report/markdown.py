"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from sslguard.report.table import Table


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table. Floats get three decimals; a "|" in a cell is escaped, a line break becomes a space.

    Raises:
        ValueError: a row has more or fewer cells than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells under a header of {len(header)}: {row!r:.200}")
    return "\n".join(map(_line, [header, ["---"] * len(header), *rows]))


def section(made: Table) -> str:
    """Return a table with its title as a heading of the second level, and its note."""
    return f"## {made.title}\n\n{made.note}\n\n{table(made.header, made.rows)}"


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return " ".join(text.splitlines()).replace("|", "\\|")
