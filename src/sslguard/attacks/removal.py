"""Removals: attempts to erase a mark by an attacker who holds the weights. The victim is left unchanged.

All but the `Untrained` attacks train. They take `checkpoint`, a file from which a killed run resumes with the same
result, `progress`, and the devices and precision of `training.base.Loop`.

Source: Cong et al. 2022 fine-tune, prune and overwrite; the other attacks are additions.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sslguard.attacks.base import Needs, Removal
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.schemes.base import Scheme
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.settings import Count, Positive, Range, Share
from sslguard.training.low_rank import LAYERS
from sslguard.training.pretraining import train_encoder
from sslguard.training.recipes import GENTLE, Pretraining, Supervised
from sslguard.training.supervised import train_supervised


@dataclass(frozen=True)
class FineTune(Removal):
    """Train on labels of the thief's own.

    Attributes:
        recipe: Steps, learning rates, and which layers are trained.
        epochs: Passes over the data, in place of the recipe's steps: steps = ⌈epochs · n / batch_size⌉. None keeps the
            recipe's steps.
    """

    needs: ClassVar[Needs] = "labels"

    recipe: Supervised = field(default_factory=Supervised)
    epochs: Positive | None = None

    def __call__(self, victim: Encoder, data: Data, *, seed: int, **loop: Any) -> Encoder:
        """Return a copy of `victim`, trained on the labels of `data`. See `Removal`.

        Raises:
            DataError: `data` has no labels.
        """
        return train_supervised(self.scheduled(data), victim, data, seed=seed, title="fine-tune", **loop)

    def scheduled(self, data: Data) -> Supervised:
        """Return the recipe with the steps that `epochs` make of so many items."""
        if self.epochs is None:
            return self.recipe
        # Exact arithmetic: 1.1 epochs of 100 items are 110, not 110.00000000000001, which rounds up to 111.
        passes = Fraction(str(self.epochs)) * len(data) / self.recipe.batch_size
        return replace(self.recipe, steps=math.ceil(passes))


@dataclass(frozen=True)
class LoRA(FineTune):
    """Train updates of low rank on labels of the thief's own, and merge them into the weights.

    Every convolution and linear layer gets an update. The recipe's choice of layers does not apply.

    Attributes:
        rank: Rank of the updates.

    Source: Hu et al. 2022 (arXiv 2106.09685).
    """

    rank: Count = 8

    def __call__(self, victim: Encoder, data: Data, *, seed: int, **loop: Any) -> Encoder:
        """Return a copy of `victim` with merged updates. See `FineTune`."""
        return train_supervised(self.scheduled(data), victim, data, seed=seed, title="LoRA", rank=self.rank, **loop)


@dataclass(frozen=True)
class Soup(FineTune):
    """Fine-tune several copies from seeds of their own, and average their weights.

    A checkpoint keeps the first copy; a run that is killed later trains the others again.

    Attributes:
        copies: How many.

    Source: Wortsman et al. 2022, "Model soups" (arXiv 2203.05482), the uniform soup.
    """

    copies: Annotated[int, Range(least=2, most=100)] = 2

    def __call__(self, victim: Encoder, data: Data, *, seed: int, **loop: Any) -> Encoder:
        """Return the average of fine-tuned copies of `victim`. See `FineTune`."""
        copies = [super().__call__(victim, data, seed=seed, **loop)]
        alone = {**loop, "checkpoint": None}
        copies += [super(Soup, self).__call__(victim, data, seed=seed + k, **alone) for k in range(1, self.copies)]
        mixed = copies[0]
        states = [copy.module.state_dict() for copy in copies]
        means = {name: torch.stack([state[name].double() for state in states]).mean(0) for name in states[0]}
        # load_state_dict rounds to the dtype of each tensor.
        mixed.module.load_state_dict(means)
        record = {**mixed.record, "made_by": "soup", "copies": self.copies}
        return replace(mixed, source=f"{victim.source}, mean of {self.copies} fine-tuned copies", record=record)


@dataclass(frozen=True)
class SelfSupervised(Removal):
    """Continue self-supervised pre-training on unlabelled images of the thief's own.

    Attributes:
        recipe: Method, steps and views; the default is SimCLR at half the learning rate of training from scratch.
    """

    recipe: Pretraining = GENTLE

    def __call__(self, victim: Encoder, data: Data, *, seed: int, **loop: Any) -> Encoder:
        """Return a copy of `victim`, trained further on `data`. See `Removal`."""
        copy = victim.clone()
        copy.module.requires_grad_(True)
        title = f"go on with {self.recipe.method}"
        trained, _ = train_encoder(self.recipe, copy, data, seed=seed, title=title, **loop)
        record = {**trained.record, "from": victim.source}
        return replace(trained, source=f"{victim.source}, {trained.source}", record=record)


@dataclass(frozen=True)
class Overwrite(Removal):
    """Mark the victim once more, by a whole scheme with the thief's own secret and data.

    The thief's secret is derived from `seed`. It is never `Secret.from_seed` of a small number, which the owner may
    hold in a published table. The key of the new mark is discarded.

    Attributes:
        scheme: Scheme that marks the copy, with any settings.
    """

    scheme: Scheme = field(default_factory=SSLGuard)

    def __call__(self, victim: Encoder, data: Data, *, seed: int, **loop: Any) -> Encoder:
        """Return a copy of `victim` that carries a second mark. See `Removal`."""
        secret = Secret.from_seed(Secret.from_seed(seed).stream("overwrite").integer())
        copy = victim.clone()
        copy.module.requires_grad_(True)
        marked = self.scheme.watermark(copy, data, secret=secret, **loop).encoder
        record = {**marked.record, "made_by": "overwrite", "from": victim.source, "seed": seed}
        return replace(marked, source=f"{victim.source}, overwritten by {self.scheme.name}", record=record)


class Untrained(Removal):
    """Removal that changes weights directly, without data or training. Subclasses are frozen dataclasses."""

    needs: ClassVar[Needs] = "nothing"
    title: ClassVar[str]

    def __call__(self, victim: Encoder, data: Data | None = None, *, seed: int = 0, **loop: Any) -> Encoder:  # noqa: ARG002
        """Return a changed copy of `victim`. `data` and `loop` are ignored. See `Removal`."""
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
        """Change the network in place.

        Args:
            module: Network to change.
            rng: Source of all randomness.
        """

    @abstractmethod
    def said(self) -> str:
        """Return what was done, in words that complete the changed encoder's `source`."""


@dataclass(frozen=True)
class Prune(Untrained):
    """Set the `amount` of smallest weights of convolutions and linear layers to zero.

    Attributes:
        amount: Share of the weights, in (0, 1).
        scope: "global" ranks the weights of the whole network together; "layer" prunes that share of every layer.
    """

    title = "prune"

    amount: Share = 0.5
    scope: Literal["global", "layer"] = "global"

    def change(self, module: nn.Module, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Set the smallest weights to zero, in place."""
        weights = [layer.weight for layer in module.modules() if isinstance(layer, LAYERS)]
        for group in [weights] if self.scope == "global" else [[weight] for weight in weights]:
            _zero_smallest(group, self.amount)

    def said(self) -> str:
        """Return "pruned", the share, and the scope if it is "layer"."""
        return f"pruned {self.amount:.0%}" + (" of every layer" if self.scope == "layer" else "")


@dataclass(frozen=True)
class PruneFilters(Untrained):
    """Set whole filters and their biases to zero: in every layer, those with the smallest L1 norms.

    A filter computes one output of a convolution or linear layer. The number of filters to prune is rounded down. The
    last layer is spared, because its outputs are the embedding. Source: Li et al. 2017, "Pruning Filters for Efficient
    ConvNets", without the retraining.

    Attributes:
        amount: Share of each layer's filters, in (0, 1).
    """

    title = "prune filters"

    amount: Share = 0.3

    def change(self, module: nn.Module, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Set the filters with the smallest L1 norms to zero, in place."""
        for layer in [layer for layer in module.modules() if isinstance(layer, LAYERS)][:-1]:
            size = layer.weight.abs().flatten(1).sum(1)
            smallest = size.argsort()[: int(self.amount * len(size))]
            layer.weight[smallest] = 0
            if layer.bias is not None:
                layer.bias[smallest] = 0

    def said(self) -> str:
        """Return "pruned" and the share of the filters."""
        return f"pruned {self.amount:.0%} of the filters of every layer"


@dataclass(frozen=True)
class Quantise(Untrained):
    """Round the weights, and store them in their former dtype, so that the network computes as before.

    Attributes:
        to: "int" rounds every tensor of two or more dimensions to whole multiples of max|w|/(2^(bits−1) − 1),
            separately for each output channel; "float16" and "bfloat16" round every parameter.
        bits: Bits of "int", 2 to 16.
    """

    title = "quantise"

    to: Literal["int", "float16", "bfloat16"] = "int"
    bits: Annotated[int, Range(least=2, most=16)] = 8

    def change(self, module: nn.Module, rng: np.random.Generator) -> None:  # noqa: ARG002
        """Round the weights in place."""
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
        """Return "quantised to", the number type, and the bits of "int"."""
        return f"quantised to {self.to}" + (str(self.bits) if self.to == "int" else "")


@dataclass(frozen=True)
class WeightNoise(Untrained):
    """Add Gaussian noise to every tensor of two or more dimensions. Biases and normalisation layers stay unchanged.

    Attributes:
        std: Standard deviation of the noise, as a share of the tensor's root mean square; positive.
    """

    title = "weight noise"

    std: Positive = 0.1

    def change(self, module: nn.Module, rng: np.random.Generator) -> None:
        """Add the noise in place."""
        for weight in module.parameters():
            if weight.dim() > 1:
                noise = torch.from_numpy(rng.standard_normal(tuple(weight.shape))).to(weight)
                weight.add_(self.std * weight.square().mean().sqrt() * noise)

    def said(self) -> str:
        """Return "weight noise" and its standard deviation."""
        return f"weight noise {self.std:g}"


def _zero_smallest(weights: Sequence[Tensor], amount: float) -> None:
    """Set the smallest magnitudes among all `weights` to zero, in place: that share of the numbers, rounded down."""
    magnitudes = torch.cat([w.detach().abs().reshape(-1) for w in weights])
    count = int(amount * len(magnitudes))
    if count == 0:
        return
    threshold = magnitudes.kthvalue(count).values
    with torch.no_grad():
        for weight in weights:
            weight[weight.abs() <= threshold] = 0
