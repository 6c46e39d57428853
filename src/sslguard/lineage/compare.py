"""Do two networks share initial weights? Fixed points of the matching of their units.

Null hypothesis of `in_place`: the weights of A and B are independent, and the law of one of them does not change when
units of a group change places. This holds for initial weights that are drawn alike for all units, and training keeps
it. The matching of each group is then a uniform permutation, independent of those of earlier groups.

Null hypothesis of `agreement`: B is independent of the initial weights of A.

docs/explanation/lineage.md has the proofs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sslguard.errors import RefusedError
from sslguard.lineage.groups import find_groups
from sslguard.lineage.matching import NEAREST_ABOVE, Places, matched, units_of
from sslguard.lineage.parts import Group, Part
from sslguard.lineage.weights import Weights, corresponding
from sslguard.stats.corrections import fisher
from sslguard.stats.fixed_points import log2_fixed_points, log2_fixed_points_bound

Test = Literal["in place", "streams", "aligned", "initial weights", "initial weights, aligned"]
SAMPLED = 4096
"""Numbers of a tensor by which copies within one network are told: shared layers, averages of the weights."""
ALIKE = 0.9
"""Correlation of these numbers from which two layers count as copies."""
FIXED = 0.3
"""Correlation of initial weights from two seeds from which they count as fixed."""
Array = NDArray[np.floating]
Watch = Callable[[Iterable[Group], int], Iterable[Group]]
"""Shows progress: yields the groups, whose number it is given."""


@dataclass(frozen=True)
class Row:
    """What was found in one group.

    Attributes:
        group: Name of the group.
        kind: "stream" or "hidden".
        size: Number of units.
        matched: Units that the test counts; about one is expected by chance.
        log2_pvalue: Base-2 logarithm of the chance of so many, in bits.
        why: By what the group was compared.
    """

    group: str
    kind: str
    size: int
    matched: int
    log2_pvalue: float
    why: str


@dataclass(frozen=True)
class Comparison:
    """Result of one test of two networks.

    Attributes:
        test: "in place": units of A that match the unit of the same place in B. "streams": the same, without hidden
            units, which a thief may have put in another order at no cost. "aligned": the same for streams, after
            earlier streams were put in order. "initial weights": units of A's initial weights whose incoming and
            outgoing weights match one and the same unit of B, in whatever place; "aligned" as above.
        rows: What was found in each group, in the order of the test.
        left_out: Groups of A that could not be compared, each with the reason.
    """

    test: Test
    rows: tuple[Row, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def log2_pvalue(self) -> float:
        """Base-2 logarithm of the p-value of all groups together, by Fisher's product, in bits."""
        return fisher([row.log2_pvalue for row in self.rows])

    @property
    def matched(self) -> int:
        """Units that were counted."""
        return sum(row.matched for row in self.rows)

    @property
    def size(self) -> int:
        """Units in all."""
        return sum(row.size for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "test": self.test,
            "log2_pvalue": self.log2_pvalue,
            "matched": self.matched,
            "units": self.size,
            "groups": [asdict(row) for row in self.rows],
            "left_out": [list(each) for each in self.left_out],
        }


def in_place(
    a: Weights, b: Weights, groups: Sequence[Group] | None = None, *, seed: int = 0, watch: Watch | None = None
) -> Comparison:
    """Count the units of A that match the unit of the same place in B.

    Args:
        a: Weights of one network.
        b: Weights of the other.
        groups: Groups of A in their order; those of `find_groups` unless given.
        seed: Seed that breaks ties.
        watch: Shows progress.

    Raises:
        RefusedError: No group of A is known, or none has its like in B.
        EncoderError: A weight cannot be read.
    """
    pair = _Pair(a, b, groups)
    rng = np.random.default_rng(seed)
    rows = []
    for group in pair.watched(watch):
        found = pair.match(group.features, rng, {})
        rows.append(_row(group, int((found == np.arange(group.size)).sum())))
    return Comparison("in place", tuple(rows), tuple(pair.left_out))


def streams(found: Comparison) -> Comparison | None:
    """Return the part of a comparison in place that hidden units have no part in; None where it has no two kinds."""
    rows = tuple(row for row in found.rows if row.kind == "stream")
    return Comparison("streams", rows) if 0 < len(rows) < len(found.rows) else None


def aligned(
    a: Weights, b: Weights, groups: Sequence[Group] | None = None, *, seed: int = 0, watch: Watch | None = None
) -> Comparison | None:
    """Count as `in_place`, after B's earlier groups were put in A's order. None where no two groups follow each other.

    A thief who permutes inner streams, or the layers of a network in a row, and keeps the embedding's order is seen by
    this. Groups between two streams take no part: nothing would change for them.

    Args:
        a: As in `in_place`, as the others.
        b: As in `in_place`.
        groups: As in `in_place`.
        seed: As in `in_place`.
        watch: As in `in_place`.
    """
    pair = _Pair(a, b, groups)
    chain = {group.name: group for group in pair.watched(None) if len({part.axis for part in group.features}) == 1}
    if not any(part.other in chain for group in chain.values() for part in group.features):
        return None
    rng = np.random.default_rng(seed)
    partners: dict[str, Places] = {}
    rows = []
    for group in chain.values() if watch is None else watch(chain.values(), len(chain)):
        found = pair.match(group.features, rng, partners)
        partners[group.name] = found
        rows.append(_row(group, int((found == np.arange(group.size)).sum())))
    return Comparison("aligned", tuple(rows))


def agreement(
    initial: Weights,
    b: Weights,
    groups: Sequence[Group] | None = None,
    *,
    align: bool = False,
    seed: int = 0,
    watch: Watch | None = None,
) -> Comparison:
    """Count the units of A's initial weights whose incoming and outgoing weights match one and the same unit of B.

    The order of B's units has no part in it. It is exact for the weights before training, whose incoming and outgoing
    tensors are independent. Weights that were trained agree between independent networks too: never give those.

    Args:
        initial: Weights of A before training.
        b: Weights of the suspect.
        groups: As in `in_place`.
        align: Whether streams of B are put in the order of the initial weights before, by tensors that the comparison
            does not use. It is needed where a thief permuted streams too, and weaker where none did.
        seed: As in `in_place`.
        watch: As in `in_place`.

    Raises:
        RefusedError: No group with incoming and outgoing weights is known, or none has its like in B.
        EncoderError: A weight cannot be read.
    """
    pair = _Pair(initial, b, groups)
    rng = np.random.default_rng(seed)
    partners: dict[str, Places] = {}
    rows = []
    for group in pair.watched(watch):
        sides = [[part for part in group.features if part.axis == axis] for axis in (0, 1)]
        if group.kind == "stream" or not all(sides):
            # Hidden units that later groups read must be put in order in any case: a thief may have permuted them.
            if align or group.kind == "hidden":
                partners[group.name] = pair.match(group.features, rng, partners)
            continue
        into, out = (pair.match(side, rng, partners) for side in sides)
        partners[group.name] = into
        rows.append(_row(group, int(((into == out) & (into >= 0)).sum())))
    if not rows:
        raise RefusedError(f"{initial.name} has no hidden units whose incoming and outgoing weights can be compared")
    return Comparison("initial weights, aligned" if align else "initial weights", tuple(rows), tuple(pair.left_out))


def drawn_groups(initial: Weights, again: Weights) -> list[Group]:
    """Return the groups of initial weights that depend on the seed: networks begin with some weights at fixed values.

    Args:
        initial: Initial weights.
        again: Those of the same network from an independent seed.
    """

    def drawn(part: Part) -> bool:
        one, other = (np.ravel(weights.read(part.tensor))[:SAMPLED] for weights in (initial, again))
        return not _alike(one, other, FIXED) and bool(one.any())

    return [group for group in find_groups(initial) if all(map(drawn, group.features))]


def _row(group: Group, count: int) -> Row:
    nearest = group.size > NEAREST_ABOVE
    log2_pvalue = log2_fixed_points_bound(count) if nearest else log2_fixed_points(count, group.size)
    return Row(group.name, group.kind, group.size, count, log2_pvalue, group.why)


def _alike(a: Array, b: Array, bound: float = ALIKE) -> bool:
    """Return whether numbers are nearly copies of each other: by their correlation."""
    a, b = a - a.mean(), b - b.mean()
    length = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return length > 0 and float(a @ b) > bound * length


class _Pair:
    """Two networks, and the groups that both have."""

    def __init__(self, a: Weights, b: Weights, groups: Sequence[Group] | None) -> None:
        self.a, self.b = a, b
        self.names = corresponding(a, b)
        found = find_groups(a) if groups is None else list(groups)
        if not found:
            raise RefusedError(
                f"no groups of exchangeable units are known in {a.name}: its layers have names that no known library "
                "gives them. Describe them with --groups"
            )
        reasons = {group.name: self._missing(group) for group in found}
        self.groups = [group for group in found if not reasons[group.name]]
        self.left_out = [(name, reason) for name, reason in reasons.items() if reason]
        if not self.groups:
            raise RefusedError(
                f"{a.name} and {b.name} have no group of units of the same names and shapes: {self.left_out[0][1]}. "
                "Only networks of one architecture can be compared. This says nothing about descent"
            )

    def _missing(self, group: Group) -> str:
        for part in group.features:
            other = self.names.get(part.tensor, part.tensor)
            if other not in self.b.shapes:
                return f"{part.tensor} is missing in {self.b.name}"
            if self.a.shapes[part.tensor] != self.b.shapes[other]:
                shapes = self.a.shapes[part.tensor], self.b.shapes[other]
                return f"{part.tensor} has shape {shapes[0]} in {self.a.name} and {shapes[1]} in {self.b.name}"
        return ""

    def watched(self, watch: Watch | None) -> Iterator[Group]:
        """Yield the groups, one after another, each once: a copy of an earlier one would count its units twice."""
        seen: dict[tuple[object, ...], list[tuple[str, Array]]] = {}
        for group in self.groups if watch is None else watch(self.groups, len(self.groups)):
            part = group.features[0]
            twin = ""
            for side, values in enumerate((self.a.read(part.tensor), self.b.read(self.names[part.tensor]))):
                own = np.array(np.ravel(values)[:SAMPLED])
                others = seen.setdefault((side, values.shape, part.axis), [])
                twin = twin or next((name for name, other in others if _alike(own, other)), "")
                others.append((group.name, own))
            del values
            if twin:
                self.left_out.append((group.name, f"its weights are a copy of those of {twin}"))
            else:
                yield group

    def match(self, parts: Sequence[Part], rng: np.random.Generator, partners: Mapping[str, Places]) -> Places:
        """Return the partner in B of each unit, after B's other axes were put in order where partners are known."""
        ours = (units_of(self.a.read(part.tensor), part) for part in parts)
        theirs = (units_of(self.b.read(self.names[part.tensor]), part, partners.get(part.other)) for part in parts)
        return matched(ours, theirs, rng)
