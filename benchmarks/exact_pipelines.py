"""Are the exact scheme's p-values uniform on innocents? Whole pipelines, each from a fresh master secret.

A pipeline marks the clean SimCLR encoder with a head, makes the key, asks six innocents its queries and tests them,
all through the functions that `sslguard watermark` and `sslguard verify` call. Per innocent and witness:
Kolmogorov-Smirnov against the uniform law where the witness is not 0, and how many p-values lie below some levels; Holm
over the cells. Of `verify`'s own p-values, which Bonferroni makes too large, only the share below each level is shown.

Then the null population, every member under a fresh secret of its own: how small their p-values are, Bonferroni over
all members.

Run: python benchmarks/exact_pipelines.py [--pipelines 2000] [--workers 2]
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

import numpy as np
from common import data, options, prepare, save
from numpy.typing import NDArray
from scipy import stats

from sslguard.attacks.mapping import Classify
from sslguard.controls.members import read_population, shipped_population
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch
from sslguard.encoders.base import Embedder, Encoder
from sslguard.encoders.load import load_encoder
from sslguard.report.markdown import table
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.stats.corrections import holm
from sslguard.verification.verdict import ask, score_suspect

SCHEME = Exact(Protocol(n_queries=400), mode="head")
MARKING_ITEMS, ASKED_ITEMS = 500, 600
LEVELS = (0.1, 0.01, 0.001)
FIRST_SEED = 10_000


def marked(seed: int) -> tuple[Encoder, ExactKey]:
    """The clean encoder as the owner of this secret marks it."""
    made = SCHEME.watermark(
        load_encoder("shipped:simclr"), data("mark").slice(0, MARKING_ITEMS), secret=Secret.from_seed(seed)
    )
    assert isinstance(made.key, ExactKey)
    return made.encoder, made.key


class Remembered:
    """A suspect that is a fixed function of one item, asked for each item once."""

    def __init__(self, suspect: Embedder) -> None:
        self.suspect = suspect
        self.known: dict[bytes, NDArray[np.floating]] = {}

    def embed(self, batch: Batch, /) -> NDArray[np.floating]:
        names = [hashlib.sha256(np.ascontiguousarray(item).tobytes()).digest() for item in batch]
        fresh = [k for k, name in enumerate(names) if name not in self.known]
        if fresh:
            self.known |= zip((names[k] for k in fresh), self.suspect.embed(batch[fresh]), strict=True)
        return np.stack([self.known[name] for name in names])


@cache
def innocents() -> dict[str, Embedder]:
    """Fixed: none of them depends on any secret that is drawn here."""
    clean = load_encoder("shipped:simclr")
    members = {member.name: member for member in read_population(shipped_population())}
    surrogate = next(m for name, m in sorted(members.items()) if name.startswith("surrogate-simclr"))
    suspects: dict[str, Embedder] = {
        "clean": clean,
        "surrogate of clean": surrogate.load(),
        "independent": load_encoder("shipped:moco"),
        "another encoder": load_encoder("shipped:byol"),
        "another key's mark": marked(FIRST_SEED - 1)[0],
        "logits of clean": Classify()(clean, data("tune").slice(0, 1000)),
    }
    return {name: Remembered(suspect) for name, suspect in suspects.items()}


def pipeline(seed: int) -> dict[str, dict[str, float]]:
    """Innocent → witness, or "verify" → p-value."""
    _, key = marked(seed)
    asked, found = data("verify").slice(0, ASKED_ITEMS), {}
    for name, suspect in innocents().items():
        witnesses = key.witnesses(key.moments(ask(key, suspect, asked), asked))
        each = {w: key.test({w: made}, n_queries=key.n_queries).pvalue for w, made in witnesses.items()}
        found[name] = {**each, "verify": key.test(witnesses, n_queries=key.n_queries).pvalue}
    return found


def member_alone(number: int) -> tuple[str, float]:
    """A member of the null population and log2 of its p-value under a secret that nobody else is tested with."""
    member = read_population(shipped_population())[number]
    _, key = marked(FIRST_SEED + 1_000_000 + number)
    found = score_suspect(key, member.load(), data("verify").slice(0, ASKED_ITEMS)).evidence
    assert found is not None
    return member.name, found.log2_pvalue


def main() -> None:
    given = options(__doc__, pipelines=2000, workers=2)
    seeds = range(FIRST_SEED, FIRST_SEED + given.pipelines)
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn"), initializer=prepare) as pool:
        alone = dict(pool.map(member_alone, range(len(read_population(shipped_population()))), chunksize=4))
        runs = list(pool.map(pipeline, seeds, chunksize=8))
    cells = []
    for name, witness in ((innocent, w) for innocent, found in runs[0].items() for w in found):
        p = np.array([run[name][witness] for run in runs])
        # A witness of 0 has p = 1, as the clean encoder's can be but for rounding; given that it is none, p is uniform.
        shown = p[p < 1]
        uniform = float(stats.kstest(shown, "uniform").pvalue) if witness != "verify" and len(shown) else None
        below = {str(level): float((p <= level).mean()) for level in LEVELS}
        nothing = float((p == 1).mean())
        cells.append({"innocent": name, "witness": witness, "below": below, "nothing": nothing, "uniform": uniform})
    tested = [cell["uniform"] for cell in cells if cell["uniform"] is not None]
    adjusted = 2.0 ** holm(np.log2([max(value, 1e-300) for value in tested]))
    figures = {
        "pipelines": given.pipelines,
        "least p of uniformity, Holm": float(adjusted.min()),
        "population, log2 p": alone,
        "population, least p after Bonferroni": min(1.0, 2 ** min(alone.values()) * len(alone)),
        "cells": cells,
    }
    rows = [
        [c["innocent"], c["witness"], *c["below"].values(), c["nothing"], "" if c["uniform"] is None else c["uniform"]]
        for c in cells
    ]
    print(table(["innocent", "witness", *(f"p ≤ {level:g}" for level in LEVELS), "V = 0", "uniform"], rows))
    print(f"least p of uniformity after Holm over {len(tested)} cells: {adjusted.min():.3f}")
    least = min(alone, key=alone.__getitem__)
    print(
        f"null population, a fresh secret each: least p of {len(alone)} is {2 ** alone[least]:.4f} ({least}), "
        f"after Bonferroni {figures['population, least p after Bonferroni']:.3f}"
    )
    save("exact_pipelines", figures)


if __name__ == "__main__":
    main()
