"""Suspects that are hostile or broken: each ends in answers or in one clear error, within its time."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from helpers.remote_servers import ADDRESS, Server, rows_of, some_texts, tei_reply
from sslguard.errors import SuspectError
from sslguard.suspects.base import UnansweredError
from sslguard.suspects.http import Call, Credential, Exchange, _retry_after
from sslguard.suspects.remote import Remote, open_remote
from sslguard.suspects.steadiness import TOLERANCE

QUERIES = some_texts(12)


def always(**response: Any) -> Server:
    return Server(lambda _: httpx2.Response(**{"status_code": 200, **response}))


def failure_of(server: Server, **options: Any) -> str:
    """The one sentence with which a verification of this suspect ends."""
    texts = some_texts(400)
    with server.suspect(**options) as suspect, pytest.raises(SuspectError) as caught:
        np.concatenate([suspect.embed(texts[start : start + 4]) for start in range(0, 400, 4)])
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    assert caught.value.exit_code == 3
    return message


class TestAnswersThatAreNone:
    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"", "not JSON"),
            (b"<html>busy</html>", "not JSON"),
            (json.dumps([[0.5] * 6] * 4).encode()[:40], "not JSON"),
            (b"[" * 200_000, "nested too deep"),
            (b'{"a":' * 200_000, "nested too deep"),
            (b"[" * 60 + b"1" + b"]" * 60, "must be a list of 4"),
            (b"[" + b"[" * 60 + b"1" + b"]" * 60 + b",[1],[1],[1]]", "answer"),
            (b"[[NaN],[1],[1],[1]]", "NaN, which is not a number"),
            (b"[[1],[Infinity],[1],[1]]", "Infinity, which is not a number"),
            (b"[[1],[1e999],[1],[1]]", "NaN, infinite or beyond"),
            (b"[[1],[1e39],[1],[1]]", "beyond float32"),
            (b"[[1],[" + b"9" * 5000 + b"],[1],[1]]", "answer"),
            (b"[[1],[" + b"9" * 400 + b"],[1],[1]]", "real numbers"),
            (b"[[1],[null],[1],[1]]", "real numbers"),
            (b"[null,null,null,null]", "real numbers|one row"),
            (b'[["1"],["1"],["1"],["1"]]', "real numbers"),
            (b"[[true],[true],[true],[true]]", "bool"),
            (b"[1,2,3,4]", "one row a query"),
            (b"[[1],[1,2],[1],[1]]", "not an array"),
            (b"[[],[],[],[]]", "not 0"),
            (b"[[1],[1],[1]]", "must be a list of 4"),
            (b"[[1],[1],[1],[1],[1]]", "must be a list of 4"),
            (b'{"error": "busy"}', "must be a list of 4"),
            (b"null", "must be a list of 4"),
            (b"\xff\xfe\x00", "not JSON"),
            (b'[["\xed\xa0\x80"]]', "must be a list of 4"),
        ],
        ids=lambda value: str(value[:24]),
    )
    def test_content(self, content: bytes, complaint: str) -> None:
        assert re.search(complaint, failure_of(always(content=content)))

    @pytest.mark.parametrize(
        "outputs",
        [
            None,
            "x",
            [],
            [1],
            [{}],
            [{"name": "y", "datatype": "FP32", "shape": [4, 2]}],
            [{"name": "y", "datatype": "FP32", "shape": [4, 2], "data": [1.0] * 7}],
            [{"name": "y", "datatype": "FP32", "shape": [4, 2], "data": [[1.0], [1.0, 2.0]]}],
            [{"name": "y", "datatype": "FP32", "shape": [4, 2], "data": ["1"] * 8}],
            [{"name": "y", "datatype": "FP32", "shape": [4, 10**12], "data": []}],
            [{"name": "y", "datatype": "FP32", "shape": [4, -2], "data": [1.0] * 8}],
            [{"name": "y", "datatype": "FP32", "shape": [4, 2, 2], "data": [1.0] * 16}],
            [{"name": "y", "datatype": "BYTES", "shape": [4, 2], "data": ["1"] * 8}],
            [{"name": "y", "datatype": {}, "shape": [4, 2], "data": [1.0] * 8}],
            [{"name": "y", "datatype": "FP32", "shape": [4, 2], "parameters": {"binary_data_size": 32}}],
            [{"name": "y", "datatype": "FP32", "shape": [4, 2], "parameters": {"binary_data_size": -1}}],
            [{"name": "y", "datatype": "FP32", "shape": [4, 2], "parameters": {"binary_data_size": "8"}}],
        ],
        ids=str,
    )
    def test_tensors(self, outputs: Any) -> None:
        def reply(request: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(404) if request.method == "GET" else httpx2.Response(200, json={"outputs": outputs})

        assert "first request went unanswered" in failure_of(Server(reply), protocol="oip", model="m")

    @pytest.mark.parametrize("length", ["-1", "999999999999999999999999", "x", "3.5", "10", "٣"])
    def test_lengths_of_tensors_in_bytes(self, length: str) -> None:
        def reply(request: httpx2.Request) -> httpx2.Response:
            headers = {"Inference-Header-Content-Length": length.encode()}
            return httpx2.Response(404) if request.method == "GET" else httpx2.Response(200, headers=headers, text="{}")

        assert "unanswered" in failure_of(Server(reply), protocol="oip", model="m", binary=True)

    def test_base64_that_is_none(self) -> None:
        for coded, complaint in (
            ("!!!!", "not the base64"),
            ("QUI=", "must have 4 bytes a number, and has 2"),
            ("AADAfw==", "NaN"),
        ):
            data = [{"index": i, "embedding": coded} for i in range(4)]
            assert complaint in failure_of(always(json={"data": data}), protocol="openai", model="m")

    def test_control_characters_stay_out_of_the_terminal(self) -> None:
        from sslguard.cli.output import printable

        said = failure_of(always(status_code=400, text="\x1b[2J\r\nroot"))
        assert "\x1b" not in printable(said)


class TestChangingModels:
    def test_wrong_width_halfway_ends_it_and_keeps_the_answers(self, tmp_path: Path) -> None:
        server = Server()

        def reply(request: httpx2.Request) -> httpx2.Response:
            texts = json.loads(request.content)["inputs"]
            return httpx2.Response(200, json=rows_of(texts, width=6 if len(server.requests) <= 9 else 5).tolist())

        server.reply = reply
        said = failure_of(server, cache=tmp_path, patience=3, workers=1)
        assert "3 requests in a row" in said
        assert "answered 6 numbers a query before, and now 5" in said
        again = Server()
        with again.suspect(cache=tmp_path) as suspect:
            suspect.embed(some_texts(36))
        assert again.requests == []

    def test_one_wrong_width_is_a_missing_answer(self) -> None:
        server = Server()

        def reply(request: httpx2.Request) -> httpx2.Response:
            texts = json.loads(request.content)["inputs"]
            return httpx2.Response(200, json=rows_of(texts, width=5 if QUERIES[5] in texts else 6).tolist())

        server.reply = reply
        with server.suspect() as suspect:
            answers = suspect.embed(QUERIES)
        assert suspect.n_missing == 4
        assert not answers[4:8].any()
        np.testing.assert_array_equal(answers[:4], rows_of(QUERIES[:4]))

    def test_swapped_halfway(self) -> None:
        """The same width, other answers: nothing but asking again can tell."""
        server = Server()

        def reply(request: httpx2.Request) -> httpx2.Response:
            texts = json.loads(request.content)["inputs"]
            salt = b"" if len(server.requests) <= 60 else b"other"
            return httpx2.Response(200, json=rows_of(texts, salt=salt).tolist())

        server.reply = reply
        with server.suspect(reask=4) as suspect:
            for start in range(0, 400, 4):
                suspect.embed(some_texts(400)[start : start + 4])
            suspect.finish()
        report = suspect.report()
        assert report["again_twice"] == {"n": 10, "median": 0.0, "worst": 0.0, "n_equal": 10}
        assert report["again"]["n"] == 10  # 4 of the first batch, one each of batches 2, 4, … 64
        assert report["n_changed"] == 9  # all but batch 64, which the other model answered already
        assert report["n_missing"] == 0

    def test_noise_is_measured_and_is_no_change(self) -> None:
        noise = np.random.default_rng(0)

        def reply(request: httpx2.Request) -> httpx2.Response:
            rows = rows_of(json.loads(request.content)["inputs"])
            return httpx2.Response(200, json=(rows + noise.normal(size=rows.shape) * 0.05).tolist())

        with Server(reply).suspect(reask=8) as suspect:
            for start in range(0, 64, 16):
                suspect.embed(some_texts(64)[start : start + 16])
            suspect.finish()
        report = suspect.report()
        assert report["n_changed"] == 0
        assert report["again_twice"]["n_equal"] == 0
        assert TOLERANCE / 10 < report["again"]["worst"] < 0.1

    def test_asking_again_never_costs_answers(self) -> None:
        server = Server()
        server.reply = lambda request: tei_reply(request) if len(server.requests) in (1, 3) else httpx2.Response(500)
        with server.suspect(reask=4, attempts=1) as suspect:
            answers = suspect.embed(QUERIES)
            suspect.finish()
        assert suspect.n_missing == 4  # the second request alone
        assert answers.any(axis=1).sum() == 8
        assert suspect.report()["again"] is None
        assert suspect.report()["again_twice"] is None

    def test_no_query_is_repeated_before_the_last_new_one(self) -> None:
        server = Server()
        with server.suspect(reask=4, workers=1) as suspect:
            for start in range(0, 64, 16):
                suspect.embed(some_texts(64)[start : start + 16])
            assert server.asked == some_texts(64)
            suspect.finish()
        again = server.asked[64:]
        assert len(again) == 2 * 6  # 4 of the first batch, one each of batches 2 and 4
        assert again[:6] == again[6:]

    def test_nothing_is_asked_again_without_answers(self) -> None:
        server = Server()
        with server.suspect(reask=4) as suspect:
            suspect.finish()
        assert server.requests == []


class TestStorms:
    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
    def test_what_passes_is_waited_for(self, status: int) -> None:
        server = Server()
        server.reply = lambda request: tei_reply(request) if len(server.requests) % 3 == 0 else httpx2.Response(status)
        with server.suspect(attempts=8) as suspect:
            np.testing.assert_array_equal(suspect.embed(QUERIES), rows_of(QUERIES))
        assert suspect.n_missing == 0
        assert suspect.report()["n_requests_again"] == len(server.requests) - 3

    @pytest.mark.parametrize("status", [429, 500])
    def test_endless_ones_end(self, status: int) -> None:
        server = always(status_code=status, headers={"Retry-After": "0"})
        assert f"status {status}" in failure_of(server, attempts=3)
        assert len(server.requests) == 3  # the first request alone, nothing was ever answered

    def test_endless_ones_end_halfway(self) -> None:
        server = Server()
        server.reply = lambda request: tei_reply(request) if len(server.requests) <= 10 else httpx2.Response(503)
        assert "8 requests in a row went unanswered" in failure_of(server, attempts=1, workers=1)
        assert len(server.requests) == 18

    def test_failures_in_between_are_missing_and_counted(self) -> None:
        server = Server()
        server.reply = lambda request: tei_reply(request) if len(server.requests) % 2 else httpx2.Response(500)
        with server.suspect(attempts=1, workers=1) as suspect:
            answers = suspect.embed(QUERIES + QUERIES)
        assert suspect.n_missing == 12
        assert (~answers.any(axis=1)).sum() == 12

    def test_a_day_of_waiting_is_not_waited(self) -> None:
        server = always(status_code=429, headers={"Retry-After": "86400"})
        start = time.monotonic()
        with (
            server.suspect(attempts=99, time_limit=0.5) as suspect,
            pytest.raises(SuspectError, match=r"limit of 0.5 s"),
        ):
            suspect.embed(["a"])
        assert time.monotonic() - start < 3
        assert len(server.requests) == 1

    @pytest.mark.parametrize(
        ("value", "low", "high"),
        [("7", 7, 7), (" 0 ", 0, 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0), ("9" * 99, 1e8, 1e9)],
    )
    def test_retry_after(self, value: str, low: float, high: float) -> None:
        found = _retry_after(value)
        assert found is not None
        assert low <= found <= high

    @pytest.mark.parametrize("value", [None, "", "soon", "-5", "1e5", "nan", "Wed, 99 Oct 99999 07:28:00 GMT"])
    def test_retry_after_that_is_none(self, value: str | None) -> None:
        assert _retry_after(value) is None

    @pytest.mark.parametrize("status", [401, 402, 403, 404, 405])
    def test_hopeless_is_not_asked_again(self, status: int) -> None:
        server = always(status_code=status, text="no")
        failure_of(server, attempts=9)
        assert len(server.requests) == 1


def test_what_is_meant_for_this_machine_goes_through_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A credential may go in clear to this machine, since it does not leave it."""
    monkeypatch.setenv("SUSPECT_TOKEN", "correct-horse")
    monkeypatch.setenv("HTTP_PROXY", "http://gateway.test:3128")
    credential = Credential.from_environment("SUSPECT_TOKEN")
    for address in ("http://localhost:8002", "http://127.0.0.1:8002", "http://[::1]:8002"):
        assert not Exchange(address, credential=credential)._client._mounts
    assert Exchange("https://suspect.test")._client._mounts


def test_codings_that_were_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codings within codings take their reader long and show nothing that a limit of bytes would see."""
    nested = gzip.compress(gzip.compress(b"[[1.0]]"))
    for coding in ("gzip, gzip", "deflate, gzip", "zstd", "br", "gzip, gzip, gzip, gzip, gzip"):
        said = failure_of(always(stream=Body(nested), headers={"Content-Encoding": coding}))
        assert "in an encoding that was not asked for" in said


class TestRedirects:
    @pytest.mark.parametrize(
        "target",
        [
            "https://evil.test/embed",
            "http://suspect.test/api/embed",
            "https://suspect.test:8443/api/embed",
            "//evil.test/embed",
            "https://me:pw@suspect.test/api/embed",
            "file:///etc/passwd",
            "https://evil.test@suspect.test/",
        ],
    )
    @pytest.mark.parametrize("status", [301, 307, 308])
    def test_elsewhere_is_not_asked(self, target: str, status: int) -> None:
        server = always(status_code=status, headers={"Location": target})
        assert "another server" in failure_of(server)
        assert [request.url.host for request in server.requests] == ["suspect.test"]

    def test_same_server(self) -> None:
        def reply(request: httpx2.Request) -> httpx2.Response:
            if request.url.path == "/moved":
                return tei_reply(request)
            return httpx2.Response(307, headers={"Location": "/moved"})

        with Server(reply).suspect() as suspect:
            np.testing.assert_array_equal(suspect.embed(QUERIES), rows_of(QUERIES))

    def test_circles_end(self) -> None:
        server = always(status_code=308, headers={"Location": "/api/embed"})
        assert "redirects more than 3 times" in failure_of(server)
        assert len(server.requests) == 4

    @pytest.mark.parametrize("location", ["http://[::1", "\x7f", "https://h:99999999/"])
    def test_no_address(self, location: str) -> None:
        failure_of(always(status_code=307, headers={"Location": location}))

    def test_a_post_that_would_become_a_get(self) -> None:
        assert "drops the request" in failure_of(always(status_code=302, headers={"Location": "/api/x"}))


class Endless(httpx2.AsyncByteStream):
    """A body that never ends: `piece` again and again, `pause` seconds apart."""

    def __init__(self, piece: bytes, pause: float = 0.0) -> None:
        self.piece, self.pause, self.sent, self.closed = piece, pause, 0, False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(self.pause)
            self.sent += len(self.piece)
            yield self.piece

    async def aclose(self) -> None:
        self.closed = True


class TestSizeAndTime:
    def test_endless_answers_are_cut_off(self) -> None:
        body = Endless(b" " * 65_536)
        tracemalloc.start()
        try:
            said = failure_of(Server(lambda _: httpx2.Response(200, stream=body)))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert "more than 33,554,432 bytes, the limit" in said
        assert body.sent <= (1 << 25) + 65_536
        assert body.closed
        assert peak < 3 << 25

    def test_promised_gigabytes_are_not_read(self) -> None:
        body = Endless(b" " * 65_536)
        server = Server(lambda _: httpx2.Response(200, headers={"Content-Length": str(10**12)}, stream=body))
        assert "more than" in failure_of(server)
        assert body.sent == 0

    def test_compressed_gigabytes_are_not_unpacked(self) -> None:
        bomb = gzip.compress(b" " * (1 << 28), 9)  # 256 MiB in 256 KiB
        tracemalloc.start()
        try:
            said = failure_of(always(stream=Body(bomb), headers={"Content-Encoding": "gzip"}))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert "more than" in said
        assert peak < 4 << 25

    def test_compression_that_is_none(self) -> None:
        assert "gave no answer" in failure_of(always(stream=Body(b"not gzip"), headers={"Content-Encoding": "gzip"}))

    def test_trickle_ends_in_time(self) -> None:
        body = Endless(b" ", pause=0.01)
        start = time.monotonic()
        said = failure_of(Server(lambda _: httpx2.Response(200, stream=body)), request_limit=0.3, attempts=2)
        assert "did not answer within 0.3 s" in said
        assert time.monotonic() - start < 3
        assert body.closed

    def test_silence_ends_in_time(self) -> None:
        async def silent(_: httpx2.Request) -> httpx2.Response:
            await asyncio.sleep(60)
            raise AssertionError("unreachable")

        start = time.monotonic()
        assert "0.2 s" in failure_of(Server(silent), request_limit=0.2)
        assert time.monotonic() - start < 3

    def test_time_limit_of_everything(self, tmp_path: Path) -> None:
        async def slow(request: httpx2.Request) -> httpx2.Response:
            await asyncio.sleep(0.02)
            return tei_reply(request)

        said = failure_of(Server(slow), time_limit=0.5, workers=1, cache=tmp_path)
        assert "the same command goes on" in said
        again = Server()
        with again.suspect(cache=tmp_path) as suspect:
            suspect.embed(some_texts(400))
        assert 0 < len(again.requests) < 100

    def test_closing_ends_waiting(self) -> None:
        server = always(status_code=429, headers={"Retry-After": "50"})
        suspect = server.suspect(attempts=99)
        ended = threading.Event()

        def ask() -> None:
            with pytest.raises(SuspectError):
                suspect.embed(["a"])
            ended.set()

        thread = threading.Thread(target=ask)
        thread.start()
        while not server.requests:
            time.sleep(0.005)
        suspect.close()
        assert ended.wait(3)
        thread.join()
        with pytest.raises(SuspectError):
            suspect.embed(["a"])
        suspect.close()


class Body(httpx2.AsyncByteStream):
    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def listening() -> Iterator[Callable[[Handler], str]]:
    """A factory of servers on loopback that write whatever bytes they like; returns their address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    servers: list[asyncio.Server] = []
    writers: list[asyncio.StreamWriter] = []

    def serve(handler: Handler) -> str:
        async def kept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            await handler(reader, writer)

        started = asyncio.run_coroutine_threadsafe(asyncio.start_server(kept, "127.0.0.1", 0), loop)
        servers.append(started.result(5))
        host, port = servers[-1].sockets[0].getsockname()
        return f"http://{host}:{port}"

    yield serve

    async def end() -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in servers:
            server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # sockets are closed in the loop's next turn
        loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)
    thread.join(5)
    loop.close()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    size = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    return await reader.readexactly(size)


def over_loopback(address: str, **options: Any) -> str:
    settings: dict[str, Any] = {"protocol": "tei", "attempts": 1, "request_limit": 0.4, **options}
    with open_remote(address, Remote(**settings)) as suspect, pytest.raises(SuspectError) as caught:
        suspect.embed(["a"])
    return str(caught.value)


class TestOnTheWire:
    """What only bytes on a socket can do."""

    @pytest.mark.parametrize(
        ("sent", "complaint"),
        [
            (b"", "gave no answer"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[[1.0", "gave no answer"),
            (b"SSH-2.0-OpenSSH_9.6\r\n", "gave no answer"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "gave no answer"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n[[1.0]", "gave no answer"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", "gave no answer"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n[[1.", "gave no answer"),
            (b"HTTP/1.1 999 ?\r\nContent-Length: 0\r\n\r\n", "status 999"),
            (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 400_000 + b"\r\n\r\n", "gave no answer"),
        ],
        ids=lambda value: str(value[:40]),
    )
    def test_broken_http(self, sent: bytes, complaint: str, listening: Callable[[Handler], str]) -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(sent)
            writer.close()

        assert complaint in over_loopback(listening(handler), request_limit=5.0)

    @pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nX-Pad: ", b"HTTP/1.1 200 OK\r\n\r\n"])
    def test_a_byte_at_a_time(self, begin: bytes, listening: Callable[[Handler], str]) -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(begin)
            for _ in range(1000):
                writer.write(b"1")
                await asyncio.sleep(0.02)

        start = time.monotonic()
        assert "within 0.4 s" in over_loopback(listening(handler))
        assert time.monotonic() - start < 3

    def test_a_server_that_never_reads(self, listening: Callable[[Handler], str]) -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(60)

        exchange = Exchange(listening(handler), seconds=0.4)
        start = time.monotonic()
        with pytest.raises(UnansweredError, match=r"within 0.4 s"):
            exchange.send(Call(body=b" " * (1 << 25)))
        assert time.monotonic() - start < 3
        exchange.close()

    def test_endless_interim_answers(self, listening: Callable[[Handler], str]) -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            while not writer.is_closing():
                writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)
                await writer.drain()
                await asyncio.sleep(0.001)

        assert "within 0.4 s" in over_loopback(listening(handler))

    def test_nobody_there(self) -> None:
        assert "gave no answer" in over_loopback("http://127.0.0.1:9")

    def test_cookies_are_not_kept(self, listening: Callable[[Handler], str]) -> None:
        heads: list[bytes] = []

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(2):
                head = await reader.readuntil(b"\r\n\r\n")
                heads.append(head)
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                body = b"[[1.0]]"
                writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

        with open_remote(listening(handler), Remote(protocol="tei", reask=0)) as suspect:
            suspect.embed(["a"])
            suspect.embed(["b"])
        assert len(heads) == 2
        assert b"cookie" not in heads[1].lower()


def test_verdict_counts_missing_answers(images: Any, key_of: Any) -> None:
    """Through a whole verification: what went unanswered is zero, counted, and in the verdict."""
    from sslguard.verification.verdict import verify

    def reply(request: httpx2.Request) -> httpx2.Response:
        found = json.loads(request.content)["images"]
        return (
            httpx2.Response(503) if len(server.requests) == 2 else httpx2.Response(200, json=[[1.0, 0.0]] * len(found))
        )

    server = Server(reply)
    options = {"protocol": "json", "body": '{"images": "{images}"}', "found_at": "", "request_size": 2, "attempts": 1}
    with server.suspect(**options) as suspect:
        key = key_of(n=8)
        verdict = verify(key, suspect, images(40), control_scores={str(i): 0.0 for i in range(99)})
    assert verdict.n_missing == 2
    assert verdict.significance.n_queries == key.n_queries
    assert verdict.suspect == ADDRESS
