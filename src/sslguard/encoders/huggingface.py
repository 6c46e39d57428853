"""Encoders of texts in folders as transformers and sentence-transformers have them: read offline, no code run; written.

`transformer` builds the network of a configuration, `sentences` what sentence-transformers puts behind it,
`pretrained` reads the weights, `tokenizers` the tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sslguard.encoders.base import Encoder
from sslguard.encoders.names import POOLINGS
from sslguard.encoders.pretrained import read_json, read_weights, stream_weights
from sslguard.encoders.rebuild import build
from sslguard.encoders.sentences import Behind, StaticModule
from sslguard.encoders.text import TOKENIZER, TextModule, TextPreprocess, parse_tokenizer
from sslguard.encoders.tokenizer import folder_tokenizer, read_tokenizer_config
from sslguard.encoders.transformer import CLIP, MAX_SIZE, checked_config
from sslguard.encoders.vision import quiet
from sslguard.encoders.words import MAX_LENGTH
from sslguard.errors import EncoderError, MissingExtraError, UsageError

_DEFAULT_LENGTH = 512  # tokens, of a tokenizer without a length in a folder of transformers alone
_PACKAGE = "sentence_transformers."
_SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Fields of a Pooling, in the order in which it joins vectors.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "meansqrt",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_THEIRS: dict[str, str] = {**dict(zip(POOLINGS, POOLINGS, strict=True)), "mean_sqrt_len_tokens": "meansqrt"}
_OTHERS = ("decoder.", "lm_head.", "vision_model.", "visual_projection.", "logit_scale", "score.")
_NOT_READ = ("position_ids", "token_type_ids", "rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


def read_folder(folder: Path, *, pooling: str | None, unit: bool | None, max_length: int | None) -> Encoder:
    """Return the encoder in a folder of `save_pretrained`, on the CPU and in evaluation mode.

    Pooling, layers behind it, prompt and length are what sentence-transformers' files say where they are there; else
    the mean of the tokens (of CLIP, its text features), not scaled, and the tokenizer's length, 512 where it has none.

    Args:
        folder: The folder.
        pooling: What to pool by instead; None for what the files say, here and below.
        unit: Whether to scale embeddings to length 1 instead.
        max_length: Tokens of a text at most, instead.

    Raises:
        EncoderError: a file is missing or damaged, or names what is not known here.
        UsageError: max_length is more than the model has positions, or a pooling is asked of an encoder without one.
    """
    stated = _stated(folder, chosen=pooling)
    inner = folder / stated.path
    behind: dict[str, Any] = {"unit": stated.unit if unit is None else unit}
    behind |= {"layers": [layer.described for layer in stated.layers]} if stated.layers else {}
    behind |= {} if stated.truncate is None else {"truncate": stated.truncate}
    if stated.static:
        if pooling is not None:
            raise UsageError(f"{folder} holds a StaticEmbedding, which is the mean of its tokens: leave out @{pooling}")
        return _read_static(folder, stated, behind, max_length)
    config = read_json(inner / "config.json")
    if config is None:
        raise EncoderError(f"{inner} holds no config.json: give a folder that save_pretrained wrote")
    try:
        fields = checked_config(config)
        chosen = pooling or stated.pooling or _usual_pooling(config, fields)
        architecture = {"backbone": "hf", "config": fields, "pooling": chosen, **behind}
        module, dim = build(architecture, seed=0)
    except MissingExtraError:
        raise
    except UsageError as error:
        raise EncoderError(f"{inner / 'config.json'}: {error}") from error
    assert isinstance(module, TextModule)
    left_out = _load_weights(inner, module.model)
    _load_layers(module.behind, stated.layers)
    preprocess = _preprocess(inner, config, module, stated, max_length)
    return Encoder(module.eval(), preprocess, dim, architecture, "", {"weights_left_out": left_out})


@dataclass(frozen=True)
class _Layer:
    """A layer behind a pooling: its description, and the folder of its weights."""

    described: dict[str, Any]
    folder: Path | None = None


@dataclass
class _Stated:
    """What sentence-transformers' files say: where the transformer lies, what follows it, what stands before texts."""

    path: str = ""
    static: bool = False
    there: bool = False
    pooling: str | None = None
    layers: list[_Layer] = field(default_factory=list)
    unit: bool = False
    truncate: int | None = None
    prompt: str = ""
    pool_prompt: bool = True
    max_length: int | None = None
    lowercase: bool = False


def _stated(folder: Path, *, chosen: str | None) -> _Stated:
    """Read `modules.json` and what it names. `chosen`: the pooling to take instead of the one that is named."""
    modules = _modules(folder)
    found = _Stated(there=bool(modules))
    kinds = [kind for kind, _ in modules]
    for place, (kind, path) in enumerate(modules):
        where = folder / path
        if place == 0 and kind in ("Transformer", "CLIPModel", "StaticEmbedding"):
            found.path, found.static = path, kind == "StaticEmbedding"
        elif kind == "Pooling" and kinds[:place] == ["Transformer"]:
            config = read_json(where / "config.json") or {}
            found.pooling = chosen or _pooling(where / "config.json", config)
            found.pool_prompt = config.get("include_prompt", True) is not False
        elif place > 0 and kind in ("Dense", "LayerNorm"):
            found.layers.append(_layer(kind, where))
        elif place > 0 and kind == "Normalize":
            found.layers.append(_Layer({"kind": "unit"}))
        elif kind != "Dropout" or place == 0:
            raise EncoderError(
                f"{folder / 'modules.json'} names a {kind!r:.80} in place {place}: known are Transformer with Pooling, "
                "CLIPModel or StaticEmbedding, and behind them Dense, LayerNorm, Normalize and Dropout"
            )
    if kinds[:1] == ["Transformer"] and kinds[1:2] != ["Pooling"] and chosen is None:
        raise EncoderError(f"{folder / 'modules.json'} names no Pooling: choose one with @{', @'.join(POOLINGS)}")
    if found.layers and found.layers[-1].described == {"kind": "unit"}:
        found.layers.pop()
        found.unit = True
    _read_general(folder / "config_sentence_transformers.json", found)
    if not found.static:
        _read_settings(folder / found.path, found)
    return found


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Class and subfolder of each module; none where there is no `modules.json`."""
    path = folder / "modules.json"
    listed = read_json(path, kind=list) or []
    found = []
    for module in listed:
        if not isinstance(module, dict) or not all(isinstance(module.get(k), str) for k in ("type", "path")):
            raise EncoderError(f"{path} must list modules with a type and a path, not {module!r:.80}")
        if "/" in module["path"] or "\\" in module["path"] or module["path"] == "..":
            raise EncoderError(f"{path} names a folder outside its own: {module['path']!r:.80}")
        if not module["type"].startswith(_PACKAGE):
            raise EncoderError(f"{path} names code of its own, which is never run: {module['type']!r:.80}")
        found.append((module["type"].rpartition(".")[2], module["path"]))
    return found


def _pooling(path: Path, config: dict[str, Any]) -> str:
    named = config.get("pooling_mode")
    if named is None:  # a Pooling takes the mean unless it is told not to
        flags = {"pooling_mode_mean_tokens": True} | {k: v for k, v in config.items() if k.startswith("pooling_mode_")}
        asked = [name for name, value in flags.items() if value]
        names = [way for flag, way in _FLAGS.items() if flag in asked]
        unknown = [name for name in asked if name not in _FLAGS]
    else:
        asked = named.split("+") if isinstance(named, str) else named if isinstance(named, list) else [named]
        names = [way for way in _FLAGS.values() if any(_THEIRS.get(one) == way for one in map(str, asked))]
        unknown = [str(one) for one in asked if str(one) not in _THEIRS]
    if unknown or not names:
        raise EncoderError(
            f"{path} pools by {', '.join(unknown)[:80] or 'nothing'}: choose one that is known here with "
            f"@{', @'.join(POOLINGS)}"
        )
    return "+".join(names)


def _layer(kind: str, folder: Path) -> _Layer:
    path = folder / "config.json"
    config = read_json(path) or {}
    if kind == "LayerNorm":
        return _Layer({"kind": "norm"}, folder)
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) not in (None, "sentence_embedding"):
            raise EncoderError(f"{path} works on {config[name]!r:.80}: only layers behind a pooling are known")
    function = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(function, str) or not function.startswith("torch.nn."):
        raise EncoderError(f"{path} names a function that is not torch's, and is never run: {function!r:.80}")
    described = {
        "kind": "dense",
        "in": config.get("in_features"),
        "out": config.get("out_features"),
        "bias": config.get("bias", True),
        "activation": function.rpartition(".")[2],
    }
    return _Layer(described, folder)


def _read_general(path: Path, found: _Stated) -> None:
    """Read what holds for the whole encoder: a cut, and the prompt that stands before every text."""
    general = read_json(path) or {}
    cut, prompts, named = general.get("truncate_dim"), general.get("prompts") or {}, general.get("default_prompt_name")
    if cut is not None and (not isinstance(cut, int) or isinstance(cut, bool) or cut < 1):
        raise EncoderError(f"{path}: truncate_dim must be a whole number above 0, not {cut!r:.80}")
    found.truncate = cut
    if named is None:
        return
    prompt = prompts.get(named) if isinstance(prompts, dict) and isinstance(named, str) else None
    if not isinstance(prompt, str):
        raise EncoderError(f"{path}: the default prompt {named!r:.80} is not a text among its prompts")
    found.prompt = prompt


def _read_settings(folder: Path, found: _Stated) -> None:
    """Read what holds for the transformer: length, lower case, and that it gives vectors of tokens."""
    for name in _SETTINGS:
        settings = read_json(folder / name)
        if settings is not None:
            break
    else:
        return
    task = settings.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise EncoderError(f"{folder / name} is made for {task!r:.80}, and gives no vectors of tokens")
    length = settings.get("max_seq_length")
    whole = isinstance(length, int) and not isinstance(length, bool) and length > 0
    found.max_length, found.lowercase = length if whole else None, settings.get("do_lower_case") is True


def _usual_pooling(config: dict[str, Any], fields: dict[str, Any]) -> str:
    """Return what a model without sentence-transformers' files is pooled by."""
    if fields["model_type"] != CLIP:
        return "mean"
    named = config.get("architectures") or []
    return "pooler" if config.get("model_type") == CLIP and "CLIPTextModel" in named else "projection"


def _read_static(folder: Path, stated: _Stated, behind: dict[str, Any], asked: int | None) -> Encoder:
    """Return an encoder without a network: a vector for each token, and their mean."""
    inner = folder / stated.path
    stored = read_weights(inner)
    table = stored.get("embedding.weight", stored.get("embeddings"))
    if table is None or table.dim() != 2 or len(stored) > 1:
        raise EncoderError(
            f"{inner} must hold one table of vectors, named embedding.weight or embeddings, and nothing more; it holds "
            f"{', '.join(sorted(stored))[:80]}"
        )
    architecture = {"backbone": "static", "vocabulary": len(table), "width": table.shape[1], **behind}
    try:
        module, dim = build(architecture, seed=0)
        assert isinstance(module, StaticModule)
        with torch.no_grad():
            module.words.weight.copy_(table)
        _load_layers(module.behind, stated.layers)
        tokenizer = folder_tokenizer(inner, "", lowercase=False)
        preprocess = TextPreprocess(tokenizer, asked or MAX_LENGTH, 0, stated.prompt, special=False)
    except MissingExtraError:
        raise
    except UsageError as error:
        raise EncoderError(f"{inner}: {error}") from error
    return Encoder(module.eval(), preprocess, dim, architecture, "")


def _preprocess(
    folder: Path, config: dict[str, Any], module: TextModule, stated: _Stated, asked: int | None
) -> TextPreprocess:
    built: Any = module.model.config
    pad = built.pad_token_id if isinstance(getattr(built, "pad_token_id", None), int) else 0
    most = module.positions
    if asked is not None and most is not None and asked > most:
        raise UsageError(f"{folder} has positions for {most} tokens, not {asked}")
    length = stated.max_length or read_tokenizer_config(folder).get("model_max_length")
    # A tokenizer without a length of its own says 10³⁰.
    if isinstance(length, int) and 0 < length < MAX_SIZE:
        usual = length
    else:
        usual = MAX_LENGTH if stated.there else _DEFAULT_LENGTH
    for bound in (most, getattr(built, "max_position_embeddings", None)):
        usual = min(usual, bound) if isinstance(bound, int) and bound > 0 else usual
    try:
        return TextPreprocess(
            folder_tokenizer(folder, str(config.get("model_type")), lowercase=stated.lowercase),
            asked or min(usual, MAX_LENGTH),
            pad,
            stated.prompt,
            stated.pool_prompt or not stated.prompt,
            strip=stated.there,
        )
    except MissingExtraError:
        raise
    except UsageError as error:
        raise EncoderError(f"{folder}: {error}") from error


def write_transformer(encoder: Encoder, module: TextModule, folder: Path) -> None:
    """Write a transformer and its tokenizer as transformers' `save_pretrained` does."""
    assert isinstance(encoder.preprocess, TextPreprocess)
    save_model(module.model, folder)
    _write_tokenizer(encoder.preprocess, folder)


def write_sentences(encoder: Encoder, module: TextModule | StaticModule, folder: Path) -> list[dict[str, Any]]:
    """Write an encoder of texts as sentence-transformers does; return what its modules.json lists.

    Raises:
        UsageError: It is pooled as no module of sentence-transformers pools.
    """
    described, preprocess = encoder.architecture, encoder.preprocess
    assert isinstance(preprocess, TextPreprocess)
    listed: list[dict[str, Any]] = []

    def add(kind: str, content: dict[str, Any] | None = None, weights: dict[str, Tensor] | None = None) -> None:
        place = len(listed)
        path = f"{place}_{kind}" if place else ""
        listed.append({"idx": place, "name": str(place), "path": path, "type": f"{_PACKAGE}models.{kind}"})
        (folder / path).mkdir(exist_ok=True)
        if content is not None:
            _write_json(folder / path / "config.json", content)
        if weights is not None:
            save_file(weights, folder / path / "model.safetensors")

    if isinstance(module, StaticModule):
        add("StaticEmbedding", weights={"embedding.weight": module.words.weight.detach().cpu().contiguous()})
        _write_tokenizer(preprocess, folder)
    else:
        if not set(parts := module.pooling.split("+")) <= set(_FLAGS.values()):
            raise UsageError(f"sentence-transformers has no pooling {module.pooling!r}: choose the format hf")
        add("Transformer")
        write_transformer(encoder, module, folder)
        _write_json(folder / _SETTINGS[0], {"max_seq_length": preprocess.max_length, "do_lower_case": False})
        config: Any = module.model.config
        flags = {flag: way in parts for flag, way in _FLAGS.items()}
        add(
            "Pooling",
            {"word_embedding_dimension": config.hidden_size, **flags, "include_prompt": preprocess.pool_prompt},
        )
    behind = module.behind
    assert isinstance(behind, Behind)
    for layer, said in zip(behind.layers, described.get("layers", []), strict=True):
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in layer.state_dict().items()}
        if said["kind"] == "dense":
            function = type(layer.activation)
            fields = {"in_features": said["in"], "out_features": said["out"], "bias": said["bias"]}
            add("Dense", fields | {"activation_function": f"{function.__module__}.{function.__name__}"}, weights)
        elif said["kind"] == "norm":
            named = {f"norm.{name}": tensor for name, tensor in weights.items()}
            add("LayerNorm", {"dimension": len(weights["bias"])}, named)
        else:
            add("Normalize")
    if behind.unit:
        add("Normalize")
    general: dict[str, Any] = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    if preprocess.prompt:
        general |= {"prompts": {"default": preprocess.prompt}, "default_prompt_name": "default"}
    if behind.truncate is not None:
        general["truncate_dim"] = behind.truncate
    _write_json(folder / "config_sentence_transformers.json", general)
    _write_json(folder / "modules.json", listed)
    return listed


def save_model(model: Any, folder: Path) -> None:
    """Write a model of transformers and its configuration."""
    with quiet():
        model.config._name_or_path = ""
        model.save_pretrained(folder)


def _write_tokenizer(preprocess: TextPreprocess, folder: Path) -> None:
    """Write tokenizer.json and the configuration by which transformers reads it."""
    content = json.loads(preprocess.tokenizer)
    special = {one["id"]: one["content"] for one in content.get("added_tokens") or [] if one.get("special")}
    # The filler is masked. A word of the vocabulary in its place would become special in texts.
    filler = special.get(preprocess.pad_id) or next(iter(special.values()), None)
    filler = filler or parse_tokenizer(preprocess.tokenizer).id_to_token(preprocess.pad_id)
    left = str((content.get("truncation") or {}).get("direction", "")).lower() == "left"
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": preprocess.max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "truncation_side": "left" if left else "right",
        **({} if filler is None else {"pad_token": filler}),
    }
    (folder / TOKENIZER).write_bytes(preprocess.tokenizer.encode())
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _load_weights(folder: Path, model: Any) -> list[str]:
    """Load a folder's weights into `model`; return the names of those in the file that belong to other heads."""
    prefix = f"{model.base_model_prefix}."
    wanted: dict[str, Tensor] = model.state_dict()
    filled: set[str] = set()
    left_out: list[str] = []
    lost: list[str] = []
    prefixed = False
    for name, tensor in stream_weights(folder):
        inside = name.startswith(prefix)
        prefixed = prefixed or inside
        # Before 2018 was over, layer norms had other names.
        own = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        places = [one for one in (own, own.removeprefix(prefix), f"{prefix}{own}") if one in wanted]
        if places:
            _fill(folder, name, wanted[places[0]], tensor)
            filled.add(places[0])
        elif own.removeprefix(prefix).startswith("pooler.") or name.startswith(_OTHERS):
            left_out.append(name)
        elif not own.endswith(_NOT_READ):
            (lost if inside else left_out).append(name)
    # In a file without a base model's name before its own weights, what has no place is no other head's.
    lost += [] if prefixed else [n for n in left_out if not n.startswith(("pooler.", *_OTHERS))]
    shared = {wanted[name].data_ptr() for name in filled}
    missing = sorted(n for n, place in wanted.items() if n not in filled and place.data_ptr() not in shared)
    if missing:
        raise EncoderError(f"{folder}: {len(missing)} weights are missing, first {missing[0]}")
    if lost:
        raise EncoderError(f"{folder}: {len(lost)} weights have no place in the network, first {min(lost):.80}")
    return sorted(left_out)


def _load_layers(behind: nn.Module, layers: list[_Layer]) -> None:
    """Load the weights of the layers behind a pooling."""
    for place, layer in enumerate(layers):
        wanted = behind.get_submodule(f"layers.{place}").state_dict()
        if not wanted or layer.folder is None:
            continue
        stored = {name.removeprefix("norm."): tensor for name, tensor in read_weights(layer.folder).items()}
        if stored.keys() != wanted.keys():
            raise EncoderError(
                f"{layer.folder} must hold {', '.join(sorted(wanted))}, not {', '.join(sorted(stored))[:80]}"
            )
        for name, tensor in stored.items():
            _fill(layer.folder, name, wanted[name], tensor)


@torch.no_grad()
def _fill(folder: Path, name: str, place: Tensor, tensor: Tensor) -> None:
    if tensor.shape != place.shape:
        raise EncoderError(f"{folder}: weight {name:.80} has shape {tuple(tensor.shape)}, not {tuple(place.shape)}")
    if tensor.dtype != place.dtype:
        raise EncoderError(f"{folder}: weight {name:.80} is stored as {tensor.dtype}, not {place.dtype}")
    place.copy_(tensor)
