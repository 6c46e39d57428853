"""What is foretold of copies: simulated ones answer as described, and show nothing where they hold no mark."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.command_line import done, sslguard
from sslguard.crypto.secrets import Secret
from sslguard.encoders.base import embed_all
from sslguard.encoders.folder import save_encoder
from sslguard.errors import UsageError
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.exact.power import KINDS, THEFTS, Foretold, Theft, answered, copied, foretell, grid
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.stats.moments import unit_rows

SCHEME = Exact(Protocol(n_queries=200), mode="head")
PERFECT = Theft(first=1.0, half=math.inf, narrow=0.0, weak=1.0, error=0.0, along=0.0, uneven=0.0)


@pytest.fixture(scope="module")
def bed(tiny, images):
    """A key, and clean embeddings along its axes with the bank's functions, of items that made the bank."""
    clean, data = tiny(7), images(600)
    answers, statistics = embed_all(clean, data), all_statistics(clean, data)
    key = SCHEME.draw_key(clean, Secret.from_seed(3), answers, statistics)
    h = unit_rows(answers.astype(np.float64))
    return key, key.bank.placed(h), key.bank.functions(h, statistics)


def bits(key, given, placed, functions):
    return -key.sides(key.spectra_of(given, placed, functions)[0]).both


def test_a_perfect_copy_answers_as_the_marked_encoder(bed):
    key, placed, functions = bed
    found = copied(key, placed, functions, PERFECT, shown=1.0, random=np.random.default_rng(0))
    wanted = placed @ key.bank.axes + key.mark(functions)
    off_axes = key.bank.mean - key.bank.placed(key.bank.mean) @ key.bank.axes
    np.testing.assert_allclose(found, wanted, atol=1e-9 + np.abs(off_axes).max())


@pytest.mark.parametrize("theft", THEFTS)
def test_a_copy_of_an_encoder_without_a_mark_shows_nothing(bed, theft):
    key, placed, functions = bed
    random = np.random.default_rng(1)
    copy = copied(key, placed, functions, THEFTS[theft], shown=0.0, random=random)
    classifier = random.standard_normal((copy.shape[1], 5)), np.zeros(5)
    for kind in KINDS:
        assert bits(key, answered(kind, copy, classifier, random), placed, functions) < 14, kind
    marked = copied(key, placed, functions, THEFTS[theft], shown=1.0, random=random)
    assert bits(key, marked, placed, functions) > 14


def test_grid_holds_all_that_a_verification_may_ask():
    protocol = Protocol(n_queries=200)
    assert grid(protocol, 1400) == [200, 300, 500, 750, 1000]
    assert grid(replace(protocol, n_queries=1234), 1400) == [1234]
    with pytest.raises(UsageError, match="at least 200: got 199"):
        grid(protocol, 199)


def test_fewest_queries():
    found = Foretold(0.05, {"mse": {"labels": {200: 3.0, 300: 9.0, 500: 8.0}}})
    assert [found.n_queries("mse", "labels", wanted) for wanted in (2, 8.5, 9.5)] == [200, 300, None]


def test_command_line(tiny, tmp_path: Path):
    save_encoder(tiny(7), tmp_path / "clean")
    pictures = np.random.default_rng(0).integers(0, 256, (640, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    line = ("power", tmp_path / "clean", "--data", tmp_path / "pictures.npy", "--n-queries", 200, "--theft", "mse")
    found = done(*line, "--bits", 250, "--mode", "head", "--out", tmp_path / "power.svg")
    assert found["bits"]["mse"].keys() == set(KINDS)
    assert found["bits"]["mse"]["labels"].keys() == {"200", "300"}
    assert found["queries"]["mse"]["labels"]["250"] is None
    assert (tmp_path / "power.svg").read_bytes().startswith(b"<?xml")
    assert sslguard(*line, "--out", tmp_path / "power.gif").code == 2
    assert sslguard(*line, "--bits", 257).code == 2


def test_the_same_items_foretell_the_same(tiny, images):
    data = images(440)
    found = [foretell(tiny(7), data, SCHEME, thefts=("centred",), seeds=(0,)) for _ in range(2)]
    assert found[0] == found[1]
