"""Recipes of training: what can be chosen of pre-training, distillation and supervised training, and the defaults.

They are plain settings: the command line, configurations and records read them without anything that trains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from sslguard.errors import UsageError
from sslguard.training.augmentation import MILD, Augmentation
from sslguard.training.augmentation import VIEWS as CONTRASTED

Method = Literal["simclr", "moco", "byol"]
Loss = Literal["cosine", "centred", "mse", "infonce", "cont-steal", "rda"]
LOSSES: tuple[Loss, ...] = ("cosine", "centred", "mse", "infonce", "cont-steal", "rda")
Views = Literal["asked", "other", "local", "prototype"]
VIEWS: tuple[Views, ...] = ("asked", "other", "local", "prototype")


@dataclass(frozen=True)
class Pretraining:
    """A recipe of pre-training.

    Attributes:
        method: "simclr", "moco" or "byol".
        steps: Number of optimiser steps.
        batch_size: Images a step, two views of each.
        learning_rate: Learning rate of AdamW, positive. It rises over 5 % of the steps and then falls to 0 by half a
            cosine.
        weight_decay: Weight decay of AdamW, at least 0.
        temperature: Temperature of the contrastive losses, positive.
        momentum: Momentum of the key network (MoCo) or target network (BYOL), in [0, 1]; BYOL's rises to 1 over the
            run.
        queue: Length of MoCo's queue.
        projection: Output width of the projection network, whose hidden layer is twice as wide as the embedding.
        views: Recipe of the random views.
    """

    method: Method
    steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    temperature: float = 0.2
    momentum: float = 0.99
    queue: int = 4096
    projection: int = 64
    views: Augmentation = CONTRASTED

    def __post_init__(self) -> None:
        if self.method not in ("simclr", "moco", "byol"):
            raise UsageError(f"method must be simclr, moco or byol, not {self.method!r}")
        for name in ("steps", "batch_size", "queue", "projection"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not (
            0 < self.learning_rate < math.inf and 0 < self.temperature < math.inf and 0 <= self.weight_decay < math.inf
        ):
            raise UsageError(
                "learning_rate and temperature must be positive and weight_decay not negative, not "
                f"{self.learning_rate}, {self.temperature}, {self.weight_decay}"
            )
        if not 0 <= self.momentum <= 1:
            raise UsageError(f"momentum must lie in [0, 1], not {self.momentum}")


GENTLE = Pretraining("simclr", steps=200, batch_size=128, learning_rate=1e-3)
"""What goes on from pre-trained weights, at half the rate that trains from scratch."""


@dataclass(frozen=True)
class Distillation:
    """A recipe of learning from answers.

    Attributes:
        architecture: The student's network; see `encoders.architectures`.
        loss: Loss between the answers of student and teacher; see `training.distillation`.
        augmentation: Recipe of random views. None asks each query once, as it is, and learns from it.
        steps: Number of optimiser steps.
        batch_size: Items a step.
        learning_rate: Learning rate of AdamW, positive.
        weight_decay: Weight decay of AdamW.
        anneal: Whether the learning rate falls to 0 by half a cosine, after 5 % of warm-up; else it is constant.
        views: How views are used, if there is an augmentation:
            "asked": each step asks about a view of each item and learns from that view;
            "other": each step asks about a view of each item and learns from another view;
            "local": each item is asked once, as it is; each step learns its answer for the item and for a new view;
            "prototype": `asked_views` views of each item are asked before training; each step learns the mean of their
                answers for a new view.
        asked_views: Views of each item that are asked under "prototype", at least 1.
        view_weight: Weight of the view's loss relative to the item's own, under "local"; positive.
        temperature: Temperature of the contrastive losses, positive.
    """

    architecture: str = "resnet-small"
    loss: Loss = "cosine"
    augmentation: Augmentation | None = None
    steps: int = 400
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    anneal: bool = True
    views: Views = "asked"
    asked_views: int = 1
    view_weight: float = 1.0
    temperature: float = 0.1

    def __post_init__(self) -> None:
        for name, allowed in (("loss", LOSSES), ("views", VIEWS)):
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.steps < 1 or self.batch_size < 1 or not 0 < self.learning_rate < math.inf:
            raise UsageError(
                "steps, batch_size and learning_rate must be positive, not "
                f"{self.steps}, {self.batch_size} and {self.learning_rate}"
            )
        if self.asked_views < 1 or not (self.view_weight > 0 and self.temperature > 0):
            raise UsageError(
                "asked_views, view_weight and temperature must be positive, not "
                f"{self.asked_views}, {self.view_weight} and {self.temperature}"
            )
        if self.augmentation is None and self.views != "asked":
            raise UsageError(f"views={self.views!r} needs an augmentation: give one, or leave views at 'asked'")

    @property
    def asks_items(self) -> bool:
        """Whether each item is asked once, as it is, and nothing else."""
        return self.augmentation is None or self.views == "local"

    def n_queries(self, n_items: int) -> int:
        """Return the number of queries of an unbroken run with `n_items` items in the query set.

        If views are asked, it includes one first query, which shows the width of the teacher's answers.
        """
        if self.asks_items:
            return n_items
        return 1 + (n_items * self.asked_views if self.views == "prototype" else self.steps * self.batch_size)


def augmented(recipe: Distillation, augmentation: Augmentation = MILD) -> Distillation:
    """Return the same recipe on augmented views."""
    return replace(recipe, augmentation=augmentation)


@dataclass(frozen=True)
class Supervised:
    """A recipe of training on labels.

    Attributes:
        steps: Number of optimiser steps.
        batch_size: Items a step.
        learning_rate: Learning rate of AdamW, positive. It rises over 5 % of the steps and then falls to 0 by half a
            cosine.
        weight_decay: Weight decay of AdamW.
        layers: Layers of the encoder to train: "all", or "last" for its last block with parameters.
        augmentation: Recipe of random views of images; None trains on the items as they are.
    """

    steps: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    layers: Literal["all", "last"] = "all"
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not 0 < self.learning_rate < math.inf:
            raise UsageError(
                "steps, batch_size and learning_rate must be positive, not "
                f"{self.steps}, {self.batch_size} and {self.learning_rate}"
            )
        if self.layers not in ("all", "last"):
            raise UsageError(f"layers must be all or last, not {self.layers!r}")
