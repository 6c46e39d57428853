"""Run a benchmark in a folder, report its progress, and write its results.

=================  ================================================================================
in the folder      content
=================  ================================================================================
config.toml        the configuration of the last run
cells/             one file for each cell; configurations share the cells that they have in common
encoders/, keys/   encoders and keys made by cells; the secrets are public, so the keys prove nothing
jobs/              files of submitit, if a cluster runs the cells
results.*          the results as Parquet, Markdown and HTML
=================  ================================================================================
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Sequence
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
from sslguard.bench.rows import Contents, references, rows_of, write_parquet
from sslguard.bench.targets import results as targets
from sslguard.bench.work import Work, is_current, kinds_of, prepare
from sslguard.data.names import SPLITS, check_data
from sslguard.encoders.load import load_encoder
from sslguard.encoders.names import check_encoder
from sslguard.errors import SslguardError, UsageError
from sslguard.files import write_atomic
from sslguard.training.processes import is_first_process

CONFIG, PARQUET = "config.toml", "results.parquet"


@dataclass(frozen=True)
class Progress:
    """Progress of one group of cells.

    Attributes:
        group: Name of the group.
        done, refused, total: Numbers of cells; refused cells count as done.
        seconds: CPU seconds of the cells that are done.
        left: Estimated CPU seconds of the others, from the mean of similar cells; None if no similar cell is done.
    """

    group: str
    done: int
    refused: int
    total: int
    seconds: float
    left: float | None


@dataclass(frozen=True)
class Forecast:
    """Estimate of what a run would do.

    Attributes:
        groups: Progress of each group, over the chosen cells only.
        stored: Number of encoders that the run would write.
        disk: Bytes of those encoders whose clean encoder can be loaded here; None if none can.
        unknown: Clean encoders that cannot be loaded here.
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
    """Run the cells whose results `out` does not hold. A run that was killed resumes where it stopped.

    A folder may hold results without the encoders and keys that cells made. Those that are still needed are then made
    again. If retraining gives a different watermark, for example on another machine, the cells that depend on it run
    again.

    Args:
        config: Path of the TOML file.
        out: Folder of the benchmark.
        workers: Number of cells that run at the same time.
        only: Glob patterns of cell names; the cells that these depend on run too. Default: all cells.
        accelerator: Device type that training runs on.
        devices: Number of processes that share each training, one device each. Each of them calls this function. Cells
            that train then run first, and the first process runs the others alone.
        pool: Returns the executor of the cells; see `run_cells`.
        say: Called with each line of progress.

    Returns:
        The cells that were done, failed and skipped.

    Raises:
        UsageError: The configuration is invalid, a pattern matches no cell, or several devices are combined with
            several workers or with a cluster.
        OutputError: `out` cannot be written.
    """
    _, plan = checked(config)
    chosen = plan.chosen(tuple(only))
    if is_first_process():
        _keep_config(config, out)
    if devices > 1:
        if workers > 1 or pool is not None:
            raise UsageError("several devices share one training: leave workers at 1, and do not give a cluster")
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
        say("The watermark was retrained and differs; dependent cells run again.")
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
        UsageError: The configuration is invalid.
    """
    found = read_config(config)
    targets(found, [], [])
    # Files may be absent on the machine that plans, but names of what is known must be right.
    for encoder in found.encoders.values():
        if encoder.load.startswith("shipped:"):
            check_encoder(encoder.load)
    for spec in (spec for roles in found.beds.values() for spec in roles.values()):
        for part in spec.split(" + "):
            if part.partition(":")[0].removeprefix("cluttered-") in SPLITS:
                check_data(part)
    return found, make_plan(found)


def _keep_config(config: Path, out: Path) -> None:
    """Write the configuration and its bases into the folder of its results."""
    if config.resolve() != (out / CONFIG).resolve():
        first, *bases = files_of(config)
        for file, name in ((first, CONFIG), *((base, base.name) for base in bases)):
            write_atomic(out / name, file.read_bytes())


def forecast(config: Path, out: Path, *, only: Sequence[str] = ()) -> Forecast:
    """Estimate what `run_bench` would do and cost, from cells that are done here or recorded.

    Args:
        config: Path of the TOML file.
        out: Folder of the benchmark.
        only: Glob patterns of cell names; default: all cells.

    Raises:
        UsageError: The configuration is invalid, or a pattern matches no cell.
    """
    found, plan = checked(config)
    chosen = plan.chosen(tuple(only))
    contents, _ = read_cells(out, plan.cells)
    runs = [(plan, contents)]
    if found.recorded:
        with TemporaryDirectory() as folder:
            with tarfile.open(config.parent / found.recorded) as archive:
                archive.extractall(folder, filter="data")
            runs.append(open_run(Path(folder))[1:])
    kept = [cell for cell in chosen if "encoders" in kinds_of(cell) and cell.name not in contents]
    sizes, unknown = _sizes(found, {plan.about[cell.name]["encoder"] for cell in kept})
    known = [sizes[name] for cell in kept if (name := plan.about[cell.name]["encoder"]) in sizes]
    return Forecast(_progress(plan, chosen, contents, runs), len(kept), sum(known) if known else None, unknown)


def _sizes(config: Config, names: Iterable[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the bytes of each clean encoder's weights, and the encoders that cannot be loaded here."""
    sizes, unknown = {}, []
    for name in sorted(names):
        try:
            sizes[name] = 4 * load_encoder(config.encoders[name].load).n_parameters
        except SslguardError:
            unknown.append(config.encoders[name].load)
    return sizes, tuple(unknown)


def open_run(out: Path) -> tuple[Config, Plan, dict[str, dict[str, Any]]]:
    """Return the configuration, the plan and the valid results, by cell name, of a benchmark's folder.

    A result is valid if it comes from the watermark that the folder holds now.

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
        with suppress(KeyError):  # the cell or its mark is not done
            if is_current(cell, found.__getitem__):
                contents[cell.name] = found[cell.name]
    return config, plan, contents


def findings(out: Path) -> Run:
    """Return all results so far.

    Raises:
        UsageError: `out` holds no benchmark.
    """
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
    """Return the progress of each group of cells, in the order of the plan.

    Raises:
        UsageError: `out` holds no benchmark.
    """
    _, plan, contents = open_run(out)
    return _progress(plan, plan.cells, contents, [(plan, contents)])


def _progress(
    plan: Plan, cells: Sequence[Cell], contents: Contents, runs: Iterable[tuple[Plan, Contents]]
) -> list[Progress]:
    """Return the progress of each group of these cells.

    Args:
        plan: Plan of the cells.
        cells: Cells to count.
        contents: Results that are there, by cell name.
        runs: Plans and results that costs are estimated from.
    """
    spent: dict[tuple[str, ...], list[float]] = {}
    for done_plan, results in runs:
        for cell in done_plan.cells:
            if cell.name in results:
                for like in _likes(done_plan, cell):
                    spent.setdefault(like, []).append(float(results[cell.name]["cpu_seconds"]))
    found = []
    for group in dict.fromkeys(cell.group for cell in cells):
        members = [cell for cell in cells if cell.group == group]
        done = [contents[cell.name] for cell in members if cell.name in contents]
        open_ = [cell for cell in members if cell.name not in contents]
        likes = [next((spent[like] for like in _likes(plan, cell) if like in spent), None) for cell in open_]
        known = [mean(costs) for costs in likes if costs is not None]
        left = sum(known) * len(open_) / len(known) if known else None if open_ else 0.0
        refused = sum("refused" in content["result"] for content in done)
        seconds = sum(content["cpu_seconds"] for content in done)
        found.append(Progress(group, len(done), refused, len(members), seconds, left))
    return found


def _likes(plan: Plan, cell: Cell) -> Iterable[tuple[str, ...]]:
    """Yield the classes of cells whose cost is similar to that of this cell, the most similar first."""
    about = {"encoder": "", "scheme": "", "attack": "", **plan.about[cell.name]}
    which = about["attack" if cell.group in ("make", "attack", "twin") else "scheme"]
    yield cell.group, about["encoder"], which
    yield cell.group, which
    yield (cell.group,)


def write_results(out: Path, folder: Path | None = None, *, name: str = "results") -> dict[str, Path]:
    """Write all results so far as Markdown, HTML and Parquet.

    Args:
        out: Folder of the benchmark; the Parquet file is written here.
        folder: Folder for `NAME.md` and `NAME.html`; default: `out`.
        name: Name of these two files, without suffix.

    Returns:
        The path of each file, under "rows", "markdown" and "page".

    Raises:
        UsageError: `out` holds no benchmark.
        MissingExtraError: pyarrow is not installed.
        OutputError: A file cannot be written.
    """
    run, folder = findings(out), folder or out
    written = {"rows": out / PARQUET, "markdown": folder / f"{name}.md", "page": folder / f"{name}.html"}
    write_parquet(run.rows, written["rows"])
    write_atomic(written["markdown"], render_markdown(run, "sslguard bench plot").encode())
    write_atomic(written["page"], render_html(run).encode())
    return written
