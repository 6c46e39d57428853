"""Small networks embed on one thread, large ones on all, and a number that was asked for holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from sslguard.encoders import threads


@pytest.fixture(autouse=True)
def three() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    threads.use_threads(None)
    torch.set_num_threads(before)


def inside(n_parameters: int) -> int:
    module = nn.Module()
    module.weight = nn.Parameter(torch.empty(n_parameters))
    with threads.few_threads(module):
        return torch.get_num_threads()


def test_a_small_network_runs_on_one_thread_and_a_large_one_on_all() -> None:
    assert inside(threads.LARGE - 1) == 1
    assert inside(threads.LARGE) == 3
    assert torch.get_num_threads() == 3


def test_a_number_that_was_asked_for_holds_for_both() -> None:
    threads.use_threads(2)
    assert [inside(1), inside(threads.LARGE)] == [2, 2]


def test_threads_are_put_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="stop"), threads.few_threads(nn.Identity()):
        raise ValueError("stop")
    assert torch.get_num_threads() == 3
