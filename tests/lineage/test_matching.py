"""Matchings of units: uniform between independent networks, whatever ties, dead units and scales there are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from sslguard.lineage import matching
from sslguard.lineage.groups import Group, Part
from sslguard.lineage.matching import comparable, matched, reordered, units_of

PART = Part("w", 0)


def drawn(seed: int, n: int = 24, width: int = 10) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width, 1)).astype(np.float32)


def in_place(a: np.ndarray, b: np.ndarray, seed: int = 0) -> int:
    return int((matched([a], [b], np.random.default_rng(seed)) == np.arange(len(a))).sum())


def assert_poisson(counts: list[int]) -> None:
    """Fixed points of a uniform permutation of many: 0, 1, 2, 3 and more have the chances of Poisson's law."""
    seen = Counter(min(count, 4) for count in counts)
    law = np.array([np.exp(-1) / f for f in (1, 1, 2, 6)])
    law = np.append(law, 1 - law.sum())
    assert chisquare([seen[k] for k in range(5)], law * len(counts)).pvalue > 1e-4


@pytest.mark.parametrize("nearest", [False, True])
def test_independent_units_are_in_place_as_chance_says(nearest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "NEAREST_ABOVE", 0 if nearest else 4096)
    counts = [in_place(drawn(seed), drawn(seed + 10_000), seed) for seed in range(600)]
    if nearest:
        assert 0.8 < np.mean(counts) < 1.2  # the bound 1/k! asks for no more than a mean of one
    else:
        assert_poisson(counts)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("equal", lambda x: np.ones_like(x)),
        ("two kinds", lambda x: np.sign(x.mean((1, 2), keepdims=True)) * np.ones_like(x)),
        ("mostly dead", lambda x: x * (np.arange(len(x)) % 4 == 0)[:, None, None]),
        ("one huge unit", lambda x: x * np.where(np.arange(len(x)) == 3, 1e30, 1)[:, None, None]),
        ("sorted by size", lambda x: x[np.argsort(np.abs(x).sum((1, 2)))] * np.arange(1, len(x) + 1)[:, None, None]),
    ],
)
def test_ties_dead_units_and_scales_give_no_evidence(name: str, spoil) -> None:
    """Both networks are spoilt alike. Sizes are divided out, so that units sorted by size alone match by chance."""
    counts = []
    for seed in range(600):
        a, b = (spoil(drawn(s)).astype(np.float32) for s in (seed, seed + 10_000))
        counts.append(in_place(a, b, seed))
    assert np.mean(counts) < 1.25, name
    assert np.mean(np.array(counts) >= 4) < 0.04, name


def test_dead_units_match_nobody() -> None:
    a = drawn(0)
    a[::2] = 0
    found = matched([a], [a], np.random.default_rng(0))
    assert (found[::2] == -1).all()
    assert (found[1::2] == np.arange(24)[1::2]).all()
    assert (matched([a * 0], [a], np.random.default_rng(0)) == -1).all()


def test_a_copy_is_found_in_any_order_and_scale() -> None:
    rng, a = np.random.default_rng(5), drawn(1)
    order = rng.permutation(24)
    b = a[order] * np.exp(rng.uniform(-20, 20, (24, 1, 1))).astype(np.float32)
    b = b * np.exp(rng.uniform(-3, 3, (1, 10, 1))).astype(np.float32)  # channels scaled, as a norm before may be
    found = matched([a], [b], rng)
    assert (order[found] == np.arange(24)).all()


def test_huge_and_tiny_weights_overflow_nothing() -> None:
    a = drawn(2)
    for scale in (1e38 / np.abs(a).max(), 1e-38):
        vectors, live = comparable((a * np.float32(scale)).astype(np.float32))
        assert np.isfinite(vectors).all()
        assert live.all()
        assert in_place((a * np.float32(scale)).astype(np.float32), a) == 24


def test_packed_units_are_put_side_by_side() -> None:
    gate, value = drawn(3)[:, :, 0], drawn(4)[:, :, 0]
    packed = np.concatenate([gate, value])
    units = units_of(packed, Part("w", 0, blocks=2))
    assert units.shape == (24, 10, 2) or units.shape == (24, 2, 10)
    order = np.random.default_rng(0).permutation(24)
    group = Group("g", 24, "hidden", (Part("w", 0, blocks=2),))
    moved = reordered(group, {"w": packed}, order)["w"]
    assert (moved[:24] == gate[order]).all()
    assert (moved[24:] == value[order]).all()
    assert np.allclose(units_of(moved, Part("w", 0, blocks=2)), units[order])


def test_other_axis_is_put_in_order() -> None:
    a = drawn(6)[:, :, 0]
    order = np.random.default_rng(1).permutation(10)
    partner = np.argsort(order)  # channel i of A is channel partner[i] of B
    assert (units_of(a[:, order], PART, partner)[:, :, 0] == a).all()
    partner[0] = -1
    assert (units_of(a[:, order], PART, partner)[:, 0] == 0).all()
