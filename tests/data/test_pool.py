"""Pools: number and root of a data set."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from sslguard.data.base import Chosen
from sslguard.data.own import own_data
from sslguard.data.pool import pool_of
from sslguard.data.watched import digest

TEXTS = own_data([f"text {i}" for i in range(11)])


def tree(leaves: list[bytes]) -> bytes:
    """Return the root by RFC 6962's own words: split at the largest power of two below n."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + tree(leaves[:k]) + tree(leaves[k:])).digest()


@pytest.mark.parametrize("n", range(1, 12))
def test_root_is_that_of_the_rfc(n: int) -> None:
    items = Chosen(TEXTS, np.arange(n), "some")
    assert pool_of(items) == f"{n}:{tree([digest(item) for item in items.take(range(n))]).hex()}"


def test_order_number_and_content_matter() -> None:
    found = {
        pool_of(own_data(items)) for items in (["a", "b"], ["b", "a"], ["a", "b", "b"], ["a", "b", "c"], ["ab"], ["a"])
    }
    assert len(found) == 6


def test_images_count_as_they_are_read() -> None:
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    assert pool_of(own_data(images)) == pool_of(own_data(images.copy()))
    assert pool_of(own_data(images)) != pool_of(own_data(images + 1))
