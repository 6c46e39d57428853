"""A benchmark in a folder: run, how far it is, and its results written.

=================  ================================================================================
in the folder      what
=================  ================================================================================
config.toml        the configuration of the last run
cells/             a file a cell; configurations share those that they have in common
encoders/, keys/   what cells made, under their names; keys are of public secrets and prove nothing
jobs/              submitit's, where a cluster runs cells
results.*          Parquet, Markdown and HTML
=================  ================================================================================
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from sslguard.bench.cells import Cell, Outcome, Pool, path_of, read_cells, run_cells
from sslguard.bench.config import Config, files_of, read_config
from sslguard.bench.page import Run, render_html, render_markdown
from sslguard.bench.plan import Plan, make_plan
from sslguard.bench.rows import references, rows_of, write_parquet
from sslguard.bench.targets import results as targets
from sslguard.bench.work import Work, is_current, kinds_of, prepare
from sslguard.encoders.load import load_encoder
from sslguard.errors import SslguardError, UsageError
from sslguard.files import write_atomic
from sslguard.training import is_first_process

CONFIG, PARQUET = "config.toml", "results.parquet"


@dataclass(frozen=True)
class Progress:
    """Cells of one group.

    Attributes:
        done, refused, total: cells; those that were refused are done.
        seconds: CPU seconds of those that are done.
        left: CPU seconds that the others may take, by the mean of their like; None where nothing is known.
    """

    group: str
    done: int
    refused: int
    total: int
    seconds: float
    left: float | None


@dataclass(frozen=True)
class Forecast:
    """What a run would do.

    Attributes:
        groups: cells by group, those of the run alone.
        stored: encoders that would be kept.
        disk: bytes of those whose clean encoder can be loaded here; None where none can.
        unknown: encoders to load that are not here.
    """

    groups: list[Progress]
    stored: int
    disk: int | None
    unknown: tuple[str, ...]


def run_bench(
    config: Path,
    out: Path,
    *,
    workers: int = 1,
    only: Sequence[str] = (),
    accelerator: str = "cpu",
    devices: int = 1,
    pool: Pool | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Do the cells that `out` does not hold; a killed run goes on where it stopped.

    A folder that holds results alone, without the encoders and keys that cells made, is gone on with too: what is still
    needed of them is made again. Where another machine gives another mark, what was measured under the former is done
    again.

    Args:
        config: the TOML file.
        workers: cells at a time.
        only: glob patterns of cells' names; they bring what they need.
        accelerator: what training runs on.
        devices: processes that share each training, one device each; every one of them calls this function. Cells that
            train come first then, and the rest is the first process's alone.
        pool: what runs the cells; see `run_cells`.
        say: called with a line of progress.

    Raises:
        UsageError: the configuration cannot be, a pattern names nothing, or several devices meet several workers.
        OutputError: `out` cannot be written.
    """
    _, plan = checked(config)
    chosen = plan.chosen(tuple(only))
    if is_first_process():
        _keep_config(config, out)
    if devices > 1:
        if workers > 1 or pool is not None:
            raise UsageError("several devices share one training: leave workers at 1, and cluster out")
        together = Work(out, accelerator, devices)
        training = [cell for cell in chosen if cell.function in ("mark", "make")]
        outcome = run_cells(training, out, together, workers=1, prepare=prepare, say=say, kept=together.kept)
        if not is_first_process() or outcome.failed:
            return outcome
    work = Work(out, accelerator)
    run = partial(
        run_cells,
        out=out,
        work=work,
        workers=workers,
        prepare=prepare,
        say=say,
        pool=pool,
        kept=work.kept,
        current=work.current,
    )
    outcome = run(chosen)
    if not any(cell.group == "mark" and cell.name in outcome.done for cell in chosen):
        return outcome
    there = [cell for cell in chosen if path_of(out, cell.name).exists()]
    if not all(map(work.current, there)):
        say("a mark was made again and is another: what came of the former is done again")
        again = run(there)
        outcome = Outcome(
            [*dict.fromkeys([*outcome.done, *again.done])],
            {**outcome.failed, **again.failed},
            {**outcome.skipped, **again.skipped},
        )
    return outcome


def checked(config: Path) -> tuple[Config, Plan]:
    """Return the configuration in a file and its plan.

    Raises:
        UsageError: it cannot be.
    """
    found = read_config(config)
    targets(found, [], [])
    return found, make_plan(found)


def _keep_config(config: Path, out: Path) -> None:
    """Write the configuration into the folder of its results, and what it rests on beside it."""
    if config.resolve() != (out / CONFIG).resolve():
        first, *bases = files_of(config)
        for file, name in ((first, CONFIG), *((base, base.name) for base in bases)):
            write_atomic(out / name, file.read_bytes())


def forecast(config: Path, out: Path, *, only: Sequence[str] = ()) -> Forecast:
    """Return what `run_bench` would do, and what that costs by the cells that are done here or recorded.

    Raises:
        UsageError: the configuration cannot be, or a pattern names nothing.
    """
    found, plan = checked(config)
    chosen = plan.chosen(tuple(only))
    contents, _ = read_cells(out, plan.cells)
    spent: dict[tuple[str, ...], list[float]] = {}
    if found.recorded:
        with TemporaryDirectory() as folder:
            with tarfile.open(config.parent / found.recorded) as archive:
                archive.extractall(folder, filter="data")
            _, earlier, recorded = open_run(Path(folder))
            _add_costs(spent, earlier, recorded)
    _add_costs(spent, plan, contents)
    kept = [cell for cell in chosen if "encoders" in kinds_of(cell) and cell.name not in contents]
    sizes, unknown = _sizes(found, {plan.about[cell.name]["encoder"] for cell in kept})
    known = [sizes[name] for cell in kept if (name := plan.about[cell.name]["encoder"]) in sizes]
    return Forecast(_groups(plan, chosen, contents, spent), len(kept), sum(known) if known else None, unknown)


def _sizes(config: Config, names: Iterable[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Bytes of each clean encoder's weights, and those that cannot be loaded here."""
    sizes, unknown = {}, []
    for name in sorted(names):
        try:
            sizes[name] = 4 * load_encoder(config.encoders[name].load).n_parameters
        except SslguardError:
            unknown.append(config.encoders[name].load)
    return sizes, tuple(unknown)


def open_run(out: Path) -> tuple[Config, Plan, dict[str, dict[str, Any]]]:
    """Configuration, plan, and the results that are there and come from the marks that are, of a benchmark's folder.

    Raises:
        UsageError: `out` holds no benchmark.
    """
    if not (out / CONFIG).is_file():
        raise UsageError(f"{out} holds no benchmark: start one with sslguard bench run CONFIG {out}")
    config = read_config(out / CONFIG)
    plan = make_plan(config)
    found, _ = read_cells(out, plan.cells)
    contents: dict[str, dict[str, Any]] = {}
    for cell in plan.cells:
        with suppress(KeyError):  # the mark is not there
            if is_current(cell, found.__getitem__):
                contents[cell.name] = found[cell.name]
    return config, plan, contents


def findings(out: Path) -> Run:
    """All that is known so far."""
    config, plan, contents = open_run(out)
    return Run(
        config,
        rows_of(config, plan, contents),
        len(contents),
        len(plan.cells),
        references=references(plan, contents),
        undone=[{**plan.about[c.name], "group": c.group} for c in plan.cells if c.name not in contents],
    )


def progress(out: Path) -> list[Progress]:
    """How far each group is, in the plan's order."""
    _, plan, contents = open_run(out)
    spent: dict[tuple[str, ...], list[float]] = {}
    _add_costs(spent, plan, contents)
    return _groups(plan, plan.cells, contents, spent)


def _add_costs(spent: dict[tuple[str, ...], list[float]], plan: Plan, contents: Mapping[str, Any]) -> None:
    for cell in plan.cells:
        if cell.name in contents:
            for like in _likes(plan, cell):
                spent.setdefault(like, []).append(float(contents[cell.name]["cpu_seconds"]))


def _groups(
    plan: Plan, cells: Sequence[Cell], contents: Mapping[str, Any], spent: Mapping[tuple[str, ...], Sequence[float]]
) -> list[Progress]:
    return [
        _progress(plan, group, [cell for cell in cells if cell.group == group], contents, spent)
        for group in dict.fromkeys(cell.group for cell in cells)
    ]


def _progress(
    plan: Plan,
    group: str,
    cells: Sequence[Cell],
    contents: Mapping[str, Any],
    spent: Mapping[tuple[str, ...], Sequence[float]],
) -> Progress:
    done = [contents[cell.name] for cell in cells if cell.name in contents]
    left: list[float | None] = [
        next((mean(spent[like]) for like in _likes(plan, cell) if like in spent), None)
        for cell in cells
        if cell.name not in contents
    ]
    known = [seconds for seconds in left if seconds is not None]
    return Progress(
        group=group,
        done=len(done),
        refused=sum("refused" in content["result"] for content in done),
        total=len(cells),
        seconds=sum(content["cpu_seconds"] for content in done),
        left=sum(known) * len(left) / len(known) if known else None if left else 0.0,
    )


def _likes(plan: Plan, cell: Cell) -> Iterable[tuple[str, ...]]:
    """What a cell's cost resembles, closest first."""
    about = plan.about[cell.name]
    names = {name: str(about.get(name, "")) for name in ("encoder", "scheme", "attack")}
    if cell.group in ("make", "attack", "twin"):
        yield cell.group, names["encoder"], names["attack"]
        yield cell.group, names["attack"]
    else:
        yield cell.group, names["encoder"], names["scheme"]
        yield cell.group, names["scheme"]
    yield (cell.group,)


def write_results(out: Path, folder: Path | None = None, *, name: str = "results") -> dict[str, Path]:
    """Write what is known so far: `NAME.md` and `NAME.html` into `folder`, `out` unless given; the Parquet into `out`.

    Returns:
        "rows", "markdown" and "page" → where it stands.

    Raises:
        UsageError: `out` holds no benchmark.
        MissingExtraError: pyarrow is not installed.
        OutputError: a file cannot be written.
    """
    run, folder = findings(out), folder or out
    written = {"rows": out / PARQUET, "markdown": folder / f"{name}.md", "page": folder / f"{name}.html"}
    write_parquet(run.rows, written["rows"])
    write_atomic(written["markdown"], render_markdown(run, "sslguard bench plot").encode())
    write_atomic(written["page"], render_html(run).encode())
    return written
