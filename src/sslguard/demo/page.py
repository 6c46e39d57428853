"""The report as one HTML file: no script, no network, everything inside; light, dark and on paper.

Every text goes through the template's escaping, because names of encoders may come from anywhere.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from sslguard.demo import figures
from sslguard.demo.result import ReportData, printable

GENERATOR = '<meta name="generator" content="sslguard">'
_SHOWN_PICTURES = 5

# What the families of controls are, in plain words; the first word of a kind decides.
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
    """The whole page, HTML5, all pictures as data URIs. No address is loaded from anywhere."""
    return _environment().from_string(_template()).render(**_context(data))


def _template() -> str:
    return (files("sslguard.demo") / "page.html.j2").read_text(encoding="utf-8")


def _environment() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        line=printable,
        number=lambda value: f"{value:.3f}".replace("-", "−"),
        percent=lambda value: f"{value:.0%}",
        probability=format_probability,
        seconds=lambda value: f"{value:.1f} s",
    )
    return environment


def format_bits(log2_pvalue: float, most: int) -> str:
    """Evidence in bits for reading; at its end with the sign that says so."""
    bits = abs(log2_pvalue)  # −0.0 is no sign of anything
    return f"≥ {most}" if bits >= most else f"{bits:.1f}"


def format_probability(value: float | None) -> str:
    """A p-value for reading: two significant digits, never 0; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}"


def _context(data: ReportData) -> dict[str, Any]:
    themes = {"light": figures.LIGHT, "dark": figures.DARK}
    charts = {
        draw.__name__: {name: figures.svg_uri(draw, data, theme) for name, theme in themes.items()}
        for draw in (figures.decision, figures.cosines, figures.accuracy, figures.losses)
    }
    return {
        "data": data,
        "generator": GENERATOR,
        "main": data.keys[0],
        "charts": charts,
        "alt": {"decision": _decision_alt(data), "cosines": _cosines_alt(data), "accuracy": _accuracy_alt(data)},
        "claims": data.claims(),
        "kinds": _KINDS,
        "pictures": _pictures(data),
        "total_seconds": sum(data.seconds.values()),
        "bits": format_bits,
        "own": next((suspect.name for suspect in data.suspects if suspect.derived), None),
    }


def _pictures(data: ReportData) -> dict[str, Any]:
    trigger = data.trigger
    pairs = list(zip(trigger.plain, trigger.triggered, strict=True))[:_SHOWN_PICTURES]
    return {
        "mask": figures.picture_uri(trigger.mask),
        "pattern": figures.picture_uri(trigger.mask * trigger.pattern),
        "pairs": [(figures.picture_uri(before), figures.picture_uri(after)) for before, after in pairs],
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
