"""Commands of the benchmark: `bench list`, `validate`, `run`, `status`, `table`, `plot`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from sslguard.cli.checks import check
from sslguard.cli.options import PRINTED, Count, Output, Seed
from sslguard.cli.output import Result, say
from sslguard.errors import MissingExtraError, UsageError
from sslguard.settings import load_toml

if TYPE_CHECKING:
    from sslguard.bench.run import Progress

HELP = "Every scheme against every attack, from one configuration; `bench list` names those of this repository."
CLUSTER = Group("Cluster", sort_key=2)


def list_(folder: Path = Path("benchmarks"), /, *, output: Output = PRINTED) -> Result:  # noqa: ARG001 - `main` reads it
    """List the configurations of a folder: file, title, number of cells.

    Args:
        folder: Folder of TOML files, such as benchmarks or recipes/paper of the repository.
        output: How results are printed.
    """
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise UsageError(f"{folder} holds no configuration (*.toml): name the folder of some")

    from sslguard.bench.run import checked

    found = {str(path): checked(path) for path in paths}
    rows = [(path, f"{config.title} ({len(plan.cells):,} cells)") for path, (config, plan) in found.items()]
    fields = {path: {"title": config.title, "cells": len(plan.cells)} for path, (config, plan) in found.items()}
    return Result({"configurations": fields}, rows)


def validate(config: Path, /, *, output: Output = PRINTED) -> Result:  # noqa: ARG001
    """Check a configuration: read it, plan its cells, and look whether encoders and data are there.

    Nothing is opened.

    Args:
        config: TOML file.
        output: How results are printed.
    """
    load_toml(config)

    from sslguard.bench.run import checked

    found, plan = checked(config)
    encoders = found.encoders.values()
    check(
        encoders=[encoder.load for encoder in encoders],
        data=[spec for roles in found.beds.values() for spec in roles.values()],
        controls=[spec for encoder in encoders for spec in encoder.null],
    )
    groups = Counter(cell.group for cell in plan.cells)
    rows = [("title", found.title), *((group, f"{count:,} cells") for group, count in groups.items())]
    return Result({"title": found.title, "cells": dict(groups), "digest": found.digest()}, rows)


def run(
    config: Path,
    out: Path,
    /,
    *,
    workers: Count = 1,
    only: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    dry_run: bool = False,
    accelerator: Literal["cpu", "cuda", "mps", "auto"] = "cpu",
    devices: Count = 1,
    cluster: Annotated[Literal["slurm", "local", "debug"] | None, Parameter(group=CLUSTER)] = None,
    partition: Annotated[str | None, Parameter(group=CLUSTER)] = None,
    minutes: Annotated[Count, Parameter(group=CLUSTER)] = 240,
    gpus: Annotated[Seed, Parameter(group=CLUSTER)] = 0,
    output: Output = PRINTED,
) -> Result:
    """Do what a configuration asks for and the folder does not hold.

    A killed run goes on where it stopped. A cell that fails stops none but those that need it, and is tried again by
    the next run.

    Args:
        config: TOML file.
        out: Folder of the results.
        workers: Cells at a time, one thread each.
        only: Globs of cells' names, such as '*-simclr-*'; they bring what they need.
        dry_run: Run nothing. Print the cells that a run would do, the CPU time that they take by what is recorded, and
            the disk space that their encoders take.
        accelerator: What training runs on.
        devices: Processes that share each training, one device each.
        cluster: Where cells run; processes of this machine unless given.
        partition: Of slurm.
        minutes: Limit of a job.
        gpus: Of a job.
        output: How results are printed.
    """
    load_toml(config)
    if cluster is not None and find_spec("submitit") is None:
        raise MissingExtraError("running on a cluster", "bench")

    from sslguard.bench.cluster import cluster_pool
    from sslguard.bench.run import run_bench

    if dry_run:
        return _forecast(config, out, only or ())
    pool = None
    if cluster is not None:
        pool = cluster_pool(cluster, out / "jobs", partition=partition, minutes=minutes, gpus=gpus)
    outcome = run_bench(
        config,
        out,
        workers=workers,
        only=only or (),
        accelerator=accelerator,
        devices=devices,
        pool=pool,
        say=(lambda _: None) if output.quiet else say,
    )
    for name, error in outcome.failed.items():
        say(f"{name} failed: {error.strip().splitlines()[-1]}")
    fields = {"done": outcome.done, "failed": outcome.failed, "skipped": outcome.skipped}
    rows = [(name, f"{len(found)} cells") for name, found in fields.items()]
    return Result(fields, rows, exit_code=3 if outcome.failed else 0)


def _forecast(config: Path, out: Path, only: Sequence[str]) -> Result:
    from dataclasses import asdict

    from sslguard.bench.run import forecast

    found = forecast(config, out, only=only)
    disk = "unknown" if found.disk is None else f"{found.disk / 1e9:.2f} GB"
    unknown = f", and {', '.join(found.unknown)} cannot be loaded here" if found.unknown else ""
    rows = [*_progress(found.groups), ("disk", f"{disk} for {found.stored} encoders{unknown}")]
    return Result(asdict(found), rows)


def status(out: Path, /, *, output: Output = PRINTED) -> Result:  # noqa: ARG001 - `main` reads it
    """Show how far a benchmark is, and the CPU time that is left by the mean of what is done.

    Args:
        out: Folder of the results.
        output: How results are printed.
    """
    from dataclasses import asdict

    from sslguard.bench.run import progress

    groups = progress(out)
    return Result({"groups": [asdict(one) for one in groups]}, _progress(groups))


def _progress(groups: Sequence[Progress]) -> list[tuple[str, str]]:
    rows = [(one.group, f"{one.done} of {one.total} cells{_refused(one.refused)}, {_time(one.left)}") for one in groups]
    known = [one.left for one in groups if one.left is not None]
    total = _time(sum(known) if known else None)
    if 0 < len(known) < len(groups):
        total = f"more than {total}"
    rows.append(("all", f"{sum(one.done for one in groups)} of {sum(one.total for one in groups)} cells, {total}"))
    return rows


def table(out: Path, /, *, output: Output = PRINTED) -> Result:  # noqa: ARG001 - `main` reads it
    """Show what is known so far: what hurts each scheme most, innocents, costs, every attack.

    Args:
        out: Folder of the results.
        output: How results are printed.
    """
    from dataclasses import asdict

    from rich.console import Group as Stack

    from sslguard.bench.run import findings
    from sslguard.report.table import terminal

    found = findings(out)
    tables = found.tables
    rows = [("cells", f"{found.done} of {found.total}")]
    return Result({"tables": [asdict(one) for one in tables]}, rows, table=Stack(*map(terminal, tables)))


def plot(out: Path, /, *, into: Path | None = None, name: str = "results", output: Output = PRINTED) -> Result:  # noqa: ARG001
    """Write what is known so far: rows as Parquet, tables as Markdown, and one HTML page with its pictures.

    Args:
        out: Folder of the results; the Parquet file is written there.
        into: Folder of the two pages; by default OUT.
        name: Of the two pages, without an ending.
        output: How results are printed.
    """
    from sslguard.bench.run import write_results

    written = {what: str(path) for what, path in write_results(out, into, name=name).items()}
    return Result(written, list(written.items()))


COMMANDS = (list_, validate, run, status, table, plot)


def _refused(count: int) -> str:
    return f" ({count} refused)" if count else ""


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time left"
    return f"{seconds / 3600:.1f} CPU hours left" if seconds >= 3600 else f"{seconds / 60:.0f} CPU minutes left"
