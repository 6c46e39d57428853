"""What tests read of signed documents and forge in them, by the standard library alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

from sslguard.files import canonical_json


def statement_of(content: bytes) -> dict[str, Any]:
    """Return the statement in an envelope."""
    return json.loads(base64.b64decode(json.loads(content)["payload"]))


def predicate_of(content: bytes) -> dict[str, Any]:
    """Return what a document says."""
    return statement_of(content)["predicate"]


def enveloped(statement: Mapping[str, Any], like: bytes) -> bytes:
    """Return an envelope of this statement with the type and the signatures of another."""
    payload = base64.b64encode(canonical_json(statement)).decode()
    return canonical_json({**json.loads(like), "payload": payload}) + b"\n"


def forged(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a document whose statement was changed and not signed again."""
    statement = statement_of(content)
    change(statement)
    return enveloped(statement, content)


def disclosed(*contents: bytes) -> bytes:
    """Return files joined, each document beside the statement in it, for a search for what must not be there."""
    parts = []
    for content in contents:
        parts.append(content)
        if content.startswith(b'{"payload"'):
            parts.append(canonical_json(statement_of(content)))
    return b"".join(parts)
