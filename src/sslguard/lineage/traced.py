"""Groups of units in a network of the user's own, found by following its operations.

Each axis of a weight counts units. Where an operation brings two axes together (a layer reads what another made, a norm
scales it, two branches are added), they count the same units and form one class. A class that meets an operation that
is not known here, or a tensor that is fixed, is left out: a missed group costs evidence, a wrong one would accuse
innocents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sslguard.encoders.program import Program, Step
from sslguard.errors import UsageError
from sslguard.lineage.parts import Group, Part
from sslguard.lineage.weights import TOKENS, Weights


class Axis(NamedTuple):
    """An axis of a weight."""

    tensor: str
    number: int


class Label(NamedTuple):
    """What an axis of a result counts: units of the class of a weight's axis, `run` places in a row for each unit."""

    axis: Axis
    run: int


class Value(NamedTuple):
    """A result inside the network, or a weight.

    Attributes:
        shape: Its shape, for two items.
        labels: What its axes count, as far as it is known.
        weight: Name of the weight; "" for a result.
    """

    shape: tuple[int, ...]
    labels: dict[int, Label]
    weight: str = ""


ALIKE = frozenset(
    (
        *("relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "elu", "celu", "selu", "mish", "hardswish", "hardtanh"),
        *("hardsigmoid", "leaky_relu", "softplus", "softmax", "log_softmax", "square", "sqrt", "rsqrt", "exp", "neg"),
        *(
            "abs",
            "clamp",
            "clamp_min",
            "pow",
            "log",
            "dropout",
            "feature_dropout",
            "clone",
            "contiguous",
            "to",
            "detach",
        ),
        *("alias", "lift_fresh_copy", "add", "mul", "sub", "div", "multiply", "subtract", "divide", "true_divide"),
        *("truediv", "rsub", "where", "masked_fill"),
    )
)
"""Operations that treat all units alike, and keep their axis."""
POOLING = frozenset(
    f"{kind}{rank}d"
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
    for rank in (1, 2, 3)
)
SHAPING = frozenset(("view", "reshape", "flatten", "unflatten", "_unsafe_view", "squeeze", "unsqueeze"))
REDUCING = frozenset(("mean", "sum", "amax", "amin", "linalg_vector_norm"))
CUTTING = frozenset(("expand", "expand_as", "slice", "select"))
_LAYERS = frozenset(("conv1d", "conv2d", "conv3d", "linear", "embedding"))


def traced_groups(weights: Weights) -> list[Group]:
    """Return the groups of a network whose operations are known, streams first; none where it cannot be followed."""
    try:
        program = Program(weights.program)
        tokens = weights.item == (2, TOKENS)
        steps, output = program.walk(weights.item, torch.int64 if tokens else torch.float32)
    except UsageError:
        return []
    state = weights.program["state"] if isinstance(weights.program, dict) else {}
    shapes = {name: weights.shapes.get(f"{weights.below}{name}", ()) for name in state}
    tracing = _Tracing(shapes, state, weights.item)
    try:
        for place, step in enumerate(steps):
            tracing.follow(place, step)
        tracing.end(output)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return []  # arguments in a form that is not known: a program may come from anybody
    return [_below(weights.below, group) for group in tracing.groups()]


def _below(name: str, group: Group) -> Group:
    """Return a group of a network that stands below a name."""
    parts, along = (
        tuple(replace(part, tensor=f"{name}{part.tensor}") for part in some) for some in (group.features, group.others)
    )
    return replace(group, name=f"{name}{group.name}", features=parts, others=along)


class _Tracing:
    """Classes of axes of weights, and what the axes of results count.

    Attributes:
        shapes: Shape of each weight.
        item: Shape of an item that the network takes.
        fixed: Weights that are not trained, or that several layers share.
        parent: Axis → another of its class, or itself.
        runs: Axis → places in a row that belong to each unit.
        bad: Axes whose classes are left out.
        added: Axes whose classes are streams: what two branches made is added there.
        read: Weights of layers, by which groups are compared.
        results: Number of an operation → what it gave.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, str], item: tuple[int, ...]) -> None:
        self.shapes, self.item = shapes, item
        shared = {said.split(" ")[1] for said in state.values() if said.startswith("same ")}
        self.fixed = {name for name, said in state.items() if not said.startswith("parameter ")} | shared
        self.parent: dict[Axis, Axis] = {}
        self.runs: dict[Axis, int] = {}
        self.bad: set[Axis] = set()
        self.added: set[Axis] = set()
        self.read: set[str] = set()
        self.results: dict[int, Any] = {}

    # ---------------------------------------------------------------- classes

    def root(self, axis: Axis) -> Axis:
        """Return the axis that stands for a class."""
        self.parent.setdefault(axis, axis)
        while self.parent[axis] != axis:
            self.parent[axis] = self.parent[self.parent[axis]]
            axis = self.parent[axis]
        return axis

    def leave_out(self, labels: Iterable[Label]) -> None:
        """Leave the classes of these labels out."""
        self.bad |= {self.root(label.axis) for label in labels}

    def join(self, labels: Iterable[Label | None]) -> Label | None:
        """Make one class of what meets on one axis. Something unknown of full length leaves it out."""
        labels = list(labels)
        known = [label for label in labels if label is not None]
        if not known:
            return None
        runs = {self.runs.get(one.axis, one.run) if one.run == 0 else one.run for one in known} - {0} or {1}
        if len(runs) > 1 or len(known) < len(labels):
            self.leave_out(known)
        run = min(runs)
        for one in known:
            if one.run == 0 and self.runs.setdefault(one.axis, run) != run:
                self.leave_out(known)
        first, *others = [self.root(one.axis) for one in known]
        for other in others:
            other, root = self.root(other), self.root(first)
            if other != root:
                self.parent[other] = root
                for marked in (self.bad, self.added):
                    if other in marked:
                        marked.add(root)
        return Label(first, run)

    # ---------------------------------------------------------------- values

    def value(self, written: Any) -> Any:
        """Return the value of an argument: a Value, a list, or what is no tensor."""
        if isinstance(written, list):
            return [self.value(one) for one in written]
        if not isinstance(written, dict):
            return written
        ((kind, name),) = written.items()
        if kind == "n":
            return self.results[name]
        if kind == "w":
            shape = self.shapes.get(name, ())
            # How many places belong to each unit is not known before it meets something.
            return Value(shape, {i: Label(Axis(name, i), 0) for i, n in enumerate(shape) if n > 1}, name)
        return Value((2, *self.item), {}) if kind == "x" else written

    def follow(self, place: int, step: Step) -> None:
        """Follow one operation."""
        args = [self.value(one) for one in step.args]
        named = {name: self.value(one) for name, one in step.kwargs.items()}
        labels = self.labels(step, args, named)
        found = step.result
        if isinstance(found, Tensor):
            kept = labels if isinstance(labels, dict) else {}
            kept = {i: label for i, label in kept.items() if self.root(label.axis) not in self.bad}
            self.results[place] = Value(tuple(found.shape), kept)
        elif isinstance(found, list | tuple):
            parts = [one for one in found if isinstance(one, Tensor)]
            each = labels if isinstance(labels, list) and len(labels) == len(parts) else [{}] * len(parts)
            self.results[place] = [Value(tuple(t.shape), one) for t, one in zip(parts, each, strict=True)]
        else:
            self.results[place] = found

    def labels(self, step: Step, args: list[Any], named: dict[str, Any]) -> Any:
        """Return the labels of an operation's result. One that is not known leaves out all that it reads."""
        tensors = _tensors([*args, *named.values()])
        if not tensors or not any(one.labels for one in tensors):
            return {}
        if step.name == "getitem" and isinstance(args[0], list) and isinstance(args[1], int):
            return args[0][args[1]].labels
        known = None
        if step.name in _LAYERS:
            known = self.layer(step.name, args, named)
        elif step.name == "batch_norm" and not named:
            known = self.norm(args[0], args[1:5], 1)
        elif step.name == "layer_norm" and len(args[1]) == 1:
            known = self.norm(args[0], [*args[2:4], *named.values()], len(args[0].shape) - 1)
        elif isinstance(step.result, Tensor):
            known = self.moved(step, args, tensors)
        if known is None:
            self.leave_out(label for one in tensors for label in one.labels.values())
            return {}
        return known

    def layer(self, name: str, args: list[Any], named: dict[str, Any]) -> dict[int, Label] | None:
        """Return what a layer makes: units of its weight's rows, which its columns read."""
        if name == "embedding":
            return self.made(args[0], 1, len(args[1].shape))
        x, w, bias = args[0], args[1], args[2] if len(args) > 2 else named.get("bias")
        if not isinstance(x, Value) or not w.weight:
            return None
        axis = len(x.shape) - 1 if name == "linear" else 1
        groups = named.get("groups", args[6] if len(args) > 6 else 1)
        depthwise = groups != 1 and w.shape[1] == 1 and w.shape[0] == x.shape[1]
        if groups != 1 and not depthwise:
            return None
        self.read.add(w.weight)
        self.fixed_part(w)
        if depthwise:
            found = self.join([x.labels.get(1), w.labels.get(0), *self.vector(bias)])
            return {} if found is None else {1: found}
        if axis in x.labels and 1 in w.labels:
            self.join([x.labels[axis], w.labels[1]])
        row = self.join([w.labels[0], *self.vector(bias)]) if 0 in w.labels else None
        kept = {i: label for i, label in x.labels.items() if i != axis}
        if name != "linear":
            self.leave_out(kept.values())
            kept = {}
        return {**kept, **({} if row is None else {axis: row})}

    def made(self, w: Value, axis: int, place: int) -> dict[int, Label]:
        """Return the label of what a table of tokens gives."""
        self.read.add(w.weight)
        self.fixed_part(w)
        found = self.join([w.labels[axis]]) if axis in w.labels else None
        return {} if found is None else {place: found}

    def fixed_part(self, w: Value) -> None:
        """Leave out the units of a weight that is not trained, or that two layers share."""
        if w.weight in self.fixed:
            self.leave_out(w.labels.values())

    def vector(self, value: Any) -> list[Label | None]:
        """Return the label of a bias, as a list; none where there is no bias."""
        if not isinstance(value, Value):
            return []
        self.fixed_part(value)
        return [value.labels.get(0)]

    def norm(self, x: Value, vectors: list[Any], axis: int) -> dict[int, Label]:
        """Return the labels behind a norm whose weights count the units of one axis."""
        found = [x.labels.get(axis)] if axis in x.labels else []
        for one in vectors:
            if isinstance(one, Value) and 0 in one.labels:
                found.append(one.labels[0])
        joined = self.join(found) if axis in x.labels else None
        if joined is None:
            self.leave_out(label for label in found if label is not None)
        return {**x.labels, **({} if joined is None else {axis: joined})}

    def moved(self, step: Step, args: list[Any], tensors: list[Value]) -> dict[int, Label] | None:
        """Return the labels behind an operation that makes no new units; None where it is not known."""
        shape, x = tuple(step.result.shape), tensors[0]
        rank = len(x.shape)
        if step.name in ALIKE:
            return self.alike(step, tensors, shape)
        if step.name in POOLING:
            return dict(x.labels) if x.labels.keys() == {1} and rank > 2 else None
        if step.name == "cat":
            axis = int(args[1]) % rank if len(args) > 1 else 0
            if any(axis in one.labels for one in tensors):
                return None
            return self.alike(step, [one._replace(shape=shape) for one in tensors], shape)
        if step.name in ("transpose", "swapaxes", "permute"):
            order = list(range(rank))
            if step.name == "permute":
                order = [int(i) % rank for i in args[1]]
            else:
                i, j = (int(one) % rank for one in args[1:3])
                order[i], order[j] = order[j], order[i]
            return {order.index(i): label for i, label in x.labels.items()}
        if step.name in CUTTING or step.name in REDUCING:
            return self.cut(step, args, x, shape)
        return self.shaped(x, shape) if step.name in SHAPING else None

    def cut(self, step: Step, args: list[Any], x: Value, shape: tuple[int, ...]) -> dict[int, Label] | None:
        """Return the labels behind an operation on other axes than those of units, or on all units together."""
        rank = len(x.shape)
        if step.name in ("expand", "expand_as"):
            return {i + len(shape) - rank: label for i, label in x.labels.items()}
        place = 2 if step.name == "linalg_vector_norm" else 1
        wanted = args[place] if len(args) > place else (0 if step.name in ("slice", "select") else None)
        axes = wanted if isinstance(wanted, list) else [wanted]
        if not all(isinstance(i, int) for i in axes):
            return None
        gone = {int(i) % rank for i in axes}
        if gone & x.labels.keys() and step.name not in REDUCING:
            return None
        kept = {i: label for i, label in x.labels.items() if i not in gone}
        return kept if len(shape) == rank else {i - sum(j < i for j in gone): label for i, label in kept.items()}

    def shaped(self, x: Value, shape: tuple[int, ...]) -> dict[int, Label] | None:
        """Return the labels behind a change of shape that keeps the units' axis, or puts runs of places together."""
        found = {}
        for axis, label in x.labels.items():
            before, n = math.prod(x.shape[:axis]), x.shape[axis]
            places = [i for i in range(len(shape)) if math.prod(shape[:i]) == before and shape[i] % n == 0]
            places = [i for i in places if shape[i] > 1 and (math.prod(x.shape[axis:]) % shape[i] == 0)]
            if not places:
                return None
            found[places[-1]] = Label(label.axis, (label.run or 1) * (shape[places[-1]] // n))
        return found

    def alike(self, step: Step, tensors: list[Value], shape: tuple[int, ...]) -> dict[int, Label]:
        """Return the labels behind an operation that treats all units alike."""
        found = {}
        for axis, size in enumerate(shape):
            meeting, results = [], 0
            for one in tensors:
                own = axis - len(shape) + len(one.shape)
                if own >= 0 and one.shape[own] == size > 1:
                    if one.weight in self.fixed:
                        meeting.append(None)
                    else:
                        meeting.append(one.labels.get(own))
                        results += not one.weight and own in one.labels
            joined = self.join(meeting) if any(label is not None for label in meeting) else None
            if joined is not None:
                found[axis] = joined
                if step.name == "add" and results > 1:
                    self.added.add(self.root(joined.axis))
        return found

    # ---------------------------------------------------------------- groups

    def end(self, output: Any) -> None:
        """Leave out the units of the output, which may be classes; but not the channels of a stream."""
        found = self.value(output)
        if isinstance(found, Value):
            labels = found.labels.values()
            self.leave_out(label for label in labels if self.root(label.axis) not in self.added)

    def groups(self) -> list[Group]:
        """Return the classes that are left as groups, streams first."""
        classes: dict[Axis, list[Axis]] = {}
        for axis in self.parent:
            classes.setdefault(self.root(axis), []).append(axis)
        left_out = {self.root(axis) for axis in self.bad}
        added = {self.root(axis) for axis in self.added}
        found = []
        for root, members in classes.items():
            sizes = {self.shapes[a.tensor][a.number] / self.runs.get(a, 1) for a in members}
            features = [a for a in members if a.tensor in self.read and a.number < 2]
            if root in left_out or len(sizes) != 1 or not features:
                continue
            name = min(features, key=lambda a: a.number).tensor.removesuffix(".weight")
            kind = "stream" if root in added else "hidden"
            parts, along = ([self.part(a) for a in members if (a in features) == kept] for kept in (True, False))
            found.append(Group(name, int(sizes.pop()), kind, tuple(parts), tuple(along), kind == "hidden"))
        return sorted(found, key=lambda group: group.kind != "stream")

    def part(self, axis: Axis) -> Part:
        """Return an axis as a part of a group."""
        return Part(axis.tensor, axis.number, run=self.runs.get(axis, 1))


def _tensors(args: Iterable[Any]) -> list[Value]:
    found = []
    for one in args:
        if isinstance(one, Value):
            found.append(one)
        elif isinstance(one, list):
            found += _tensors(one)
    return found
