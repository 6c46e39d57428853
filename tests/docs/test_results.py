"""The results page says what the recorded cells say, and they are those of the configuration that it names."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from sslguard.bench.config import read_config
from sslguard.bench.run import write_results

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("undrawn")
def test_the_page_is_what_the_recorded_cells_say(tmp_path: Path) -> None:
    with tarfile.open(ROOT / "benchmarks/results/bench-cells.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    assert write_results(tmp_path)["markdown"].read_text() == (ROOT / "docs/results/results.md").read_text()
    assert read_config(tmp_path / "config.toml") == read_config(ROOT / "benchmarks/page.toml")
