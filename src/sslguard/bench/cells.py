"""Cells: the units of work of a benchmark. Several processes run them, each cell once and after those it depends on.

A cell is a named function of JSON arguments. Its result is one file, `OUT/cells/NAME.json`, written when the cell is
complete. A run that was killed resumes where it stopped. A failed cell blocks only the cells that depend on it.
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
"""Computes a cell. Returns its result, or None if another process of the same run has the result."""
Prepare = Callable[[], None]
Pool = Callable[[int, Prepare], Executor]


@dataclass(frozen=True)
class Cell:
    """One unit of work.

    Attributes:
        name: Unique name; also the name of its file.
        group: Kind of cell.
        function: Name of the function that computes it.
        args: Arguments of that function, JSON values.
        needs: Names of the cells that must be done before.
    """

    name: str
    group: str
    function: str
    args: dict[str, Any]
    needs: tuple[str, ...] = ()


@dataclass
class Outcome:
    """Result of a run.

    Attributes:
        done: Names of the cells that this run computed.
        failed: Traceback of each cell that failed, by name.
        skipped: Reason for each cell that could not start, by name.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def path_of(out: Path, name: str) -> Path:
    """Return the path of a cell's result file."""
    return out / "cells" / f"{name}.json"


def read_cells(out: Path, plan: Sequence[Cell]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Read the results of all cells that are done.

    Args:
        out: Folder of the benchmark.
        plan: Cells to look for.

    Returns:
        The content of each result file, by cell name; and the names of cells whose results are left out, because they
        were computed with other arguments or depend on such a cell.

    Raises:
        UsageError: A result file is damaged or cannot be read.
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
    raise UsageError(f"{path} is damaged: delete it, and the next run computes it again")


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
    """Run every cell whose result `out` does not hold, in the given order as far as dependencies allow.

    Args:
        cells: Cells to run, including all that they depend on.
        out: Folder of the benchmark.
        work: Computes one cell. It must be picklable if there are several workers.
        workers: Number of processes; 1 runs the cells in this process.
        prepare: Called once in every process.
        say: Called with each line of progress.
        pool: Returns the executor that runs several cells at once, from `workers` and `prepare`. Default: processes on
            this machine.
        kept: Returns whether the files that a cell wrote beside its result still exist. If they do not, the cell runs
            again when an unfinished cell depends on it: results may be copied without the weights they come from.
        current: Returns whether a result is still valid. A cell whose result is not runs again.

    Returns:
        The cells that were done, failed and skipped.
    """
    todo, started = _undone(cells, out, kept, current), time.monotonic()
    run = _Run(out, work, workers, prepare, pool, todo)
    outcome, total, before = run.outcome, len(cells), len(cells) - len(todo)
    say(f"{before} of {total} cells are already done")
    with closing(run.finished()) as finished:
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
    """Return the cells to run, by name, in their order."""
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
    """Return an executor of new processes on this machine.

    Each process calls `prepare` once. All of them end when this process ends, even if it is killed.

    Args:
        workers: Number of processes.
        prepare: Called at the start of each process.
    """
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepared, initargs=(prepare,))
    # All begin now: one that began while another dies would be forgotten, and the pool would wait for it for ever.
    for _ in range(workers):
        pool.submit(int)
    return pool


def end_with_parent() -> None:
    """Let this process end at once when the one that started it does, even if that one is killed."""
    if (parent := parent_process()) is not None:
        Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _prepared(prepare: Prepare) -> None:
    end_with_parent()
    prepare()


def _end_with(sentinel: int) -> None:
    """Wait for another process to end, then end this one at once. An unfinished cell leaves no result."""
    connection.wait([sentinel])
    os._exit(1)


@dataclass
class _Run:
    """Cells on their way: those that wait for others, by name, and what came of the rest."""

    out: Path
    work: Work
    workers: int
    prepare: Prepare
    pool: Pool | None
    waiting: dict[str, Cell]
    outcome: Outcome = field(default_factory=Outcome)

    def finished(self) -> Generator[tuple[str, str | None]]:
        """Yield each cell's name and error (None: success) as it ends. Note the cells that cannot start."""
        if self.workers == 1 and self.pool is None:
            self.prepare()
            while cell := self.next(set()):
                yield cell.name, _do(cell, self.out, self.work)
            return
        before = set(active_children())
        while self.waiting:
            # A process that dies breaks the pool. Its cells count as failed; the others continue in a new pool.
            with (self.pool or processes)(min(self.workers, len(self.waiting)), self.prepare) as executor:
                try:
                    yield from self.through(executor)
                except BaseException:
                    executor.shutdown(wait=False, cancel_futures=True)
                    for process in set(active_children()) - before:  # else this process waits minutes for cells to end
                        process.kill()
                        process.join()
                    raise

    def through(self, executor: Executor) -> Iterator[tuple[str, str | None]]:
        """Do as `finished` while this executor holds."""
        running: dict[Future[str | None], str] = {}
        broken = False
        while True:
            while not broken and len(running) < self.workers and (cell := self.next(set(running.values()))):
                try:
                    running[executor.submit(_do, cell, self.out, self.work)] = cell.name
                except (BrokenProcessPool, OSError):  # OSError: the pool is being taken down
                    broken, self.waiting[cell.name] = True, cell
            if not running:
                return
            for job in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(job)
                try:
                    yield name, job.result()
                except BrokenProcessPool:
                    broken = True
                    yield name, "The process that ran this cell died."

    def next(self, running: set[str]) -> Cell | None:
        """Take the first cell that can start from those that wait, and return it. Note those that can never start."""
        for name, cell in list(self.waiting.items()):
            lost = [need for need in cell.needs if need in self.outcome.failed or need in self.outcome.skipped]
            if lost:
                self.outcome.skipped[name] = f"needs {lost[0]}"
                del self.waiting[name]
            elif not any(need in self.waiting or need in running for need in cell.needs):
                return self.waiting.pop(name)
        return None


def _do(cell: Cell, out: Path, work: Work) -> str | None:
    """Compute one cell and write its result. Return the traceback if it fails, None otherwise."""
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
    except Exception:  # any error of a cell is reported at the end of the run
        return traceback.format_exc()
    return None
