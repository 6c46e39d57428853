"""What each kind of cell of `whole.py` does.

Encoders and keys lie in `OUT/encoders` and `OUT/keys`, named as their cells. Costs are CPU seconds of a process of one
thread.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cell
from common import accuracy, keep_freed_memory, pretraining_of, public_member, seconds_a_step
from whole_plan import TWIN, Settings

from sslguard.attacks.chain import Chain
from sslguard.attacks.removal import FineTune, Overwrite, Prune, Removal, SelfSupervised
from sslguard.attacks.stealing import Distil, grid
from sslguard.attacks.wrapping import InputNoise, OutputNoise, Wrapping
from sslguard.controls import Member, read_population, shipped_population
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch, Data, Extent
from sslguard.encoders.base import Embedder, Encoder
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.encoders.load import load_encoder
from sslguard.probes import baseline
from sslguard.schemes.keyfile import load_key, save_key
from sslguard.training import Task
from sslguard.training.pretraining import PretrainingTask, new_encoder
from sslguard.training.supervised import Supervised
from sslguard.verification.verdict import score_suspect

# Of every attack: not the seed of any control, which is a hash of its name.
SEED = 77
PRECISIONS = ("32", "bf16")


def prepare() -> None:
    """A process of one thread that keeps its memory and says nothing of its precision."""
    keep_freed_memory()
    torch.set_num_threads(1)
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)


class Joined(Data):
    """Images of one data set and then those of another, without their labels."""

    labels = None

    def __init__(self, first: Data, second: Data) -> None:
        self.parts = (first, second)
        self.spec = f"{first.spec} + {second.spec}"

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def take(self, indices: Any) -> Batch:
        index = self.positions(indices)
        first, second = self.parts
        late = index >= len(first)
        images: list[Any] = [None] * len(index)
        for part, chosen, shift in ((first, ~late, 0), (second, late, len(first))):
            if chosen.any():
                for place, image in zip(np.flatnonzero(chosen), part.take(index[chosen] - shift), strict=True):
                    images[place] = image
        return torch.stack(images)

    def extent(self) -> Extent:
        return Extent(self.spec, 0, len(self))


@dataclass(frozen=True)
class Work:
    """Does cells of a plan. Picklable, so that other processes can."""

    out: Path
    settings: Settings

    def __call__(self, cell: Cell) -> dict[str, Any]:
        functions: Mapping[str, Callable[..., dict[str, Any]]] = {
            "reference": self.reference,
            "mark": self.mark,
            "population": self.population,
            "extra": self.extra,
            "others": self.others,
            "steal": self.steal,
            "remove": self.remove,
            "wrap": self.wrap,
        }
        return functions[cell.function](cell.name, **cell.args)

    def data(self, role: str) -> Data:
        return self.settings.data(role)

    def encoder(self, victim: str, name: str) -> Encoder:
        """The clean encoder, or what a cell made."""
        return load_encoder(f"shipped:{victim}") if name == TWIN else load_folder(self.out / "encoders" / name)

    def accuracy(self, embedder: Embedder, domain: str = "garments") -> float:
        return accuracy(embedder, domain=domain, source=self.data)

    def scores(self, keys: Iterable[str], embedder: Embedder) -> dict[str, dict[str, float]]:
        """WR and mean cosine by key, on held-out images."""
        found = {}
        for name in keys:
            score = score_suspect(load_key(self.out / "keys" / name), embedder, self.data("verify"))
            found[name] = {"WR": score.watermark_rate, "cosine": score.value, "queries": score.n_queries}
        return found

    def reference(self, name: str, victim: str) -> dict[str, Any]:
        """The clean encoder, its baselines, and CPU seconds of its pre-training, at each precision."""
        del name
        clean = self.encoder(victim, TWIN)
        result: dict[str, Any] = {}
        for domain, prefix in (("garments", ""), ("digits", "digits_")):
            train, test = self.data(f"{prefix}probe_train"), self.data(f"{prefix}probe_test")
            result[domain] = {
                "clean": self.accuracy(clean, domain),
                "floor": baseline(clean, train, test).accuracy,
            }
        recipe, images = pretraining_of(clean), self.data("thief")
        tasks: dict[str, Task] = {
            precision: PretrainingTask(
                recipe, new_encoder(clean.architecture["backbone"], images, seed=0), images, seed=0
            )
            for precision in PRECISIONS
        }
        each = seconds_a_step(
            tasks,
            rounds=self.settings.rounds,
            batch_size=recipe.batch_size,
            precisions={p: p for p in PRECISIONS},
            clock=time.process_time,
        )
        seconds = {precision: each[precision] * recipe.steps for precision in PRECISIONS}
        machine = f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}"
        return {**result, "pretraining_seconds": seconds, "pretraining_steps": recipe.steps, "machine": machine}

    def mark(self, name: str, victim: str, variant: str, seed: int, scheme: dict[str, Any]) -> dict[str, Any]:
        """F* and its key."""
        del scheme
        clean, images = self.encoder(victim, TWIN), self.data("mark")
        begun = time.process_time()
        marked = self.settings.variant(variant).watermark(clean, images, secret=Secret.from_seed(seed))
        spent = time.process_time() - begun
        save_key(marked.key, self.out / "keys" / name)
        save_encoder(marked.encoder, self.out / "encoders" / name)
        return {
            "garments": self.accuracy(marked.encoder),
            "digits": self.accuracy(marked.encoder, "digits"),
            "marking_seconds": spent,
            "F*": self.scores([name], marked.encoder)[name],
            "F": self.scores([name], clean)[name],
        }

    def population(self, name: str, victim: str, key: str, members: int | None) -> dict[str, Any]:
        """The shipped innocents and EfficientNet-Lite0, or some of each kind."""
        del name
        kept: list[Member] = []
        for member in read_population(shipped_population()):
            if members is None or sum(k.kind == member.kind for k in kept) < members:
                kept.append(member)
        found = self._innocents(key, ((m.name, m.kind, m.load()) for m in kept))
        if members is None:
            found |= self._innocents(key, [public_member(self.encoder(victim, TWIN).dim)])
        return found

    def extra(self, name: str, victim: str, key: str) -> dict[str, Any]:
        """Innocents of a population that somebody put in `OUT/extra`."""
        del name, victim
        members = read_population(self.out / "extra")
        return self._innocents(key, ((f"extra-{m.name}", f"held-out {m.kind}", m.load()) for m in members))

    def others(self, name: str, victim: str, key: str, others: list[str]) -> dict[str, Any]:
        """The same encoder as others marked it."""
        del name
        return self._innocents(key, ((other, "other key", self.encoder(victim, other)) for other in others))

    def _innocents(self, key: str, members: Iterable[tuple[str, str, Encoder]]) -> dict[str, Any]:
        return {member: {"family": family, **self.scores([key], encoder)[key]} for member, family, encoder in members}

    def steal(
        self,
        name: str,
        victim: str,
        recipe: str,
        steps: int,
        queries: str | int,
        precision: str,
        of: str,
        keys: list[str],
        wrapping: dict[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """A surrogate, from answers alone."""
        encoder, images = self.encoder(victim, of), self._queries(queries)
        target = encoder if wrapping is None else _wrapping(wrapping)(encoder)
        thief = Distil(grid(steps)[recipe])
        begun = time.process_time()
        surrogate = thief(target, images, seed=SEED, precision=precision)
        spent = time.process_time() - begun
        return self._measured(name, keys, surrogate, spent, precision, queries=surrogate.record["queries"])

    def _queries(self, queries: str | int) -> Data:
        own = self.data("thief")
        if queries == "mixed":
            return Joined(own, self.data("thief_digits"))
        return own.slice(0, queries) if isinstance(queries, int) else self.data(queries)

    def remove(
        self, name: str, victim: str, of: str, keys: list[str], attacks: list[dict[str, Any]], **_: Any
    ) -> dict[str, Any]:
        """A changed copy, by one attack on the weights or several in a row."""
        encoder = self.encoder(victim, of)
        images = [self.data(attack["role"]) if "role" in attack else None for attack in attacks]
        steps = [self._removal(attack, given) for attack, given in zip(attacks, images, strict=True)]
        begun = time.process_time()
        changed = Chain(tuple(steps))(encoder, images, seed=SEED, precision=self.settings.precision)
        spent = time.process_time() - begun
        return self._measured(name, keys, changed, spent, self.settings.precision)

    def _removal(self, attack: dict[str, Any], images: Data | None) -> Removal:
        kind = attack["attack"]
        if kind == "prune":
            return Prune(attack["amount"], scope=attack["scope"])
        if kind == "overwrite":
            return Overwrite(self.settings.variant(attack["variant"]))
        if kind == "self-supervised":
            default = SelfSupervised()
            steps = attack["steps"]
            return default if steps is None else SelfSupervised(replace(default.recipe, steps=steps))
        assert images is not None
        batch = min(Supervised().batch_size, len(images))
        steps = attack["epochs"] * (len(images) // batch)
        return FineTune(Supervised(steps=steps, batch_size=batch, learning_rate=1e-3, layers=attack["layers"]))

    def wrap(
        self, name: str, victim: str, of: str, keys: list[str], wrapping: dict[str, Any], **_: Any
    ) -> dict[str, Any]:
        """The encoder as it answers behind a wrapping."""
        del name
        wrapped = _wrapping(wrapping)(self.encoder(victim, of))
        return {"accuracy": self.accuracy(wrapped), "cpu_seconds": 0.0, "scores": self.scores(keys, wrapped)}

    def _measured(
        self, name: str, keys: list[str], suspect: Encoder, spent: float, precision: str, **more: Any
    ) -> dict[str, Any]:
        save_encoder(suspect, self.out / "encoders" / name)
        return {
            "accuracy": self.accuracy(suspect),
            "cpu_seconds": spent,
            "precision": precision,
            "scores": self.scores(keys, suspect),
            **more,
        }


def _wrapping(description: Mapping[str, Any]) -> Wrapping:
    kind = {"input": InputNoise, "output": OutputNoise}[description["place"]]
    return kind(description["std"], seed=SEED)
