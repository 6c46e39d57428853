"""The report's pictures, by matplotlib without a window: SVG for the page, PNG for a README.

Colours are Okabe and Ito's, which the colour-blind tell apart; position, shape or a label says the same again.
Every chart exists in a light and a dark theme on a transparent ground.
"""

from __future__ import annotations

import base64
import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sslguard.demo.result import THRESHOLD, Accuracy, KeyReport, ReportData, Scores, Suspect, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = np.linspace(-1, 1, 61)
_WIDTH = 9.6  # inches; the page shows charts at about 100 px an inch
_SUMMARY_DPI = 150
_CURVE_POINTS = 250  # a chart shows no more, and every point costs bytes in the page


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance, as #rrggbb."""

    ink: str
    soft: str
    grid: str
    derived: str
    contrast: str
    innocent: str
    control: str

    def of(self, suspect: Suspect) -> str:
        """A suspect's colour, by the truth about it: unknown is drawn as ink."""
        if suspect.derived is None:
            return self.ink
        return self.derived if suspect.derived else self.innocent


LIGHT = Theme("#1b1f24", "#57606a", "#d5dae0", "#0072B2", "#D55E00", "#009E73", "#8c959f")
DARK = Theme("#e6edf3", "#9da7b3", "#3a424c", "#56B4E9", "#E69F00", "#2DB98F", "#7d8792")

Draw = Callable[[ReportData, Theme], "Figure"]


def svg_uri(draw: Draw, data: ReportData, theme: Theme) -> str:
    """A chart as a data URI: SVG, letters as outlines, the same bytes for the same data."""
    buffer = io.BytesIO()
    with _style(theme):
        draw(data, theme).savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}, bbox_inches="tight"
        )
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def summary_png(data: ReportData) -> bytes:
    """One picture of the whole result on white, 1,800 pixels wide: cosines under every key, and accuracy."""
    buffer = io.BytesIO()
    with _style(LIGHT, size=13):
        summary(data, LIGHT).savefig(
            buffer, format="png", dpi=_SUMMARY_DPI, facecolor="white", metadata={"Software": "sslguard"}
        )
    return buffer.getvalue()


def picture_uri(picture: NDArray[np.floating]) -> str:
    """One picture (C, H, W) in [0, 1], C 1 or 3, as the data URI of a PNG of its own size."""
    from PIL import Image

    pixels = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels[:3], 0, 2))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def decision(data: ReportData, theme: Theme) -> Figure:
    """The statistic of every suspect and control under the first key, and what a suspect must exceed."""
    kinds, key = data.kinds_present(), data.keys[0]
    rows = len(data.suspects) + len(kinds)
    figure = _figure(_WIDTH, 1.1 + 0.34 * rows)
    axes = figure.add_subplot()
    for y, suspect in enumerate(data.suspects):
        marker = "D" if suspect.derived else "o"
        axes.plot(key.suspects[suspect.name].statistic, y, marker, color=theme.of(suspect), ms=8, zorder=3)
    for y, kind in enumerate(kinds, start=len(data.suspects)):
        values = [scores.statistic for scores in data.scores_of_kind(key, kind)]
        axes.plot(values, np.full(len(values), y), "|", color=theme.control, ms=12, mew=1.4)
    axes.axhline(len(data.suspects) - 0.5, color=theme.grid, lw=1)
    _critical_line(axes, data, theme)
    labels = [s.name for s in data.suspects] + [f"{kind} ({len(data.scores_of_kind(key, kind))})" for kind in kinds]
    _rows(axes, labels)
    _bare(axes, theme)
    axes.grid(axis="x", color=theme.grid, lw=0.6)
    axes.set_xlabel(printable(data.statistic_name))
    return figure


def cosines(data: ReportData, theme: Theme) -> Figure:
    """Histograms of single answers' cosines, a row for every suspect and kind of control, a column for every key."""
    figure = _figure(_WIDTH, 1.2 + 0.5 * len(_histogram_rows(data, data.keys[0], theme, brief=False)))
    columns = figure.subplots(1, len(data.keys), sharey=True, squeeze=False)[0]
    for axes, key in zip(columns, data.keys, strict=True):
        _ridges(axes, _histogram_rows(data, key, theme, brief=False), theme)
        _title(axes, key.name, 40)
        axes.set_xlabel("cosine of one answer to the secret vector")
    return figure


def accuracy(data: ReportData, theme: Theme) -> Figure:
    """Accuracy of every encoder and baseline, a panel for every task that was not skipped."""
    tasks = [task for task in data.accuracies if task.bars]
    figure = _figure(_WIDTH, 1.1 + 0.36 * max([len(task.bars) for task in tasks], default=1))
    columns = figure.subplots(1, max(1, len(tasks)), sharey=True, squeeze=False)[0]
    for axes, task in zip(columns, tasks, strict=False):
        _accuracy_bars(axes, task, theme)
        _title(axes, task.task, 28)
    return figure


def losses(data: ReportData, theme: Theme) -> Figure:
    """Loss against step for every training run: single steps pale, their running mean on top."""
    figure = _figure(_WIDTH, 2.9)
    columns = figure.subplots(1, max(1, len(data.curves)), squeeze=False)[0]
    colours = (theme.derived, theme.contrast, theme.innocent, theme.ink)
    for axes, curve in zip(columns, data.curves, strict=False):
        for number, (name, values) in enumerate(curve.losses.items()):
            colour, style = colours[number % 4], ("-", "--", "-.", ":")[number % 4]
            shown = np.unique(np.linspace(0, len(values) - 1, _CURVE_POINTS).round().astype(int))
            axes.plot(shown + 1, np.asarray(values)[shown], color=colour, lw=0.6, alpha=0.25)
            axes.plot(shown + 1, _running_mean(values)[shown], style, color=colour, lw=1.8, label=printable(name, 24))
        _title(axes, curve.title, 36)
        axes.set_xlabel("step")
        axes.grid(axis="y", color=theme.grid, lw=0.6)
        axes.legend(frameon=False, handlelength=2.4)
        _bare(axes, theme)
    return figure


def summary(data: ReportData, theme: Theme) -> Figure:
    """Cosines under every key, innocents in one row, beside the accuracy of the first task."""
    rows = _histogram_rows(data, data.keys[0], theme, brief=True)
    tasks = [task for task in data.accuracies if task.bars][:1]
    ratios = [1.0] * len(data.keys) + [0.85] * len(tasks)
    figure = _figure(12, 1.7 + 0.44 * len(rows))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    grid = figure.add_gridspec(1, len(ratios), width_ratios=ratios)
    for column, key in enumerate(data.keys):
        axes = figure.add_subplot(grid[column])
        _ridges(axes, _histogram_rows(data, key, theme, brief=True), theme, labels=column == 0)
        _title(axes, key.name, 27)
        axes.set_xlabel("cosine to the secret vector")
    for task in tasks:
        axes = figure.add_subplot(grid[-1])
        _accuracy_bars(axes, task, theme, kept=False, thickness=0.5)
        _title(axes, "accuracy", 26)
        axes.set_xlabel("\n".join(textwrap.wrap(printable(task.task), 26)))
    return figure


@dataclass(frozen=True)
class _Row:
    label: str
    scores: list[Scores]
    colour: str


def _histogram_rows(data: ReportData, key: KeyReport, theme: Theme, *, brief: bool) -> list[_Row]:
    rows: list[_Row] = []
    innocent: list[Scores] = []
    for suspect in data.suspects:
        found = [key.suspects[suspect.name]] if suspect.name in key.suspects else []
        if brief and suspect.derived is False:
            innocent += found
        else:
            rows.append(_Row(suspect.name, found, theme.of(suspect)))
    if innocent:
        rows.append(_Row(f"innocent suspects ({len(innocent)})", innocent, theme.innocent))
    for kind in data.kinds_present():
        scores = data.scores_of_kind(key, kind)
        rows.append(_Row(f"{kind} ({len(scores)})", scores, theme.control))
    return rows


def _ridges(axes: Axes, rows: Sequence[_Row], theme: Theme, *, labels: bool = True) -> None:
    """One histogram a row, each as high as its own peak allows, and the share of answers above ½ at the right."""
    for y, row in enumerate(rows):
        if not row.scores:
            axes.text(-0.97, y, "not made with this key", color=theme.soft, va="bottom", style="italic")
            continue
        every = np.concatenate([scores.cosines for scores in row.scores])
        counts, _ = np.histogram(every, _BINS)
        ridge = y - 0.78 * counts / counts.max()
        axes.stairs(ridge, _BINS, baseline=y, fill=True, color=row.colour, alpha=0.45)
        axes.stairs(ridge, _BINS, baseline=None, color=row.colour, lw=1.1)
        axes.text(1.04, y, f"{(every > THRESHOLD).mean():.2f}", color=theme.ink, va="bottom")
    axes.axvline(THRESHOLD, color=theme.soft, ls=":", lw=1.2)
    axes.text(1.04, -0.62, "> ½", color=theme.soft, va="bottom")
    axes.set_xlim(-1, 1)
    _rows(axes, [row.label if labels else "" for row in rows], ridges=True)
    _bare(axes, theme)
    for y in range(len(rows)):
        axes.axhline(y, color=theme.grid, lw=0.8, zorder=0)


def _critical_line(axes: Axes, data: ReportData, theme: Theme) -> None:
    critical = data.critical()
    if critical is None:
        return
    axes.axvline(critical, color=theme.ink, ls="--", lw=1.2)
    text = f" to be shown derived at {data.level:.3g}, a suspect must lie right of this line"
    right = critical > np.mean(axes.get_xlim())
    axes.text(
        critical,
        -0.75,
        text.strip() + " " if right else text,
        color=theme.ink,
        ha="right" if right else "left",
        va="bottom",
        fontsize="small",
    )


def _accuracy_bars(axes: Axes, task: Accuracy, theme: Theme, *, kept: bool = True, thickness: float = 0.68) -> None:
    colours = {"baseline": theme.control, "clean": theme.innocent, "marked": theme.derived, "stolen": theme.derived}
    top = max(bar.accuracy for bar in task.bars)
    for y, bar in enumerate(task.bars):
        axes.barh(
            y,
            bar.accuracy,
            thickness,
            color=colours[bar.role],
            alpha=0.85,
            hatch="///" if bar.role == "baseline" else None,
            edgecolor=theme.grid,
        )
        text = f"{bar.accuracy:.3f}" + (
            f", keeps {bar.kept:.0%}" if kept and bar.kept is not None and bar.role != "clean" else ""
        )
        axes.text(bar.accuracy + 0.02 * top, y, text, color=theme.ink, va="center")
    axes.set_xlim(0, top * (1.75 if kept else 1.3))
    axes.set_xlabel("accuracy of a linear probe")
    _rows(axes, [bar.name for bar in task.bars])
    _bare(axes, theme)


def _title(axes: Axes, text: str, width: int) -> None:
    lines = textwrap.wrap(printable(text), width, max_lines=2, placeholder=" …")
    axes.set_title("\n".join(lines), loc="left", fontweight="bold")


def _rows(axes: Axes, labels: Sequence[str], *, ridges: bool = False) -> None:
    """Labels from the top down, one a unit; ridges stand on their unit and need the room above it."""
    axes.set_yticks(range(len(labels)), [printable(label, 44) for label in labels])
    axes.set_ylim(len(labels) - 0.7, -1.1) if ridges else axes.set_ylim(len(labels) - 0.5, -0.6)
    axes.tick_params(axis="y", length=0)
    for label in axes.get_yticklabels() if ridges else ():
        label.set_verticalalignment("bottom")


def _bare(axes: Axes, theme: Theme) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)


def _running_mean(values: Sequence[float]) -> NDArray[np.floating]:
    """Mean over a window of a twentieth of the run around each step, as much of it as the run has."""
    half, n = max(1, len(values) // 40), len(values)
    total = np.concatenate([[0.0], np.cumsum(values)])
    first, last = np.maximum(np.arange(n) - half, 0), np.minimum(np.arange(n) + half + 1, n)
    return (total[last] - total[first]) / (last - first)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


@contextmanager
def _style(theme: Theme, size: float = 10.5) -> Iterator[None]:
    """matplotlib's settings for one picture. Labels are untrusted: no mathematics is parsed in them."""
    import matplotlib

    settings: Any = {
        "font.size": size,
        "axes.titlesize": size,
        "text.color": theme.ink,
        "axes.labelcolor": theme.soft,
        "axes.titlecolor": theme.ink,
        "xtick.color": theme.soft,
        "ytick.color": theme.ink,
        "text.parse_math": False,
        "text.usetex": False,
        "svg.fonttype": "path",
        "svg.hashsalt": "sslguard",
        "hatch.color": theme.grid,
        "hatch.linewidth": 0.8,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes, and no reason to alarm anybody.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield
