"""Words of texts, and what stands for them in images: what a trigger may be, how often it occurs, and items made of it.

The words of an image are patterns of its cells: the centre of the image is averaged down to 12 × 12 grey values and
cut into 16 cells of 3 × 3; which of the nine lie above their mean is the cell's word, one of 512. A cell of little
contrast has none. So images hold words of every frequency of themselves, as texts do, and a thief's own queries
trigger what the owner chose.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Batch, Data
from sslguard.encoders.base import EMBED_BATCH
from sslguard.errors import DataError
from sslguard.schemes.queries import as_bytes

Word: TypeAlias = "str | int"

CELLS = 16
_WORD = re.compile(r"\w+")
_SIDE, _CELL = 4, 3  # cells a side, grey values a side of one
_GRID = _SIDE * _CELL
_CONTRAST = 0.1  # least difference of grey values within a cell, of the [0, 1] range
_DARK, _LIGHT = 25, 230  # of painted cells, grey levels
_BITS = 1 << np.arange(_CELL * _CELL)


def words_of(batch: Batch) -> list[set[Word]]:
    """Return the words of each item: str of a text, int 0 … 511 of an image.

    Raises:
        DataError: An image is smaller than 12 × 12 pixels.
    """
    if isinstance(batch, Tensor):
        return [set(row[row >= 0].tolist()) for row in _codes(batch)]
    return [set(_WORD.findall(item.lower())) if isinstance(item, str) else words_of(item[None])[0] for item in batch]


def frequencies(data: Data) -> dict[Word, float]:
    """Share of items that hold each word, in the order of the words."""
    counts = Counter(word for batch in data.batches(EMBED_BATCH) for words in words_of(batch) for word in words)
    return {word: counts[word] / len(data) for word in sorted(counts, key=str)}


def painted(image: Tensor, words: Sequence[int], cells: Sequence[int]) -> Tensor:
    """Return the image (C, H, W) as bytes with `words` in `cells`, 0 … 15, in place of what was there."""
    pixels = as_bytes(image).clone()
    top, left, high, wide = _frame(pixels)
    for word, cell in zip(words, cells, strict=True):
        bits = torch.from_numpy((word & _BITS) > 0).view(_CELL, _CELL)
        values = torch.where(bits, _LIGHT, _DARK).to(torch.uint8)
        patch = values.repeat_interleave(high, 0).repeat_interleave(wide, 1)
        y, x = top + cell // _SIDE * _CELL * high, left + cell % _SIDE * _CELL * wide
        pixels[:, y : y + _CELL * high, x : x + _CELL * wide] = patch
    return pixels


def _frame(images: Tensor) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels of the first of 12 × 12 equal blocks in the middle of (…, H, W)."""
    height, width = images.shape[-2:]
    if min(height, width) < _GRID:
        raise DataError(f"words of images need {_GRID} x {_GRID} pixels or more, not {height} x {width}")
    high, wide = height // _GRID, width // _GRID
    return (height - _GRID * high) // 2, (width - _GRID * wide) // 2, high, wide


def _codes(images: Tensor) -> NDArray[np.int64]:
    """Return the word of each cell, −1 for none: (n, C, H, W) → (n, 16)."""
    top, left, high, wide = _frame(images)
    grey = (images.float() / (255 if images.dtype == torch.uint8 else 1)).mean(1)
    values = nnf.avg_pool2d(grey[:, top : top + _GRID * high, left : left + _GRID * wide], (high, wide)).numpy()
    cells = values.reshape(-1, _SIDE, _CELL, _SIDE, _CELL).swapaxes(2, 3).reshape(-1, CELLS, _CELL * _CELL)
    codes = (cells > cells.mean(2, keepdims=True)) @ _BITS
    return np.where(np.ptp(cells, axis=2) < _CONTRAST, -1, codes)
