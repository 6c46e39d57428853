"""Measure what users of marked vectors notice, and how much evidence survives what a service does to its vectors.

Clean and marked vectors of the same 2,000 items are compared by cosine. The page explains each column. *Spearman* is
taken over the cosines of 200,000 pairs.

Run: OMP_NUM_THREADS=1 python benchmarks/vectors.py   (writes docs/results/vectors.md too; some minutes)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, items, options, prepare, save
from numpy.typing import NDArray
from scipy.stats import spearmanr

from sslguard.crypto.secrets import Secret
from sslguard.encoders.base import embed_all
from sslguard.encoders.heads import Headed
from sslguard.encoders.load import load_encoder
from sslguard.files import write_atomic
from sslguard.report.markdown import table
from sslguard.schemes.exact.bank import Bank
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.exact.key import ExactKey, stream_context
from sslguard.schemes.exact.marking import headed
from sslguard.schemes.exact.protocol import Protocol
from sslguard.stats.moments import Moments, unit_rows

Rows = NDArray[np.float64]
ENCODERS = ("package:all-minilm-l6-v2", "shipped:simclr")
EPSILONS = (0.05, 0.1, 0.2, 0.3)
ITEMS, NEAREST, PAIRS, SEED = 2000, 10, 200_000, 1
PAGE = Path(__file__).parent.parent / "docs" / "results" / "vectors.md"


def int8(rows: Rows) -> Rows:
    """One scale a dimension, as vector stores quantise."""
    return np.round(rows / np.abs(rows).max(0) * 127).clip(-127, 127)


SERVICES: dict[str, Callable[[Rows], Rows]] = {
    "as they are": lambda rows: rows,
    "re-normalised": unit_rows,
    "first half of the dimensions": lambda rows: unit_rows(rows[:, : rows.shape[1] // 2]),
    "first quarter": lambda rows: unit_rows(rows[:, : rows.shape[1] // 4]),
    "int8": int8,
    "binary": lambda rows: np.where(rows > 0, 1.0, 0.0),
    "binary of the first half": lambda rows: np.where(rows[:, : rows.shape[1] // 2] > 0, 1.0, 0.0),
}


def nearest(queries: Rows, index: Rows) -> NDArray[np.int64]:
    """The nearest others of item i for query i, (n, 10)."""
    cosines = queries @ index.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argpartition(-cosines, NEAREST, axis=1)[:, :NEAREST]


def overlap(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Mean share of neighbours in common."""
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(one, other, strict=True)]) / NEAREST)


def felt(clean: Rows, marked: Rows) -> dict[str, float]:
    """Figures of retrieval, of vectors of length 1."""
    random = np.random.default_rng(SEED)
    a, b = random.integers(0, len(clean), (2, PAIRS))
    a, b = a[a != b], b[a != b]
    mixed = np.where(np.arange(len(clean))[:, None] % 2, clean, marked)
    before = nearest(clean, clean)
    return {
        "overlap": overlap(before, nearest(marked, marked)),
        "mixed": overlap(before, nearest(mixed, mixed)),
        "spearman": float(spearmanr((clean[a] * clean[b]).sum(1), (marked[a] * marked[b]).sum(1)).statistic),
        "self": float(((marked @ clean.T).argmax(1) == np.arange(len(clean))).mean()),
    }


def bits(key: ExactKey, h: Rows, phi: Rows, answers: Rows) -> float:
    """-log2 p of answers to the items whose clean embeddings are h."""
    moments = Moments(h.shape[1], phi.shape[1], answers.shape[1])
    moments.update(h, phi, answers)
    return abs(key.test(key.witnesses(moments), n_queries=len(h)).log2_pvalue)


def figures(spec: str) -> dict[str, dict[str, dict[str, float]]]:
    """ε → what is felt, and the bits of each service's answers."""
    clean = load_encoder(spec)
    mark, look = (items(spec, role).slice(0, ITEMS) for role in ("mark", "verify"))
    seen, psi = embed_all(clean, mark), all_statistics(clean, mark)
    answers, statistics = embed_all(clean, look), all_statistics(clean, look)
    h = unit_rows(answers.astype(np.float64))
    found = {}
    for epsilon in EPSILONS:
        secret, protocol = Secret.from_seed(SEED), Protocol(epsilon=epsilon, n_queries=len(look))
        bank = Bank.draw(secret, seen, psi, protocol, stream_context(clean, protocol))
        key = ExactKey(secret, protocol, bank, clean, "0" * 64)
        module = headed(clean, bank, key.directions(), epsilon).module
        assert isinstance(module, Headed)
        with torch.inference_mode():
            marked = module.head(torch.from_numpy(answers).float(), torch.from_numpy(statistics).float()).numpy()
        rows, phi = marked.astype(np.float64), bank.features(h, statistics)
        survived = {name: bits(key, h, phi, change(rows)) for name, change in SERVICES.items()}
        unmarked = {name: bits(key, h, phi, change(answers.astype(np.float64))) for name, change in SERVICES.items()}
        found[f"{epsilon:g}"] = {"felt": felt(h, unit_rows(rows)), "bits": survived, "bits of clean": unmarked}
    return found


def page(found: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> str:
    """docs/results/vectors.md."""
    parts = [
        "# What users of marked vectors notice",
        f"Written by `benchmarks/vectors.py`. {ITEMS:,} items are embedded twice: clean, and marked by a head with a "
        "mark of size ε = 0.05 to 0.3 (the default is 0.2).",
        "The first table of each encoder compares the two. *overlap@10*: the share of an item's ten nearest "
        "neighbours that stay the same. *mixed*: the same, when every other vector of the index is marked, as after an "
        "update of the encoder. *Spearman*: rank correlation between clean and marked cosines of pairs. *self*: the "
        "share of marked vectors whose nearest clean vector belongs to the same item.",
        f"The second table gives the evidence, in bits of at most 256: −log₂ p of the key's test on {ITEMS:,} answers, "
        "after a service has changed its vectors as the row says. The last column is the largest evidence that any of "
        "these keys finds in the clean encoder's vectors, changed in the same way.",
    ]
    for spec, rows in found.items():
        parts.append(f"## {spec}")
        felt_rows = [[e, *(f"{row['felt'][name]:.3f}" for name in FELT)] for e, row in rows.items()]
        parts.append(table(["ε", *FELT.values()], felt_rows))
        survived = [
            [
                name,
                *(f"{row['bits'][name]:.0f}" for row in rows.values()),
                f"{max(row['bits of clean'][name] for row in rows.values()):.1f}",
            ]
            for name in SERVICES
        ]
        parts.append(table(["bits", *(f"ε {epsilon}" for epsilon in rows), "clean"], survived))
    return "\n\n".join(parts) + "\n"


FELT = {"overlap": "overlap@10", "mixed": "mixed", "spearman": "Spearman", "self": "self"}


def main() -> None:
    options(__doc__)
    prepare()
    found = {spec: figures(spec) for spec in ENCODERS}
    save("vectors", {"encoders": found})
    write_atomic(PAGE, page(found).encode())
    print(PAGE.read_text(), f"\n{RESULTS / 'vectors.json'}")


if __name__ == "__main__":
    main()
