"""Random views of prepared images, computed by kornia for a whole batch on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from sslguard.settings import Checked, NotNegative, Range

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Augmentation(Checked):
    """A recipe of random views. Probabilities are per image.

    Attributes:
        crop: Smallest share of the area that a random resized crop keeps, in (0, 1]; 1 means no crop.
        flip: Probability of a horizontal flip, in [0, 1].
        jitter: Largest relative change of brightness and contrast, at least 0. For example, 0.4 allows factors from 0.6
            to 1.4.
        blur: Probability of a Gaussian blur with σ from 0.1 to 1.5 pixels, in [0, 1].
        noise: Standard deviation of Gaussian pixel noise, in units of the [0, 1] range; at least 0.
    """

    crop: Annotated[float, Range(above=0, most=1)] = 1.0
    flip: Annotated[float, Range(least=0, most=1)] = 0.0
    jitter: NotNegative = 0.0
    blur: Annotated[float, Range(least=0, most=1)] = 0.0
    noise: NotNegative = 0.0

    def build(self, height: int, width: int) -> Callable[[Tensor], Tensor]:
        """Return a function that makes one random view of each image of a batch.

        It maps (n, C, H, W) with values in [0, 1] to the same shape and range. Its randomness comes from torch's global
        generator; see `isolated_rng`.

        Args:
            height: H, in pixels.
            width: W, in pixels.
        """
        import kornia.augmentation as ka

        layers = []
        if self.crop < 1:
            layers.append(
                ka.RandomResizedCrop(
                    (height, width), scale=(self.crop, 1.0), ratio=(0.8, 1.25), cropping_mode="resample"
                )
            )
        if self.flip:
            layers.append(ka.RandomHorizontalFlip(p=self.flip))
        if self.jitter:
            span = (max(0.0, 1 - self.jitter), 1 + self.jitter)
            layers += [ka.RandomBrightness(span, p=0.8), ka.RandomContrast(span, p=0.8)]
        if self.blur:
            layers.append(ka.RandomGaussianBlur((5, 5), (0.1, 1.5), p=self.blur))
        if self.noise:
            layers.append(ka.RandomGaussianNoise(std=self.noise, p=1.0))
        if not layers:
            return lambda images: images
        pipeline = ka.AugmentationSequential(*layers, data_keys=["input"])
        return lambda images: pipeline(images).clamp(0, 1)


VIEWS = Augmentation(crop=0.4, flip=0.5, jitter=0.4, blur=0.2)
"""Views for self-supervised pre-training."""

MILD = Augmentation(crop=0.6, flip=0.5, jitter=0.2)
"""Milder views, with which a thief enlarges its query set."""
