"""The report of the demonstration as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslguard.demo.result import AuditReport, Bar, ExactReport, ReportData
from sslguard.report.table import Table, terminal
from sslguard.report.text import NONE, bits, fixed, percent, printable, probability

if TYPE_CHECKING:
    from rich.console import RenderableType

_TRUTH = {True: "derived", False: "innocent", None: "unknown"}


def render_tables(data: ReportData) -> RenderableType:
    """Return verdicts with their null, false claims by kind, accuracies, and what to run next, for rich to print."""
    from rich.console import Group
    from rich.text import Text

    tables = [_verdicts(data), _claims(data)]
    if data.exact is not None:
        tables.append(_exact(data.exact))
        if data.exact.audit is not None:
            tables.append(_audit(data.exact.audit))
    if any(task.bars for task in data.accuracies):
        tables.append(_accuracies(data))
    parts: list[RenderableType] = list(map(terminal, tables))
    parts += [Text(f"{printable(t.task)}: skipped, {printable(t.skipped)}") for t in data.accuracies if t.skipped]
    if data.commands:
        parts += [Text("Next:", style="bold")]
        lines = [line for command in data.commands for line in command.splitlines()]
        parts += [Text("  " + printable(line, 2000), overflow="fold") for line in lines]
    return Group(*parts)


def _verdicts(data: ReportData) -> Table:
    scores = data.keys[0].suspects
    rows = tuple(
        (
            one.name,
            one.decision,
            fixed(scores[one.name].statistic),
            probability(one.pvalue),
            fixed(scores[one.name].watermark_rate, 2),
            _TRUTH[one.derived],
        )
        for one in data.suspects
    )
    return Table("Verdicts", _null_sentence(data), ("suspect", "verdict", "score", "p", "WR", "truth"), rows)


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
    rows = tuple(
        (one.name, one.decision, bits(one.log2_pvalue, exact.most_bits), percent(one.kept), _TRUTH[one.derived])
        for one in exact.rows
    )
    note = (
        "Bits: −log2 of the p-value. It follows by proof from the secret’s own randomness and needs no controls. "
        f"{exact.n_queries} plain queries each. Alpha {exact.alpha:g} shared among {len(exact.rows)} suspects: "
        f"p ≤ {exact.level:.2g} for each. Of the {len(exact.controls)} controls {exact.below(0.01)} have p ≤ 0.01, "
        f"and {exact.below(exact.level)} reach the level of a claim."
    )
    return Table("The scheme whose null is exact", note, ("suspect", "verdict", "bits", "kept", "truth"), rows)


def _audit(audit: AuditReport) -> Table:
    title = f"A claim on the surrogate, audited: {audit.decision}"
    return Table(title, "", ("check", "status", "words"), audit.checks)


def _claims(data: ReportData) -> Table:
    rows = tuple(
        (
            row.kind,
            str(row.n),
            fixed(row.probe, 2),
            *(f"{median:.2f} ({share:.0%})" for median, share in zip(row.medians, row.shares, strict=True)),
        )
        for row in data.claims()
    )
    title = "Innocents by kind: median WR under each key (share with WR > ½)"
    return Table(title, "", ("kind", "n", "probe", *(printable(key.name, 40) for key in data.keys)), rows)


def _accuracies(data: ReportData) -> Table:
    tasks = [task for task in data.accuracies if task.bars]
    found = [{bar.name: bar for bar in task.bars} for task in tasks]
    names = dict.fromkeys(bar.name for task in tasks for bar in task.bars)
    rows = tuple((name, *(_accuracy_cell(bars.get(name)) for bars in found)) for name in names)
    header = ("encoder", *(printable(task.task, 40) for task in tasks))
    return Table("Linear probe (accuracy kept)", "", header, rows)


def _accuracy_cell(bar: Bar | None) -> str:
    if bar is None:
        return NONE
    return fixed(bar.accuracy) + ("" if bar.kept is None else f" ({percent(bar.kept)})")
