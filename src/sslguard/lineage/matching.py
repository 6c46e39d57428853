"""The matching of the units of one network with those of another: an assignment that knows nothing of their order."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from sslguard.lineage.parts import Group, Part

Units = NDArray[np.float32]
"""(n, other, rest): unit × what the other axis counts × places in a kernel."""
Places = NDArray[np.int64]
"""(n,): for each unit of A its partner in B, −1 for none."""
NEAREST_ABOVE = 4096
"""Groups of more units are matched each to its nearest, which takes no cubic time."""
SKETCH = 1024
"""Numbers to which the weights of each unit are projected in such groups."""


def units_of(values: NDArray[np.float32], part: Part, other: Places | None = None) -> Units:
    """Return the weights of each unit.

    Args:
        values: The part's tensor.
        part: Where its units lie.
        other: Partner in this network of each unit on the other axis; what has none is set to 0.
    """
    if part.run > 1:
        shape = list(values.shape)
        shape[part.axis : part.axis + 1] = [shape[part.axis] // part.run, part.run]
        values = np.moveaxis(values.reshape(shape), (part.axis, 1 - part.axis + (part.axis == 0)), (0, 1))
    elif part.blocks > 1:
        shape = list(values.shape)
        shape[part.axis : part.axis + 1] = [part.blocks, shape[part.axis] // part.blocks]
        values = np.moveaxis(values.reshape(shape), (part.axis + 1, 1 - part.axis + (part.axis == 0)), (0, 1))
    else:
        values = np.moveaxis(values, part.axis, 0)
    units = values.reshape(values.shape[0], values.shape[1], -1)
    if other is not None:
        units = np.where((other >= 0)[None, :, None], units[:, np.maximum(other, 0)], 0)
    return np.ascontiguousarray(units, np.float32)


def comparable(units: Units) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return units as vectors (n, m), whose inner products are cosines, and which of them have any weight, (n,).

    A thief may scale a unit, or a channel that it reads, without any change of the function. So each unit counts twice:
    scaled to length 1 as it is, and after each channel was scaled to length 1. The first is better where most weights
    are zero. What all units have in common is subtracted.
    """
    live = np.asarray(units.reshape(len(units), -1).any(1), np.bool_)
    plain = _scaled(units, (1, 2))
    both = [plain] if units.shape[1] == 1 else [plain, _scaled(_scaled(plain, (0, 2)), (1, 2))]
    vectors = [_centred(x.reshape(len(x), -1), live) for x in both]
    found = np.concatenate(vectors, 1)
    found /= np.float32(len(both) ** 0.5)
    return found, live


def _centred(x: NDArray[np.float32], live: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return rows of length 1 without what the live ones have in common."""
    if live.any():
        x = x - x.mean(0, where=live[:, None])
        x[~live] = 0
    return _scaled(x, (1,))


def _scaled(x: NDArray[np.float32], axes: tuple[int, ...]) -> NDArray[np.float32]:
    """Return `x` with length 1 over these axes. The largest is divided out first, against overflow."""
    # No temporary array of the size of x: a layer may take a good part of the memory.
    largest = np.maximum(x.max(axes, keepdims=True, initial=0), -x.min(axes, keepdims=True, initial=0))
    largest[largest == 0] = 1
    x = np.divide(x, largest, dtype=np.float32)
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    length = np.sqrt(np.einsum(x, list(range(x.ndim)), x, list(range(x.ndim)), kept)).reshape(largest.shape)
    length[length == 0] = 1
    x /= length
    return x


def matched(a: Iterable[Units], b: Iterable[Units], rng: np.random.Generator) -> Places:
    """Return for each unit of A its partner in B.

    Up to 4,096 units it is the assignment with the largest sum of cosines over all parts; above, the unit with the
    largest sum, which may be the partner of several, after a fixed projection of each part to 1,024 numbers. Units
    without any weight take no part. Both sides are shuffled before, so that ties are broken at random: else equal units
    would be matched in order.

    Args:
        a: Parts of A, taken one at a time: all of them need not fit into memory.
        b: Parts of B, in the same order.
        rng: Generator of the shuffling.
    """
    total, alive, n = np.zeros((0, 0), np.float32), [np.zeros(0, bool)] * 2, 0
    first, second = iter(a), iter(b)
    for ours in first:
        if not n:
            n = len(ours)
            total, alive = np.zeros((n, n), np.float32), [np.zeros(n, bool), np.zeros(n, bool)]
        sides = [_compared(ours, alive[0]), _compared(next(second), alive[1])]
        total += sides[0] @ sides[1].T
    rows, columns = (rng.permutation(np.flatnonzero(live)) for live in alive)
    found = np.full(n, -1)
    if not len(rows) or not len(columns):
        return found
    if n > NEAREST_ABOVE:
        found[rows] = columns[_nearest(total, rows, columns)]
        return found
    i, j = _assignment()(total[np.ix_(rows, columns)], maximize=True)
    found[rows[i]] = columns[j]
    return found


def _compared(units: Units, alive: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the vectors of units, and note in `alive` which of them have any weight."""
    vectors, live = comparable(units)
    alive |= live
    return _projected(vectors) if len(units) > NEAREST_ABOVE else vectors


@cache
def _assignment() -> Any:
    """Return `scipy.optimize.linear_sum_assignment`, from the one file that holds it.

    The package around it takes a third of a second to import, a twelfth of a verification of a small encoder. Where
    that file has another name, the package is imported.
    """
    if "scipy.optimize" not in sys.modules:
        spec = PathFinder.find_spec("_lsap", [str(Path(scipy.__file__).parent / "optimize")])
        if spec is not None and spec.loader is not None:
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            if (solve := getattr(module, "linear_sum_assignment", None)) is not None:
                return solve
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment


def _projected(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (n, 1024) for (n, m): the same public projection in every comparison."""
    m = vectors.shape[1]
    if m <= SKETCH:
        return vectors
    return vectors @ np.random.default_rng(m).standard_normal((m, SKETCH), np.float32) / np.float32(SKETCH**0.5)


def _nearest(total: NDArray[np.float32], rows: Places, columns: Places) -> Places:
    """Return for each row the place in `columns` of its largest entry, the first of several."""
    return np.concatenate(
        [total[np.ix_(part, columns)].argmax(1) for part in np.array_split(rows, len(rows) // 512 + 1)]
    )


def reordered(group: Group, values: Mapping[str, NDArray[np.float32]], order: Places) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of a group's parts with unit order[i] in place i.

    Args:
        group: The group.
        values: At least one of its tensors, by name.
        order: A permutation of the units, (n,).
    """
    found = {}
    for name, tensor in values.items():
        for part in group.parts:
            if part.tensor == name:
                tensor = np.take(tensor, part.places(order), part.axis)
        found[name] = tensor
    return found
