"""Simple statistics of an encoder's input: what any network learns first, and embeddings do not tell linearly.

Fixed and public: two layers of constant random filters, or one constant random vector a word, averaged over the input.
Their use is in the exact scheme, whose mark must be learned by whoever copies the encoder.
"""

from __future__ import annotations

import hashlib
import math
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from sslguard.encoders.words import pooled

N_WORDS, N_IMAGE = 96, 356
"""Statistics of a text, and of an image."""
IMAGE_PARTS = ((96, 1.0), (96, 0.5), (36, 0.3), (128, 0.5))
"""Statistics of an image by kind, in their order: how many, and their weight in the bank."""
_SIDE = 24  # pixels; images are averaged down to one to two times that
_FIRST, _SECOND = 32, 64  # filters
_PIXELS, _QUADRANTS = 6, 2  # a side
_TOGETHER = 256  # images whose filtered maps fit a processor's cache
_ROWS = 4096  # vectors of words, which share them


class InputStatistics(nn.Module):
    """Normalised images (n, C, H, W) → float32 (n, 356); ids and mask of texts (n, 2, L) → float32 (n, 96).

    Images: the mean over channels, averaged down to some 24 × 24 pixels, through 32 filters of 5 × 5 without a mean
    and 64 of 3 × 3, both at stride 2 and with a ReLU behind. The statistics are the means over the image of both
    layers, the means of their squares, 6 × 6 averages of the image itself, and the means of the first layer over the
    image's quadrants. Texts: the mean of their words' vectors.
    """

    first: Tensor
    second: Tensor
    words: Tensor

    def __init__(self) -> None:
        super().__init__()
        first, second = _constants("first", (_FIRST, 1, 5, 5)), _constants("second", (_SECOND, _FIRST, 3, 3))
        # Channels last is faster by a sixth.
        self.register_buffer("first", _channels_last(first - first.mean((2, 3), keepdim=True)), persistent=False)
        self.register_buffer("second", _channels_last(second / _FIRST**0.5), persistent=False)
        self.register_buffer("words", _constants("words", (_ROWS, N_WORDS)), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the statistics of normalised images or of tokens, float32 (n, 356) or (n, 96)."""
        if not inputs.is_floating_point():
            ids, mask = inputs.unbind(1)
            # Fibonacci hashing: ids that follow one another share no vector.
            return pooled(self.words[(ids * 2654435761 % (1 << 32)) >> 20], mask, "mean")
        if inputs.dim() != 4:  # of a network that takes no images: its numbers in rows of a square
            flat = inputs.flatten(1)
            side = max(_SIDE, math.isqrt(flat.shape[1] - 1) + 1)
            inputs = nnf.pad(flat, (0, side**2 - flat.shape[1])).reshape(-1, 1, side, side)
        if torch.jit.is_tracing() or torch.compiler.is_exporting():  # a file takes any number of images
            return self._of_images(inputs)
        return torch.cat([self._of_images(part) for part in inputs.split(_TOGETHER)])

    def _of_images(self, images: Tensor) -> Tensor:
        x = self._averaged(images.float())
        first = nnf.conv2d(x, self.first, stride=2, padding=2).relu_()
        second = nnf.conv2d(first, self.second, stride=2, padding=1).relu_()
        pixels, quadrants = _tiles(x, _PIXELS), _tiles(first, _QUADRANTS)
        # Of one dimension, which is faster than of two.
        maps = first.flatten(2), second.flatten(2)
        means = (layer.mean(2) for layer in maps)
        squares = (layer.square().mean(2) for layer in maps)
        return torch.cat([*means, *squares, pixels, quadrants], 1)

    def _averaged(self, images: Tensor) -> Tensor:
        """Return the means over channels and small squares: (n, 1, h, w)."""
        ratio = min(images.shape[2:]) // _SIDE
        # Squares first, which leaves few pixels whose channels have a mean; sums of slices are faster than pooling.
        if ratio > 1:
            height, width = (side // ratio * ratio for side in images.shape[2:])
            rows = reduce(torch.add, (images[:, :, i:height:ratio] for i in range(ratio)))
            images = reduce(torch.add, (rows[..., i:width:ratio] for i in range(ratio))) / ratio**2
        return images.mean(1, keepdim=True) if images.shape[1] > 1 else images


def _tiles(maps: Tensor, side: int) -> Tensor:
    """Return the means over side × side tiles: (n, C, H, W) → (n, C·side²)."""
    if not torch.jit.is_tracing():
        return nnf.adaptive_avg_pool2d(maps, side).flatten(1)
    # ONNX has no pooling of this kind: what each tile takes of each row and column, as matrices.
    rows, columns = (_shares(int(size), side).to(maps) for size in maps.shape[2:])
    return (rows @ maps @ columns.T).flatten(1)


def _shares(size: int, side: int) -> Tensor:
    """Return the share of each of `size` places in each tile of a side, (side, size); tiles may overlap."""
    tile, place = torch.arange(side)[:, None], torch.arange(size)
    inside = (place >= tile * size // side) & (place < ((tile + 1) * size + side - 1) // side)
    return inside / inside.sum(1, keepdim=True)


def _constants(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return numbers uniform in [−1, 1): the same on every machine and under every version of every library."""
    seed = hashlib.shake_256(b"sslguard input statistics 1 " + name.encode())
    words = np.frombuffer(seed.digest(4 * int(np.prod(shape))), dtype="<u4")
    return torch.from_numpy((words / float(1 << 31) - 1).astype(np.float32).reshape(shape))


def _channels_last(filters: Tensor) -> Tensor:
    """Return filters with strides of that order even where there is one channel, so that maps come in it."""
    _, channels, height, width = filters.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return torch.empty_strided(filters.shape, strides).copy_(filters)
