"""Training on labels: an encoder under a linear classifier, from scratch or from pre-trained weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor, nn

from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import DataError
from sslguard.training.base import Loop, Task, isolated_rng
from sslguard.training.loop import run
from sslguard.training.low_rank import add_updates, merge_updates
from sslguard.training.recipes import Supervised


class SupervisedTask(Task):
    """Training of an encoder, in place, by the cross-entropy of a linear layer on top of it."""

    def __init__(self, recipe: Supervised, encoder: Encoder, data: Data, *, seed: int) -> None:
        if data.labels is None:
            raise DataError(f"{data.spec} has no labels to train on")
        self.encoder, self.data, self.n_items = encoder, data, len(data)
        self.identity = {
            "task": "supervised",
            "recipe": asdict(recipe),
            "data": data.identity(),
            "start": weights_hash(encoder.module),
        }
        self._labels = torch.from_numpy(data.labels)
        with isolated_rng(seed, 3):
            self._classifier = nn.Linear(encoder.dim, int(data.labels.max()) + 1)
        self.modules = {"encoder": encoder.module, "classifier": self._classifier}
        trained = encoder.module if recipe.layers == "all" else _last_block(encoder.module)
        parameters = [p for p in (*trained.parameters(), *self._classifier.parameters()) if p.requires_grad]
        self.optimizers = {
            "all": torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        }
        self._augment: Callable[[Tensor], Tensor] = lambda images: images
        if recipe.augmentation is not None and isinstance(encoder.preprocess, ImagePreprocess):
            self._augment = recipe.augmentation.build(encoder.preprocess.height, encoder.preprocess.width)

    def load(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the encoder's inputs for these items, and their labels, int64 (n,). See `Task.load`."""
        images = self._augment(self.encoder.prepare(self.data.take(indices)))
        return images, self._labels[torch.from_numpy(indices)].to(self.device)

    def begin_step(self, step: int, steps: int) -> None:
        """Set the learning rate, and the encoder to training mode."""
        self.anneal(step, steps)
        self.encoder.module.train()

    def loss(self, microbatch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the cross-entropy."""
        images, labels = microbatch
        return nnf.cross_entropy(self._classifier(self.encoder.forward(images)), labels)


def _last_block(module: nn.Module) -> nn.Module:
    """Return the last child with parameters of a network that is a sequence of blocks."""
    backbone: nn.Module = getattr(module, "backbone", module)  # pyrefly: ignore[bad-assignment]
    children = [c for c in backbone.children() if next(c.parameters(), None) is not None]
    return children[-1] if children else module


def train_supervised(
    recipe: Supervised,
    encoder: Encoder,
    data: Data,
    *,
    seed: int,
    title: str = "supervised",
    rank: int = 0,
    **loop_settings: Any,
) -> Encoder:
    """Return a copy of `encoder`, trained on the labels of `data`.

    The classifier is discarded, and `encoder` is left unchanged.

    Args:
        recipe: Steps, learning rate and layers.
        encoder: Encoder to start from.
        data: Labelled items.
        seed: Seed of all randomness.
        title: Label of the progress bar.
        rank: Rank of the updates that are trained in place of the weights, and merged in the end; 0 trains the weights.
        loop_settings: Settings of `training.base.Loop`, such as `checkpoint` and `devices`.

    Raises:
        DataError: `data` has no labels.
    """
    copy = encoder.clone()
    copy.module.requires_grad_(True)
    if rank:
        with isolated_rng(seed, 4):
            add_updates(copy.module, rank)
    loop = Loop(steps=recipe.steps, batch_size=recipe.batch_size, seed=seed, title=title, **loop_settings)
    history = run(SupervisedTask(recipe, copy, data, seed=seed), loop)
    merge_updates(copy.module)
    copy.module.eval().requires_grad_(True)
    record = {
        "made_by": "supervised",
        "from": encoder.source,
        "recipe": asdict(recipe),
        **({"rank": rank} if rank else {}),
        "data": data.spec,
        "seed": seed,
        **history.times(),
        "final_loss": history.losses["loss"][-1],
    }
    return replace(copy, source=f"{encoder.source}, trained on labels", record=record)
