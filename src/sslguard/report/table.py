"""A table of texts, which a terminal, Markdown and a page show each in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sslguard.report.text import line, numeric

if TYPE_CHECKING:
    from rich.console import Group

LONG = 30
"""More rows than this, and a page folds the table and lets it scroll under its head."""


@dataclass(frozen=True)
class Table:
    """Texts in rows and columns.

    Attributes:
        title: Heading, without a full stop.
        note: What the columns mean, in sentences.
        header: One text per column.
        rows: One text per column each; the first names the row.
    """

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def numbers(self) -> tuple[bool, ...]:
        """Return, for each column, whether it holds numbers."""
        return tuple(numeric(row[column] for row in self.rows) for column in range(len(self.header)))

    @property
    def long(self) -> bool:
        """Return whether there are more than `LONG` rows."""
        return len(self.rows) > LONG


def terminal(table: Table) -> Group:
    """Return the table and its note for `rich` to print. Texts are shown as they are, never read as markup."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(title=Text(table.title, "bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for name, number in zip(table.header, table.numbers, strict=True):
        made.add_column(Text(name), justify="right" if number else "left")
    for row in table.rows:
        made.add_row(*(Text(line(cell, 400)) for cell in row))
    return Group(made, *([Text(table.note + "\n")] if table.note else []))
