"""Conversion of images for a foreign model: to the tensor that its input asks for, or to pictures in base64."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Batch
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import UsageError
from sslguard.suspects.settings import Scale

BYTES = np.dtype(np.uint8)
SCALES = cast("tuple[Scale, ...]", get_args(Scale))
_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "unit": ((0.0,), (1.0,)),
    "signed": ((0.5,), (0.5,)),
    "bytes": ((0.0,), (1 / 255,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class ImageInput:
    """The images that an input takes. None means that it takes any.

    Attributes:
        channels: 1 or 3.
        height: Height in pixels.
        width: Width in pixels.
        channels_last: Whether the shape is (n, H, W, C) instead of (n, C, H, W).
        dtype: uint8 gets values in [0, 255]; a float dtype gets values as `scale` says.
        scale: "unit" for [0, 1], "signed" for [−1, 1], "bytes" for [0, 255], or "imagenet" for ImageNet's mean and
            deviation.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    channels_last: bool = False
    dtype: np.dtype[Any] = BYTES
    scale: Scale = "unit"

    @classmethod
    def of_shape(
        cls, sides: Sequence[int | None], dtype: np.dtype[Any], scale: Scale, *, what: str = "this model"
    ) -> ImageInput:
        """Return the input with this shape.

        Args:
            sides: The input's shape without its first dimension. None or a number below 1 means any size.
            dtype: dtype of the input.
            scale: Scale of the values; see `ImageInput`.
            what: Name of the model, for error messages.

        Raises:
            UsageError: The shape or the dtype is not one of images.
        """
        known = [side if side is not None and side > 0 else None for side in sides]
        if len(known) != 3 or dtype.kind not in "fu":
            raise UsageError(f"{what} takes {dtype} of sides {list(sides)}, not images (C, H, W) or (H, W, C)")
        last = known[0] not in (1, 3) and known[2] in (1, 3)
        channels, height, width = (known[2], known[0], known[1]) if last else known
        if channels not in (None, 1, 3):
            raise UsageError(f"{what} takes {channels} channels, and images have 1 or 3")
        return cls(channels, height, width, last, dtype, scale)

    def array(self, batch: Batch, /) -> NDArray[Any]:
        """Return the batch as the input takes it: (n, C, H, W) or (n, H, W, C), C-ordered.

        Raises:
            UsageError: The items are not images, or differ in size although the input does not fix one.
        """
        images = _images(batch)
        channels = self.channels or images[0].shape[0]
        if {image.shape for image in images} != {images[0].shape} and not (self.height and self.width):
            raise UsageError(
                "this model takes images of any size, but the images of one request must have one size: resize them"
            )
        mean, std = _STATISTICS[self.scale if self.dtype.kind == "f" else "bytes"]
        if len(mean) > channels:
            raise UsageError(f"--scale {self.scale} is for 3 channels, and this model takes {channels}")
        prepare = ImagePreprocess(
            self.height or images[0].shape[1],
            self.width or images[0].shape[2],
            channels,
            mean * (channels // len(mean)),
            std * (channels // len(std)),
        )
        values = prepare.normalise(prepare.prepare(list(images)))
        if self.dtype.kind == "u":
            values = values.round()
        if self.channels_last:
            values = values.permute(0, 2, 3, 1)
        return np.ascontiguousarray(values.numpy().astype(self.dtype))

    def identity(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {**vars(self), "dtype": self.dtype.str}


def pictures(batch: Batch) -> list[str]:
    """Return each image as the base64 of a PNG with 8 bits a channel.

    Raises:
        UsageError: An item is not an image (C, H, W) of 1 or 3 channels.
    """
    from PIL import Image

    found = []
    for image in _images(batch):
        pixels = image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
        array = pixels.cpu().numpy()
        content = io.BytesIO()
        Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)).save(content, "PNG")
        found.append(base64.b64encode(content.getvalue()).decode())
    return found


def _images(batch: Batch) -> list[Tensor]:
    images = [item for item in batch if isinstance(item, Tensor)]
    if not images or len(images) != len(batch) or any(i.dim() != 3 or i.shape[0] not in (1, 3) for i in images):
        raise UsageError("this suspect takes images (C, H, W) of 1 or 3 channels: ask it about an image data set")
    return images
