"""The small networks of our own, and the one place where a description becomes a network.

A description is a JSON object: {"backbone": NAME, "channels": C} with an optional "linear": WIDTH, a linear
layer on top, as a thief adds who wants answers in the victim's space. Two families come from libraries, their
classifying heads taken off: {"backbone": "timm:NAME"} and {"backbone": "torchvision:NAME"}, of 3 channels
where none are given. torchvision's ResNets take two more fields, for the forms in which they are pre-trained:
"maxpool": false leaves out the first max-pool, and "stem" names the first convolution ("imagenet", "cifar" or
"cifar-padded": see `STEMS`).

Networks of texts have no channels: those of `words.NETWORKS`, and {"backbone": "hf", "config": …}, a transformer of
the library of that name: see `huggingface`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from sslguard.encoders import words
from sslguard.encoders.heads import FourierHead, Headed
from sslguard.encoders.statistics import N_STATISTICS, STATISTICS_VERSION
from sslguard.errors import UsageError


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


# First convolutions of ResNets: name → kernel, stride, padding. solo-learn pads CIFAR's by 2 instead of 1.
STEMS: dict[str, tuple[int, int, int]] = {
    "imagenet": (7, 2, 3),
    "cifar": (3, 1, 1),
    "cifar-padded": (3, 1, 2),
}
_MAX_CHANNELS = 64

# name → (builder of (channels), width of the embedding)
SMALL: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "resnet-small": (_resnet(32), 128),
    "resnet-narrow": (_resnet(16), 64),
    "resnet-wide": (_resnet(48), 192),
    "plain-small": (_plain(24), 96),
    "separable-small": (_separable(24), 144),
    "vit-small": (_vit(128), 128),
}


def build(architecture: dict[str, Any], *, seed: int) -> tuple[nn.Module, int]:
    """A freshly initialised network and the width of its embedding.

    Raises:
        UsageError: no such architecture.
    """
    if "head" in architecture:
        return _headed(architecture, seed=seed)
    name = architecture.get("backbone")
    linear = architecture.get("linear")
    if not isinstance(name, str) or not (linear is None or _whole(linear, 65536)):
        raise UsageError(f"not the description of a network: {architecture!r:.200}")
    channels = architecture.get("channels", 1 if name in SMALL else 3)
    if not _whole(channels, _MAX_CHANNELS):
        raise UsageError(
            f"channels of a network must be a whole number from 1 to {_MAX_CHANNELS}, not {channels!r:.80}"
        )
    # torch.manual_seed would seed every accelerator too, and nothing puts those back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if name in SMALL:
            builder, width = SMALL[name]
            backbone = builder(channels)
        elif name in words.NETWORKS:
            backbone, width = words.network(architecture)
        elif name == "hf":
            from sslguard.encoders.huggingface import network

            backbone, width = network(architecture)
        else:
            backbone, width = _from_library(name, channels)
        if "maxpool" in architecture or "stem" in architecture:
            _reshape_resnet(backbone, name, architecture)
        module = backbone
        if linear is not None:
            module = nn.Sequential(OrderedDict(backbone=backbone, linear=nn.Linear(width, linear)))
            width = linear
    return module.to(memory_format=torch.channels_last), width


def _headed(architecture: dict[str, Any], *, seed: int) -> tuple[nn.Module, int]:
    """The network that the description without its head names, with a `FourierHead` that changes nothing yet."""
    encoder, width = build({name: value for name, value in architecture.items() if name != "head"}, seed=seed)
    sizes = architecture["head"]
    # Heads of before there were two versions of the statistics do not name it.
    version = sizes.get("version", 1) if isinstance(sizes, dict) else 1
    if (
        not isinstance(sizes, dict)
        or sizes.keys() - {"version"} != {"components", "features", "statistics"}
        or not _whole(version, STATISTICS_VERSION)
        or not _whole(sizes["components"], width)
        or not _whole(sizes["features"], 65536)
        or not (sizes["statistics"] == 0 or _whole(sizes["statistics"], N_STATISTICS))
    ):
        raise UsageError(f"not the description of a head: {sizes!r:.200}")
    sizes = {name: value for name, value in sizes.items() if name != "version"}
    return Headed(encoder, FourierHead(width, **sizes), version), width


def _whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _from_library(name: str, channels: int) -> tuple[nn.Module, int]:
    family, _, model = name.partition(":")
    if family == "timm":
        import timm

        if not timm.is_model(model):
            raise UsageError(f"timm has no model {model!r:.80}")
        try:
            network = timm.create_model(model, pretrained=False, num_classes=0, in_chans=channels)
        except (RuntimeError, ValueError, TypeError) as error:  # a tag that it does not have, or other channels
            raise UsageError(f"timm cannot make {model!r:.80}: {error!s:.200}") from error
        # Some networks keep a layer between the pooled features and the classifier that was taken off.
        return network, int(getattr(network, "head_hidden_size", None) or network.num_features)
    if family == "torchvision":
        return _from_torchvision(model, channels)
    known = ", ".join([*SMALL, *words.NETWORKS])
    raise UsageError(f"no architecture {name!r:.80}; known: {known}, timm:NAME, torchvision:NAME")


def _from_torchvision(model: str, channels: int) -> tuple[nn.Module, int]:
    import torchvision

    if model not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(f"torchvision has no classification model {model!r:.80}")
    network = torchvision.models.get_model(model, weights=None)
    if channels != 3:
        if not isinstance(network, torchvision.models.ResNet):
            raise UsageError(f"torchvision:{model} takes 3 channels, not {channels}")
        network.conv1 = _stem_convolution("imagenet", channels)
    return _headless(network, model)


def _headless(network: nn.Module, model: str) -> tuple[nn.Module, int]:
    """Take the head off at its first linear layer; what stands before it (a norm, a flatten) stays."""
    for name in ("fc", "classifier", "heads", "head"):
        head = getattr(network, name, None)
        if isinstance(head, nn.Linear):
            setattr(network, name, nn.Identity())
            return network, head.in_features
        if isinstance(head, nn.Sequential):
            for place, layer in enumerate(head):
                if isinstance(layer, nn.Linear):
                    setattr(network, name, head[:place])
                    return network, layer.in_features
    raise UsageError(f"torchvision:{model} ends in a head that cannot be taken off here; load it through timm")


def _stem_convolution(stem: str, channels: int) -> nn.Conv2d:
    kernel, stride, padding = STEMS[stem]
    convolution = nn.Conv2d(channels, 64, kernel, stride, padding, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
    return convolution


def _reshape_resnet(network: nn.Module, name: str, architecture: dict[str, Any]) -> None:
    """Give one of torchvision's ResNets the stem and the first pooling that `architecture` asks for."""
    import torchvision

    stem, maxpool = architecture.get("stem", "imagenet"), architecture.get("maxpool", True)
    if not isinstance(network, torchvision.models.ResNet):
        raise UsageError(f"only torchvision's ResNets have a stem and a max-pool to choose, not {name}")
    if not isinstance(maxpool, bool) or not isinstance(stem, str) or stem not in STEMS:
        raise UsageError(
            f"maxpool must be true or false, not {maxpool!r:.80}, and stem one of {', '.join(STEMS)}, not {stem!r:.80}"
        )
    if stem != "imagenet":
        network.conv1 = _stem_convolution(stem, network.conv1.in_channels)
    if not maxpool:
        network.maxpool = nn.Identity()
