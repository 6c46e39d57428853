"""The charts of the demonstration's report."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sslguard.demo.result import THRESHOLD, Accuracy, Examined, ReportData, Suspect
from sslguard.report import charts
from sslguard.report.charts import WIDTH, Theme
from sslguard.report.text import printable
from sslguard.schemes.base import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = np.linspace(-1, 1, 61)
_CURVE_POINTS = 250  # a chart cannot show more, and every point costs bytes in the page


def summary_png(data: ReportData) -> bytes:
    """Return one picture of the whole result on white, 1,800 pixels wide: cosines under every key, and accuracy."""
    return charts.png(summary, data)


def decision(data: ReportData, theme: Theme) -> Figure:
    """Return the statistic of every suspect and control under the first key, and what a suspect must exceed."""
    scores = {kind: data.scores_of_kind(data.main, kind) for kind in data.kinds()}
    suspects = data.main.suspects
    labels = [suspect.name for suspect in suspects]
    labels += [f"{kind} ({len(of_kind)})" for kind, of_kind in scores.items()]
    figure = charts.figure(WIDTH, 1.1 + 0.34 * len(labels))
    axes = figure.add_subplot()
    for y, suspect in enumerate(suspects):
        marker = "D" if suspect.derived else "o"
        axes.plot(suspect.score.value, y, marker, color=_colour(suspect, theme), ms=8, zorder=3)
    for y, of_kind in enumerate(scores.values(), start=len(suspects)):
        values = [score.value for score in of_kind]
        axes.plot(values, np.full(len(values), y), "|", color=theme.muted, ms=12, mew=1.4)
    axes.axhline(len(suspects) - 0.5, color=theme.grid, lw=1)
    _critical_line(axes, data.main.critical(), data.main.level, theme)
    charts.rows(axes, labels)
    charts.bare(axes, theme)
    axes.grid(axis="x", color=theme.grid, lw=0.6)
    axes.set_xlabel(printable(data.statistic_name))
    return figure


def cosines(data: ReportData, theme: Theme) -> Figure:
    """Return histograms of answers' cosines, a row for every suspect and kind of control, a column for every key."""
    figure = charts.figure(WIDTH, 1.2 + 0.5 * len(_histogram_rows(data, data.main, theme, brief=False)))
    columns = figure.subplots(1, len(data.keys), sharey=True, squeeze=False)[0]
    for axes, key in zip(columns, data.keys, strict=True):
        _ridges(axes, _histogram_rows(data, key, theme, brief=False), theme)
        charts.title(axes, key.name, 40)
        axes.set_xlabel("cosine of one answer to the secret vector")
    return figure


def accuracy(data: ReportData, theme: Theme) -> Figure:
    """Return accuracy of every encoder and baseline, a panel for every task that was not skipped."""
    tasks = [task for task in data.accuracies if task.bars]
    figure = charts.figure(WIDTH, 1.1 + 0.36 * max([len(task.bars) for task in tasks], default=1))
    columns = figure.subplots(1, max(1, len(tasks)), sharey=True, squeeze=False)[0]
    for axes, task in zip(columns, tasks, strict=False):
        _accuracy_bars(axes, task, theme)
        charts.title(axes, task.task, 28)
    return figure


def losses(data: ReportData, theme: Theme) -> Figure:
    """Return loss against step for every training run: single steps pale, their running mean on top."""
    figure = charts.figure(WIDTH, 2.9)
    columns = figure.subplots(1, len(data.curves), squeeze=False)[0]
    colours = (*theme.palette[:3], theme.ink)
    for axes, (title, curves) in zip(columns, data.curves.items(), strict=True):
        for number, (name, values) in enumerate(curves.items()):
            colour, style = colours[number % 4], ("-", "--", "-.", ":")[number % 4]
            shown = np.unique(np.linspace(0, len(values) - 1, _CURVE_POINTS).round().astype(int))
            axes.plot(shown + 1, np.asarray(values)[shown], color=colour, lw=0.6, alpha=0.25)
            axes.plot(shown + 1, _running_mean(values)[shown], style, color=colour, lw=1.8, label=printable(name, 24))
        charts.title(axes, title, 36)
        axes.set_xlabel("step")
        axes.grid(axis="y", color=theme.grid, lw=0.6)
        axes.legend(frameon=False, handlelength=2.4)
        charts.bare(axes, theme)
    return figure


def summary(data: ReportData, theme: Theme) -> Figure:
    """Return cosines under every key, innocents in one row, beside the accuracy of the first task."""
    rows = {key.name: _histogram_rows(data, key, theme, brief=True) for key in data.keys}
    tasks = [task for task in data.accuracies if task.bars][:1]
    ratios = [1.0] * len(rows) + [0.85] * len(tasks)
    figure = charts.figure(12, 1.7 + 0.44 * len(rows[data.main.name]))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    grid = figure.add_gridspec(1, len(ratios), width_ratios=ratios)
    for column, (name, of_key) in enumerate(rows.items()):
        axes = figure.add_subplot(grid[column])
        _ridges(axes, of_key, theme, labels=column == 0)
        charts.title(axes, name, 27)
        axes.set_xlabel("cosine to the secret vector")
    for task in tasks:
        axes = figure.add_subplot(grid[-1])
        _accuracy_bars(axes, task, theme, kept=False, thickness=0.5)
        charts.title(axes, "accuracy", 26)
        axes.set_xlabel("\n".join(textwrap.wrap(printable(task.task), 26)))
    return figure


def _colour(suspect: Suspect, theme: Theme) -> str:
    """Return a suspect's colour, by the truth about it."""
    return theme.palette[0] if suspect.derived else theme.palette[2]


@dataclass(frozen=True)
class _Row:
    label: str
    scores: list[Score]
    colour: str


def _histogram_rows(data: ReportData, key: Examined, theme: Theme, *, brief: bool) -> list[_Row]:
    rows: list[_Row] = []
    innocent: list[Score] = []
    for suspect in data.main.suspects:
        found = [key.scores[suspect.name]] if suspect.name in key.scores else []
        if brief and not suspect.derived:
            innocent += found
        else:
            rows.append(_Row(suspect.name, found, _colour(suspect, theme)))
    if innocent:
        rows.append(_Row(f"innocent suspects ({len(innocent)})", innocent, theme.palette[2]))
    for kind in data.kinds():
        scores = data.scores_of_kind(key, kind)
        rows.append(_Row(f"{kind} ({len(scores)})", scores, theme.muted))
    return rows


def _ridges(axes: Axes, rows: Sequence[_Row], theme: Theme, *, labels: bool = True) -> None:
    """Draw one histogram a row, each as high as its own peak allows, and the share of answers above ½ at the right."""
    for y, row in enumerate(rows):
        if not row.scores:
            axes.text(-0.97, y, "not made with this key", color=theme.soft, va="bottom", style="italic")
            continue
        every = np.concatenate([score.cosines for score in row.scores])
        counts, _ = np.histogram(every, _BINS)
        ridge = y - 0.78 * counts / counts.max()
        axes.stairs(ridge, _BINS, baseline=y, fill=True, color=row.colour, alpha=0.45)
        axes.stairs(ridge, _BINS, baseline=None, color=row.colour, lw=1.1)
        axes.text(1.04, y, f"{(every > THRESHOLD).mean():.2f}", color=theme.ink, va="bottom")
    axes.axvline(THRESHOLD, color=theme.soft, ls=":", lw=1.2)
    axes.text(1.04, -0.62, "> ½", color=theme.soft, va="bottom")
    axes.set_xlim(-1, 1)
    charts.rows(axes, [row.label if labels else "" for row in rows], above=True)
    charts.bare(axes, theme)
    for y in range(len(rows)):
        axes.axhline(y, color=theme.grid, lw=0.8, zorder=0)


def _critical_line(axes: Axes, critical: float, level: float, theme: Theme) -> None:
    axes.axvline(critical, color=theme.ink, ls="--", lw=1.2)
    side = "right" if critical > np.mean(axes.get_xlim()) else "left"
    text = f" to be shown derived at {level:.3g}, a suspect must lie right of this line "
    axes.text(critical, -0.75, text, color=theme.ink, ha=side, va="bottom", fontsize="small")


def _accuracy_bars(axes: Axes, task: Accuracy, theme: Theme, *, kept: bool = True, thickness: float = 0.68) -> None:
    colours = {"baseline": theme.muted, "clean": theme.palette[2]}
    top = max(bar.accuracy for bar in task.bars)
    for y, bar in enumerate(task.bars):
        colour, hatch = colours.get(bar.role, theme.palette[0]), "///" if bar.role == "baseline" else None
        axes.barh(y, bar.accuracy, thickness, color=colour, alpha=0.85, hatch=hatch, edgecolor=theme.grid)
        share = f", keeps {bar.kept:.0%}" if kept and bar.kept is not None and bar.role != "clean" else ""
        axes.text(bar.accuracy + 0.02 * top, y, f"{bar.accuracy:.3f}{share}", color=theme.ink, va="center")
    axes.set_xlim(0, top * (1.75 if kept else 1.3))
    axes.set_xlabel("accuracy of a linear probe")
    charts.rows(axes, [bar.name for bar in task.bars])
    charts.bare(axes, theme)


def _running_mean(values: Sequence[float]) -> NDArray[np.floating]:
    """Return the mean over a window of a twentieth of the run around each step, as much of it as the run has."""
    half, n = max(1, len(values) // 40), len(values)
    total = np.concatenate([[0.0], np.cumsum(values)])
    first, last = np.maximum(np.arange(n) - half, 0), np.minimum(np.arange(n) + half + 1, n)
    return (total[last] - total[first]) / (last - first)
