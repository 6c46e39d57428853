"""Results of cells as rows, one a suspect, and their Parquet file.

=====================  =============================================================================================
column                 what
=====================  =============================================================================================
kind                   "protected" as it is served, "attack", or "innocent"
encoder, scheme, seed  of the key that tests
attack, set            of an attack or of its twin; "" else
suspect                the innocent's name; else "protected" or the attack's
family                 of an innocent: what it was trained as; innocents of one family are no independent draws
statistic              what the scheme ranks; larger speaks for the claim
log2_pvalue            of an exact null, else the rank among the innocents of the same key, of each family the one that
                       scores highest; the suspect's own family is left out
floor_log2             the smallest p-value that this null can give
uncapped_bits          −log₂ p of an exact null without the secret's entropy as its end
published_log2_pvalue  what the scheme's own paper would report
accuracy, kept         of a linear probe, and the share of the clean encoder's above its baselines
kept_error             standard error of kept from the number of items that the probe was measured on
tasks                  accuracy in each further task, by name
share                  CPU seconds of the attack over those that pre-training the clean encoder took
watermark_rate         share of queries that the scheme's own paper counts as triggered
asked                  queries of verification
thief_queries          answers that the first stealing needed
attack_seconds         CPU seconds of all steps
mark_seconds           CPU seconds of protecting
refused                why there is no statistic: not to be scored, or not to be attacked like this
cell, date, config     where it comes from
=====================  =============================================================================================
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from sslguard.bench.config import Config
from sslguard.bench.plan import Plan
from sslguard.controls import read_population, shipped_population
from sslguard.errors import MissingExtraError
from sslguard.files import write_atomic
from sslguard.probes import accuracy_kept
from sslguard.stats.direction import SECRET_BITS
from sslguard.stats.significance import control_rank_test

Contents = Mapping[str, Mapping[str, Any]]
_MEASURED = ("statistic", "published_log2_pvalue", "watermark_rate", "asked")


@dataclass(frozen=True)
class Row:
    """A suspect; see the module."""

    kind: Literal["protected", "attack", "innocent"]
    encoder: str
    scheme: str
    seed: int
    attack: str
    set: str
    suspect: str
    family: str | None
    statistic: float | None
    log2_pvalue: float | None
    floor_log2: float | None
    uncapped_bits: float | None
    published_log2_pvalue: float | None
    watermark_rate: float | None
    accuracy: float | None
    tasks: Mapping[str, float] | None
    kept: float | None
    kept_error: float | None
    asked: int | None
    thief_queries: int | None
    attack_seconds: float | None
    share: float | None
    mark_seconds: float | None
    refused: str | None
    cell: str
    date: str
    config: str

    @property
    def applies(self) -> bool:
        """Whether the attack left anything to measure, be it beyond what the scheme can score."""
        return self.refused is None or self.accuracy is not None

    def detected(self, log2_rate: float) -> bool | None:
        """Whether the suspect is claimed at this false-claim rate; None where the null cannot support it.

        A suspect that cannot be scored is not claimed.
        """
        if self.floor_log2 is not None and self.floor_log2 > log2_rate + 1e-9:
            return None
        if self.refused is not None:
            return False
        if self.log2_pvalue is None or self.floor_log2 is None:
            return None
        return self.log2_pvalue <= log2_rate + 1e-9

    @property
    def bits(self) -> float | None:
        """−log₂ p; 0 of a suspect that cannot be scored, of which nothing is claimed; None without a null."""
        return 0.0 if self.refused else None if self.log2_pvalue is None else abs(self.log2_pvalue)


def references(plan: Plan, contents: Contents) -> dict[str, Mapping[str, Any]]:
    """Return the content of the cell of each clean encoder that is done, by the encoder's name."""
    return {
        plan.about[cell.name]["encoder"]: contents[cell.name]
        for cell in plan.cells
        if cell.group == "reference" and cell.name in contents
    }


def rows_of(config: Config, plan: Plan, contents: Contents) -> list[Row]:
    """A row for every suspect of the cells that are done, ranks included."""
    clean = references(plan, contents)
    done = (cell.name for cell in plan.cells if cell.name in contents)
    return ranked([row for name in done for row in _rows(config, plan, contents, clean, name)])


def _rows(
    config: Config, plan: Plan, contents: Contents, clean: Mapping[str, Mapping[str, Any]], name: str
) -> Iterator[Row]:
    content, about = contents[name], plan.about[name]
    group, result = content["group"], content["result"]
    if group in ("reference", "make"):
        return
    marked = contents[content["args"].get("mark", name)]
    attack, reference = about.get("attack", ""), clean.get(about["encoder"], {"result": {}})
    common: dict[str, Any] = {
        "encoder": about["encoder"],
        "scheme": about["scheme"],
        "seed": about["seed"],
        "attack": attack,
        "set": config.attacks[attack].set if attack else "",
        "mark_seconds": marked["result"].get("seconds"),
        "cell": name,
        "date": content["date"],
        "config": config.digest(),
    }
    if group == "null":
        pruned = _pruned(tuple(content["args"]["population"]))
        for title, found in result.get("innocents", {}).items():
            yield _row("innocent", title, found, {**common, "family": pruned.get(title, title)})
        return
    if group == "mark":
        yield _row("protected", "protected", result, {**common, **_kept(reference, result)})
        return
    common |= _price(contents, content, reference["result"].get("pretraining_seconds"))
    if group == "attack":
        yield _row("attack", attack, result, {**common, **_kept(reference, result)})
    elif "refused" not in result:
        victim = content["args"]["victim"]
        ((kind, which),) = victim.items()
        title = f"twin of {attack}" if group == "twin" else _other(plan, kind, which)
        yield _row("innocent", title, result, {**common, "family": f"{kind} {which}"})


@lru_cache(maxsize=4)
def _pruned(population: tuple[str, ...]) -> dict[str, str]:
    """Name → family of the members that were never trained for themselves: that of the clean encoder they are of."""
    folders = (shipped_population() if spec == "shipped" else Path(spec) for spec in population)
    members = chain.from_iterable(read_population(f) for f in folders if (f / "population.json").exists())
    return {member.name: f"clean {member.parent}" for member in members if member.kind == "pruned"}


def _other(plan: Plan, kind: str, which: str) -> str:
    if kind == "clean":
        return which
    about = plan.about[which]
    if kind == "made":
        return f"{about['attack']}, of {about['encoder']}"
    return f"protected by {about['scheme']}, seed {about['seed']}"


def _row(kind: Any, suspect: str, result: Mapping[str, Any], common: Mapping[str, Any]) -> Row:
    pvalue = result.get("log2_pvalue")
    uncapped = result.get("details", {}).get("log2_pvalue_uncapped")
    given: dict[str, Any] = dict.fromkeys(Row.__dataclass_fields__)
    given |= {name: result[name] for name in _MEASURED if name in result}
    given |= {
        "log2_pvalue": pvalue,
        "floor_log2": None if pvalue is None else -float(SECRET_BITS),
        "uncapped_bits": None if uncapped is None else -uncapped,
        "refused": result.get("refused") or result.get("unscored"),
    }
    return Row(**{**given, **common, "kind": kind, "suspect": suspect})


def _kept(reference: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy, and the share kept of it, where it was measured and the clean encoder's is known."""
    accuracy, clean = result.get("accuracy"), reference["result"]
    found = {"accuracy": accuracy, "tasks": result.get("tasks")}
    # Without anything above the baselines there is nothing to keep.
    if accuracy is None or clean.get("accuracy", 0.0) <= clean.get("floor", 0.0):
        return found
    error, part = None, re.search(r"\[(\d+):(\d+)\]$", reference["args"]["probe"][1])
    if part:
        items = int(part[2]) - int(part[1])
        error = math.sqrt(accuracy * (1 - accuracy) / items) / (clean["accuracy"] - clean["floor"])
    return {
        **found,
        "kept": accuracy_kept(accuracy, clean["accuracy"], clean["floor"]),
        "kept_error": error,
    }


def _price(contents: Contents, content: Mapping[str, Any], pretraining: float | None) -> dict[str, Any]:
    """CPU seconds of a chain, and queries of the stealing that it begins with; neither where a part is not known.

    Args:
        pretraining: CPU seconds that pre-training the clean encoder took, where its record says so.
    """
    seconds, queries, victim = content["result"].get("seconds", 0.0), None, content["args"]["victim"]
    while name := victim.get("made"):
        if name not in contents:  # taken away, to be done again
            return {"attack_seconds": None, "thief_queries": None}
        made = contents[name]
        seconds += made["result"].get("seconds", 0.0)
        queries, victim = made["result"].get("queries"), made["args"]["victim"]
    share = seconds / pretraining if pretraining else None
    return {"attack_seconds": seconds, "share": share, "thief_queries": queries}


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows with p-values for those of schemes that rank among innocents of the same key.

    Innocents that cannot be scored are left out: they have no statistic to rank.
    """
    # Rows that have a p-value already are of an exact null.
    pools = controls([row for row in rows if row.log2_pvalue is None])
    found = []
    for row in rows:
        own = row.family if row.kind == "innocent" else None
        pool = [value for family, value in pools.get((row.encoder, row.scheme, row.seed), {}).items() if family != own]
        if row.log2_pvalue is None and pool:
            if row.statistic is not None:
                rank = control_rank_test(row.statistic, pool, n_queries=row.asked or 1)
                row = replace(row, log2_pvalue=rank.log2_pvalue, floor_log2=math.log2(rank.floor))
            elif row.applies:
                row = replace(row, floor_log2=-math.log2(len(pool) + 1))
        found.append(row)
    return found


def controls(rows: Sequence[Row]) -> dict[tuple[str, str, int], dict[str | None, float]]:
    """Encoder, scheme and seed of a key → family of innocents → largest statistic in it.

    Many of a benchmark's innocents are one copy behind different maps. Taking the largest of them makes a rank no
    smaller than any choice of one of them would.
    """
    pools: dict[tuple[str, str, int], dict[str | None, float]] = {}
    for row in rows:
        if row.kind == "innocent" and row.statistic is not None:
            pool = pools.setdefault((row.encoder, row.scheme, row.seed), {})
            pool[row.family] = max(row.statistic, pool.get(row.family, -math.inf))
    return pools


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """All rows as a Parquet file.

    Raises:
        MissingExtraError: pyarrow is not installed.
        OutputError: the file cannot be written.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("a Parquet file", "bench") from error
    kinds = {"Mapping": pa.string(), "int": pa.int64(), "float": pa.float64(), "str": pa.string()}
    schema = pa.schema(
        [
            (name, next((kind for word, kind in kinds.items() if word in str(field.type)), pa.string()))
            for name, field in Row.__dataclass_fields__.items()
        ]
    )
    buffer = pa.BufferOutputStream()
    lines = [{**asdict(row), "tasks": row.tasks and json.dumps(row.tasks)} for row in rows]
    pq.write_table(pa.Table.from_pylist(lines, schema=schema), buffer)
    write_atomic(path, buffer.getvalue().to_pybytes())
