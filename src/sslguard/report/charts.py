"""Charts by matplotlib without a window: SVG in two themes for pages, PNG or SVG on white for files.

Colours are Okabe and Ito's, which the colour-blind tell apart, lightened where they stand on a dark ground; position,
shape or a label says the same again. Labels may come from anywhere: no mathematics is parsed in them. The same data
gives the same bytes.
"""

from __future__ import annotations

import base64
import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sslguard.errors import UsageError
from sslguard.files import write_atomic
from sslguard.report.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.6
"""Inches; a page shows charts at about 100 pixels an inch."""
_MARKERS = "oDs^vPX*"
_PALE = 0.55  # share of a heat map's scale, below which letters are white


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance, as #rrggbb.

    Attributes:
        ink: Of what is read.
        soft: Of axes and remarks.
        grid: Of lines that only guide.
        muted: Of what is there for comparison.
        palette: Of series, eight of them.
    """

    ink: str
    soft: str
    grid: str
    muted: str
    palette: tuple[str, ...]


LIGHT = Theme(
    "#1b1f24",
    "#57606a",
    "#d5dae0",
    "#8c959f",
    ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8c6d31"),
)
DARK = Theme(
    "#e6edf3",
    "#9da7b3",
    "#3a424c",
    "#7d8792",
    ("#56B4E9", "#E69F00", "#2DB98F", "#E38CC0", "#F0E442", "#3B8FD9", "#ffffff", "#C9A26B"),
)


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        light: Data URI of the SVG for a light ground.
        dark: The same for a dark ground.
        alt: What it shows, in words.
    """

    light: str
    dark: str
    alt: str


def chart(draw: Callable[..., Figure], *data: Any, alt: str) -> Chart:
    """Return what `draw(*data, theme)` makes of both themes."""
    return Chart(svg_uri(draw, *data, theme=LIGHT), svg_uri(draw, *data, theme=DARK), alt)


def svg_uri(draw: Callable[..., Figure], *data: Any, theme: Theme) -> str:
    """Return `draw(*data, theme)` as the data URI of an SVG with a transparent ground."""
    content = _drawn(draw, data, theme, 10.5, format="svg", transparent=True, bbox_inches="tight", metadata=_UNDATED)
    return "data:image/svg+xml;base64," + base64.b64encode(content).decode()


_UNDATED = {"Date": None, "Creator": None}


def png(draw: Callable[..., Figure], *data: Any, size: float = 13) -> bytes:
    """Return `draw(*data, theme)` on white as a PNG of 150 dots an inch. `size` is that of letters, in points."""
    return _drawn(draw, data, LIGHT, size, format="png", dpi=150, facecolor="white", metadata={"Software": "sslguard"})


def write(path: Path, draw: Callable[..., Figure], *data: Any) -> None:
    """Write `draw(*data, theme)` on white to a file.

    Raises:
        UsageError: the file's name ends neither in .png nor in .svg.
        OutputError: it cannot be written.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise UsageError(f"a picture's name must end in .png or .svg, not {path.name!r}")
    if kind == "png":
        content = png(draw, *data, size=10.5)
    else:
        content = _drawn(draw, data, LIGHT, 10.5, format="svg", facecolor="white", metadata=_UNDATED)
    write_atomic(path, content)


def picture_uri(picture: NDArray[np.floating]) -> str:
    """Return one picture (C, H, W) in [0, 1], C 1 or 3, as the data URI of a PNG of its own size."""
    from PIL import Image

    pixels = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels[:3], 0, 2))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


# ---------------------------------------------------------------- what is drawn into axes

Points = tuple[Sequence[float] | NDArray[np.floating], Sequence[float] | NDArray[np.floating]]
"""x and y, equally many."""
Series = Mapping[str, Points]
"""Name → points. A series without any is left out, and the others keep their colours."""


def plot(axes: Axes, series: Series, theme: Theme, kind: Literal["points", "lines", "steps"]) -> None:
    """Draw series, each in its colour, with a legend beside them. The ninth series and on are hollow or dashed."""
    for number, (name, (x, y)) in enumerate(series.items()):
        again, at = divmod(number, len(theme.palette))
        colour, label = theme.palette[at], printable(name, 40)
        if not len(x):
            continue
        if kind == "points":
            fill = "none" if again else "full"
            axes.plot(x, y, _MARKERS[at], color=colour, ms=5, alpha=0.8, fillstyle=fill, label=label)
        else:
            steps = "steps-post" if kind == "steps" else "default"
            axes.plot(x, y, "--" if again else "-", color=colour, lw=1.6, drawstyle=steps, label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    bare(axes, theme, left=True)


def heat(
    values: NDArray[np.floating],
    texts: Sequence[Sequence[str]],
    names: tuple[Sequence[str], Sequence[str]],
    theme: Theme,
    *,
    remark: str,
    scale: str,
) -> Figure:
    """Return a heat map of values in [0, 1] with a text in each cell.

    Args:
        values: Float (rows, columns); NaN is drawn grey.
        texts: What stands in each cell.
        names: Of the rows, of the columns.
        theme: Colours.
        remark: What the texts and grey mean.
        scale: What the values are.
    """
    from matplotlib import colormaps

    rows, columns = names
    drawn = figure(4.0 + 1.15 * len(columns), 1.6 + 0.3 * len(rows))
    axes = drawn.subplots()
    image = axes.imshow(values, cmap=colormaps["cividis"].with_extremes(bad=theme.grid), vmin=0, vmax=1, aspect="auto")
    for y, line in enumerate(texts):
        for x, text in enumerate(line):
            known = np.isfinite(values[y, x])
            colour = theme.ink if not known else "white" if values[y, x] < _PALE else "black"
            axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(columns)), [printable(name, 40) for name in columns], rotation=35, ha="right")
    axes.set_yticks(range(len(rows)), [printable(name, 80) for name in rows])
    axes.set_title(remark, fontsize=9, loc="left")
    axes.spines[:].set_visible(False)
    bar = drawn.colorbar(image, ax=axes, shrink=min(1.0, 4 / (1 + 0.3 * len(rows))))
    bar.set_label(scale)
    bar.outline.set_visible(False)
    return drawn


def bare(axes: Axes, theme: Theme, *, left: bool = False) -> None:
    """Leave the axis at the bottom, and the `left` one if wanted, in a soft colour."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines["left"].set_visible(left)
    axes.spines[["left", "bottom"]].set_color(theme.grid)


def rows(axes: Axes, labels: Sequence[str], *, above: bool = False) -> None:
    """Label rows from the top down, one a unit; `above` leaves room over the first and puts labels on their line."""
    axes.set_yticks(range(len(labels)), [printable(label, 44) for label in labels])
    axes.set_ylim(len(labels) - 0.7, -1.1) if above else axes.set_ylim(len(labels) - 0.5, -0.6)
    axes.tick_params(axis="y", length=0)
    for label in axes.get_yticklabels() if above else ():
        label.set_verticalalignment("bottom")


def title(axes: Axes, text: str, width: int) -> None:
    """Put a title of at most two lines of `width` characters at the left."""
    lines = textwrap.wrap(printable(text), width, max_lines=2, placeholder=" …")
    axes.set_title("\n".join(lines), loc="left", fontweight="bold")


def _drawn(draw: Callable[..., Figure], data: Sequence[Any], theme: Theme, size: float, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with _style(theme, size):
        draw(*data, theme).savefig(buffer, **options)
    return buffer.getvalue()


@contextmanager
def _style(theme: Theme, size: float) -> Iterator[None]:
    import matplotlib

    settings: Any = {
        "font.size": size,
        "font.sans-serif": ["DejaVu Sans", "Arial"],
        "axes.titlesize": size,
        "text.color": theme.ink,
        "axes.labelcolor": theme.soft,
        "axes.titlecolor": theme.ink,
        "xtick.color": theme.soft,
        "ytick.color": theme.soft,
        "ytick.labelcolor": theme.ink,
        "text.parse_math": False,
        "text.usetex": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "sslguard",
        "hatch.color": theme.grid,
        "hatch.linewidth": 0.8,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name in a script that the font lacks is measured as boxes, and no reason to alarm anybody.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield
