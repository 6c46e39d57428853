"""The tables of a benchmark, shared by the terminal, Markdown and the HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median
from types import MappingProxyType
from typing import Any

from sslguard.bench.config import Config
from sslguard.bench.rows import Row
from sslguard.bench.summary import (
    KEPT,
    Interval,
    Outcome,
    average,
    claimed_as_published,
    grouped,
    hardest,
    known,
    outcomes,
    over,
    published,
)
from sslguard.bench.targets import Result, results
from sslguard.report.table import Table
from sslguard.report.text import NONE

# Shares of accuracy that an attack must keep. The lower ones serve if no attack keeps more.
_LEAST = (KEPT, 0.75, 0.5, 0.25)

References = Mapping[str, Mapping[str, Any]]
"""Result file of each clean encoder's cell, by the encoder's name."""


def all_tables(
    config: Config,
    rows: Sequence[Row],
    references: References = MappingProxyType({}),
    undone: Sequence[Mapping[str, Any]] = (),
) -> list[Table]:
    """Return all tables of the page that have lines, in their order.

    Args:
        config: Configuration of the benchmark.
        rows: All rows so far.
        references: Result file of each clean encoder's cell, by the encoder's name.
        undone: `Plan.about` of each cell that is not done, with its `group`.
    """
    found = outcomes(rows, config.rates)
    tables = [targets_table(results(config, rows, undone))]
    if config.tasks or config.targets:
        tables += [_clean_encoders(references), _beside(config, rows, references)]
    tables += [_hardest(config, rows), innocents_table(rows, config.rates), keys_table(rows), costs_table(rows)]
    tables += [_grid(config, found, group) for group in ("held-out", "development")]
    return [table for table in tables if table.rows]


def targets_table(found: Sequence[Result]) -> Table:
    """Return a line for each target: aim, figure, the same figure for unmarked encoders, whether it is met."""
    lines = []
    for one in found:
        met, total = one.negatives
        lines.append((one.target.aim, _figure(one), f"{met} of {total}" if total else NONE, one.verdict))
    return Table(
        "Targets",
        "What was aimed at and what came. Of attacks only those count that keep enough and, where its cost is known, "
        "take no longer than pre-training. Where no mark is: the same attacks on the clean encoder, whatever they "
        "keep. Brackets: Wilson's 95 % interval.",
        ("aim", "figure", "where no mark is", ""),
        tuple(lines),
    )


def _figure(one: Result) -> str:
    if one.target.mean:
        return "; ".join(f"{name} {_formatted(value, '.3g')}" for name, value in one.values.items())
    interval, text = one.share, f"{one.met} of {len(one.values)}"
    if found := [value for value in one.values.values() if value is not None]:
        text += f", the worst {min(found) if one.target.at_most is None else max(found):.3g}"
    if interval is None or interval.low is None or interval.high is None:
        return text
    return f"{text} (95 %: {100 * interval.low:.0f} to {100 * interval.high:.0f} %)"


def _clean_encoders(references: References) -> Table:
    lines = []
    for encoder, content in references.items():
        result = content["result"]
        for task, found in (("", result), *result.get("tasks", {}).items()):
            figures = (found["accuracy"], found.get("pixels"), found.get("untrained"))
            gain = f"{found['accuracy'] - found['floor']:+.3f}"
            lines.append((encoder, task, *(_formatted(figure, ".3f") for figure in figures), gain))
    return Table(
        "The clean encoders",
        "Accuracy of probes on each task, of raw pixels and of the network untrained; gain over the better of the two.",
        ("encoder", "task", "accuracy", "raw pixels", "untrained", "gain"),
        tuple(lines),
    )


def _beside(config: Config, rows: Sequence[Row], references: References) -> Table:
    """Return a line for each scheme unattacked and under each attack, beside the same attack on the clean encoder."""
    own = ("statistic", "watermark rate")
    twins = grouped([row for row in rows if row.twin], "scheme", "attack")
    lines = []
    for (scheme, attack), group in grouped([row for row in rows if row.kind != "innocent"], "scheme", "attack").items():
        applied = [row for row in group if row.applies]
        if applied:
            kept = [over(applied, "kept", mean), *(_kept(applied, references, task) for task in config.tasks)]
            shares = map(_share, [*kept, over(applied, "share", median)])
            clean = twins.get((scheme, attack), [])
            lines.append((scheme, attack or "none", *shares, *_evidence_of(applied), *_evidence_of(clean)))
    return Table(
        "Attacks beside the same attacks on the clean encoder",
        "Over encoders and keys: means of accuracy kept, medians of all else. Costs are CPU seconds over those that "
        "pre-training the clean encoder took.",
        (
            *("scheme", "attack", "kept", *(f"kept, {task}" for task in config.tasks), "of pre-training"),
            *(*own, *(f"{name}, clean" for name in own)),
        ),
        tuple(lines),
    )


def _kept(rows: Iterable[Row], references: References, task: str) -> float | None:
    """Return the mean share of the clean encoders' accuracy above their baselines that is kept in a further task."""
    shares = []
    for row in rows:
        clean = references.get(row.encoder, {"result": {}})["result"].get("tasks", {}).get(task)
        if clean and row.tasks and task in row.tasks and clean["accuracy"] > clean["floor"]:
            shares.append((row.tasks[task] - clean["floor"]) / (clean["accuracy"] - clean["floor"]))
    return mean(shares) if shares else None


def _evidence_of(rows: Sequence[Row]) -> list[str]:
    return [_formatted(over(rows, column, median), ".3g") for column in ("statistic", "watermark_rate")]


def _hardest(config: Config, rows: Sequence[Row]) -> Table:
    """Return the strongest attacks on each scheme, over all attacks and over those that leave embeddings."""
    embeddings = [row for row in rows if row.kind == "attack" and not config.attacks[row.attack].one_task]
    lines = []
    for scheme in config.schemes:
        named: list[Row] = []
        for answers, among in (("any", rows), ("embeddings", embeddings)):
            found = [(least, one) for least in _LEAST if (one := hardest(among, scheme, least))]
            for least, one in [*found[:1], *(pair for pair in found[1:] if pair[0] == _LEAST[1])]:
                if one not in named:
                    named.append(one)
                    lines.append((scheme, answers, _share(least), *_attacked(one)))
    return Table(
        "What hurts each scheme most",
        "Of all attacks on all encoders that keep at least so much of the clean encoder's accuracy above its "
        "baselines, the one that leaves the least evidence: the worst of many, with the luck that this takes. "
        '"embeddings": the same of attacks after which a suspect still answers with embeddings, not with what a '
        "classifier of one task says of them. Bits are −log₂ p; a rank among n families of innocents ends at "
        "log₂(n + 1). ±: one standard error, from the number of test items.",
        ("scheme", "answers", "keeps at least", "attack", "encoder", "set", "kept", "bits", "price"),
        tuple(lines),
    )


def _attacked(one: Row) -> tuple[str, ...]:
    error = "" if one.kept_error is None else f" ± {100 * one.kept_error:.0f}"
    bits = "not scorable" if one.refused else f"{one.bits or 0:.1f}"
    return one.attack, one.encoder, one.set, f"{100 * (one.kept or 0):.0f}{error} %", bits, priced(one)


def priced(one: Row) -> str:
    """Return what an attack took: CPU seconds, their share of pre-training, and queries."""
    share = "" if one.share is None else f" ({_share(one.share)} of pre-training)"
    queries = "no queries" if one.thief_queries is None else f"{one.thief_queries:,} queries"
    return f"{_number(one.attack_seconds)} CPU s{share}, {queries}"


def innocents_table(rows: Sequence[Row], rates: Sequence[float]) -> Table:
    """Return a line for each scheme: its innocents, and how many of them are claimed at each rate.

    Args:
        rows: All rows.
        rates: False-claim rates, as base-2 logarithms.
    """
    innocents = [row for row in rows if row.kind == "innocent"]
    lines = []
    for scheme in _schemes(rows):
        everyone = [row for row in innocents if row.scheme == scheme]
        group = [row for row in everyone if row.refused is None]
        exact = known([row for row in group if row.uncapped_bits is not None], "log2_pvalue")
        claimed, least = ["by rank" if group else NONE] * len(rates), NONE
        if exact:
            claimed = [str(sum(value <= rate for value in exact)) for rate in rates]
            least = f"2^{min(exact):.1f}, corrected {min(1.0, len(group) * 2 ** min(exact)):.2g}"
        families = grouped(group, "encoder", "seed", "family")
        counts = map(str, (len(group), len(families), len(everyone) - len(group)))
        lines.append((scheme, *counts, *claimed, least, _percent(published(group))))
    claims = (f"claimed at {rate_name(rate)}" for rate in rates)
    return Table(
        "Innocents",
        "Encoders that nobody derived from the protected one. Of schemes that inject a mark, what the same attacks "
        "make of the clean encoder is among them; of schemes that inject none, other encoders and copies of those. "
        "Innocents that come of one training are a family, which counts once in a rank, by its largest statistic. "
        "Under an exact null each meets a fresh secret of its own, and the number claimed is shown, and the least p "
        "before and after Bonferroni's correction for all of them; schemes that are ranked "
        "among these innocents claim by construction no more than the rate. The last column: the share that "
        "a peer's own published test claims at 1 %, in brackets the least and the most of any key, whose draw decides "
        "for all of its innocents.",
        ("scheme", "innocents", "families", "not scorable", *claims, "least p", "published test < 1 %"),
        tuple(lines),
    )


def keys_table(rows: Sequence[Row]) -> Table:
    """Return a line for each key that has innocents: what the protected encoder scores, and what they score."""
    scored = [row for row in rows if row.kind == "innocent" and row.statistic is not None]
    keys, order = grouped(scored, "scheme", "encoder", "seed"), _schemes(rows)
    protected = grouped([row for row in rows if row.kind == "protected"], "scheme", "encoder", "seed")
    lines = []
    for key in sorted(keys, key=lambda key: order.index(key[0])):
        statistics, pvalues = known(keys[key], "statistic"), known(keys[key], "published_log2_pvalue")
        own = protected[key][-1].statistic if key in protected else None
        share, least = (_share(claimed_as_published(keys[key])), f"2^{min(pvalues):.0f}") if pvalues else (NONE, NONE)
        lines.append((*map(str, key), *map(_statistic, (own, median(statistics), max(statistics))), share, least))
    return Table(
        "Innocents, key by key",
        "What a scheme ranks: of the encoder that the key protects, as it is served, and of the innocents. Under an "
        "exact null it is −log₂ p, before the secret's entropy ends it. The last two columns: the share of innocents "
        "that a peer's own published test claims at 1 %, and the least p of that test.",
        ("scheme", "encoder", "seed", "its own", "median", "largest", "published test < 1 %", "published p, least"),
        tuple(lines),
    )


def costs_table(rows: Sequence[Row]) -> Table:
    """Return a line for each scheme: what it costs to protect an encoder and to verify."""
    lines = []
    for scheme in _schemes(rows):
        group = [row for row in rows if row.scheme == scheme and row.kind == "protected"]
        seconds, bits = over(group, "mark_seconds", median), over(group, "bits", median)
        kept, asked = over(group, "kept", average), over(group, "asked", max)
        lines.append((scheme, _number(seconds), _percent(kept), _number(asked), _number(bits)))
    return Table(
        "Cost of the schemes",
        "CPU seconds of one thread and bits are medians, accuracy kept a mean, queries the most.",
        ("scheme", "protecting, CPU s", "accuracy kept", "queries to verify", "bits unattacked"),
        tuple(lines),
    )


def _grid(config: Config, found: Sequence[Outcome], group: str) -> Table:
    by_pair = {(one.attack, one.scheme): one for one in found if one.set == group}
    attacks = [name for name, entry in config.attacks.items() if entry.set == group]
    lines = []
    for attack in attacks:
        each = [by_pair.get((attack, scheme)) for scheme in config.schemes]
        if any(each):
            seconds = max((one.seconds for one in each if one and one.seconds is not None), default=None)
            lines.append((attack, *(_cell(one) for one in each), _number(seconds)))
    return Table(
        f"Attacks, {group} set",
        f"Found of those attacked, at each false-claim rate ({', '.join(map(rate_name, config.rates))}; {NONE} where "
        "the null cannot support it); the median of bits; the mean of accuracy kept, with Student's 95 % interval. "
        f"† keeps less than 90 %.{_intervals(by_pair.values())}",
        ("attack", *config.schemes, "CPU s"),
        tuple(lines),
    )


def _cell(one: Outcome | None) -> str:
    if one is None:
        return ""
    if not one.n:
        return "not applicable"
    found = " ".join(NONE if each is None else _count(each, one.n) for each in one.detected)
    bits = "not scorable" if one.refused else _formatted(one.bits, ".1f")
    return f"{found}; {bits}; {_percent(one.kept)}{'' if one.counts else ' †'}"


def _count(found: Interval, n: int) -> str:
    return f"{round(found.value * n)}/{n}"


def _intervals(found: Iterable[Outcome]) -> str:
    """Return the interval of each count in a table as one sentence. In the cells they would take too much room."""
    shown = {
        (one.n, each.value): f"{_count(each, one.n)} is {100 * each.low:.0f} to {100 * each.high:.0f} %"
        for one in found
        for each in one.detected
        if each is not None and each.low is not None and each.high is not None
    }
    listed = ", ".join(text for _, text in sorted(shown.items()))
    return f" Wilson's 95 % intervals: {listed}." if listed else ""


def _schemes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.scheme for row in rows))


def rate_name(log2_rate: float) -> str:
    """Return a false-claim rate as text, such as "0.01" or "2^-64"."""
    rate = 2.0**log2_rate
    return f"{rate:g}" if rate >= 1e-6 else f"2^{log2_rate:.4g}"


def _formatted(value: float | None, style: str) -> str:
    return NONE if value is None else format(value, style)


def _share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.0f} %"


def _statistic(value: float | None) -> str:
    return NONE if value is None else f"{round(value, 3) + 0.0:,.3f}" if abs(value) < 100 else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _percent(value: Interval | None) -> str:
    if value is None:
        return NONE
    if value.low is None or value.high is None:
        return _share(value.value)
    return f"{_share(value.value)} ({100 * value.low:.0f} to {100 * value.high:.0f})"
