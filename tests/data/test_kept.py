"""Kept items are those of the data set, each read once while there is room."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sslguard.data.base import Data, Extent, as_batch
from sslguard.data.kept import Kept


class Counted(Data):
    """Ten items; counts how often each was read."""

    def __init__(self, items):
        self.items, self.spec, self.labels = items, "counted", np.arange(10)
        self.read = np.zeros(10, int)

    def __len__(self):
        return 10

    def take(self, indices):
        index = self.positions(indices)
        np.add.at(self.read, index, 1)
        return as_batch([self.items[place] for place in index])

    def extent_of(self, start, stop):
        return Extent("counted", start, stop)


KINDS = {
    "pictures": [torch.full((1, 4, 4), place, dtype=torch.uint8) for place in range(10)],
    "pictures of any size": [torch.full((1, 4, 4 + place), place, dtype=torch.uint8) for place in range(10)],
    "texts": [f"text {place}" for place in range(10)],
}
ASKED = ([3, 1, 2], [1, 4, 1, 3], list(range(10)), [9, 0, 9], [])


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [0, 1600, 1 << 20])
def test_items_are_the_same(kind, most):
    whole = Counted(KINDS[kind])
    kept = Kept(whole, most)
    for asked in ASKED[:-1]:
        assert same(kept.take(asked), whole.take(asked)), asked
        assert type(kept.take(asked)) is type(whole.take(asked))
    assert (kept.spec, len(kept), kept.extent(), kept.identity()) == (
        whole.spec,
        10,
        whole.extent(),
        whole.identity(),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_read_once_while_there_is_room(kind):
    whole = Counted(KINDS[kind])
    kept = Kept(whole)
    for asked in ASKED[:-1]:
        kept.take(asked)
    assert whole.read.tolist() == [1] * 10
    few = Counted(KINDS[kind])
    small = Kept(few, 1600)  # some three items
    for _ in range(3):
        small.take(range(10))
    assert 2 <= (few.read == 1).sum() <= 4
    assert (few.read[few.read > 1] == 3).all()


def test_what_a_reader_changes_stays_his():
    kept = Kept(Counted(KINDS["pictures"]))
    first = kept.take([0, 1])
    first += 9
    assert same(kept.take([0, 1]), KINDS["pictures"][:2])
