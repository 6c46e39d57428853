"""The tables of a benchmark, once for the terminal, for Markdown and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sslguard.bench.config import Config
from sslguard.bench.rows import Row
from sslguard.bench.summary import KEPT, Interval, Outcome, costs, false_claims, hardest, outcomes

NONE = "–"
# Accuracy that an attack must keep, and what a thief may still put up with. Less is told where no attack keeps so much.
_LEAST = (KEPT, 0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Table:
    """Texts; the first column names the row."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def all_tables(config: Config, rows: Sequence[Row]) -> list[Table]:
    """Every table of the page, in its order."""
    found = outcomes(rows, config.rates)
    tables = [_hardest(config, rows), _false_claims(config, rows), _costs(rows)]
    tables += [_grid(config, found, group) for group in ("held-out", "development")]
    return [table for table in tables if table.rows]


def _hardest(config: Config, rows: Sequence[Row]) -> Table:
    lines = []
    for scheme in config.schemes:
        found = [(least, one) for least in _LEAST if (one := hardest(rows, scheme, least))]
        for least, one in [*found[:1], *(pair for pair in found[1:] if pair[0] == _LEAST[1])]:
            error = "" if one.kept_error is None else f" ± {100 * one.kept_error:.0f}"
            price = f"{_number(one.attack_seconds)} CPU s, {_queries(one.thief_queries)}"
            bits = "not scorable" if one.refused else f"{one.bits or 0:.1f}"
            kept = f"{100 * (one.kept or 0):.0f}{error} %"
            lines.append((scheme, f"{100 * least:.0f} %", one.attack, one.encoder, one.set, kept, bits, price))
    return Table(
        "What hurts each scheme most",
        "Of all attacks on all encoders that keep at least so much of the clean encoder's accuracy above its "
        "baselines, the one that leaves the least evidence: the worst of many, with the luck that this takes. Bits are "
        "−log₂ p; a rank among n families of innocents ends at log₂(n + 1). ±: one standard error, from the number of "
        "test items.",
        ("scheme", "keeps at least", "attack", "encoder", "set", "kept", "bits", "price"),
        tuple(lines),
    )


def _false_claims(config: Config, rows: Sequence[Row]) -> Table:
    lines = []
    for one in false_claims(rows, config.rates):
        unranked = "by rank" if one.n else NONE
        claimed = [unranked] * len(config.rates) if one.claimed is None else [str(count) for count in one.claimed]
        least = NONE if one.least is None else f"2^{one.least:.1f}, corrected {min(1.0, one.n * 2**one.least):.2g}"
        counts = (str(one.n), str(one.families), str(one.refused))
        lines.append((one.scheme, *counts, *claimed, least, _share(one.published)))
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
        f"Share detected at each false-claim rate ({', '.join(map(rate_name, config.rates))}; {NONE} where the null "
        "cannot support it), the median of bits, the mean of accuracy kept. † keeps less than 90 %.",
        ("attack", *config.schemes, "CPU s"),
        tuple(lines),
    )


def _cell(one: Outcome | None) -> str:
    if one is None:
        return ""
    if not one.n:
        return "not applicable"
    shares = " ".join(_share(each) for each in one.detected)
    return f"{shares}; {_evidence(one)}; {_percent(one.kept)}{'' if one.counts else ' †'}"


def rate_name(log2_rate: float) -> str:
    """A false-claim rate for reading: 0.01, or 2^-64."""
    rate = 2.0**log2_rate
    return f"{rate:g}" if rate >= 1e-6 else f"2^{log2_rate:.4g}"


def _evidence(one: Outcome) -> str:
    if one.refused:
        return "not scorable"
    return NONE if one.bits is None else f"{one.bits:.1f}"


def _queries(n: int | None) -> str:
    return "no queries" if n is None else f"{n:,} queries"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _share(value: Interval | None) -> str:
    return NONE if value is None else f"{_ends(value, value.value)}"


def _percent(value: Interval | None) -> str:
    return NONE if value is None else _ends(value, value.value)


def _ends(value: Interval, shown: float) -> str:
    text = f"{100 * shown:.0f} %"
    if value.low is None or value.high is None:
        return text
    return f"{text} ({100 * value.low:.0f} to {100 * value.high:.0f})"


def markdown(table: Table) -> str:
    """A Markdown section."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line(table.header), line(["---"] * len(table.header)), *map(line, table.rows)]
    return f"## {table.title}\n\n{table.note}\n\n" + "\n".join(lines)
