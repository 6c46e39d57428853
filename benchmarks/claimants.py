"""What a dishonest claimant gains by each freedom, against 20 innocents, and what an audit makes of it.

The claimant knows the innocent's answers, and takes the best of many keys, sub-keys, seeds, numbers of queries, kinds
of answers, ways of reading the suspect, and sets of items: alone, and all together. The innocents' answers to 2,000
items of the test bed are embedded once; each try goes through the functions that `sslguard verify` calls. An audit then
takes off what it charges for the freedom, or refuses the claim.

Run: python benchmarks/claimants.py [--keys 300] [--together 100]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
from common import data, options, prepare, save
from numpy.typing import NDArray

from sslguard.controls.members import read_population, shipped_population
from sslguard.crypto.secrets import Secret
from sslguard.encoders.base import embed_all
from sslguard.encoders.load import load_encoder
from sslguard.errors import SuspectError
from sslguard.report.markdown import table
from sslguard.schemes.exact.answers import KINDS, Kind
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.stats.moments import unit_rows
from sslguard.stats.spectra import Spectra
from sslguard.verification.nulls import ExactNull

Array = NDArray[np.float64]
SCHEME = Exact(Protocol(n_queries=500), mode="head", sub_keys=16)
ALONE = replace(SCHEME, sub_keys=1)
N, INNOCENTS, SEEDS, READINGS, LEVEL = 500, 20, 100, 64, 2.0**-8
Order = NDArray[np.int64]


@cache
def owned() -> tuple[NDArray[np.floating], ...]:
    """Clean answers and statistics of the marking items, then of the items that may be asked about."""
    clean = load_encoder("shipped:simclr")
    mark, asked = data("mark").slice(0, N), data("verify")
    return *(f(clean, mark) for f in (embed_all, all_statistics)), *(
        f(clean, asked) for f in (embed_all, all_statistics)
    )


class Case:
    """An innocent, and what the claimant may do with its answers."""

    def __init__(self, answers: NDArray[np.floating], seed: int) -> None:
        self.answers, self.rng = answers.astype(np.float64), np.random.default_rng(seed)
        self.first = np.arange(N)

    def spectra(self, key: ExactKey, order: Order, answers: Array | None = None) -> Spectra:
        """Return what a verdict reads of the answers to items in this order."""
        _, _, h, statistics = owned()
        h = unit_rows(h[order].astype(np.float64))
        functions = key.bank.functions(h, statistics[order].astype(np.float64))
        given = (self.answers if answers is None else answers)[order]
        return key.spectra_of(given, key.bank.placed(h), functions)[0]

    def bits(self, key: ExactKey, order: Order, answers: Array | None = None) -> float:
        """Return the bits that an honest verdict gives on them."""
        try:
            return -key.sides(self.spectra(key, order, answers)).both
        except SuspectError:  # the answers cannot be of the kind that he says
            return 0.0

    def orders(self, n: int) -> Iterator[Order]:
        """Yield what so many seeds draw."""
        for _ in range(n):
            yield self.rng.permutation(len(self.answers))[:N]

    def readings(self) -> Iterator[Array]:
        """Yield the answers as other layers or poolings might give them: through random linear maps."""
        for _ in range(READINGS):
            yield self.answers @ self.rng.standard_normal((self.answers.shape[1], 128))

    def picked(self, key: ExactKey) -> Order:
        """Return the items on which the innocent agrees with the key most."""
        _, _, h, statistics = owned()
        h = unit_rows(h.astype(np.float64))
        mark = key.mark(key.bank.functions(h, statistics.astype(np.float64)))
        g = unit_rows(self.answers)
        same = g.shape[1] == h.shape[1]
        value = ((g - g.mean(0)) * mark).sum(1) if same else self.rng.random(len(g))
        return np.argsort(-value)[:N]


def key_of(seed: int, scheme: Exact = ALONE) -> ExactKey:
    """Return the key of this secret. The mark itself is not put on: no innocent carries it."""
    answers, statistics, *_ = owned()
    return scheme.draw_key(load_clean(), Secret.from_seed(seed), answers, statistics)


@cache
def load_clean():
    """Return the clean encoder."""
    return load_encoder("shipped:simclr")


def freedoms(keys: int, together: int) -> dict[str, Callable[[Case], float]]:
    """Return, by freedom, the most bits that it gives against an innocent."""
    base = key_of(0)

    def redrawn(case: Case) -> Iterator[ExactKey]:
        for _ in range(keys):
            yield replace(base, secret=Secret.from_seed(int(case.rng.integers(1 << 40))))

    def everything(case: Case) -> float:
        best = 0.0
        for _ in range(together):
            key = replace(base, secret=Secret.from_seed(int(case.rng.integers(1 << 40))))
            order = case.rng.permutation(len(case.answers))[: int(case.rng.choice(base.stages(len(case.answers))))]
            turned = case.answers @ case.rng.standard_normal((case.answers.shape[1], 128))
            best = max(best, case.bits(key, order, case.answers if case.rng.random() < 0.5 else turned))
        return best

    def best_of(some: Iterable[ExactKey], case: Case) -> float:
        spectra = case.spectra(base, case.first)  # no secret has a part in it
        return max(-key.sides(spectra).both for key in some)

    kinds: tuple[Kind, ...] = KINDS
    stages = base.stages(len(owned()[2]))
    parts = key_of(0, SCHEME).split()
    return {
        "none": lambda case: case.bits(base, case.first),
        f"the best of {keys:,} keys": lambda case: best_of(redrawn(case), case),
        "the best of 16 sub-keys": lambda case: best_of(parts, case),
        f"the best of {SEEDS} seeds": lambda case: max(case.bits(base, order) for order in case.orders(SEEDS)),
        "the best number of queries": lambda case: max(case.bits(base, np.arange(n)) for n in stages),
        "the best kind of answers": lambda case: max(case.bits(replace(base, answers=k), case.first) for k in kinds),
        f"the best of {READINGS} readings": lambda case: max(
            case.bits(base, case.first, read) for read in case.readings()
        ),
        f"keys, seeds, numbers and readings: the best of {together:,}": everything,
        "items picked to agree with the key": lambda case: case.bits(base, case.picked(base)),
    }


def main() -> None:
    given = options(__doc__, keys=300, together=100)
    prepare()
    members = sorted(read_population(shipped_population()), key=lambda member: member.name)
    chosen = members[:: len(members) // INNOCENTS][:INNOCENTS]
    cases = [Case(embed_all(member.load(), data("verify")), seed) for seed, member in enumerate(chosen)]
    dated, undated = (math.log2(ExactNull().charge(dated=d)) - math.log2(LEVEL) for d in (True, False))
    rows, found = [], {}
    for name, best in freedoms(given.keys, given.together).items():
        bits = [best(case) for case in cases]
        found[name] = {"most": max(bits), "median": float(np.median(bits))}
        if "picked" in name:
            says = "not checkable: the key is not bound to these items"
        else:
            says = f"{sum(b >= dated for b in bits)} derived if dated, {sum(b >= undated for b in bits)} undated"
        rows.append([name, f"{np.median(bits):.1f}", f"{max(bits):.1f}", says])
        print(rows[-1], flush=True)
    save("claimants", {"freedoms": found, "needed if dated": dated, "needed undated": undated, "innocents": len(cases)})
    print(f"\n{dated:.0f} bits are needed if dated, {undated:.0f} undated\n")
    print(table(["freedom", "median bits", "most bits", f"an audit of {len(cases)} claims"], rows))


if __name__ == "__main__":
    main()
