"""Stealings: train a surrogate from answers alone.

The constructor holds hyperparameters; the victim and the queries come at call time. Of the victim, only `embed` is
called.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from sslguard.attacks.base import Stealing
from sslguard.data.base import Data
from sslguard.encoders.base import Embedder, Encoder
from sslguard.training.augmentation import VIEWS as CONTRASTED
from sslguard.training.augmentation import Augmentation
from sslguard.training.distillation import distil
from sslguard.training.recipes import Distillation, augmented


@dataclass(frozen=True)
class Distilling(Stealing):
    """Stealing that trains a student by distillation. Subclasses are frozen dataclasses.

    Attributes:
        recipe: Recipe of the distillation.
    """

    recipe: Distillation

    def __call__(self, victim: Embedder, queries: Data, *, seed: int, **loop: Any) -> Encoder:
        """Return a student trained on the victim's answers. See `Stealing`; `loop` goes to `distil`."""
        surrogate, _ = distil(self.recipe, victim, queries, seed=seed, title="steal", **loop)
        return surrogate


@dataclass(frozen=True)
class Distil(Distilling):
    """Train a student on the victim's answers (Cong et al. 2022, "surrogate model").

    Attributes:
        recipe: Recipe of the distillation.
    """

    recipe: Distillation = field(default_factory=Distillation)


def _cont_steal() -> Distillation:
    return Distillation(loss="cont-steal", augmentation=CONTRASTED, views="other", temperature=0.5)


@dataclass(frozen=True)
class ContSteal(Distilling):
    """Contrast the student's embedding of a view with the victim's answers to other views and with its own embeddings.

    Source: Sha et al. 2023, "Can't Steal? Cont-Steal!", CVPR. Deviations: see `cont_steal_loss`; AdamW as optimiser,
    and views of this project's size. Every training step asks the victim.

    Attributes:
        recipe: Recipe of the distillation.
    """

    recipe: Distillation = field(default_factory=_cont_steal)


def _stolen_encoder() -> Distillation:
    views = Augmentation(flip=0.5, jitter=0.4)
    return Distillation(loss="mse", augmentation=views, views="local", view_weight=20.0)


@dataclass(frozen=True)
class StolenEncoder(Distilling):
    """Match the student's embeddings of an item and of a view of it to the victim's answer to the item: L₁ + 20·L₂.

    The victim is asked about each item once, so that views cost no queries.

    Source: Liu et al. 2022, "StolenEncoder", CCS. Views are those of the authors' code: flips and colour jitter, no
    crop. Deviations: no conversion to grey, since images here may be grey already; the squared distance is divided by
    the victim's mean square; AdamW with its own learning rate.

    Attributes:
        recipe: Recipe of the distillation.
    """

    recipe: Distillation = field(default_factory=_stolen_encoder)


def _rda() -> Distillation:
    patches = replace(CONTRASTED, crop=0.25)
    return Distillation(loss="rda", augmentation=patches, views="prototype", asked_views=5, temperature=0.07)


@dataclass(frozen=True)
class RDA(Distilling):
    """Learn the victim's mean answer to a few patches of each item, and tell it apart from other items' means.

    The victim is asked about each patch once, before training. The student learns from further patches.

    Source: Wu et al. 2024, "Refine, Discriminate and Align", ECCV, rebuilt from its abstract: the forms and weights of
    the loss terms are ours. Deviations: the terms of the alignment are a relative MSE and a cosine, each of weight 1;
    the contrast is within the batch; five patches an item, where the paper has ten.

    Attributes:
        recipe: Recipe of the distillation.
    """

    recipe: Distillation = field(default_factory=_rda)


def recipes(steps: int = 600) -> dict[str, Distillation]:
    """Return the thieves of the result tables, by name. They differ in loss, augmentation, width and architecture.

    Args:
        steps: Optimiser steps of a thief with the victim's architecture. Other architectures train twice as long.
    """
    plain = Distillation(steps=steps)
    mse = replace(plain, loss="mse")
    return {
        "cosine": plain,
        "mse": mse,
        "infonce": replace(plain, loss="infonce"),
        "centred-augmented": augmented(replace(plain, loss="centred")),
        "narrow": replace(mse, architecture="resnet-narrow", steps=2 * steps),
        "plain": replace(mse, architecture="plain-small", steps=2 * steps),
        "separable-augmented": augmented(replace(mse, architecture="separable-small", steps=2 * steps)),
    }
