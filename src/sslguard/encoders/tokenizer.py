"""The tokenizer of a folder that transformers wrote: a tokenizer.json, or one made of a vocab.txt. No code is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sslguard.encoders.pretrained import read_json
from sslguard.encoders.text import MAX_TOKENIZER, TOKENIZER, parse_tokenizer, read_tokenizer
from sslguard.errors import EncoderError, UsageError, first_line, required_by

_VOCABULARY = "vocab.txt"
_MAX_CONFIG = 1 << 24  # bytes; some list every added token
# Tokenizers of word pieces, which differ in names of special tokens alone, and models that have no other.
_PIECES = frozenset(
    f"{name}Tokenizer{fast}"
    for name in (
        *("Bert", "ConvBert", "DistilBert", "Electra", "Ernie", "LayoutLM", "MPNet", "MobileBert", "SqueezeBert"),
        *("DPRContextEncoder", "DPRQuestionEncoder", "Retribert"),
    )
    for fast in ("", "Fast")
)
_PIECES_MODELS = frozenset(
    ("bert", "convbert", "distilbert", "electra", "ernie", "megatron-bert", "mobilebert", "mpnet", "squeezebert", "")
)
_NAMES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_NAMES_MPNET = {"sep_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>"}


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Return a folder's tokenizer_config.json; empty where there is none."""
    return read_json(folder / "tokenizer_config.json", most=_MAX_CONFIG) or {}


def folder_tokenizer(folder: Path, kind: str, *, lowercase: bool) -> str:
    """Return the tokenizer of a folder as the content of a tokenizer.json, as transformers sets it up.

    Args:
        folder: It holds tokenizer.json, or vocab.txt.
        kind: `model_type` of the model.
        lowercase: Whether texts are put in lower case before all else.

    Raises:
        EncoderError: There is neither, or a file is damaged.
        UsageError: A file is no tokenizer.
        MissingExtraError: The library is not installed.
    """
    config = read_tokenizer_config(folder)
    if (folder / TOKENIZER).is_file() or not (folder / _VOCABULARY).is_file():
        content = read_tokenizer(folder)
    else:
        content = _of_vocabulary(folder, config, kind)
    left, ends = config.get("truncation_side") == "left", _ends(config)
    if not (lowercase or left or any(ends.values())):
        return content
    tokenizer = parse_tokenizer(content)
    try:
        _change(tokenizer, lowercase=lowercase, left=left, ends=ends)
        return str(tokenizer.to_str())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise UsageError(f"the tokenizer cannot be set up: {first_line(error)}") from error


def _ends(config: dict[str, Any]) -> dict[str, str]:
    """Return the tokens that a configuration says to put before and behind every text; "" for none."""
    return {
        side: _token(config.get(f"{side}_token")) or "" if config.get(f"add_{side}_token") is True else ""
        for side in ("bos", "eos")
    }


def _change(tokenizer: Any, *, lowercase: bool, left: bool, ends: dict[str, str]) -> None:
    from tokenizers import normalizers, processors

    if lowercase:
        own = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    if left:
        tokenizer.enable_truncation(1 << 20, direction="left")
    ids = {side: tokenizer.token_to_id(token) for side, token in ends.items() if token}
    if any(number is None for number in ids.values()):
        raise UsageError("a token that begins or ends every text is not in the vocabulary")
    around = list(tokenizer.encode("", add_special_tokens=True).ids)
    if ("bos" in ids and around[:1] != [ids["bos"]]) or ("eos" in ids and around[-1:] != [ids["eos"]]):
        pieces = [ends["bos"] if "bos" in ids else "", "$A", ends["eos"] if "eos" in ids else ""]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[piece for piece in pieces if piece], special_tokens=[(ends[side], ids[side]) for side in ids]
        )


def _of_vocabulary(folder: Path, config: dict[str, Any], kind: str) -> str:
    """Return a tokenizer of word pieces, as BERT's, of a vocab.txt."""
    path = folder / _VOCABULARY
    named = config.get("tokenizer_class")
    if (named is None and kind not in _PIECES_MODELS) or (named is not None and named not in _PIECES):
        raise EncoderError(
            f"{folder} holds a {_VOCABULARY} of {named or kind!r:.80}, which is not read, and no {TOKENIZER}: "
            "write it with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        if (size := path.stat().st_size) > MAX_TOKENIZER:
            raise EncoderError(f"{path} has {size} bytes, more than the {MAX_TOKENIZER} that are read")
        lines = path.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EncoderError(f"{path} cannot be read: {error}") from error
    tokens = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    vocabulary = {token: k for k, token in enumerate(tokens)}
    usual = _NAMES | (_NAMES_MPNET if "MPNet" in str(named) or kind == "mpnet" else {})
    stated = (read_json(folder / "special_tokens_map.json") or {}) | config
    special = {name: _token(stated.get(name)) or token for name, token in usual.items()}
    for name in ("unk_token", "sep_token", "cls_token"):
        if special[name] not in vocabulary:
            raise EncoderError(f"{path} lacks the {name} {special[name]!r:.80}")
    return _pieces(vocabulary, special, config)


def _pieces(vocabulary: dict[str, int], special: dict[str, str], config: dict[str, Any]) -> str:
    with required_by("an encoder of texts", "text"):
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    cls, sep = special["cls_token"], special["sep_token"]
    accents = config.get("strip_accents")
    try:
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=config.get("tokenize_chinese_chars", True) is not False,
            strip_accents=accents if isinstance(accents, bool) else None,
            lowercase=config.get("do_lower_case", True) is not False,
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[cls, "$A", sep], special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])]
        )
        tokenizer.add_special_tokens([token for token in special.values() if token in vocabulary])
        return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise UsageError(f"no tokenizer can be made of the vocabulary: {first_line(error)}") from error


def _token(stated: object) -> str | None:
    """Return a token that a configuration states as a text, or with what belongs to it."""
    stated = stated.get("content") if isinstance(stated, dict) else stated
    return stated if isinstance(stated, str) else None
