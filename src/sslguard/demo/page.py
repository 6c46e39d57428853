"""The report of the demonstration, made from the content of `result.json`: page, picture, tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sslguard.demo.output import AUDIT
from sslguard.report import charts
from sslguard.report.charts import WIDTH, Theme
from sslguard.report.html import render
from sslguard.report.table import Table, terminal
from sslguard.report.text import NONE, fixed, printable
from sslguard.stats.direction import SECRET_BITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import RenderableType

Fields = Mapping[str, Any]
LEAST = 0.1
"""Bits at which the logarithmic axis of the picture begins. Less is drawn there."""
PAPER = "the paper's scheme"


def render_page(fields: Fields) -> str:
    """Return the page, HTML5, with the picture embedded."""
    return render(
        "demo/page.html.j2",
        fields=fields,
        parts=parts_of(fields),
        line=decision_line(fields),
        chart=charts.chart(picture, fields, alt=_alt(fields)),
        claim=fields["found"]["claim, and audit the claim"],
        accuracies=_accuracies(fields),
        mark=fields["found"]["mark the encoder"],
        theft=fields["found"]["steal it through its answers"],
        shown=shown,
        seconds=[(stage, f"{value:.1f} s") for stage, value in _seconds(fields).items()],
        audit_page=AUDIT,
        most=SECRET_BITS,
        wrong=wrong(fields),
        right={truth: _count(fields, truth) for truth in (True, False)},
    )


def parts_of(fields: Fields) -> dict[str, list[dict[str, Any]]]:
    """Return what was found of each suspect, by scheme: the exact one first, then the paper's where it was shown."""
    parts = {"exact": [one for name, one in fields["found"].items() if name.startswith("ask ")]}
    return parts | ({PAPER: fields["paper"]["suspects"]} if "paper" in fields else {})


def decision_line(fields: Fields) -> float:
    """Return the bits that a test must show, for the level that all of them share."""
    return math.log2(fields["settings"]["n_tests"] / fields["settings"]["alpha"])


def wrong(fields: Fields) -> list[str]:
    """Return the suspects whose decision is not the truth, which is known here."""
    return [
        f"{one['name']} ({part})"
        for part, rows in parts_of(fields).items()
        for one in rows
        if one["derived"] != (one["decision"] == "derived")
    ]


def _count(fields: Fields, derived: bool) -> tuple[int, int]:
    """Return how many suspects that are derived, or not, are called so, and how many of them there are."""
    rows = [one for part in parts_of(fields).values() for one in part if one["derived"] is derived]
    return sum(one["decision"] == "derived" for one in rows), len(rows)


def shown(bits: float | None) -> str:
    """Return bits of evidence as text; a dash where there are none, and "≥ 256" at the most that a key can show."""
    if bits is None:
        return NONE
    return f"≥ {SECRET_BITS}" if bits >= SECRET_BITS else f"{bits:.1f}"


def _accuracies(fields: Fields) -> list[tuple[str, str]]:
    return [
        (name, f"{100 * value:.1f} %") for name, value in fields["found"]["measure what the copies are worth"].items()
    ]


def _seconds(fields: Fields) -> dict[str, float]:
    """Return the seconds of each stage, those of all suspects together."""
    found: dict[str, float] = {}
    for mark, seconds in (("", fields["seconds"]), (" *", fields.get("paper", {}).get("seconds", {}))):
        for name, value in seconds.items():
            told = ("ask the suspects" if name.startswith("ask ") else name) + mark
            found[told] = found.get(told, 0) + value
    return found


# ---------------------------------------------------------------- the picture


def picture_png(fields: Fields) -> bytes:
    """Return the picture on white, PNG."""
    return charts.png(picture, fields, size=10.5)


def picture(fields: Fields, theme: Theme) -> Figure:
    """Return the evidence of every suspect in bits, on a logarithmic axis, and the line that it must reach."""
    parts = parts_of(fields)
    labels: list[str] = []
    figure = charts.figure(WIDTH, 1.5 + 0.3 * (sum(map(len, parts.values())) + len(parts)))
    axes = figure.add_subplot()
    for part, rows in parts.items():
        if labels:
            axes.axhline(len(labels) - 0.5, color=theme.grid, lw=1)
            labels.append(f"by {part}:")
        for one in rows:
            _row(axes, len(labels), one, theme)
            labels.append(one["name"])
    line = decision_line(fields)
    axes.axvline(line, color=theme.ink, ls="--", lw=1.2)
    axes.text(line, -0.75, f"{line:.1f} bits: derived from here on ", ha="right", va="bottom", fontsize="small")
    axes.set_xscale("log")
    axes.set_xlim(LEAST / 1.3, SECRET_BITS * 1.5)
    ticks = (LEAST, 1, 10, 100, SECRET_BITS)
    axes.set_xticks(ticks, ["≤ 0.1", "1", "10", "100", f"≥ {SECRET_BITS}"])
    axes.set_xticks([], minor=True)
    charts.rows(axes, labels)
    charts.bare(axes, theme)
    axes.grid(axis="x", color=theme.grid, lw=0.6)
    axes.set_xlabel("evidence in bits; 20 bits are a chance of one in a million")
    _legend(axes, theme)
    return figure


_TESTS = {"answers": "o", "weights": "s"}


def _row(axes: Axes, y: int, one: Mapping[str, Any], theme: Theme) -> None:
    colour = theme.palette[1] if one["derived"] else theme.palette[0]
    for test, marker in _TESTS.items():
        if (found := one[test]) is not None:
            beside = 0.13 if test == "weights" else -0.13
            axes.plot(max(found, LEAST), y + beside, marker, color=colour, ms=6, zorder=3)


def _legend(axes: Axes, theme: Theme) -> None:
    for test, marker in _TESTS.items():
        axes.plot([], [], marker, color=theme.soft, ms=6, label=f"by {test}")
    for truth, colour in (("derived", theme.palette[1]), ("innocent", theme.palette[0])):
        axes.plot([], [], "D", color=colour, ms=6, label=f"in truth {truth}")
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.4, 1.02), handletextpad=0.2)


def _alt(fields: Fields) -> str:
    told = "; ".join(
        f"{printable(one['name'])} {shown(one['answers'])} by answers, {shown(one['weights'])} by weights"
        for rows in parts_of(fields).values()
        for one in rows
    )
    return f"Bits of evidence of every suspect, log scale: {told}. The line is at {decision_line(fields):.1f} bits."


# ---------------------------------------------------------------- the terminal


def tables(fields: Fields) -> RenderableType:
    """Return verdicts, the audit's decision and the next commands, for rich to print."""
    from rich.console import Group
    from rich.text import Text

    found = [terminal(_verdicts(part, rows, fields)) for part, rows in parts_of(fields).items()]
    claim = fields["found"]["claim, and audit the claim"]
    said = f"A claim on the stolen copy, audited: {claim['decision']}, {shown(claim['bits'])} bits."
    lines = [line for command in fields["commands"] for line in command.splitlines()]
    return Group(
        *found,
        Text(said),
        *(Text(f"This result is wrong for {printable(name)}.") for name in wrong(fields)),
        Text("\nNext:", style="bold"),
        *(Text("  " + printable(line, 2000), overflow="fold") for line in lines),
    )


def _verdicts(part: str, rows: Sequence[Mapping[str, Any]], fields: Fields) -> Table:
    note = (
        f"Bits of evidence by answers and by weights; {fields['settings']['n_tests']} tests share the level "
        f"{fields['settings']['alpha']:.1e}, so that one of them must show {fixed(decision_line(fields), 1)} bits."
    )
    cells = tuple(
        (
            one["name"],
            one["decision"],
            shown(one["answers"]),
            shown(one["weights"]),
            "derived" if one["derived"] else "innocent",
        )
        for one in rows
    )
    title = "Verdicts" if part == "exact" else f"By {part}"
    return Table(title, note, ("suspect", "verdict", "answers", "weights", "truth"), cells)
