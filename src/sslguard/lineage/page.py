"""The HTML page and the picture of a comparison: units that match, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sslguard.lineage.compare import Row
from sslguard.lineage.verdict import LineageVerdict
from sslguard.report import charts, html, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TESTS = {
    "in place": "Units of A that match the unit of the same place in B",
    "streams": "The same for streams alone, whose order a thief cannot change at no cost",
    "aligned": "The same, after the earlier groups of B were put in A's order",
    "initial weights": "Units of A's initial weights whose incoming and outgoing weights match one unit of B",
    "initial weights, aligned": "The same, after the streams of B were put in A's order",
}
_FEW = 40  # labels of rows that can be read


def render_page(verdict: LineageVerdict) -> str:
    """Return the page, HTML5. It loads nothing from any address."""
    pictures = []
    for one in verdict.tests:
        alt = f"{TESTS[one.test]}: {one.matched} of {one.size} units in {len(one.rows)} groups."
        pictures.append((one, TESTS[one.test], charts.chart(draw_rows, one.rows, alt=alt)))
    return html.render("lineage/page.html.j2", verdict=verdict, pictures=pictures, facts=_facts(verdict))


def _facts(verdict: LineageVerdict) -> list[tuple[str, str]]:
    shared = f", shared among {verdict.n_claims} claims" if verdict.n_claims > 1 else ""
    facts = [
        ("A", verdict.a),
        ("B", verdict.b),
        ("evidence", f"{text.bits(verdict.log2_pvalue)} bits: p = 2^-{abs(verdict.log2_pvalue):.1f}"),
        ("level", f"{verdict.alpha:.3g}{shared}"),
    ]
    if verdict.secret is not None:
        found = verdict.secret
        facts.append(
            ("secret order", f"{found.matched} of {found.size} units in place; 256 bits are the most it shows")
        )
        facts.append(("without the key", f"{text.bits(verdict.log2_lineage)} bits"))
    if verdict.ancestor is not None:
        facts.append((f"ancestor {verdict.ancestor.name}", verdict.ancestor.meaning))
    return facts


def draw_rows(rows: tuple[Row, ...], theme: charts.Theme) -> Figure:
    """Draw the share of matched units of each group, from the first layer at the top."""
    height = 1.2 + 0.28 * min(len(rows), 2 * _FEW)
    drawn = charts.figure(charts.WIDTH, height)
    axes = drawn.subplots()
    shares = np.array([row.matched / row.size for row in rows])
    chance = np.array([1 / row.size for row in rows])
    places = np.arange(len(rows))
    colours = [theme.palette[1] if row.kind == "stream" else theme.palette[0] for row in rows]
    axes.barh(places, shares, color=colours, height=0.7)
    axes.plot(chance, places, "|", color=theme.ink, ms=6)
    if len(rows) <= _FEW:
        charts.rows(axes, [f"{row.group} ({row.kind})" for row in rows])
        for place, row in enumerate(rows):
            axes.text(min(1.0, shares[place]) + 0.01, place, f"{row.matched} of {row.size}", va="center", fontsize=8)
    else:
        axes.set_ylim(len(rows) - 0.5, -0.6)
    axes.set_xlim(0, 1.15)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)])
    axes.set_xlabel("units that match; the stroke is what chance gives")
    charts.bare(axes, theme)
    return drawn
