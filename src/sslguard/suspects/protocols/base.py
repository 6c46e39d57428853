"""What a protocol is: queries → the request that asks them, and the reply → answers. It sends nothing itself."""

from __future__ import annotations

import base64
import binascii
import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Batch
from sslguard.errors import UsageError
from sslguard.suspects.http import Call, Exchange, Reply

SHOWN = 80  # characters of a reply in a message


class MalformedReplyError(ValueError):
    """A reply that the protocol does not allow."""


class Protocol(ABC):
    """Knows one way of asking for embeddings.

    Attributes:
        name: as on the command line.
        largest: queries of a request at most; None for any number.
    """

    name: ClassVar[str]
    largest: int | None = None

    def begin(self, exchange: Exchange) -> None:
        """Ask the server what has to be known before the first query. Raises SuspectError."""
        del exchange

    @abstractmethod
    def call(self, batch: Batch, /) -> Call:
        """The request for a batch of n queries. Raises UsageError for items that the protocol does not carry."""

    @abstractmethod
    def answers(self, reply: Reply, n: int) -> object:
        """What should be n rows of numbers, in the order of the queries; `suspects.checked` says whether it is.

        Raises:
            MalformedReplyError: it is not what the protocol allows.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that answers depend on besides address and query, JSON values only."""


def json_call(path: str, body: object) -> Call:
    """A request that carries JSON."""
    content = json.dumps(body, separators=(",", ":"), allow_nan=False)
    return Call(path, content.encode(), {"Content-Type": "application/json"})


def read_json(body: bytes) -> Any:
    """The value of a JSON document. Raises MalformedReplyError: it is cut off, nested too deep, or no JSON."""
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise MalformedReplyError(f"the answer is not JSON ({reason:.120}): {shown(body)}") from error


def shown(value: object) -> str:
    """The begin of what came, for a message."""
    if isinstance(value, bytes):
        return repr(value[:SHOWN])
    return type(value).__name__ if isinstance(value, dict | list) else f"{str(value)[:SHOWN]!r}"


def member(value: Any, name: str) -> Any:
    """`value[name]` of a JSON object. Raises MalformedReplyError."""
    if not isinstance(value, dict) or name not in value:
        raise MalformedReplyError(f"the answer has no {name!r} where there should be one")
    return value[name]


def numbers(value: object) -> NDArray[np.float32] | object:
    """One answer: a list of numbers as it is, a text as base64 of float32, little-endian: (m,)."""
    if not isinstance(value, str):
        return value
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedReplyError("an answer is a text, and not the base64 of its numbers") from error
    if len(content) % 4:
        raise MalformedReplyError(f"an answer in base64 has {len(content)} bytes, which are not 4 a number")
    return np.frombuffer(content, "<f4")


def texts(batch: Batch, protocol: str) -> list[str]:
    """The batch as texts. Raises UsageError."""
    found = [item for item in batch if isinstance(item, str)]
    if isinstance(batch, Tensor) or len(found) != len(batch):
        raise UsageError(f"--protocol {protocol} carries texts; images go over oip, or over json with a template")
    return found


def _no_constant(name: str) -> float:
    raise MalformedReplyError(f"the answer holds {name}, which is not a number of JSON")
