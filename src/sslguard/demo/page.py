"""The report of the demonstration as one HTML file."""

from __future__ import annotations

from typing import Any

from sslguard.demo import figures
from sslguard.demo.result import ReportData
from sslguard.report.charts import chart, picture_uri
from sslguard.report.html import render
from sslguard.report.text import bits, printable

_SHOWN_PICTURES = 5

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


def render_page(data: ReportData) -> str:
    """Return the page, HTML5, with all pictures embedded."""
    return render("demo/page.html.j2", **_context(data))


def _context(data: ReportData) -> dict[str, Any]:
    curves = "; ".join(printable(curve.title) for curve in data.curves)
    return {
        "data": data,
        "main": data.keys[0],
        "charts": {
            "decision": chart(figures.decision, data, alt=_decision_alt(data)),
            "cosines": chart(figures.cosines, data, alt=_cosines_alt(data)),
            "accuracy": chart(figures.accuracy, data, alt=_accuracy_alt(data)),
            "losses": chart(figures.losses, data, alt=f"Loss curves of {curves}. The last values are in result.json."),
        },
        "claims": data.claims(),
        "kinds": _KINDS,
        "pictures": _pictures(data),
        "seconds": [(stage, f"{value:.1f} s") for stage, value in data.seconds.items()],
        "total_seconds": sum(data.seconds.values()),
        "bits": bits,
        "own": next((suspect.name for suspect in data.suspects if suspect.derived), None),
    }


def _pictures(data: ReportData) -> dict[str, Any]:
    trigger = data.trigger
    pairs = list(zip(trigger.plain, trigger.triggered, strict=True))[:_SHOWN_PICTURES]
    return {
        "mask": picture_uri(trigger.mask),
        "pattern": picture_uri(trigger.mask * trigger.pattern),
        "pairs": [(picture_uri(before), picture_uri(after)) for before, after in pairs],
        "covered": float(trigger.mask.mean()),
        "changed": float(abs(trigger.triggered - trigger.plain).mean()) if pairs else 0.0,
    }


def _decision_alt(data: ReportData) -> str:
    scores = data.keys[0].suspects
    named = ", ".join(f"{printable(s.name)} {scores[s.name].statistic:.3f}" for s in data.suspects)
    controls = sorted(s.statistic for s in data.keys[0].controls.values())
    spread = f" Controls lie between {controls[0]:.3f} and {controls[-1]:.3f}." if controls else ""
    critical = data.critical()
    line = "" if critical is None else f" A suspect is shown derived above {critical:.3f}."
    return f"Strip chart of the {printable(data.statistic_name)}. Suspects: {named}.{spread}{line}"


def _cosines_alt(data: ReportData) -> str:
    parts = []
    for key in data.keys:
        rates = ", ".join(
            f"{printable(s.name)} {key.suspects[s.name].watermark_rate:.2f}"
            for s in data.suspects
            if s.name in key.suspects
        )
        parts.append(f"{printable(key.name)}: {rates}")
    return (
        "Histograms of single answers' cosines to the secret vector, for every suspect and every kind of control. "
        "Shares above one half, " + "; ".join(parts) + ". The table below gives the controls' shares."
    )


def _accuracy_alt(data: ReportData) -> str:
    parts = [
        printable(task.task) + ": " + ", ".join(f"{printable(bar.name)} {bar.accuracy:.3f}" for bar in task.bars)
        for task in data.accuracies
        if task.bars
    ]
    return "Bars of linear-probe accuracy. " + "; ".join(parts) + "."
