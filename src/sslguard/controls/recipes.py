"""How each member of the null population is made."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from sslguard.attacks.removal import Prune
from sslguard.attacks.stealing import Distil, recipes
from sslguard.data.specs import open_data
from sslguard.encoders.base import Encoder
from sslguard.encoders.load import load_encoder
from sslguard.errors import UsageError
from sslguard.training.augmentation import Augmentation
from sslguard.training.pretraining import new_encoder, train_encoder
from sslguard.training.recipes import Distillation, Method, Pretraining, Supervised, augmented
from sslguard.training.supervised import train_supervised

Kind = Literal["independent", "supervised", "random", "public", "clean", "surrogate", "fine-tuned", "pruned"]
ARCHITECTURES = ("resnet-small", "resnet-narrow", "plain-small", "separable-small")


@dataclass(frozen=True)
class Recipe:
    """How one member of the population is made.

    Attributes:
        name: unique; also the name of its folder.
        kind: the family it is reported under.
        parent: specification of the clean encoder it is made from, or None.
        settings: what the maker of its kind takes, JSON values.
    """

    name: str
    kind: Kind
    parent: str | None
    settings: dict[str, Any]

    @property
    def seed(self) -> int:
        """A function of the name: a member is the same whichever others are made."""
        return zlib.crc32(self.name.encode())


@dataclass(frozen=True)
class Bed:
    """The data that the population is trained on: none of it is used for marking or verification."""

    pretrain: str
    thief: str
    labelled: str


def population(victims: Mapping[str, str], *, steps: int = 100, thief_steps: int = 600) -> list[Recipe]:
    """Return the recipes of the whole population for these clean encoders.

    Args:
        victims: Specification of each clean encoder, by name.
        steps: Optimiser steps of the cheap recipes.
        thief_steps: Optimiser steps of the full-strength thieves (one of each stealing recipe per victim).
    """
    chosen: list[Recipe] = []
    for method in ("simclr", "moco", "byol"):
        for architecture in ARCHITECTURES:
            for part in ("first", "second"):
                name = f"independent-{method}-{architecture}-{part}"
                settings = {"method": method, "architecture": architecture, "part": part, "steps": 2 * steps}
                chosen.append(Recipe(name, "independent", None, settings))
    for architecture in ARCHITECTURES:
        for copy in range(2):
            settings = {"architecture": architecture, "steps": 2 * steps}
            chosen.append(Recipe(f"supervised-{architecture}-{copy}", "supervised", None, settings))
        for copy in range(3):
            chosen.append(Recipe(f"random-{architecture}-{copy}", "random", None, {"architecture": architecture}))
    chosen.append(Recipe("public-efficientnet-lite0", "public", "package:efficientnet-lite0", {}))
    for victim, spec in victims.items():
        chosen += _made_from(victim, spec, steps, thief_steps)
    return chosen


def _made_from(victim: str, spec: str, steps: int, thief_steps: int) -> list[Recipe]:
    made = [
        Recipe(f"surrogate-{victim}-{name}", "surrogate", spec, {"thief": name, "steps": thief_steps})
        for name in recipes()
    ]
    for architecture in ARCHITECTURES:
        for loss, views in (("centred", "plain"), ("mse", "augmented")):
            name = f"surrogate-{victim}-brief-{architecture}-{loss}-{views}"
            settings = {"architecture": architecture, "loss": loss, "views": views, "steps": steps}
            made.append(Recipe(name, "surrogate", spec, settings))
    made += [
        Recipe(f"fine-tuned-{victim}-{layers}-{n}", "fine-tuned", spec, {"layers": layers, "steps": n})
        for layers, n in (("all", steps // 2), ("all", 2 * steps), ("last", steps))
    ]
    return made + [
        Recipe(f"pruned-{victim}-{percent}", "pruned", spec, {"amount": percent / 100}) for percent in (20, 40, 60)
    ]


def make(recipe: Recipe, bed: Bed, *, width: int) -> Encoder:
    """Make the member that `recipe` describes, answering in `width` dimensions.

    Raises:
        UsageError: It answers in another number of dimensions.
    """
    maker = {
        "independent": _independent,
        "supervised": _supervised,
        "random": _random,
        "public": _public,
        "surrogate": _surrogate,
        "fine-tuned": _fine_tuned,
        "pruned": _pruned,
    }[recipe.kind]
    encoder = maker(recipe, bed, width)
    if encoder.dim != width:
        raise UsageError(
            f"{recipe.name} answers in {encoder.dim} dimensions and the population in {width}: make a population of "
            "its own for each width of clean encoders"
        )
    record = {"kind": recipe.kind, "settings": recipe.settings, "seed": recipe.seed, **encoder.record}
    return replace(encoder, record=record)


def _independent(recipe: Recipe, bed: Bed, width: int) -> Encoder:
    data = open_data(bed.pretrain)
    half = len(data) // 2
    part = data.slice(0, half) if recipe.settings["part"] == "first" else data.slice(half, len(data))
    method: Method = recipe.settings["method"]
    start = new_encoder(recipe.settings["architecture"], part, seed=recipe.seed, linear=width)
    pretraining = Pretraining(method, steps=recipe.settings["steps"], batch_size=128)
    return train_encoder(pretraining, start, part, seed=recipe.seed)[0]


def _supervised(recipe: Recipe, bed: Bed, width: int) -> Encoder:
    data = open_data(bed.labelled)
    start = new_encoder(recipe.settings["architecture"], data, seed=recipe.seed, linear=width)
    views = Augmentation(crop=0.6, flip=0.5)
    training = Supervised(steps=recipe.settings["steps"], learning_rate=3e-3, augmentation=views)
    return train_supervised(training, start, data, seed=recipe.seed)


def _random(recipe: Recipe, bed: Bed, width: int) -> Encoder:
    return new_encoder(recipe.settings["architecture"], open_data(bed.thief), seed=recipe.seed, linear=width)


def _public(recipe: Recipe, bed: Bed, width: int) -> Encoder:  # noqa: ARG001
    """Return the public encoder under a fixed random projection: its own width fits no key of another's."""
    assert recipe.parent is not None
    encoder = load_encoder(recipe.parent)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        module = nn.Sequential()
        module.add_module("backbone", encoder.module)
        module.add_module("linear", nn.Linear(encoder.dim, width))
    description = {**encoder.architecture, "linear": width}
    return replace(encoder, module=module.eval(), dim=width, architecture=description)


def _surrogate(recipe: Recipe, bed: Bed, width: int) -> Encoder:  # noqa: ARG001
    settings = recipe.settings
    if "thief" in settings:
        distillation = recipes(settings["steps"])[settings["thief"]]
    else:
        distillation = Distillation(
            architecture=settings["architecture"], loss=settings["loss"], steps=settings["steps"]
        )
        if settings["views"] == "augmented":
            distillation = augmented(distillation)
    return Distil(distillation)(_parent(recipe), open_data(bed.thief), seed=recipe.seed)


def _fine_tuned(recipe: Recipe, bed: Bed, width: int) -> Encoder:  # noqa: ARG001
    training = Supervised(steps=recipe.settings["steps"], layers=recipe.settings["layers"])
    return train_supervised(training, _parent(recipe), open_data(bed.labelled), seed=recipe.seed)


def _pruned(recipe: Recipe, bed: Bed, width: int) -> Encoder:  # noqa: ARG001
    return Prune(recipe.settings["amount"])(_parent(recipe))


def _parent(recipe: Recipe) -> Encoder:
    assert recipe.parent is not None
    return load_encoder(recipe.parent)
