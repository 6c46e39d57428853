"""A layer after an encoder that adds to each embedding a fixed function of itself and of the input."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from sslguard.encoders.statistics import InputStatistics


class StatisticsHead(nn.Module):
    """F → |F|·(h + φ·B) with h = F/|F| and ψ statistics of the input: (n, d), (n, p) → (n, d).

    φ_k = ⟨a_k, ψ − ν⟩ − ⟨b_k, h − μ⟩. Without weights of its own making: B is 0 until the buffers are loaded, and the
    head changes nothing.

    Attributes:
        mean: μ, (d,).
        centre: ν, (p,).
        axes, linear: a_k and b_k in columns, (p, K) and (d, K).
        rows: B, (K, d).
    """

    TENSORS: ClassVar[tuple[str, ...]] = ("mean", "centre", "axes", "linear", "rows")
    mean: Tensor
    centre: Tensor
    axes: Tensor
    linear: Tensor
    rows: Tensor

    def __init__(self, dim: int, statistics: int, functions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("centre", torch.zeros(statistics))
        self.register_buffer("axes", torch.zeros(statistics, functions))
        self.register_buffer("linear", torch.zeros(dim, functions))
        self.register_buffer("rows", torch.zeros(functions, dim))

    def forward(self, embeddings: Tensor, statistics: Tensor) -> Tensor:
        """Return marked embeddings: (n, d), (n, p) → (n, d)."""
        length = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
        h = embeddings / length.clamp_min(torch.finfo(embeddings.dtype).tiny)
        functions = (statistics - self.centre) @ self.axes - (h - self.mean) @ self.linear
        return embeddings + length * (functions @ self.rows)


class Headed(nn.Module):
    """An encoder's network with a head on its output."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head, self.statistics = encoder, head, InputStatistics()

    def forward(self, x: Tensor) -> Tensor:
        """Return the marked embeddings (n, d) of the network's inputs."""
        return self.head(self.encoder(x), self.statistics(x))
