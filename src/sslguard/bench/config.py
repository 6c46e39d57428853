"""What a benchmark is made of, from one TOML file.

::

    title = "…"
    seeds = [0]                     # of keys and of attacks; a scheme may have seeds of its own
    rates = ["1e-2", "2^-64"]       # false-claim rates that detection is told at
    precision = "bf16"              # of all training, unless an attack says otherwise
    method = "linear"               # of probes: "linear", "mlp" or "knn"
    notes = ["…"]                   # what a reader of the page must know
    recorded = "results/….tar.xz"   # cells of an earlier run, beside this file: what a dry run knows costs from
    base = "page.toml"              # beside this file: what it holds, where this one does not say otherwise

    [beds.images]                   # data by role; roles that are left out are the preset's, see `beds.PRESETS`
    verify = "cluttered-fashion-mnist:train[0:4000]"

    [encoders.simclr]
    load = "shipped:simclr"
    bed = "images"
    null = ["shipped"]              # innocents, as `sslguard verify --control` takes them
    random = 20                     # further innocents: networks that were never trained

    [schemes.exact-distilled]
    scheme = "exact"                # see `schemes.registry`; all other keys are its settings
    verify = "queries"              # role of the items that suspects are asked about; "verify" unless given

    [attacks.mse]
    set = "held-out"                # or "development": what schemes were tuned on
    steps = [{attack = "distil", data = "thief", recipe = {loss = "mse"}}]

    [[without]]                     # what is left out, whatever else says it is to be done
    why = "…"                       # for a reader of the page
    attacks = ["mse*"]              # these, against these schemes on these encoders; a list that is not given names all
    schemes = ["exact-distilled"]
    encoders = ["moco"]
    seeds = [1, 2]

    [tasks.digits]                  # a further downstream task, by roles of the bed; see `Task`
    train = "digits_probe_train"
    test = "digits_probe_test"

    [[targets]]                     # what shall be true of rows; see `Target`
    aim = "Stolen copies that keep 90 % are found"
    column = "log2_pvalue"
    at_most = -64
    kept = 0.9

An encoder, scheme or attack with a `sweep` stands for several: see `sweeps.expanded`. " + " joins specs of data.
Attacks' names and settings are those of `attacks.registry`. A step's `data` is a role: "thief" unless given, "tune" for
one that needs labels.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from sslguard.bench.beds import check_bed
from sslguard.bench.sweeps import expanded
from sslguard.errors import UsageError
from sslguard.settings import load_toml, read, rest

AttackSet = Literal["development", "held-out"]
NAME_LENGTH = 60
PRECISIONS = ("32", "bf16")


@dataclass(frozen=True)
class EncoderEntry:
    """A clean encoder: `load` as `load_encoder` takes it, its bed, its null population; see the module."""

    load: str
    bed: str
    null: tuple[str, ...] = ()
    random: int = 0


@dataclass(frozen=True)
class SchemeEntry:
    """A scheme by its name in `schemes.registry`, with its settings.

    `beds` limits it to some. `null = false` tests none of its innocents: those of another scheme tell the same. `seeds`
    stand in place of the configuration's: a key each.
    """

    scheme: str
    seeds: tuple[int, ...] = ()
    verify: str = "verify"
    beds: tuple[str, ...] = ()
    null: bool = True
    settings: Mapping[str, Any] = rest()


@dataclass(frozen=True)
class Step:
    """One attack of a chain, by its name in the registry; `data` is a role, "" the one that its needs suggest."""

    attack: str
    data: str = ""
    settings: Mapping[str, Any] = rest()


@dataclass(frozen=True)
class AttackEntry:
    """A chain of steps; `beds`, `encoders` and `schemes` limit it to some, by name."""

    set: AttackSet
    steps: tuple[Step, ...]
    beds: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    precision: str = ""

    @property
    def one_task(self) -> bool:
        """Whether what is left says what a classifier of one task says, and gives no embeddings."""
        return any(step.attack == "classify" for step in self.steps)


def within(*limits: tuple[Sequence[str], str]) -> bool:
    """Return whether each name matches a glob pattern of its list; an empty list limits nothing."""
    return all(not patterns or _matches(name, patterns) for patterns, name in limits)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class Without:
    """What is left out, and why; see the module."""

    why: str
    attacks: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def meets(self, attack: str, scheme: str, encoder: str, seed: int) -> bool:
        """Return whether this attack on this scheme, encoder and seed is left out."""
        named = within((self.attacks, attack), (self.schemes, scheme), (self.encoders, encoder))
        return named and (not self.seeds or seed in self.seeds)


@dataclass(frozen=True)
class Task:
    """A downstream task beside that of the roles probe_train and probe_test.

    Attributes:
        train, test: roles of the bed.
        method: of the probe; the configuration's unless given.
        per_class: labels of each class, drawn anew for each of `draws` probes, whose accuracies are averaged; 0 takes
            all labels.
        beds: those that have the task; all unless given.
    """

    train: str = "probe_train"
    test: str = "probe_test"
    method: Literal["", "linear", "mlp", "knn"] = ""
    per_class: int = 0
    draws: int = 1
    beds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """What shall be true of rows of a benchmark.

    Attributes:
        aim: in words.
        column: of `rows.Row`, a number, such as "kept", "log2_pvalue" or "watermark_rate".
        at_least, at_most: bounds; a suspect that cannot be scored meets none.
        kind: of rows.
        schemes, encoders, attacks: glob patterns of names; all unless given.
        mean: bound the mean over keys of each encoder and scheme, in place of every row.
        kept: only suspects that keep so much accuracy, and cost no more than pre-training where that is known.
    """

    aim: str
    column: str
    at_least: float | None = None
    at_most: float | None = None
    kind: Literal["protected", "attack", "innocent"] = "attack"
    schemes: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    mean: bool = False
    kept: float | None = None


@dataclass(frozen=True)
class Config:
    """A whole benchmark; see the module. Rates are base-2 logarithms, beds role → spec by bed."""

    title: str = "Benchmark"
    beds: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    encoders: Mapping[str, EncoderEntry] = field(default_factory=dict)
    schemes: Mapping[str, SchemeEntry] = field(default_factory=dict)
    attacks: Mapping[str, AttackEntry] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    rates: tuple[float, ...] = (math.log2(0.01),)
    precision: str = "32"
    method: Literal["linear", "mlp", "knn"] = "linear"
    notes: tuple[str, ...] = ()
    without: tuple[Without, ...] = ()
    tasks: Mapping[str, Task] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    recorded: str = ""

    def seeds_of(self, scheme: str) -> tuple[int, ...]:
        """Return the seeds of a scheme's keys."""
        return self.schemes[scheme].seeds or self.seeds

    def digest(self) -> str:
        """SHA-256 of everything, hex."""
        return digest_of(asdict(self))

    def attacks_digest(self) -> str:
        """SHA-256 of the attacks alone, hex: what is frozen before the held-out ones are looked at."""
        return digest_of({name: asdict(entry) for name, entry in self.attacks.items()})


def digest_of(value: Any) -> str:
    """SHA-256, hex, of JSON values: keys sorted, no blanks."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_config(path: Path) -> Config:
    """Return the benchmark in a TOML file.

    Raises:
        UsageError: the file cannot be read, or something in it is unknown, missing or contradictory.
    """
    return parse_config(_read(path))


def _read(path: Path, *, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return what a file holds over its base: entries of tables replace those of the same name, all else as a whole.

    Args:
        above: files whose base this one is.
    """
    if path in above:
        raise UsageError(f"base must name another file: {path} rests on itself")
    found = load_toml(path)
    if (base := found.pop("base", None)) is None:
        return found
    if not isinstance(base, str):
        raise UsageError(f"base must be a text, not {base!r:.80}")
    merged = _read(path.parent / Path(base).name, above=(*above, path))
    for name, value in found.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = {**merged[name], **value} if both else value
    return merged


def files_of(path: Path) -> list[Path]:
    """Return a configuration's file and those that it rests on."""
    base = load_toml(path).get("base")
    return [path, *(files_of(path.parent / Path(base).name) if base else [])]


def parse_config(found: Mapping[str, Any]) -> Config:
    """Return the benchmark of a table, as `read_config` does of a file."""
    table = dict(found)
    if isinstance(rates := table.get("rates"), list):
        table["rates"] = [log2_rate(rate) for rate in rates]
    table |= {part: expanded(table[part], part) for part in ("encoders", "schemes", "attacks") if part in table}
    config = read(Config, table)
    for name in (*config.encoders, *config.schemes, *config.attacks):
        if not name.strip() or len(name) > NAME_LENGTH:
            raise UsageError(f"names have 1 to {NAME_LENGTH} characters, not {name!r:.80}")
    names = dict.fromkeys([*config.beds, *(entry.bed for entry in config.encoders.values())])
    config = replace(config, beds={name: check_bed(name, config.beds.get(name, {})) for name in names})
    _check(config)
    return config


def log2_rate(text: Any) -> float:
    """Base-2 logarithm of a false-claim rate in (0, 1) such as "1e-2" or "2^-64"."""
    try:
        base, power, exponent = str(text).partition("^")
        value = float(exponent) * math.log2(float(base)) if power else math.log2(float(base))
    except ValueError:
        value = math.nan
    if not -math.inf < value < 0:
        raise UsageError(f'rates must be numbers between 0 and 1 such as "1e-2" or "2^-64", not {text!r:.40}')
    return value


def _check(config: Config) -> None:
    """Raises UsageError where one part names what another lacks."""
    for title, entries in (("encoders", config.encoders), ("seeds", config.seeds)):
        if not entries:
            raise UsageError(f"{title} must not be empty")
    for seeds in (config.seeds, *(scheme.seeds for scheme in config.schemes.values())):
        if min(seeds, default=0) < 0 or len(set(seeds)) != len(seeds):
            raise UsageError(f"seeds must be different numbers from 0 up, not {list(seeds)}")
    for where, precision in (("precision", config.precision), *_precisions(config)):
        if precision not in PRECISIONS:
            raise UsageError(f"{where} must be {' or '.join(PRECISIONS)}, not {precision!r:.40}")
    for name, encoder in config.encoders.items():
        if encoder.random < 0:
            raise UsageError(f"encoders.{name}.random must be at least 0, not {encoder.random}")
    limited: list[tuple[str, Sequence[str], Mapping[str, Any]]] = []
    for name, scheme in config.schemes.items():
        limited.append((f"schemes.{name}.beds", scheme.beds, config.beds))
    for name, attack in config.attacks.items():
        if not attack.steps:
            raise UsageError(f"attacks.{name}.steps must name at least one attack")
        limited.append((f"attacks.{name}.beds", attack.beds, config.beds))
        limited.append((f"attacks.{name}.encoders", attack.encoders, config.encoders))
        limited.append((f"attacks.{name}.schemes", attack.schemes, config.schemes))
    for one in config.without:
        limited.append(("without.attacks", one.attacks, config.attacks))
        limited.append(("without.schemes", one.schemes, config.schemes))
        limited.append(("without.encoders", one.encoders, config.encoders))
    for name, task in config.tasks.items():
        limited.append((f"tasks.{name}.beds", task.beds, config.beds))
        if task.per_class < 0 or task.draws < 1:
            raise UsageError(f"tasks.{name}: per_class must be at least 0 and draws at least 1")
    for target in config.targets:
        limited.append(("targets.schemes", target.schemes, config.schemes))
        limited.append(("targets.encoders", target.encoders, config.encoders))
        limited.append(("targets.attacks", target.attacks, config.attacks))
        if (target.at_least is None) == (target.at_most is None):
            raise UsageError(f"targets: {target.aim!r:.80} needs either at_least or at_most")
    for where, names, known in limited:
        if unknown := [pattern for pattern in names if not any(_matches(name, (pattern,)) for name in known)]:
            raise UsageError(f"{where} must name {', '.join(known)}, not {unknown[0]!r:.80}")


def _precisions(config: Config) -> list[tuple[str, str]]:
    """Where attacks name a precision of their own."""
    return [(f"attacks.{n}.precision", entry.precision) for n, entry in config.attacks.items() if entry.precision]
