"""The notebook runs as it stands in a kernel of its own, and shows the verdicts that are kept in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
NOTEBOOK = Path(__file__).parents[2] / "examples" / "watermark.ipynb"
DECISIONS = ["marked encoder and its key", "derived", "not shown"]


def shown(notebook: Any) -> list[str]:
    """Return the titles of the results that a notebook shows."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pages = "".join("".join(output.get("data", {}).get("text/html", "")) for output in outputs)
    return re.findall(r"<strong>(.*?)</strong>", pages)


def pictures(notebook: Any) -> int:
    """Return the number of pictures in a notebook."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_it_runs_and_shows_what_is_kept(tmp_path: Path) -> None:
    kept = nbformat.read(NOTEBOOK, as_version=4)
    assert (shown(kept), pictures(kept)) == (DECISIONS, 1)
    nbformat.validate(kept)
    again = nbclient.NotebookClient(kept, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (shown(again), pictures(again)) == (DECISIONS, 1)
    assert list(tmp_path.iterdir()) == []
