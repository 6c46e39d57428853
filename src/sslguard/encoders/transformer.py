"""Networks of the transformers library from a configuration: no folder is read and no code of others is run.

A description is {"backbone": "hf", "config": …, "pooling": "mean", "unit": false}: the fields of a transformers
configuration that shape its model, how tokens are pooled, and whether embeddings are scaled to length 1. A model is
one of transformers' own classes; its pooling layer for classification is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sslguard.encoders.names import POOLINGS
from sslguard.encoders.text import TextModule
from sslguard.errors import MissingExtraError, UsageError, first_line

MODEL_TYPES = (
    "albert",
    "bert",
    "camembert",
    "deberta-v2",
    "distilbert",
    "electra",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
MAX_PARAMETERS = 1 << 30
MAX_SIZE = 1 << 24  # of any whole number in a configuration
_MAX_LAYERS = 256  # of any number of layers, groups or heads
_REFUSED = {"auto_map": "code of its own, which is never run", "quantization_config": "weights of another format"}
# Shape nothing, or make a model something other than an encoder.
_UNUSED = {"is_decoder", "add_cross_attention", "use_cache", "classifier_dropout", "reference_compile"}


def network(architecture: dict[str, Any]) -> tuple[TextModule, int]:
    """Return the untrained network of a description and the width of its embedding.

    Raises:
        UsageError: the description has a field out of range or names a model that is not known here.
        MissingExtraError: transformers is not installed.
    """
    config = checked_config(architecture.get("config"))
    pooling, unit = architecture.get("pooling"), architecture.get("unit")
    if pooling not in POOLINGS or not isinstance(unit, bool):
        raise UsageError(
            f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r:.80}, and unit true or false, "
            f"not {unit!r:.80}"
        )
    auto, configurations, _ = _transformers()
    kind = config.pop("model_type")
    try:
        built = configurations[kind](**config)
        with torch.device("meta"):
            n = sum(p.numel() for p in auto.from_config(built, trust_remote_code=False).parameters())
        if n > MAX_PARAMETERS:
            raise UsageError(f"a network may have {MAX_PARAMETERS} parameters, not {n}")
        model = auto.from_config(built, dtype=torch.float32, trust_remote_code=False)
    except UsageError:
        raise
    except Exception as error:  # every configuration checks itself, and raises what it likes
        raise UsageError(f"transformers builds no {kind} of this configuration: {first_line(error)}") from error
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None
    return TextModule(model, pooling, unit), int(model.config.hidden_size)


def checked_config(config: object) -> dict[str, Any]:
    """Return the fields of a transformers configuration that its model is built from, and `model_type`.

    Fields that belong to no class of transformers, to its general options or to other heads are left out.

    Raises:
        UsageError: it names code, another format of weights, a model that is not known here or an immense size.
    """
    if not isinstance(config, dict):
        raise UsageError(f"the configuration of a transformer must be a JSON object, not {config!r:.80}")
    for name, what in _REFUSED.items():
        if config.get(name):
            raise UsageError(f"the configuration names {what} ({name}): save the model without it")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise UsageError(f"model_type must be one of {', '.join(MODEL_TYPES)}, not {kind!r:.80}")
    if config.get("is_decoder"):
        raise UsageError(f"this {kind} is a decoder, and its tokens do not see those behind them: give an encoder")
    _, configurations, general = _transformers()
    own = (configurations[kind]().to_dict().keys() - general().to_dict().keys()) | {"pad_token_id"}
    kept = {name: value for name, value in config.items() if name in own - _UNUSED}
    for name, value in kept.items():
        most = _MAX_LAYERS if any(part in name for part in ("num", "layers", "groups", "heads")) else MAX_SIZE
        if isinstance(value, int) and abs(value) > most:
            raise UsageError(f"{name} of a transformer may be {most}, not {value!r:.80}")
    return {**kept, "model_type": kind}


def _transformers() -> tuple[Any, Any, Any]:
    """AutoModel, the configurations by model type, and their common ancestor."""
    try:
        from transformers import AutoModel, PretrainedConfig
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    except ImportError as error:
        raise MissingExtraError("an encoder of texts from transformers", "text") from error
    return AutoModel, CONFIG_MAPPING, PretrainedConfig
