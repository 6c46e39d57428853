"""Layers after an encoder, for fixed functions of embedding and input: added to the embedding, or given beside it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from sslguard.encoders.statistics import InputStatistics


class FunctionsBeside(nn.Module):
    """F → (F, |F|·φ) with h = F/|F| and ψ statistics of the input: (n, d), (n, p) → (n, d + K).

    φ_k = ⟨a_k, ψ − ν⟩ − ⟨b_k, h − μ⟩. Without weights of its own making: φ is 0 until the buffers are loaded.

    Attributes:
        mean: μ, (d,).
        centre: ν, (p,).
        axes, linear: a_k and b_k in columns, (p, K) and (d, K).
    """

    TENSORS: ClassVar[tuple[str, ...]] = ("mean", "centre", "axes", "linear")
    mean: Tensor
    centre: Tensor
    axes: Tensor
    linear: Tensor

    def __init__(self, dim: int, statistics: int, functions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("centre", torch.zeros(statistics))
        self.register_buffer("axes", torch.zeros(statistics, functions))
        self.register_buffer("linear", torch.zeros(dim, functions))

    def forward(self, embeddings: Tensor, statistics: Tensor) -> Tensor:
        """Return embeddings with the functions of each behind it: (n, d), (n, p) → (n, d + K)."""
        functions, length = self.functions(embeddings, statistics)
        return torch.cat([embeddings, length * functions], 1)

    def functions(self, embeddings: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Return φ (n, K) and the length of each embedding (n, 1)."""
        length = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
        h = embeddings / length.clamp_min(torch.finfo(embeddings.dtype).tiny)
        return (statistics - self.centre) @ self.axes - (h - self.mean) @ self.linear, length


class StatisticsHead(FunctionsBeside):
    """F → |F|·(h + φ·B): (n, d), (n, p) → (n, d), with φ as in `FunctionsBeside`.

    B is 0 until the buffers are loaded, and the head changes nothing.

    Attributes:
        rows: B, (K, d).
    """

    TENSORS: ClassVar[tuple[str, ...]] = (*FunctionsBeside.TENSORS, "rows")
    rows: Tensor

    def __init__(self, dim: int, statistics: int, functions: int) -> None:
        super().__init__(dim, statistics, functions)
        self.register_buffer("rows", torch.zeros(functions, dim))

    def forward(self, embeddings: Tensor, statistics: Tensor) -> Tensor:
        """Return marked embeddings: (n, d), (n, p) → (n, d)."""
        functions, length = self.functions(embeddings, statistics)
        return embeddings + length * (functions @ self.rows)


class Headed(nn.Module):
    """An encoder's network with a head on its output."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head, self.statistics = encoder, head, InputStatistics()

    def forward(self, x: Tensor) -> Tensor:
        """Return what the head makes of the network's embeddings, (n, d) or wider."""
        return self.head(self.encoder(x), self.statistics(x))
