"""A layer after an encoder that adds to each embedding a fixed nonlinear function of itself."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn


class FourierHead(nn.Module):
    """F → |F|·(h + φ(h)·B) with h = F/|F| and φ_k(h) = (√2·cos(⟨w_k, P(h − μ)⟩ + c_k) − m_k)/s_k: (n, d) → (n, d).

    Without weights of its own making: B is 0 until the buffers are loaded, and the head changes nothing.

    Attributes:
        mean: μ, (d,).
        whitener: P, (q, d).
        frequencies: w_k in columns, (q, K).
        phases: c, (K,).
        offset, scale: m and s, (K,).
        mark: B, (K, d).
    """

    TENSORS: ClassVar[tuple[str, ...]] = ("mean", "whitener", "frequencies", "phases", "offset", "scale", "mark")
    mean: Tensor
    whitener: Tensor
    frequencies: Tensor
    phases: Tensor
    offset: Tensor
    scale: Tensor
    mark: Tensor

    def __init__(self, dim: int, components: int, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("whitener", torch.zeros(components, dim))
        self.register_buffer("frequencies", torch.zeros(components, features))
        self.register_buffer("phases", torch.zeros(features))
        self.register_buffer("offset", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("mark", torch.zeros(features, dim))

    def features(self, h: Tensor) -> Tensor:
        """φ of embeddings of length 1: (n, d) → (n, K)."""
        angles = nnf.linear(h - self.mean, self.whitener) @ self.frequencies + self.phases
        return (math.sqrt(2) * torch.cos(angles) - self.offset) / self.scale

    def forward(self, embeddings: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
        h = embeddings / length.clamp_min(torch.finfo(embeddings.dtype).tiny)
        return embeddings + length * (self.features(h) @ self.mark)


class Headed(nn.Module):
    """An encoder's network with a head on its output."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))
