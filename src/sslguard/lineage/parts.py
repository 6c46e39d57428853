"""Groups of units that may change places, and the order in which they are tested.

A group is a set of n units. Its parts are the axes of tensors that count its units. The groups stand in an order. A
group is compared by those of its parts whose other axis counts something fixed, such as colours or tokens, or units of
earlier groups: under this condition the tests of all groups are independent. An axis belongs to one group only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sslguard.errors import UsageError

Shapes = Mapping[str, tuple[int, ...]]
MAX_UNITS = 100_000
MAX_GROUPS = 10_000


@dataclass(frozen=True)
class Part:
    """An axis of a tensor that counts a group's units.

    Attributes:
        tensor: Name of the tensor.
        axis: The axis.
        blocks: The axis is so many times as long as the group: the units once, then all of them again.
        run: So many places in a row belong to each unit.
        other: Group that the other axis of the tensor counts; "" for something fixed or unknown.
    """

    tensor: str
    axis: int
    blocks: int = 1
    run: int = 1
    other: str = ""

    def places(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places on the axis of these units, all of the group, in this order."""
        if self.run > 1:
            units = (units[:, None] * self.run + np.arange(self.run)).ravel()
        return np.concatenate([units + block * len(units) for block in range(self.blocks)])


@dataclass(frozen=True)
class Group:
    """Units that may change places.

    Attributes:
        name: Name of the layer that makes them.
        size: Number of units.
        kind: "stream": channels that blocks read and add to. "hidden": units between two layers.
        features: Parts that are compared.
        others: Parts that only move along: biases, norms, and tensors whose other axis counts a later group.
        whole: Whether these are all parts of the units, so that they can be put in another order.
    """

    name: str
    size: int
    kind: Literal["stream", "hidden"]
    features: tuple[Part, ...]
    others: tuple[Part, ...] = ()
    whole: bool = False

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts."""
        return (*self.features, *self.others)

    @property
    def why(self) -> str:
        """By what the group is compared, in words."""
        sides = {part.axis for part in self.features}
        if self.kind == "stream":
            return "stream, by its incoming weights"
        if len(sides) == 2:
            return "hidden units, by incoming and outgoing weights"
        later = any(part.axis == 1 for part in self.others)
        return "hidden units, by incoming weights" + (": a later group counts the outgoing ones too" if later else "")


def ordered(groups: Iterable[Group], shapes: Shapes) -> list[Group]:
    """Return groups with only those features that may be compared in this order. Groups without any are left out.

    Raises:
        UsageError: An axis of a tensor belongs to two groups.
    """
    groups = [group for group in groups if 2 <= group.size <= MAX_UNITS][:MAX_GROUPS]
    place = {group.name: number for number, group in enumerate(groups)}
    owner: dict[tuple[str, int], str] = {}
    for group in groups:
        for part in group.parts:
            if owner.setdefault((part.tensor, part.axis), group.name) != group.name:
                raise UsageError(f"axis {part.axis} of {part.tensor:.80} belongs to two groups: a unit counts once")
    streams = {group.size: group.name for group in groups if group.kind == "stream"}
    found = []
    for number, group in enumerate(groups):
        features, others = [], list(group.others)
        for part in group.features:
            side = 1 - part.axis
            other = owner.get((part.tensor, side), "")
            if other and place[other] >= number:
                others.append(part)
                continue
            if not other and (stream := streams.get(shapes[part.tensor][side], "")) and place[stream] < number:
                other = stream
            features.append(replace(part, other=other))
        if features:
            found.append(replace(group, features=tuple(features), others=tuple(others)))
    return found
