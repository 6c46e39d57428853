"""Small networks of images of our own, each by a name: see `SMALL`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from sslguard.encoders.words import check_whole

MAX_CHANNELS = 64


class _Residual(nn.Module):
    """Two 3×3 convolutions around a shortcut (He et al. 2016, basic block)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def _stem(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


def _pooled() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def _resnet(width: int) -> Callable[[int], nn.Sequential]:
    def build(channels: int) -> nn.Sequential:
        blocks = [
            _Residual(width, width, 1),
            _Residual(width, 2 * width, 2),
            _Residual(2 * width, 4 * width, 2),
        ]
        return nn.Sequential(*_stem(channels, width), *blocks, *_pooled())

    return build


def _plain(width: int) -> Callable[[int], nn.Sequential]:
    """Convolutions in a row without shortcuts, max-pooled (after Simonyan and Zisserman 2015)."""

    def build(channels: int) -> nn.Sequential:
        layers = _stem(channels, width)
        for width_in, width_out in ((width, 2 * width), (2 * width, 3 * width), (3 * width, 4 * width)):
            layers += [
                nn.Conv2d(width_in, width_out, 3, 1, 1, bias=False),
                nn.BatchNorm2d(width_out),
                nn.ReLU(),
            ]
            layers += [nn.MaxPool2d(2)]
        return nn.Sequential(*layers, *_pooled())

    return build


def _separable(width: int) -> Callable[[int], nn.Sequential]:
    """Depthwise and pointwise convolutions in turn (after Howard et al. 2017)."""

    def build(channels: int) -> nn.Sequential:
        layers = _stem(channels, width)
        for width_in, width_out, stride in ((1, 2, 1), (2, 4, 2), (4, 4, 1), (4, 6, 2)):
            a, b = width * width_in, width * width_out
            layers += [nn.Conv2d(a, a, 3, stride, 1, groups=a, bias=False), nn.BatchNorm2d(a), nn.ReLU()]
            layers += [nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        return nn.Sequential(*layers, *_pooled())

    return build


class _SmallViT(nn.Module):
    """Patches of 4 × 4 pixels through four layers of a transformer, norms first, averaged: (n, width).

    After Dosovitskiy et al. 2021, without their class token. Positions are learned on a grid of 8 × 8, which is
    interpolated to the image's own; a grid of twice that or more is averaged down.
    """

    SIDE = 8

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 4, 4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, width, self.SIDE, self.SIDE))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, width // 32, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(4)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        if (ratio := min(x.shape[2:]) // self.SIDE) > 1:
            x = nnf.avg_pool2d(x, ratio)
        places = nnf.interpolate(self.positions, x.shape[2:], mode="bilinear", align_corners=False)
        hidden = (x + places).flatten(2).transpose(1, 2).contiguous()
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden).mean(1)


def _vit(width: int) -> Callable[[int], nn.Module]:
    return lambda channels: _SmallViT(channels, width)


# name → (builder of (channels), width of the embedding)
SMALL: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "resnet-small": (_resnet(32), 128),
    "resnet-narrow": (_resnet(16), 64),
    "resnet-wide": (_resnet(48), 192),
    "plain-small": (_plain(24), 96),
    "separable-small": (_separable(24), 144),
    "vit-small": (_vit(128), 128),
}


def network(architecture: dict[str, Any]) -> tuple[nn.Module, int]:
    """Return one of `SMALL` and the width of its embedding; a description without `channels` has one.

    Raises:
        UsageError: the number of channels is out of range.
    """
    channels = architecture.get("channels", 1)
    check_whole("channels of a network", channels, 1, MAX_CHANNELS)
    builder, width = SMALL[architecture["backbone"]]
    return builder(channels), width
