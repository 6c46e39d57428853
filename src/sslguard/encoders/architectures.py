"""The small networks of our own, and the one place where a description becomes a network.

A description is a JSON object: {"backbone": NAME, "channels": C} with an optional "linear": WIDTH, a linear
layer on top, as a thief adds who wants answers in the victim's space. Other fields belong to other families:
{"backbone": "timm:NAME"} and {"backbone": "torchvision:NAME"}.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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
        blocks = [_Residual(width, width, 1), _Residual(width, 2 * width, 2), _Residual(2 * width, 4 * width, 2)]
        return nn.Sequential(*_stem(channels, width), *blocks, *_pooled())

    return build


def _plain(width: int) -> Callable[[int], nn.Sequential]:
    """Convolutions in a row without shortcuts, max-pooled (after Simonyan and Zisserman 2015)."""

    def build(channels: int) -> nn.Sequential:
        layers = _stem(channels, width)
        for width_in, width_out in ((width, 2 * width), (2 * width, 3 * width), (3 * width, 4 * width)):
            layers += [nn.Conv2d(width_in, width_out, 3, 1, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()]
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


# name → (builder of (channels), width of the embedding)
SMALL: dict[str, tuple[Callable[[int], nn.Sequential], int]] = {
    "resnet-small": (_resnet(32), 128),
    "resnet-narrow": (_resnet(16), 64),
    "resnet-wide": (_resnet(48), 192),
    "plain-small": (_plain(24), 96),
    "separable-small": (_separable(24), 144),
}


def build(architecture: dict[str, Any], *, seed: int) -> tuple[nn.Module, int]:
    """A freshly initialised network and the width of its embedding.

    Raises:
        UsageError: no such architecture.
    """
    name = architecture.get("backbone")
    linear = architecture.get("linear")
    if not isinstance(name, str) or not (linear is None or (isinstance(linear, int) and 1 <= linear <= 65536)):
        raise UsageError(f"not the description of a network: {architecture!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in SMALL:
            builder, width = SMALL[name]
            backbone: nn.Module = builder(int(architecture.get("channels", 1)))
        else:
            backbone, width = _from_library(name)
        module = backbone
        if linear is not None:
            module = nn.Sequential(OrderedDict(backbone=backbone, linear=nn.Linear(width, linear)))
            width = linear
    return module.to(memory_format=torch.channels_last), width


def _from_library(name: str) -> tuple[nn.Module, int]:
    family, _, model = name.partition(":")
    if family == "timm":
        import timm

        if not timm.is_model(model):
            raise UsageError(f"timm has no model {model!r}")
        network = timm.create_model(model, pretrained=False, num_classes=0)
        return network, int(network.num_features)
    if family == "torchvision":
        return _from_torchvision(model)
    raise UsageError(f"no architecture {name!r}; known: {', '.join(SMALL)}, timm:NAME, torchvision:NAME")


def _from_torchvision(model: str) -> tuple[nn.Module, int]:
    import torchvision

    if model not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(f"torchvision has no classification model {model!r}")
    network = torchvision.models.get_model(model, weights=None)
    if isinstance(getattr(network, "fc", None), nn.Linear):
        width = network.fc.in_features
        network.fc = nn.Identity()
        return network, int(width)
    head = getattr(network, "classifier", None)
    if isinstance(head, nn.Linear):
        network.classifier = nn.Identity()
        return network, int(head.in_features)
    if isinstance(head, nn.Sequential):
        linears = [layer for layer in head if isinstance(layer, nn.Linear)]
        if linears:
            network.classifier = nn.Identity()
            return network, int(linears[0].in_features)
    raise UsageError(f"torchvision:{model} ends in a head that cannot be taken off here; load it through timm")
