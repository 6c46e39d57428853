"""The inputs of the demonstration, opened and checked before long work begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslguard.api import as_encoder
from sslguard.controls.members import Member, read_population, shipped_population
from sslguard.data.base import Batch, Data, Slice, overlap
from sslguard.data.specs import open_data
from sslguard.demo.settings import CLEAN, MARKED, STOLEN, DemoSettings
from sslguard.encoders.base import Encoder
from sslguard.errors import MissingExtraError, UsageError


@dataclass(frozen=True, eq=False)
class Tested:
    """An encoder that is tested.

    Attributes:
        name: Name, unique in the report.
        story: How it was made, one sentence.
        encoder: The encoder.
        derived: Whether it derives from F*.
    """

    name: str
    story: str
    encoder: Encoder
    derived: bool = False


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
        innocents: Innocent suspects.
        controls: Members of the population that are not held out, each with the kind that it is reported under.
        mark: Data for marking.
        thief: Data of the thief.
        verify: Data that queries are made from.
        tasks: Tasks that encoders are probed on.
    """

    clean: Encoder
    innocents: list[Tested]
    controls: list[Member]
    mark: Data
    thief: Data
    verify: Data
    tasks: list[ProbeTask]


class Held(Slice):
    """All items of another data set, kept in memory.

    The test bed draws its pictures again at every access, and the demonstration accesses them often.
    """

    def __init__(self, data: Data) -> None:
        """Read all items of `data`. Raise UsageError if they are not pictures of one size."""
        super().__init__(data, 0, len(data))
        items = data.take(np.arange(len(data)))
        if not isinstance(items, Tensor):
            raise UsageError(f"{data.spec} does not hold pictures of one size, which the demonstration needs")
        self.items, self.spec = items, data.spec

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Batch:
        """Return items by their positions."""
        return self.items[self.positions(indices)]


def open_inputs(settings: DemoSettings) -> Inputs:
    """Open and check all inputs.

    Raises:
        UsageError: Encoders, controls and data do not go together, or one of them cannot be opened.
        EncoderError: The files of an encoder are damaged.
    """
    clean = as_encoder(settings.encoder)
    members = read_population(settings.population or shipped_population())
    known = {member.name: member for member in members}
    if len(known) != len(members):
        raise UsageError("two members of the population have the same name: each control must count once")
    if missing := [name for name in settings.held_out if name not in known]:
        raise UsageError(f"held_out must name members of the population; there is no {missing[0]!r:.80}")
    innocents = _innocents(settings, clean, [known[name] for name in settings.held_out])
    parent = settings.encoder if isinstance(settings.encoder, str) else clean.source
    controls = [replace(m, kind=_family(m, parent)) for m in members if m.name not in settings.held_out]
    if not controls:
        raise UsageError("held_out names every member of the population: none is left as a control")
    roles = settings.roles
    mark, thief, asked = (open_data(spec) for spec in (roles.mark, roles.thief, roles.verify))
    check_unseen(asked, mark, thief)
    needed = max(settings.scheme.n_queries, settings.published.n_queries)
    if len(asked) < needed:
        raise UsageError(f"{asked.spec} has {len(asked)} items, fewer than the {needed} queries that a key asks")
    return Inputs(clean, innocents, controls, Held(mark), Held(thief), Held(asked), _tasks(settings))


def check_unseen(asked: Data, *trained_on: Data) -> None:
    """Raise UsageError if verification would ask about items that somebody trained on."""
    for other in trained_on:
        if shared := overlap(other, asked):
            raise UsageError(
                f"{other.spec} and {asked.spec} share {shared} items: verification takes items that nobody trained on"
            )


def _innocents(settings: DemoSettings, clean: Encoder, held_out: Sequence[Member]) -> list[Tested]:
    found = [Tested(CLEAN, "the clean encoder; the key was trained to be silent on it", clean)]
    for given in settings.innocents:
        encoder = as_encoder(given)
        name = given if isinstance(given, str) else encoder.source
        found.append(Tested(name, "another clean encoder, pre-trained by itself", encoder))
    found += [Tested(member.name, _story(member), member.load()) for member in held_out]
    if len({MARKED, STOLEN, *(one.name for one in found)}) < 2 + len(found):
        raise UsageError("two suspects have the same name: name each innocent once")
    for one in found:
        if one.encoder.dim != clean.dim:
            raise UsageError(
                f"{one.name:.80} answers in {one.encoder.dim} dimensions and the clean encoder in {clean.dim}: "
                "one key cannot score both"
            )
    return found


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


def _tasks(settings: DemoSettings) -> list[ProbeTask]:
    roles, few = settings.roles, settings.few_labels
    train, test = Held(open_data(roles.probe_train)), Held(open_data(roles.probe_test))
    tasks = [
        ProbeTask(f"{_set_name(train.spec)}, {len(train)} labels", train, test),
        ProbeTask(f"{_set_name(train.spec)}, {few} labels a class", train, test, few, (0, 1, 2)),
    ]
    name = _set_name(roles.digits_probe_train)
    try:
        train, test = Held(open_data(roles.digits_probe_train)), Held(open_data(roles.digits_probe_test))
    except MissingExtraError as error:
        return [*tasks, ProbeTask(name, skipped=str(error))]
    return [*tasks, ProbeTask(f"{name}, {len(train)} labels", train, test)]


def _set_name(spec: str) -> str:
    """Return the name of a data set, such as `mnist` for `mnist:train[0:10]`; the last part of a path."""
    return spec.rpartition("/")[2].partition(":")[0].partition("[")[0]
