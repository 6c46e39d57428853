"""The report as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslguard.demo.page import format_bits, format_probability
from sslguard.demo.result import AuditReport, Bar, ExactReport, ReportData, printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_STYLES = {"derived": "bold", "not shown": "", "refused": "italic"}


def render_tables(data: ReportData) -> RenderableType:
    """Verdicts with their null, the false claims by kind, accuracies, and what to run next, for rich to print."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_verdicts(data), Text(_null_sentence(data)), Text()]
    parts += [_claims(data), Text()]
    if data.exact is not None:
        parts += [_exact(data.exact), Text(_exact_sentence(data.exact)), Text()]
        if data.exact.audit is not None:
            parts += [_audit(data.exact.audit), Text()]
    if any(task.bars for task in data.accuracies):
        parts += [_accuracies(data), Text()]
    parts += [Text(f"{printable(t.task)}: skipped, {printable(t.skipped)}") for t in data.accuracies if t.skipped]
    if data.commands:
        parts += [Text("Next:", style="bold")]
        lines = [line for command in data.commands for line in command.splitlines()]
        parts += [Text("  " + printable(line, 2000), overflow="fold") for line in lines]
    return Group(*parts)


def _table(title: str, first: str, *numbers: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column(first)
    for name in numbers:
        # As Text, here and in the cells: a plain string would be read for markup.
        table.add_column(Text(name), justify="right")
    return table


def _verdicts(data: ReportData) -> Table:
    from rich.text import Text

    table = _table("Verdicts", "suspect", "verdict", "score", "p", "WR", "truth")
    for suspect in data.suspects:
        scores = data.keys[0].suspects[suspect.name]
        truth = {True: "derived", False: "innocent", None: "unknown"}[suspect.derived]
        table.add_row(
            Text(printable(suspect.name, 60)),
            Text(suspect.decision, style=_STYLES[suspect.decision]),
            f"{scores.statistic:.3f}",
            format_probability(suspect.pvalue),
            f"{scores.watermark_rate:.2f}",
            truth,
        )
    return table


def _null_sentence(data: ReportData) -> str:
    if data.refusal is not None:
        return f"No verdict is given: {printable(data.refusal, 400)}."
    n = len(data.suspects)
    if data.n_claims > 1:
        shared = f"shared among {data.n_claims} suspects (Bonferroni): p ≤ {data.level:.2g} for each"
    else:
        shared = f"for each of {n} suspects; any false verdict among them: at most {data.family_level:.2g}"
    return (
        f"Score: {printable(data.statistic_name)}. Null: rank among {data.n_controls} controls, {data.n_images} "
        f"images each; no p-value is below 1/{data.n_controls + 1} = {data.floor:.2g}. Alpha {data.alpha:g} {shared}."
    )


def _exact(exact: ExactReport) -> Table:
    from rich.text import Text

    table = _table("The scheme whose null is exact", "suspect", "verdict", "bits", "kept", "truth")
    for row in exact.rows:
        table.add_row(
            Text(printable(row.name, 60)),
            Text(row.decision, style=_STYLES[row.decision]),
            format_bits(row.log2_pvalue, exact.most_bits),
            "–" if row.kept is None else f"{row.kept:.0%}",
            {True: "derived", False: "innocent", None: "unknown"}[row.derived],
        )
    return table


def _audit(audit: AuditReport) -> Table:
    """Every check of the claim on the surrogate."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"A claim on the surrogate, audited: {audit.decision}", title_justify="left")
    for column in ("check", "status", "words"):
        table.add_column(column)
    for name, status, words in audit.checks:
        table.add_row(Text(name), Text(status), Text(printable(words, 400)))
    return table


def _exact_sentence(exact: ExactReport) -> str:
    n = len(exact.controls)
    return (
        "Bits: −log2 of the p-value, a theorem about the secret’s own randomness; it needs no controls. "
        f"{exact.n_queries} plain queries each. Alpha {exact.alpha:g} shared among {len(exact.rows)} suspects: "
        f"p ≤ {exact.level:.2g} for each. Of the {n} controls {exact.below(0.01)} have p ≤ 0.01, and "
        f"{exact.below(exact.level)} reach the level of a claim."
    )


def _claims(data: ReportData) -> Table:
    from rich.text import Text

    columns = [printable(key.name, 40) for key in data.keys]
    title = "Innocents by kind: median WR under each key (share with WR > ½)"
    table = _table(title, "kind", "n", "probe", *columns)
    for row in data.claims():
        values = [f"{median:.2f} ({share:.0%})" for median, share in zip(row.medians, row.shares, strict=True)]
        probe = "–" if row.probe is None else f"{row.probe:.2f}"
        table.add_row(Text(printable(row.kind, 40)), str(row.n), probe, *values)
    return table


def _accuracies(data: ReportData) -> Table:
    from rich.text import Text

    tasks = [task for task in data.accuracies if task.bars]
    table = _table("Linear probe (accuracy kept)", "encoder", *(printable(task.task, 40) for task in tasks))
    found = [{bar.name: bar for bar in task.bars} for task in tasks]
    for name in dict.fromkeys(bar.name for task in tasks for bar in task.bars):
        cells = [_accuracy_cell(bars.get(name)) for bars in found]
        table.add_row(Text(printable(name, 40)), *cells)
    return table


def _accuracy_cell(bar: Bar | None) -> str:
    if bar is None:
        return "–"
    return f"{bar.accuracy:.3f}" + ("" if bar.kept is None else f" ({bar.kept:.0%})")
