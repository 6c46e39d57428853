"""What is done to weights without training: each from its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sslguard.attacks.removal import PruneFilters, Quantise, WeightNoise
from sslguard.encoders.base import Encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import UsageError


@pytest.fixture
def victim():
    """Two layers, of four outputs of L1 norms 4, 1, 3 and 2, and of five."""
    layers = [nn.Linear(2, 4), nn.Linear(4, 5)]
    with torch.no_grad():
        layers[0].weight.copy_(torch.tensor([[2.0, -2.0], [0.5, 0.5], [0.0, 3.0], [-1.0, 1.0]]))
    return Encoder(nn.Sequential(*layers), ImagePreprocess(1, 1), 5, {}, "by hand")


def test_filters_of_least_norm_go_whole_and_the_embedding_keeps_its_width(victim):
    first, last = PruneFilters(0.5)(victim).module
    assert first.weight.tolist() == [[2, -2], [0, 0], [0, 3], [0, 0]]
    assert (first.bias == 0).tolist() == [False, True, False, True]
    assert torch.equal(last.weight, victim.module[1].weight)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_of_every_output_channel(victim, bits):
    most = 2 ** (bits - 1) - 1
    for before, after in zip(victim.module, Quantise(bits=bits)(victim).module, strict=True):
        step = before.weight.detach().abs().amax(1, keepdim=True) / most
        levels = (after.weight / step).detach()
        torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
        assert ((after.weight - before.weight).abs() <= step / 2 + 1e-6).all()
        assert torch.equal(after.bias, before.bias)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_floats_of_fewer_bits(victim, kind):
    with torch.no_grad():
        victim.module[1].weight[0, 0] = 1e9
    after = Quantise(to=kind)(victim).module
    expected = victim.module[1].weight.detach().to(getattr(torch, kind)).float()
    if kind == "float16":
        expected[0, 0] = 65504
    assert torch.equal(after[1].weight, expected)
    assert after[1].weight.dtype == torch.float32


def test_noise_is_a_share_of_the_tensor_s_size(tiny):
    victim = tiny(1)
    after = WeightNoise(0.1)(victim, seed=3)
    for before, noisy in zip(victim.module.parameters(), after.module.parameters(), strict=True):
        if before.dim() == 1:
            assert torch.equal(noisy, before)
            continue
        moved = float((noisy - before).detach().square().mean().sqrt() / before.detach().square().mean().sqrt())
        # The standard error of a root mean square over n numbers is 1/sqrt(2n).
        assert moved == pytest.approx(0.1, rel=5 / np.sqrt(2 * before.numel()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: PruneFilters(1.0),
        lambda: Quantise(bits=1),
        lambda: Quantise(to="int4"),
        lambda: WeightNoise(0),
        lambda: WeightNoise(float("nan")),
    ],
)
def test_what_makes_no_attack_is_refused(make):
    with pytest.raises(UsageError):
        make()
