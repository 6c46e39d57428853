"""The results pages say what the recorded cells say, and these are those of the configurations that they name."""

from __future__ import annotations

import json
import math
import tarfile
from pathlib import Path
from statistics import median

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


def test_the_headline_of_the_exact_scheme_is_counted_from_the_cells(tmp_path: Path) -> None:
    with tarfile.open(ROOT / "benchmarks/results/exact-cells.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    cells = {path.stem: json.loads(path.read_text())["result"] for path in (tmp_path / "cells").iterdir()}
    bits, derived, innocents = [], 0, []
    for name, found in cells.items():
        group, encoder, scheme, *_ = f"{name}---".split("-")
        if scheme != "head":
            continue
        if group in ("twin", "other") and "statistic" in found:
            innocents.append(found["statistic"])
        if group == "null":
            innocents += [one["statistic"] for one in found["innocents"].values()]
        if group != "attack":
            continue
        clean = next(cell for other, cell in cells.items() if other.startswith(f"reference-{encoder}-"))
        if (found["accuracy"] - clean["floor"]) / (clean["accuracy"] - clean["floor"]) >= 0.9:
            bits.append(found["statistic"])
            derived += found["log2_pvalue"] <= math.log2(0.01)
    said = (ROOT / "docs/results/exact.md").read_text().split("\n\n")[2]
    assert f"Of {len(bits)} suspects" in said
    assert f", {derived} are called derived" in said
    assert f"half of them show {median(bits):,.0f} bits or more" in said
    assert f"leaves {min(bits):,.1f} bits" in said
    assert f"Of {len(innocents)} innocents" in said
    assert f"the largest evidence is {max(innocents):.1f} bits" in said
