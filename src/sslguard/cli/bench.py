"""Commands of the benchmark: `bench run`, `bench status`, `bench table`, `bench plot`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from sslguard.cli.options import PRINTED, Count, Output, Seed
from sslguard.cli.output import Result, say
from sslguard.errors import MissingExtraError
from sslguard.settings import load_toml

HELP = "Every scheme against every attack, from one configuration; see recipes/bench."
CLUSTER = Group("Cluster", sort_key=2)


def run(
    config: Path,
    out: Path,
    /,
    *,
    workers: Count = 1,
    only: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    accelerator: Literal["cpu", "cuda", "mps", "auto"] = "cpu",
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
        accelerator: What training runs on.
        cluster: Where cells run; processes of this machine unless given.
        partition: Of slurm.
        minutes: Limit of a job.
        gpus: Of a job.
    """
    load_toml(config)
    if cluster is not None and find_spec("submitit") is None:
        raise MissingExtraError("running on a cluster", "bench")

    from sslguard.bench.cluster import cluster_pool
    from sslguard.bench.run import run_bench

    pool = None
    if cluster is not None:
        pool = cluster_pool(cluster, out / "jobs", partition=partition, minutes=minutes, gpus=gpus)
    outcome = run_bench(
        config,
        out,
        workers=workers,
        only=only or (),
        accelerator=accelerator,
        pool=pool,
        say=(lambda _: None) if output.quiet else say,
    )
    for name, error in outcome.failed.items():
        say(f"{name} failed: {error.strip().splitlines()[-1]}")
    fields = {"done": outcome.done, "failed": outcome.failed, "skipped": outcome.skipped}
    rows = [(name, f"{len(found)} cells") for name, found in fields.items()]
    return Result(fields, rows, exit_code=3 if outcome.failed else 0)


def status(out: Path, /, *, output: Output = PRINTED) -> Result:  # noqa: ARG001 - `main` reads it
    """Show how far a benchmark is, and the CPU time that is left by the mean of what is done.

    Args:
        out: Folder of the results.
    """
    from dataclasses import asdict

    from sslguard.bench.run import progress

    groups = progress(out)
    rows = [(one.group, f"{one.done} of {one.total} cells{_refused(one.refused)}, {_time(one.left)}") for one in groups]
    known = [one.left for one in groups if one.left is not None]
    total = _time(sum(known)) if len(known) == len(groups) else f"more than {_time(sum(known))}"
    rows.append(("all", f"{sum(one.done for one in groups)} of {sum(one.total for one in groups)} cells, {total}"))
    return Result({"groups": [asdict(one) for one in groups]}, rows)


def table(out: Path, /, *, output: Output = PRINTED) -> Result:  # noqa: ARG001 - `main` reads it
    """Show what is known so far: what hurts each scheme most, innocents, costs, every attack.

    Args:
        out: Folder of the results.
    """
    from dataclasses import asdict

    from rich.console import Group as Stack

    from sslguard.bench.run import findings
    from sslguard.bench.tables import all_tables
    from sslguard.report.table import terminal

    found = findings(out)
    tables = all_tables(found.config, found.rows)
    rows = [("cells", f"{found.done} of {found.total}")]
    return Result({"tables": [asdict(one) for one in tables]}, rows, table=Stack(*map(terminal, tables)))


def plot(out: Path, /, *, into: Path | None = None, name: str = "results", output: Output = PRINTED) -> Result:  # noqa: ARG001
    """Write what is known so far: rows as Parquet, tables as Markdown, and one HTML page with its pictures.

    Args:
        out: Folder of the results; the Parquet file is written there.
        into: Folder of the two pages; by default OUT.
        name: Of the two pages, without an ending.
    """
    from sslguard.bench.run import write_results

    written = {what: str(path) for what, path in write_results(out, into, name=name).items()}
    return Result(written, list(written.items()))


COMMANDS = (run, status, table, plot)


def _refused(count: int) -> str:
    return f" ({count} refused)" if count else ""


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time left"
    return f"{seconds / 3600:.1f} CPU hours left" if seconds >= 3600 else f"{seconds / 60:.0f} CPU minutes left"
