"""Divide a configuration into cells, the most informative first.

=========  =====================================================================================================
group      what a cell computes
=========  =====================================================================================================
reference  accuracy of a clean encoder and its baselines
mark       a protected encoder and its key, with accuracy and score before any attack
make       the encoder after a training step of an attack, on the protected or the clean encoder; kept as a folder
attack     the suspect after a whole chain of attacks: statistic and accuracy kept
twin       the same chain on the clean encoder, scored under the same key: an innocent
null       scores of some members of the null population under a key
other      an encoder protected by another scheme or seed: also an innocent. A scheme that injects nothing claims
           everything derived from its encoder; its innocents are other encoders of the bed, and copies of them
=========  =====================================================================================================

The arguments of a cell hold everything that its result depends on, and its name ends in their hash. A changed setting
therefore makes new cells and keeps the others. Chains that begin with the same steps share the cells of those steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any

from sslguard.attacks.base import Removal, Stealing
from sslguard.attacks.registry import build
from sslguard.bench.cells import Cell
from sslguard.bench.config import Config, EncoderEntry, SchemeEntry, Step, digest_of, within
from sslguard.controls.members import count_controls
from sslguard.errors import UsageError
from sslguard.schemes.base import Scheme
from sslguard.schemes.registry import build_scheme

NULL_PART = 36
"""Largest number of innocents in a cell."""

_HASH_LENGTH = 12
_DEFAULT_ROLE = {"items": "thief", "labels": "tune", "nothing": ""}


@dataclass(frozen=True)
class Plan:
    """The cells of a benchmark.

    Attributes:
        cells: In the order in which they run.
        about: For each cell name, those of `encoder`, `scheme`, `seed` and `attack` that it has; a `scheme` of "" means
            that the cell serves several schemes.
    """

    cells: tuple[Cell, ...]
    about: Mapping[str, Mapping[str, Any]]

    def chosen(self, patterns: tuple[str, ...]) -> list[Cell]:
        """Return the cells whose names match one of the glob patterns, and all that they depend on.

        Args:
            patterns: Glob patterns; an empty tuple chooses all cells.

        Raises:
            UsageError: A pattern matches no cell.
        """
        by_name = {cell.name: cell for cell in self.cells}
        wanted: set[str] = set(() if patterns else by_name)
        for pattern in patterns:
            matched = [name for name in by_name if fnmatchcase(name, pattern)]
            if not matched:
                raise UsageError(f"only must match the name of a cell, such as {self.cells[0].name}, not {pattern!r}")
            wanted.update(matched)
        for cell in reversed(self.cells):  # dependencies stand earlier
            if cell.name in wanted:
                wanted.update(cell.needs)
        return [cell for cell in self.cells if cell.name in wanted]


def make_plan(config: Config) -> Plan:
    """Return the plan of a configuration.

    Raises:
        UsageError: An attack or a role is unknown, or a setting of an attack or a scheme is invalid.
    """
    planner = _Planner(config)
    for encoder in config.encoders:
        planner.reference(encoder)
    for seed, encoder, scheme in planner.grid():
        planner.mark(encoder, scheme, seed)
    for place, (_, names) in enumerate(groupby(config.attacks, planner.training)):
        planner.attacks(list(names))
        if place == 0:
            for seed, encoder, scheme in planner.grid():
                planner.null(encoder, scheme, seed)
    for seed, encoder, scheme in planner.grid():
        planner.strangers(encoder, scheme, seed)
    return Plan(tuple(planner.cells.values()), planner.about)


@dataclass
class _Planner:
    config: Config
    cells: dict[str, Cell] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    marks: dict[tuple[str, str, int], str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def training(self, attack: str) -> str:
        """Return a hash of the steps that an attack trains. Attacks with the same hash are planned together."""
        steps = self.config.attacks[attack].steps
        trains = [isinstance(build(step.attack, step.settings), Stealing | Removal) for step in steps]
        last = max((place for place, each in enumerate(trains) if each), default=-1)
        return digest_of([asdict(step) for step in steps[: last + 1]])

    def attacks(self, names: Sequence[str]) -> None:
        """Add the cells of these attacks on all protected encoders, then the cells of their twins."""
        for twin in (False, True):
            for seed, encoder, scheme in self.grid():
                for name in names:
                    if self.takes(name, encoder, scheme, seed) and not (twin and not self.innocents(scheme)):
                        self.attack(name, encoder, scheme, seed, twin=twin)

    def grid(self) -> Iterator[tuple[int, str, str]]:
        """Yield each seed, encoder and scheme for which the scheme has the seed and runs on the encoder's bed."""
        seeds = dict.fromkeys(seed for scheme in self.config.schemes for seed in self.config.seeds_of(scheme))
        for seed in seeds:
            for name, encoder in self.config.encoders.items():
                for scheme, entry in self.config.schemes.items():
                    if seed in self.config.seeds_of(scheme) and (not entry.beds or encoder.bed in entry.beds):
                        yield seed, name, scheme

    def takes(self, attack: str, encoder: str, scheme: str, seed: int) -> bool:
        """Return whether an attack is run on this encoder, scheme and seed."""
        entry, bed = self.config.attacks[attack], self.config.encoders[encoder].bed
        left_out = any(one.meets(attack, scheme, encoder, seed) for one in self.config.without)
        return not left_out and within((entry.beds, bed), (entry.encoders, encoder), (entry.schemes, scheme))

    def innocents(self, scheme: str) -> bool:
        """Return whether models derived from the clean encoder are tested as innocents under this scheme."""
        return self.config.schemes[scheme].null and self.injects(scheme)

    def injects(self, scheme: str) -> bool:
        """Return whether the scheme injects a mark, so that models derived from the clean encoder are innocent."""
        return self.scheme(scheme).injects

    def scheme(self, scheme: str) -> Scheme:
        """Return the scheme of this name."""
        entry = self.config.schemes[scheme]
        return build_scheme(entry.scheme, entry.settings)

    def reference(self, encoder: str) -> None:
        """Add the cell of a clean encoder."""
        entry = self.config.encoders[encoder]
        self._add("reference", {"clean": entry.load, **self._probe(entry)}, encoder=encoder)

    def mark(self, encoder: str, scheme: str, seed: int) -> None:
        """Add the cell that protects an encoder."""
        entry, marking = self.config.encoders[encoder], self.config.schemes[scheme]
        args = {
            "clean": entry.load,
            "scheme": marking.scheme,
            "settings": dict(marking.settings),
            "data": self._spec(entry, "mark"),
            "seed": seed,
            "precision": self.config.precision,
            **self._probe(entry),
            **self._verify(entry, marking),
        }
        self.marks[encoder, scheme, seed] = self._add("mark", args, encoder=encoder, scheme=scheme, seed=seed)

    def attack(self, name: str, encoder: str, scheme: str, seed: int, *, twin: bool = False) -> None:
        """Add the cells of an attack on the protected encoder, or on the clean one for a twin."""
        entry, attack = self.config.encoders[encoder], self.config.attacks[name]
        mark = self.marks[encoder, scheme, seed]
        steps = [self._step(entry, place, step, seed) for place, step in enumerate(attack.steps)]
        trained = [k for k, step in enumerate(steps) if step.pop("trains")]
        # A scheme that injects nothing leaves the clean encoder as it is. Its chains share what they train of it.
        plain = twin or not self.injects(scheme)
        victim: dict[str, str] = {"clean": entry.load} if plain else {"mark": mark}
        done, about = 0, {"encoder": encoder, "scheme": "" if plain else scheme, "seed": seed, "attack": name}
        precision = attack.precision or self.config.precision
        for place in trained:
            args = {"victim": victim, "steps": steps[done : place + 1], "precision": precision}
            made = self._add("make", args, needs=_needs(victim), **about)
            victim, done = {"made": made}, place + 1
        args = {
            "mark": mark,
            "victim": victim,
            "steps": steps[done:],
            "verify": self._spec(entry, attack.verify or self.config.schemes[scheme].verify),
        }
        if not twin:
            args |= self._probe(entry)
        kind = "twin" if twin else "attack"
        self._add(kind, args, needs=(mark, *_needs(victim)), **{**about, "scheme": scheme})

    def null(self, encoder: str, scheme: str, seed: int) -> None:
        """Add the cells of innocents under a key.

        These are the null population, `NULL_PART` at a time; the clean encoder, unless the key was made with it; and
        the encoder as protected by other schemes that inject a mark, or by other seeds of the same scheme.
        """
        if not self.config.schemes[scheme].null:
            return
        entry, mark = self.config.encoders[encoder], self.marks[encoder, scheme, seed]
        about = {"encoder": encoder, "scheme": scheme, "seed": seed}
        verify = self._verify(entry, self.config.schemes[scheme])
        total = count_controls(entry.null) + entry.random
        for start in range(0, total, NULL_PART):
            args = {
                "mark": mark,
                "population": list(entry.null),
                "members": [start, min(start + NULL_PART, total)],
                **verify,
            }
            self._add("null", args, needs=(mark,), **about)
        if not self.injects(scheme):
            return
        if not self.scheme(scheme).saw_clean:
            self._other(mark, {"clean": entry.load}, verify, about)
        for (one, other, when), name in self.marks.items():
            if one == encoder and name != mark and (other == scheme or when == seed) and self.injects(other):
                self._other(mark, {"mark": name}, verify, about)

    def strangers(self, encoder: str, scheme: str, seed: int) -> None:
        """Add the innocents of a scheme that injects nothing: the bed's other encoders and copies trained from them."""
        entry, marking = self.config.encoders[encoder], self.config.schemes[scheme]
        if not marking.null or self.injects(scheme):
            return
        others = {n: e for n, e in self.config.encoders.items() if n != encoder and e.bed == entry.bed}
        victims = [{"clean": other.load} for other in others.values()]
        for cell in self.cells.values():
            made = self.about[cell.name]
            plain = cell.group == "make" and not made["scheme"]
            if plain and made["encoder"] in others and made["seed"] == seed:
                victims.append({"made": cell.name})
        verify, about = self._verify(entry, marking), {"encoder": encoder, "scheme": scheme, "seed": seed}
        for victim in victims:
            self._other(self.marks[encoder, scheme, seed], victim, verify, about)

    def _other(self, mark: str, victim: dict[str, str], verify: Mapping[str, str], about: Mapping[str, Any]) -> None:
        asked: dict[str, Any] = {"mark": mark, "victim": victim, "steps": [], **verify}
        self._add("other", asked, needs=(mark, *_needs(victim)), **about)

    def _step(self, entry: EncoderEntry, place: int, step: Step, seed: int) -> dict[str, Any]:
        """Return a step as an argument of a cell: attack, settings, data spec, seed, and whether it trains."""
        built = build(step.attack, step.settings)
        role = step.data or _DEFAULT_ROLE[built.needs]
        return {
            "attack": step.attack,
            "settings": dict(step.settings),
            "data": self._spec(entry, role) if role else None,
            "seed": seed_of("attack", seed, place),
            "trains": isinstance(built, Stealing | Removal),
        }

    def _spec(self, entry: EncoderEntry, role: str) -> str:
        roles = self.config.beds[entry.bed]
        if role not in roles:
            raise UsageError(f"data must be a role of the bed {entry.bed}, {', '.join(roles)}, not {role!r:.80}")
        return roles[role]

    def _probe(self, entry: EncoderEntry) -> dict[str, Any]:
        """Return the data specs of the probe, its method unless it is linear, and further tasks if there are any."""
        method, roles = self.config.method, ("probe_train", "probe_test")
        probe = [*(self._spec(entry, role) for role in roles), *([] if method == "linear" else [method])]
        tasks = {
            name: {
                "probe": [self._spec(entry, task.train), self._spec(entry, task.test), task.method or method],
                "per_class": task.per_class or None,
                "seeds": list(range(task.draws)),
            }
            for name, task in self.config.tasks.items()
            if not task.beds or entry.bed in task.beds
        }
        return {"probe": probe, **({"tasks": tasks} if tasks else {})}

    def _verify(self, entry: EncoderEntry, scheme: SchemeEntry) -> dict[str, str]:
        return {"verify": self._spec(entry, scheme.verify)}

    def _add(self, group: str, args: dict[str, Any], *, needs: tuple[str, ...] = (), **about: Any) -> str:
        """Add a cell unless it exists already, and return its name."""
        title = "-".join([group, *(str(part) for part in about.values() if part != "")])
        slug = re.sub(r"[^a-z0-9.]+", "-", title.lower())
        digest = digest_of([FUNCTIONS[group], args])
        name = f"{slug}-{digest[:_HASH_LENGTH]}"
        same = self.digests.setdefault(digest, name)
        if same == name:
            self.cells[name] = Cell(name, group, FUNCTIONS[group], args, needs)
            self.about[name] = about
        return same


FUNCTIONS: Mapping[str, str] = {
    "reference": "reference",
    "mark": "mark",
    "make": "make",
    "attack": "measure",
    "twin": "measure",
    "null": "innocents",
    "other": "measure",
}


def seed_of(*parts: Any) -> int:
    """Return a seed in [0, 2⁶²), derived from JSON values by a hash, so that it meets no small seed chosen by hand."""
    return int(digest_of(list(parts))[:16], 16) >> 2


def _needs(victim: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for kind, name in victim.items() if kind != "clean")
