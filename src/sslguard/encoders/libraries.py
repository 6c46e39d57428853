"""Networks of timm and of torchvision, their classifying heads taken off.

Descriptions are {"backbone": "timm:NAME"} and {"backbone": "torchvision:NAME"}, of 3 channels where none are given.
timm's may have a "size", the height and width of its images in pixels where they are not the usual ones and the network
depends on them, and a "global_pool", timm's name of how it pools where that is not the usual way.
torchvision's ResNets take two more fields, for the forms in which they are pre-trained: "maxpool": false leaves out
the first max-pool, and "stem" names the first convolution ("imagenet", "cifar" or "cifar-padded": see `STEMS`).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sslguard.encoders.architectures import MAX_CHANNELS
from sslguard.encoders.words import check_whole
from sslguard.errors import UsageError

# First convolutions of ResNets: name → kernel, stride, padding. solo-learn pads CIFAR's by 2 instead of 1.
STEMS: dict[str, tuple[int, int, int]] = {
    "imagenet": (7, 2, 3),
    "cifar": (3, 1, 1),
    "cifar-padded": (3, 1, 2),
}
GLOBAL_POOLS = ("avg", "token", "map", "max", "avgmax", "catavgmax")
"""timm's names of poolings."""
_MAX_SIDE = 4096  # pixels
RESNET_FIELDS = frozenset({"maxpool", "stem"})
"""Fields that torchvision's ResNets alone may have."""


def from_timm(architecture: dict[str, Any]) -> tuple[nn.Module, int]:
    """Return the untrained network of {"backbone": "timm:NAME"} and the width of its embedding.

    Raises:
        UsageError: timm has no such model, or not for so many channels.
    """
    import timm

    model, channels = _model_and_channels(architecture)
    size, pool = architecture.get("size"), architecture.get("global_pool")
    if size is not None:
        check_whole("size of a network's images", size, 1, _MAX_SIDE)
    if pool not in (None, *GLOBAL_POOLS):
        raise UsageError(f"global_pool must be one of {', '.join(GLOBAL_POOLS)}, not {pool!r:.80}")
    if not timm.is_model(model):
        raise UsageError(f"timm has no model {model!r:.80}")
    options = {} if pool is None else {"global_pool": pool}
    try:
        network = timm.create_model(model, pretrained=False, num_classes=0, in_chans=channels, **options)
        if size is not None:
            network.set_input_size(img_size=(size, size))
    except UsageError:
        raise
    # A tag that it does not have, other channels, a way of pooling or a size that do not go with it.
    except (AssertionError, AttributeError, RuntimeError, ValueError, TypeError) as error:
        raise UsageError(f"timm cannot make {model!r:.80}: {error!s:.200}") from error
    # Some networks keep a layer between the pooled features and the classifier that was taken off.
    return network, int(getattr(network, "head_hidden_size", None) or network.num_features)


def from_torchvision(architecture: dict[str, Any]) -> tuple[nn.Module, int]:
    """Return the untrained network of {"backbone": "torchvision:NAME"} and the width of its embedding.

    Raises:
        UsageError: torchvision has no such model, or it cannot have these channels, this stem or this pooling.
    """
    import torchvision

    model, channels = _model_and_channels(architecture)
    if model not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(f"torchvision has no classification model {model!r:.80}")
    network = torchvision.models.get_model(model, weights=None)
    if channels != 3:
        if not isinstance(network, torchvision.models.ResNet):
            raise UsageError(f"torchvision:{model} takes 3 channels, not {channels}")
        network.conv1 = _stem_convolution("imagenet", channels)
    headless, width = _headless(network, model)
    _reshape_resnet(headless, model, architecture)
    return headless, width


def _model_and_channels(architecture: dict[str, Any]) -> tuple[str, int]:
    channels = architecture.get("channels", 3)
    check_whole("channels of a network", channels, 1, MAX_CHANNELS)
    return architecture["backbone"].partition(":")[2], channels


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


def _reshape_resnet(network: nn.Module, model: str, architecture: dict[str, Any]) -> None:
    """Give a ResNet the stem and the first pooling that `architecture` asks for."""
    import torchvision

    if not architecture.keys() & RESNET_FIELDS:
        return
    stem, maxpool = architecture.get("stem", "imagenet"), architecture.get("maxpool", True)
    if not isinstance(network, torchvision.models.ResNet):
        raise UsageError(f"only torchvision's ResNets have a stem and a max-pool to choose, not torchvision:{model}")
    if not isinstance(maxpool, bool) or not isinstance(stem, str) or stem not in STEMS:
        raise UsageError(
            f"maxpool must be true or false, not {maxpool!r:.80}, and stem one of {', '.join(STEMS)}, not {stem!r:.80}"
        )
    if stem != "imagenet":
        network.conv1 = _stem_convolution(stem, network.conv1.in_channels)
    if not maxpool:
        network.maxpool = nn.Identity()
