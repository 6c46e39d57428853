"""Removal: what a thief who holds the weights does to be rid of a mark. The victim is left as it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import nn

from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.errors import UsageError
from sslguard.supervised import Supervised, train_supervised


class Removal(ABC):
    """Sees the weights."""

    @abstractmethod
    def __call__(self, victim: Encoder, data: Data, *, seed: int) -> Encoder:
        """A changed copy of `victim`."""


@dataclass(frozen=True)
class FineTune(Removal):
    """Train on labels of the thief's own."""

    recipe: Supervised = field(default_factory=Supervised)

    def __call__(self, victim: Encoder, data: Data, *, seed: int) -> Encoder:
        return train_supervised(self.recipe, victim, data, seed=seed)


@dataclass(frozen=True)
class Prune(Removal):
    """Set the `amount` of smallest weights of convolutions and linear layers to zero, over the whole network."""

    amount: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.amount < 1:
            raise UsageError(f"amount must lie between 0 and 1, not {self.amount}")

    def __call__(self, victim: Encoder, data: Data | None = None, *, seed: int = 0) -> Encoder:  # noqa: ARG002
        pruned = victim.clone()
        kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
        weights = [layer.weight for layer in pruned.module.modules() if isinstance(layer, kinds)]
        magnitudes = torch.cat([w.detach().abs().reshape(-1) for w in weights])
        threshold = magnitudes.kthvalue(max(1, int(self.amount * len(magnitudes)))).values
        with torch.no_grad():
            for weight in weights:
                weight[weight.abs() <= threshold] = 0
        record = {"made_by": "prune", "from": victim.source, "recipe": asdict(self)}
        return replace(pruned, source=f"{victim.source}, pruned {self.amount:.0%}", record=record)
