"""ResNets in published checkpoints: where they lie, who publishes like this, and how their images are prepared.

A backbone is found by its structure, not by its prefix: wherever `conv1.weight` stands beside
`layer1.0.conv1.weight` (torchvision's naming), or `0.weight` beside `4.0.conv1.weight` (the same layers in an
`nn.Sequential`, whose numbers also tell whether there is a max-pool between them). Momentum copies are left
aside. The prefix, what stands beside it and the container then tell who published it:

=============  ==================================================  ============================  ============
format         recognised by                                       first max-pool                normalised by
=============  ==================================================  ============================  ============
moco           `encoder_q.`, `base_encoder.`                       kept                          data set
byol           `online_…` in the prefix or as container            kept                          data set
simclr         `f.` numbered (CIFAR-10)                            removed, the numbers tell     data set
simclr         `backbone.` with an MLP at `backbone.fc.`;          kept                          nothing
               `encoder.` with a `projector.` beside
solo-learn     `backbone.`, `encoder.` with both a `projector.`    kept                          data set
               and a `classifier.` beside
vissl          `_feature_blocks.`                                  kept                          data set
backbone       any other prefix                                    kept                          data set
plain          none, or `module.`                                  kept                          data set
=============  ==================================================  ============================  ============

"Kept" is what these networks were trained with. It changes to removed where the file says so: a 3×3 first
convolution is CIFAR's stem, of stride 1 and without max-pool (padded by 2 in solo-learn's), and a numbered
layout without a place for a max-pool has none. The code of the SSLGuard paper also takes the max-pool out of
the published SimCLR and MoCo encoders, leaves BYOL's, and normalises nothing: `maxpool=False` and
`preprocess=…` ask for that. "Data set" means the statistics of ImageNet, or of CIFAR-10 behind its stem.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sslguard.encoders.files import StateDict
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import EncoderError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

# (blocks in each stage, convolutions in a block, width of the first block, input channels of one group of its
# 3×3 convolution) → torchvision's name.
_RESNETS: dict[tuple[tuple[int, ...], int, int, int], str] = {
    ((2, 2, 2, 2), 2, 64, 64): "resnet18",
    ((3, 4, 6, 3), 2, 64, 64): "resnet34",
    ((3, 4, 6, 3), 3, 64, 64): "resnet50",
    ((3, 4, 23, 3), 3, 64, 64): "resnet101",
    ((3, 8, 36, 3), 3, 64, 64): "resnet152",
    ((3, 4, 6, 3), 3, 128, 128): "wide_resnet50_2",
    ((3, 4, 23, 3), 3, 128, 128): "wide_resnet101_2",
    ((3, 4, 6, 3), 3, 128, 4): "resnext50_32x4d",
    ((3, 4, 23, 3), 3, 256, 8): "resnext101_32x8d",
    ((3, 4, 23, 3), 3, 256, 4): "resnext101_64x4d",
}

RESNETS = tuple(_RESNETS.values())

HEADS = frozenset(
    [
        *("fc", "fc1", "fc2", "g", "head", "heads", "classifier", "linear", "logits", "prototypes"),
        *("projector", "projection", "projection_head", "projetion", "proj_head", "contrastive_head"),
        *("predictor", "prediction_head", "online_predictor", "predictor_network"),
    ]
)

MOMENTUM = re.compile(r"(^|[._])(target|momentum|teacher|ema|key|encoder_k|queue)(_|\.|$)|_(k|ema|m)(\.|$)")

_TRAINED = re.compile(r"(^|\.)(online_|encoder_q|base_encoder|student)")

_TRANSFORMER = re.compile(r"(^|\.)(blocks|layers|layer|resblocks)\.\d+\.(attn|attention|mlp|ln_1|norm1|layernorm)")

_STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class Backbone:
    """One place in a state dict where a network lies.

    Attributes:
        prefix: what stands before its names.
        names: the library's name of a tensor → the file's, for all that the prefix covers.
        first_stage: number of layer1 where a ResNet's layers are numbered, None where they have names.
    """

    prefix: str
    names: dict[str, str] = field(repr=False)
    first_stage: int | None = None


def rank(prefix: str, prefixes: Collection[str]) -> int:
    """Return 0 for a teacher beside its student (DINO, DINOv2, lightly), 1 for a trained network, 2 for its copy."""
    if "teacher" in prefix and prefix.replace("teacher", "student") in prefixes:
        return 0
    return 2 if MOMENTUM.search(prefix) else 1


def is_prefix(text: str) -> bool:
    """Return whether a text can stand before the names of a network's weights."""
    return text == "" or text.endswith(".")


def find_backbones(tensors: Mapping[str, Tensor]) -> list[Backbone]:
    """Return every place where a ResNet begins, in the order of the file."""
    found = []
    for key, tensor in tensors.items():
        if tensor.dim() != 4:
            continue
        if key.endswith("conv1.weight"):
            prefix = key.removesuffix("conv1.weight")
            if is_prefix(prefix) and f"{prefix}layer1.0.conv1.weight" in tensors:
                found.append(Backbone(prefix, _renamed(tensors, prefix, {})))
        if key.endswith("0.weight"):
            prefix = key.removesuffix("0.weight")
            # Before layer1 stand a convolution, a norm, mostly an activation, and often a max-pool.
            for first in (4, 3, 2):
                stages = range(first, first + 4)
                if is_prefix(prefix) and all(f"{prefix}{i}.0.conv1.weight" in tensors for i in stages):
                    numbers = {"0": "conv1", "1": "bn1", **{str(i): f"layer{i - first + 1}" for i in stages}}
                    # After the stages come a pooling and whatever heads there are.
                    numbers |= {str(i): f"fc.{i}" for i in range(first + 4, first + 12)}
                    found.append(Backbone(prefix, _renamed(tensors, prefix, numbers), first))
    return found


def _renamed(tensors: Iterable[str], prefix: str, renames: Mapping[str, str]) -> dict[str, str]:
    """Return torchvision's name → the file's for all names under `prefix`."""
    names = {}
    for key in tensors:
        if key.startswith(prefix):
            head, *tail = key.removeprefix(prefix).split(".")
            # Networks written for CIFAR call a downsampling shortcut just that.
            rest = ["downsample" if part == "shortcut" else part for part in tail]
            names[".".join([renames.get(head, head), *rest])] = key
    return names


def choose(found: list[Backbone], file: StateDict, prefix: str | None) -> Backbone:
    """Return the one backbone that was trained. Copies under two names count once."""
    if prefix is not None:
        chosen = [b for b in found if b.prefix.removesuffix(".") == prefix.removesuffix(".")]
    else:
        ranks = [rank(b.prefix, [other.prefix for other in found]) for b in found]
        chosen = [b for b, rank in zip(found, ranks, strict=True) if rank == min(ranks)]
    if not chosen:
        under = "" if prefix is None else f" under {prefix!r:.80}"
        some = ", ".join(list(file.tensors)[:3])
        hint = ""
        if any(_TRANSFORMER.search(name) for name in file.tensors):
            hint = f": give a vision transformer as timm:NAME:{file.path}, with timm's name of its architecture"
        raise EncoderError(f"{file.path} holds no ResNet{under}; its names begin with {some:.200}{hint}")
    # Those that say that they were trained come first: BYOL's network may lie in a file under two names.
    first = min(chosen, key=lambda b: not _TRAINED.search(b.prefix))
    for other in chosen:
        if other is not first and not _same(first, other, file.tensors):
            several = ", ".join(repr(b.prefix) for b in chosen)
            raise EncoderError(f"{file.path} holds several backbones, under {several:.200}: name one with @prefix=NAME")
    return first


def _same(one: Backbone, other: Backbone, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether two backbones are copies of each other."""
    names = [n for n in one.names if n.partition(".")[0] in _STAGES]
    pairs = [(tensors[one.names[n]], tensors.get(other.names.get(n, ""))) for n in names]
    return all(b is not None and a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def infer(shapes: Mapping[str, tuple[int, ...]], path: Path) -> str:
    """Return torchvision's name of the ResNet whose tensors have these shapes."""
    counts = [0, 0, 0, 0]
    for key in shapes:
        if match := re.fullmatch(r"layer([1-4])\.(\d{1,3})\.conv1\.weight", key):
            counts[int(match[1]) - 1] += 1
    convolutions = 3 if "layer1.0.conv3.weight" in shapes else 2
    stem, first = shapes["conv1.weight"], shapes["layer1.0.conv1.weight"]
    second = shapes.get("layer1.0.conv2.weight", ())
    if len(first) != 4 or len(second) != 4:
        raise EncoderError(f"{path}: layer1.0 is not a residual block of two or three convolutions")
    name = _RESNETS.get((tuple(counts), convolutions, first[0], second[1]))
    if name is None or stem[0] != 64:
        raise EncoderError(
            f"{path} holds a ResNet of {counts} blocks, {convolutions} convolutions each, width {stem[0]}: "
            f"only torchvision's are known ({', '.join(RESNETS)})"
        )
    if stem[1] not in (1, 3) or stem[2:] not in ((7, 7), (3, 3)):
        raise EncoderError(
            f"{path}: the first convolution has shape {stem}, not (64, 1 or 3, 7, 7) or (64, 1 or 3, 3, 3)"
        )
    return name


def recognise(file: StateDict, backbone: Backbone) -> tuple[str, bool]:
    """Return the format, and whether its inputs were normalised: see the table above."""
    parent, _, last = backbone.prefix.removesuffix(".").rpartition(".")
    parent = f"{parent}." if parent else ""
    beside = {key.removeprefix(parent).partition(".")[0] for key in file.tensors if key.startswith(parent)}
    if re.search(r"(^|\.)(encoder_q|base_encoder)\.", backbone.prefix):
        return "moco", True
    if re.search(r"(^|[./])online_", f"{file.container}/{backbone.prefix}"):
        return "byol", True
    if last == "f" and backbone.first_stage is not None:
        return "simclr", True
    if last == "backbone" and "fc.0.weight" in backbone.names:
        return "simclr", False
    if last in ("backbone", "encoder") and {"classifier", "projector"} <= beside:
        return "solo-learn", True
    if last == "encoder" and "projector" in beside:
        return "simclr", False
    if last == "_feature_blocks":
        return "vissl", True
    return ("plain" if backbone.prefix in ("", "module.") else "backbone"), True


def default_preprocess(channels: int, *, small: bool, normalised: bool) -> ImagePreprocess:
    """Return how images are prepared for a ResNet, behind CIFAR's stem (`small`) or ImageNet's."""
    size, crop = (32, None) if small else (224, 0.875)
    mean, std = (0.0,) * channels, (1.0,) * channels
    if channels == 3 and normalised:
        mean, std = CIFAR10 if small else IMAGENET
    return ImagePreprocess(size, size, channels, mean, std, crop)
