"""The report of the demonstration: one HTML page, and tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sslguard.claims.outcome import Audit
from sslguard.demo import figures
from sslguard.demo.output import AUDIT
from sslguard.demo.result import Bar, ReportData, TriggerPictures
from sslguard.report.charts import chart, picture_uri
from sslguard.report.html import render
from sslguard.report.table import Table, terminal
from sslguard.report.text import NONE, bits, fixed, percent, printable, probability
from sslguard.stats.direction import SECRET_BITS

if TYPE_CHECKING:
    from rich.console import RenderableType

# Explanation of each family of controls, by the first word of a kind.
_KINDS = {
    "surrogate": "trained on the answers of a clean encoder, as a thief would, but nobody watermarked it",
    "fine-tuned": "a clean encoder trained further with labels",
    "pruned": "a clean encoder with its smallest weights removed",
    "clean": "an encoder that was never watermarked",
    "independent": "pre-trained by itself on other data or from another start",
    "supervised": "trained by itself with labels",
    "public": "a published encoder of another data set",
    "random": "a network that was never trained",
    "innocent": "the innocents among the suspects above",
}
_TRUTH = {True: "derived", False: "innocent"}


def render_page(data: ReportData) -> str:
    """Return the page, HTML5, with all pictures embedded."""
    curves = "; ".join(map(printable, data.curves))
    return render(
        "demo/page.html.j2",
        data=data,
        main=data.main,
        charts={
            "decision": chart(figures.decision, data, alt=_decision_alt(data)),
            "cosines": chart(figures.cosines, data, alt=_cosines_alt(data)),
            "accuracy": chart(figures.accuracy, data, alt=_accuracy_alt(data)),
            "losses": chart(figures.losses, data, alt=f"Loss curves of {curves}. The last values are in result.json."),
        },
        claims=data.claims(),
        kinds=_KINDS,
        audit=_audit(data.audit),
        pictures=_pictures(data.trigger),
        seconds=[(stage, f"{value:.1f} s") for stage, value in data.seconds.items()],
        total_seconds=sum(data.seconds.values()),
        bits=bits,
        most_bits=SECRET_BITS,
        kept=data.kept(),
        audit_page=AUDIT,
    )


def _pictures(trigger: TriggerPictures) -> dict[str, Any]:
    pairs = zip(trigger.plain, trigger.triggered, strict=True)
    return {
        "mask": picture_uri(trigger.mask),
        "pattern": picture_uri(trigger.mask * trigger.pattern),
        "pairs": [(picture_uri(before), picture_uri(after)) for before, after in pairs],
        "covered": float(trigger.mask.mean()),
        "changed": float(abs(trigger.triggered - trigger.plain).mean()),
    }


def _decision_alt(data: ReportData) -> str:
    named = ", ".join(f"{printable(one.name)} {one.score.value:.3f}" for one in data.main.suspects)
    controls = [score.value for score in data.main.controls.values()]
    return (
        f"Strip chart of the {printable(data.statistic_name)}. Suspects: {named}. "
        f"Controls lie between {min(controls):.3f} and {max(controls):.3f}. "
        f"A suspect is shown derived from {data.main.critical():.3f}."
    )


def _cosines_alt(data: ReportData) -> str:
    rates = "; ".join(
        f"{printable(key.name)}: "
        + ", ".join(f"{printable(name)} {score.watermark_rate:.2f}" for name, score in key.scores.items())
        for key in data.keys
    )
    return (
        "Histograms of single answers' cosines to the secret vector, for every suspect and every kind of control. "
        f"Shares above one half, {rates}. The table below gives the controls' shares."
    )


def _accuracy_alt(data: ReportData) -> str:
    tasks = "; ".join(
        f"{printable(task.task)}: " + ", ".join(f"{printable(bar.name)} {bar.accuracy:.3f}" for bar in task.bars)
        for task in data.accuracies
        if task.bars
    )
    return f"Bars of linear-probe accuracy. {tasks}."


def render_tables(data: ReportData) -> RenderableType:
    """Return verdicts with their null, false claims by kind, accuracies, and what to run next, for rich to print."""
    from rich.console import Group
    from rich.text import Text

    tables = [_verdicts(data), _claims(data), _exact(data), _audit(data.audit), _accuracies(data)]
    parts: list[RenderableType] = [terminal(table) for table in tables if table.rows]
    parts += [Text(f"{printable(t.task)}: skipped, {printable(t.skipped)}") for t in data.accuracies if t.skipped]
    parts += [Text("Next:", style="bold")]
    lines = [line for command in data.commands for line in command.splitlines()]
    parts += [Text("  " + printable(line, 2000), overflow="fold") for line in lines]
    return Group(*parts)


def _verdicts(data: ReportData) -> Table:
    rows = tuple(
        (
            one.name,
            one.decision,
            fixed(one.score.value),
            probability(one.significance.pvalue),
            fixed(one.score.watermark_rate, 2),
            _TRUTH[one.derived],
        )
        for one in data.main.suspects
    )
    return Table("Verdicts", _null_sentence(data), ("suspect", "verdict", "score", "p", "WR", "truth"), rows)


def _null_sentence(data: ReportData) -> str:
    main = data.main
    return (
        f"Score: {printable(data.statistic_name)}, {data.n_images} images each. The p-value follows by proof from the "
        f"secret’s own randomness and needs no controls. Alpha {main.alpha:g} shared among {main.n_claims} suspects "
        f"(Bonferroni): p ≤ {main.level:.2g} for each."
    )


def _claims(data: ReportData) -> Table:
    rows = []
    for row in data.claims():
        rates = (f"{each.median_watermark_rate:.2f} ({each.share_above_half:.0%})" for each in row.keys.values())
        rows.append((row.kind, str(row.n), fixed(row.median_probe_accuracy, 2), *rates))
    title = "Innocents by kind: median WR under each key (share with WR > ½)"
    header = ("kind", "n", "probe", *(printable(key.name, 40) for key in data.keys))
    return Table(title, "", header, tuple(rows))


def _exact(data: ReportData) -> Table:
    exact, kept = data.exact, data.kept()
    rows = tuple(
        (
            one.name,
            one.decision,
            bits(one.significance.log2_pvalue, SECRET_BITS),
            percent(kept.get(one.name)),
            _TRUTH[one.derived],
        )
        for one in exact.suspects
    )
    n, controls = len(exact.suspects), len(exact.controls)
    note = (
        "Bits: −log2 of the p-value. It follows by proof from the secret’s own randomness and needs no controls. "
        f"{exact.suspects[0].score.n_queries} plain queries each. Alpha {exact.alpha:g} shared among {n} suspects: "
        f"p ≤ {exact.level:.2g} for each. Of the {controls} controls {exact.below(0.01)} have p ≤ 0.01, "
        f"and {exact.below(exact.level)} reach the level of a claim."
    )
    return Table("The scheme exact", note, ("suspect", "verdict", "bits", "kept", "truth"), rows)


def _audit(audit: Audit) -> Table:
    rows = tuple((check.name, check.status, check.words) for check in audit.checks)
    return Table(f"A claim on the surrogate, audited: {audit.decision}", "", ("check", "status", "words"), rows)


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
