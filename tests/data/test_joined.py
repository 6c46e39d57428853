"""Several data sets as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslguard.data.base import Joined, overlap
from sslguard.data.specs import open_data
from sslguard.errors import DataError, UsageError


def test_joined_items_are_those_of_one_set_and_then_of_the_other(images: Any) -> None:
    first, second = images(5, seed=1), images(3, seed=2)
    both = Joined([first, second])
    taken = both.take([6, 0, 4, 7])
    assert len(both) == 8
    assert (taken[0] == second.take([1])[0]).all()
    assert (taken[1] == first.take([0])[0]).all()
    assert (taken[2] == first.take([4])[0]).all()
    assert (taken[3] == second.take([2])[0]).all()
    with pytest.raises(UsageError, match="has the items 0 to 7"):
        both.take([8])


def test_a_sum_of_specs_is_opened_and_overlaps_with_its_parts(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 1), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=pictures, labels=np.arange(9))
    spec = f"{tmp_path}/x.npz[0:3] + {tmp_path}/x.npz[6:9]"
    both = open_data(spec)
    assert both.spec == spec
    assert both.labels is not None
    assert both.labels.tolist() == [0, 1, 2, 6, 7, 8]
    assert overlap(both, open_data(f"{tmp_path}/x.npz[2:7]")) == overlap(open_data(f"{tmp_path}/x.npz[2:7]"), both) == 2
    assert overlap(both, open_data(f"{tmp_path}/x.npz[3:6]")) == 0
    # A slice of both overlaps with what its items came from.
    assert overlap(both.slice(2, 5), open_data(f"{tmp_path}/x.npz[2:7]")) == 2
    assert overlap(both.slice(0, 2), open_data(f"{tmp_path}/x.npz[2:7]")) == 0
    assert open_data(both.slice(2, 5).spec).labels.tolist() == both.slice(2, 5).labels.tolist() == [2, 6, 7]
    with pytest.raises(DataError, match="has 6 items"):
        both.slice(2, 7)


def test_pictures_and_texts_are_not_joined(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4), np.uint8))
    (tmp_path / "t.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match="joins pictures and texts"):
        open_data(f"{tmp_path}/a.npy + text:{tmp_path}/t.txt")
