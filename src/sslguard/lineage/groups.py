"""Which units of a network may change places with each other.

`find_groups` follows the operations of a network where it knows these, and else the names that common libraries give to
layers. For other networks, `described` reads a description by the user.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from sslguard.encoders.pretrained import read_json
from sslguard.encoders.resnets import MOMENTUM
from sslguard.errors import EncoderError, UsageError
from sslguard.lineage.blocks import BLOCKS, POSITIONS, SEQUENCES, SHORTCUT, TABLE, Block, names_of, natural
from sslguard.lineage.parts import Group, Part, Shapes, ordered
from sslguard.lineage.traced import traced_groups
from sslguard.lineage.weights import Weights

_COLOURS = 4  # channels of a picture at most
_MAX_POSITIONS = 1 << 24  # numbers in a table of positions that is looked at
_NORM = ("weight", "bias", "running_mean", "running_var")


def find_groups(weights: Weights) -> list[Group]:
    """Return the groups of a network, in an order in which their tests are independent; none if nothing is known.

    Momentum copies of a network (teachers, key encoders) are left out: they would count its units twice.
    """
    if weights.program is not None and (found := traced_groups(weights)):
        fixed = _fixed_positions(weights, "")
        return ordered([group for group in found if not (fixed and group.kind == "stream")], weights.shapes)
    shapes = {name: shape for name, shape in weights.shapes.items() if not MOMENTUM.search(name)}
    shapes = shapes or dict(weights.shapes)
    layers = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) in (2, 4) and min(shape) > 0
    }
    hidden = [group for block in BLOCKS for group in _hidden(block, layers, shapes)]
    if not hidden and (row := _row(layers, shapes)):
        return ordered(row, shapes)
    streams = _streams(layers, {part.tensor for group in hidden for part in group.parts})
    if streams and (_has_sets(layers, shapes) or _fixed_positions(weights)):
        streams = []
    return ordered([*streams, *sorted(hidden, key=lambda group: natural(group.name))], shapes)


def _hidden(block: Block, layers: Shapes, shapes: Shapes) -> list[Group]:
    """Return the hidden units of all blocks of a kind."""
    found = []
    for beginning in names_of(block, layers.keys()):
        into = [f"{beginning}{name}" for name in block.into]
        out, rows = f"{beginning}{block.out}", 0
        if shapes.get(f"{into[0]}.bias") == layers[into[0]][1:] != layers[into[0]][:1]:
            rows = 1  # weights (in, out), as GPT-2 has them
        n, rest = divmod(layers[into[0]][rows], block.packed)
        if rest or layers[out][1 - rows] != n or any(layers[name][rows] != n * block.packed for name in into):
            continue
        norms = [f"{beginning}{norm}" for norm in block.into.values() if norm]
        if block.kind == "convolution" and _norms_of_sets(beginning, shapes):
            continue
        features = [Part(f"{name}.weight", rows, block.packed) for name in into]
        features.append(Part(f"{out}.weight", 1 - rows))
        others = [Part(f"{name}.bias", 0, block.packed) for name in into if f"{name}.bias" in shapes]
        others += [Part(f"{m}.{v}", 0) for m in norms for v in _NORM if shapes.get(f"{m}.{v}") == (n,)]
        for name, axis in block.squeeze.items():
            layer = f"{beginning}{name}"
            if layer in layers and layers[layer][axis] == n:
                others.append(Part(f"{layer}.weight", axis))
                others += [Part(f"{layer}.bias", 0)] if axis == 0 and f"{layer}.bias" in shapes else []
        whole = block.kind == "linear" or all(f"{norm}.weight" in shapes for norm in norms)
        found.append(Group(into[-1], n, "hidden", tuple(features), tuple(others), whole))
    return found


def _has_sets(layers: Shapes, shapes: Shapes) -> bool:
    """Return whether a block of convolutions has norms that may treat channels in sets: in its stream as well, then."""
    blocks = (block for block in BLOCKS if block.kind == "convolution")
    return any(_norms_of_sets(name, shapes) for block in blocks for name in names_of(block, layers.keys()))


def _norms_of_sets(beginning: str, shapes: Shapes) -> bool:
    """Return whether a block of convolutions has norms that are no batch norms: they may treat channels in sets."""
    for name, shape in shapes.items():
        if name.startswith(beginning) and name.endswith(".weight") and len(shape) == 1:
            module = name.removesuffix(".weight")
            if f"{module}.running_mean" not in shapes:
                return True
    return False


def _streams(layers: Shapes, taken: set[str]) -> list[Group]:
    """Return the streams: tables of tokens, the first convolution, shortcuts; one of each size."""
    parts = [(name, Part(f"{name}.weight", 1)) for name in sorted(layers, key=natural) if TABLE.search(name)]
    first = [
        name
        for name, shape in layers.items()
        if len(shape) == 4 and shape[1] <= _COLOURS < shape[0] and f"{name}.weight" not in taken
    ]
    first.sort(key=lambda name: (name.count("."), natural(name)))
    parts += [(name, Part(f"{name}.weight", 0)) for name in first[:1]]
    parts += [(name, Part(f"{name}.weight", 0)) for name in sorted(layers, key=natural) if SHORTCUT.search(name)]
    found: dict[int, Group] = {}
    for name, part in parts:
        n = layers[name][part.axis]
        # Two of one size might be one stream, whose units would count twice.
        found.setdefault(n, Group(name, n, "stream", (part,)))
    return list(found.values())


def _row(layers: Shapes, shapes: Shapes) -> list[Group]:
    """Return the groups of layers in a plain row, each read by the next alone; none where they are no such row.

    The units of the last layer are an embedding, if a batch norm stands behind them, or else may be classes, which
    labels tell apart.
    """
    row = sorted(layers, key=natural)
    beginnings = {name.rpartition(".")[0] for name in row}
    if len(beginnings) != 1 or next(iter(beginnings)).rpartition(".")[2] not in SEQUENCES:
        return []
    if not all(re.fullmatch(r"\d+", name.rpartition(".")[2]) for name in row) or _norms_of_sets("", shapes):
        return []
    vectors = {name: shape for name, shape in shapes.items() if len(shape) == 1}
    members: list[list[str]] = []  # each: the layer that makes the units, then depthwise ones
    for name in row:
        shape = layers[name]
        if members and len(shape) == 4 and shape[1] == 1 and shape[0] == layers[members[-1][0]][0]:
            members[-1].append(name)
        elif members and (shape[1] != layers[members[-1][0]][0] or len(shape) > len(layers[members[-1][0]])):
            return []
        else:
            members.append([name])
    found = []
    for number, (name, *deep) in enumerate(members):
        last = number == len(members) - 1
        end = natural(members[number + 1][0]) if not last else natural("￿")
        n = layers[name][0]
        along = [v for v, s in vectors.items() if s == (n,) and natural(name) <= natural(v.rpartition(".")[0]) < end]
        if last and not any(v.endswith(".running_mean") for v in along):
            continue
        features = [Part(f"{layer}.weight", 0) for layer in (name, *deep)]
        features += [] if last else [Part(f"{members[number + 1][0]}.weight", 1)]
        found.append(Group(name, n, "hidden", tuple(features), tuple(Part(v, 0) for v in along), whole=not last))
    return found


def _fixed_positions(weights: Weights, called: str = POSITIONS) -> bool:
    """Return whether positions are sines and cosines: these tell the channels of a stream apart in every network.

    Args:
        weights: The network.
        called: What the names of tables of positions hold, a regular expression.
    """
    for name, shape in weights.shapes.items():
        n = int(np.prod(shape, dtype=np.int64))
        if not re.search(called, name) or len(shape) not in (2, 3) or not 256 <= n <= _MAX_POSITIONS:
            continue
        table = weights.read(name).reshape(-1, shape[-1]).astype(np.float64)
        lengths = (table**2).sum(1)
        lengths = lengths[lengths > 0]  # a class token has none
        if len(lengths) > 1 and np.allclose(lengths, shape[-1] / 2, rtol=0.02):
            return True
    return False


def described(source: Path, weights: Weights) -> list[Group]:
    """Return the groups that a user describes in a JSON file, a list in the order of the test.

    ::

        [{"name": "stem", "kind": "stream", "parts": ["conv.weight:0"], "along": ["conv.bias:0"], "whole": false}, …]

    `parts` are compared where the order allows it, `along` only moves with them. "whole" says that these are all parts
    of the units. "kind" is "hidden" unless given.

    Raises:
        UsageError: The description is wrong, or names what the network does not have.
    """
    try:
        content = read_json(source, kind=list)
    except EncoderError as error:
        raise UsageError(f"groups of units: {error}") from error
    if not content:
        raise UsageError(f"{source} describes no groups of units: write a JSON list of them")
    return ordered([_read_group(entry, weights.shapes, source) for entry in content], weights.shapes)


def _read_group(entry: Any, shapes: Shapes, source: Path) -> Group:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        raise UsageError(f"{source}: a group is an object with a name and parts, not {entry!r:.80}")
    name, kind, whole = entry["name"], entry.get("kind", "hidden"), entry.get("whole", False)
    unknown = sorted(entry.keys() - {"name", "kind", "parts", "along", "whole"})
    if unknown or kind not in ("stream", "hidden") or not isinstance(whole, bool):
        raise UsageError(
            f"{source}: group {name!r:.80} has a field or value that no group has: {unknown or kind!r:.80}"
        )
    parts, along = ([_read_part(t, shapes, source) for t in entry.get(field) or ()] for field in ("parts", "along"))
    sizes = {shapes[part.tensor][part.axis] for part in (*parts, *along)}
    if not parts or len(sizes) != 1 or any(len(shapes[part.tensor]) < 2 or part.axis > 1 for part in parts):
        raise UsageError(f"{source}: parts of {name!r:.80} must be axes 0 or 1 of matrices, all of one length")
    return Group(name, sizes.pop(), kind, tuple(parts), tuple(along), whole)


def _read_part(text: Any, shapes: Shapes, source: Path) -> Part:
    tensor, _, axis = str(text).rpartition(":")
    if tensor not in shapes or not axis.isdecimal() or int(axis) >= len(shapes[tensor]):
        raise UsageError(f"{source}: {text!r:.80} is no TENSOR:AXIS of this network")
    return Part(tensor, int(axis))
