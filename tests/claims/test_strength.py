"""How strong evidence is: bounds on likelihood ratios, and the verbal scale."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sslguard.claims.strength import Strength


@pytest.mark.parametrize("p", [1.0, 0.9, 0.3, 0.05, 1e-3, 1e-9])
def test_bounds(p: float) -> None:
    found = Strength.of(math.log2(p), 1)
    assert found.least == pytest.approx(max(0.0, math.log10(0.5 / math.sqrt(p))))
    assert found.most == pytest.approx(math.log10(-1 / (math.e * p * math.log(p))) if p < 1 / math.e else 0.0)
    assert found.least <= found.most or p > 0.05


def test_the_lower_bound_is_at_most_1_of_innocents_on_average() -> None:
    """The mean of 1/(2√p) over uniform p is 1; charges only lower it."""
    p = (np.arange(200_000) + 0.5) / 200_000
    assert np.mean(0.5 / np.sqrt(p)) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize(
    ("bits", "tries", "support"),
    [
        (0, 1, "no"),
        (5, 1, "weak"),
        (12, 1, "moderate"),
        (18, 1, "moderately strong"),
        (25, 1, "strong"),
        (40, 1, "very strong"),
        (60, 1, "extremely strong"),
        (256, 1 << 70, "extremely strong"),
        (72, 1 << 70, "no"),
        (10, 1 << 70, "no"),
    ],
)
def test_scale(bits: float, tries: int, support: str) -> None:
    assert Strength.of(-bits, tries).support == support


def test_charges_come_off_first() -> None:
    assert Strength.of(-100, 1 << 26) == Strength.of(-74, 1)
