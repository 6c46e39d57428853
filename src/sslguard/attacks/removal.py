"""Removal: what a thief who holds the weights does to be rid of a mark. The victim is left as it is.

All but `Untrained` train: they take `checkpoint`, a file that a killed run resumes from with the same result,
`progress`, and what `training.Loop` takes of devices and precision.

Source: Cong et al. 2022 fine-tune, prune and overwrite; the others are additions.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sslguard.attacks.base import Needs, Removal
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.errors import UsageError
from sslguard.schemes.base import Scheme
from sslguard.schemes.sslguard import SSLGuard
from sslguard.training.pretraining import Pretraining, train_encoder
from sslguard.training.supervised import Supervised, train_supervised

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
"""What is pruned."""


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


class Untrained(Removal):
    """A change of the weights themselves, at once and without data. Subclasses are frozen dataclasses."""

    needs: ClassVar[Needs] = "nothing"
    title: ClassVar[str]

    def __call__(self, victim: Encoder, data: Data | None = None, *, seed: int = 0, **loop: Any) -> Encoder:  # noqa: ARG002
        """As `Removal`; `data` and `loop` are not used."""
        started = time.perf_counter()
        changed = victim.clone()
        with torch.no_grad():
            self.change(changed.module, np.random.default_rng(seed))
        settings = asdict(self)  # type: ignore[call-overload]
        seconds = round(time.perf_counter() - started, 1)
        record = {"made_by": self.title, "from": victim.source, "recipe": settings, "seconds": seconds}
        return replace(changed, source=f"{victim.source}, {self.said()}", record=record)

    @abstractmethod
    def change(self, module: nn.Module, rng: np.random.Generator) -> None:
        """Change the network in place."""

    @abstractmethod
    def said(self) -> str:
        """What was done, for people."""


@dataclass(frozen=True)
class Prune(Untrained):
    """Set the `amount` of smallest weights of convolutions and linear layers to zero.

    Attributes:
        amount: share of the weights, in (0, 1).
        scope: "global" ranks the weights of the whole network together, "layer" takes that share of every layer.
    """

    title = "prune"

    amount: float = 0.5
    scope: Literal["global", "layer"] = "global"

    def __post_init__(self) -> None:
        _check_share(self.amount)
        if self.scope not in ("global", "layer"):
            raise UsageError(f"scope must be global or layer, not {self.scope!r}")

    def change(self, module: nn.Module, rng: np.random.Generator) -> None:  # noqa: ARG002
        weights = [layer.weight for layer in module.modules() if isinstance(layer, LAYERS)]
        for group in [weights] if self.scope == "global" else [[weight] for weight in weights]:
            _zero_smallest(group, self.amount)

    def said(self) -> str:
        return f"pruned {self.amount:.0%}" + (" of every layer" if self.scope == "layer" else "")


@dataclass(frozen=True)
class PruneFilters(Untrained):
    """Set whole filters to zero with their biases: of every layer those with the smallest L1 norms, rounded down.

    Filters are the outputs of convolutions and linear layers, but for the last of these, whose outputs are the
    embedding's own. Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets", without the retraining.

    Attributes:
        amount: share of the filters, in (0, 1).
    """

    title = "prune filters"

    amount: float = 0.3

    def __post_init__(self) -> None:
        _check_share(self.amount)

    def change(self, module: nn.Module, rng: np.random.Generator) -> None:  # noqa: ARG002
        for layer in [layer for layer in module.modules() if isinstance(layer, LAYERS)][:-1]:
            size = layer.weight.abs().flatten(1).sum(1)
            smallest = size.argsort()[: int(self.amount * len(size))]
            layer.weight[smallest] = 0
            if layer.bias is not None:
                layer.bias[smallest] = 0

    def said(self) -> str:
        return f"pruned {self.amount:.0%} of the filters of every layer"


@dataclass(frozen=True)
class Quantise(Untrained):
    """Round the weights and put them back as they were typed: the network computes as before.

    Attributes:
        to: "int" rounds every tensor of two dimensions and more to whole multiples of max|w|/(2^(bits−1) − 1), by
            output channel; "float16" and "bfloat16" round every parameter.
        bits: of "int", 2 to 16.
    """

    title = "quantise"

    to: Literal["int", "float16", "bfloat16"] = "int"
    bits: int = 8

    def __post_init__(self) -> None:
        if self.to not in ("int", "float16", "bfloat16"):
            raise UsageError(f"to must be int, float16 or bfloat16, not {self.to!r}")
        if not 2 <= self.bits <= 16:
            raise UsageError(f"bits must lie in 2 to 16, not {self.bits}")

    def change(self, module: nn.Module, rng: np.random.Generator) -> None:  # noqa: ARG002
        for weight in module.parameters():
            if self.to != "int":
                kind = getattr(torch, self.to)
                limits = torch.finfo(kind)
                weight.copy_(weight.clamp(limits.min, limits.max).to(kind))
            elif weight.dim() > 1:
                largest = weight.abs().flatten(1).amax(1).clamp_min(torch.finfo(weight.dtype).tiny)
                step = (largest / (2 ** (self.bits - 1) - 1)).view(-1, *[1] * (weight.dim() - 1))
                weight.copy_((weight / step).round() * step)

    def said(self) -> str:
        return f"quantised to {self.to}" + (str(self.bits) if self.to == "int" else "")


@dataclass(frozen=True)
class WeightNoise(Untrained):
    """Gaussian noise on every tensor of two dimensions and more: biases and normalisations stay.

    Attributes:
        std: standard deviation as a share of the tensor's own root mean square.
    """

    title = "weight noise"

    std: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise UsageError(f"std must be positive and finite, not {self.std}")

    def change(self, module: nn.Module, rng: np.random.Generator) -> None:
        for weight in module.parameters():
            if weight.dim() > 1:
                noise = torch.from_numpy(rng.standard_normal(tuple(weight.shape))).to(weight)
                weight.add_(self.std * weight.square().mean().sqrt() * noise)

    def said(self) -> str:
        return f"weight noise {self.std:g}"


def _check_share(amount: float) -> None:
    if not 0 < amount < 1:
        raise UsageError(f"amount must lie between 0 and 1, not {amount}")


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
