"""Updates of low rank: each layer's weights stay, and a small product of two matrices is trained beside them.

Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
"""Layers that hold most of a network's weights: those that get an update, and are pruned."""
SCALE = 2.0
"""What each update is multiplied by: LoRA's α over its rank."""


class LowRank(nn.Module):
    """A weight W and its update: W + 2·up·down. It is 0 before training.

    Attributes:
        down: (rank, columns), where a weight (rows, …) is seen as a matrix (rows, columns).
        up: (rows, rank).
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.down = nn.Parameter(torch.randn(rank, columns, device=weight.device) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with its update, of the same shape."""
        return weight + SCALE * (self.up @ self.down).view_as(weight)


def add_updates(module: nn.Module, rank: int) -> int:
    """Add an update to each convolution and linear layer, in place; nothing else is trained from then on.

    The randomness is torch's own.

    Returns:
        The number of layers that got one.
    """
    module.requires_grad_(False)
    layers = [layer for layer in module.modules() if isinstance(layer, LAYERS)]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
    return len(layers)


def merge_updates(module: nn.Module) -> None:
    """Add each update to its layer's weights, in place: the network has the layers and names it had before."""
    for layer in module.modules():
        if isinstance(layer, LAYERS) and parametrize.is_parametrized(layer, "weight"):
            # Into the tensor that was there, whose layout in memory the last bit of an answer depends on.
            with torch.no_grad():
                layer.get_parameter("parametrizations.weight.original").copy_(layer.weight)
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
