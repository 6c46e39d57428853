"""Recipes of training: what can be chosen of pre-training, distillation and supervised training, and the defaults.

They are plain settings: the command line, configurations and records read them without anything that trains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from sslguard.errors import UsageError
from sslguard.settings import Checked, Count, NotNegative, Positive, Range
from sslguard.training.augmentation import MILD, Augmentation
from sslguard.training.augmentation import VIEWS as CONTRASTED

Method = Literal["simclr", "moco", "byol"]
Loss = Literal["cosine", "centred", "mse", "infonce", "cont-steal", "rda"]
Views = Literal["asked", "other", "local", "prototype"]


@dataclass(frozen=True)
class Pretraining(Checked):
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
    steps: Count = 2000
    batch_size: Count = 256
    learning_rate: Positive = 2e-3
    weight_decay: NotNegative = 1e-4
    temperature: Positive = 0.2
    momentum: Annotated[float, Range(least=0, most=1)] = 0.99
    queue: Count = 4096
    projection: Count = 64
    views: Augmentation = CONTRASTED


GENTLE = Pretraining("simclr", steps=200, batch_size=128, learning_rate=1e-3)
"""What goes on from pre-trained weights, at half the rate that trains from scratch."""


@dataclass(frozen=True)
class Distillation(Checked):
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
    steps: Count = 400
    batch_size: Count = 128
    learning_rate: Positive = 3e-3
    weight_decay: NotNegative = 1e-4
    anneal: bool = True
    views: Views = "asked"
    asked_views: Count = 1
    view_weight: Positive = 1.0
    temperature: Positive = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
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
class Supervised(Checked):
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

    steps: Count = 100
    batch_size: Count = 128
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 1e-4
    layers: Literal["all", "last"] = "all"
    augmentation: Augmentation | None = None
