"""The configuration of a benchmark, read from one TOML file.

::

    title = "…"
    seeds = [0]                     # seeds of keys and attacks; a scheme may have its own seeds
    rates = ["1e-2", "2^-64"]       # false-claim rates at which detection is reported
    precision = "bf16"              # of all training, unless an attack sets its own
    method = "linear"               # classifier of probes: "linear", "mlp" or "knn"
    notes = ["…"]                   # remarks for readers of the page
    recorded = "results/….tar.xz"   # cells of an earlier run, beside this file; a dry run estimates costs from them
    base = "page.toml"              # configuration beside this file; its values hold unless this file replaces them

    [beds.images]                   # data by role; missing roles come from the preset, see `beds.PRESETS`
    verify = "cluttered-fashion-mnist:train[0:4000]"

    [encoders.simclr]
    load = "shipped:simclr"
    bed = "images"
    null = ["shipped"]              # known innocents, as `sslguard verify --control` takes them
    random = 20                     # number of further innocents: untrained networks

    [schemes.exact-distilled]
    scheme = "exact"                # see `schemes.registry`; all other keys are its settings
    verify = "queries"              # role of the items that suspects are queried with; default "verify"

    [attacks.mse]
    set = "held-out"                # or "development": attacks that schemes were tuned on
    steps = [{attack = "distil", data = "thief", recipe = {loss = "mse"}}]

    [[without]]                     # combinations to leave out
    why = "…"                       # reason, shown on the page
    attacks = ["mse*"]              # these attacks on these schemes, encoders and seeds; default: all
    schemes = ["exact-distilled"]
    encoders = ["moco"]
    seeds = [1, 2]

    [tasks.digits]                  # a further downstream task; see `Task`
    train = "digits_probe_train"
    test = "digits_probe_test"

    [[targets]]                     # a goal that the rows should meet; see `Target`
    aim = "Stolen copies that keep 90 % are found"
    column = "log2_pvalue"
    at_most = -64
    kept = 0.9

An encoder, scheme or attack with a `sweep` stands for several entries: see `sweeps.expanded`. " + " joins data specs.
Names and settings of attacks are those of `attacks.registry`. The `data` of a step is a role; the default is "thief",
or "tune" for an attack that needs labels.
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
from sslguard.settings import Count, Seed, load_toml, read, rest

AttackSet = Literal["development", "held-out"]
NAME_LENGTH = 60


@dataclass(frozen=True)
class EncoderEntry:
    """A clean encoder.

    Attributes:
        load: Name of the encoder, as `load_encoder` takes it.
        bed: Name of its test bed.
        null: Folders of known innocents, or "shipped".
        random: Number of further innocents: untrained networks.
    """

    load: str
    bed: str
    null: tuple[str, ...] = ()
    random: Seed = 0


@dataclass(frozen=True)
class SchemeEntry:
    """A watermarking scheme with its settings.

    Attributes:
        scheme: Name in `schemes.registry`.
        seeds: Seeds of its keys, one key each; default: the seeds of the configuration.
        verify: Role of the items that suspects are queried with.
        beds: Beds that the scheme is run on; default: all.
        null: Whether its innocents are tested; false if the innocents of another scheme already show the same.
        settings: Settings of the scheme.
    """

    scheme: str
    seeds: tuple[Seed, ...] = ()
    verify: str = "verify"
    beds: tuple[str, ...] = ()
    null: bool = True
    settings: Mapping[str, Any] = rest()


@dataclass(frozen=True)
class Step:
    """One attack of a chain.

    Attributes:
        attack: Name in `attacks.registry`.
        data: Role of its data; "" chooses "thief", "tune" if the attack needs labels, or none if it needs no data.
        settings: Settings of the attack.
    """

    attack: str
    data: str = ""
    settings: Mapping[str, Any] = rest()


@dataclass(frozen=True)
class AttackEntry:
    """An attack: a chain of steps.

    Attributes:
        set: Whether schemes were tuned on it ("development") or not ("held-out").
        steps: The steps, in order.
        beds, encoders, schemes: Glob patterns of the names that it is run on; default: all.
        precision: Precision of its training; default: that of the configuration.
        verify: Role of the items that suspects are queried with; default: that of the scheme.
    """

    set: AttackSet
    steps: tuple[Step, ...]
    beds: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    precision: Literal["", "32", "bf16"] = ""
    verify: str = ""

    @property
    def one_task(self) -> bool:
        """Whether the attacked model answers with the outputs of a one-task classifier, not with embeddings."""
        return any(step.attack == "classify" for step in self.steps)


def within(*limits: tuple[Sequence[str], str]) -> bool:
    """Return whether each name matches a glob pattern of its list. Every name matches an empty list."""
    return all(not patterns or _matches(name, patterns) for patterns, name in limits)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class Without:
    """A combination of attacks, schemes, encoders and seeds to leave out; see the module."""

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
    """A downstream task beside the one of the roles probe_train and probe_test.

    Attributes:
        train, test: Roles of the training and test data.
        method: Classifier of the probe; default: that of the configuration.
        per_class: Number of labelled items of each class; 0 takes all.
        draws: Number of probes, each trained on newly drawn items; their accuracies are averaged.
        beds: Beds that have the task; default: all.
    """

    train: str = "probe_train"
    test: str = "probe_test"
    method: Literal["", "linear", "mlp", "knn"] = ""
    per_class: Seed = 0
    draws: Count = 1
    beds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A goal: a bound that rows of the benchmark should meet.

    Attributes:
        aim: The goal in words.
        column: Numeric column of `rows.Row`, such as "kept", "log2_pvalue" or "watermark_rate".
        at_least, at_most: The bound; exactly one is given. A suspect that cannot be scored does not meet it.
        kind: Kind of rows that count.
        schemes, encoders, attacks: Glob patterns of names; default: all.
        mean: Whether the bound applies to the mean over the keys of each encoder and scheme, not to each row.
        kept: If given, only suspects count that keep at least this share of accuracy and whose attack, where its cost
            is known, took no longer than pre-training.
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
    """A whole benchmark; see the module. `rates` are base-2 logarithms; `beds` give the data spec of each role."""

    title: str = "Benchmark"
    beds: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    encoders: Mapping[str, EncoderEntry] = field(default_factory=dict)
    schemes: Mapping[str, SchemeEntry] = field(default_factory=dict)
    attacks: Mapping[str, AttackEntry] = field(default_factory=dict)
    seeds: tuple[Seed, ...] = (0,)
    rates: tuple[float, ...] = (math.log2(0.01),)
    precision: Literal["32", "bf16"] = "32"
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
        """Return the SHA-256 of the whole configuration, in hex."""
        return digest_of(asdict(self))

    def attacks_digest(self) -> str:
        """Return the SHA-256 of the attacks, in hex. It is fixed before results of held-out attacks are seen."""
        return digest_of({name: asdict(entry) for name, entry in self.attacks.items()})


def digest_of(value: Any) -> str:
    """Return the SHA-256, in hex, of a JSON value written with sorted keys and without blanks."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_config(path: Path) -> Config:
    """Return the benchmark in a TOML file.

    Raises:
        UsageError: The file cannot be read, or an entry is unknown, missing or contradictory.
    """
    return parse_config(_read(path))


def _read(path: Path, *, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the content of a file merged into that of its base.

    In a table, each entry replaces the base's entry of the same name. Any other value replaces the base's value.

    Args:
        path: The file.
        above: Files that have this file as their base.
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
    """Return the file of a configuration and the files of its bases."""
    base = load_toml(path).get("base")
    return [path, *(files_of(path.parent / Path(base).name) if base else [])]


def parse_config(found: Mapping[str, Any]) -> Config:
    """Return the benchmark in a table, with the content of a TOML file.

    Raises:
        UsageError: An entry is unknown, missing or contradictory.
    """
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
    """Return the base-2 logarithm of a false-claim rate in (0, 1), such as "1e-2" or "2^-64".

    Raises:
        UsageError: The text is no such rate.
    """
    try:
        base, power, exponent = str(text).partition("^")
        value = float(exponent) * math.log2(float(base)) if power else math.log2(float(base))
    except ValueError:
        value = math.nan
    if not -math.inf < value < 0:
        raise UsageError(f'rates must be numbers between 0 and 1 such as "1e-2" or "2^-64", not {text!r:.40}')
    return value


def _check(config: Config) -> None:
    """Raise UsageError if a value is out of range, or if a part names something that the configuration lacks."""
    for title, given in (("encoders", config.encoders), ("seeds", config.seeds)):
        if not given:
            raise UsageError(f"{title} must not be empty")
    for seeds in (config.seeds, *(scheme.seeds for scheme in config.schemes.values())):
        if len(set(seeds)) != len(seeds):
            raise UsageError(f"seeds must be different numbers, not {list(seeds)}")
    for name, attack in config.attacks.items():
        if not attack.steps:
            raise UsageError(f"attacks.{name}.steps must name at least one attack")
    for target in config.targets:
        if (target.at_least is None) == (target.at_most is None):
            raise UsageError(f"targets: {target.aim!r:.80} needs either at_least or at_most")
    known = {"beds": config.beds, "encoders": config.encoders, "schemes": config.schemes, "attacks": config.attacks}
    tables = {"schemes": config.schemes, "attacks": config.attacks, "tasks": config.tasks}
    entries = [(f"{part}.{name}", entry) for part, table in tables.items() for name, entry in table.items()]
    entries += [("without", one) for one in config.without] + [("targets", one) for one in config.targets]
    for where, entry in entries:
        for part, names in known.items():
            for pattern in vars(entry).get(part, ()):
                if not any(_matches(name, (pattern,)) for name in names):
                    raise UsageError(f"{where}.{part} must name {', '.join(names)}, not {pattern!r:.80}")
