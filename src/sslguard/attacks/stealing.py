"""Stealing: a surrogate from answers alone.

Hyperparameters live in the constructor; the victim and the queries come at call time. The victim is only asked
to `embed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sslguard.attacks.base import Stealing
from sslguard.data.base import Data
from sslguard.encoders.base import Embedder, Encoder
from sslguard.training.augmentation import VIEWS as CONTRASTED
from sslguard.training.augmentation import Augmentation
from sslguard.training.distillation import Distillation, Loss, augmented, distil


class Distilling(Stealing):
    """Training a student by a recipe of distillation. Subclasses are frozen dataclasses."""

    recipe: Distillation

    def __call__(
        self,
        victim: Embedder,
        queries: Data,
        *,
        seed: int,
        checkpoint: Path | None = None,
        progress: bool = False,
        **loop: Any,
    ) -> Encoder:
        """As `Stealing`; `loop` is what `distil` takes of devices and precision."""
        surrogate, _ = distil(
            self.recipe,
            victim,
            queries,
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
            title="steal",
            **loop,
        )
        return surrogate


@dataclass(frozen=True)
class Distil(Distilling):
    """Train a student on the victim's answers (Cong et al. 2022, "surrogate model")."""

    recipe: Distillation = field(default_factory=Distillation)


def _cont_steal() -> Distillation:
    return Distillation(loss="cont-steal", augmentation=CONTRASTED, views="other", temperature=0.5)


@dataclass(frozen=True)
class ContSteal(Distilling):
    """Contrast the student's embedding of one view with the victim's answers to other views, and with its own.

    Source: Sha et al. 2023, "Can't Steal? Cont-Steal!", CVPR. Deviations: see `cont_steal_loss`; AdamW, and views of
    this project's size. Every step asks.
    """

    recipe: Distillation = field(default_factory=_cont_steal)


def _stolen_encoder() -> Distillation:
    views = Augmentation(flip=0.5, jitter=0.4)
    return Distillation(loss="mse", augmentation=views, views="local", view_weight=20.0)


@dataclass(frozen=True)
class StolenEncoder(Distilling):
    """Match the victim's answer to an item with the student's to the item and to a view of it: L₁ + 20·L₂.

    Source: Liu et al. 2022, "StolenEncoder", CCS: a view should be answered as its item is, so that views cost no
    queries. Views are those of the authors' code, flips and jitter without a crop. Deviations: no greyscale, which
    images here may be already; the squared distance is taken relative to the victim's mean square; AdamW and its rate.
    """

    recipe: Distillation = field(default_factory=_stolen_encoder)


def _rda() -> Distillation:
    patches = replace(CONTRASTED, crop=0.25)
    return Distillation(loss="rda", augmentation=patches, views="prototype", asked_views=5, temperature=0.07)


@dataclass(frozen=True)
class RDA(Distilling):
    """Ask a few patches of each item once; learn their mean answer from further patches, apart from other items'.

    Source: Wu et al. 2024, "Refine, Discriminate and Align", ECCV, rebuilt from its abstract: the forms and weights
    of its terms are ours. Deviations: the terms of the alignment are a relative MSE and a cosine, of weight 1 each;
    contrast is within the batch; five patches an item, where the paper has ten.
    """

    recipe: Distillation = field(default_factory=_rda)


STUDENTS: Mapping[str, str] = MappingProxyType(
    {
        "same": "resnet-small",
        "narrower": "resnet-narrow",
        "wider": "resnet-wide",
        "other": "separable-small",
    }
)
"""Students by what they are to a victim of `pretrain`'s default architecture."""


def recipes(steps: int = 600) -> dict[str, Distillation]:
    """The thieves of the tables, by name: losses × augmentation × width and architecture."""
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


def grid(steps: int = 600, *, students: Mapping[str, str] = STUDENTS) -> dict[str, Distillation]:
    """Every thief of {cosine, mse, infonce} × {plain, augmented} × `students`, named such as "mse-augmented-wider".

    Settings differ in nothing else, the budget included, so that two thieves tell what one choice does; `recipes`
    trains unlike students for longer.

    Args:
        steps: optimiser steps of each.
        students: architectures by the last part of the name.
    """
    losses: tuple[Loss, ...] = ("cosine", "mse", "infonce")
    found = {}
    for loss, views, (size, architecture) in product(losses, ("plain", "augmented"), students.items()):
        recipe = Distillation(architecture=architecture, loss=loss, steps=steps)
        found[f"{loss}-{views}-{size}"] = augmented(recipe) if views == "augmented" else recipe
    return found
