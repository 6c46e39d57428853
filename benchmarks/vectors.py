"""What users of marked vectors notice, and how much evidence survives what a service does to its vectors.

Vectors of 2,000 items, clean and marked by a head, for five sizes of the mark. *overlap@10* and the accuracy of a
linear probe are means over keys. One probe's accuracy moves by some tenths of a point under any small change of its
features. So probes are trained on several halves of the labelled items, clean and marked on the same ones.

Run: OMP_NUM_THREADS=1 python benchmarks/vectors.py [--keys 10] [--halves 2] [--encoders SPEC ...]
It writes docs/results/vectors.md and vectors.png too; some minutes an encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, items, options, prepare, save
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr, t

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.base import embed_all
from sslguard.encoders.load import load_encoder
from sslguard.files import write_atomic
from sslguard.probes.linear import linear_probe
from sslguard.report.charts import Theme, figure, write
from sslguard.report.markdown import table
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.exact.taking import NEIGHBOURS, Held, held_out, neighbours_kept
from sslguard.stats.moments import unit_rows

Rows = NDArray[np.float64]
ENCODERS = ("package:all-minilm-l6-v2", "shipped:simclr", "shipped:moco", "shipped:byol")
SIZES = (0.0025, 0.005, 0.01, 0.02, 0.05)
ITEMS, PAIRS, SEED, LABELLED = 2000, 200_000, 100, 4000
PAGE = Path(__file__).parent.parent / "docs" / "results" / "vectors.md"
PRESETS = {"strong": Exact(Protocol(), mode="head"), "gentle": replace(Exact.gentle(), mode="head")}


def int8(rows: Rows) -> Rows:
    """One scale a dimension, as vector stores quantise."""
    return np.round(rows / np.abs(rows).max(0) * 127).clip(-127, 127)


def rotated(rows: Rows) -> Rows:
    d = rows.shape[1]
    return (rows - rows.mean(0)) @ np.linalg.qr(np.random.default_rng(SEED).standard_normal((d, d)))[0]


SERVICES: dict[str, Callable[[Rows], Rows]] = {
    "as they are": lambda rows: rows,
    "rotated": rotated,
    "first half of the dimensions": lambda rows: unit_rows(rows[:, : rows.shape[1] // 2]),
    "first quarter": lambda rows: unit_rows(rows[:, : rows.shape[1] // 4]),
    "int8": int8,
    "binary": lambda rows: np.where(rows > 0, 1.0, 0.0),
    "binary of the first half": lambda rows: np.where(rows[:, : rows.shape[1] // 2] > 0, 1.0, 0.0),
}


class Bed:
    """Clean embeddings and statistics of one encoder, by role."""

    def __init__(self, spec: str) -> None:
        self.clean = load_encoder(spec)
        labelled = [items(spec, role) for role in ("probe_train", "probe_test")]
        sets: dict[str, Data] = {"mark": items(spec, "mark"), "look": items(spec, "verify")}
        sets |= dict(zip(("train", "test"), labelled, strict=True))
        self.sets = {name: data.slice(0, min(len(data), LABELLED)) for name, data in sets.items()}
        self.answers = {name: embed_all(self.clean, data).astype(np.float64) for name, data in self.sets.items()}
        self.statistics = {name: all_statistics(self.clean, data) for name, data in self.sets.items()}
        self.h = {name: unit_rows(rows) for name, rows in self.answers.items()}
        self.labels = {name: np.asarray(self.sets[name].labels) for name in ("train", "test")}

    def key(self, seed: int, preset: str = "strong") -> ExactKey:
        """The key of a secret, its size set by the preset's rule."""
        scheme = PRESETS[preset]
        kept, held = held_out(len(self.sets["mark"]))
        answers, statistics = self.answers["mark"], self.statistics["mark"]
        key = scheme.draw_key(self.clean, Secret.from_seed(seed), answers[kept], statistics[kept])
        return replace(key, size=Held(key, self.sets["mark"], held, answers, statistics).size(key, scheme))

    def marked(self, key: ExactKey, name: str) -> Rows:
        return self.h[name] + key.mark(key.bank.functions(self.h[name], self.statistics[name]))

    def overlap(self, key: ExactKey) -> float:
        n = min(ITEMS, len(self.h["look"]))
        return neighbours_kept(self.h["look"][:n], self.marked(key, "look")[:n], np.arange(min(n, 500)))

    def accuracy(self, train: Rows, test: Rows, half: int) -> float:
        chosen = np.random.default_rng(half).permutation(len(train))[: len(train) // 2]
        return linear_probe(train[chosen], self.labels["train"][chosen], test, self.labels["test"]).accuracy

    def lost(self, key: ExactKey, clean: list[float]) -> float:
        """Points of accuracy that the mark costs, mean over halves."""
        rows = [self.marked(key, name) for name in ("train", "test")]
        return 100 * float(np.mean([before - self.accuracy(*rows, half) for half, before in enumerate(clean)]))

    def bits(self, key: ExactKey, answers: Rows) -> float:
        functions = key.bank.functions(self.h["look"], self.statistics["look"])
        spectra, _ = key.spectra_of(answers, key.bank.placed(self.h["look"]), functions)
        return -key.sides(spectra).both


def felt(clean: Rows, marked: Rows) -> dict[str, float]:
    """Figures of retrieval, of vectors of length 1."""
    random = np.random.default_rng(SEED)
    a, b = random.integers(0, len(clean), (2, PAIRS))
    a, b = a[a != b], b[a != b]
    mixed = np.where(np.arange(len(clean))[:, None] % 2, clean, marked)
    every = np.arange(len(clean))
    return {
        "mixed": neighbours_kept(clean, mixed, every),
        "spearman": float(spearmanr((clean[a] * clean[b]).sum(1), (marked[a] * marked[b]).sum(1)).statistic),
        "self": float(((marked @ clean.T).argmax(1) == every).mean()),
    }


def figures(spec: str, keys: int, halves: int) -> dict[str, dict[str, Any]]:
    """Size or preset → what is felt, what it costs, and the bits of each service's vectors."""
    bed, found = Bed(spec), {}
    clean = [bed.accuracy(bed.h["train"], bed.h["test"], half) for half in range(halves)]
    for name in (*PRESETS, *SIZES):
        drawn = [bed.key(SEED + k, name if isinstance(name, str) else "strong") for k in range(keys)]
        if not isinstance(name, str):
            drawn = [replace(key, size=name) for key in drawn]
        lost = np.array([bed.lost(key, clean) for key in drawn])
        rows = unit_rows(bed.marked(drawn[0], "look"))
        found[str(name)] = {
            "size": float(np.mean([key.size for key in drawn])),
            "overlap": float(np.mean([bed.overlap(key) for key in drawn])),
            "lost": float(lost.mean()),
            "lost, 95 %": float(lost.mean() + t.ppf(0.95, keys - 1) * lost.std(ddof=1) / np.sqrt(keys)),
            "felt": felt(bed.h["look"], rows),
            "bits": {service: bed.bits(drawn[0], change(rows)) for service, change in SERVICES.items()},
            "bits of clean": {s: bed.bits(drawn[0], change(bed.h["look"])) for s, change in SERVICES.items()},
        }
        print(spec, name, found[str(name)], flush=True)
    return found


FELT = {"mixed": "mixed", "spearman": "Spearman", "self": "self"}


def page(found: Mapping[str, Mapping[str, Mapping[str, Any]]], keys: int) -> str:
    """docs/results/vectors.md."""
    parts = [
        "# What users of marked vectors notice",
        f"Written by `benchmarks/vectors.py`. {ITEMS:,} items are embedded twice: clean, and marked by a head, for "
        f"each preset and for five sizes E of the mark; {keys} keys each.",
        "The first table of each encoder compares the two. *overlap@10*: the share of an item's ten nearest neighbours "
        "that stay the same. *lost*: points of accuracy that a linear probe loses, and the upper end of its 95 % bound "
        "over keys. *mixed*: the overlap when every other vector of the index is marked, as after an update of the "
        "encoder. *Spearman*: rank correlation between clean and marked cosines of pairs. *self*: the share of marked "
        "vectors whose nearest clean vector belongs to the same item.",
        f"The second table gives the evidence of one key's own test on {ITEMS:,} answers, in bits before the cap of "
        "256, once a service has changed its vectors as the row says. The last column is the largest that any of "
        "these sizes finds in the clean encoder's vectors, changed in the same way.",
        "![Bits, overlap and accuracy](vectors.png)",
    ]
    for spec, rows in found.items():
        parts.append(f"## {spec}")
        lines = [
            [
                name,
                *(f"{row['size']:.4f}", f"{row['overlap']:.2f}", f"{row['lost']:.2f}, ≤ {row['lost, 95 %']:.2f}"),
                *(f"{row['felt'][kind]:.3f}" for kind in FELT),
            ]
            for name, row in rows.items()
        ]
        parts.append(table(["mark", "E", f"overlap@{NEIGHBOURS}", "lost", *FELT.values()], lines))
        survived = [
            [
                name,
                *(f"{row['bits'][name]:.0f}" for row in rows.values()),
                f"{max(row['bits of clean'][name] for row in rows.values()):.1f}",
            ]
            for name in SERVICES
        ]
        parts.append(table(["bits", *rows, "clean"], survived))
    return "\n\n".join(parts) + "\n"


def picture(found: Mapping[str, Mapping[str, Mapping[str, Any]]], theme: Theme) -> Figure:
    """Bits behind a rotation, and points lost, by the share of neighbours that stay."""
    drawn = figure(9.6, 4.0)
    left, right = drawn.subplots(1, 2)
    for k, (spec, rows) in enumerate(found.items()):
        chosen = [rows[str(size)] for size in SIZES]
        overlap = [row["overlap"] for row in chosen]
        style = {"color": theme.palette[k], "marker": "oDs^"[k % 4], "label": spec.partition(":")[2]}
        left.plot(overlap, [row["bits"]["rotated"] for row in chosen], **style)
        right.plot(overlap, [row["lost"] for row in chosen], **style)
    left.set(xlabel="overlap@10", ylabel="bits behind a rotation, before the cap", yscale="log")
    right.set(xlabel="overlap@10", ylabel="points of accuracy lost")
    right.axhline(0, color=theme.grid)
    left.legend()
    return drawn


def main() -> None:
    given = options(__doc__, keys=10, halves=2, encoders=ENCODERS)
    prepare()
    found = {spec: figures(spec, given.keys, given.halves) for spec in given.encoders}
    save("vectors", {"keys": given.keys, "halves": given.halves, "encoders": found})
    write_atomic(PAGE, page(found, given.keys).encode())
    write(PAGE.with_suffix(".png"), picture, found)
    print(PAGE.read_text(), f"\n{RESULTS / 'vectors.json'}")


if __name__ == "__main__":
    main()
