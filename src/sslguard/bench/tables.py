"""The tables of a benchmark, shared by the terminal, Markdown and the HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sslguard.bench.config import Config
from sslguard.bench.details import beside_header, beside_lines, clean_lines, target_lines
from sslguard.bench.rows import Row
from sslguard.bench.summary import KEPT, Interval, Outcome, costs, false_claims, hardest, outcomes, separations
from sslguard.bench.targets import results
from sslguard.report.table import Table
from sslguard.report.text import NONE

# Shares of accuracy that an attack must keep. The lower ones serve if no attack keeps more.
_LEAST = (KEPT, 0.75, 0.5, 0.25)


def all_tables(
    config: Config,
    rows: Sequence[Row],
    references: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
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
    tables = [_targets(config, rows, undone), *_details(config, rows, references)]
    tables += [_hardest(config, rows), _false_claims(config, rows), _separations(rows), _costs(rows)]
    tables += [_grid(config, found, group) for group in ("held-out", "development")]
    return [table for table in tables if table.rows]


def _targets(config: Config, rows: Sequence[Row], undone: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        "Targets",
        "What was aimed at and what came. Of attacks only those count that keep enough and, where its cost is known, "
        "take no longer than pre-training. Where no mark is: the same attacks on the clean encoder, whatever they "
        "keep. Brackets: Wilson's 95 % interval.",
        ("aim", "figure", "where no mark is", ""),
        target_lines(results(config, rows, undone)),
    )


def _details(config: Config, rows: Sequence[Row], references: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Return the tables that only benchmarks with further tasks or targets have."""
    if not (config.tasks or config.targets):
        return []
    clean = Table(
        "The clean encoders",
        "Accuracy of probes on each task, of raw pixels and of the network untrained; gain over the better of the two.",
        ("encoder", "task", "accuracy", "raw pixels", "untrained", "gain"),
        clean_lines(references),
    )
    beside = Table(
        "Attacks beside the same attacks on the clean encoder",
        "Over encoders and keys: means of accuracy kept, medians of all else. Costs are CPU seconds over those that "
        "pre-training the clean encoder took.",
        beside_header(config),
        beside_lines(config, rows, references),
    )
    return [clean, beside]


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
                    lines.append((scheme, answers, f"{100 * least:.0f} %", *_attacked(one)))
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
    share = "" if one.share is None else f" ({100 * one.share:.0f} % of pre-training)"
    price = f"{_number(one.attack_seconds)} CPU s{share}, {_queries(one.thief_queries)}"
    bits = "not scorable" if one.refused else f"{one.bits or 0:.1f}"
    return one.attack, one.encoder, one.set, f"{100 * (one.kept or 0):.0f}{error} %", bits, price


def _false_claims(config: Config, rows: Sequence[Row]) -> Table:
    lines = []
    for one in false_claims(rows, config.rates):
        unranked = "by rank" if one.n else NONE
        claimed = [unranked] * len(config.rates) if one.claimed is None else [str(count) for count in one.claimed]
        least = NONE if one.least is None else f"2^{one.least:.1f}, corrected {min(1.0, one.n * 2**one.least):.2g}"
        counts = (str(one.n), str(one.families), str(one.refused))
        lines.append((one.scheme, *counts, *claimed, least, _percent(one.published)))
    claims = (f"claimed at {rate_name(rate)}" for rate in config.rates)
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


def _separations(rows: Sequence[Row]) -> Table:
    lines = []
    for one in separations(rows):
        own, middle, largest = map(_statistic, (one.own, one.middle, one.largest))
        published = NONE if one.published is None else f"{100 * one.published:.0f} %"
        least = NONE if one.least is None else f"2^{one.least:.0f}"
        lines.append((one.scheme, one.encoder, str(one.seed), own, middle, largest, published, least))
    return Table(
        "Innocents, key by key",
        "What a scheme ranks: of the encoder that the key protects, as it is served, and of the innocents. Under an "
        "exact null it is −log₂ p, before the secret's entropy ends it. The last two columns: the share of innocents "
        "that a peer's own published test claims at 1 %, and the least p of that test.",
        ("scheme", "encoder", "seed", "its own", "median", "largest", "published test < 1 %", "published p, least"),
        tuple(lines),
    )


def _costs(rows: Sequence[Row]) -> Table:
    return Table(
        "Cost of the schemes",
        "CPU seconds of one thread and bits are medians, accuracy kept a mean, queries the most.",
        ("scheme", "protecting, CPU s", "accuracy kept", "queries to verify", "bits unattacked"),
        tuple(
            (one.scheme, _number(one.seconds), _percent(one.kept), _number(one.asked), _number(one.bits))
            for one in costs(rows)
        ),
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
    return f"{found}; {_evidence(one)}; {_percent(one.kept)}{'' if one.counts else ' †'}"


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


def rate_name(log2_rate: float) -> str:
    """Return a false-claim rate as text, such as "0.01" or "2^-64"."""
    rate = 2.0**log2_rate
    return f"{rate:g}" if rate >= 1e-6 else f"2^{log2_rate:.4g}"


def _evidence(one: Outcome) -> str:
    if one.refused:
        return "not scorable"
    return NONE if one.bits is None else f"{one.bits:.1f}"


def _queries(n: int | None) -> str:
    return "no queries" if n is None else f"{n:,} queries"


def _statistic(value: float | None) -> str:
    return NONE if value is None else f"{round(value, 3) + 0.0:,.3f}" if abs(value) < 100 else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _percent(value: Interval | None) -> str:
    return NONE if value is None else _ends(value, value.value)


def _ends(value: Interval, shown: float) -> str:
    text = f"{100 * shown:.0f} %"
    if value.low is None or value.high is None:
        return text
    return f"{text} ({100 * value.low:.0f} to {100 * value.high:.0f})"
