"""Cells: done once, in the order of their needs, whatever fails or dies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from helpers.bench_grid import nothing, toy
from sslguard.bench.cells import Cell, path_of, read_cells, run_cells


def cell(name: str, *needs: str, group: str = "g", **args: Any) -> Cell:
    return Cell(name, group, "f", args, needs)


def run(cells: list[Cell], out: Path, workers: int = 1) -> Any:
    lines: list[str] = []
    outcome = run_cells(cells, out, toy, workers=workers, prepare=nothing, say=lines.append)
    assert len(lines) == 1 + len(outcome.done) + len(outcome.failed)
    return outcome


def test_cells_run_in_order_once_their_needs_are_done(tmp_path: Path) -> None:
    plan = [cell("last", "first", "second"), cell("first", "second"), cell("second"), cell("free")]
    assert run(plan, tmp_path).done == ["second", "first", "last", "free"]
    assert run(plan, tmp_path).done == []
    path_of(tmp_path, "first").unlink()
    assert run(plan, tmp_path).done == ["first"]


def test_a_failing_cell_stops_only_those_that_need_it(tmp_path: Path) -> None:
    plan = [cell("bad", fail=True), cell("needy", "bad"), cell("needier", "needy"), cell("good")]
    outcome = run(plan, tmp_path)
    assert outcome.done == ["good"]
    assert "no luck" in outcome.failed["bad"]
    assert outcome.skipped == {"needy": "needs bad", "needier": "needs needy"}
    assert not path_of(tmp_path, "bad").exists()


def test_a_process_that_dies_is_a_failed_cell_and_the_rest_goes_on(tmp_path: Path) -> None:
    plan = [cell("one"), cell("deadly", "one", die=True), cell("two", "one"), cell("three", "two")]
    outcome = run(plan, tmp_path, workers=2)
    assert "deadly" in outcome.failed
    # Whatever ran beside it died with its pool, perhaps with its result written; nothing else is lost.
    assert set(outcome.done) | set(outcome.failed) | set(outcome.skipped) == {c.name for c in plan}
    again = run([c for c in plan if c.name != "deadly"], tmp_path)
    assert not again.failed
    assert not again.skipped
    found = read_cells(tmp_path, plan)[0]
    assert set(found) == {"one", "two", "three"}
    assert found["one"]["result"]["process"] != os.getpid()


def test_cells_of_other_arguments_and_what_was_made_from_them_are_foreign(tmp_path: Path) -> None:
    plan = [cell("late", "middle"), cell("middle", "early"), cell("early", steps=(1, 2)), cell("other")]
    run(plan, tmp_path)
    assert read_cells(tmp_path, plan)[1] == []
    changed = [*plan[:2], cell("early", steps=(1, 3)), plan[3]]
    found, foreign = read_cells(tmp_path, changed)
    assert foreign == ["early", "late", "middle"]
    assert set(found) == {"other"}
