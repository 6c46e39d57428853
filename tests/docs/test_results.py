"""The results pages say what the recorded cells say, and these are those of the configurations that they name."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from sslguard.bench.config import read_config
from sslguard.bench.run import write_results

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("cells", "config", "page"), [("bench", "page", "results"), ("exact", "exact", "exact")])
def test_a_page_is_what_the_recorded_cells_say(tmp_path: Path, cells: str, config: str, page: str) -> None:
    with tarfile.open(ROOT / f"benchmarks/results/{cells}-cells.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    assert write_results(tmp_path)["markdown"].read_text() == (ROOT / f"docs/results/{page}.md").read_text()
    assert read_config(tmp_path / "config.toml") == read_config(ROOT / f"benchmarks/{config}.toml")
