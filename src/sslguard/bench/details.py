"""Tables for benchmarks with targets or further tasks: targets, clean encoders, attacks beside their twins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean, median
from typing import Any

from sslguard.bench.config import Config
from sslguard.bench.rows import Row
from sslguard.bench.targets import Result

_NONE = "–"
Lines = tuple[tuple[str, ...], ...]


def target_lines(found: Sequence[Result]) -> Lines:
    """Return a line for each target: aim, figure, the same figure for unmarked encoders, whether it is met."""
    return tuple(
        (
            one.target.aim,
            _figure(one),
            f"{one.negatives[0]} of {one.negatives[1]}" if one.negatives[1] else _NONE,
            one.verdict,
        )
        for one in found
    )


def _figure(one: Result) -> str:
    if one.target.mean:
        return "; ".join(f"{name} {_NONE if value is None else f'{value:.3g}'}" for name, value in one.values.items())
    interval, text = one.share, f"{one.met} of {len(one.values)}"
    if interval is None or interval.low is None or interval.high is None:
        return text
    return f"{text} (95 %: {100 * interval.low:.0f} to {100 * interval.high:.0f} %)"


def clean_lines(references: Mapping[str, Mapping[str, Any]]) -> Lines:
    """Return a line for each clean encoder and task: accuracy, baselines, gain over the better baseline."""
    lines = []
    for encoder, content in references.items():
        result = content["result"]
        for task, found in (("", result), *result.get("tasks", {}).items()):
            figures = [found["accuracy"], found.get("pixels"), found.get("untrained")]
            gain = found["accuracy"] - found["floor"]
            lines.append((encoder, task, *(_NONE if f is None else f"{f:.3f}" for f in figures), f"{gain:+.3f}"))
    return tuple(lines)


def beside_header(config: Config) -> tuple[str, ...]:
    """Return the header of `beside_lines`."""
    kept = ("kept", *(f"kept, {task}" for task in config.tasks))
    own = ("statistic", "watermark rate")
    return ("scheme", "attack", *kept, "of pre-training", *own, *(f"{name}, clean" for name in own))


def beside_lines(config: Config, rows: Sequence[Row], references: Mapping[str, Mapping[str, Any]]) -> Lines:
    """Return a line for each scheme unattacked and under each attack, beside the same attack on the clean encoder."""
    groups: dict[tuple[str, str], list[Row]] = {}
    twins: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.kind != "innocent":
            groups.setdefault((row.scheme, row.attack), []).append(row)
        elif row.suspect.startswith("twin of "):
            twins.setdefault((row.scheme, row.attack), []).append(row)
    lines = []
    for (scheme, attack), group in groups.items():
        applied = [row for row in group if row.applies]
        if applied:
            kept = [_kept(applied, references, task) for task in config.tasks]
            own = [_over(lambda row: row.kept, applied, mean, _percent), *kept]
            price = _over(lambda row: row.share, applied, median, _percent)
            evidence = [*_evidence(applied), *_evidence(twins.get((scheme, attack), []))]
            lines.append((scheme, attack or "none", *own, price, *evidence))
    return tuple(lines)


def _kept(rows: Iterable[Row], references: Mapping[str, Mapping[str, Any]], task: str) -> str:
    """Return the mean share of the clean encoders' accuracy above their baselines that is kept in a further task."""
    shares = []
    for row in rows:
        clean = references.get(row.encoder, {"result": {}})["result"].get("tasks", {}).get(task)
        if clean and row.tasks and task in row.tasks and clean["accuracy"] > clean["floor"]:
            shares.append((row.tasks[task] - clean["floor"]) / (clean["accuracy"] - clean["floor"]))
    return _percent(mean(shares)) if shares else _NONE


def _evidence(rows: Sequence[Row]) -> list[str]:
    figures = (lambda row: row.statistic, lambda row: row.watermark_rate)
    return [_over(of, rows, median, "{:.3g}".format) for of in figures]


def _over(
    of: Callable[[Row], float | None],
    rows: Iterable[Row],
    how: Callable[[list[float]], float],
    show: Callable[[float], str],
) -> str:
    values = [value for row in rows if (value := of(row)) is not None]
    return show(how(values)) if values else _NONE


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
