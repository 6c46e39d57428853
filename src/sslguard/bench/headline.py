"""What a results page says first: three sentences, one picture, and the evidence by kind of answers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

from sslguard.attacks.base import Mapping, Stealing, Wrapping
from sslguard.attacks.registry import ATTACKS
from sslguard.bench.config import AttackEntry, Config
from sslguard.bench.rows import Row
from sslguard.bench.summary import KEPT, grouped, hardest
from sslguard.bench.tables import priced, rate_name
from sslguard.report.table import Table
from sslguard.report.text import NONE

KINDS = ("changed weights", "changed answers", "copy", "copy, changed answers", "logits, probabilities", "labels")
"""What attacks leave a suspect to answer with."""


def kind_of(entry: AttackEntry) -> str:
    """Return which of `KINDS` the suspect that an attack leaves is."""
    for step in entry.steps:
        if step.attack == "classify":
            return "labels" if step.settings.get("output") == "labels" else "logits, probabilities"
    types = [ATTACKS[step.attack] for step in entry.steps]
    stolen = any(issubclass(one, Stealing) for one in types)
    if any(issubclass(one, Wrapping | Mapping) for one in types):
        return "copy, changed answers" if stolen else "changed answers"
    return "copy" if stolen else "changed weights"


def evidence(row: Row) -> float | None:
    """Return the bits of a suspect before the secret's entropy ends them, where the scheme knows them."""
    return row.bits if row.uncapped_bits is None or row.refused else row.uncapped_bits


def counting(rows: Sequence[Row], scheme: str) -> list[Row]:
    """Return the attacked suspects of a scheme that have evidence, be it 0, and keep at least 90 % of the accuracy."""
    return [
        row
        for row in rows
        if row.kind == "attack" and row.scheme == scheme and evidence(row) is not None
        if row.kept is not None and row.kept >= KEPT
    ]


def lead(config: Config, rows: Sequence[Row]) -> str | None:
    """Return the scheme that the page begins with: the first of the configuration of which something counts."""
    return next((scheme for scheme in config.schemes if counting(rows, scheme)), None)


def sentences(config: Config, rows: Sequence[Row]) -> list[str]:
    """Return what a reader should know first: what is found, the worst case, and the innocents; empty without rows."""
    scheme = lead(config, rows)
    if scheme is None:
        return []
    rate, attacked = config.rates[0], counting(rows, scheme)
    found = sum(bool(row.detected(rate)) for row in attacked)
    half = median(evidence(row) or 0.0 for row in attacked)
    said = [
        f"Of {len(attacked):,} suspects that were derived from encoders marked by {scheme} and keep at least 90 % of "
        f"their accuracy, {found:,} are called derived at a false-claim rate of {rate_name(rate)}; half of them "
        f"show {half:,.0f} bits or more."
    ]
    worst = hardest(rows, scheme)
    if worst is not None:
        same = (row for row in attacked if (row.attack, row.encoder) == (worst.attack, worst.encoder))
        bits = sorted(evidence(row) or 0.0 for row in same)
        seeds = f" ({bits[0]:,.1f} to {bits[-1]:,.1f} over {len(bits)} seeds)" if len(bits) > 1 else ""
        case = f"The worst case, “{worst.attack}” on {worst.encoder}, leaves {bits[0]:,.1f} bits{seeds}"
        said.append(f"{case}, at the price of {priced(worst)}.")
    return [*said, _of_innocents(rows, scheme, rate)]


def _of_innocents(rows: Sequence[Row], scheme: str, rate: float) -> str:
    innocents = [row for row in rows if row.kind == "innocent" and row.scheme == scheme and row.refused is None]
    exact = [row for row in innocents if row.uncapped_bits is not None]
    if not innocents:
        return f"No innocents were tested under {scheme} here."
    if not exact:
        return f"Its p-values are ranks among {len(innocents):,} innocents, which claim no more than the rate."
    claimed = sum(bool(row.detected(rate)) for row in exact)
    largest = max(row.uncapped_bits or 0.0 for row in exact)
    said = f"{claimed or 'none'} {'is' if claimed == 1 else 'are'}"
    return (
        f"Of {len(exact):,} innocents under {scheme}, each with a secret of its own, {said} called derived at that "
        f"rate, and the largest evidence is {largest:.1f} bits."
    )


def kinds_table(config: Config, rows: Sequence[Row]) -> Table:
    """Return a line for each scheme: its evidence by kind of answers."""
    lines = []
    for scheme in config.schemes:
        by_kind = grouped_by_kind(config, counting(rows, scheme))
        if by_kind:
            lines.append((scheme, *(_spread(by_kind.get(kind, [])) for kind in KINDS)))
    return Table(
        "Evidence by kind of answers",
        "The least and the median bits over all encoders and seeds, of the attacks that keep at least 90 % of the "
        "accuracy, and the number of suspects. Bits are before the cap where the scheme is exact; a rank among n "
        "families of innocents ends at log₂(n + 1).",
        ("scheme", *KINDS),
        tuple(lines),
    )


def grouped_by_kind(config: Config, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return attacked suspects by what they answer with, in the order of `KINDS`."""
    kinds = {name: kind_of(entry) for name, entry in config.attacks.items()}
    return {kind: found for kind in KINDS if (found := [row for row in rows if kinds[row.attack] == kind])}


def points(rows: Sequence[Row]) -> list[tuple[float, float, float, float]]:
    """Return mean accuracy kept, and mean, least and most bits over seeds, of each attack on each encoder."""
    found = []
    for group in grouped(rows, "attack", "encoder").values():
        bits = [evidence(row) or 0.0 for row in group]
        found.append((mean(row.kept or 0.0 for row in group), mean(bits), min(bits), max(bits)))
    return found


def _spread(rows: Sequence[Row]) -> str:
    bits = [evidence(row) or 0.0 for row in rows]
    return f"{min(bits):,.0f}, {median(bits):,.0f} ({len(bits)})" if bits else NONE
