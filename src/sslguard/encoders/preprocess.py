"""Two steps from a batch of items to what the network sees, and a seam between them.

1. `prepare`: items of any size → one tensor of fixed shape with values in [0, 1]. Not differentiable.
2. `normalise`: that tensor → the network's input. Differentiable.

A trigger lives between them, in the space that both steps share. `framed` leads back: to what must be sent for an
encoder to see a given tensor.

Texts go the same way, as integers between the two steps (`words`, `text`): no trigger fits there, and no way leads
back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import UnionType
from typing import Any, Protocol

import torch
import torch.nn.functional as nnf
from torch import Tensor

from sslguard.data.base import Batch
from sslguard.errors import DataError, UsageError

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
RESAMPLES = ("bilinear", "bilinear-bytes", "bicubic", "bicubic-bytes", "none")
_MAX_SIDE = 4096  # pixels; a description that comes from a file must not be able to ask for all memory


class Preprocess(Protocol):
    """What an encoder does to items before its network."""

    def prepare(self, batch: Batch, /) -> Tensor:
        """Return items as one tensor of fixed shape, in [0, 1]; texts as integers (n, 2, L)."""
        ...

    def framed(self, prepared: Tensor, batch: Batch, /) -> Tensor:
        """Return items of which `prepare` makes `prepared`, which it made of `batch`."""
        ...

    def normalise(self, prepared: Tensor, /) -> Tensor:
        """Return the network's input, differentiable in `prepared`."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the description that `rebuild.preprocess_from_json` reads."""
        ...

    def files(self) -> dict[str, bytes]:
        """Return the files, by name, that lie beside the description."""
        ...


@dataclass(frozen=True)
class ImagePreprocess:
    """Images of any size and 1 or 3 channels → float32 (n, channels, height, width).

    Attributes:
        height, width: what the network takes, in pixels.
        channels: 1 or 3. Colour becomes grey by its luma; grey becomes colour by repetition.
        mean, std: one value a channel, subtracted and divided by in `normalise`.
        crop: share of the shorter side that a centred crop keeps after resizing, as published evaluation
            recipes do (0.875); None stretches the whole image to height × width.
        resample: how images are resized: one of `RESAMPLES`. With "bytes" images of bytes are rounded after it,
            and the longer side is rounded down, as torchvision and transformers do. "none" resizes nothing, and
            refuses images of another size.
        stretch: whether an image is stretched, instead of keeping its shape, before the crop is taken.
    """

    height: int
    width: int
    channels: int = 3
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    crop: float | None = None
    resample: str = "bilinear"
    stretch: bool = False

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise UsageError(f"channels must be 1 or 3, not {self.channels}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise UsageError(f"mean and std need {self.channels} values each, not {len(self.mean)}, {len(self.std)}")
        if not (1 <= self.height <= _MAX_SIDE and 1 <= self.width <= _MAX_SIDE):
            raise UsageError(f"height and width must lie in 1 to {_MAX_SIDE} pixels, not {self.height}, {self.width}")
        if not all(math.isfinite(v) for v in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise UsageError(f"mean must be finite and std finite and positive, not {self.mean}, {self.std}")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise UsageError(f"crop must lie in (0, 1], not {self.crop}")
        if self.resample not in RESAMPLES or not isinstance(self.stretch, bool):
            raise UsageError(
                f"resample must be one of {', '.join(RESAMPLES)}, not {self.resample!r:.80}, and stretch true or false"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of what `prepare` gives for one item."""
        return self.channels, self.height, self.width

    def prepare(self, batch: Batch, /) -> Tensor:
        """Resize, convert channels and scale to [0, 1]: float32 (n, channels, height, width)."""
        if isinstance(batch, Tensor):
            return self._prepare_stack(batch)
        if not batch or not all(isinstance(item, Tensor) and item.dim() == 3 for item in batch):
            raise DataError("this encoder takes images: a tensor (n, C, H, W) or a list of tensors (C, H, W)")
        return torch.cat([self._prepare_stack(item[None]) for item in batch if isinstance(item, Tensor)])

    @property
    def canvas(self) -> tuple[int, int]:
        """Return height and width of the images that `prepare` cuts without resizing them, pixels."""
        share = self.crop or 1.0
        return round(self.height / share), round(self.width / share)

    def framed(self, prepared: Tensor, batch: Batch, /) -> Tensor:
        """Return items of which `prepare` makes `prepared`: float32 (n, channels, *canvas).

        An encoder with a crop resizes and cuts whatever comes, a prepared image too. So `prepared` is set into the
        middle of the items of `batch` that it was made of, where the crop finds it again.
        """
        height, width = self.canvas
        if (height, width) == (self.height, self.width):
            return prepared
        framed = replace(self, height=height, width=width, crop=None if self.stretch else 1.0).prepare(batch)
        top, left = _middle(framed, self.height, self.width)
        framed[:, :, top : top + self.height, left : left + self.width] = prepared
        return framed

    def normalise(self, prepared: Tensor, /) -> Tensor:
        """Return (prepared − mean) / std, channel by channel."""
        mean = prepared.new_tensor(self.mean)[:, None, None]
        std = prepared.new_tensor(self.std)[:, None, None]
        return (prepared - mean) / std

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; `resample` and `stretch` only where they are not the usual ones."""
        fields = {
            "kind": "image",
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
            "mean": list(self.mean),
            "std": list(self.std),
            "crop": self.crop,
        }
        if self.resample != "bilinear":
            fields["resample"] = self.resample
        if self.stretch:
            fields["stretch"] = True
        return fields

    def files(self) -> dict[str, bytes]:
        """Return no file: nothing lies beside the description."""
        return {}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ImagePreprocess:
        """Invert `to_json`. Raise UsageError for fields that do not fit."""
        try:
            return cls(
                **{name: _number(fields[name], int) for name in ("height", "width", "channels")},
                mean=tuple(float(_number(v, int | float)) for v in fields["mean"]),
                std=tuple(float(_number(v, int | float)) for v in fields["std"]),
                crop=None if fields["crop"] is None else float(_number(fields["crop"], int | float)),
                resample=fields.get("resample", "bilinear"),
                stretch=fields.get("stretch", False),
            )
        except KeyError as error:
            raise UsageError(f"the description of an image preprocessing lacks {error}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"not the description of an image preprocessing: {error}") from error

    def _prepare_stack(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise DataError(f"images must have shape (n, 1 or 3, H, W), not {tuple(images.shape)}")
        if images.numel() == 0:
            raise DataError(f"images must hold pixels, not have shape {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise DataError(f"images must be uint8 or float in [0, 1], not {images.dtype}")
        # In place where bytes came: a large picture takes enough memory as it is.
        bytes_came = images.dtype == torch.uint8
        scaled = images.float().div_(255) if bytes_came else images.float()
        if not bytes_came and (not bool(scaled.isfinite().all()) or scaled.min() < 0 or scaled.max() > 1):
            raise DataError("float images must be finite and lie in [0, 1]; bytes are scaled here")
        if scaled.shape[1] != self.channels:
            if self.channels == 1:
                luma = scaled.new_tensor(_LUMA)[:, None, None]
                scaled = (scaled.mul_(luma) if bytes_came else scaled * luma).sum(1, keepdim=True)
            else:
                scaled = scaled.expand(-1, 3, -1, -1)
        return self._resize(scaled, bytes_came=bytes_came)

    def _resize(self, images: Tensor, *, bytes_came: bool) -> Tensor:
        came = (images.shape[2], images.shape[3])
        target = self._target(came)
        if came != target:
            method, _, rounds = self.resample.partition("-")
            if method == "none":
                raise DataError(
                    f"this encoder resizes nothing: images must be {target[0]} × {target[1]} pixels, "
                    f"not {came[0]} × {came[1]}"
                )
            as_bytes = rounds != "" and bytes_came
            if as_bytes:
                images = (images * 255).round().to(torch.uint8)
            images = nnf.interpolate(images, target, mode=method, antialias=True, align_corners=False)
            images = images.float() / 255 if as_bytes else images.clamp(0, 1)
        top, left = _middle(images, self.height, self.width)
        return images[:, :, top : top + self.height, left : left + self.width]

    def _target(self, came: tuple[int, int]) -> tuple[int, int]:
        """Return the size to which images of size `came` are resized before the crop, pixels."""
        if came == self.canvas or (self.stretch and self.crop is not None):
            return self.canvas
        if self.crop is None:
            return self.height, self.width
        if self.resample.endswith("-bytes"):
            short = max(self.canvas)
            return short * came[0] // min(came), short * came[1] // min(came)
        ratio = max(self.height / came[0], self.width / came[1]) / self.crop
        return max(self.height, round(came[0] * ratio)), max(self.width, round(came[1] * ratio))


def _number(value: object, kind: type | UnionType) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r:.80} is no such number")
    return value


def _middle(images: Tensor, height: int, width: int) -> tuple[int, int]:
    """Return top and left of what a centred crop of height × width keeps."""
    return (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
