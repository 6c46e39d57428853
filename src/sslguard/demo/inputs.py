"""The inputs of the demonstration, opened and checked before long work begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslguard.controls.members import Member, read_population, shipped_population
from sslguard.data.base import Batch, Data, Extent, overlap
from sslguard.data.specs import open_data
from sslguard.demo.settings import CLEAN, MARKED, STOLEN, DemoSettings
from sslguard.encoders.base import Encoder
from sslguard.encoders.load import load_encoder
from sslguard.errors import MissingExtraError, UsageError


@dataclass(frozen=True, eq=False)
class Innocent:
    """A suspect that does not derive from F*, and a sentence on how it was made."""

    story: str
    encoder: Encoder


@dataclass(frozen=True, eq=False)
class ProbeTask:
    """A downstream task; `skipped` says why there is no data."""

    title: str
    train: Data | None = None
    test: Data | None = None
    per_class: int | None = None
    seeds: tuple[int, ...] = (0,)
    skipped: str | None = None


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs of all stages.

    Attributes:
        clean: F.
        innocents: Innocent suspects by name.
        controls: Members of the population that are not held out.
        kinds: Family that a control is reported under, by the control's name.
        mark: Data for marking.
        thief: Data of the thief.
        verify: Data that queries are made from.
        tasks: Tasks that encoders are probed on.
    """

    clean: Encoder
    innocents: dict[str, Innocent]
    controls: list[Member]
    kinds: dict[str, str]
    mark: Data
    thief: Data
    verify: Data
    tasks: list[ProbeTask]


class Held(Data):
    """Items of another data set, kept in memory.

    The test bed draws its pictures again at every access, and the demonstration accesses them often.
    """

    def __init__(self, data: Data) -> None:
        """Read all items of `data`. Raise UsageError if they are not pictures of one size."""
        items = data.take(np.arange(len(data)))
        if not isinstance(items, Tensor):
            raise UsageError(f"{data.spec} does not hold pictures of one size, which the demonstration needs")
        self.data, self.items, self.spec = data, items, data.spec

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.items)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Batch:
        """Return items by their positions."""
        return self.items[self.positions(indices)]

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Labels of the items, int64 (n,); None if there are none."""
        return self.data.labels

    def extent(self) -> Extent:
        """Return which items of which origin the set is made from."""
        return self.data.extent()

    def extent_of(self, start: int, stop: int) -> Extent:
        """Return which items of that origin the items start ≤ i < stop are made from."""
        return self.data.extent_of(start, stop)


def open_inputs(settings: DemoSettings) -> Inputs:
    """Open and check all inputs.

    Raises:
        UsageError: Encoders, controls and data do not go together, or one of them cannot be opened.
        EncoderError: The files of an encoder are damaged.
    """
    clean = _encoder(settings.encoder)
    members = read_population(settings.population or shipped_population())
    known = {member.name: member for member in members}
    if len(known) != len(members):
        raise UsageError("two members of the population have the same name: each control must count once")
    if missing := [name for name in settings.held_out if name not in known]:
        raise UsageError(f"held_out must name members of the population; there is no {missing[0]!r:.80}")
    innocents = _innocents(settings, clean, [known[name] for name in settings.held_out])
    controls = [member for member in members if member.name not in settings.held_out]
    parent = settings.encoder if isinstance(settings.encoder, str) else clean.source
    kinds = {member.name: _family(member, parent) for member in controls}
    mark, thief, asked = _training_and_verification(settings)
    return Inputs(clean, innocents, controls, kinds, mark, thief, asked, _tasks(settings))


def _innocents(settings: DemoSettings, clean: Encoder, held_out: Sequence[Member]) -> dict[str, Innocent]:
    found = [(CLEAN, Innocent("the clean encoder; the key was trained to be silent on it", clean))]
    for given in settings.innocents:
        encoder = _encoder(given)
        name = given if isinstance(given, str) else encoder.source
        found.append((name, Innocent("another clean encoder, pre-trained by itself", encoder)))
    found += [(member.name, Innocent(_story(member), member.load())) for member in held_out]
    innocents = dict(found)
    if len(innocents) != len(found) or {MARKED, STOLEN} & innocents.keys():
        raise UsageError("two suspects have the same name: name each innocent once")
    for name, innocent in innocents.items():
        if innocent.encoder.dim != clean.dim:
            raise UsageError(
                f"{name:.80} answers in {innocent.encoder.dim} dimensions and the clean encoder in {clean.dim}: "
                "one key cannot score both"
            )
    return innocents


def _encoder(given: Encoder | str) -> Encoder:
    return load_encoder(given) if isinstance(given, str) else given


def _story(member: Member) -> str:
    if member.parent is None:
        return f"{member.kind}: made without F; held out of the controls"
    return f"{member.kind}: made from {member.parent}, which carries no mark; held out of the controls"


def _family(member: Member, clean: str) -> str:
    """Return a control's family: its kind, and whether it was made from this F.

    Controls that were made from this F are the most similar to what derives from F*.
    """
    if member.parent is None or member.kind == "public":
        return member.kind
    return f"{member.kind} of F" if member.parent == clean else f"{member.kind} of others"


def _training_and_verification(settings: DemoSettings) -> tuple[Data, Data, Data]:
    roles = settings.roles
    mark, thief, asked = (open_data(spec) for spec in (roles.mark, roles.thief, roles.verify))
    for other in (mark, thief):
        if shared := overlap(other, asked):
            raise UsageError(
                f"{other.spec} and {asked.spec} share {shared} items: verification takes items that nobody trained on"
            )
    needed = max(settings.scheme.n_queries, settings.published.n_queries)
    if len(asked) < needed:
        raise UsageError(f"{asked.spec} has {len(asked)} items, fewer than the {needed} queries that a key asks")
    return Held(mark), Held(thief), Held(asked)


def _tasks(settings: DemoSettings) -> list[ProbeTask]:
    roles = settings.roles
    train, test = Held(open_data(roles.probe_train)), Held(open_data(roles.probe_test))
    tasks = [ProbeTask(f"{_set_name(train.spec)}, {len(train)} labels", train, test)]
    if settings.few_labels is not None:
        title = f"{_set_name(train.spec)}, {settings.few_labels} labels a class"
        tasks.append(ProbeTask(title, train, test, settings.few_labels, (0, 1, 2)))
    name = _set_name(roles.digits_probe_train)
    try:
        train, test = Held(open_data(roles.digits_probe_train)), Held(open_data(roles.digits_probe_test))
    except MissingExtraError as error:
        return [*tasks, ProbeTask(name, skipped=str(error))]
    return [*tasks, ProbeTask(f"{name}, {len(train)} labels", train, test)]


def _set_name(spec: str) -> str:
    """Return the name of a data set, such as `mnist` for `mnist:train[0:10]`; the last part of a path."""
    return spec.rpartition("/")[2].partition(":")[0].partition("[")[0]
