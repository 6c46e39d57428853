"""Descriptions of the smallest network of each kind of text encoder, and a tokenizer of whole words."""

from __future__ import annotations

from typing import Any

WORDS = ["a", "an", "the", "cat", "dog", "sat", "ran", "on", "under", "mat", "log", "big", "small", "red", ",", "."]
TEXTS = ["the cat sat on the mat .", "a dog", "", "big red cat , unknown dog ran under a small log .", "ран 猫"]
# Fields of the smallest network of each kind: what the kinds call their sizes differs.
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
KINDS: dict[str, dict[str, Any]] = {
    "albert": {**SIZES, "embedding_size": 16},
    "bert": SIZES,
    "camembert": SIZES,
    "deberta-v2": SIZES,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "electra": {**SIZES, "embedding_size": 16},
    "modernbert": SIZES,
    "mpnet": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
}


def config_of(kind: str = "bert", **fields: Any) -> dict[str, Any]:
    """Return the configuration of the smallest network of a kind."""
    common = {"model_type": kind, "vocab_size": 40, "max_position_embeddings": 64, "pad_token_id": 0}
    return {**common, **KINDS[kind], **fields}


def described(kind: str = "bert", pooling: str = "mean", unit: bool = False, **fields: Any) -> dict[str, Any]:
    """Return an encoder's description of that network."""
    return {"backbone": "hf", "config": config_of(kind, **fields), "pooling": pooling, "unit": unit}


def tokenizer_json(words: list[str] = WORDS) -> str:
    """Return a tokenizer of whole words, [CLS] before and [SEP] behind them; filler 0."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: k for k, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str()
