"""Texts through a tokenizer and a transformer: what `save_pretrained` writes, without running any code it names.

The tokenizer is a `tokenizer.json`, which the `tokenizers` library reads; it is data. It is kept beside an encoder's
description, which holds its SHA-256, because it may be larger than a description may be.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sslguard.data.base import Batch
from sslguard.encoders.growth import check_growth, check_tables
from sslguard.encoders.words import (
    MAX_LENGTH,
    check_whole,
    no_frame,
    pooled,
    stacked,
    texts_of,
)
from sslguard.errors import DataError, EncoderError, UsageError, first_line, required_by

TOKENIZER = "tokenizer.json"
MAX_TOKENIZER = 1 << 26  # bytes; multilingual vocabularies take 20 MB
_MAX_ID = 1 << 24
_MAX_PROMPT = 1 << 14
_SECONDS = 60.0
# What most encoders have, and their descriptions leave out.
_USUAL: dict[str, Any] = {"prompt": "", "pool_prompt": True, "special": True, "strip": False}

_FAILURE = "a text cannot be encoded"


@dataclass(frozen=True)
class TextPreprocess:
    """Texts → ids of their tokens.

    Attributes:
        tokenizer: the content of a `tokenizer.json`; padding and truncation in it are not used.
        max_length: tokens of a text, with those that the tokenizer adds; what comes after them is cut off.
        pad_id: the id that fills rows up.
        prompt: what stands before every text.
        pool_prompt: whether the prompt's tokens have a part in the vector that is pooled.
        special: whether the tokenizer adds its special tokens.
        strip: whether white space before and behind a text, its prompt included, is left out.
    """

    tokenizer: str = field(repr=False)
    max_length: int
    pad_id: int = 0
    prompt: str = ""
    pool_prompt: bool = True
    special: bool = True
    strip: bool = False

    def __post_init__(self) -> None:
        check_whole("max_length", self.max_length, 1, MAX_LENGTH)
        check_whole("pad_id", self.pad_id, 0, _MAX_ID)
        if not isinstance(self.prompt, str) or len(self.prompt) > _MAX_PROMPT:
            raise UsageError(f"prompt must be a text of {_MAX_PROMPT} characters at most, not {self.prompt!r:.80}")
        for name in ("pool_prompt", "special", "strip"):
            if not isinstance(value := getattr(self, name), bool):
                raise UsageError(f"{name} must be true or false, not {value!r:.80}")
        added = self._tokenizer.num_special_tokens_to_add(is_pair=False) if self.special else 0
        if added >= self.max_length:
            raise UsageError(f"max_length must be above the {added} tokens that the tokenizer adds to every text")

    def prepare(self, batch: Batch, /) -> Tensor:
        """Return ids and mask: int64 (n, 2, L), L the longest of the batch.

        Raises:
            DataError: the items are not texts, or one is not valid Unicode.
        """
        rows = [encoding.ids for encoding in self._encoded(texts_of(batch))]
        prepared = stacked(rows, self.pad_id, apart=0 if self.pool_prompt else self._n_prompt)
        if not self.special:
            for k, row in enumerate(rows):
                prepared[k, 1] *= 1 if row else 0
        return prepared

    def _encoded(self, texts: list[str]) -> Any:
        texts = [self.prompt + text for text in texts] if self.prompt else texts
        texts = [text.strip() for text in texts] if self.strip else texts
        tokenizer, special = self._tokenizer, self.special
        return _asked(
            lambda: _in_time(lambda: tokenizer.encode_batch_fast(texts, add_special_tokens=special)), _FAILURE
        )

    @cached_property
    def _n_prompt(self) -> int:
        """Tokens before a text: the prompt's own and the special ones before it."""
        (alone,) = self._encoded([""])
        return len(alone.ids) - (1 if alone.special_tokens_mask[-1:] == [1] else 0)

    def decoded(self, ids: list[int]) -> str:
        """Return the text of token ids, without what the tokenizer puts before and behind every text.

        Raises:
            DataError: an id is not in the vocabulary.
        """
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if unknown := [one for one in ids if one >= size]:
            raise DataError(f"the tokenizer has {size} tokens: there is no token {unknown[0]}")
        before, behind = self._frame
        start = len(before) if ids[: len(before)] == before else 0
        stop = len(ids) - (len(behind) if behind and ids[-len(behind) :] == behind else 0)
        return str(_asked(lambda: self._tokenizer.decode(ids[start:stop]), "token ids cannot be decoded"))

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer puts before and behind every text."""
        whole = list(_asked(lambda: self._tokenizer.encode("a").ids, _FAILURE))
        bare = list(_asked(lambda: self._tokenizer.encode("a", add_special_tokens=False).ids, _FAILURE))
        start = next((k for k in range(len(whole) + 1) if whole[k : k + len(bare)] == bare), 0)
        return whole[:start], whole[start + len(bare) :]

    def framed(self, prepared: Tensor, batch: Batch, /) -> Tensor:
        """Raise UsageError: no text leads back to given ids."""
        raise no_frame(prepared, batch)

    def normalise(self, prepared: Tensor, /) -> Tensor:
        """Return the same: ids have no scale."""
        return prepared

    def blank(self) -> Tensor:
        """Return a text of the greatest length made of the greatest id: int64 (1, 2, max_length)."""
        vocabulary = _asked(
            lambda: self._tokenizer.get_vocab(with_added_tokens=True), "the tokenizer has no vocabulary"
        )
        return stacked([[max([self.pad_id, *vocabulary.values()])] * self.max_length], self.pad_id)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        more = {name: getattr(self, name) for name, usual in _USUAL.items() if getattr(self, name) != usual}
        return {
            "kind": "text",
            "tokenizer": self._sha256,
            "max_length": self.max_length,
            "pad_id": self.pad_id,
            **more,
        }

    def files(self) -> dict[str, bytes]:
        """Return the tokenizer's file, which `to_json` refers to by its hash, by name."""
        return {TOKENIZER: self.tokenizer.encode()}

    @classmethod
    def from_json(cls, fields: dict[str, Any], files: Mapping[str, bytes]) -> TextPreprocess:
        """Invert `to_json` and `files`.

        Raises:
            UsageError: fields that do not fit, or the tokenizer is missing or is another one.
        """
        try:
            sha256, max_length, pad_id = fields["tokenizer"], fields["max_length"], fields["pad_id"]
        except KeyError as error:
            raise UsageError(f"the description of a preprocessing of texts lacks {error}") from error
        if TOKENIZER not in files:
            raise UsageError(f"a preprocessing of texts needs the {TOKENIZER} that was saved with it")
        if hashlib.sha256(files[TOKENIZER]).hexdigest() != sha256:
            raise UsageError(f"this {TOKENIZER} is not the one that was saved with the encoder")
        more = {name: fields.get(name, usual) for name, usual in _USUAL.items()}
        return cls(files[TOKENIZER].decode(), max_length, pad_id, **more)

    @cached_property
    def _sha256(self) -> str:
        return hashlib.sha256(self.tokenizer.encode()).hexdigest()

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = parse_tokenizer(self.tokenizer)

        def set_up() -> None:
            direction = (tokenizer.truncation or {}).get("direction", "right")
            tokenizer.no_padding()
            tokenizer.enable_truncation(self.max_length, direction=direction)

        _asked(set_up, f"the tokenizer cannot cut texts at {self.max_length} tokens")
        return tokenizer


def _asked(call: Callable[[], Any], failure: str) -> Any:
    """Return what a call of the tokenizers' library gives.

    Raises:
        DataError: it fails; a panic of the library, which is no Exception, is a failure like others.
    """
    try:
        return call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise DataError(f"{failure}: {first_line(error)}") from error


def _in_time(call: Callable[[], Any]) -> Any:
    """Return what `call` gives. Raise TimeoutError after `_SECONDS`: a tokenizer's pattern may never end.

    The thread that waits for the pattern cannot be stopped. It ends with the program.
    """
    came: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            came.append(call())
        except BaseException as error:
            failed.append(error)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(_SECONDS)
    if failed:
        raise failed[0]
    if not came:
        raise TimeoutError(f"a pattern of the tokenizer does not end within {_SECONDS:g} s")
    return came[0]


def parse_tokenizer(content: str) -> Any:
    """Return a `tokenizers.Tokenizer` of the content of a tokenizer.json.

    Raises:
        UsageError: it is something else.
        MissingExtraError: the library is not installed.
    """
    with required_by("an encoder of texts", "text"):
        from tokenizers import Tokenizer
    try:
        check_tables(content)
        tokenizer = Tokenizer.from_str(content)
        check_growth(tokenizer)
        return tokenizer
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise UsageError(f"not a tokenizer.json: {first_line(error)}") from error


def read_tokenizer(folder: Path) -> str:
    """Return the content of the tokenizer.json in a folder. Raise EncoderError where it is missing or is no text."""
    path = folder / TOKENIZER
    try:
        if not path.is_file():
            raise EncoderError(
                f"{folder} holds no {TOKENIZER}: write it with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        if (size := path.stat().st_size) > MAX_TOKENIZER:
            raise EncoderError(f"{path} has {size} bytes, more than the {MAX_TOKENIZER} that are read")
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise EncoderError(f"{path} cannot be read: {error}") from error


class TextModule(nn.Module):
    """A transformer, the pooling of its last layer and what is behind: ids and mask (n, 2, L) → embeddings (n, width).

    Args:
        model: of transformers; called with `input_ids` and `attention_mask`.
        pooling: see `words.pooled`, or "pooler" or "projection": the model's own `pooler_output` or `text_embeds`.
        behind: layers behind the pooling.
        positions: tokens of a text at most; None where the model has no table of positions.
    """

    def __init__(self, model: nn.Module, pooling: str, behind: nn.Module, positions: int | None = None) -> None:
        super().__init__()
        self.model, self.pooling, self.behind, self.positions = model, pooling, behind, positions

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings (n, width) of ids and mask, int64 (n, 2, L)."""
        ids, mask = tokens.unbind(1)
        answers = self.model(input_ids=ids, attention_mask=(mask != 0).long())
        if self.pooling == "projection":
            return self.behind(answers.text_embeds)
        if self.pooling == "pooler":
            return self.behind(answers.pooler_output)
        return self.behind(pooled(answers.last_hidden_state, mask, self.pooling))
