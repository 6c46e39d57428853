"""What `whole.py` measures: every cell, by name, the most important first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cells import Cell
from common import VICTIMS, data

from sslguard.attacks.stealing import grid
from sslguard.data.base import Data
from sslguard.schemes.sslguard import SSLGuard

GROUPS = ("marks", "null", "thieves", "removal", "wrapping", "chains")
VARIANTS: Mapping[str, SSLGuard] = {
    "cured": SSLGuard.cured(),
    "published": SSLGuard(),
    "released": SSLGuard(gradients="released"),
}
TWIN = "clean"  # the target whose surrogates and attacked copies are the negatives
ATTACKED = ("cured", "published")
# Depthwise convolutions in bfloat16 take twice the time of float32 on CPUs.
FLOAT32_STUDENTS = ("separable-small",)


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        victims: names of shipped encoders.
        seeds: of the secrets of each variant; no secret is shared between two variants.
        precision: in which thieves train.
        recipes: names of `grid`'s thieves.
        query_recipes, published_recipes, twin_recipes: those with other query sets and budgets, those that steal from
            an encoder marked by the published losses, and those that steal from F.
        query_sets: roles, "mixed", or numbers of items of the thief's own.
        scheme: changes to every variant.
        items: most items of any role; None for all.
        members: of each kind of the shipped population; None for all, and EfficientNet-Lite0.
        rounds: of timing a step of pre-training.
        flag: of the command that measures this much, with a space before it.
    """

    victims: tuple[str, ...] = VICTIMS
    seeds: Mapping[str, tuple[int, ...]] = field(
        default_factory=lambda: {
            "cured": (20, 21, 22, 23, 24),
            "published": (30, 31, 32, 33, 34),
            "released": (40,),
        }
    )
    precision: str = "bf16"
    thief_steps: int = 400
    recipes: tuple[str, ...] = tuple(grid())
    query_recipes: tuple[str, ...] = ("mse-plain-same",)
    published_recipes: tuple[str, ...] = ("mse-plain-same", "infonce-plain-same", "mse-augmented-same")
    twin_recipes: tuple[str, ...] = (
        "mse-plain-same",
        "mse-augmented-wider",
        "infonce-plain-other",
        "cosine-augmented-narrower",
    )
    query_sets: tuple[str | int, ...] = ("thief_digits", "mixed", 500, 2000, 6000)
    pruned: tuple[int, ...] = (10, 20, 30, 40, 50, 60, 70, 80, 90)
    epochs: tuple[int, ...] = (1, 3, 10)
    chain_epochs: int = 3
    chain_pruned: float = 0.4
    ssl_steps: int | None = None
    input_noise: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    output_noise: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    behind: tuple[tuple[str, float], ...] = (
        ("input", 0.05),
        ("input", 0.1),
        ("output", 0.25),
        ("output", 0.5),
        ("output", 1.0),
    )
    scheme: Mapping[str, Any] = field(default_factory=dict)
    items: int | None = None
    members: int | None = None
    rounds: int = 3
    flag: str = ""

    def variant(self, name: str) -> SSLGuard:
        """A variant's settings."""
        return replace(VARIANTS[name], **self.scheme)

    def data(self, role: str) -> Data:
        """The items of a role that are used."""
        whole = data(role)
        return whole if self.items is None else whole.slice(0, min(self.items, len(whole)))


FULL = Settings()
# One key a variant and a few attacks of each group: a quarter of an hour on two cores, too little for the targets.
BRIEF = Settings(
    seeds={"cured": (20,), "published": (30,), "released": ()},
    recipes=("mse-plain-same", "infonce-plain-other", "cosine-augmented-narrower", "mse-augmented-wider"),
    query_recipes=("mse-plain-same",),
    published_recipes=("mse-plain-same",),
    twin_recipes=("mse-plain-same",),
    query_sets=(2000,),
    pruned=(40, 60),
    epochs=(1, 10),
    input_noise=(0.05,),
    output_noise=(0.5,),
    behind=(("output", 0.5),),
    flag=" --brief",
)
QUICK = Settings(
    victims=("simclr",),
    seeds={"cured": (20, 21), "published": (30,), "released": (40,)},
    precision="32",
    thief_steps=2,
    recipes=("mse-plain-same", "mse-augmented-same"),
    query_recipes=("mse-plain-same",),
    published_recipes=("mse-plain-same",),
    twin_recipes=("mse-plain-same",),
    query_sets=("mixed", 50),
    pruned=(40,),
    epochs=(1,),
    chain_epochs=1,
    ssl_steps=2,
    input_noise=(0.05,),
    output_noise=(0.5,),
    behind=(("output", 0.5),),
    scheme={"steps": 2, "batch_size": 8, "trigger_batch": 8, "n_verification": 40, "n_queries": 32},
    items=160,
    members=1,
    rounds=1,
    flag=" --quick",
)


def mark_name(victim: str, variant: str, seed: int) -> str:
    """The cell that makes an encoder F* and its key, both named as it is."""
    return f"mark-{victim}-{variant}-{seed}"


def keys_of(settings: Settings, victim: str, variant: str | None = None) -> list[str]:
    """The victim's keys, by name, of one variant or of all."""
    variants = VARIANTS if variant is None else (variant,)
    return [mark_name(victim, v, seed) for v in variants for seed in settings.seeds[v]]


def first_key(settings: Settings, victim: str, variant: str) -> str:
    """The key whose encoder is attacked."""
    return keys_of(settings, victim, variant)[0]


def make_plan(settings: Settings, out: Path) -> list[Cell]:
    """Every cell. `out` matters only in that a population in `out/extra` joins the null."""
    everything = [cell for victim in settings.victims for cell in _of_victim(settings, victim, out)]
    order = {cell.name: number for number, cell in enumerate(everything)}
    return sorted(everything, key=lambda cell: (_stage(settings, cell), order[cell.name]))


def _stage(settings: Settings, cell: Cell) -> int:
    """Place of a cell in the order, smaller first: the first line that is true of it."""
    key = cell.args.get("key", cell.name)
    first = any(key == first_key(settings, victim, v) for victim in settings.victims for v in ATTACKED)
    target = cell.args.get("target", "")
    marked = "-cured-" in key or target == "cured"
    mark, null = cell.function == "mark", cell.group == "null"
    stages = (
        cell.function == "reference",
        mark and first and marked,
        mark and first,
        null and first and cell.function != "others",
        mark and marked,
        null and marked,
        cell.group == "removal" and marked,
        cell.group in ("thieves", "chains") and marked,
        cell.group in ("removal", "thieves", "chains") and target == TWIN,
        cell.group == "wrapping" and target != "published",
        mark,
        null,
        True,
    )
    return stages.index(True)


def _of_victim(settings: Settings, victim: str, out: Path) -> Iterator[Cell]:
    yield Cell(f"reference-{victim}", "marks", "reference", {"victim": victim})
    for variant, seeds in settings.seeds.items():
        scheme = asdict(settings.variant(variant))
        for seed in seeds:
            args = {"victim": victim, "variant": variant, "seed": seed, "scheme": scheme}
            yield Cell(mark_name(victim, variant, seed), "marks", "mark", args)
    yield from _null(settings, victim, out)
    for target in (*ATTACKED, TWIN):
        yield from _thieves(settings, victim, target)
        yield from _removal(settings, victim, target)
        yield from _wrapping(settings, victim, target)
    for target in ("cured", TWIN):
        yield from _chains(settings, victim, target)


def _null(settings: Settings, victim: str, out: Path) -> Iterator[Cell]:
    keys = keys_of(settings, victim)
    for key in keys:
        args = {"victim": victim, "key": key}
        yield Cell(f"null-{key}", "null", "population", {**args, "members": settings.members}, (key,))
        others = [other for other in keys if other != key]
        yield Cell(f"others-{key}", "null", "others", {**args, "others": others}, (key, *others))
        if (out / "extra" / "population.json").exists():
            yield Cell(f"extra-{key}", "null", "extra", args, (key,))


def _suspect(
    settings: Settings, group: str, function: str, victim: str, target: str, label: str, *, of: str = "", **args: Any
) -> Cell:
    """A cell that attacks `of`: unless given, the clean encoder or the target's first marked one.

    A twin is scored by the first key of every target, any other suspect by its own.
    """
    keys = [first_key(settings, victim, v) for v in (ATTACKED if target == TWIN else (target,))]
    encoder = of or (TWIN if target == TWIN else keys[0])
    given = {"victim": victim, "target": target, "label": label, "of": encoder, "keys": keys, **args}
    needs = tuple(dict.fromkeys((*keys, *(() if encoder == TWIN else (encoder,)))))
    return Cell(suspect_name(group, victim, target, label), group, function, given, needs)


def suspect_name(group: str, victim: str, target: str, label: str) -> str:
    """The cell of one attack on one target."""
    return f"{group}-{victim}-{target}-{label}"


def _theft(settings: Settings, recipe: str, queries: str | int = "thief") -> dict[str, Any]:
    architecture = grid()[recipe].architecture
    precision = "32" if architecture in FLOAT32_STUDENTS else settings.precision
    return {"recipe": recipe, "steps": settings.thief_steps, "queries": queries, "precision": precision}


def _thieves(settings: Settings, victim: str, target: str) -> Iterator[Cell]:
    names = {"cured": settings.recipes, "published": settings.published_recipes, TWIN: settings.twin_recipes}[target]
    for name in names:
        yield _suspect(settings, "thieves", "steal", victim, target, name, **_theft(settings, name))
    if target == "cured":
        for name in settings.query_recipes:
            for queries in settings.query_sets:
                args = _theft(settings, name, queries)
                yield _suspect(settings, "thieves", "steal", victim, target, f"{name}-{queries}", **args)


def removals(settings: Settings) -> dict[str, dict[str, Any]]:
    """Attacks on weights, by label."""
    found: dict[str, dict[str, Any]] = {}
    for scope in ("global", "layer"):
        for percent in settings.pruned:
            found[f"prune-{scope}-{percent}"] = {"attack": "prune", "scope": scope, "amount": percent / 100}
    for role in ("tune", "thief_digits"):
        for layers in ("all", "last"):
            for epochs in settings.epochs:
                label = f"fine-tune-{'digits' if 'digits' in role else 'garments'}-{layers}-{epochs}"
                found[label] = {"attack": "fine-tune", "layers": layers, "epochs": epochs, "role": role}
    found["self-supervised"] = {"attack": "self-supervised", "steps": settings.ssl_steps, "role": "thief"}
    for variant in ATTACKED:
        found[f"overwrite-{variant}"] = {
            "attack": "overwrite",
            "variant": variant,
            "scheme": asdict(settings.variant(variant)),
            "role": "thief",
        }
    return found


def _removal(settings: Settings, victim: str, target: str) -> Iterator[Cell]:
    for label, attack in removals(settings).items():
        yield _suspect(settings, "removal", "remove", victim, target, label, attacks=[attack])


def wrappings(settings: Settings) -> dict[str, dict[str, Any]]:
    """Wrappings, by label."""
    both = (("input", settings.input_noise), ("output", settings.output_noise))
    return {f"{place}-{std:g}": {"place": place, "std": std} for place, stds in both for std in stds}


def _wrapping(settings: Settings, victim: str, target: str) -> Iterator[Cell]:
    for label, wrapping in wrappings(settings).items():
        yield _suspect(settings, "wrapping", "wrap", victim, target, label, wrapping=wrapping)
    if target == "cured":
        for place, std in settings.behind:
            args = {**_theft(settings, "mse-plain-same"), "wrapping": {"place": place, "std": std}}
            yield _suspect(settings, "wrapping", "steal", victim, target, f"behind-{place}-{std:g}", **args)


def _chains(settings: Settings, victim: str, target: str) -> Iterator[Cell]:
    stolen = suspect_name("thieves", victim, target, "mse-plain-same")
    tune = {"attack": "fine-tune", "layers": "all", "epochs": settings.chain_epochs, "role": "tune"}
    prune = {"attack": "prune", "scope": "global", "amount": settings.chain_pruned}
    for label, attacks in (("steal-tune", [tune]), ("steal-tune-prune", [tune, prune])):
        yield _suspect(settings, "chains", "remove", victim, target, label, of=stolen, attacks=attacks)
