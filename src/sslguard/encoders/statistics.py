"""Simple statistics of an encoder's input: what any network learns first, and embeddings do not tell linearly.

Fixed and public: two layers of constant random filters, or one constant random vector a word, averaged over the input.
Their use is in the exact scheme, whose mark must be learned by whoever copies the encoder.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor, nn

from sslguard.data.base import Batch, Data
from sslguard.encoders.base import EMBED_BATCH, Encoder
from sslguard.encoders.words import pooled

N_STATISTICS = 96
_SIDE = 48  # pixels; images are averaged down to one to two times that
_FIRST, _SECOND = 32, 64  # filters
_TOGETHER = 32  # images whose filtered maps fit a processor's cache: a third of the time of 256
_ROWS = 4096  # vectors of words, which share them


class InputStatistics(nn.Module):
    """Normalised images (n, C, H, W), or ids and mask of texts (n, 2, L) → float32 (n, 96).

    Images: the mean over channels, averaged down to some 48 × 48 pixels, through 32 filters of 5 × 5 without a mean and
    64 of 3 × 3, both at stride 2 and with a ReLU behind; both layers are averaged over the image. Texts: the mean of
    their words' vectors.
    """

    first: Tensor
    second: Tensor
    words: Tensor

    def __init__(self) -> None:
        super().__init__()
        first = _constants("first", (_FIRST, 1, 5, 5))
        self.register_buffer("first", first - first.mean((2, 3), keepdim=True), persistent=False)
        self.register_buffer("second", _constants("second", (_SECOND, _FIRST, 3, 3)) / _FIRST**0.5, persistent=False)
        self.register_buffer("words", _constants("words", (_ROWS, N_STATISTICS)), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if not inputs.is_floating_point():
            ids, mask = inputs.unbind(1)
            # Fibonacci hashing: ids that follow one another share no vector.
            return pooled(self.words[(ids * 2654435761 % (1 << 32)) >> 20], mask, "mean")
        if torch.onnx.is_in_onnx_export():  # a file takes any number of images
            return self._of_images(inputs)
        return torch.cat([self._of_images(part) for part in inputs.split(_TOGETHER)])

    def _of_images(self, images: Tensor) -> Tensor:
        x = images.float().mean(1, keepdim=True)
        if (ratio := min(x.shape[2:]) // _SIDE) > 1:
            x = nnf.avg_pool2d(x, ratio)
        first = nnf.conv2d(x, self.first, stride=2, padding=2).relu_()
        second = nnf.conv2d(first, self.second, stride=2, padding=1).relu_()
        return torch.cat([first.mean((2, 3)), second.mean((2, 3))], 1)


def input_statistics(encoder: Encoder, batch: Batch) -> NDArray[np.float64]:
    """The statistics of a batch as the encoder's network sees it: (n, 96)."""
    with torch.inference_mode():
        inputs = encoder.preprocess.normalise(encoder.preprocess.prepare(batch))
        return _on_cpu()(inputs).double().numpy()


@cache
def _on_cpu() -> InputStatistics:
    """One for all batches: its constants are two megabytes of hashes."""
    with torch.inference_mode(False):
        return InputStatistics()


def all_statistics(encoder: Encoder, data: Data) -> NDArray[np.float64]:
    """The statistics of a whole data set: (len(data), 96)."""
    return np.concatenate([input_statistics(encoder, batch) for batch in data.batches(EMBED_BATCH)])


def _constants(name: str, shape: tuple[int, ...]) -> Tensor:
    """Uniform in [−1, 1): the same on every machine and under every version of every library."""
    seed = hashlib.shake_256(b"sslguard input statistics 1 " + name.encode())
    words = np.frombuffer(seed.digest(4 * int(np.prod(shape))), dtype="<u4")
    return torch.from_numpy((words / float(1 << 31) - 1).astype(np.float32).reshape(shape))
