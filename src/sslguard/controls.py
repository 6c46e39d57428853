"""The null population: encoders that nobody derived from the watermarked one, made once and cached.

Three kinds stand in it: independent encoders (self-supervised, supervised, untrained, a public one), and what
innocents make of the *clean* encoders: surrogates by every stealing recipe, fine-tuned and pruned copies. The last
are the hard ones: they agree with F as much as a thief's surrogate agrees with F*.

Every member answers in the same width, so that one key can score them all. What each is worth downstream stands beside
it: a null of useless encoders would resemble no suspect.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from sslguard.attacks.removal import Prune
from sslguard.attacks.stealing import Distil, recipes
from sslguard.augmentation import Augmentation
from sslguard.data.specs import open_data
from sslguard.distillation import Distillation, augmented
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.encoders.load import load_encoder
from sslguard.errors import UsageError
from sslguard.files import write_atomic
from sslguard.pretraining import Method, Pretraining, new_encoder, train_encoder
from sslguard.probes import probe_encoder
from sslguard.supervised import Supervised, train_supervised

ACCURACIES = "accuracies.json"
T = TypeVar("T")
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
    """The recipes of the whole population for these clean encoders (name → specification).

    Args:
        steps: optimiser steps of the cheap recipes.
        thief_steps: those of the full-strength thieves (one of each stealing recipe per victim).
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
            chosen.append(
                Recipe(
                    f"supervised-{architecture}-{copy}",
                    "supervised",
                    None,
                    {"architecture": architecture, "steps": 2 * steps},
                )
            )
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
    """The member that `recipe` describes, answering in `width` dimensions."""
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
    """The public encoder under a fixed random projection: its own width fits no key of another's."""
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


def make_population(
    chosen: Sequence[Recipe],
    bed: Bed,
    folder: Path,
    *,
    width: int,
    workers: int = 1,
    half: bool = True,
    progress: bool = False,
) -> None:
    """Make every member that `folder` does not hold yet; a killed run goes on where it stopped.

    Each member is a folder that `load_encoder` reads, stored in half precision unless told otherwise, and used
    as it is stored. `population.json` lists them with their kinds.
    """
    names = [recipe.name for recipe in chosen]
    if len(set(names)) != len(names):
        raise UsageError("two members of the population have the same name")
    bad = [name for name in names if not _names_a_folder(name)]
    if bad:
        raise UsageError(f"a member's name is the name of its folder, which {bad[0]!r:.80} cannot be")
    missing = [recipe for recipe in chosen if not (folder / recipe.name / "encoder.json").exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with _progress(len(chosen), len(chosen) - len(missing), progress) as advance:
        for name, _ in _each(_make_one, {r.name: (r, bed, folder, width, half) for r in missing}, workers):
            advance(name)
    index = {"width": width, "bed": asdict(bed), "members": [asdict(recipe) for recipe in chosen]}
    write_atomic(folder / "population.json", json.dumps(index, indent=1, sort_keys=True).encode())


def _make_one(recipe: Recipe, bed: Bed, folder: Path, width: int, half: bool) -> None:
    save_encoder(make(recipe, bed, width=width), folder / recipe.name, half=half)


def probe_population(folder: Path, train: str, test: str, *, workers: int = 1, progress: bool = False) -> None:
    """Linear-probe accuracy of every member, kept in the folder beside them; a killed run goes on where it stopped.

    Args:
        train, test: labelled data by specification. Accuracies on other data are measured anew.
    """
    path = folder / ACCURACIES
    members = read_population(folder)
    fields: dict[str, Any] = {"probe": "linear", "train": train, "test": test}
    known = {m.name: m.accuracy for m in members if m.accuracy is not None}
    if known and {k: v for k, v in json.loads(path.read_bytes()).items() if k != "accuracy"} != fields:
        known = {}
    missing = [m for m in members if m.name not in known]
    with _progress(len(members), len(known), progress) as advance:
        for name, accuracy in _each(_probe_one, {m.name: (m, train, test) for m in missing}, workers):
            known[name] = accuracy
            write_atomic(path, json.dumps({**fields, "accuracy": known}, indent=1, sort_keys=True).encode())
            advance(name)


def _probe_one(member: Member, train: str, test: str) -> float:
    return probe_encoder(member.load(), open_data(train), open_data(test)).accuracy


def _each(
    function: Callable[..., T], arguments: Mapping[str, tuple[Any, ...]], workers: int
) -> Iterator[tuple[str, T]]:
    """Name and `function(*arguments)` of each as it is done: here, or in several processes of one thread each."""
    if workers == 1:
        for name, given in arguments.items():
            yield name, function(*given)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        jobs = {pool.submit(function, *given): name for name, given in arguments.items()}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        except BaseException:
            # What is done stays; what has not begun is left for the next run.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one_thread() -> None:
    torch.set_num_threads(1)


class _progress:
    """A bar over the members, or nothing."""

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self._bar = None
        if shown:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True))
            self._row = self._bar.add_task("controls", total=total, completed=done)

    def __enter__(self) -> Any:
        if self._bar is not None:
            self._bar.start()
        return self._advance

    def _advance(self, name: str) -> None:
        if self._bar is not None:
            self._bar.update(self._row, advance=1, description=name)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()


@dataclass(frozen=True)
class Member:
    """One known innocent of a made population; its network is read when it is asked for.

    Attributes:
        accuracy: of a linear probe on it, in [0, 1]; None where `probe_population` did not measure it.
    """

    name: str
    kind: str
    parent: str | None
    folder: Path
    accuracy: float | None = None

    def load(self) -> Encoder:
        return load_folder(self.folder)


def read_population(folder: Path) -> list[Member]:
    """The members of a folder that `make_population` wrote, in its order."""
    index = folder / "population.json"
    try:
        members = json.loads(index.read_bytes())["members"]
        if not all(_names_a_folder(m["name"]) for m in members):
            raise ValueError("a member is named as no folder can be")
        found = [Member(m["name"], m["kind"], m["parent"], folder / m["name"]) for m in members]
    except OSError as error:
        raise UsageError(f"{folder} holds no population of controls: {index} cannot be read") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{index} is damaged: make the population again") from error
    accuracies = _accuracies(folder)
    return [replace(member, accuracy=accuracies.get(member.name)) for member in found]


def _accuracies(folder: Path) -> dict[str, float]:
    """Member's name → accuracy of its probe; empty where none was measured.

    Raises:
        UsageError: the file is damaged.
    """
    path = folder / ACCURACIES
    if not path.exists():
        return {}
    try:
        found = {str(name): float(value) for name, value in json.loads(path.read_bytes())["accuracy"].items()}
        if not all(0 <= value <= 1 for value in found.values()):
            raise ValueError("an accuracy lies in [0, 1]")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: delete it and probe the population again") from error
    return found


def _names_a_folder(name: str) -> bool:
    """Whether `name` is one folder inside another, and no hidden one."""
    return bool(name) and Path(name).name == name and not name.startswith(".")


def open_controls(specs: Sequence[str]) -> Iterator[tuple[str, Encoder]]:
    """Controls by specification: `shipped`, a folder of a whole population, or any single encoder."""
    for spec in specs:
        folder = shipped_population() if spec == "shipped" else Path(spec)
        if (folder / "population.json").exists():
            for member in read_population(folder):
                yield member.name, member.load()
        else:
            yield spec, load_encoder(spec)


def count_controls(specs: Sequence[str]) -> int:
    """How many controls `open_controls` will give, without loading any."""
    total = 0
    for spec in specs:
        folder = shipped_population() if spec == "shipped" else Path(spec)
        total += len(read_population(folder)) if (folder / "population.json").exists() else 1
    return total


def shipped_population() -> Path:
    """The population that comes with the package, for the test bed's encoders."""
    return Path(__file__).parent / "assets" / "controls"
