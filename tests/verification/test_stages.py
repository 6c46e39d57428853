"""Early stopping: what is asked, what it costs, and that innocents are not accused more often."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sslguard.crypto.secrets import Secret
from sslguard.errors import UsageError
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.verification.verdict import verify


class Counting:
    """Counts what it is asked, and answers as an encoder does with noise."""

    def __init__(self, encoder, noise: float = 0.0) -> None:
        self.encoder, self.noise, self.asked = encoder, noise, 0
        self.rng = np.random.default_rng(0)

    def embed(self, batch, /):
        self.asked += len(batch)
        clean = self.encoder.embed(batch)
        size = np.linalg.norm(clean, axis=1, keepdims=True) / clean.shape[1] ** 0.5
        return clean + self.noise * size * self.rng.normal(size=clean.shape)


@pytest.fixture(scope="module")
def marked(tiny, images):
    scheme = Exact(Protocol(n_queries=100), mode="head")
    return scheme.watermark(tiny(7), images(400), secret=Secret.from_seed(1))


@pytest.fixture(scope="module")
def data(images):
    return images(760, seed=5)


def test_stages_are_those_of_the_grid():
    protocol = Protocol(n_queries=500)
    assert protocol.stages(800) == (500, 750)
    assert protocol.stages(10_000) == (500, 750, 1000, 1500, 2000, 3000, 5000, 7500, 10_000)
    assert protocol.stages(12) == (500,)
    assert all(Protocol(n_queries=7).stages(n)[-1] == Protocol(n_queries=7).asks(n) for n in range(1, 2000, 37))


def test_a_plain_copy_is_asked_the_first_stage_alone(marked, data):
    suspect = Counting(marked.encoder)
    found = verify(marked.key, suspect, data, alpha=1e-6, stop_early=True)
    assert (found.decision, suspect.asked) == ("derived", 100)
    assert found.significance.n_queries == 100
    assert found.significance.details["stages"] == 6


def test_the_first_stage_is_what_a_test_of_so_few_gives_less_the_charge(marked, data):
    found = verify(marked.key, Counting(marked.encoder, 2.0), data, alpha=0.9, stop_early=True)
    n = found.significance.n_queries
    rows = [np.concatenate([Counting(marked.encoder, 2.0).embed(batch) for batch in marked.key._queries(data, 0, n)])]
    alone = marked.key.staged(rows, data, n).evidence.log2_pvalue
    assert found.significance.log2_pvalue == pytest.approx(min(0.0, alone + math.log2(6)), abs=1e-6)


def test_an_innocent_is_asked_everything(marked, data, tiny):
    suspect = Counting(tiny(8))
    found = verify(marked.key, suspect, data, alpha=1e-6, stop_early=True)
    assert (found.decision, suspect.asked) == ("not shown", 750)
    fixed = verify(marked.key, tiny(8), data, alpha=1e-6)
    expected = min(0.0, fixed.significance.log2_pvalue + math.log2(6))
    assert found.significance.log2_pvalue == pytest.approx(expected, abs=1e-6)


def test_a_weak_copy_is_asked_on(marked, data):
    """Noise leaves it little evidence an item: more than one stage, and not all are needed."""
    suspect = Counting(marked.encoder, 3.0)
    found = verify(marked.key, suspect, data, alpha=1e-3, stop_early=True)
    assert found.decision == "derived"
    assert 100 < suspect.asked == found.significance.n_queries < 750


@pytest.mark.heavy
def test_innocents_are_accused_at_most_at_the_level(marked, data, tiny):
    """40 secrets, a level of 0.3 and three stages: more than 22 are one in two thousand."""
    innocent, accused, few = tiny(8), 0, data.slice(0, 200)
    for seed in range(40):
        key = replace(marked.key, secret=Secret.from_seed(100 + seed), _embedded={})
        accused += verify(key, innocent, few, alpha=0.3, stop_early=True).decision == "derived"
    assert accused <= 22


def test_ranks_stand_on_all_queries(marked, data, monkeypatch):
    monkeypatch.setattr(type(marked.key), "needs_controls", True)
    with pytest.raises(UsageError, match="leave stop_early"):
        verify(
            marked.key,
            Counting(marked.encoder),
            data,
            control_scores={str(i): 0.0 for i in range(200)},
            stop_early=True,
        )
