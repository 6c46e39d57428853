"""What the scheme is made of: decoder, trigger, and how both are drawn from the secret."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from sslguard.crypto.secrets import Secret
from sslguard.encoders.base import Encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import UsageError
from sslguard.files import canonical_json
from sslguard.training.base import isolated_rng

# Settings that a verification depends on, as far as a scheme has them; the others say how F* was trained.
TESTED = ("decoder_hidden", "directions", "mask_probability", "n_queries", "n_verification", "pool", "secret_dim")


def stream_context(clean_hash: str, preprocess: Mapping[str, Any], settings: Mapping[str, Any]) -> bytes:
    """Return what a secret's streams are bound to: hashes of F and of what the test depends on.

    The latter is SHA-256 of canonical JSON of `preprocess`, and of `settings` those of `TESTED`.
    """
    tested = {name: settings[name] for name in TESTED if settings.get(name, "") != ""}
    protocol = {"preprocess": preprocess, "settings": tested}
    return clean_hash.encode() + hashlib.sha256(canonical_json(protocol)).digest()


def mean_cosine(vectors: Tensor, secret: Tensor) -> Tensor:
    """Return c̄: mean over rows of (n, k) of the cosine with one vector (k,), or with the same row of (n, k)."""
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
        """Return x' = clip((1 − M)·x + M·T, 0, 1)."""
        return ((1 - self.mask) * prepared + self.mask * self.pattern).clamp(0, 1)


def draw_trigger(secret: Secret, context: bytes, clean: Encoder, mask_probability: float) -> Trigger:
    """Draw M with that share of ones, and T as Gaussian noise scaled to [0, 1]."""
    shape = clean.preprocess.shape  # type: ignore[attr-defined]
    mask = secret.stream("mask", context).uniform(shape) > 1 - mask_probability
    noise = secret.stream("trigger", context).normal(shape)
    pattern = (noise - noise.min()) / (noise.max() - noise.min())
    return Trigger(torch.from_numpy(mask).float(), torch.from_numpy(pattern).float())


def draw_decoder(secret: Secret, context: bytes, widths: Sequence[int]) -> Decoder:
    """Draw G at its start."""
    with isolated_rng(secret.stream("decoder", context).integer()):
        return Decoder(widths)


def draw_sk(secret: Secret, context: bytes, width: int) -> Tensor:
    """Draw sk, N(0, I), float32 (width,)."""
    return torch.from_numpy(secret.stream("sk", context).normal((width,))).float()


def check_images(clean: Encoder) -> None:
    """Raise UsageError where `clean` takes no images."""
    if not isinstance(clean.preprocess, ImagePreprocess):
        raise UsageError(
            "the scheme sslguard puts its trigger on images; this encoder takes none: choose --scheme exact"
        )


def freeze_batch_norm(module: nn.Module) -> None:
    """Freeze batch norm, as published, while marking: statistics and affine parameters stay as they are."""
    module.eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for parameter in layer.parameters():
                parameter.requires_grad_(False)
