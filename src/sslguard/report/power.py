"""Expected evidence against queries, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sslguard.errors import UsageError
from sslguard.files import write_atomic
from sslguard.schemes.exact.power import Power

# Okabe and Ito's, which the colour-blind tell apart; the curves' order is that of the legend.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def save_power(power: Power, fidelities: Sequence[float], wanted: Sequence[float], path: Path) -> None:
    """Draw bits against queries, a curve for each fidelity and a line for each number of bits that is wanted.

    Raises:
        UsageError: the file's name ends neither in .png nor in .svg.
        OutputError: it cannot be written.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise UsageError(f"a picture's name must end in .png or .svg, not {path.name!r}")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    counts = np.unique(np.geomspace(power.dim, max(1e5, 100 * power.dim), 150).round())
    for number, fidelity in enumerate(fidelities):
        curve = [power.bits(n, fidelity) for n in counts]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(counts, curve, color=colour, label=f"fidelity {fidelity:g}")
    for bits in wanted:
        axes.axhline(bits, color="#8c959f", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="queries", ylabel="bits to be expected, at most 256", ylim=(0, 265))
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150)
    write_atomic(path, buffer.getvalue())
