"""Random views of prepared images, a batch at a time on the device, through kornia."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sslguard.errors import UsageError


@dataclass(frozen=True)
class Augmentation:
    """A recipe of random views; probabilities per image.

    Attributes:
        crop: smallest share of the area that a resized crop keeps; 1 crops nothing.
        flip: probability of a horizontal flip.
        jitter: largest relative change of brightness and contrast (0.4: from 0.6 to 1.4).
        blur: probability of a Gaussian blur, σ from 0.1 to 1.5 pixels.
        noise: standard deviation of Gaussian pixel noise, in units of the [0, 1] range.
    """

    crop: float = 1.0
    flip: float = 0.0
    jitter: float = 0.0
    blur: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        good = 0 < self.crop <= 1 and all(0 <= p <= 1 for p in (self.flip, self.blur))
        # Written so that NaN fails too.
        if not (good and self.jitter >= 0 and self.noise >= 0):
            raise UsageError(
                f"crop must lie in (0, 1], flip and blur in [0, 1], jitter and noise must be at least 0: {self}"
            )

    def build(self, height: int, width: int) -> Callable[[Tensor], Tensor]:
        """A function (n, C, H, W) in [0, 1] → the same shape and range. Randomness: torch's generator."""
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
"""What self-supervised methods contrast."""

MILD = Augmentation(crop=0.6, flip=0.5, jitter=0.2)
"""What a thief uses to stretch a query set."""
