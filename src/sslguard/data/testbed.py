"""The test bed: small pictures at a random place, scale and rotation, among clutter, on a larger canvas.

Fashion-MNIST as it comes hides theft: a linear probe on raw pixels does as well as one on a learned
encoder. Placed like this (after Cluttered MNIST: Mnih et al., "Recurrent Models of Visual Attention", 2014)
raw pixels and untrained networks lose their grip and learning pays.

Item i is a function of i alone: its placement comes from a counter-based generator (SplitMix64), its clutter
from other items of the same block of 1,000. So slices at multiples of 1,000 share nothing.

One reservation: the resampling is float32, and where it ends on a rounding tie the grey level may differ by
one between instruction sets (baseline x86 against AVX2: 119 pixels of 16,000 images).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Data, Extent
from sslguard.errors import DataError

CANVAS = 48
PATCH = 8
N_PATCHES = 6
BLOCK = 1000
MAX_ROTATION = 0.5  # radians
MAX_SHRINK = 1.6
_DRAWS = 4 + 5 * N_PATCHES


def _uniform(index: NDArray[np.uint64], draws: int, seed: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), shape (len(index), draws), each a function of (seed, index, draw)."""
    with np.errstate(over="ignore"):
        z = index[:, None] * np.uint64(_DRAWS + 1) + np.arange(draws, dtype=np.uint64)[None]
        z = z + np.uint64(seed) * np.uint64(0xD1342543DE82EF95)
        z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)


class Cluttered(Data):
    """`whole`'s pictures (uint8, square, one size of 8 to 48 pixels, one channel) placed among clutter.

    Give it a whole split and slice the result, so that indices, and with them placements, stay absolute.
    """

    def __init__(self, whole: Data, *, seed: int = 0) -> None:
        """Keep the set and the seed of the placements."""
        self.whole, self.seed = whole, seed
        name, _, split = whole.spec.partition(":")
        self.spec, self.labels = f"cluttered-{name}{f'@{seed}' if seed else ''}:{split}", whole.labels

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.whole)

    def extent_of(self, start: int, stop: int) -> Extent:
        """Return the extent rounded outwards to blocks of 1,000: the clutter of these items comes from there."""
        low = start // BLOCK * BLOCK
        high = min(-(-stop // BLOCK) * BLOCK, len(self))
        return self.whole.extent_of(low, high)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Tensor:
        """Return the items at `indices`, as one batch."""
        index = self.positions(indices)
        draws = _uniform(index.astype(np.uint64), _DRAWS, self.seed)
        start = index // BLOCK * BLOCK
        width = np.minimum(BLOCK, len(self) - start)
        sources = start[:, None] + (draws[:, 4 : 4 + N_PATCHES] * width[:, None]).astype(np.int64)
        pictures = self._pictures(index)
        clutter = self._pictures(sources.reshape(-1)).reshape(len(index), N_PATCHES, *pictures.shape[2:])
        canvas = _scatter(clutter, draws[:, 4 + N_PATCHES :])
        return torch.maximum(canvas, _place(pictures, draws[:, :4])).to(torch.uint8)

    def _pictures(self, index: NDArray[np.int64]) -> Tensor:
        batch = self.whole.take(index)
        if not isinstance(batch, Tensor) or batch.dim() != 4 or batch.shape[1] != 1:
            raise DataError(f"{self.whole.spec}: the cluttered bed takes single-channel pictures of one size")
        height, width = batch.shape[2:]
        if batch.dtype != torch.uint8 or height != width or not PATCH <= height <= CANVAS:
            raise DataError(
                f"{self.whole.spec}: the cluttered bed takes square uint8 pictures of {PATCH} to {CANVAS} "
                f"pixels, not {batch.dtype} of {height}×{width}"
            )
        return batch


def _place(pictures: Tensor, draws: NDArray[np.float64]) -> Tensor:
    """Pictures (n, 1, h, w) rotated, shrunk and moved; returns float (n, 1, 48, 48) in [0, 255]."""
    height = pictures.shape[2]
    angle = (draws[:, 0] * 2 - 1) * MAX_ROTATION
    shrink = 1 + draws[:, 1] * (MAX_SHRINK - 1)
    half = height / shrink / 2
    centre_x = half + draws[:, 2] * (CANVAS - 2 * half)
    centre_y = half + draws[:, 3] * (CANVAS - 2 * half)
    # grid_sample wants the map from canvas coordinates to picture coordinates, both in [-1, 1].
    gain = shrink * CANVAS / height
    cos, sin = np.cos(angle) * gain, np.sin(angle) * gain
    off_x, off_y = 2 * centre_x / CANVAS - 1, 2 * centre_y / CANVAS - 1
    theta = np.stack(
        [
            np.stack([cos, sin, -(cos * off_x + sin * off_y)], 1),
            np.stack([-sin, cos, -(-sin * off_x + cos * off_y)], 1),
        ],
        1,
    )
    return nnf.grid_sample(pictures.float(), _grid(theta), align_corners=False).round_().clamp_(0, 255)


def _grid(theta: NDArray[np.float64]) -> Tensor:
    """Return what `affine_grid` gives for the canvas, (n, 48, 48, 2), in single steps: the same on every machine.

    It multiplies matrices, whose last bit depends on the processor, and with it now and then a grey level.
    """
    x = torch.linspace(-1, 1, CANVAS).mul_(CANVAS - 1).div_(CANVAS)
    first, second, third = torch.from_numpy(theta.astype(np.float32))[:, None, None].unbind(-1)
    return first * x[:, None] + second * x[:, None, None] + third


def _scatter(clutter: Tensor, draws: NDArray[np.float64]) -> Tensor:
    """One 8×8 patch of each clutter picture (n, patches, h, w) at a random place of an empty canvas."""
    n, patches, height, width = clutter.shape
    canvas = torch.zeros(n, 1, CANVAS, CANVAS)
    rows = torch.arange(n)[:, None, None]
    cell = torch.arange(PATCH)
    for k in range(patches):
        at = draws[:, 4 * k : 4 * k + 4]
        limit = np.array([height - PATCH + 1, width - PATCH + 1, CANVAS - PATCH + 1, CANVAS - PATCH + 1])
        y0, x0, y1, x1 = torch.from_numpy((at * limit).astype(np.int64)).T
        patch = clutter[rows, k, (y0[:, None] + cell)[:, :, None], (x0[:, None] + cell)[:, None]].float()
        place = (rows, 0, (y1[:, None] + cell)[:, :, None], (x1[:, None] + cell)[:, None])
        canvas[place] = torch.maximum(canvas[place], patch)
    return canvas
