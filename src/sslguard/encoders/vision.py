"""Encoders of images of the transformers library: from a configuration, or from a folder that it wrote.

A description is {"backbone": "hf-vision", "config": …, "pooling": "pooler", "unit": false}: the fields of a
transformers configuration that shape its model, what an embedding is made of (`names.IMAGE_POOLINGS`), and whether it
is scaled to length 1. A model is one of transformers' own classes; no code of a folder is run.

What an embedding is made of, where nobody says it:

====================================  ===============================================================================
CLIP, whole or with its projection    `projection`: what `get_image_features` returns
CLIP's and SigLIP's vision towers,    `pooler`: what the model calls `pooler_output`
DINOv2, DINOv3, ConvNeXt, ResNet,
RegNet, Swin
ViT, DeiT                             `pooler` where the file holds weights for it, else `cls`
ViT-MAE                               `mean` of the patches, none of them masked
ViT-MSN                               `cls`
====================================  ===============================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from sslguard.encoders.base import Encoder
from sslguard.encoders.pretrained import read_json, read_weights
from sslguard.encoders.processors import pair, read_processor
from sslguard.encoders.size import WithoutMemory, check_size
from sslguard.errors import EncoderError, MissingExtraError, UsageError, first_line, required_by


@dataclass(frozen=True)
class _Kind:
    """What must be known of a type of models beyond its configuration.

    Attributes:
        model: transformers' class.
        poolings: how it may be pooled, the usual way first.
        processor: the image processor that it has where a folder names none.
        before: tokens before the patches, registers not counted.
        interpolates: whether it takes `interpolate_pos_encoding`, for images of another size.
    """

    model: str
    poolings: tuple[str, ...]
    processor: str = "ViT"
    before: int = 1
    interpolates: bool = False


_MAPS = ("pooler", "mean")
_TOKENS = ("pooler", "cls", "mean")
_KINDS = MappingProxyType(
    {
        "clip_vision_model": _Kind("CLIPVisionModel", ("projection", *_TOKENS), "CLIP", interpolates=True),
        "convnext": _Kind("ConvNextModel", _MAPS, "ConvNext"),
        "convnextv2": _Kind("ConvNextV2Model", _MAPS, "ConvNext"),
        "deit": _Kind("DeiTModel", ("cls", "pooler", "mean"), "DeiT", before=2, interpolates=True),
        "dinov2": _Kind("Dinov2Model", _TOKENS, "Bit"),
        "dinov2_with_registers": _Kind("Dinov2WithRegistersModel", _TOKENS, "Bit"),
        "dinov3_convnext": _Kind("DINOv3ConvNextModel", _TOKENS, "DINOv3ViT"),
        "dinov3_vit": _Kind("DINOv3ViTModel", _TOKENS, "DINOv3ViT"),
        "regnet": _Kind("RegNetModel", _MAPS, "ConvNext"),
        "resnet": _Kind("ResNetModel", _MAPS, "ConvNext"),
        "siglip_vision_model": _Kind("SiglipVisionModel", ("pooler", "mean"), "Siglip", before=0, interpolates=True),
        "swin": _Kind("SwinModel", _MAPS, before=0, interpolates=True),
        "swinv2": _Kind("Swinv2Model", _MAPS, before=0, interpolates=True),
        "vit": _Kind("ViTModel", ("cls", "pooler", "mean"), interpolates=True),
        "vit_mae": _Kind("ViTMAEModel", ("mean", "cls"), interpolates=True),
        "vit_msn": _Kind("ViTMSNModel", ("cls", "mean"), interpolates=True),
    }
)
_WHOLE = MappingProxyType({"clip": "clip_vision_model", "siglip": "siglip_vision_model"})
MODEL_TYPES = frozenset({*_KINDS, *_WHOLE})
"""Values of `model_type` in a folder's config.json that are encoders of images."""

_PROJECTED = "CLIPVisionModelWithProjection"
_MAX_SIZE = 1 << 20  # of any number in a configuration
_MAX_COUNT = 256  # of layers, heads, groups, registers
_MAX_LIST = 64
_MAX_PATCHES = 1 << 14  # of one image: attention takes the square of it
_REFUSED = {"auto_map": "code of its own, which is never run", "quantization_config": "weights of another format"}
_UNUSED = {"backbone_config", "out_features", "out_indices", "stage_names", "mask_ratio", "encoder_stride"}


class VisionModule(nn.Module):
    """A model of transformers and what its embedding is made of: normalised images (n, C, H, W) → (n, width)."""

    def __init__(self, model: Any, kind: str, pooling: str, unit: bool) -> None:
        super().__init__()
        self.model, self.kind, self.pooling, self.unit = model, kind, pooling, unit

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (n, width) of normalised images (n, C, H, W).

        Raises:
            ValueError: the images have too many patches.
        """
        kind, config = _KINDS[self.kind], self.model.config
        height, width = images.shape[2:]
        patch = min(pair(getattr(config, "patch_size", 4)))
        if (patches := (height // patch) * (width // patch)) > _MAX_PATCHES:
            raise ValueError(f"an image may have {_MAX_PATCHES} patches, not {patches}: choose a smaller size")
        more: dict[str, Any] = {}
        if kind.interpolates and (height, width) != pair(config.image_size):
            more["interpolate_pos_encoding"] = True
        if self.kind == "vit_mae":  # the order in which it shuffles the patches
            more["noise"] = torch.arange(patches, device=images.device).expand(len(images), -1)
        answers = self.model(pixel_values=images, **more)
        embeddings = self._pooled(answers)
        return nnf.normalize(embeddings, dim=1) if self.unit else embeddings

    def _pooled(self, answers: Any) -> Tensor:
        if self.pooling == "projection":
            return answers.image_embeds
        if self.pooling == "pooler":
            return answers.pooler_output.flatten(1)
        hidden: Tensor = answers.last_hidden_state
        if hidden.dim() == 4:
            return hidden.mean((2, 3))
        if self.pooling == "cls":
            return hidden[:, 0]
        registers = getattr(self.model.config, "num_register_tokens", 0)
        return hidden[:, _KINDS[self.kind].before + registers :].mean(1)


def network(architecture: dict[str, Any]) -> tuple[VisionModule, int]:
    """Return the untrained network of a description and the width of its embedding.

    Raises:
        UsageError: the description has a field out of range or names a model that is not known here.
        MissingExtraError: transformers is not installed.
    """
    described = _Described.read(architecture)
    try:
        model = described.model(described.config, **described.options)
    except UsageError:
        raise
    except Exception as error:  # every model checks its configuration, and raises what it likes
        raise UsageError(f"transformers builds no {described.kind} of this: {first_line(error)}") from error
    return described.module(model), described.width


@dataclass(frozen=True)
class _Described:
    """What a description names: a class of transformers, its configuration, and what is made of its answer."""

    kind: str
    pooling: str
    unit: bool
    model: Any
    config: Any
    options: dict[str, Any]

    @classmethod
    def read(cls, architecture: dict[str, Any]) -> _Described:
        fields = checked_config(architecture.get("config"))
        kind = fields.pop("model_type")
        pooling, unit = architecture.get("pooling"), architecture.get("unit")
        if pooling not in _KINDS[kind].poolings or not isinstance(unit, bool):
            raise UsageError(
                f"pooling of a {kind} must be one of {', '.join(_KINDS[kind].poolings)}, not {pooling!r:.80}, and unit "
                f"true or false, not {unit!r:.80}"
            )
        transformers, configurations = _transformers()
        name = _PROJECTED if pooling == "projection" else _KINDS[kind].model
        if not hasattr(transformers, name):
            raise UsageError(f"this version of transformers has no {name}: install a newer one")
        try:
            config = configurations[kind](**fields)
        except Exception as error:  # every configuration checks itself, and raises what it likes
            raise UsageError(f"transformers takes no such configuration of a {kind}: {first_line(error)}") from error
        if kind == "vit_mae":
            config.mask_ratio = 0.0
        if kind == "siglip_vision_model" and pooling == "pooler" and getattr(config, "vision_use_head", True) is False:
            raise UsageError("this siglip_vision_model has no pooler: choose @mean")
        options = {"add_pooling_layer": pooling == "pooler"} if kind in ("vit", "deit") else {}
        return cls(kind, pooling, unit, getattr(transformers, name), config, options)

    @property
    def width(self) -> int:
        """Return the width of the embedding."""
        if self.pooling == "projection":
            return int(self.config.projection_dim)
        if self.pooling == "pooler" and self.options:
            return int(getattr(self.config, "pooler_output_size", None) or self.config.hidden_size)
        sizes = getattr(self.config, "hidden_sizes", None)
        return int(sizes[-1] if sizes else self.config.hidden_size)

    def module(self, model: Any) -> VisionModule:
        """Return the network around a model of this description."""
        return VisionModule(model, self.kind, self.pooling, self.unit)


def checked_config(config: object) -> dict[str, Any]:
    """Return the fields of a transformers configuration that a vision model is built from, and `model_type`.

    Of a whole model with two towers they are those of the vision tower. Fields of transformers' general options and of
    other heads are left out.

    Raises:
        UsageError: it names code, another format of weights, a model that is not known here or an immense size.
    """
    if not isinstance(config, dict):
        raise UsageError(f"the configuration of a vision model must be a JSON object, not {config!r:.80}")
    for name, what in _REFUSED.items():
        if config.get(name):
            raise UsageError(f"the configuration names {what} ({name}): save the model without it")
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in _WHOLE:
        tower = config.get("vision_config") or {}
        if not isinstance(tower, dict):
            raise UsageError(f"vision_config must be a JSON object, not {tower!r:.80}")
        joint = {"projection_dim": config.get("projection_dim", 512)} if kind == "clip" else {}
        return checked_config({**tower, **joint, "model_type": _WHOLE[kind]})
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UsageError(f"model_type must be one of {', '.join(sorted(MODEL_TYPES))}, not {kind!r:.80}")
    transformers, configurations = _transformers()
    if kind not in configurations:
        raise UsageError(f"this version of transformers knows no {kind}: install a newer one")
    own = configurations[kind]().to_dict().keys() - transformers.PretrainedConfig().to_dict().keys() - _UNUSED
    kept = {name: value for name, value in config.items() if name in own}
    for name, value in kept.items():
        _check_value(name, value)
    return {**kept, "model_type": kind}


def _check_value(name: str, value: object) -> None:
    values = value if isinstance(value, list) else [value]
    if len(values) > _MAX_LIST:
        raise UsageError(f"{name} of a vision model may hold {_MAX_LIST} values, not {len(values)}")
    counts = any(part in name for part in ("num", "layers", "groups", "heads", "depths"))
    most = _MAX_COUNT if counts else _MAX_SIZE
    for one in values:
        if isinstance(one, dict | list) or (isinstance(one, str) and len(one) > _MAX_LIST):
            raise UsageError(f"{name} of a vision model must be a number or a word, not {one!r:.80}")
        if isinstance(one, int | float) and not abs(one) <= most:
            raise UsageError(f"{name} of a vision model may be {most}, not {one!r:.80}")


def read_folder(folder: Path, *, pooling: str | None, unit: bool | None) -> Encoder:
    """Return the encoder of images in a folder of `save_pretrained`, on the CPU and in evaluation mode.

    Args:
        folder: it holds config.json, weights, and the image processor's configuration.
        pooling: what an embedding is made of; None for the model's own convention: see above.
        unit: whether to scale embeddings to length 1; None for no.

    Raises:
        EncoderError: a file is missing or damaged, or names what is not known here.
        UsageError: the model cannot be pooled so.
    """
    path = folder / "config.json"
    try:
        config = read_json(path)
        fields = checked_config(config)
        preprocess = read_processor(folder, fields, _KINDS[fields["model_type"]].processor)
    except UsageError as error:
        raise EncoderError(f"{path}: {error}") from error
    kind = fields["model_type"]
    if pooling is not None and pooling not in _KINDS[kind].poolings:
        raise UsageError(f"a {kind} is pooled by {', '.join(_KINDS[kind].poolings)}, not by {pooling}")
    tensors = read_weights(folder)
    try:
        architecture = {
            "backbone": "hf-vision",
            "config": fields,
            "pooling": pooling or _usual_pooling(fields, tensors),
            "unit": bool(unit),
        }
        stored = sum(tensor.numel() for tensor in tensors.values())
        check_size(lambda: network(architecture)[0], most=stored + _MAX_SIZE)  # a file may lack its mask token
        described = _Described.read(architecture)
        # The description of a network that cannot be built must fail here, not while its weights are put in.
        with WithoutMemory():
            wanted = network(architecture)[0].model.state_dict()
    except MissingExtraError:
        raise
    except UsageError as error:
        raise EncoderError(f"{path}: {error}") from error
    model, left_out = _filled(folder, described, tensors, wanted)
    module = described.module(model).eval()
    return Encoder(module, preprocess, described.width, architecture, "", {"weights_left_out": left_out})


def _usual_pooling(fields: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    kind = fields["model_type"]
    if kind in ("vit", "deit"):
        return "pooler" if any(name.endswith("pooler.dense.weight") for name in tensors) else "cls"
    if kind == "clip_vision_model":
        return "projection" if "visual_projection.weight" in tensors else "pooler"
    if kind == "siglip_vision_model" and fields.get("vision_use_head") is False:
        return "mean"
    return _KINDS[kind].poolings[0]


def _filled(folder: Path, described: _Described, tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> Any:
    """Return the model with the tensors of a file, and the names in the file that are not in it."""
    names = _own_names(tensors, wanted)
    try:
        with quiet():
            model, told = described.model.from_pretrained(
                None,
                config=described.config,
                state_dict={own: tensors[name] for own, name in names.items()},
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below
                trust_remote_code=False,
                **described.options,
            )
    except Exception as error:  # transformers raises what it likes
        raise EncoderError(f"{folder}: the weights do not fit this {described.kind}: {first_line(error)}") from error
    for name, found, right in sorted(told["mismatched_keys"]):
        raise EncoderError(f"{folder}: weight {name:.80} has shape {tuple(found)}, not {tuple(right)}")
    # Masked patches are for training alone.
    missing = sorted(name for name in told["missing_keys"] if not name.endswith("mask_token"))
    if missing:
        raise EncoderError(f"{folder}: {len(missing)} weights are missing, first {missing[0]}")
    unused = {names[own] for own in told["unexpected_keys"] if own in names}
    return model, sorted(name for name in tensors if name not in names.values() or name in unused)


def _own_names(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, str]:
    """Return a network's names of weights → the file's. Of two towers only the vision tower's are there."""
    tower = "vision_model."
    if not any(tower in name for name in tensors):
        return {name: name for name in tensors}
    inside = tower if any(name.startswith(tower) for name in wanted) else ""
    names = {inside + name.partition(tower)[2]: name for name in tensors if tower in name}
    return names | {name: name for name in tensors if name.startswith("visual_projection.") and name in wanted}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and reports off the terminal inside the block."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _transformers() -> tuple[Any, Any]:
    """Return the library and its configurations by model type."""
    with required_by("an encoder of images from transformers", "text"):
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    return transformers, CONFIG_MAPPING
