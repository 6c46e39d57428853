"""The mark put on: as a head on the output, or distilled into the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.heads import FourierHead, Headed
from sslguard.errors import UsageError
from sslguard.schemes.exact.bank import Array, Bank
from sslguard.schemes.exact.settings import ExactSettings
from sslguard.training.base import Task

_FROM_BANK = ("frequencies", "phases", "offset", "scale", "centre", "axes", "linear")


def headed(clean: Encoder, bank: Bank, directions: Array, epsilon: float) -> Encoder:
    """Return F with the mark as a head: |F|·(h + ε·K^(−1/2)·Σ_k φ_k(h)·M u_k).

    Raises:
        UsageError: F has a head already.
    """
    if "head" in clean.architecture:
        raise UsageError("this encoder carries a head already: mark the one below it, or distil the mark")
    k, (q, features) = bank.size, bank.frequencies.shape
    sizes = {"components": q, "features": features, "statistics": bank.axes.shape[1]}
    architecture = {**clean.architecture, "head": sizes}
    module = Headed(clean.clone().module, FourierHead(clean.dim, **sizes).to(clean.device))
    values = {
        "mean": bank.geometry.mean,
        "whitener": bank.geometry.whitener,
        **{name: getattr(bank, name) for name in _FROM_BANK},
        "rows": epsilon / np.sqrt(k) * directions @ bank.geometry.spread,
    }
    module.head.load_state_dict({name: torch.from_numpy(values[name]).float() for name in FourierHead.TENSORS})
    return replace(clean, module=module.eval().requires_grad_(True), architecture=architecture)


@dataclass(eq=False)
class _Microbatch:
    items: Tensor
    target: Tensor


class DistilMark(Task):
    """F fine-tuned until it answers as F with the head does; batch norm stays in evaluation mode.

    L = |F*(x) − head(F(x))|²/s², s the root-mean-square distance of F's answers from their mean.

    Args:
        target: F with the head.
        answers, statistics: F's to the first items of `data`, and ψ of these. Where they are all of them, F is not
            asked again.
    """

    def __init__(
        self,
        scheme: ExactSettings,
        clean: Encoder,
        target: Encoder,
        data: Data,
        answers: NDArray[np.floating],
        statistics: NDArray[np.floating],
    ) -> None:
        self.scheme, self.data, self.target = scheme, data, target
        self.watermarked = clean.clone()
        self.watermarked.module.requires_grad_(True)
        self.target.module.eval().requires_grad_(False)
        self.n_items = len(data)
        self._spread = float(answers.astype(np.float64).var(0).sum())
        self._targets: Tensor | None = None
        if len(answers) == len(data):
            assert isinstance(target.module, Headed)
            with torch.inference_mode():
                self._targets = target.module.head(
                    torch.from_numpy(answers).float(), torch.from_numpy(statistics).float()
                )
        self.identity = {"scheme": asdict(scheme), "clean": weights_hash(clean.module), "data": data.identity()}
        # What the head holds is the secret's: another secret is another run.
        self.identity["target"] = weights_hash(target.module)
        self.modules = {"target": target.module, "watermarked": self.watermarked.module}
        self.optimizers = {
            "watermarked": torch.optim.Adam(self.watermarked.module.parameters(), lr=scheme.learning_rate)
        }

    def load(self, indices: NDArray[np.int64]) -> _Microbatch:
        """Return the prepared items and their target answers."""
        items = self.watermarked.prepare(self.data.take(indices))
        if self._targets is not None:
            return _Microbatch(items, self._targets[torch.from_numpy(indices)].clone().to(self.device))
        with torch.no_grad():
            return _Microbatch(items, self.target.forward(items).float())

    def begin_step(self, step: int, steps: int) -> None:
        """Set the networks' modes and the learning rates for a step."""
        self.target.module.eval()
        self.watermarked.module.eval()
        self.anneal(step, steps)

    def loss(self, microbatch: _Microbatch) -> Tensor:
        """Return the loss of the watermarked encoder."""
        answers = self.watermarked.forward(microbatch.items).float()
        return (answers - microbatch.target).square().sum(1).mean() / self._spread
