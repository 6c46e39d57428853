"""Does the cured SSLGuard accuse innocents no more often than its level? Every innocent meets a fresh secret.

For each of two clean encoders F, all members of the null population and the clean encoders are innocents. For each of
them a key is drawn as `sslguard watermark` draws it, and the innocent is asked and judged by `verify`. F* is not
trained: no innocent and no test depends on it. Printed: how many p-values lie below each level, with the chance of as
many or more; Kolmogorov-Smirnov against the uniform law, for both tests and their combination.

Then the answers are kept and only v and b are drawn again, --redraws times: Kolmogorov-Smirnov for each innocent and
test, Holm over all; the same for the correlation of both tests.

Run: python benchmarks/sslguard_innocents.py [--redraws 100000] [--workers 2]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

import numpy as np
from common import data, options, prepare, save
from numpy.typing import NDArray
from scipy import stats

from sslguard.controls.members import read_population, shipped_population
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch
from sslguard.encoders.base import Embedder, Encoder, embed_all
from sslguard.encoders.load import load_encoder
from sslguard.report.markdown import table
from sslguard.schemes.sslguard.carrier import Directions, Witnesses
from sslguard.schemes.sslguard.cured import READER_ITEMS
from sslguard.schemes.sslguard.key import combined
from sslguard.schemes.sslguard.scheme import CuredSSLGuard
from sslguard.stats.corrections import holm
from sslguard.stats.direction import log2_tail
from sslguard.verification.verdict import verify

# The decoder has no part in the p-value.
SCHEME = CuredSSLGuard(law_steps=1)
CLEAN = ("simclr", "moco", "byol")
MARKED = CLEAN[:2]
LEVELS = (0.1, 0.01, 0.001)
ALPHA = 0.01
FIRST_SEED = 20_000
CHUNK = 2000

Array = NDArray[np.float64]
Found = tuple[str, str, dict[str, float], Witnesses]


class Recorded:
    """A suspect whose answers are kept."""

    def __init__(self, suspect: Embedder) -> None:
        self.suspect = suspect
        self.rows: list[NDArray[np.floating]] = []

    def embed(self, batch: Batch, /) -> NDArray[np.floating]:
        self.rows.append(self.suspect.embed(batch))
        return self.rows[-1]


@cache
def owned(name: str) -> tuple[Encoder, Array]:
    """A clean encoder, and its answers to the owner's items."""
    clean = load_encoder(f"shipped:{name}")
    return clean, embed_all(clean, data("mark").slice(0, READER_ITEMS)).astype(np.float64)


def innocent(number: int) -> tuple[str, Encoder]:
    """An innocent's name and network."""
    members = read_population(shipped_population())
    if number < len(members):
        return members[number].name, members[number].load()
    name = CLEAN[number - len(members)]
    return name, load_encoder(f"shipped:{name}")


def pipeline(place: tuple[int, int]) -> Found:
    """F and innocent, the p-values of the innocent under a secret that nobody else is tested with, its witnesses."""
    which, number = place
    name, suspect = innocent(number)
    clean, answers = owned(MARKED[which])
    secret = Secret.from_seed(FIRST_SEED + 1000 * which + number)
    key, asked = SCHEME.draw_key(clean, secret, answers), data("verify")
    recorded = Recorded(suspect)
    verdict = verify(key, recorded, asked, alpha=ALPHA)
    witnesses = key.reader.witnesses(*key.split(np.concatenate(recorded.rows).astype(np.float64)))
    found = verdict.significance.details
    pvalues = {
        "carrier": tail(found["z of the carrier"], witnesses.carrier.size),
        "shift": tail(found["z of the shift"], witnesses.shift.size),
        "verify": verdict.significance.pvalue,
        "derived": float(verdict.decision == "derived"),
    }
    return MARKED[which], name, pvalues, witnesses


def tail(z: float, dimension: int) -> float:
    """The p-value of a z of the direction test."""
    return float(2.0 ** log2_tail(z / math.sqrt(dimension), dimension))


def redrawn(found: Sequence[Found], redraws: int) -> list[tuple[str, float]]:
    """Kind of test → p-value of its uniformity over `redraws` fresh v and b, for each innocent.

    The innocents of one F share the draws: each of these p-values is valid, and Holm allows any dependence.
    """
    rng, tests = np.random.default_rng(0), []
    for clean in MARKED:
        # A suspect that shows nothing has p = 1 under every secret.
        group = [w for name, _, _, w in found if name == clean and w.carrier.any() and w.shift.any()]
        shape = group[0].carrier.shape
        size, rank = math.prod(shape), shape[1]
        units = [np.stack([w[kind].ravel() / np.linalg.norm(w[kind]) for w in group]) for kind in (0, 1)]
        cosines: tuple[list[Array], list[Array]] = ([], [])
        for start in range(0, redraws, CHUNK):
            for kind, dimension in enumerate((size, rank)):
                drawn = rng.normal(size=(min(CHUNK, redraws - start), dimension))
                drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
                cosines[kind].append(drawn @ units[kind].T)
                if start == 0 and kind == 0:
                    first = drawn[0].reshape(shape)
                elif start == 0:
                    check(group[0], Directions(first, drawn[:1]), [c[0][0, 0] for c in cosines])
        for carrier, shift in zip(*(np.concatenate(each).T for each in cosines), strict=True):
            p, q = 2.0 ** log2_tail(carrier, size), 2.0 ** log2_tail(shift, rank)
            product = p * q
            each = {"carrier": p, "shift": q, "verify": product * (1 - np.log(product))}
            tests += [(name, float(stats.kstest(values, "uniform").pvalue)) for name, values in each.items()]
            tests.append(("correlation", float(stats.pearsonr(p, q).pvalue)))
    return tests


def check(witnesses: Witnesses, directions: Directions, cosines: Sequence[float]) -> None:
    """Stop where the short cut above is not the product's own test."""
    p, q = (2.0 ** float(log2_tail(c, w.size)) for c, w in zip(cosines, witnesses, strict=True))
    theirs = combined(witnesses, directions, n_queries=1).pvalue
    assert math.isclose(p * q * (1 - math.log(p * q)), theirs, rel_tol=1e-6)


def main() -> None:
    given = options(__doc__, redraws=100_000, workers=2)
    n = len(read_population(shipped_population())) + len(CLEAN)
    places = [(which, number) for which in range(len(MARKED)) for number in range(n)]
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn"), initializer=prepare) as pool:
        found = list(pool.map(pipeline, places, chunksize=10))
    rows, figures = [], {}
    for kind in ("carrier", "shift", "verify"):
        p = np.array([one[2][kind] for one in found])
        below = {level: int((p <= level).sum()) for level in LEVELS}
        chance = {level: float(stats.binom.sf(k - 1, len(p), level)) for level, k in below.items()}
        uniform = float(stats.kstest(p, "uniform").pvalue)
        rows.append([kind, *(f"{k} ({chance[level]:.2f})" for level, k in below.items()), float(p.min()), uniform])
        figures[kind] = {"below": below, "chance of as many": chance, "least": float(p.min()), "uniform": uniform}
    tests = redrawn(found, given.redraws)
    adjusted = 2.0 ** holm(np.log2([max(p, 1e-300) for _, p in tests]))
    derived = int(sum(one[2]["derived"] for one in found))
    print(table(["test", *(f"p ≤ {level:g} (chance)" for level in LEVELS), "least p", "uniform"], rows))
    print(f"{derived} of {len(found)} innocents judged derived at alpha {ALPHA:g}, a fresh secret each")
    print(f"{given.redraws} redraws: least p of {len(tests)} tests after Holm {adjusted.min():.3f}")
    save(
        "sslguard_innocents",
        {
            "innocents": len(found),
            "derived at 0.01": derived,
            "fresh secrets": figures,
            "redraws": {"n": given.redraws, "tests": len(tests), "least p, Holm": float(adjusted.min())},
            "pvalues": {f"{clean}, {name}": pvalues for clean, name, pvalues, _ in found},
        },
    )


if __name__ == "__main__":
    main()
