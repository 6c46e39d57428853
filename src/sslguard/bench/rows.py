"""Convert results of cells into rows, one for each suspect, and write them to a Parquet file.

=====================  =============================================================================================
column                 meaning
=====================  =============================================================================================
kind                   "protected" (the encoder as served), "attack" or "innocent"
encoder, scheme, seed  of the key that the suspect is tested with
attack, set            of an attack or its twin; otherwise ""
suspect                name of the innocent or of the attack, or "protected"
family                 of an innocent: the training that it comes from; innocents of one family are not independent
statistic              score of the suspect; a larger one supports the claim
log2_pvalue            log₂ p of an exact null, or of the rank among innocents of the same key: the highest score of
                       each family counts, and the suspect's own family is left out
floor_log2             log₂ of the smallest p-value that this null can give
uncapped_bits          −log₂ p of an exact null, not limited by the entropy of the secret
published_log2_pvalue  log₂ p by the test of the scheme's own paper
accuracy, kept         probe accuracy in [0, 1]; share kept of the clean encoder's accuracy above its baselines
kept_error             standard error of kept, from the number of test items of the probe
tasks                  accuracy on each further task, by name
share                  CPU seconds of the attack divided by those of pre-training the clean encoder
watermark_rate         share of queries that the scheme's own paper counts as triggered
asked                  number of verification queries
thief_queries          number of queries of the first stealing step
attack_seconds         CPU seconds of all steps of the attack
mark_seconds           CPU seconds of protecting the encoder
refused                reason for a missing statistic: the suspect cannot be scored, or the attack does not apply
cell, date, config     name of the cell, date of its result, hash of the configuration
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
from sslguard.controls.members import read_population, shipped_population
from sslguard.errors import required_by
from sslguard.files import write_atomic
from sslguard.probes.baselines import accuracy_kept
from sslguard.stats.direction import SECRET_BITS
from sslguard.stats.significance import control_rank_test

Contents = Mapping[str, Mapping[str, Any]]
_MEASURED = ("statistic", "published_log2_pvalue", "watermark_rate", "asked")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A suspect; see the module."""

    kind: Literal["protected", "attack", "innocent"]
    encoder: str
    scheme: str
    seed: int
    attack: str
    set: str
    suspect: str
    family: str | None = None
    statistic: float | None = None
    log2_pvalue: float | None = None
    floor_log2: float | None = None
    uncapped_bits: float | None = None
    published_log2_pvalue: float | None = None
    watermark_rate: float | None = None
    accuracy: float | None = None
    tasks: Mapping[str, float] | None = None
    kept: float | None = None
    kept_error: float | None = None
    asked: int | None = None
    thief_queries: int | None = None
    attack_seconds: float | None = None
    share: float | None = None
    mark_seconds: float | None = None
    refused: str | None = None
    cell: str
    date: str
    config: str

    @property
    def applies(self) -> bool:
        """Whether the attack could be carried out, even if the scheme cannot score its result."""
        return self.refused is None or self.accuracy is not None

    @property
    def twin(self) -> bool:
        """Whether this is the clean encoder after an attack, an innocent."""
        return self.kind == "innocent" and bool(self.attack)

    def detected(self, log2_rate: float) -> bool | None:
        """Return whether the suspect is claimed at this false-claim rate, or None if the null cannot support the rate.

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
        """−log₂ p: 0 for a suspect that cannot be scored, because it is not claimed; None without a null."""
        return 0.0 if self.refused else None if self.log2_pvalue is None else abs(self.log2_pvalue)


def references(plan: Plan, contents: Contents) -> dict[str, Mapping[str, Any]]:
    """Return the result file of each clean encoder's cell that is done, by the encoder's name."""
    return {
        plan.about[cell.name]["encoder"]: contents[cell.name]
        for cell in plan.cells
        if cell.group == "reference" and cell.name in contents
    }


def rows_of(config: Config, plan: Plan, contents: Contents) -> list[Row]:
    """Return a row for each suspect of the cells that are done, with p-values by rank included."""
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
    """Return the family, by name, of each member that is a pruned copy of a clean encoder and has no own training."""
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
    pvalue, uncapped = result.get("log2_pvalue"), result.get("details", {}).get("log2_pvalue_uncapped")
    measured: dict[str, Any] = {name: result.get(name) for name in _MEASURED}
    return Row(
        kind=kind,
        suspect=suspect,
        **measured,
        log2_pvalue=pvalue,
        floor_log2=None if pvalue is None else -float(SECRET_BITS),
        uncapped_bits=None if uncapped is None else abs(uncapped),
        refused=result.get("refused") or result.get("unscored"),
        **common,
    )


def _kept(reference: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return accuracy and the share kept, if it was measured and the clean encoder's accuracy is known."""
    accuracy, clean = result.get("accuracy"), reference["result"]
    found = {"accuracy": accuracy, "tasks": result.get("tasks")}
    # The share is undefined if the clean encoder is not above its baselines.
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
    """Return the CPU seconds of a chain and the queries of its first stealing step.

    Both are None if the result of a cell of the chain is missing.

    Args:
        contents: Result files of all cells that are done, by name.
        content: Result file of the chain's last cell.
        pretraining: CPU seconds of pre-training the clean encoder, if its record holds them.
    """
    seconds, queries, victim = content["result"].get("seconds", 0.0), None, content["args"]["victim"]
    while name := victim.get("made"):
        if name not in contents:  # its result is out of date, and the cell runs again
            return {}
        made = contents[name]
        seconds += made["result"].get("seconds", 0.0)
        queries, victim = made["result"].get("queries"), made["args"]["victim"]
    share = seconds / pretraining if pretraining else None
    return {"attack_seconds": seconds, "share": share, "thief_queries": queries}


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with p-values added for schemes that rank a suspect among innocents of the same key.

    Innocents that cannot be scored do not count: they have no statistic to rank.
    """
    # Rows that already have a p-value come from an exact null.
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
    """Return the largest statistic of each family of innocents, for each key (encoder, scheme, seed).

    Many innocents of a benchmark are one copy behind different maps. Counting the largest statistic of a family gives
    a p-value at least as large as counting any other member of it.
    """
    pools: dict[tuple[str, str, int], dict[str | None, float]] = {}
    for row in rows:
        if row.kind == "innocent" and row.statistic is not None:
            pool = pools.setdefault((row.encoder, row.scheme, row.seed), {})
            pool[row.family] = max(row.statistic, pool.get(row.family, -math.inf))
    return pools


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """Write all rows to a Parquet file.

    Raises:
        MissingExtraError: pyarrow is not installed.
        OutputError: The file cannot be written.
    """
    with required_by("a Parquet file", "bench"):
        import pyarrow as pa
        import pyarrow.parquet as pq
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
