"""Texts over two APIs that many servers offer: OpenAI's `/v1/embeddings` and text-embeddings-inference's `/embed`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sslguard.data.base import Batch
from sslguard.suspects.http import Call, Reply
from sslguard.suspects.protocols.base import (
    MalformedReplyError,
    Protocol,
    embeddings,
    json_call,
    member,
    numbers,
    read_json,
    shown,
    texts,
)


@dataclass(frozen=True)
class OpenAI(Protocol):
    """`{"model", "input", "encoding_format"}` → `{"data": [{"index", "embedding"}, …]}`, ordered by `index`.

    The address ends before `/embeddings`, as in https://host/v1. Numbers and base64 are both read, whichever was asked
    for, because some servers know only one. If no entry has an `index`, or each has 0, answers are taken in the order
    of the list. A single entry without one is the first, because some servers leave out a 0.

    Source: platform.openai.com/docs/api-reference/embeddings.

    Attributes:
        model: The model's name on the server.
        encoding: Encoding to ask for.
    """

    name: ClassVar[str] = "openai"
    model: str
    encoding: Literal["float", "base64"] = "float"

    def call(self, batch: Batch, /) -> Call:
        """Return the request for a batch of texts. See `Protocol.call`."""
        body = {"model": self.model, "input": texts(batch, self.name), "encoding_format": self.encoding}
        return json_call("/embeddings", body)

    def answers(self, reply: Reply, n: int) -> object:
        """Return the embeddings in the order of their `index`. See `Protocol.answers`."""
        data = embeddings(member(read_json(reply.body), "data"), n, "'data'")
        rows = [numbers(member(entry, "embedding")) for entry in data]
        return [rows[place] for place in _order([entry.get("index") for entry in data])]

    def identity(self) -> dict[str, Any]:
        """Return the protocol and the model."""
        return {"protocol": self.name, "model": self.model}


def _order(indices: list[object]) -> list[int]:
    """Return where in the list the answer to each query stands.

    Raises:
        MalformedReplyError: The indices are neither all absent, nor all 0, nor each of 0 to n − 1 once.
    """
    n = len(indices)
    if all(index is None for index in indices) or all(index == 0 and type(index) is int for index in indices):
        return list(range(n))
    places: dict[int, int] = {}
    for place, found in enumerate(indices):
        index = 0 if found is None else found
        if type(index) is not int or not 0 <= index < n or index in places:
            raise MalformedReplyError(f"each 'index' must come once and lie in 0 to {n - 1}, unlike {shown(found)}")
        places[index] = place
    return [places[index] for index in range(n)]


@dataclass(frozen=True)
class TEI(Protocol):
    """`{"inputs", "truncate": true}` → a list of embeddings. The address ends before `/embed`.

    Source: huggingface.co/docs/text-embeddings-inference, `/embed`.
    """

    name: ClassVar[str] = "tei"

    def call(self, batch: Batch, /) -> Call:
        """Return the request for a batch of texts. See `Protocol.call`."""
        return json_call("/embed", {"inputs": texts(batch, self.name), "truncate": True})

    def answers(self, reply: Reply, n: int) -> object:
        """Return the list of embeddings. See `Protocol.answers`."""
        return embeddings(read_json(reply.body), n, "the answer")

    def identity(self) -> dict[str, Any]:
        """Return the protocol."""
        return {"protocol": self.name}
