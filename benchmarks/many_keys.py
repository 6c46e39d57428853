"""What the best of 10,000 keys gives a claimant against each of 20 innocents.

Every key is a fresh secret, from which A and G are drawn as a key's are. The left test is the whole one. The right
witnesses depend on A, which would take a third of a second a key and innocent; here all keys share the witnesses of one
A, so that a claimant tries new G against witnesses that stand still. Neither makes the p-values of a single key more or
less uniform: the witnesses never see the G that they are tested against. Three keys are tested as `verify` does, and
must agree.

Run: python benchmarks/many_keys.py [--keys 10000]
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from claimants import INNOCENTS, LEVEL, Case, key_of
from common import data, options, prepare, save
from numpy.typing import NDArray
from scipy.special import betainc, gammaincc

from sslguard.controls.members import read_population, shipped_population
from sslguard.crypto.secrets import Secret
from sslguard.encoders.base import embed_all
from sslguard.schemes.exact.bank import draw_left, draw_right, on_sphere
from sslguard.schemes.exact.key import ExactKey
from sslguard.stats.direction import direction_test, log2_tail
from sslguard.stats.left import left_test
from sslguard.stats.spectra import Spectra
from sslguard.stats.witness import Witness
from sslguard.verification.nulls import ExactNull

Array = NDArray[np.float64]
CHUNK, CHECKED = 250, 3


@dataclass(frozen=True)
class Witnesses:
    """An innocent's witnesses: left ones, (B, k), and right ones, (r, q), with the range of their rows."""

    left: list[Array]
    right: list[Witness]

    @classmethod
    def of(cls, key: ExactKey, spectra: Spectra) -> Witnesses:
        return cls(
            list(key.left_witnesses(spectra).values()),
            list(key.right_witnesses(spectra, key.mixtures()).values()),
        )

    def bits(self, left: Array, right: Array) -> Array:
        """Return the bits of both sides for keys with these A (n, B, r) and G (n, r, q)."""
        of_left = np.stack([_left(witness, left) for witness in self.left])
        of_right = np.stack([_right(*witness, right) for witness in self.right])
        return -_fisher(np.stack([_best(of_left), _best(of_right)], axis=1))


def _best(log2: Array) -> Array:
    """Return the smallest of each column, corrected for their number."""
    return np.minimum(0.0, np.minimum(log2, 0.0).min(axis=0) + math.log2(len(log2)))


def _fisher(log2: Array) -> Array:
    """Return log2 p of each row of independent p-values."""
    return np.log2(gammaincc(log2.shape[1], -math.log(2) * log2.sum(axis=1)))


def _left(witness: Array, left: Array) -> Array:
    """Return what `left_test` does for each A (n, B, r)."""
    size, columns = witness.shape
    share = np.square(np.einsum("bk,nbr->nkr", witness, left, optimize=True)).sum(1) / np.square(left).sum(1)
    return _fisher(np.log2(betainc((size - columns) / 2, columns / 2, 1 - share)))


def _right(witness: Array, basis: Array | None, right: Array) -> Array:
    """Return the log2 p that `direction_test` does for each G (n, r, q)."""
    if basis is not None:
        witness, right = witness @ basis, right @ basis
    cosines = np.tensordot(right, witness, 2) / np.linalg.norm(right, axis=(1, 2)) / np.linalg.norm(witness)
    return np.asarray(log2_tail(cosines, witness.size))


def drawn(base: ExactKey, n: int) -> Iterator[tuple[Array, Array]]:
    """Yield A (·, B, r) and G (·, r, q) of secrets 1 to n, some at a time."""
    context = base.context + base.redraw.to_bytes(8, "big")
    for start in range(1, n + 1, CHUNK):
        lefts, rights = [], []
        for number in range(start, min(start + CHUNK, n + 1)):
            secret = Secret.from_seed(number)
            left = draw_left(secret, base.protocol, base.bank, context)
            right = draw_right(secret, base.protocol, base.bank, left, context)
            lefts.append(on_sphere(left, base.protocol.rank))
            rights.append(on_sphere(right, base.protocol.rank))
        yield np.stack(lefts), np.stack(rights)


def check(base: ExactKey, witnesses: Witnesses, spectra: Spectra) -> None:
    """Compare a few keys with what a verdict computes, one by one."""
    left, right = (found[:CHECKED] for found in next(drawn(base, CHECKED)))
    for number, (a, g) in enumerate(zip(left, right, strict=True), 1):
        key = replace(base, secret=Secret.from_seed(number))
        assert np.array_equal(key.left(), a)
        assert np.array_equal(key.right(), g)
        each = np.array([_left(witness, a[None])[0] for witness in witnesses.left])
        assert np.allclose(each, [left_test(witness, a) for witness in witnesses.left])
        assert np.isclose(_best(each[:, None])[0], key.sides(spectra).left)
        each = np.array([_right(*witness, g[None])[0] for witness in witnesses.right])
        whole = [direction_test(v, g, n_queries=1, basis=basis) for v, basis in witnesses.right]
        assert np.allclose(each, [found.details["log2_tail"] for found in whole])


def main() -> None:
    given = options(__doc__, keys=10_000)
    prepare()
    members = sorted(read_population(shipped_population()), key=lambda member: member.name)
    chosen = members[:: len(members) // INNOCENTS][:INNOCENTS]
    base, cases = key_of(0), []
    for number, member in enumerate(chosen):
        case = Case(embed_all(member.load(), data("verify")), number)
        spectra = case.spectra(base, case.first)
        cases.append(Witnesses.of(base, spectra))
        if number == 0:
            check(base, cases[0], spectra)
    found = np.concatenate([[case.bits(*part) for case in cases] for part in drawn(base, given.keys)], axis=1)
    dated, undated = (math.log2(ExactNull().charge(dated=d)) - math.log2(LEVEL) for d in (True, False))
    best = found.max(axis=1)
    figures = {
        "keys": given.keys,
        "innocents": len(cases),
        "best": {"most": float(best.max()), "median": float(np.median(best)), "least": float(best.min())},
        "keys with p ≤ 1/2, 1/64, 1/1024 of all": [float((found >= bits).mean()) for bits in (1, 6, 10)],
        "needed if dated": dated,
        "needed undated": undated,
        "audits derived, dated and undated": [int((best >= needed).sum()) for needed in (dated, undated)],
    }
    save("many_keys", figures)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
