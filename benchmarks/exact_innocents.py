"""Does the exact scheme accuse innocents? Whole pipelines with fresh secrets; secrets drawn anew on fixed witnesses.

A pipeline makes a key for the clean SimCLR encoder, asks innocents its queries and tests their answers, all through the
functions that `sslguard watermark` and `sslguard verify` call. Each single witness that is not 0 should
have a uniform p-value: Kolmogorov-Smirnov against the uniform law. The two sides after Bonferroni and their combination
may be larger than uniform, never smaller: the same test, one-sided. Holm over all cells. Left and right should not
correlate.

Then, of each innocent's answers, the witnesses of one pipeline stay and the secrets are drawn anew, 100,000 times: A on
the left; on the right G, for five A.

Last, each member of the null population meets a secret of its own: how small their p-values are.

Run: python benchmarks/exact_innocents.py [--pipelines 2000] [--draws 100000] [--workers 2]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

import numpy as np
from common import data, options, prepare, save
from numpy.typing import NDArray
from scipy import stats

from sslguard.attacks.mapping import Classify, LinearMap
from sslguard.bench.work import remembering
from sslguard.controls.members import read_population, shipped_population
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.data.own import own_data
from sslguard.encoders.base import Embedder, Encoder, embed_all
from sslguard.encoders.load import load_encoder
from sslguard.report.markdown import table
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.stats.corrections import holm
from sslguard.stats.direction import log2_tail
from sslguard.verification.verdict import ask, score_suspect

SCHEME = Exact(Protocol(n_queries=500), mode="head")
MARKING_ITEMS, ASKED_ITEMS = 500, 600
LEVELS = (0.1, 0.01, 0.001)
FIRST_SEED, OTHERS, MIXTURES = 10_000, 1_000_000, 5
SINGLE = "log2 p of "
TOGETHER = ("left", "right", "both", "verify")


@cache
def asked() -> Data:
    """The items that are asked about, in memory: the test bed draws them anew at each access."""
    return own_data(data("verify").take(range(ASKED_ITEMS)))


@cache
def clean() -> Encoder:
    """The clean encoder, which is asked about each item once."""
    return remembering(load_encoder("shipped:simclr"), asked())


def marked(seed: int) -> ExactKey:
    """The key of this secret. The mark itself is not put on: no innocent carries it."""
    return SCHEME.draw_key(clean(), Secret.from_seed(seed), *_owned())


@cache
def _owned() -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """The clean encoder's answers to the marking items, and their statistics."""
    items = data("mark").slice(0, MARKING_ITEMS)
    return embed_all(clean(), items), all_statistics(clean(), items)


@cache
def innocents() -> dict[str, Embedder]:
    """Fixed: none of them depends on any secret that is drawn here."""
    members = {member.name: member for member in read_population(shipped_population())}
    surrogate = next(m for name, m in sorted(members.items()) if name.startswith("surrogate-simclr"))
    other = SCHEME.watermark(
        load_encoder("shipped:simclr"), data("mark").slice(0, MARKING_ITEMS), secret=Secret.from_seed(FIRST_SEED - 1)
    )
    stolen, known, tune = surrogate.load(), asked(), data("tune").slice(0, 1000)
    stolen = remembering(stolen, known)
    return {
        "clean": clean(),
        "surrogate of clean": stolen,
        "its answers rotated": LinearMap(seed=1)(stolen, tune),
        "its logits": Classify()(stolen, tune),
        "its probabilities": Classify("probabilities", digits=4)(stolen, tune),
        "its labels": Classify("labels")(stolen, tune),
        "independent": remembering(load_encoder("shipped:moco"), known),
        "another key's mark": remembering(other.encoder, known),
    }


def pipeline(seed: int) -> dict[str, dict[str, float]]:
    """Innocent → witness or side → log2 of its p-value."""
    key, found = marked(seed), {}
    for name, suspect in innocents().items():
        tested = key.test(*key.spectra(ask(key, suspect, asked()), asked()))
        said = tested.details
        each = {name.removeprefix(SINGLE): value for name, value in said.items() if name.startswith(SINGLE)}
        sides = {"left": -said["left_bits"], "right": -said["right_bits"], "both": said["log2_pvalue_uncapped"]}
        found[name] = {**each, **sides, "verify": tested.log2_pvalue}
    return found


def redrawn(name: str, draws: int) -> dict[str, NDArray[np.float64]]:
    """Witness → p-values of `draws` secrets, the innocent's answers and the pipeline's witnesses fixed."""
    key, rng = marked(FIRST_SEED), np.random.default_rng(FIRST_SEED)
    spectra, _ = key.spectra(ask(key, innocents()[name], asked()), asked())
    found, (b, r), q = {}, key.left().shape, key.right().shape[1]
    for witness, s in key.left_witnesses(spectra).items():
        logs = np.zeros(draws)
        for _ in range(r):
            columns = rng.standard_normal((draws, b))
            share = np.square(columns @ s).sum(1) / np.square(columns).sum(1)
            logs += np.log(np.maximum(stats.beta.sf(share, s.shape[1] / 2, (b - s.shape[1]) / 2), 1e-300))
        found[f"left, {witness}"] = stats.gamma.sf(-logs, r) if s.any() else np.ones(draws)
    for _ in range(MIXTURES):
        mixtures = key.bank.weights[:, None] * rng.standard_normal((b, r))
        for witness, (v, basis) in key.right_witnesses(spectra, mixtures).items():
            n = draws // MIXTURES
            axes = np.eye(q) if basis is None else basis
            rows = rng.standard_normal((n, r * axes.shape[1]))
            placed = (v @ axes).ravel()
            cosines = rows @ placed / np.linalg.norm(rows, axis=1) / max(float(np.linalg.norm(placed)), 1e-300)
            p = 2 ** log2_tail(np.clip(cosines, -1, 1), placed.size) if v.any() else np.ones(n)
            found[f"right, {witness}"] = np.concatenate([found.get(f"right, {witness}", np.empty(0)), p])
    return found


def member_alone(number: int) -> tuple[str, float]:
    """A member of the null population and log2 of its p-value under a secret that nobody else is tested with."""
    member = read_population(shipped_population())[number]
    found = score_suspect(marked(FIRST_SEED + OTHERS + number), member.load(), asked()).evidence
    assert found is not None
    return member.name, found.log2_pvalue


def cell(innocent: str, witness: str, p: NDArray[np.float64]) -> dict[str, object]:
    """What there is to say of the p-values of a witness or side on an innocent."""
    shown = p[p < 1] if witness not in TOGETHER else p
    # Large p-values are allowed of a corrected side: only too many small ones count.
    kind = "greater" if witness in TOGETHER else "two-sided"
    uniform = float(stats.kstest(shown, "uniform", alternative=kind).pvalue) if len(shown) else None
    below = {str(level): float((p <= level).mean()) for level in LEVELS}
    return {"innocent": innocent, "witness": witness, "below": below, "nothing": float((p == 1).mean()), "ks": uniform}


def main() -> None:
    given = options(__doc__, pipelines=2000, draws=100_000, workers=2)
    seeds, names = range(FIRST_SEED, FIRST_SEED + given.pipelines), list(innocents())
    members = range(len(read_population(shipped_population())))
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn"), initializer=prepare) as pool:
        alone = dict(pool.map(member_alone, members, chunksize=4))
        again = list(pool.map(redrawn, names, [given.draws] * len(names)))
        runs = list(pool.map(pipeline, seeds, chunksize=8))
    cells = [cell(n, w, 2.0 ** np.array([run[n][w] for run in runs])) for n in names for w in runs[0][n]]
    drawn = [cell(n, w, p) for n, found in zip(names, again, strict=True) for w, p in found.items()]
    sides = {n: tuple(np.array([run[n][side] for run in runs]) for side in ("left", "right")) for n in names}
    correlations = {n: float(stats.spearmanr(*pair).statistic) for n, pair in sides.items()}
    figures = {
        "pipelines": given.pipelines,
        "draws": given.draws,
        **{f"least p of uniformity, {n}": _least(found) for n, found in (("pipelines", cells), ("draws", drawn))},
        "correlation of left and right": correlations,
        "population, log2 p": alone,
        "population, least p after Bonferroni": min(1.0, 2 ** min(alone.values()) * len(alone)),
        "cells": cells,
        "cells of draws": drawn,
    }
    rows = [
        [c["innocent"], c["witness"], *c["below"].values(), c["nothing"], "" if c["ks"] is None else c["ks"]]
        for c in [*(c for c in cells if c["witness"] in TOGETHER), *drawn]
        if isinstance(c["below"], Mapping)
    ]
    print(table(["innocent", "witness", *(f"p ≤ {level:g}" for level in LEVELS), "p = 1", "KS"], rows))
    for name, value in figures.items():
        if not isinstance(value, list | dict):
            print(f"{name}: {value:g}")
    print(f"largest correlation: {max(map(abs, correlations.values())):.3f} (chance: {2 / math.sqrt(len(runs)):.3f})")
    save("exact_innocents", figures)


def _least(cells: list[dict[str, object]]) -> float:
    """The smallest p of uniformity, Holm over the cells."""
    tested = [float(c["ks"]) for c in cells if isinstance(c["ks"], float)]
    return float(2.0 ** holm(np.log2([max(value, 1e-300) for value in tested])).min())


if __name__ == "__main__":
    main()
