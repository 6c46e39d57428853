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

from collections.abc import Callable
from dataclasses import replace
from importlib.resources import as_file
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch, Data
from sslguard.data.own import own_data
from sslguard.data.testbed import CANVAS
from sslguard.encoders import names, vision
from sslguard.encoders.base import Encoder, evaluating
from sslguard.encoders.folder import load_folder
from sslguard.encoders.names import LITE0, MINILM, PACKAGES, POOLINGS, Options
from sslguard.encoders.own import check_built, confirm, own_encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.pretrained import read_json
from sslguard.encoders.published import from_file, from_folder, from_timm, from_torchvision, lite0, preprocessed
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
    architecture: str, *, seed: int | Secret, max_length: int = HashedWords.max_length, linear: int | None = None
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
    return from_file(Path(name), None, options)


def _from_shipped(name: str, options: Options) -> Encoder:  # noqa: ARG001 - a shipped encoder takes none
    with as_file(names.shipped_folder() / name) as folder:
        return load_folder(folder)


def _from_random(name: str, options: Options) -> Encoder:
    architecture, _, digits = name.partition(":")
    seed = int(digits or 0)
    if architecture in NETWORKS:
        words = new_text_encoder(architecture, seed=seed, max_length=options.size or HashedWords.max_length)
        return replace(words, module=words.module.eval(), record={"seed": seed})
    description = {"backbone": architecture, "channels": 1}
    module, dim = build(description, seed=seed)
    preprocess = preprocessed(ImagePreprocess(CANVAS, CANVAS, 1, (0.5,), (0.5,)), options)
    return Encoder(module.eval(), preprocess, dim, description, "", {"seed": seed})


def _from_package(name: str, options: Options) -> Encoder:
    return lite0(options) if name == LITE0 else _minilm(options)


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
        return replace(encoder, preprocess=preprocessed(encoder.preprocess, options))
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
    "timm": from_timm,
    "torchvision": from_torchvision,
    "package": _from_package,
    "hf": _from_transformers,
    "local-dir": from_folder,
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
