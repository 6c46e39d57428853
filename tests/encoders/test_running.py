"""What networks embed on: threads, device, precision, items at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from helpers.command_line import sslguard
from sslguard.encoders import running
from sslguard.errors import UsageError


@pytest.fixture(autouse=True)
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(running, "_cores", 3)
    yield
    running.run_on()
    torch.set_num_threads(before)


def inside(n_parameters: int) -> int:
    module = nn.Module()
    module.weight = nn.Parameter(torch.empty(n_parameters))
    with running.few_threads(module):
        return torch.get_num_threads()


def test_a_small_network_runs_on_one_thread_and_a_large_one_on_all() -> None:
    assert inside(running.LARGE - 1) == 1
    assert inside(running.LARGE) == 3
    assert torch.get_num_threads() == 3


def test_a_number_that_was_asked_for_holds_for_both() -> None:
    running.run_on(threads=2)
    assert [inside(1), inside(running.LARGE)] == [2, 2]


def test_where_nothing_is_trained_one_thread_does_all_but_large_networks() -> None:
    running.run_on(training=False)
    assert torch.get_num_threads() == 1
    assert [inside(1), inside(running.LARGE)] == [1, 3]


def test_threads_are_put_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="stop"), running.few_threads(nn.Identity()):
        raise ValueError("stop")
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("asked", "sizes"), [(None, [4, 4, 1]), (2, [2, 2, 2, 2, 1]), (100, [9])])
def test_few_large_pictures_go_through_together_unless_a_number_was_asked_for(
    tiny, images, monkeypatch, asked, sizes
) -> None:
    monkeypatch.setattr(running, "_PIXELS", 4 * 16 * 16)
    encoder, seen = tiny(), []
    whole = encoder.embed(images(9).take(range(9)))
    encoder.module.register_forward_hook(lambda module, given, made: seen.append(len(made)))
    running.run_on(batch_size=asked)
    torch.testing.assert_close(encoder.embed(images(9).take(range(9))), whole, rtol=1e-4, atol=1e-5)
    assert seen == sizes


def test_bfloat16_is_close_and_not_the_same(tiny, images) -> None:
    encoder, batch = tiny(), images(4).take(range(4))
    exact = torch.from_numpy(encoder.embed(batch))
    running.run_on(precision="bf16")
    rounded = torch.from_numpy(encoder.embed(batch))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.05


def test_a_device_that_is_not_there_is_refused(monkeypatch, tmp_path, tiny) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no mps device"):
        running.run_on("mps")
    running.run_on("auto")
    np.save(tmp_path / "x.npy", np.zeros((9, 32, 32), np.uint8))
    for command in (("embed", "random:resnet-small"), ("watermark", "random:resnet-small")):
        ran = sslguard(*command, "--data", tmp_path / "x.npy", "--out", tmp_path / "o.npy", "--accelerator", "cuda")
        assert (ran.code, "no cuda device" in ran.err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
