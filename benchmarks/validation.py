"""The validation study of the exact scheme: error rates with intervals, from the results that are recorded here.

It reads `results/*.json` and the cells of `results/exact-cells.tar.xz`, fills the tables of docs/validation.md, and
writes the rates that an audit's report quotes, `src/sslguard/assets/validation.json`. Nothing is measured anew.

Run: python benchmarks/validation.py
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import RESULTS
from scipy.stats import binomtest

from sslguard.files import write_atomic
from sslguard.report.markdown import table
from sslguard.verification.nulls import DATED_TRIES, READINGS

HOME = Path(__file__).parent.parent
PAGE, RATES = HOME / "docs/validation.md", HOME / "src/sslguard/assets/validation.json"
LEVEL_BITS = 10
"""Of the level 2^-10, at which the study asks who is found; an audit's charges come on top."""
KEPT = 0.9
ANSWERS = {
    "embeddings": ("", ", sign bits"),
    "embeddings behind a linear map": (", rotated", ", PCA 32", ", half, rotated", ", condition 1e4"),
    "a classifier's numbers": (", logits", ", probabilities"),
    "labels": (", labels",),
}


def rate(found: int, n: int) -> dict[str, Any]:
    """Return a count with its share and its exact 95 % interval (Clopper and Pearson)."""
    interval = binomtest(found, n).proportion_ci()
    return {"found": found, "n": n, "share": found / n, "low": float(interval.low), "high": float(interval.high)}


def innocents() -> dict[str, dict[str, Any]]:
    """Return how many innocents are called derived at a level, under fresh secrets."""
    study = json.loads((RESULTS / "exact_innocents.json").read_bytes())
    cells = [cell["below"] for cell in study["cells"] if cell["witness"] == "verify"]
    n = study["pipelines"]
    return {
        level: rate(sum(round(cell[level] * n) for cell in cells), n * len(cells)) for level in ("0.1", "0.01", "0.001")
    }


def cells() -> Iterator[dict[str, Any]]:
    """Yield the recorded cells of the exact scheme."""
    with tarfile.open(RESULTS / "exact-cells.tar.xz") as archive:
        for member in archive:
            if member.isfile() and member.name.startswith("cells/"):
                file = archive.extractfile(member)
                assert file is not None
                yield json.loads(file.read())


def thieves() -> dict[str, dict[str, dict[str, Any]]]:
    """Return, by marking and kind of answers, how many copies are found after the charges of a dated claim."""
    needed, found = LEVEL_BITS + DATED_TRIES + READINGS, dict[str, dict[str, list[bool]]]()
    for cell in cells():
        named = re.fullmatch(
            r"attack-\w+-(head|gentle|weights)-0-(?:centred|mse|infonce)(.*)-[0-9a-f]{12}", cell["name"]
        )
        if cell["group"] != "attack" or named is None:
            continue
        behind = named[2]
        for kind, those in ANSWERS.items():
            if behind in {re.sub(r"[^a-z0-9.]+", "-", each.lower()).rstrip("-") for each in those}:
                row = found.setdefault(named[1], {}).setdefault(kind, [])
                row.append(cell["result"]["statistic"] >= needed)
    return {mark: {kind: rate(sum(r), len(r)) for kind, r in kinds.items()} for mark, kinds in found.items()}


def shown(found: dict[str, Any]) -> list[str]:
    """Return a rate as a table's cells."""
    return [
        f"{found['found']:,} of {found['n']:,}",
        f"{found['share']:.2%}",
        f"{found['low']:.2%} to {found['high']:.2%}",
    ]


def filled(page: str, name: str, content: str) -> str:
    """Return the page with a table between its marks."""
    begin, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{content.strip()}\n\n{end}{rest.split(end)[1]}"


def main() -> None:
    rates = {"innocents": innocents(), "copies": thieves(), "copies_level_bits": LEVEL_BITS}
    page = PAGE.read_text()
    head = ["level", "called derived", "share", "95 % interval"]
    page = filled(page, "innocents", table(head, [[level, *shown(r)] for level, r in rates["innocents"].items()]))
    names = {"head": "a head, strong", "gentle": "a head, gentle", "weights": "weights, strong"}
    rows = [[names[m], kind, *shown(r)] for m, kinds in rates["copies"].items() for kind, r in kinds.items()]
    page = filled(page, "copies", table(["mark", "the copy gives", "found", "share", "95 % interval"], rows))
    write_atomic(PAGE, page.encode())
    write_atomic(RATES, (json.dumps(rates, indent=1, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    main()
