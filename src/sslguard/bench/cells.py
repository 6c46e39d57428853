"""Cells: pieces of a long benchmark, each done once, in an order that their needs allow, by several processes.

A cell is a named function of JSON arguments. Its result is one file, `OUT/cells/NAME.json`, written when it is
complete: a run that is killed goes on where it stopped, and a cell that fails stops none but those that need it.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing import active_children, connection, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from sslguard.errors import UsageError
from sslguard.files import write_atomic

Work = Callable[["Cell"], dict[str, Any] | None]
"""Does a cell: its result, or None where another process of the same run has it."""
Prepare = Callable[[], None]
Pool = Callable[[int, Prepare], Executor]


@dataclass(frozen=True)
class Cell:
    """One piece of work.

    Attributes:
        name: unique; also the name of its file.
        group: what kind of cell it is.
        function: which function does it.
        args: of that function; JSON values.
        needs: names of cells that must be done before.
    """

    name: str
    group: str
    function: str
    args: dict[str, Any]
    needs: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What a run did: cells that were done in it, and why others were not."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def path_of(out: Path, name: str) -> Path:
    """Where the result of a cell lies."""
    return out / "cells" / f"{name}.json"


def read_cells(out: Path, plan: Sequence[Cell]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Results by name of every cell that is there, and the names of those that were made by other arguments, or from
    what was.

    Raises:
        UsageError: a result is damaged.
    """
    found, foreign = {}, set()
    for cell in plan:
        path = path_of(out, cell.name)
        if path.exists():
            found[cell.name] = _read(path)
            if found[cell.name]["args"] != json.loads(json.dumps(cell.args)):
                foreign.add(cell.name)
    grown = True
    while grown:
        more = {cell.name for cell in plan if cell.name in found and not foreign.isdisjoint(cell.needs)} - foreign
        foreign, grown = foreign | more, bool(more)
    return {name: content for name, content in found.items() if name not in foreign}, sorted(foreign)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict) and all(isinstance(found.get(name), dict) for name in ("args", "result")):
            return found
    except (ValueError, RecursionError):
        pass
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    raise UsageError(f"{path} is damaged: delete it, and the next run does it again")


def run_cells(
    cells: Sequence[Cell],
    out: Path,
    work: Work,
    *,
    workers: int,
    prepare: Prepare,
    say: Callable[[str], None] = print,
    pool: Pool | None = None,
    kept: Callable[[Cell], bool] = lambda _: True,
    current: Callable[[Cell], bool] = lambda _: True,
) -> Outcome:
    """Do every cell that `out` does not hold, the first ones first.

    Args:
        cells: with everything that they need.
        work: does one cell; must be importable where there are several workers.
        workers: processes; 1 works in this one.
        prepare: called once in every process.
        say: called with a line of progress.
        pool: what runs several cells at once, made of `workers` and `prepare`; processes of this machine unless given.
        kept: whether what a cell left beside its result is still there. A cell that is done and lost it is done again
            where one that is not done needs it: results may travel without the weights that they come from.
        current: whether a result still is what the cell would give. One that is not is done again.
    """
    outcome, started = Outcome(), time.monotonic()
    todo = _undone(cells, out, kept, current)
    total, before = len(cells), len(cells) - len(todo)
    say(f"{before} of {total} cells are there already")
    with closing(_finished(todo, out, work, workers, prepare, outcome, pool)) as finished:
        for name, error in finished:
            if error is None:
                outcome.done.append(name)
            else:
                outcome.failed[name] = error
            minutes = (time.monotonic() - started) / 60
            count = before + len(outcome.done) + len(outcome.failed)
            say(f"[{count}/{total}] {minutes:6.1f} min  {name}{'' if error is None else '  FAILED'}")
    return outcome


def _undone(
    cells: Sequence[Cell], out: Path, kept: Callable[[Cell], bool], current: Callable[[Cell], bool]
) -> dict[str, Cell]:
    """Cells to do, in their order."""
    by_name = {cell.name: cell for cell in cells}
    found = {cell.name for cell in cells if not path_of(out, cell.name).exists()}
    found |= {cell.name for cell in cells if cell.name not in found and not current(cell)}
    todo = list(found)
    while todo:
        lost = {need for need in by_name[todo.pop()].needs if need not in found and not kept(by_name[need])}
        found |= lost
        todo += lost
    return {cell.name: cell for cell in cells if cell.name in found}


def processes(workers: int, prepare: Prepare) -> Executor:
    """Fresh processes of this machine, each prepared once. They end with this one, be it killed outright."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepared, initargs=(prepare,))


def _prepared(prepare: Prepare) -> None:
    if (parent := parent_process()) is not None:
        Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    prepare()


def _end_with(sentinel: int) -> None:
    """Wait for another process, and end this one at once: a cell that is half done leaves nothing."""
    connection.wait([sentinel])
    os._exit(1)


def _finished(
    todo: dict[str, Cell],
    out: Path,
    work: Work,
    workers: int,
    prepare: Prepare,
    outcome: Outcome,
    pool: Pool | None,
) -> Generator[tuple[str, str | None]]:
    """Name and error, or None, of each cell as it ends; fills `outcome.skipped` with those that cannot begin."""
    waiting = dict(todo)
    if workers == 1 and pool is None:
        prepare()
        while cell := _next(waiting, set(), outcome):
            yield cell.name, _do(cell, out, work)
        return
    before = set(active_children())
    while waiting:
        # A process that dies takes the pool with it: what it held has failed, the rest goes on in a new one.
        with (pool or processes)(workers, prepare) as executor:
            try:
                yield from _through(executor, waiting, out, work, workers, outcome)
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                for process in set(active_children()) - before:  # or this one would wait minutes for a cell to end
                    process.kill()
                    process.join()
                raise


def _through(
    pool: Executor, waiting: dict[str, Cell], out: Path, work: Work, workers: int, outcome: Outcome
) -> Iterator[tuple[str, str | None]]:
    running: dict[Future[str | None], str] = {}
    broken = False
    while True:
        while not broken and len(running) < workers and (cell := _next(waiting, set(running.values()), outcome)):
            try:
                running[pool.submit(_do, cell, out, work)] = cell.name
            except BrokenProcessPool:
                broken, waiting[cell.name] = True, cell
        if not running:
            return
        for job in wait(running, return_when=FIRST_COMPLETED).done:
            name = running.pop(job)
            try:
                yield name, job.result()
            except BrokenProcessPool:
                broken = True
                yield name, "its process died"


def _next(waiting: dict[str, Cell], running: set[str], outcome: Outcome) -> Cell | None:
    """Take the first cell that can begin out of `waiting`; drop those that never can."""
    for name, cell in list(waiting.items()):
        lost = [need for need in cell.needs if need in outcome.failed or need in outcome.skipped]
        if lost:
            outcome.skipped[name] = f"needs {lost[0]}"
            del waiting[name]
        elif not any(need in waiting or need in running for need in cell.needs):
            return waiting.pop(name)
    return None


def _do(cell: Cell, out: Path, work: Work) -> str | None:
    """Do one cell and write its result; the error's text where it fails."""
    begun, cpu = time.time(), time.process_time()
    try:
        result = work(cell)
        if result is None:
            return None
        content = {
            "name": cell.name,
            "group": cell.group,
            "args": cell.args,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "seconds": round(time.time() - begun, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
            "result": result,
        }
        write_atomic(path_of(out, cell.name), json.dumps(content, indent=1, allow_nan=False).encode())
    except Exception:  # whatever a cell raises is its own failure, told at the end
        return traceback.format_exc()
    return None
