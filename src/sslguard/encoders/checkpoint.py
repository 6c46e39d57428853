"""State dicts as SimCLR, MoCo v2, BYOL and their kin publish them → an `Encoder`, every key accounted for.

Of a teacher and its student, as DINO, DINOv2 and lightly train them, the teacher is taken.

A ResNet is found by `resnets`, another network by the names that its library gives it.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sslguard.encoders.base import Encoder
from sslguard.encoders.files import StateDict, is_plain, read_state_dict
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.rebuild import build
from sslguard.encoders.resnets import (
    HEADS,
    MOMENTUM,
    RESNETS,
    Backbone,
    choose,
    default_preprocess,
    find_backbones,
    infer,
    is_prefix,
    rank,
    recognise,
)
from sslguard.errors import EncoderError, UsageError

_log = logging.getLogger(__name__)


_MOCO = re.compile(r"(^|\.)(encoder_q|base_encoder|momentum_encoder)\.")
# What stands at the beginning of a vision transformer, in the names that timm translates.
_FIRST = ("patch_embed.proj.weight", "visual.class_embedding", "visual.trunk.patch_embed.proj.weight")
_COUNTER = "num_batches_tracked"


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
    found = find_backbones(file.tensors)
    backbone = choose(found, file, prefix)
    shapes = {name: tuple(file.tensors[key].shape) for name, key in backbone.names.items()}
    name = infer(shapes, file.path)
    if architecture not in (None, name):
        raise EncoderError(f"{path} holds a {name}, not the {architecture} that was asked for")
    layout, normalised = recognise(file, backbone)
    channels, small = shapes["conv1.weight"][1], shapes["conv1.weight"][2] == 3
    if maxpool is None:
        maxpool = not small and backbone.first_stage != 3
    if stem is None:
        stem = ("cifar-padded" if layout == "solo-learn" else "cifar") if small else "imagenet"
    if preprocess is None:
        preprocess = default_preprocess(channels, small=small, normalised=normalised)
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
        and not MOMENTUM.search(name)
        and not HEADS.isdisjoint(name.removeprefix(prefix).split("."))
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
    return any(is_prefix(end) and f"{end}norm.weight" not in file.tensors for end in ends)


def other_positions(module: nn.Module, file: StateDict) -> bool:
    """Return whether a file holds positions (`pos_embed`) of another grid than the network's."""
    own = module.state_dict().get("pos_embed")
    shapes = {tensor.shape for name, tensor in file.tensors.items() if name.rpartition(".")[2] == "pos_embed"}
    return own is not None and bool(shapes) and own.shape not in shapes


def _load_named(module: nn.Module, file: StateDict, description: str, prefix: str | None) -> CheckpointReport:
    wanted = [name for name in module.state_dict() if not name.endswith(_COUNTER)]
    ends = [key.removesuffix(wanted[0]) for key in file.tensors if key.endswith(wanted[0])]
    prefixes = [end for end in ends if is_prefix(end)]
    if prefix is not None:
        chosen = prefix.rstrip(".") + "." if prefix.rstrip(".") else ""
    else:
        # The one that covers most; of equals a teacher, then the trained one, not its momentum copy.
        covers = {p: sum(p + name in file.tensors for name in wanted) for p in prefixes}
        order = sorted(prefixes, key=lambda p: (-covers[p], rank(p, prefixes), len(p)))
        chosen = order[0] if order else ""
    if lacks := [chosen + name for name in wanted if chosen + name not in file.tensors]:
        raise EncoderError(
            f"{file.path} is not a state dict of {description}: "
            f"it lacks {len(lacks)} of its {len(wanted)} weights, first {lacks[0]}"
        )
    names = {key.removeprefix(chosen): key for key in file.tensors if key.startswith(chosen)}
    copies = {p + name for p in prefixes if p != chosen for name in wanted if p + name in file.tensors}
    layout = "moco" if _MOCO.search(chosen) else "backbone" if chosen else "plain"
    return _fill(module, file, Backbone(chosen, names), layout, copies=copies)


def _translated(module: nn.Module, file: StateDict, prefix: str | None) -> StateDict | None:
    """Return the state dict as timm translates it for a network of its own; None where it does not."""
    source = sys.modules.get(type(module).__module__)
    translate = getattr(source, "checkpoint_filter_fn", None)
    if translate is None or not type(module).__module__.startswith("timm."):
        return None
    ends = {name.removesuffix(end) for name in file.tensors for end in _FIRST if name.endswith(end)}
    prefixes = [end for end in ends if is_prefix(end)] if prefix is None else [prefix.rstrip(".") + "."]
    for start in sorted(prefixes, key=lambda p: (rank(p, prefixes), len(p), p)):
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


def _fill(
    module: nn.Module,
    file: StateDict,
    backbone: Backbone,
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
        if key in copies or MOMENTUM.search(key) or not HEADS.isdisjoint(name.split(".")):
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
