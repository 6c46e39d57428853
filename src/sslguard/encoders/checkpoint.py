"""State dicts as SimCLR, MoCo v2, BYOL and their kin publish them → an `Encoder`, every key accounted for.

Of a teacher and its student, as DINO, DINOv2 and lightly train them, the teacher is taken.

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

import logging
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslguard.encoders.base import Encoder
from sslguard.encoders.files import StateDict, is_plain, read_state_dict
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.rebuild import build
from sslguard.errors import EncoderError, UsageError

_log = logging.getLogger(__name__)

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

_HEADS = frozenset(
    [
        *("fc", "fc1", "fc2", "g", "head", "heads", "classifier", "linear", "logits", "prototypes"),
        *("projector", "projection", "projection_head", "projetion", "proj_head", "contrastive_head"),
        *("predictor", "prediction_head", "online_predictor", "predictor_network"),
    ]
)
_MOMENTUM = re.compile(r"(^|[._])(target|momentum|teacher|ema|key|encoder_k|queue)(_|\.|$)|_(k|ema|m)(\.|$)")
_MOCO = re.compile(r"(^|\.)(encoder_q|base_encoder|momentum_encoder)\.")
_TRAINED = re.compile(r"(^|\.)(online_|encoder_q|base_encoder|student)")
_TRANSFORMER = re.compile(r"(^|\.)(blocks|layers|layer|resblocks)\.\d+\.(attn|attention|mlp|ln_1|norm1|layernorm)")
# What stands at the beginning of a vision transformer, in the names that timm translates.
_FIRST = ("patch_embed.proj.weight", "visual.class_embedding", "visual.trunk.patch_embed.proj.weight")
_COUNTER = "num_batches_tracked"
_STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class CheckpointReport:
    """What became of every tensor of a checkpoint.

    Attributes:
        path: the file.
        format: who publishes like this: see the table above.
        container: where in the file the state dict lies, such as "state_dict"; empty for the top.
        prefix: what stood before the backbone's names.
        kept: names, in the file, of the tensors that are in the encoder now.
        dropped: names of projection heads, predictors, classifiers, momentum copies and queues.
        unexpected: names of tensors that are neither.
        aside: what else lies in the file: optimizers, counters, the state dicts of other networks.
        missing: names, in the network, that the file lacks. Only batch counters may be, and they start at 0.
        maxpool: whether the first max-pool is kept; None for networks without that question.
        renamed: name in the network → name in the file, where that is not the prefix with the same name.
    """

    path: str
    format: str
    container: str
    prefix: str
    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    unexpected: tuple[str, ...]
    aside: tuple[str, ...]
    missing: tuple[str, ...]
    maxpool: bool | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, the kept names counted only: they are the encoder's own."""
        fields = {**asdict(self), "kept": len(self.kept)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


@dataclass(frozen=True)
class _Backbone:
    """One place in a state dict where a network lies.

    Attributes:
        prefix: what stands before its names.
        names: the library's name of a tensor → the file's, for all that the prefix covers.
        first_stage: number of layer1 where a ResNet's layers are numbered, None where they have names.
    """

    prefix: str
    names: dict[str, str] = field(repr=False)
    first_stage: int | None = None


def load_checkpoint(
    path: Path,
    *,
    architecture: str | None = None,
    prefix: str | None = None,
    maxpool: bool | None = None,
    stem: str | None = None,
    preprocess: ImagePreprocess | None = None,
) -> tuple[Encoder, CheckpointReport]:
    """Return the ResNet in a published checkpoint, in evaluation mode on the CPU, and an account of every key.

    Args:
        path: `.safetensors`, or a file of `torch.save` that loads without running code.
        architecture: torchvision's name, such as "resnet50"; by default the tensors tell.
        prefix: what stands before the backbone's names, where a file holds several backbones.
        maxpool: keep the first max-pool or leave it out; by default as the table above says.
        stem: first convolution, one of `libraries.STEMS`; by default as the tensors and the format tell.
        preprocess: by default 224 pixels of a crop of 0.875 behind a 7×7 stem, 32 pixels behind a 3×3 one,
            normalised as the table above says.

    Raises:
        EncoderError: the file is damaged, would run code, or holds no whole ResNet of torchvision's.
        UsageError: an argument that fits no such network.
    """
    if architecture is not None and architecture not in RESNETS:
        raise UsageError(f"architecture must be one of {', '.join(RESNETS)}, not {architecture!r:.80}")
    file = read_state_dict(Path(path))
    found = _find_backbones(file.tensors)
    backbone = _choose(found, file, prefix)
    shapes = {name: tuple(file.tensors[key].shape) for name, key in backbone.names.items()}
    name = _infer(shapes, file.path)
    if architecture not in (None, name):
        raise EncoderError(f"{path} holds a {name}, not the {architecture} that was asked for")
    layout, normalised = _recognise(file, backbone)
    channels, small = shapes["conv1.weight"][1], shapes["conv1.weight"][2] == 3
    if maxpool is None:
        maxpool = not small and backbone.first_stage != 3
    if stem is None:
        stem = ("cifar-padded" if layout == "solo-learn" else "cifar") if small else "imagenet"
    if preprocess is None:
        preprocess = _default_preprocess(channels, small=small, normalised=normalised)
    if preprocess.channels != channels:
        raise UsageError(f"preprocess gives {preprocess.channels} channels, but the network in {path} takes {channels}")
    description = {"backbone": f"torchvision:{name}", "channels": channels, "maxpool": maxpool, "stem": stem}
    module, dim = build(description, seed=0)
    copies = {other.names[n] for other in found for n in module.state_dict() if n in other.names}
    report = _fill(module, file, backbone, layout, copies=copies, maxpool=maxpool)
    record = {"checkpoint": report.to_json()}
    return Encoder(module.eval(), preprocess, dim, description, str(path), record), report


def load_into(module: nn.Module, file: StateDict, *, description: str, prefix: str | None = None) -> CheckpointReport:
    """Fill a headless network of any library from a state dict in that library's own naming, in place.

    Names that timm itself translates when it loads such a network (OpenCLIP's, DINOv2's) are translated by timm, and
    positions of another grid are interpolated by it.

    Args:
        module: the network; what stands before all of its names in the file is found and taken off.
        file: what was read.
        description: what the network is, for messages.
        prefix: what stands before the network's names, where the file holds several networks.

    Raises:
        EncoderError: the file does not fit the network.
    """
    try:
        return _load_named(module, file, description, prefix)
    except EncoderError:
        translated = _translated(module, file, prefix)
        if translated is None:
            raise
        try:
            return _load_named(module, translated, description, None)
        except EncoderError:
            pass
        raise


def checkpoint_names(record: dict[str, Any], network: Collection[str]) -> dict[str, str]:
    """Return a network's names of weights → those of the checkpoint that it was read from.

    Args:
        record: `CheckpointReport.to_json`; empty for a network that came from none.
        network: Names in the network.
    """
    prefix, renamed = record.get("prefix", ""), record.get("renamed", {})
    return {name: renamed.get(name, prefix + name) for name in network}


def checkpoint_heads(record: dict[str, Any]) -> dict[str, Tensor]:
    """Return the heads that stand beside the network in its checkpoint, by name; none where the file is gone.

    They are needed to load the file as before. Other networks in it, such as a momentum copy, are not marked and are
    no part of what is handed on.
    """
    path, prefix = Path(record.get("path") or ""), record.get("prefix", "")
    wanted = [
        name
        for name in record.get("dropped", ())
        if name.startswith(prefix)
        and not _MOMENTUM.search(name)
        and not _HEADS.isdisjoint(name.removeprefix(prefix).split("."))
    ]
    if not wanted or not path.is_file():
        return {}
    try:
        tensors = read_state_dict(path).tensors
    except EncoderError:
        return {}
    return {name: tensors[name] for name in wanted if name in tensors}


def averages(module: nn.Module, file: StateDict) -> bool:
    """Return whether a file is of a network that pools by the mean where `module` takes the class token.

    MAE's fine-tuned vision transformers do: they have a norm behind the pooling (`fc_norm`) and none before it.
    """
    own = module.state_dict()
    if "norm.weight" not in own or "fc_norm.weight" in own:
        return False
    ends = [name.removesuffix("fc_norm.weight") for name in file.tensors if name.endswith("fc_norm.weight")]
    return any(_is_prefix(end) and f"{end}norm.weight" not in file.tensors for end in ends)


def other_positions(module: nn.Module, file: StateDict) -> bool:
    """Return whether a file holds positions (`pos_embed`) of another grid than the network's."""
    own = module.state_dict().get("pos_embed")
    shapes = {tensor.shape for name, tensor in file.tensors.items() if name.rpartition(".")[2] == "pos_embed"}
    return own is not None and bool(shapes) and own.shape not in shapes


def _load_named(module: nn.Module, file: StateDict, description: str, prefix: str | None) -> CheckpointReport:
    wanted = [name for name in module.state_dict() if not name.endswith(_COUNTER)]
    ends = [key.removesuffix(wanted[0]) for key in file.tensors if key.endswith(wanted[0])]
    prefixes = [end for end in ends if _is_prefix(end)]
    if prefix is not None:
        chosen = prefix.rstrip(".") + "." if prefix.rstrip(".") else ""
    else:
        # The one that covers most; of equals a teacher, then the trained one, not its momentum copy.
        covers = {p: sum(p + name in file.tensors for name in wanted) for p in prefixes}
        order = sorted(prefixes, key=lambda p: (-covers[p], _rank(p, prefixes), len(p)))
        chosen = order[0] if order else ""
    if lacks := [chosen + name for name in wanted if chosen + name not in file.tensors]:
        raise EncoderError(
            f"{file.path} is not a state dict of {description}: "
            f"it lacks {len(lacks)} of its {len(wanted)} weights, first {lacks[0]}"
        )
    names = {key.removeprefix(chosen): key for key in file.tensors if key.startswith(chosen)}
    copies = {p + name for p in prefixes if p != chosen for name in wanted if p + name in file.tensors}
    layout = "moco" if _MOCO.search(chosen) else "backbone" if chosen else "plain"
    return _fill(module, file, _Backbone(chosen, names), layout, copies=copies)


def _rank(prefix: str, prefixes: Collection[str]) -> int:
    """Return 0 for a teacher beside its student (DINO, DINOv2, lightly), 1 for a trained network, 2 for its copy."""
    if "teacher" in prefix and prefix.replace("teacher", "student") in prefixes:
        return 0
    return 2 if _MOMENTUM.search(prefix) else 1


def _translated(module: nn.Module, file: StateDict, prefix: str | None) -> StateDict | None:
    """Return the state dict as timm translates it for a network of its own; None where it does not."""
    source = sys.modules.get(type(module).__module__)
    translate = getattr(source, "checkpoint_filter_fn", None)
    if translate is None or not type(module).__module__.startswith("timm."):
        return None
    ends = {name.removesuffix(end) for name in file.tensors for end in _FIRST if name.endswith(end)}
    prefixes = [end for end in ends if _is_prefix(end)] if prefix is None else [prefix.rstrip(".") + "."]
    for start in sorted(prefixes, key=lambda p: (_rank(p, prefixes), len(p), p)):
        inside = {k.removeprefix(start): v for k, v in file.tensors.items() if k.startswith(start)}
        try:
            found = translate(dict(inside), module)
        except Exception:  # noqa: S112 - of a file of another network it raises anything
            continue
        tensors = {k: v for k, v in found.items() if isinstance(k, str) and is_plain(v)}
        if all(name in tensors for name in module.state_dict() if not name.endswith(_COUNTER)):
            kept = {tensor.data_ptr() for tensor in tensors.values()}
            aside = tuple(name for name, tensor in file.tensors.items() if tensor.data_ptr() not in kept)
            return StateDict(file.path, file.container, tensors, (*file.aside, *aside))
    return None


def _is_prefix(text: str) -> bool:
    return text == "" or text.endswith(".")


def _find_backbones(tensors: Mapping[str, Tensor]) -> list[_Backbone]:
    """Every place where a ResNet begins, in the order of the file."""
    found = []
    for key, tensor in tensors.items():
        if tensor.dim() != 4:
            continue
        if key.endswith("conv1.weight"):
            prefix = key.removesuffix("conv1.weight")
            if _is_prefix(prefix) and f"{prefix}layer1.0.conv1.weight" in tensors:
                found.append(_Backbone(prefix, _renamed(tensors, prefix, {})))
        if key.endswith("0.weight"):
            prefix = key.removesuffix("0.weight")
            # Before layer1 stand a convolution, a norm, mostly an activation, and often a max-pool.
            for first in (4, 3, 2):
                stages = range(first, first + 4)
                if _is_prefix(prefix) and all(f"{prefix}{i}.0.conv1.weight" in tensors for i in stages):
                    numbers = {"0": "conv1", "1": "bn1", **{str(i): f"layer{i - first + 1}" for i in stages}}
                    # After the stages come a pooling and whatever heads there are.
                    numbers |= {str(i): f"fc.{i}" for i in range(first + 4, first + 12)}
                    found.append(_Backbone(prefix, _renamed(tensors, prefix, numbers), first))
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


def _choose(found: list[_Backbone], file: StateDict, prefix: str | None) -> _Backbone:
    """Return the one backbone that was trained. Copies under two names count once."""
    if prefix is not None:
        chosen = [b for b in found if b.prefix.removesuffix(".") == prefix.removesuffix(".")]
    else:
        ranks = [_rank(b.prefix, [other.prefix for other in found]) for b in found]
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


def _same(one: _Backbone, other: _Backbone, tensors: Mapping[str, Tensor]) -> bool:
    """Whether two backbones are copies of each other."""
    names = [n for n in one.names if n.partition(".")[0] in _STAGES]
    pairs = [(tensors[one.names[n]], tensors.get(other.names.get(n, ""))) for n in names]
    return all(b is not None and a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def _infer(shapes: Mapping[str, tuple[int, ...]], path: Path) -> str:
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


def _recognise(file: StateDict, backbone: _Backbone) -> tuple[str, bool]:
    """Format, and whether its inputs were normalised: see the table above."""
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


def _default_preprocess(channels: int, *, small: bool, normalised: bool) -> ImagePreprocess:
    size, crop = (32, None) if small else (224, 0.875)
    mean, std = (0.0,) * channels, (1.0,) * channels
    if channels == 3 and normalised:
        mean, std = CIFAR10 if small else IMAGENET
    return ImagePreprocess(size, size, channels, mean, std, crop)


def _fill(
    module: nn.Module,
    file: StateDict,
    backbone: _Backbone,
    layout: str,
    *,
    copies: Collection[str] = (),
    maxpool: bool | None = None,
) -> CheckpointReport:
    """Load the backbone into the module and account for every key of the file."""
    wanted, names = module.state_dict(), backbone.names
    missing = tuple(name for name in wanted if name not in names)
    if lacks := [name for name in missing if not name.endswith(_COUNTER)]:
        raise EncoderError(f"{file.path} lacks {len(lacks)} weights of the network, first {backbone.prefix}{lacks[0]}")
    state = {n: _checked(file, names[n], place) for n, place in wanted.items() if n in names}
    kept = {names[name] for name in state}
    own = {name.partition(".")[0] for name in wanted}
    inside = {key: name for name, key in names.items()}
    dropped, unexpected = [], []
    for key in (key for key in file.tensors if key not in kept):
        name = inside.get(key, key)
        if key in copies or _MOMENTUM.search(key) or not _HEADS.isdisjoint(name.split(".")):
            dropped.append(key)
        elif key in inside and name.partition(".")[0] in own:
            raise EncoderError(f"{file.path} holds another network: {key} has no place in this one")
        else:
            unexpected.append(key)
    module.load_state_dict(state, strict=False)
    report = CheckpointReport(
        path=str(file.path),
        format=layout,
        container=file.container,
        prefix=backbone.prefix,
        kept=tuple(sorted(kept)),
        dropped=tuple(dropped),
        unexpected=tuple(unexpected),
        aside=file.aside,
        missing=missing,
        maxpool=maxpool,
        renamed={name: names[name] for name in state if names[name] != backbone.prefix + name},
    )
    _tell(report)
    return report


def _checked(file: StateDict, key: str, place: Tensor) -> Tensor:
    """Return a tensor of the file as the network's weight: of its shape, finite, in its type."""
    tensor = file.tensors[key]
    if tensor.shape != place.shape:
        raise EncoderError(f"{file.path}: {key} has shape {tuple(tensor.shape)}, not {tuple(place.shape)}")
    if not bool(tensor.isfinite().all()):
        raise EncoderError(f"{file.path}: {key} is not finite")
    return tensor.to(place.dtype)


def _tell(report: CheckpointReport) -> None:
    pool = {None: "", True: ", first max-pool kept", False: ", first max-pool removed"}[report.maxpool]
    _log.info(
        "%s: format %s, prefix %r, %d tensors kept%s",
        report.path,
        report.format,
        report.prefix,
        len(report.kept),
        pool,
    )
    for what in ("dropped", "aside", "missing"):
        if names := getattr(report, what):
            _log.info("%s: %d %s: %s", report.path, len(names), what, ", ".join(names))
    if report.unexpected:
        _log.warning(
            "%s: %d tensors are of no known kind and were left out: %s",
            report.path,
            len(report.unexpected),
            ", ".join(report.unexpected),
        )
