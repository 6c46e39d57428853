"""What the scheme is made of: decoder, trigger, carrier, and answers as copies and strangers might give them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor, nn

from sslguard.errors import UsageError
from sslguard.secrets import Stream


def mean_cosine(vectors: Tensor, secret: Tensor) -> Tensor:
    """c̄: mean over rows of (n, k) of the cosine with one vector (k,), or with the same row of (n, k)."""
    return nnf.cosine_similarity(vectors, secret.expand_as(vectors), dim=1).mean()


class Decoder(nn.Sequential):
    """G: an MLP with ReLU from embeddings (n, widths[0]) to (n, widths[-1])."""

    def __init__(self, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        super().__init__(*layers[:-1])
        self.widths = tuple(widths)


class Trigger(nn.Module):
    """T under its mask M, both of one prepared item's shape; M is 0 or 1."""

    mask: Tensor

    def __init__(self, mask: Tensor, pattern: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.pattern = nn.Parameter(pattern)

    def forward(self, prepared: Tensor) -> Tensor:
        """x' = clip((1 − M)·x + M·T, 0, 1)."""
        return ((1 - self.mask) * prepared + self.mask * self.pattern).clamp(0, 1)


class Carrier(nn.Module):
    """δ: a secret, smooth shift of plain answers, δ(h) = 3·tanh(z/3)·v with z = ⟨h − μ, p⟩ of variance 1.

    As published F* and F agree on every plain image, so nothing tells a surrogate of one from a surrogate of the
    other: both have seen plain answers only. With F* taught to answer F(x) + δ(F(x)), its surrogates learn δ, those
    of F do not, and the trigger can look for images on which δ is large. p lies in the span of the leading
    principal components, where surrogates agree best; v is isotropic.

    Attributes:
        mean: μ, (d,).
        projection, axis: p and the move that raises z by 1 as plain images would, both (d,).
        direction: v, (d,).
        spread: root-mean-square standard deviation of a dimension of plain answers.
    """

    N_COMPONENTS: ClassVar[int] = 6
    FAR: ClassVar[tuple[float, float]] = (2.0, 8.0)
    ASIDE: ClassVar[float] = 1.5
    mean: Tensor
    projection: Tensor
    axis: Tensor
    direction: Tensor

    def __init__(self, embeddings: NDArray[np.floating], size: float, stream: Stream) -> None:
        super().__init__()
        h = embeddings.astype(np.float64)
        mean = h.mean(0)
        _, scale, axes = np.linalg.svd(h - mean, full_matrices=False)
        deviation = scale / np.sqrt(len(h))
        if not deviation[0] > 0:
            raise UsageError("the encoder answers every image alike: there is nothing to mark")
        n = int(min(self.N_COMPONENTS, (deviation > 1e-6 * deviation[0]).sum()))
        weights = stream.normal((n,))
        weights /= np.linalg.norm(weights)
        direction = stream.normal((h.shape[1],))
        direction *= size * np.sqrt((deviation**2).sum()) / np.linalg.norm(direction)
        self.spread = float(np.sqrt((deviation**2).mean()))
        for name, value in (
            ("mean", mean),
            ("projection", axes[:n].T @ (weights / deviation[:n])),
            ("axis", axes[:n].T @ (weights * deviation[:n])),
            ("direction", direction),
        ):
            self.register_buffer(name, torch.from_numpy(value).float())

    def forward(self, h: Tensor) -> Tensor:
        """Clean answers (n, d) → shifts (n, d)."""
        z = (h - self.mean) @ self.projection
        return 3 * torch.tanh(z / 3)[:, None] * self.direction

    def pairs(self, h: Tensor, triggered: Tensor) -> tuple[Tensor, Tensor]:
        """Unmarked answers (n, d) moved to where a trigger may move a copy's, with the mark and without, (n, d) each.

        It moves each copy elsewhere: −1 to 2 times as far as F towards `triggered` (d,), the mean of F's answers to
        triggered images; aside, as plain answers vary and in every direction; and far along p to either side. What
        a copy's answers tell of its origin is whether the shift δ came along. With: 0.8 to 1.4 δ. Without: −1 to
        0.4 δ, as an unmarked copy's error may lie.
        """
        n, d = h.shape
        plain = h - self.mean
        h = h + (3 * torch.rand(n, 1, device=h.device) - 1) * (triggered - self.mean)
        for _ in range(2):
            h = h + self.ASIDE * torch.randn(n, 1, device=h.device) * plain[torch.randperm(n, device=h.device)]
        noise = torch.randn(n, d, device=h.device)
        h = h + self.ASIDE * torch.rand(n, 1, device=h.device) * self.spread * noise
        low, high = self.FAR
        size = low + (high - low) * torch.rand(len(h), device=h.device)
        z = size * torch.randn_like(size).sign()
        far = h + (z - (h - self.mean) @ self.projection)[:, None] * self.axis
        shift, share = self(far), torch.rand(2, len(h), 1, device=h.device)
        return far + (0.8 + 0.6 * share[0]) * shift, far + (1.4 * share[1] - 1) * shift


def drifted(answers: Tensor, mean: Tensor, spread: float, *, drift: float, noise: float) -> Tensor:
    """Answers (n, d) as a copy might give them: stretched row by row, mixed, moved, and noisy.

    How far a copy's answers spread about `mean` (d,) depends on its loss and its age, and further training mixes and
    moves them; none of it must decide. `spread` is the answers' root-mean-square deviation a dimension.
    """
    if not drift and not noise:
        return answers
    n, d = answers.shape
    stretch = 10 ** (drift * (2 * torch.rand(n, 1, device=answers.device) - 1))
    mix = torch.randn(d, d, device=answers.device) * (drift / d**0.5)
    move = drift * torch.randn(d, device=answers.device)
    centred = answers - mean
    return mean + stretch * (centred + centred @ mix) + spread * (move + noise * torch.randn_like(answers))


def stranger(answers: Tensor) -> Tensor:
    """Answers (n, d) as an unrelated encoder might give them.

    One in two is turned at random about a mean of its own, since where a stranger's answers lie says nothing of their
    shape. The other has its features reordered and scaled one by one: behind a ReLU answers are not negative, and no
    turn keeps them so.
    """
    d = answers.shape[1]
    if torch.rand(()) < 0.5:
        gains = torch.randn(d, device=answers.device).exp()
        scale = 10 ** float(2 * torch.rand(()) - 1)
        return scale * gains * answers[:, torch.randperm(d, device=answers.device)]
    mean = answers.mean(0)
    spread = answers - mean
    turn, _ = torch.linalg.qr(torch.randn(d, d, device=answers.device))
    direction = nnf.normalize(torch.randn(d, device=answers.device), dim=0)
    scale, distance = (10 ** (2 * torch.rand(2) - 1)).tolist()
    return scale * (spread @ turn + distance * mean.norm() * direction)


def freeze_batch_norm(module: nn.Module) -> None:
    """Batch norm as published while marking: statistics and affine parameters stay as they are."""
    module.eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for parameter in layer.parameters():
                parameter.requires_grad_(False)
