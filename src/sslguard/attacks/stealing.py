"""Stealing: a surrogate from answers alone.

Hyperparameters live in the constructor; the victim and the queries come at call time. The victim is only asked
to `embed`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sslguard.data.base import Data
from sslguard.distillation import Distillation, augmented, distil
from sslguard.encoders.base import Embedder, Encoder


class Stealing(ABC):
    """Sees nothing of a victim but its answers."""

    @abstractmethod
    def __call__(self, victim: Embedder, queries: Data, *, seed: int) -> Encoder:
        """A surrogate of `victim`. Its record counts the queries and the seconds."""


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
