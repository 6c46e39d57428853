"""The charts of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sslguard.bench.headline import points
from sslguard.bench.rows import Row
from sslguard.bench.summary import KEPT, Outcome, roc
from sslguard.bench.tables import rate_name
from sslguard.report import charts
from sslguard.report.charts import Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heat(found: Sequence[Outcome], attacks: Sequence[str], schemes: Sequence[str], rate: float, theme: Theme) -> Figure:
    """Return attacks by schemes: colour shows the share detected at `rate` (log2), numbers the accuracy kept."""
    shown = {(one.attack, one.scheme): one for one in found}
    schemes = [scheme for scheme in schemes if any(one.scheme == scheme for one in found)]
    rows = [attack for attack in attacks if any((attack, scheme) in shown for scheme in schemes)]
    cells = [[shown.get((attack, scheme)) for scheme in schemes] for attack in rows]
    values = np.array([[_detected(one) for one in row] for row in cells]).reshape(len(rows), len(schemes))
    return charts.heat(
        values,
        [[_kept(one) for one in row] for row in cells],
        (rows, schemes),
        theme,
        remark="number: accuracy kept, %;  † less than 90;  grey: left out, not applicable, or too few innocents",
        scale=f"share detected at {rate_name(rate)}",
    )


def headline(kinds: Mapping[str, Sequence[Row]], innocents: Sequence[float], theme: Theme) -> Figure:
    """Return bits left against accuracy kept: a point for each attack on each encoder, coloured by kind of answers.

    Args:
        kinds: Attacked suspects of one scheme by kind of answers.
        innocents: Bits of innocents under it.
        theme: Colours.
    """
    figure = charts.figure(6.4, 4.8)
    axes = figure.subplots()
    axes.axvline(KEPT, color=theme.muted, lw=0.8, ls=":")
    if innocents:
        axes.axhspan(-0.1, max(innocents), color=theme.grid, lw=0)
        where = {"xycoords": ("axes fraction", "data"), "xytext": (0, -4), "textcoords": "offset points"}
        axes.annotate("innocents", (0.01, max(innocents)), va="top", color=theme.muted, **where)
    axes.set(xlabel="accuracy kept", ylabel="bits, before the cap")
    _bits(axes)
    series: dict[str, charts.Points] = {}
    for kind, rows in kinds.items():
        found = points(rows)
        series[kind] = [kept for kept, *_ in found], [bits for _, bits, *_ in found]
        axes.vlines(*zip(*((kept, low, high) for kept, _, low, high in found), strict=True), color=theme.muted, lw=0.8)
    axes.set_ylim(-0.1, max(400, 1.3 * max((bits for _, each in series.values() for bits in each), default=0)))
    charts.plot(axes, series, theme, "points")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=2)
    return figure


def scatter(rows: Sequence[Row], schemes: Sequence[str], theme: Theme) -> Figure:
    """Return a scatter plot of evidence, in bits, against accuracy kept. Each attacked suspect is a point."""
    figure = charts.figure(8.2, 4.6)
    axes = figure.subplots()
    axes.axvline(KEPT, color=theme.muted, lw=0.8, ls=":")
    axes.set(xlabel="accuracy kept", ylabel="bits, −log₂ p (ranks end at log₂(n + 1))")
    _bits(axes)
    charts.plot(axes, _series(rows, schemes, "kept"), theme, "points")
    return figure


def curves(rows: Sequence[Row], schemes: Sequence[str], theme: Theme) -> Figure:
    """Return the ROC of attacks that keep at least 90 % of accuracy, on the null population."""
    figure = charts.figure(6.4, 4.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=theme.grid, lw=0.8)
    axes.set(xlabel="false-claim rate", ylabel="attacks detected", xlim=(-0.01, 1), ylim=(0, 1.02))
    found: dict[str, charts.Points] = {name: roc(rows, name) or ((), ()) for name in schemes}
    charts.plot(axes, found, theme, "steps")
    return figure


def cost(rows: Sequence[Row], schemes: Sequence[str], theme: Theme) -> Figure:
    """Return a plot of the bits left by each attack that keeps at least 90 %, against its CPU seconds."""
    from matplotlib.ticker import LogLocator

    figure = charts.figure(8.2, 4.6)
    axes = figure.subplots()
    axes.set_xscale("log", subs=())
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="CPU seconds of the attack", ylabel="bits left")
    _bits(axes)
    kept = [row for row in rows if row.kept is not None and row.kept >= KEPT]
    charts.plot(axes, _series(kept, schemes, "seconds"), theme, "points")
    return figure


def _series(rows: Sequence[Row], schemes: Sequence[str], against: str) -> charts.Series:
    """Return two lists for each scheme, over its attacked suspects: accuracy kept or CPU seconds, and bits."""
    found: dict[str, tuple[list[float], list[float]]] = {scheme: ([], []) for scheme in schemes}
    for row in rows:
        if row.kept is not None and row.bits is not None and row.kind == "attack" and row.scheme in found:
            x, y = found[row.scheme]
            x.append(row.kept if against == "kept" else max(row.attack_seconds or 0, 0.1))
            y.append(row.bits)
    return found


def _detected(one: Outcome | None) -> float:
    first = one.detected[0] if one is not None and one.n else None
    return math.nan if first is None else first.value


def _kept(one: Outcome | None) -> str:
    if one is None or not one.n or one.kept is None:
        return ""
    return f"{100 * one.kept.value:.0f}{'' if one.counts else ' †'}"


def _bits(axes: Any) -> None:
    """Make the axis of bits nearly logarithmic, with plain-text labels, because no mathematics is typeset."""
    axes.set_yscale("symlog", linthresh=1)
    axes.set_yticks([0, 1, 2, 5, 10, 20, 50, 100, 256, 1000], minor=False)
    axes.set_ylim(-0.1, 400)
    axes.yaxis.set_major_formatter("{x:g}")
