"""The mark put on: as a head on the output, or distilled into the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.heads import FunctionsBeside, Headed, StatisticsHead
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import UsageError
from sslguard.schemes.exact.bank import Array, Bank
from sslguard.schemes.exact.settings import ExactSettings
from sslguard.training.base import Task


def headed(clean: Encoder, bank: Bank, mixtures: Array, rows: Array) -> Encoder:
    """Return F with the mark as a head: |F|·(h + ψ·mixtures·rows).

    Args:
        clean: F.
        bank: Of the functions ψ.
        mixtures: (B, K), as `ExactKey.mixtures` gives them.
        rows: (K, d), as `ExactKey.rows` gives them.

    Raises:
        UsageError: F has a head already.
    """
    sizes = {"statistics": len(bank.centre), "functions": mixtures.shape[1]}
    values = {
        "mean": bank.mean,
        "centre": bank.centre,
        "axes": bank.mixing @ mixtures,
        "linear": bank.axes.T @ (bank.linear @ mixtures),
        "rows": rows,
    }
    module = _behind(clean, StatisticsHead(clean.dim, **sizes), values)
    return replace(clean, module=module.requires_grad_(True), architecture={**clean.architecture, "head": sizes})


def with_functions(clean: Encoder, bank: Bank) -> Encoder:
    """Return F whose answers hold |F|·ψ behind each embedding, (n, d + B): any mark can be put on them afterwards.

    It has no name that it can be saved by.

    Args:
        clean: F.
        bank: Of the functions ψ.

    Raises:
        UsageError: F has a head already.
    """
    values = {"mean": bank.mean, "centre": bank.centre, "axes": bank.mixing, "linear": bank.axes.T @ bank.linear}
    module = _behind(clean, FunctionsBeside(clean.dim, len(bank.centre), bank.size), values)
    return replace(clean, module=module, dim=clean.dim + bank.size)


def _behind(clean: Encoder, head: FunctionsBeside, values: Mapping[str, Array]) -> Headed:
    if "head" in clean.architecture:
        raise UsageError("this encoder carries a head already: mark the one below it, or distil the mark")
    head.load_state_dict({name: torch.from_numpy(values[name]).float() for name in head.TENSORS})
    return Headed(clean.clone().module, head.to(clean.device)).eval()


@dataclass(eq=False)
class _Microbatch:
    items: Tensor
    target: Tensor


class DistilMark(Task):
    """F fine-tuned until it answers as F with the head does; batch norm stays in evaluation mode.

    L = |e|²/s² with e = F*(x) − head(F(x)), both over the length of the head's answer, and s² the variance of F's own
    answers. Of images, each step takes copies that are flipped and shifted by chance, so that the mark does not overfit
    a small set.

    Args:
        scheme: Its settings.
        clean: F.
        target: F with the head.
        data: Items to learn from.
        variance: s².
    """

    def __init__(self, scheme: ExactSettings, clean: Encoder, target: Encoder, data: Data, variance: float) -> None:
        self.scheme, self.data, self.target = scheme, data, target
        self.watermarked = clean.clone()
        self.watermarked.module.requires_grad_(True)
        self.target.module.eval().requires_grad_(False)
        self.n_items = len(data)
        self._variance = variance
        self._moves = isinstance(clean.preprocess, ImagePreprocess)
        self.identity = {"scheme": asdict(scheme), "clean": weights_hash(clean.module), "data": data.identity()}
        # What the head holds is the secret's: another secret is another run.
        self.identity["target"] = weights_hash(target.module)
        self.modules = {"target": target.module, "watermarked": self.watermarked.module}
        self.optimizers = {
            "watermarked": torch.optim.Adam(self.watermarked.module.parameters(), lr=scheme.learning_rate)
        }

    def load(self, indices: NDArray[np.int64]) -> _Microbatch:
        """Return the prepared items, moved by chance where they are images, and their target answers."""
        items = self.watermarked.prepare(self.data.take(indices))
        if self._moves:
            items = moved(items)
        with torch.no_grad():
            return _Microbatch(items, self.target.forward(items).float())

    def begin_step(self, step: int, steps: int) -> None:
        """Set the networks' modes and the learning rates for a step."""
        self.target.module.eval()
        self.watermarked.module.eval()
        self.anneal(step, steps)

    def loss(self, microbatch: _Microbatch) -> Tensor:
        """Return the loss of the watermarked encoder."""
        target = microbatch.target
        error = self.watermarked.forward(microbatch.items).float() - target
        error = error / torch.linalg.vector_norm(target, dim=1, keepdim=True).clamp_min(1e-12)
        return error.square().sum(1).mean() / self._variance


def moved(images: Tensor) -> Tensor:
    """Return images (n, C, H, W), each flipped by chance and shifted by up to an eighth of its side.

    What a shift leaves free takes the value of the nearest edge. The randomness is torch's own.
    """
    n, _, height, width = images.shape
    flips = torch.rand(n) < 0.5
    images = torch.where(flips[:, None, None, None].to(images.device), images.flip(3), images)
    reach = [max(1, side // 8) for side in (height, width)]
    padded = nnf.pad(images, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    starts = [torch.randint(0, 2 * r + 1, (n,)) for r in reach]
    rows = (starts[0][:, None] + torch.arange(height)).to(images.device)
    columns = (starts[1][:, None] + torch.arange(width)).to(images.device)
    batch = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2).contiguous()
