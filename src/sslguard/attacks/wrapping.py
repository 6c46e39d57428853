"""Wrapping: what stands before or behind an encoder that is served, and blurs what it is asked or answers.

Both kinds here add Gaussian noise that is a function of the seed and of the item alone. An item gets the same noise
whenever it is asked and whatever stands beside it in the batch: no state, nothing that one batch could tell of
another, nothing that a thief or an owner averages away by asking twice. Items count as the same by their content:
images on the [0, 1] scale as float32, texts by their letters. Two wrappings of one kind around each other need two
seeds: under one seed `OutputNoise` would add the same noise twice.

What it does not model: services that draw anew each time, which averaging does undo.

Source: input noising and output perturbing are among the attacks of Cong et al. 2022; how the noise is measured and
drawn is ours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslguard.attacks.base import Wrapping
from sslguard.data.base import Batch
from sslguard.encoders.base import Embedder
from sslguard.encoders.wrapped import Wrapped, rows
from sslguard.errors import DataError, UsageError


@dataclass(frozen=True)
class InputNoise(Wrapping):
    """Gaussian noise on every image that is asked, clipped to the range of images.

    Attributes:
        std: standard deviation before clipping, in units of the [0, 1] range.
        seed: of the noise.
    """

    std: float
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.std, self.seed)

    def __call__(self, victim: Embedder) -> Wrapped:
        """`victim` asked about noisy images: as many as came, of the same shapes, types and devices.

        Bytes are rounded back to bytes. Its `embed` raises DataError for texts, and for float images that leave
        [0, 1]: clipping would hide them from the victim's own check.
        """
        return Wrapped(victim, partial(self._answer, victim), "input noise", asdict(self))

    def _answer(self, victim: Embedder, batch: Batch) -> NDArray[np.floating]:
        return ask_about(victim, batch, "input noise", self._noisy)

    def _noisy(self, image: Tensor) -> Tensor:
        pixels = pixels_of(image)
        noise = item_rng("input", self.seed, image).standard_normal(pixels.shape)
        return torch.from_numpy(pixels + self.std * noise)


@dataclass(frozen=True)
class OutputNoise(Wrapping):
    """Gaussian noise on every answer, as large as the answer itself says.

    Attributes:
        std: standard deviation as a share of the answer's own root mean square over its m numbers. Each row is
            measured by itself, so that no answer tells of another, and a missing answer, a row of zeros, stays one.
        seed: of the noise.
    """

    std: float
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.std, self.seed)

    def __call__(self, victim: Embedder) -> Wrapped:
        """`victim` with noisy answers: (n, m) of the type that it answers in, float64 for integers.

        Its `embed` raises EncoderError where the victim does not answer with one row an item.
        """
        return Wrapped(victim, partial(self._answer, victim), "output noise", asdict(self))

    def _answer(self, victim: Embedder, batch: Batch) -> NDArray[np.floating]:
        answers = rows(victim, batch)
        exact = answers.astype(np.float64)
        size = np.sqrt(np.square(exact).mean(axis=1, keepdims=True))
        noise = np.empty_like(exact)
        for row, item in zip(noise, batch, strict=True):
            row[:] = item_rng("output", self.seed, item).standard_normal(row.shape)
        noisy = exact + self.std * size * noise
        return noisy.astype(answers.dtype) if answers.dtype.kind == "f" else noisy


def _check(std: float, seed: int) -> None:
    if not (std > 0 and math.isfinite(std)):
        raise UsageError(f"std must be a positive finite number, not {std}")
    if seed < 0:
        raise UsageError(f"seed must not be negative, but is {seed}")


def ask_about(victim: Embedder, batch: Batch, title: str, change: Callable[[Tensor], Tensor]) -> NDArray[np.floating]:
    """The victim's answers to changed images: as many as came, of the same types and devices, clipped to [0, 1].

    Args:
        change: an image → values (C, H, W), 1 being white. Bytes are rounded back to bytes.

    Raises:
        DataError: an item is no image.
    """
    if not len(batch):
        return victim.embed(batch)
    changed: list[Tensor] = []
    for image in batch:
        if not isinstance(image, Tensor):
            raise DataError(f"{title} is put on images, not on items of type {type(image).__name__}")
        clipped = change(image).clamp(0, 1)
        if image.dtype == torch.uint8:
            clipped = (clipped * 255).round()
        changed.append(clipped.to(device=image.device, dtype=image.dtype))
    return victim.embed(torch.stack(changed) if isinstance(batch, Tensor) else changed)


def pixels_of(image: Tensor) -> NDArray[np.float32]:
    """One image on the [0, 1] scale, float32, as `ImagePreprocess` would read it."""
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise DataError(f"images must be uint8 or float in [0, 1], not {image.dtype}")
    pixels: NDArray[np.float32] = np.array(image.detach().cpu().float().numpy(), order="C")
    if image.dtype == torch.uint8:
        pixels /= 255
        return pixels
    # A comparison with NaN is false, so this finds NaN too.
    if not ((pixels >= 0) & (pixels <= 1)).all():
        raise DataError("float images must be finite and lie in [0, 1]; bytes are scaled here")
    return pixels


def item_rng(place: str, seed: int, item: Tensor | str) -> np.random.Generator:
    """A generator that is a function of (place, seed, content of the item) alone."""
    if isinstance(item, Tensor):
        pixels = pixels_of(item)
        shown, content = str(pixels.shape), pixels.tobytes()
    else:
        shown, content = "text", item.encode()
    digest = hashlib.sha256(f"{place}:{seed}:{shown}:".encode() + content).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
