"""Everything that a recipe makes, in an order in which it can be made.

Whatever is made of the watermarked F* is made of the clean F too, by the same settings: its negative.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from settings import ITSELF, Recipe

from sslguard.errors import UsageError

Origin = Literal["marked", "clean"]
Kind = Literal["itself", "surrogate", "prune", "fine-tune", "overwrite", "input-noise", "output-noise"]
ORIGINS: tuple[Origin, ...] = ("marked", "clean")
SYMBOL = {"marked": "F*", "clean": "F"}
STEP: dict[Kind, str] = {
    "itself": "mark",
    "surrogate": "steal",
    "prune": "remove",
    "fine-tune": "remove",
    "overwrite": "remove",
    "input-noise": "wrap",
    "output-noise": "wrap",
}


@dataclass(frozen=True)
class Item:
    """One encoder of the run, or one behind noise.

    Attributes:
        origin: which of F* and F it comes from.
        name: unique beside its origin; names a folder.
        settings: what makes it of its parent, JSON values: with the parents' it tells it from any other.
        parent: what it is made of; None for F* and F.
        seed: never a small number, which the owner of a published table may hold as a secret.
    """

    origin: Origin
    name: str
    kind: Kind
    settings: dict[str, Any]
    parent: Item | None
    seed: int

    @property
    def step(self) -> str:
        """The step that deals with it."""
        return STEP[self.kind]

    @property
    def stored(self) -> bool:
        """Whether it was trained in this run; all else is had from its parent, or from F's own file, at any time."""
        return self.kind in ("surrogate", "fine-tune", "overwrite") or (
            self.kind == "itself" and self.origin == "marked"
        )

    def made_of(self) -> dict[str, Any]:
        """Settings and seeds of the item and its parents, as JSON has them."""
        found = {"settings": self.settings, "seed": self.seed, "of": self.parent.made_of() if self.parent else None}
        value: dict[str, Any] = json.loads(json.dumps(found))
        return value

    def __str__(self) -> str:
        return f"{self.origin}/{self.name}"


def items(recipe: Recipe) -> list[Item]:
    """All items of a run, parents first.

    Raises:
        UsageError: two have one name, or an attack names a target that there is not.
    """
    found: list[Item] = []
    for origin in ORIGINS:
        made = [_itself(recipe, origin)]
        made += _surrogates(recipe, made[0])
        found += [*made, *_attacked(recipe, {item.name: item for item in made})]
    names = [str(item) for item in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"the recipe makes {twice[0]} twice: no list may hold a thing two times")
    return found


def _seed(recipe: Recipe, path: str) -> int:
    return 2**32 + zlib.crc32(f"{recipe.seed}/{path}".encode())


def _itself(recipe: Recipe, origin: Origin) -> Item:
    settings: dict[str, Any] = {"encoder": asdict(recipe.encoder)}
    if origin == "marked":
        settings |= {"scheme": asdict(recipe.scheme.scheme()), "data": recipe.scheme.data}
    return Item(origin, ITSELF, "itself", settings, None, recipe.seed)


def _surrogates(recipe: Recipe, parent: Item) -> Iterator[Item]:
    thief = asdict(recipe.steal.distillation())
    for query_set, data in recipe.steal.queries.items():
        for network, architecture in recipe.steal.networks().items():
            name = f"{network}-{query_set}"
            settings = {"architecture": architecture, "queries": data, "recipe": thief}
            seed = _seed(recipe, f"{parent.origin}/{name}")
            yield Item(parent.origin, name, "surrogate", settings, parent, seed)


def _attacked(recipe: Recipe, targets: dict[str, Item]) -> Iterator[Item]:
    attacks = recipe.attacks
    plans: list[tuple[str, tuple[str, ...], list[tuple[str, Kind, dict[str, Any]]]]] = [
        ("prune", attacks.prune.on, _prunings(recipe)),
        ("fine_tune", attacks.fine_tune.on, _fine_tunings(recipe)),
        ("overwrite", attacks.overwrite.on, _overwritings(recipe)),
        ("noise", attacks.noise.on, _noises(recipe)),
    ]
    for table, on, variants in plans:
        for target in on:
            if target not in targets:
                raise UsageError(f"attacks.{table}.on: there is no {target!r:.80} to attack, only {', '.join(targets)}")
            parent = targets[target]
            for name, kind, settings in variants:
                full = f"{target}+{name}"
                yield Item(parent.origin, full, kind, settings, parent, _seed(recipe, f"{parent.origin}/{full}"))


def _prunings(recipe: Recipe) -> list[tuple[str, Kind, dict[str, Any]]]:
    prune = recipe.attacks.prune
    return [(f"prune-{a:g}", "prune", {"amount": a, "scope": prune.scope}) for a in prune.amounts]


def _fine_tunings(recipe: Recipe) -> list[tuple[str, Kind, dict[str, Any]]]:
    tune = recipe.attacks.fine_tune
    return [(f"fine-tune-{n:g}", "fine-tune", asdict(tune.attack(n)) | {"data": tune.data}) for n in tune.epochs]


def _overwritings(recipe: Recipe) -> list[tuple[str, Kind, dict[str, Any]]]:
    marking = recipe.attacks.overwrite.marking
    return [("overwrite", "overwrite", {"scheme": asdict(marking.scheme()), "data": marking.data})]


def _noises(recipe: Recipe) -> list[tuple[str, Kind, dict[str, Any]]]:
    noise = recipe.attacks.noise
    inputs: list[tuple[str, Kind, dict[str, Any]]] = [
        (f"input-noise-{std:g}", "input-noise", {"std": std}) for std in noise.inputs
    ]
    return inputs + [(f"output-noise-{std:g}", "output-noise", {"std": std}) for std in noise.outputs]
