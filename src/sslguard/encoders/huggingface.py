"""Encoders of texts from folders that transformers or sentence-transformers wrote: read offline, no code run.

Weights are safetensors alone. `transformer` builds the network of a configuration.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sslguard.encoders.base import Encoder
from sslguard.encoders.files import read_tensors
from sslguard.encoders.folder import check_weights
from sslguard.encoders.names import POOLINGS, Pooling
from sslguard.encoders.rebuild import build
from sslguard.encoders.text import TextModule, TextPreprocess, parse_tokenizer, read_tokenizer
from sslguard.encoders.transformer import MAX_SIZE, checked_config
from sslguard.errors import EncoderError, MissingExtraError, UsageError

WEIGHTS = "model.safetensors"
_MAX_JSON = 1 << 20  # bytes
_DEFAULT_LENGTH = 512  # tokens
# These count positions from behind the filler's id.
_OFFSET = ("camembert", "mpnet", "roberta", "xlm-roberta")
_POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


def read_folder(folder: Path, *, pooling: Pooling | None, unit: bool | None, max_length: int | None) -> Encoder:
    """Return the encoder in a folder of `save_pretrained`, on the CPU and in evaluation mode.

    Pooling, scaling and length are what sentence-transformers' files say where they are there; else the mean of the
    tokens, not scaled, and the tokenizer's length, 512 tokens at most. Prompts that such files name are not put on.

    Args:
        folder: The folder.
        pooling: What to pool by instead; None for what the files say, here and below.
        unit: Whether to scale embeddings to length 1 instead.
        max_length: Tokens of a text at most, instead.

    Raises:
        EncoderError: a file is missing or damaged, or names what is not known here.
        UsageError: max_length is more than the model has positions.
    """
    stated = _stated(folder, pooled=pooling is not None)
    inner = folder / stated.path
    config = _json(inner / "config.json")
    if config is None:
        raise EncoderError(f"{inner} holds no config.json: give a folder that save_pretrained wrote")
    chosen = pooling or stated.pooling
    try:
        architecture = {
            "backbone": "hf",
            "config": checked_config(config),
            "pooling": chosen,
            "unit": stated.unit if unit is None else unit,
        }
        module, dim = build(architecture, seed=0)
    except MissingExtraError:
        raise
    except UsageError as error:
        raise EncoderError(f"{inner / 'config.json'}: {error}") from error
    assert isinstance(module, TextModule)
    left_out = _load_weights(inner, module.model)
    preprocess = _preprocess(inner, module.model.config, stated, max_length)
    return Encoder(module.eval(), preprocess, dim, architecture, "", {"weights_left_out": left_out})


@dataclass(frozen=True)
class _Stated:
    """What sentence-transformers' files say: where the transformer lies, and what follows it."""

    path: str = ""
    pooling: Pooling = "mean"
    unit: bool = False
    max_length: int | None = None
    lowercase: bool = False


def _stated(folder: Path, *, pooled: bool) -> _Stated:
    """Read `modules.json` and what it names. `pooled`: the pooling is chosen already."""
    path, unit = "", False
    pooling: Pooling = "mean"
    for name, place in _modules(folder):
        if name == "Transformer":
            path = place
        elif name == "Pooling":
            pooling = pooling if pooled else _pooling(folder / place / "config.json")
        elif name == "Normalize":
            unit = True
        else:
            raise EncoderError(
                f"{folder / 'modules.json'} names a {name!r:.80}: only Transformer, Pooling and Normalize are known"
            )
    settings = _json(folder / path / "sentence_bert_config.json") or {}
    length = settings.get("max_seq_length")
    whole = isinstance(length, int) and not isinstance(length, bool) and length > 0
    return _Stated(path, pooling, unit, length if whole else None, settings.get("do_lower_case") is True)


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Class and subfolder of each module; none where there is no `modules.json`."""
    path = folder / "modules.json"
    listed = _json(path, kind=list) or []
    found = []
    for module in listed:
        if not isinstance(module, dict) or not all(isinstance(module.get(k), str) for k in ("type", "path")):
            raise EncoderError(f"{path} must list modules with a type and a path, not {module!r:.80}")
        if "/" in module["path"] or "\\" in module["path"] or module["path"] == "..":
            raise EncoderError(f"{path} names a folder outside its own: {module['path']!r:.80}")
        found.append((module["type"].rpartition(".")[2], module["path"]))
    return found


def _pooling(path: Path) -> Pooling:
    config = _json(path) or {}
    if (named := config.get("pooling_mode")) in POOLINGS:
        return named
    flags = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    if len(flags) != 1 or flags[0] not in _POOLING_FLAGS:
        raise EncoderError(
            f"{path} pools by {', '.join(flags) or named or 'nothing'}: choose one that is known here with "
            f"@{', @'.join(POOLINGS)}"
        )
    return _POOLING_FLAGS[flags[0]]


def _preprocess(folder: Path, config: Any, stated: _Stated, asked: int | None) -> TextPreprocess:
    pad = getattr(config, "pad_token_id", None)
    pad = pad if isinstance(pad, int) else 0
    positions = config.max_position_embeddings - (pad + 1 if config.model_type in _OFFSET else 0)
    if asked is not None and asked > positions:
        raise UsageError(f"{folder} has positions for {positions} tokens, not {asked}")
    length = stated.max_length or (_json(folder / "tokenizer_config.json") or {}).get("model_max_length")
    # A tokenizer without a length of its own says 10³⁰.
    usual = length if isinstance(length, int) and 0 < length < MAX_SIZE else _DEFAULT_LENGTH
    try:
        return TextPreprocess(_tokenizer(folder, stated.lowercase), asked or min(usual, positions), pad)
    except MissingExtraError:
        raise
    except UsageError as error:
        raise EncoderError(f"{folder}: {error}") from error


def _tokenizer(folder: Path, lowercase: bool) -> str:
    content = read_tokenizer(folder)
    if not lowercase:
        return content
    from tokenizers import normalizers

    tokenizer = parse_tokenizer(content)
    own = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return tokenizer.to_str()


def _load_weights(folder: Path, model: Any) -> list[str]:
    """Load a folder's weights into `model`; return the names of those in the file that belong to other heads."""
    path = folder / WEIGHTS
    if not path.is_file():
        others = sorted(file.name for file in folder.glob("*") if file.suffix in (".bin", ".h5", ".pt", ".msgpack"))
        shards = sorted(file.name for file in folder.glob("model-*-of-*.safetensors"))
        reason = f"; {', '.join([*others, *shards][:3])} is not read" if others or shards else ""
        raise EncoderError(f"{folder} holds no {WEIGHTS}{reason}: write it with save_pretrained, in one file")
    stored = read_tensors(path)
    prefix = f"{model.base_model_prefix}."
    inside = {name: name.removeprefix(prefix) for name in stored if name.startswith(prefix)}
    names = inside or {name: name for name in stored}
    tensors: dict[str, Tensor] = {}
    for name, own in names.items():
        if own.startswith("pooler.") or own.endswith(("position_ids", "token_type_ids")):
            continue
        # Before 2018 was over, layer norms had other names.
        own = own.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        tensor = stored[name]
        tensors[own] = tensor.float() if tensor.is_floating_point() else tensor
        if not bool(tensors[own].isfinite().all()):
            raise EncoderError(f"{path}: weight {name} is not finite")
    try:
        check_weights(model, tensors, "float32")
    except EncoderError as error:
        raise EncoderError(f"{path}: {error}") from error
    model.load_state_dict(tensors)
    used = {name for name, own in names.items() if not own.startswith("pooler.")}
    return sorted(name for name in stored if name not in used)


def _json(path: Path, *, kind: type = dict) -> Any:
    """Return the JSON in a file, which must be of `kind`; None where there is no such file."""
    try:
        if not path.is_file():
            return None
        if (size := path.stat().st_size) > _MAX_JSON:
            raise EncoderError(f"{path} has {size} bytes, more than the {_MAX_JSON} that are read")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, kind):
        raise EncoderError(f"{path} must hold a JSON {kind.__name__}, not a {type(content).__name__}")
    return content
