"""docs/how-to/adding-a-scheme.md is followed: its peer is made, named, and takes part in a benchmark."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from helpers.bench_grid import write_miniature
from sslguard.bench.run import findings, run_bench
from sslguard.schemes.registry import SCHEMES

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "adding-a-scheme.md").read_text()


def test_the_scheme_of_the_page_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (entry,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert tomllib.loads(entry)["schemes"]["offset"]["scheme"] == "offset"
    # Dataclasses look up the module that they are made in.
    made: dict[str, Any] = {"__name__": __name__}
    exec(compile(code, "adding-a-scheme.md", "exec", dont_inherit=True), made)
    monkeypatch.setitem(SCHEMES, "offset", made["Offset"])
    grid = write_miniature(tmp_path, extra=f"\n{entry}n = 40\n")
    outcome = run_bench(grid, tmp_path / "out", only=["mark-*-offset-*", "null-*-offset-*"], say=lambda _: None)
    assert not outcome.failed
    rows = [row for row in findings(tmp_path / "out").rows if row.scheme == "offset"]
    (served,) = [row for row in rows if row.kind == "protected"]
    assert sum(row.kind == "innocent" for row in rows) == 4
    assert served.statistic is not None
    assert served.statistic == pytest.approx(0.3, abs=0.03)  # ε, but for what normalising takes and gives
    assert served.floor_log2 == pytest.approx(-math.log2(3))  # the other two answer in another width
