"""docs/explanation/security.md names the test that runs each attack: every name is one of a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "explanation" / "security.md").read_text()
ATTACKS = PAGE.partition("\n## Attacks on claims\n")[2].partition("\n## ")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in ATTACKS.splitlines()
    if line.startswith("| ") and not line.startswith("| attack ")
]


def names(cell: str) -> list[tuple[str, str]]:
    """File and name of each test that a cell speaks of: the last file named in it, or the attacks'."""
    quoted = re.findall(r"`([^`]+)`", cell)
    file = next((name for name in quoted if name.endswith(".py")), "claims/test_hostile_claimants.py")
    return [(file, part) for name in quoted if not name.endswith(".py") for part in name.split("::") if part != "…"]


def test_every_attack_has_a_row_of_four_cells():
    assert len(ROWS) > 20
    assert all(len(row) == 4 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:40] for row in ROWS])
def test_its_test_is_there(row):
    found = names(row[3])
    assert found
    for file, name in found:
        start = re.escape(name.rstrip("…"))
        end = r"\w*" if name.endswith("…") else r"\b"
        assert re.search(rf"^\s*(?:def|class) {start}{end}", (TESTS / file).read_text(), re.MULTILINE), (file, name)
