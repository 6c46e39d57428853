"""Are the exact test's p-values uniform on innocents? 100,000 redrawn directions on fixed witnesses of each kind.

Synthetic embeddings; the witnesses are computed once, and only the directions are drawn again, as under the null that
the theorem speaks of. This tests the arithmetic of witness, range and tail. That no part of a key lets the directions
into a witness is for tests of whole keys.

Run: python benchmarks/exact_calibration.py
"""

from __future__ import annotations

import numpy as np
from common import options, save
from scipy import stats

from sslguard.report.markdown import table
from sslguard.stats import witness
from sslguard.stats.corrections import holm
from sslguard.stats.direction import log2_tail
from sslguard.stats.moments import Moments

Array = np.ndarray
N, D, K, DRAWS, CHUNK, SEED = 2000, 64, 16, 100_000, 2000, 20_261_125
LEVELS = (0.05, 0.01, 0.001)
Cell = tuple[str, str]


def smooth(h: Array, rng: np.random.Generator, width: int) -> Array:
    """Random cosines of six leading principal components, of mean 0 and variance 1."""
    left = np.linalg.svd(h - h.mean(0), full_matrices=False)[0][:, :6] * np.sqrt(len(h))
    raw = np.cos(left @ rng.standard_normal((6, width)) * 1.5 / np.sqrt(6) + rng.uniform(0, 2 * np.pi, width))
    return (raw - raw.mean(0)) / raw.std(0)


def embeddings(rng: np.random.Generator) -> Array:
    """(N, D) rows of length 1 and sum 0, as after a layer norm."""
    h = rng.standard_normal((N, D)) * np.linspace(1, 0.1, D)
    h -= h.mean(1, keepdims=True)
    return h / np.linalg.norm(h, axis=1, keepdims=True)


def spread_of(h: Array) -> Array:
    _, sizes, axes = np.linalg.svd(h - h.mean(0), full_matrices=False)
    spread = (axes.T * np.sqrt(sizes)) @ axes
    return spread * np.sqrt(D) / np.linalg.norm(spread)


def innocents(h: Array, phi: Array, spread: Array, rng: np.random.Generator) -> dict[str, Array]:
    """Answers (N, m) of suspects that no direction had a part in."""
    other = h + 0.3 * smooth(h, rng, K) @ rng.standard_normal((K, D)) @ spread / K
    tuned = h + 0.1 * smooth(h, rng, 200) @ rng.standard_normal((200, D)) / 200
    independent = np.tanh(3 * h @ rng.standard_normal((D, D)))
    logits = tuned @ rng.standard_normal((D, 10))
    outlier = independent.copy()
    outlier[7, 3] = 1e12
    missing = independent * (np.arange(N) % 2)[:, None]
    return {
        "clean copy, single precision": h.astype(np.float32),
        "linear map of it": (h @ rng.standard_normal((D, D))).astype(np.float32),
        "another key's mark": other,
        "the same features, other directions": h + 0.3 * phi @ rng.standard_normal((K, D)) @ spread / K,
        "fine-tuned": tuned,
        "independent encoder": independent,
        "its 16 leading components": independent @ np.linalg.svd(independent, full_matrices=False)[2][:16].T,
        "10 logits": logits,
        "one-hot labels": np.eye(10)[logits.argmax(1)],
        "one column": logits[:, :1],
        "Cauchy noise": rng.standard_cauchy((N, D)),
        "one outlier of 1e12": outlier,
        "half of the answers missing": missing,
        "a constant": np.full((N, D), 0.3),
    }


def witnesses(rng: np.random.Generator) -> dict[Cell, list[tuple[Array, Array | None]]]:
    """Per suspect and witness: V (K, D) alone and, where there is one, with the known range of its fit."""
    h = embeddings(rng)
    phi, spread = smooth(h, rng, K), spread_of(h)
    cases = [(name, slice(None), g) for name, g in innocents(h, phi, spread, rng).items()]
    # Fewer queries than dimensions; fewer still than h's own rank would leave nothing of φ, and p = 1.
    low = h[:, :10] @ rng.standard_normal((10, D))
    cases += [(f"n = {n}", slice(n), np.tanh(low @ rng.standard_normal((D, D)))[:n]) for n in (5, 20, 40)]
    found: dict[Cell, list[tuple[Array, Array | None]]] = {}
    for name, rows, g in cases:
        clean = low if name.startswith("n =") else h
        moments = Moments(D, K, g.shape[1])
        moments.update(clean[rows], phi[rows], g)
        for asked, (v, basis) in witness.witnesses(moments, spread).items():
            found[name, asked] = [(v, None)] + ([(v, basis)] if basis is not None else [])
    return found


def pvalues(v: Array, basis: Array | None, directions: Array) -> Array:
    """P-values (n,) of `direction_test` for directions (n, K, D)."""
    if not v.any():
        return np.ones(len(directions))
    if basis is not None:
        v, directions = v @ basis, directions @ basis
    flat = directions.reshape(len(directions), -1)
    cosines = flat @ v.ravel() / (np.linalg.norm(flat, axis=1) * np.linalg.norm(v))
    return 2 ** log2_tail(np.clip(cosines, -1, 1), v.size)


def main() -> None:
    options(__doc__)
    rng = np.random.default_rng(SEED)
    cells = {
        (suspect, witness, "all" if basis is None else f"{basis.shape[1]}"): (v, basis)
        for (suspect, witness), cases in witnesses(rng).items()
        for v, basis in cases
    }
    p = {cell: np.empty(DRAWS) for cell in cells}
    for start in range(0, DRAWS, CHUNK):
        # A direction's length cancels in the cosine: normals need no normalising.
        directions = rng.standard_normal((CHUNK, K, D))
        for cell, (v, basis) in cells.items():
            p[cell][start : start + CHUNK] = pvalues(v, basis, directions)
    report(cells, p)


def report(cells: dict[tuple[str, str, str], tuple[Array, Array | None]], p: dict) -> None:
    """Print and save, by cell, the shares below each level and Kolmogorov-Smirnov against the uniform law."""
    live = [cell for cell in cells if cells[cell][0].any()]
    uniform = {cell: float(stats.kstest(p[cell], "uniform").pvalue) for cell in live}
    below = {cell: {f"P(p<{level})": float((p[cell] < level).mean()) for level in LEVELS} for cell in cells}
    adjusted = 2 ** holm(np.log2(list(uniform.values())))
    rows = [
        [*cell, *(f"{share:.5f}" for share in below[cell].values()), uniform[cell], float(holmed)]
        for cell, holmed in zip(live, adjusted, strict=True)
    ]
    print(table(["suspect", "witness", "range", *(f"P(p<{level})" for level in LEVELS), "KS p", "KS p, Holm"], rows))
    summary: dict[str, object] = {"cells": len(live), "smallest KS p after Holm": float(adjusted.min())}
    for level in LEVELS:
        shares = [below[cell][f"P(p<{level})"] for cell in live]
        tests = [stats.binomtest(round(share * DRAWS), DRAWS, level).pvalue for share in shares]
        low, high = stats.binom.ppf([0.025 / len(live), 1 - 0.025 / len(live)], DRAWS, level) / DRAWS
        summary[f"P(p<{level})"] = {
            "least": min(shares),
            "largest": max(shares),
            "exact 95 % bounds over all cells": [float(low), float(high)],
            "smallest binomial p after Holm": float(2 ** holm(np.log2(tests)).min()),
        }
    shown = {cell[:2] for cell in live}
    nothing = sorted({f"{suspect}: {witness}" for suspect, witness, _ in cells if (suspect, witness) not in shown})
    print(f"\n{summary}\nwitness 0, so p = 1: {'; '.join(nothing)}")
    settings = {"n": N, "d": D, "K": K, "draws": DRAWS, "seed": SEED}
    figures = [
        {"suspect": cell[0], "witness": cell[1], "range": cell[2], "ks": uniform.get(cell), **below[cell]}
        for cell in cells
    ]
    save("exact_calibration", {"settings": settings, "summary": summary, "cells": figures, "p = 1": nothing})


if __name__ == "__main__":
    main()
