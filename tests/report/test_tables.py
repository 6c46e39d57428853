"""One table, as Markdown and for a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sslguard.report.markdown import section, table
from sslguard.report.table import Table, terminal

MADE = Table("Title", "What it says.", ("name", "n"), (("a [bold]b", "1"), ("c", "22")))


def test_markdown_has_a_head_a_rule_and_a_line_a_row() -> None:
    assert table(["name", "n"], [["a", 1], ["b", 0.5]]) == "| name | n |\n| --- | --- |\n| a | 1 |\n| b | 0.500 |"


def test_markdown_cells_cannot_end_a_cell_or_a_line() -> None:
    assert table(["a"], [["x|y\nz"]]).splitlines()[2:] == ["| x\\|y z |"]


def test_a_row_that_does_not_fit_its_header_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells under a header of 2"):
        table(["a", "b"], [["only"]])


def test_a_section_has_heading_and_note() -> None:
    assert section(MADE) == "## Title\n\nWhat it says.\n\n| name | n |\n| --- | --- |\n| a [bold]b | 1 |\n| c | 22 |"


def test_columns_of_numbers_are_aligned_right() -> None:
    assert MADE.numbers == (False, True)
    console = Console(file=io.StringIO(), width=60, force_terminal=False)
    console.print(terminal(MADE))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0].strip() == "Title"
    ends = {len(line.rstrip()) for line in lines if "a [bold]b" in line or line.strip().startswith("c")}
    assert len(ends) == 1


def test_only_long_tables_are_long() -> None:
    assert not MADE.long
    assert Table("", "", ("a",), (("x",),) * 31).long
