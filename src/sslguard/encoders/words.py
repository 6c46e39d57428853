"""Texts without a library: words by their hash, and two small networks that take them.

A thief who has answers alone has no tokenizer either: these students need none. Prepared texts are one integer
tensor (n, 2, L), L the longest row of the batch: token ids, and a mask that is 1 where a token stands and 0 where its
row is filled up (2 for tokens that a network sees and a pooling leaves out).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslguard.data.base import Batch
from sslguard.errors import DataError, UsageError

MAX_LENGTH = 1 << 17  # tokens of a text
_MAX_VOCABULARY = 1 << 20
_WORD = re.compile(r"\w+|[^\w\s]")


def texts_of(batch: Batch) -> list[str]:
    """Return the batch as the list of str that it must be. Raise DataError for anything else."""
    texts = [] if isinstance(batch, Tensor | str) else [item for item in batch if isinstance(item, str)]
    if not texts or len(texts) != len(batch):
        raise DataError("this encoder takes texts: a list of str, such as text:FILE holds")
    return texts


def stacked(rows: Sequence[Sequence[int]], pad: int, *, apart: int = 0) -> Tensor:
    """Return rows of token ids as one tensor int64 (n, 2, L) of ids and mask, filled up with `pad` on the right.

    A row without tokens keeps one filler as its token: a network needs one.

    Args:
        rows: Ids of each text's tokens.
        pad: The filler's id.
        apart: The first tokens of each row that the network sees and the pooling leaves out: their mask is 2.
    """
    tokens = np.zeros((len(rows), 2, max([1, *map(len, rows)])), np.int64)
    tokens[:, 0] = pad
    for k, row in enumerate(rows):
        tokens[k, 0, : len(row)] = row
        tokens[k, 1, : max(1, len(row))] = 1
        tokens[k, 1, : min(apart, len(row))] = 2
    return torch.from_numpy(tokens)


def pooled(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """Return one vector for each text, (n, d), or (n, k·d) where k ways are joined.

    Args:
        hidden: Vectors of the tokens, (n, L, d).
        mask: (n, L), 1 for tokens that have a part in the vector, anything else for those that have none.
        how: One of `names.POOLINGS`, or several with + between, whose vectors are joined:

            - "cls": the first token's vector;
            - "lasttoken": the last token's;
            - "max": the greatest of the tokens' values in each dimension;
            - "mean": their mean;
            - "meansqrt": their sum, divided by the square root of their number;
            - "weightedmean": their mean, the k-th token counted k times.
    """
    if "+" in how:
        return torch.cat([pooled(hidden, mask, one) for one in how.split("+")], 1)
    if how == "cls":
        return hidden[:, 0]
    kept = mask == 1
    if how == "lasttoken":
        last = (kept.long() * torch.arange(1, 1 + kept.shape[1], device=kept.device)).argmax(1)
        return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]
    if how == "max":
        return hidden.masked_fill(~kept[:, :, None], -1e9).amax(1)
    hidden = hidden.masked_fill(~kept[:, :, None], 0)
    if how == "weightedmean":
        weights = kept * torch.arange(1, 1 + kept.shape[1], device=kept.device)
        return (hidden * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
    count = kept.sum(1, keepdim=True).clamp(min=1)
    return hidden.sum(1) / (count.sqrt() if how == "meansqrt" else count)


@dataclass(frozen=True)
class HashedWords:
    """Texts → ids of their words, by a fixed hash (CRC-32), case folded: no vocabulary to learn or to keep.

    A word is a run of letters, digits and underscores; every other mark is a word of its own. Id 0 begins each text.

    Attributes:
        vocabulary: number of ids; words beyond it share them.
        max_length: tokens of a text, the first included; what comes after them is cut off.
    """

    vocabulary: int = 1 << 15
    max_length: int = 128

    def __post_init__(self) -> None:
        check_whole("vocabulary", self.vocabulary, 2, _MAX_VOCABULARY)
        check_whole("max_length", self.max_length, 1, MAX_LENGTH)

    def prepare(self, batch: Batch, /) -> Tensor:
        """Return ids and mask: int64 (n, 2, L)."""
        return stacked([self._ids(text) for text in texts_of(batch)], 0)

    def framed(self, prepared: Tensor, batch: Batch, /) -> Tensor:
        """Raise UsageError: no text leads back to given ids."""
        raise no_frame(prepared, batch)

    def normalise(self, prepared: Tensor, /) -> Tensor:
        """Return the same: ids have no scale."""
        return prepared

    def blank(self) -> Tensor:
        """Return a text of the greatest length made of the greatest id: int64 (1, 2, max_length)."""
        return stacked([[self.vocabulary - 1] * self.max_length], 0)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"kind": "words", "vocabulary": self.vocabulary, "max_length": self.max_length}

    def files(self) -> dict[str, bytes]:
        """Return no file: nothing lies beside the description."""
        return {}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> HashedWords:
        """Invert `to_json`. Raise UsageError for fields that do not fit."""
        try:
            return cls(fields["vocabulary"], fields["max_length"])
        except KeyError as error:
            raise UsageError(f"the description of a preprocessing of words lacks {error}") from error

    def _ids(self, text: str) -> list[int]:
        words = [
            match.group() for match, _ in zip(_WORD.finditer(text.lower()), range(self.max_length - 1), strict=False)
        ]
        return [0, *(1 + zlib.crc32(word.encode(errors="surrogatepass")) % (self.vocabulary - 1) for word in words)]


class BagOfWords(nn.Module):
    """Word vectors, averaged, through two linear layers: blind to the order of words. (n, 2, L) → (n, width)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.words = _embedding(vocabulary, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings (n, width) of ids and mask, int64 (n, 2, L)."""
        ids, mask = tokens.unbind(1)
        return self.mlp(pooled(self.words(ids), mask, "mean"))


class WordTransformer(nn.Module):
    """Two layers of a transformer (Vaswani et al. 2017, norms first) over word vectors, averaged: (n, width)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.words = _embedding(vocabulary, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, width // 32, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings (n, width) of ids and mask, int64 (n, 2, L)."""
        ids, mask = tokens.unbind(1)
        vectors = self.words(ids)
        hidden = vectors + _positions(vectors)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=mask == 0)
        return pooled(self.norm(hidden), mask, "mean")


NETWORKS: Mapping[str, type[BagOfWords] | type[WordTransformer]] = MappingProxyType(
    {"bag-of-words": BagOfWords, "word-transformer": WordTransformer}
)
"""Small networks of texts. Descriptions may name a `vocabulary`, as `HashedWords` has it, and a `width`."""
WIDTH = 128


def network(architecture: dict[str, Any]) -> tuple[nn.Module, int]:
    """Return one of `NETWORKS` and the width of its embedding. Raise UsageError for fields out of range."""
    vocabulary, width = architecture.get("vocabulary", HashedWords.vocabulary), architecture.get("width", WIDTH)
    check_whole("vocabulary", vocabulary, 2, _MAX_VOCABULARY)
    check_whole("width", width, 32, 1024)
    if width % 32:
        raise UsageError(f"the width of a network of texts must be a multiple of 32, not {width}")
    return NETWORKS[architecture["backbone"]](vocabulary, width), width


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raise UsageError unless `value` is a whole number in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{name} must be a whole number from {least} to {most}, not {value!r:.80}")


def no_frame(prepared: Tensor, batch: Batch) -> UsageError:
    """Return the error that says why a preprocessing of texts cannot lead back."""
    return UsageError(
        f"no texts can be given from which an encoder makes ids of shape {tuple(prepared.shape)} (of {len(batch)} "
        "texts): triggers are put on images; mark an encoder of texts with a scheme that changes no query"
    )


def _embedding(vocabulary: int, width: int) -> nn.Embedding:
    """Return vectors small enough that a step of Adam's turns a rare word's."""
    words = nn.Embedding(vocabulary, width)
    nn.init.normal_(words.weight, std=0.02)
    return words


def _positions(vectors: Tensor) -> Tensor:
    """Return sines and cosines of the place in a text, scaled as the word vectors are: (L, width)."""
    length, width = vectors.shape[1:]
    place = torch.arange(length, device=vectors.device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=vectors.device) * (-math.log(10000.0) / width))
    waves = torch.stack([(place * rate).sin(), (place * rate).cos()], -1).flatten(1)
    return (0.02 * waves).to(vectors.dtype)
