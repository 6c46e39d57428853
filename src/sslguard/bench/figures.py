"""The pictures of a benchmark: SVG on white, for screen and print. Colours are cividis, or Okabe and Ito's."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sslguard.bench.rows import Row
from sslguard.bench.summary import KEPT, Outcome, roc
from sslguard.bench.tables import rate_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8c6d31")
_MARKERS = "oDs^vPX*"
_DARK = 0.55  # of a cell's colour, below which letters are white


def svg_uri(figure: Figure) -> str:
    """A picture as a data URI: the same bytes for the same picture."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "sslguard", "text.parse_math": False}):
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def heat(found: Sequence[Outcome], attacks: Sequence[str], schemes: Sequence[str], rate: float) -> Figure:
    """Attacks by schemes: colour is the share detected, the number the accuracy kept, grey what was not possible."""
    shown = {(one.attack, one.scheme): one for one in found}
    schemes = [scheme for scheme in schemes if any(one.scheme == scheme for one in found)]
    rows = [attack for attack in attacks if any((attack, scheme) in shown for scheme in schemes)]
    values = np.full((max(1, len(rows)), len(schemes)), math.nan)
    figure = _figure(4.0 + 1.15 * len(schemes), 1.6 + 0.3 * len(rows))
    axes = figure.subplots()
    for y, attack in enumerate(rows):
        for x, scheme in enumerate(schemes):
            one = shown.get((attack, scheme))
            if one is None or not one.n:
                continue
            detected = one.detected[0]
            values[y, x] = math.nan if detected is None else detected.value
            kept = "" if one.kept is None else f"{100 * one.kept.value:.0f}{'' if one.counts else ' †'}"
            light = detected is not None and detected.value < _DARK
            axes.text(x, y, kept, ha="center", va="center", color="white" if light else "black", fontsize=8)
    axes.set_facecolor("#d5dae0")
    picture = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(schemes)), schemes, rotation=35, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    said = "number: accuracy kept, %;  † less than 90;  grey: left out, not applicable, or too few innocents"
    axes.set_title(said, fontsize=9, loc="left")
    bar = figure.colorbar(picture, ax=axes, shrink=min(1.0, 4 / (1 + 0.3 * len(rows))))
    bar.set_label(f"share detected at {rate_name(rate)}")
    return figure


def scatter(rows: Sequence[Row], schemes: Sequence[str]) -> Figure:
    """Accuracy kept against evidence: every attacked suspect."""
    figure = _figure(8.2, 4.6)
    axes = figure.subplots()
    for scheme, style in zip(schemes, _styles(), strict=False):
        points = [(r.kept, r.bits) for r in rows if _plotted(r, scheme)]
        if points:
            axes.plot(*zip(*points, strict=True), ms=5, alpha=0.8, label=scheme, **{**style, "ls": ""})
    axes.axvline(KEPT, color="#8c959f", lw=0.8, ls=":")
    axes.set(xlabel="accuracy kept", ylabel="bits, −log₂ p (ranks end at log₂(n + 1))")
    _bits(axes)
    _finish(axes)
    return figure


def curves(rows: Sequence[Row], schemes: Sequence[str]) -> Figure:
    """ROC on the null population, attacks that keep at least 90 %."""
    figure = _figure(6.4, 4.6)
    axes = figure.subplots()
    for scheme, style in zip(schemes, _styles(), strict=False):
        if (found := roc(rows, scheme)) is not None:
            axes.step(*found, where="post", label=scheme, lw=1.6, **{**style, "marker": None})
    axes.plot([0, 1], [0, 1], color="#d5dae0", lw=0.8)
    axes.set(xlabel="false-claim rate", ylabel="attacks detected", xlim=(-0.01, 1), ylim=(0, 1.02))
    _finish(axes)
    return figure


def cost(rows: Sequence[Row], schemes: Sequence[str]) -> Figure:
    """CPU seconds of each attack against the evidence that it leaves, of attacks that keep at least 90 %."""
    from matplotlib.ticker import LogLocator

    figure = _figure(8.2, 4.6)
    axes = figure.subplots()
    for scheme, style in zip(schemes, _styles(), strict=False):
        chosen = [r for r in rows if _plotted(r, scheme) and r.kept is not None and r.kept >= KEPT]
        if chosen:
            points = [(max(r.attack_seconds or 0, 0.1), r.bits) for r in chosen]
            axes.plot(*zip(*points, strict=True), ms=5, alpha=0.8, label=scheme, **{**style, "ls": ""})
    axes.set_xscale("log", subs=())
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="CPU seconds of the attack", ylabel="bits left")
    _bits(axes)
    _finish(axes)
    return figure


def _plotted(row: Row, scheme: str) -> bool:
    drawn = row.kept is not None and row.bits is not None
    return drawn and row.scheme == scheme and row.kind == "attack"


def _styles() -> list[dict[str, Any]]:
    """Of a scheme each: colours with their markers, and once more with hollow markers and broken lines."""
    pairs = list(zip(_COLOURS, _MARKERS, strict=True))
    full = [{"color": colour, "marker": marker} for colour, marker in pairs]
    hollow = [{**style, "fillstyle": "none", "ls": "--"} for style in full]
    return full + hollow


def _bits(axes: Any) -> None:
    """An axis of bits, nearly logarithmic; its labels are plain text, for mathematics are not set."""
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(-0.1, 400)
    axes.set_yticks([0, 1, 2, 5, 10, 20, 50, 100, 256], minor=False)
    axes.yaxis.set_major_formatter("{x:g}")


def _finish(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
