"""Removal: what a thief who holds the weights does to be rid of a mark. The victim is left as it is.

All but pruning train: they take `checkpoint`, a file that a killed run resumes from with the same result, `progress`,
and what `training.Loop` takes of devices and precision.

Source: Cong et al. 2022 fine-tune, prune and overwrite. `SelfSupervised`, and pruning layer by layer, are additions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sslguard.attacks.base import Needs, Removal
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.errors import UsageError
from sslguard.pretraining import Pretraining, train_encoder
from sslguard.schemes.base import Scheme
from sslguard.schemes.sslguard import SSLGuard
from sslguard.secrets import Secret
from sslguard.supervised import Supervised, train_supervised


@dataclass(frozen=True)
class FineTune(Removal):
    """Train on labels of the thief's own.

    Attributes:
        recipe: budget, rates and layers.
        epochs: passes over the data, in place of the recipe's steps: steps = ⌈epochs · n / batch_size⌉.
    """

    needs: ClassVar[Needs] = "labels"

    recipe: Supervised = field(default_factory=Supervised)
    epochs: float | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise UsageError(f"epochs must be positive and finite, not {self.epochs}")

    def __call__(
        self,
        victim: Encoder,
        data: Data,
        *,
        seed: int,
        checkpoint: Path | None = None,
        progress: bool = False,
        **loop: Any,
    ) -> Encoder:
        recipe = self.recipe
        if self.epochs is not None:
            # In decimals: 1.1 epochs of 100 items are 110, not 110.00000000000001.
            passes = Fraction(str(self.epochs)) * len(data) / recipe.batch_size
            recipe = replace(recipe, steps=math.ceil(passes))
        loop |= {"checkpoint": checkpoint, "progress": progress, "title": "fine-tune"}
        return train_supervised(recipe, victim, data, seed=seed, **loop)


def _gentle() -> Pretraining:
    return Pretraining("simclr", steps=200, batch_size=128, learning_rate=1e-3)


@dataclass(frozen=True)
class SelfSupervised(Removal):
    """Go on with self-supervised pre-training, on unlabelled images of the thief's own.

    Attributes:
        recipe: method, budget and views; by default SimCLR, at half the rate that trains from scratch.
    """

    recipe: Pretraining = field(default_factory=_gentle)

    def __call__(
        self,
        victim: Encoder,
        data: Data,
        *,
        seed: int,
        checkpoint: Path | None = None,
        progress: bool = False,
        **loop: Any,
    ) -> Encoder:
        copy = victim.clone()
        copy.module.requires_grad_(True)
        loop |= {"checkpoint": checkpoint, "progress": progress, "title": f"go on with {self.recipe.method}"}
        trained, _ = train_encoder(self.recipe, copy, data, seed=seed, **loop)
        record = {**trained.record, "from": victim.source}
        return replace(trained, source=f"{victim.source}, {trained.source}", record=record)


@dataclass(frozen=True)
class Overwrite(Removal):
    """Mark the victim once more, by the whole scheme, with a secret and data of the thief's own.

    The thief's secret comes from `seed`, and is never the `Secret.from_seed` of a small number, which the owner in a
    published table may hold. The key that marking makes is dropped.

    Attributes:
        scheme: how it is marked; any scheme with any settings.
    """

    scheme: Scheme = field(default_factory=SSLGuard)

    def __call__(
        self,
        victim: Encoder,
        data: Data,
        *,
        seed: int,
        checkpoint: Path | None = None,
        progress: bool = False,
        **loop: Any,
    ) -> Encoder:
        secret = Secret.from_seed(Secret.from_seed(seed).stream("overwrite").integer())
        copy = victim.clone()
        copy.module.requires_grad_(True)
        loop |= {"checkpoint": checkpoint, "progress": progress}
        marked = self.scheme.watermark(copy, data, secret=secret, **loop).encoder
        record = {**marked.record, "made_by": "overwrite", "from": victim.source, "seed": seed}
        return replace(marked, source=f"{victim.source}, overwritten by {self.scheme.name}", record=record)


@dataclass(frozen=True)
class Prune(Removal):
    """Set the `amount` of smallest weights of convolutions and linear layers to zero.

    Attributes:
        amount: share of the weights, in (0, 1).
        scope: "global" ranks the weights of the whole network together, "layer" takes that share of every layer.
    """

    needs: ClassVar[Needs] = "nothing"

    amount: float = 0.5
    scope: Literal["global", "layer"] = "global"

    def __post_init__(self) -> None:
        if not 0 < self.amount < 1:
            raise UsageError(f"amount must lie between 0 and 1, not {self.amount}")
        if self.scope not in ("global", "layer"):
            raise UsageError(f"scope must be global or layer, not {self.scope!r}")

    def __call__(self, victim: Encoder, data: Data | None = None, *, seed: int = 0, **loop: Any) -> Encoder:  # noqa: ARG002
        started = time.perf_counter()
        pruned = victim.clone()
        kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
        weights = [layer.weight for layer in pruned.module.modules() if isinstance(layer, kinds)]
        for group in [weights] if self.scope == "global" else [[weight] for weight in weights]:
            _zero_smallest(group, self.amount)
        seconds = round(time.perf_counter() - started, 1)
        record = {"made_by": "prune", "from": victim.source, "recipe": asdict(self), "seconds": seconds}
        each = " of every layer" if self.scope == "layer" else ""
        return replace(pruned, source=f"{victim.source}, pruned {self.amount:.0%}{each}", record=record)


def _zero_smallest(weights: Sequence[Tensor], amount: float) -> None:
    """Zero that share of the numbers in all `weights` together, the smallest magnitudes, rounded down; in place."""
    magnitudes = torch.cat([w.detach().abs().reshape(-1) for w in weights])
    count = int(amount * len(magnitudes))
    if count == 0:
        return
    threshold = magnitudes.kthvalue(count).values
    with torch.no_grad():
        for weight in weights:
            weight[weight.abs() <= threshold] = 0
