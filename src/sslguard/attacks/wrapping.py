"""Wrappings that add noise to what a served encoder is asked, or to what it answers.

The Gaussian noise is a function of the seed and of the item alone. An item gets the same noise whenever it is asked,
and whichever items share its batch. So the service keeps no state, one batch reveals nothing about another, and asking
twice does not average the noise away. Two items are the same if their content is: images on the [0, 1] scale as
float32, texts as strings. If you wrap an encoder twice by the same kind, use two seeds: with one seed, `OutputNoise`
would add the same noise twice.

Not modelled: services that draw new noise for each request. Averaging undoes that noise.

Source: input noising and output perturbing are among the attacks of Cong et al. 2022; how the noise is measured and
drawn is ours.
"""

from __future__ import annotations

import hashlib
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
from sslguard.errors import DataError
from sslguard.settings import Positive, Seed


@dataclass(frozen=True)
class Noise(Wrapping):
    """Wrapping that adds Gaussian noise. See the subclasses.

    Attributes:
        std: Standard deviation, positive.
        seed: Seed of the noise, at least 0.
    """

    std: Positive
    seed: Seed = 0


@dataclass(frozen=True)
class InputNoise(Noise):
    """Add Gaussian noise to every queried image, and clip the result to the range of images.

    Attributes:
        std: Standard deviation before clipping, in units of the [0, 1] range; positive.
        seed: Seed of the noise, at least 0.
    """

    def __call__(self, victim: Embedder) -> Wrapped:
        """Return `victim` with noisy queries: as many images, of the same shapes, dtypes and devices.

        Noisy uint8 images are rounded to uint8. The result's `embed` raises DataError for texts. It also raises it for
        float images with values outside [0, 1], which clipping would hide from the victim's own check.
        """
        return Wrapped(victim, partial(self._answer, victim), "input noise", asdict(self))

    def _answer(self, victim: Embedder, batch: Batch) -> NDArray[np.floating]:
        return ask_about(victim, batch, "input noise", self._noisy)

    def _noisy(self, image: Tensor) -> Tensor:
        pixels = pixels_of(image)
        noise = item_rng("input", self.seed, image).standard_normal(pixels.shape)
        return torch.from_numpy(pixels + self.std * noise)


@dataclass(frozen=True)
class OutputNoise(Noise):
    """Add Gaussian noise to every answer, in proportion to the size of the answer.

    Attributes:
        std: Standard deviation, as a share of the answer's root mean square over its m numbers. Each row is scaled by
            its own size: answers do not depend on each other, and a missing answer, which is a row of zeros, stays one.
        seed: Seed of the noise, at least 0.
    """

    def __call__(self, victim: Embedder) -> Wrapped:
        """Return `victim` with noisy answers: (n, m) in the dtype of its answers, or float64 if they are integers.

        The result's `embed` raises EncoderError if the victim does not answer with one row an item.
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


def ask_about(victim: Embedder, batch: Batch, title: str, change: Callable[[Tensor], Tensor]) -> NDArray[np.floating]:
    """Return the victim's answers to changed images.

    The changed images are clipped to [0, 1] and keep their number, dtypes and devices.

    Args:
        victim: Embedder to ask.
        batch: Images (C, H, W), uint8 or float in [0, 1].
        title: Name of the attack, for error messages.
        change: Function from an image to values (C, H, W), where 1 is white. The values of uint8 images are rounded
            back.

    Raises:
        DataError: An item is not an image.
    """
    if not len(batch):
        return victim.embed(batch)
    changed: list[Tensor] = []
    for image in batch:
        if not isinstance(image, Tensor):
            raise DataError(f"{title} applies to images, not to items of type {type(image).__name__}")
        clipped = change(image).clamp(0, 1)
        if image.dtype == torch.uint8:
            clipped = (clipped * 255).round()
        changed.append(clipped.to(device=image.device, dtype=image.dtype))
    return victim.embed(torch.stack(changed) if isinstance(batch, Tensor) else changed)


def pixels_of(image: Tensor) -> NDArray[np.float32]:
    """Return one image on the [0, 1] scale, float32 (C, H, W), as `ImagePreprocess` would read it.

    Raises:
        DataError: The image is not uint8 or float, or a float value lies outside [0, 1].
    """
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise DataError(f"images must be uint8 or float in [0, 1], not {image.dtype}")
    pixels: NDArray[np.float32] = np.array(image.detach().cpu().float().numpy(), order="C")
    if image.dtype == torch.uint8:
        pixels /= 255
        return pixels
    # Comparisons with NaN are false, so this check fails for NaN too.
    if not ((pixels >= 0) & (pixels <= 1)).all():
        raise DataError("float images must be finite and lie in [0, 1]; pass uint8 images for values up to 255")
    return pixels


def item_rng(place: str, seed: int, item: Tensor | str) -> np.random.Generator:
    """Return a generator that depends only on `place`, `seed` and the content of the item.

    Args:
        place: Name of the use, so that two uses of one seed get different numbers.
        seed: Seed of the attack.
        item: Image (C, H, W) or text.
    """
    if isinstance(item, Tensor):
        pixels = pixels_of(item)
        shown, content = str(pixels.shape), pixels.tobytes()
    else:
        shown, content = "text", item.encode()
    digest = hashlib.sha256(f"{place}:{seed}:{shown}:".encode() + content).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
