"""A layer after an encoder that adds to each embedding a fixed function of itself and of the input."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from sslguard.encoders.statistics import N_STATISTICS, InputStatistics


class FourierHead(nn.Module):
    """F → |F|·(h + φ·B) with h = F/|F| and ψ statistics of the input: (n, d), (n, 96) → (n, d).

    φ_k = (√2·cos(⟨w_k, P(h − μ)⟩ + c_k) − m_k)/s_k for the first features; ⟨a_k, ψ − ν⟩ − ⟨b_k, h − μ⟩ for the others.
    Without weights of its own making: B is 0 until the buffers are loaded, and the head changes nothing.

    Attributes:
        mean: μ, (d,).
        whitener: P, (q, d).
        frequencies: w_k in columns, (q, K₁).
        phases: c, (K₁,).
        offset, scale: m and s, (K₁,).
        centre: ν, (96,).
        axes, linear: a_k and b_k in columns, (96, K₂) and (d, K₂).
        rows: B, (K₁ + K₂, d).
    """

    TENSORS: ClassVar[tuple[str, ...]] = (
        *("mean", "whitener", "frequencies", "phases", "offset", "scale"),
        *("centre", "axes", "linear", "rows"),
    )
    mean: Tensor
    whitener: Tensor
    frequencies: Tensor
    phases: Tensor
    offset: Tensor
    scale: Tensor
    centre: Tensor
    axes: Tensor
    linear: Tensor
    rows: Tensor

    def __init__(self, dim: int, components: int, features: int, statistics: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("whitener", torch.zeros(components, dim))
        self.register_buffer("frequencies", torch.zeros(components, features))
        self.register_buffer("phases", torch.zeros(features))
        self.register_buffer("offset", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("centre", torch.zeros(N_STATISTICS))
        self.register_buffer("axes", torch.zeros(N_STATISTICS, statistics))
        self.register_buffer("linear", torch.zeros(dim, statistics))
        self.register_buffer("rows", torch.zeros(features + statistics, dim))

    def features(self, h: Tensor, statistics: Tensor) -> Tensor:
        """Return φ of embeddings of length 1 and statistics: (n, d), (n, 96) → (n, K₁ + K₂)."""
        centred = h - self.mean
        angles = nnf.linear(centred, self.whitener) @ self.frequencies + self.phases
        bends = (math.sqrt(2) * torch.cos(angles) - self.offset) / self.scale
        return torch.cat([bends, (statistics - self.centre) @ self.axes - centred @ self.linear], 1)

    def forward(self, embeddings: Tensor, statistics: Tensor) -> Tensor:
        """Return marked embeddings: (n, d), (n, 96) → (n, d)."""
        length = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
        h = embeddings / length.clamp_min(torch.finfo(embeddings.dtype).tiny)
        return embeddings + length * (self.features(h, statistics) @ self.rows)


class Headed(nn.Module):
    """An encoder's network with a head on its output."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head, self.statistics = encoder, head, InputStatistics()

    def forward(self, x: Tensor) -> Tensor:
        """Return the marked embeddings (n, d) of the network's inputs."""
        return self.head(self.encoder(x), self.statistics(x))
