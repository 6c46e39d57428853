"""What tests of remote suspects share: models that answer by a formula, and transports that speak the protocols."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import httpx2
import numpy as np

from sslguard.suspects.remote import Remote, RemoteSuspect, open_remote

ADDRESS = "https://suspect.test/api"
WIDTH = 6


def vector(content: bytes, width: int = WIDTH, salt: bytes = b"") -> np.ndarray:
    """Return a unit vector that is a function of the content alone."""
    seed = int.from_bytes(hashlib.sha256(salt + content).digest()[:8], "big")
    row = np.random.default_rng(seed).normal(size=width).astype(np.float32)
    return row / np.linalg.norm(row)


def rows_of(texts: list[str], **how: Any) -> np.ndarray:
    """Return the vectors of texts, one a row."""
    return np.stack([vector(text.encode(), **how) for text in texts])


def some_texts(n: int) -> list[str]:
    """Return `n` texts, none of them ASCII."""
    return [f"text number {i}, with ümläuts and \u4e2d" for i in range(n)]


def tei_reply(request: httpx2.Request) -> httpx2.Response:
    """Answer as text-embeddings-inference does."""
    return httpx2.Response(200, json=rows_of(json.loads(request.content)["inputs"]).tolist())


def openai_reply(request: httpx2.Request) -> httpx2.Response:
    """Answer in reverse order, so that only `index` tells which is which."""
    body = json.loads(request.content)
    data = []
    for i, row in enumerate(rows_of(body["input"])):
        coded = base64.b64encode(row.astype("<f4").tobytes()).decode()
        data.append({"index": i, "embedding": coded if body["encoding_format"] == "base64" else row.tolist()})
    return httpx2.Response(200, json={"object": "list", "data": data[::-1], "model": body["model"]})


class Server:
    """A transport that notes every request; `reply` may be replaced."""

    def __init__(self, reply: Callable[[httpx2.Request], Any] = tei_reply) -> None:
        """Keep the function that answers."""
        self.reply = reply
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> Any:
        """Note and answer a request."""
        self.requests.append(request)
        return self.reply(request)

    def suspect(self, address: str = ADDRESS, **options: Any) -> RemoteSuspect:
        """Open the suspect at this server, without waits between attempts."""
        settings: dict[str, Any] = {"protocol": "tei", "request_size": 4, "reask": 0, "attempts": 2, **options}
        suspect = open_remote(address, Remote(**settings), transport=httpx2.MockTransport(self))
        suspect._retrying.first = 0.0
        return suspect

    @property
    def asked(self) -> list[str]:
        """Return every text that was asked, in order of arrival, over TEI."""
        return [text for request in self.requests for text in json.loads(request.content)["inputs"]]
