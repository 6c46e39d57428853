"""Networks of the transformers library from a configuration: no folder is read and no code of others is run.

A description is {"backbone": "hf", "config": …, "pooling": "mean", "unit": false}: the fields of a transformers
configuration that shape its model, how tokens are pooled, and whether embeddings are scaled to length 1; what may come
between is in `sentences`. A pooling is one of `names.POOLINGS` or several joined by +, or, for CLIP's text tower alone,
"projection" (what `get_text_features` returns) or "pooler" (what its model calls `pooler_output`).

A model is one of transformers' own classes: encoders, decoders (whose tokens see those before them), the encoders of
T5, and CLIP's text tower. A pooling layer for classification is left out.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from sslguard.encoders.names import POOLINGS
from sslguard.encoders.sentences import read_behind
from sslguard.encoders.text import TextModule
from sslguard.errors import UsageError, first_line, required_by

CLIP = "clip_text_model"
_ENCODERS = (
    *("albert", "bert", "camembert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra", "ernie"),
    *("eurobert", "megatron-bert", "modernbert", "mpnet", "rembert", "roberta", "roberta-prelayernorm", "roformer"),
    *("xlm-roberta", "xlm-roberta-xl"),
)
_DECODERS = (
    *("cohere", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "gpt_neox", "granite", "llama", "ministral"),
    *("mistral", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2"),
)
# These count positions from behind the filler's id.
_OFFSET = (
    *("camembert", "data2vec-text", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta"),
    "xlm-roberta-xl",
)
_CLASSES = MappingProxyType({"mt5": "MT5EncoderModel", "t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"})
MODEL_TYPES = tuple(sorted((*_ENCODERS, *_DECODERS, *_CLASSES, CLIP)))
"""Values of `model_type` that are known here."""
OF_CLIP = ("projection", "pooler")
"""Poolings of CLIP's text tower, besides `names.POOLINGS`."""
MAX_SIZE = 1 << 24  # of any whole number in a configuration
_MAX_LAYERS = 256  # of any number of layers, groups or heads
_MAX_LIST = 4096
_REFUSED = {"auto_map": "code of its own, which is never run", "quantization_config": "weights of another format"}
# Shape nothing, or make a model something other than an encoder.
_UNUSED = {"is_decoder", "add_cross_attention", "use_cache", "classifier_dropout", "reference_compile"}
# Names that configurations once had for what is now `rope_parameters`, which transformers still understands.
_FORMER = {
    *("rope_theta", "rope_scaling", "rope_local_base_freq", "global_rope_theta", "local_rope_theta"),
    *("partial_rotary_factor", "rotary_pct", "rotary_emb_base", "sliding_window_pattern"),
}


def network(architecture: dict[str, Any]) -> tuple[TextModule, int]:
    """Return the untrained network of a description and the width of its embedding.

    Raises:
        UsageError: the description has a field out of range or names a model that is not known here.
        MissingExtraError: transformers is not installed.
    """
    config = checked_config(architecture.get("config"))
    kind, pooling = config.pop("model_type"), architecture.get("pooling")
    if not isinstance(pooling, str) or not _pools(kind, pooling):
        raise UsageError(f"pooling must be one of {', '.join(POOLINGS)}, or several joined by +, not {pooling!r:.80}")
    transformers, configurations, _ = _transformers()
    try:
        built = configurations[kind](**config)
        built.use_cache = False
        model = _class(transformers, kind, pooling)(built)
        width = int(built.projection_dim if pooling == "projection" else built.hidden_size)
    except UsageError:
        raise
    except Exception as error:  # every configuration checks itself, and raises what it likes
        raise UsageError(f"transformers builds no {kind} of this configuration: {first_line(error)}") from error
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None
    behind, out = read_behind(architecture, width * (1 + pooling.count("+")))
    return TextModule(model, pooling, behind, _positions(model)), out


def checked_config(config: object) -> dict[str, Any]:
    """Return the fields of a transformers configuration that its model is built from, and `model_type`.

    Of a whole CLIP they are those of its text tower. Fields that belong to no class of transformers, to its general
    options or to other heads are left out.

    Raises:
        UsageError: it names code, another format of weights, a model that is not known here or an immense size.
    """
    if not isinstance(config, dict):
        raise UsageError(f"the configuration of a transformer must be a JSON object, not {config!r:.80}")
    for name, what in _REFUSED.items():
        if config.get(name):
            raise UsageError(f"the configuration names {what} ({name}): save the model without it")
    kind = config.get("model_type")
    if kind == "clip":
        tower = config.get("text_config") or {}
        if not isinstance(tower, dict):
            raise UsageError(f"text_config must be a JSON object, not {tower!r:.80}")
        return checked_config({**tower, "projection_dim": config.get("projection_dim", 512), "model_type": CLIP})
    _, configurations, general = _transformers()
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise UsageError(f"model_type must be one of {', '.join(MODEL_TYPES)}, not {kind!r:.80}")
    if kind not in configurations:
        raise UsageError(f"this version of transformers knows no {kind}: install a newer one")
    if config.get("is_decoder") and kind in _ENCODERS:
        raise UsageError(f"this {kind} is a decoder, and its tokens do not see those behind them: give an encoder")
    own = (configurations[kind]().to_dict().keys() - general().to_dict().keys()) | {"pad_token_id"} | _FORMER
    kept = {name: value for name, value in config.items() if name in own - _UNUSED}
    for name, value in kept.items():
        counts = any(part in name for part in ("num", "layers", "groups", "heads")) and "buckets" not in name
        most = _MAX_LAYERS if counts else MAX_SIZE
        if isinstance(value, int) and abs(value) > most:
            raise UsageError(f"{name} of a transformer may be {most}, not {value!r:.80}")
        if isinstance(value, list | dict) and len(value) > _MAX_LIST:
            raise UsageError(f"{name} of a transformer may hold {_MAX_LIST} values, not {len(value)}")
    return {**kept, "model_type": kind}


def _positions(model: Any) -> int | None:
    """Return how many tokens a model has positions for; None where it learns none."""
    tables = ("position_embeddings", "position_embedding", "wpe", "embed_positions")
    found = any(
        name.rpartition(".")[2] in tables and isinstance(part, nn.Embedding) for name, part in model.named_modules()
    )
    if not found:
        return None
    pad = 1 if model.config.model_type == "mpnet" else model.config.pad_token_id  # which that model has fixed
    offset = pad + 1 if model.config.model_type in _OFFSET and isinstance(pad, int) else 0
    return int(model.config.max_position_embeddings) - offset


def _pools(kind: str, pooling: str) -> bool:
    parts = pooling.split("+")
    return (kind == CLIP and pooling in OF_CLIP) or (set(parts) <= set(POOLINGS) and len(set(parts)) == len(parts))


def _class(transformers: Any, kind: str, pooling: str) -> Any:
    """Return what builds a model of a configuration, as float32."""
    if kind == CLIP:
        chosen = getattr(transformers, "CLIPTextModelWithProjection" if pooling == "projection" else "CLIPTextModel")
    elif kind in _CLASSES:
        chosen = getattr(transformers, _CLASSES[kind])
    else:
        auto = transformers.AutoModel
        return lambda built: auto.from_config(built, dtype=torch.float32, trust_remote_code=False)
    return lambda built: chosen._from_config(built, dtype=torch.float32)


def _transformers() -> tuple[Any, Any, Any]:
    """Return the library, its configurations by model type, and their common ancestor."""
    with required_by("an encoder of texts from transformers", "text"):
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    return transformers, CONFIG_MAPPING, transformers.PretrainedConfig
