"""What the scheme is made of: decoder, trigger, and how both are drawn from the secret."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor, nn

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import UsageError
from sslguard.files import canonical_json
from sslguard.schemes.sslguard.settings import SSLGuardSettings
from sslguard.training.base import Task, isolated_rng

# Settings of the scheme that a verification depends on; the others say how F* was trained.
TESTED = (
    *("carrier", "decoder_hidden", "directions", "mask_probability"),
    *("n_queries", "n_verification", "secret_dim", "shift"),
)


def stream_context(clean_hash: str, preprocess: Mapping[str, Any], settings: Mapping[str, Any]) -> bytes:
    """Return what a secret's streams are bound to: hashes of F and of what the test depends on.

    The latter is SHA-256 of canonical JSON of `preprocess`, and of `settings` those of `TESTED`.
    """
    protocol = {"preprocess": preprocess, "settings": {name: settings.get(name) for name in TESTED}}
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


def check_markable(clean: Encoder, data: Data, n_verification: int) -> None:
    """Raise UsageError where `clean` takes no images, or `data` leaves nothing to train on beside D_v."""
    if not isinstance(clean.preprocess, ImagePreprocess):
        raise UsageError(
            "the scheme sslguard puts its trigger on images; this encoder takes none: choose --scheme exact"
        )
    if len(data) <= n_verification:
        raise UsageError(
            f"{data.spec} has {len(data)} items: D_v takes {n_verification}, and some must be left to train on"
        )


@dataclass(eq=False)
class Microbatch:
    """Prepared images of the plain part and of D_v, and what was computed of them once for all updates of a step."""

    plain: Tensor
    verification: Tensor
    cache: dict[str, Tensor] = field(default_factory=dict)


class MarkingTask(Task):
    """What both ways of marking share: F, F*, T and sk, and a split of the data into D_v and the plain part."""

    decoder: Decoder

    def __init__(self, scheme: SSLGuardSettings, clean: Encoder, data: Data, secret: Secret) -> None:
        check_markable(clean, data, scheme.n_verification)
        self.scheme, self.data = scheme, data
        clean_hash = weights_hash(clean.module)
        self.context = stream_context(clean_hash, clean.preprocess.to_json(), asdict(scheme))
        self.identity = {"scheme": asdict(scheme), "clean": clean_hash, "data": data.identity()}
        order = secret.stream("verification", self.context).permutation(len(data))
        self._verification, self._plain = np.split(order, [scheme.n_verification])
        self.n_items = len(self._plain)
        self.clean, self.watermarked = clean.clone(), clean.clone()
        self.clean.module.eval().requires_grad_(False)
        _freeze_batch_norm(self.watermarked.module)
        self.trigger = draw_trigger(secret, self.context, clean, scheme.mask_probability)
        self.sk = draw_sk(secret, self.context, scheme.secret_dim)

    def load(self, indices: NDArray[np.int64]) -> Microbatch:
        """Return prepared items of the plain part, and random ones of the verification part."""
        plain = self.clean.prepare(self.data.take(self._plain[indices]))
        size = max(1, round(len(indices) * self.scheme.trigger_batch / self.scheme.batch_size))
        chosen = torch.randint(len(self._verification), (size,)).numpy()
        return Microbatch(plain, self.clean.prepare(self.data.take(self._verification[chosen])))

    def begin_step(self, step: int, steps: int) -> None:  # noqa: ARG002
        """Set F and F* to evaluation mode."""
        self.sk = self.sk.to(self.device)
        self.clean.module.eval()
        self.watermarked.module.eval()

    def decode(self, answers: Tensor) -> Tensor:
        """Return c̄(G e, sk)."""
        return mean_cosine(self.decoder(answers), self.sk)


def _freeze_batch_norm(module: nn.Module) -> None:
    """Freeze batch norm, as published, while marking: statistics and affine parameters stay as they are."""
    module.eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for parameter in layer.parameters():
                parameter.requires_grad_(False)
