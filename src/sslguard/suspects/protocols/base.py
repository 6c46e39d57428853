"""The interface of protocols: make a request from queries, and read answers from the reply. Protocols send nothing."""

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

SHOWN = 80  # characters of a reply that an error message quotes


class MalformedReplyError(ValueError):
    """A reply that the protocol does not allow."""


class IncompleteReplyError(MalformedReplyError):
    """A reply with fewer answers than queries. Smaller requests show which ones are missing."""


class Protocol(ABC):
    """One way of asking a server for embeddings.

    Attributes:
        name: Name on the command line.
        largest: Most queries of a request; None for any number.
    """

    name: ClassVar[str]
    largest: int | None = None

    def begin(self, exchange: Exchange) -> None:
        """Ask the server what must be known before the first query. The default asks nothing.

        Raises:
            SuspectError: The server gave no usable answer.
        """
        del exchange

    @abstractmethod
    def call(self, batch: Batch, /) -> Call:
        """Return the request for a batch of n queries.

        Raises:
            UsageError: The protocol cannot carry these items.
        """

    @abstractmethod
    def answers(self, reply: Reply, n: int) -> object:
        """Return what should be n rows of numbers, in the order of the queries. `suspects.base.checked` checks it.

        Raises:
            IncompleteReplyError: Answers are missing.
            MalformedReplyError: The protocol does not allow this reply.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return everything, besides address and query, that answers depend on. JSON values only."""


def json_call(path: str, body: object) -> Call:
    """Return a POST request to `path` with `body` as JSON."""
    content = json.dumps(body, separators=(",", ":"), allow_nan=False)
    return Call(path, content.encode(), {"Content-Type": "application/json"})


def read_json(body: bytes) -> Any:
    """Return the value of a JSON document.

    Raises:
        MalformedReplyError: The document is truncated, nested too deep, or not JSON.
    """
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise MalformedReplyError(f"the answer is not JSON ({reason:.120}): {shown(body)}") from error


def shown(value: object) -> str:
    """Return the beginning of a value, for an error message. Of lists and objects only the type is shown."""
    if isinstance(value, bytes):
        return repr(value[:SHOWN])
    return type(value).__name__ if isinstance(value, dict | list) else f"{str(value)[:SHOWN]!r}"


def member(value: Any, name: str) -> Any:
    """Return `value[name]` of a JSON object.

    Raises:
        MalformedReplyError: `value` is not an object or has no such member.
    """
    if not isinstance(value, dict) or name not in value:
        raise MalformedReplyError(f"the answer has no {name!r} where there should be one")
    return value[name]


def numbers(value: object) -> NDArray[np.float32] | object:
    """Return one answer: a list as it is, a text decoded as base64 of little-endian float32, (m,).

    Raises:
        MalformedReplyError: The text is not base64 of whole float32 numbers.
    """
    if not isinstance(value, str):
        return value
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedReplyError("an answer is a text, but not the base64 of its numbers") from error
    if len(content) % 4:
        raise MalformedReplyError(f"an answer in base64 must have 4 bytes a number, and has {len(content)} bytes")
    return np.frombuffer(content, "<f4")


def embeddings(found: object, n: int, where: str) -> list[Any]:
    """Return a list of n answers.

    Args:
        found: What the reply holds.
        n: Number of queries.
        where: What the reply calls it, for error messages.

    Raises:
        IncompleteReplyError: The list has fewer answers.
        MalformedReplyError: It is no list, or has more.
    """
    if not isinstance(found, list) or len(found) > n:
        raise MalformedReplyError(f"{where} must be a list of {n} embeddings, not {shown(found)}")
    if len(found) < n:
        raise IncompleteReplyError(f"{where} must be a list of {n} embeddings, and has {len(found)}")
    return found


def texts(batch: Batch, protocol: str) -> list[str]:
    """Return the batch as texts.

    Args:
        batch: Queries.
        protocol: Name of the protocol, for the error message.

    Raises:
        UsageError: An item is not a text.
    """
    found = [item for item in batch if isinstance(item, str)]
    if isinstance(batch, Tensor) or len(found) != len(batch):
        raise UsageError(f"--protocol {protocol} carries texts; images go over oip, or over json with a template")
    return found


def _no_constant(name: str) -> float:
    raise MalformedReplyError(f"the answer holds {name}, which is not a number of JSON")
