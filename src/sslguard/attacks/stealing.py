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
from sslguard.distillation import Distillation, Loss, augmented, distil
from sslguard.encoders.base import Embedder, Encoder


@dataclass(frozen=True)
class Distil(Stealing):
    """Train a student on the victim's answers (Cong et al. 2022, "surrogate model")."""

    recipe: Distillation = field(default_factory=Distillation)

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
