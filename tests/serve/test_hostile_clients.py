"""Clients who hold connections, memory or the encoder: others are answered, and the server ends when it is told to."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from sslguard.encoders.base import Encoder
from sslguard.encoders.load import load_encoder, new_text_encoder

pytest.importorskip("fastapi")
from sslguard.serve import connections, open_server, server, wire
from sslguard.serve.app import Settings
from sslguard.serve.budget import Budget, Held, OverloadedError

HALF = b"POST /embed HTTP/1.1\r\nHost: x\r\nX-a: "
WHOLE = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
HEADERS = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


@pytest.fixture(scope="module")
def words() -> Encoder:
    return new_text_encoder("bag-of-words", seed=1, max_length=12)


@contextmanager
def running(encoder: Any, settings: Settings | None = None) -> Iterator[Any]:
    """Run a server in a thread; the thread must end within 10 seconds."""
    served, started = open_server(encoder, settings, port=0), threading.Event()
    thread = threading.Thread(target=served.run, kwargs={"started": started.set})
    thread.start()
    try:
        assert started.wait(10)
        yield served
    finally:
        served.stop()
        thread.join(10)
        assert not thread.is_alive()


def connected(served: Any, *sent: bytes) -> socket.socket:
    host, port = served.address.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)), timeout=5)
    for part in sent:
        made.sendall(part)
    return made


def ended(one: socket.socket) -> bool:
    """Whether the other side ended the connection within 5 seconds, in whatever way."""
    try:
        while one.recv(1 << 16):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def healthy(served: Any) -> bool:
    return httpx2.get(f"{served.address}/health", timeout=5).status_code == 200


class Slow:
    """An encoder of texts that takes `seconds` an item and answers in `dim` numbers."""

    def __init__(self, words: Encoder, seconds: float = 0.0, dim: int = 1) -> None:
        self.preprocess, self.seconds, self.dim = words.preprocess, seconds, dim
        self.begun = threading.Event()

    def embed(self, batch: Any, /) -> np.ndarray:
        self.begun.set()
        time.sleep(self.seconds * len(batch))
        return np.ones((len(batch), self.dim), np.float32)


class TestConnections:
    @pytest.mark.parametrize(
        "sent", [(), (b"P",), (HALF,), (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", HALF)], ids=repr
    )
    def test_headers_that_do_not_end(self, words: Encoder, sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
        with running(words) as served, connected(served, *sent) as held:
            assert ended(held)
            assert healthy(served)

    def test_headers_that_trickle_get_no_more_time(self, words: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
        with running(words) as served, connected(served, HALF) as held:
            begun = time.monotonic()
            with suppress(ConnectionError):
                while time.monotonic() - begun < 5:
                    held.sendall(b"a")
                    time.sleep(0.05)
            assert time.monotonic() - begun < 2

    def test_a_body_that_does_not_end(self, words: Encoder) -> None:
        with running(words, Settings(body_seconds=0.3)) as served, connected(served, HEADERS) as held:
            assert held.recv(100).startswith(b"HTTP/1.1 408")
            assert healthy(served)

    @pytest.mark.parametrize("sent", [HALF, HEADERS], ids=["headers", "bodies"])
    def test_connections_of_one_client_do_not_shut_others_out(
        self, words: Encoder, sent: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connections, "MAX_OF_CLIENT", 6)
        with running(words) as served:
            held = [connected(served, sent) for _ in range(15)]
            assert all(healthy(served) for _ in range(3))
            assert ended(held[0])  # the first is the one that has kept the server waiting longest
            for one in held:
                one.close()

    def test_connections_of_all_clients(self, words: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "MAX_CONNECTIONS", 6)
        with running(words) as served:
            held = [connected(served, HALF) for _ in range(15)]
            assert healthy(served)
            for one in held:
                one.close()

    def test_where_all_are_at_work_a_new_one_is_refused(self, words: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "MAX_OF_CLIENT", 2)
        body = json.dumps({"inputs": "a"}).encode()
        whole = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        slow = Slow(words, 1.0)
        with running(slow) as served:
            held = [connected(served, whole) for _ in range(2)]
            assert slow.begun.wait(5)
            time.sleep(0.2)
            with connected(served) as refused:
                said = refused.recv(1000)
            assert said.startswith(b"HTTP/1.1 503"), said
            assert b"\r\nRetry-After: 1\r\n" in said
            for one in held:
                assert one.recv(1000).startswith(b"HTTP/1.1 200")
                one.close()

    def test_an_answer_that_nobody_reads(self, words: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "READING_SECONDS", 0.5)
        body = json.dumps({"inputs": ["a"] * 200}).encode()
        whole = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        with running(Slow(words, dim=20_000)) as served, connected(served) as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            held.sendall(whole)
            memory = served.app.state.service.memory
            until = time.monotonic() + 8
            while memory.held <= 1 << 25 and time.monotonic() < until:
                time.sleep(0.01)
            assert memory.held > 1 << 25
            while memory.held and time.monotonic() < until:
                time.sleep(0.05)
            assert memory.held == 0
            assert healthy(served)

    def test_clients_are_networks(self) -> None:
        assert connections._client(("10.0.0.1", 5)) == "10.0.0.1"
        assert connections._client(("2001:db8:1:2:3::4", 5)) == connections._client(("2001:db8:1:2:9::7", 5))
        assert connections._client(None) == ""


class TestMemory:
    def test_budget(self) -> None:
        budget = Budget(10, "bytes")
        first, second = Held(budget), Held(budget)
        first.take(25)  # alone it may take more than there is
        first.take(3)
        with pytest.raises(OverloadedError, match="28 bytes are in work"):
            second.take(1)
        first.give_all()
        second.take(4)
        with pytest.raises(OverloadedError):
            first.take(7)
        first.take(6)
        second.give_all()
        first.give_all()
        assert budget.held == 0

    def test_bodies_and_answers_beyond_the_memory_are_refused(self, words: Encoder) -> None:
        slow = Slow(words, 1.0, dim=100)
        with running(slow, Settings(max_held=4000)) as served:
            found: list[int] = []
            first = threading.Thread(target=lambda: found.append(_asked(served, {"inputs": "a"}).status_code))
            first.start()
            assert slow.begun.wait(5)
            answers = _asked(served, {"inputs": "a"})  # its answer of 2,400 bytes has no place beside the first
            body = _asked(served, {"inputs": "a" * 3000})
            for refused in (answers, body):
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            first.join(10)
            assert found == [200]
            assert _asked(served, {"inputs": "b"}).status_code == 200

    def test_pixels_beyond_the_limit_are_refused_before_they_are_decoded(self) -> None:
        with running(load_encoder("random:resnet-narrow:1"), Settings(max_pixels=1 << 20)) as served:
            large = _picture(2048)

            def ask(n: int, found: list[int]) -> None:
                found.append(_asked(served, {"images": [large] * n}).status_code)

            found, until = [200], time.monotonic() + 20
            # Whichever comes second while the other is decoded is refused; a fast machine may need another try.
            while 503 not in found and time.monotonic() < until:
                found = []
                both = [threading.Thread(target=ask, args=(4, found)) for _ in range(2)]
                for one in both:
                    one.start()
                for one in both:
                    one.join(10)
            assert sorted(found) == [200, 503]
            assert healthy(served)

    @pytest.mark.parametrize(
        ("body", "complaint"),
        [
            (b'{"inputs": [' + b"1," * (1 << 22) + b"1]}", "commas and brackets"),
            (json.dumps({"inputs": "a" * ((1 << 17) + 1)}).encode(), "131,072 characters"),
            (b'{"inputs": ' + b"[" * (1 << 22) + b"]" * (1 << 22) + b"}", "commas and brackets"),
        ],
        ids=["values", "text", "nested"],
    )
    def test_bodies_that_grow(self, words: Encoder, body: bytes, complaint: str) -> None:
        with pytest.raises(wire.BadRequestError, match=complaint):
            wire.tei_ask(body, 1024)

    def test_a_jpeg_of_many_scans(self) -> None:
        content = io.BytesIO()
        Image.new("RGB", (64, 64)).save(content, "JPEG", progressive=True)
        assert wire.picture(base64.b64encode(content.getvalue()).decode()).decoded().shape == (3, 64, 64)
        scans = content.getvalue()[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00" * 200 + b"\xff\xd9"
        with pytest.raises(wire.BadRequestError, match="100 scans"):
            wire.picture(base64.b64encode(scans).decode())


class TestStopping:
    def test_slow_requests_do_not_keep_it(self, words: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "GRACE_SECONDS", 1)
        slow = Slow(words, 0.1)
        found: list[Any] = []
        with running(slow) as served, connected(served, HALF), connected(served, HEADERS):
            asking = threading.Thread(target=lambda: found.append(_asked(served, {"inputs": ["a"] * 1000})))
            asking.start()
            assert slow.begun.wait(5)
            begun = time.monotonic()
            served.stop()
            asking.join(10)
        assert time.monotonic() - begun < 5
        assert (found[0].status_code, found[0].headers["retry-after"]) == (503, "1")


def _asked(served: Any, body: dict[str, Any]) -> Any:
    path = "/v1/embed" if "images" in body else "/embed"
    return httpx2.post(f"{served.address}{path}", json=body, timeout=20)


def _picture(side: int) -> str:
    content = io.BytesIO()
    Image.new("L", (side, side)).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()
