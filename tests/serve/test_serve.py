"""A server of an encoder: every protocol answers what the encoder does, and bad requests cost nobody else theirs."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.in_process import InProcess, answered
from helpers.texts import described, tokenizer_json
from sslguard.encoders.base import Encoder
from sslguard.encoders.load import load_encoder, new_text_encoder
from sslguard.encoders.rebuild import build
from sslguard.encoders.text import TextPreprocess
from sslguard.errors import DataError, SuspectError, UsageError
from sslguard.suspects.opening import open_suspect
from sslguard.suspects.protocols.oip import LENGTH_HEADER, packed_texts
from sslguard.suspects.remote import Remote, open_remote

pytest.importorskip("fastapi")
from sslguard.serve import open_server, wire
from sslguard.serve.app import Settings, create_app
from sslguard.serve.batching import Batcher, Limits, OverloadedError

TEXTS = [f"some text number {i}" for i in range(9)]
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 1, 16, 16), dtype=np.uint8))


@pytest.fixture(scope="module")
def words() -> Encoder:
    encoder = new_text_encoder("bag-of-words", seed=1, max_length=12)
    encoder.module.eval()
    return encoder


@pytest.fixture(scope="module")
def pictures(tiny: Callable[..., Encoder]) -> Encoder:
    return tiny()


class TestProtocols:
    """What a remote suspect gets is what the encoder answers here."""

    @pytest.mark.parametrize(
        ("path", "options"),
        [
            ("", {"protocol": "oip", "model": "m"}),
            ("", {"protocol": "oip", "model": "m", "binary": True}),
            ("", {"protocol": "oip", "model": "m", "output_tensor": "embeddings", "binary": True}),
            ("/v1", {"protocol": "openai", "model": "m"}),
            ("/v1", {"protocol": "openai", "model": "m", "binary": True}),
            ("", {"protocol": "tei"}),
            ("/v1/embed", {"protocol": "json", "body": '{"texts": "{texts}"}', "found_at": "embeddings"}),
            ("/v1/embed", {"protocol": "json", "body": '{"texts": "{text}"}', "found_at": "embeddings"}),
        ],
        ids=str,
    )
    def test_texts(self, path: str, options: dict[str, Any], words: Encoder) -> None:
        transport = InProcess(create_app(words, Settings(name="m")))
        with open_remote(f"http://test{path}", Remote(**options), transport=transport) as suspect:
            np.testing.assert_allclose(suspect.embed(TEXTS), words.embed(TEXTS), atol=1e-6)
            suspect.finish()
        assert suspect.report()["n_changed"] == suspect.n_missing == 0

    @pytest.mark.parametrize(
        ("path", "options"),
        [
            ("", {"protocol": "oip", "model": "encoder"}),
            ("", {"protocol": "oip", "model": "encoder", "binary": True}),
            ("/v1/embed", {"protocol": "json", "body": '{"images": "{images}"}', "found_at": "embeddings"}),
            ("/v1/embed", {"protocol": "json", "body": '{"images": ["{image}"]}', "found_at": "embeddings[*]"}),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("channels", [1, 3])
    def test_images(self, path: str, options: dict[str, Any], channels: int, pictures: Encoder) -> None:
        items = IMAGES.expand(-1, channels, -1, -1)
        with open_remote(f"http://test{path}", Remote(**options), transport=InProcess(create_app(pictures))) as suspect:
            np.testing.assert_allclose(suspect.embed(items), pictures.embed(items), atol=1e-5)

    def test_floats_and_formats(self, pictures: Encoder) -> None:
        values = (IMAGES[:2].float() / 255).flatten().tolist()
        tensor = {"name": "x", "datatype": "FP32", "shape": [2, 1, 16, 16], "data": values}
        jpeg, content = io.BytesIO(), {"inputs": [tensor], "id": "seven"}
        Image.fromarray(IMAGES[0, 0].numpy()).save(jpeg, "JPEG", quality=100)
        uri = f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
        oip, jpg = answered(
            create_app(pictures),
            {"path": "/v2/models/encoder/infer", "json": content},
            {"path": "/v1/embed", "json": {"images": uri}},
        )
        assert oip.json()["id"] == "seven"
        (output,) = oip.json()["outputs"]
        assert (output["name"], output["datatype"], output["shape"]) == ("embeddings", "FP32", [2, 64])
        np.testing.assert_allclose(np.reshape(output["data"], (2, 64)), pictures.embed(IMAGES[:2]), atol=1e-5)
        assert np.shape(jpg.json()["embeddings"]) == (1, 64)

    def test_what_clients_ask_about_a_server(self, words: Encoder, pictures: Encoder) -> None:
        found = answered(
            create_app(words, Settings(name="m")),
            *(
                {"method": "GET", "path": path}
                for path in (
                    *("/health", "/v2/health/live", "/v2/health/ready", "/v2", "/v1/models", "/info"),
                    *("/v2/models/m", "/v2/models/m/ready"),
                )
            ),
        )
        assert [response.status_code for response in found] == [200] * 8
        assert found[3].json()["extensions"] == ["binary_tensor_data"]
        assert found[4].json()["data"][0]["id"] == "m"
        assert found[6].json()["inputs"] == [{"name": "texts", "datatype": "BYTES", "shape": [-1]}]
        (metadata,) = answered(create_app(pictures), {"method": "GET", "path": "/v2/models/encoder"})
        assert metadata.json()["inputs"][0]["datatype"] == "UINT8"
        assert metadata.json()["outputs"] == [{"name": "embeddings", "datatype": "FP32", "shape": [-1, 64]}]

    def test_openai_as_its_clients_read_it(self, words: Encoder) -> None:
        (response,) = answered(create_app(words), {"path": "/v1/embeddings", "json": {"model": "x", "input": "one"}})
        body = response.json()
        assert (body["object"], body["data"][0]["object"], body["data"][0]["index"]) == ("list", "embedding", 0)
        assert set(body["usage"]) == {"prompt_tokens", "total_tokens"}


def tensor(datatype: str, shape: Any, data: Any = None, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": data, **more}]}


def binary(head: Any, rest: bytes, length: str | None = None) -> dict[str, Any]:
    content = json.dumps(head).encode()
    return {"content": content + rest, "headers": {LENGTH_HEADER: length or str(len(content))}}


def png(width: int, height: int) -> str:
    content = io.BytesIO()
    Image.new("L", (width, height)).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


INFER, OPENAI, TEI, EITHER = "/v2/models/encoder/infer", "/v1/embeddings", "/embed", "/v1/embed"
BAD_TEXTS = [
    (OPENAI, {"content": b""}),
    (OPENAI, {"content": b"{"}),
    (OPENAI, {"content": b"[" * 100_000}),
    (OPENAI, {"content": b"\xff\xfe"}),
    (OPENAI, {"json": []}),
    (OPENAI, {"json": {}}),
    (OPENAI, {"json": {"input": []}}),
    (OPENAI, {"json": {"input": [1, 2]}}),
    (OPENAI, {"json": {"input": [["a"]]}}),
    (OPENAI, {"json": {"input": "a", "encoding_format": "int8"}}),
    (OPENAI, {"json": {"input": "a", "encoding_format": ["float"]}}),
    (OPENAI, {"json": {"input": "a", "dimensions": 10**6}}),
    (OPENAI, {"json": {"input": "a", "dimensions": 0}}),
    (OPENAI, {"json": {"input": "a", "dimensions": "3"}}),
    (OPENAI, {"json": {"input": [[1, -2]]}}),
    (OPENAI, {"json": {"input": [[1], []]}}),
    (OPENAI, {"json": {"input": ["a"] * 1025}}),
    (OPENAI, {"content": b'{"input": "\\ud800"}'}),
    (TEI, {"json": {"inputs": None}}),
    (TEI, {"json": {"inputs": {"a": 1}}}),
    (EITHER, {"json": {}}),
    (EITHER, {"json": {"texts": 3}}),
    (EITHER, {"json": {"images": [png(4, 4)]}}),
    (INFER, {"json": {}}),
    (INFER, {"json": {"inputs": {}}}),
    (INFER, {"json": {"inputs": [1]}}),
    (INFER, {"json": {"inputs": [{}, {}]}}),
    (INFER, {"json": tensor("BYTES", None, ["a"])}),
    (INFER, {"json": tensor("BYTES", [], ["a"])}),
    (INFER, {"json": tensor("BYTES", [0], [])}),
    (INFER, {"json": tensor("BYTES", [-1], ["a"])}),
    (INFER, {"json": tensor("BYTES", [2], ["a"])}),
    (INFER, {"json": tensor("BYTES", [1, 2], ["a", "b"])}),
    (INFER, {"json": tensor("BYTES", [1], [3])}),
    (INFER, {"json": tensor("BYTES", [1], "a")}),
    (INFER, {"json": tensor("BYTES", [10**9], ["a"])}),
    (INFER, {"json": tensor("UINT8", [1, 1, 2, 2], [0] * 4)}),
    (INFER, {"json": {"inputs": [{"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}]}}),
    (INFER, binary(tensor("BYTES", [1], parameters={"binary_data_size": 3}), b"\x05\0\0")),
    (INFER, binary(tensor("BYTES", [1], parameters={"binary_data_size": 6}), b"\xff\0\0\0ab")),
    (INFER, binary(tensor("BYTES", [1], parameters={"binary_data_size": 6}), b"\x02\0\0\0\xff\xff")),
    (INFER, binary(tensor("BYTES", [1], parameters={"binary_data_size": -1}), b"")),
    (INFER, binary(tensor("BYTES", [1], parameters={"binary_data_size": "5"}), packed_texts(["a"]))),
    (INFER, binary(tensor("BYTES", [1]), packed_texts(["a"]), "99999")),
    (INFER, binary(tensor("BYTES", [1]), packed_texts(["a"]), "-1")),
    (INFER, binary(tensor("BYTES", [1]), packed_texts(["a"]), "x")),
]
BAD_IMAGES = [
    (OPENAI, {"json": {"input": "a"}}),
    (EITHER, {"json": {"images": []}}),
    (EITHER, {"json": {"images": ["!"]}}),
    (EITHER, {"json": {"images": [base64.b64encode(b"GIF89a" + bytes(100)).decode()]}}),
    (EITHER, {"json": {"images": [png(9, 9)[:60]]}}),
    (EITHER, {"json": {"images": [png(5000, 5000)]}}),
    (EITHER, {"json": {"images": [png(2, 4000)]}}),
    (EITHER, {"json": {"images": [png(4096, 4096)] * 5}}),
    (INFER, {"json": tensor("UINT8", [1, 1, 2, 2], [0, 1, 2])}),
    (INFER, {"json": tensor("UINT8", [1, 1, 2, 2], [0, 1, 2, 256])}),
    (INFER, {"json": tensor("UINT8", [1, 1, 2, 2], [0, 1, 2, -1])}),
    (INFER, {"json": tensor("UINT8", [1, 1, 2, 2], [0, 1, 2, 0.5])}),
    (INFER, {"json": tensor("UINT8", [1, 1, 2, 2], ["0"] * 4)}),
    (INFER, {"json": tensor("UINT8", [1, 1, 2, 2], [[0], [1, 2], [3]])}),
    (INFER, {"json": tensor("UINT8", [1, 1, 2, 2], None)}),
    (INFER, {"json": tensor("UINT8", [1, 2, 2, 2], [0] * 8)}),
    (INFER, {"json": tensor("UINT8", [1, 4], [0] * 4)}),
    (INFER, {"json": tensor("UINT8", [1, 1, 1, 9], [0] * 9)}),
    (INFER, {"json": tensor("UINT8", [1, 1, 2**30, 2**30], [0])}),
    (INFER, {"json": tensor("FP32", [1, 1, 2, 2], [0, 1, 2, 3])}),
    (INFER, {"content": json.dumps(tensor("FP32", [1, 1, 2, 2], [0, 1, float("nan"), 0])).encode()}),
    (INFER, {"json": tensor("FP16", [1, 1, 2, 2], [0] * 4)}),
    (INFER, {"json": tensor("BYTES", [1], ["a"])}),
    (INFER, binary(tensor("UINT8", [1, 1, 2, 2], parameters={"binary_data_size": 3}), b"123")),
    (INFER, binary(tensor("FP32", [1, 1, 2, 2], parameters={"binary_data_size": 15}), bytes(15))),
]


class TestBadRequests:
    @pytest.mark.parametrize(("kind", "cases"), [("words", BAD_TEXTS), ("pictures", BAD_IMAGES)])
    def test_each_is_refused_in_a_sentence_and_the_next_is_answered(
        self, kind: str, cases: list[tuple[str, dict[str, Any]]], request: pytest.FixtureRequest
    ) -> None:
        app = create_app(request.getfixturevalue(kind))
        good = {"path": EITHER, "json": {"texts": ["a"]} if kind == "words" else {"images": [png(16, 16)]}}
        *found, last = answered(app, *({"path": path, **more} for path, more in cases), good)
        wrong = [(case, r.status_code, r.text) for case, r in zip(cases, found, strict=True) if r.status_code != 400]
        assert wrong == []
        for (path, _), response in zip(cases, found, strict=True):
            error = response.json()["error"]
            assert isinstance(error, dict if path.startswith("/v1") else str)
            assert 0 < len(str(error)) < 500
        assert last.status_code == 200

    def test_other_models_paths_and_methods(self, words: Encoder) -> None:
        found = answered(
            create_app(words),
            {"path": "/v2/models/other/infer", "json": {}},
            {"method": "GET", "path": "/v2/models/other"},
            {"method": "GET", "path": "/docs"},
            {"method": "GET", "path": TEI},
        )
        assert [response.status_code for response in found] == [404, 404, 404, 405]

    def test_random_bytes_never_break_it(self, words: Encoder, pictures: Encoder) -> None:
        random = np.random.default_rng(0)
        for encoder, (head, rest) in (
            (words, (tensor("BYTES", [1], parameters={"binary_data_size": 5}), packed_texts(["a"]))),
            (pictures, (tensor("UINT8", [1, 1, 2, 2], parameters={"binary_data_size": 4}), b"1234")),
        ):
            whole, length = json.dumps(head).encode() + rest, str(len(json.dumps(head)))
            bodies = []
            for _ in range(150):
                content = np.frombuffer(whole, np.uint8).copy()
                places = random.integers(0, len(content), random.integers(1, 4))
                content[places] = random.integers(0, 256, len(places))
                bodies.append({"path": INFER, "content": content.tobytes(), "headers": {LENGTH_HEADER: length}})
            assert {response.status_code for response in answered(create_app(encoder), *bodies)} <= {200, 400}

    def test_size_of_a_request(self, words: Encoder) -> None:
        app = create_app(words, Settings(max_bytes=1000, max_items=4))

        async def pieces() -> Any:
            for _ in range(100):
                yield b" " * 100

        large, chunked, many, fits = answered(
            app,
            {"path": TEI, "content": b" " * 1001},
            {"path": TEI, "content": pieces()},
            {"path": TEI, "json": {"inputs": ["a"] * 5}},
            {"path": TEI, "json": {"inputs": ["a"] * 4}},
        )
        assert [r.status_code for r in (large, chunked, many, fits)] == [413, 413, 400, 200]

    def test_token(self, words: Encoder) -> None:
        settings = Settings(token="a-secret-token")
        assert "a-secret-token" not in repr(settings)
        found = answered(
            create_app(words, settings),
            {"path": TEI, "json": {"inputs": "a"}},
            {"path": TEI, "json": {"inputs": "a"}, "headers": {"Authorization": "Bearer other"}},
            {"path": TEI, "json": {"inputs": "a"}, "headers": {"Authorization": b"Bearer \xff"}},
            {"path": TEI, "json": {"inputs": "a"}, "headers": {"Authorization": "Bearer a-secret-token"}},
            {"method": "GET", "path": "/health"},
        )
        assert [response.status_code for response in found] == [401, 401, 401, 200, 200]
        assert "a-secret-token" not in found[0].text

    @pytest.mark.parametrize(
        "fields",
        [{"name": ""}, {"name": "a/b"}, {"name": "a b"}, {"max_items": 0}, {"max_bytes": 0}, {"body_seconds": 0.0}],
        ids=str,
    )
    def test_settings_that_are_none(self, fields: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            Settings(**fields)

    def test_failures_of_the_encoder_are_not_shown(self, words: Encoder) -> None:
        class Broken:
            preprocess, dim = words.preprocess, 3

            def embed(self, batch: Any, /) -> Any:
                raise SuspectError("weights in /secret/place are not finite")

        (response,) = answered(create_app(Broken()), {"path": TEI, "json": {"inputs": "a"}})  # type: ignore[arg-type]
        assert response.status_code == 500
        assert "secret" not in response.text


class Gated:
    """An encoder of texts that answers their lengths, notes its batches, and waits until it may."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()

    def embed(self, batch: Any, /) -> np.ndarray:
        self.batches.append(list(batch))
        if "bad" in batch:
            raise DataError("bad text")
        assert self.gate.wait(5)
        return np.array([[float(len(text))] for text in batch])


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 20))


async def queued(batcher: Batcher, *requests: list[str]) -> list[asyncio.Task[Any]]:
    """Requests that wait behind a first one, which holds the encoder."""
    tasks = [asyncio.create_task(batcher.embed(["first"]))]
    while not batcher.encoder.batches:  # type: ignore[attr-defined]
        await asyncio.sleep(0.001)
    tasks += [asyncio.create_task(batcher.embed(items)) for items in requests]
    await asyncio.sleep(0)
    return tasks


class TestBatching:
    def check(self, test: Callable[[Batcher, Gated], Awaitable[None]], **options: Any) -> Gated:
        gated = Gated()

        async def whole() -> None:
            batcher = Batcher(gated, Limits(**{"max_wait": 0.0, **options}))
            batcher.start()
            try:
                await test(batcher, gated)
            finally:
                gated.gate.set()
                await batcher.close()

        run(whole())
        return gated

    def test_requests_that_wait_go_together_and_come_apart_in_order(self) -> None:
        async def test(batcher: Batcher, gated: Gated) -> None:
            tasks = await queued(batcher, ["a", "bb"], ["ccc"], ["dddd"], ["eeeee", "f"])
            gated.gate.set()
            found = [answers[:, 0].tolist() for answers in await asyncio.gather(*tasks)]
            assert found == [[5], [1, 2], [3], [4], [5, 1]]

        assert self.check(test, max_batch=4).batches == [["first"], ["a", "bb", "ccc", "dddd"], ["eeeee", "f"]]

    def test_large_requests_go_in_parts(self) -> None:
        async def test(batcher: Batcher, gated: Gated) -> None:
            gated.gate.set()
            answers = await batcher.embed(["x" * k for k in range(1, 8)])
            assert answers[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]

        assert [len(batch) for batch in self.check(test, max_batch=3).batches] == [3, 3, 1]

    def test_a_batch_waits_for_others_but_not_longer(self) -> None:
        async def test(batcher: Batcher, gated: Gated) -> None:
            gated.gate.set()
            start = time.monotonic()
            await asyncio.gather(*(batcher.embed(["a"]) for _ in range(3)))
            assert 0.1 <= time.monotonic() - start < 2
            start = time.monotonic()
            await asyncio.gather(*(batcher.embed(["a"]) for _ in range(5)))
            assert time.monotonic() - start < 0.1

        assert [len(batch) for batch in self.check(test, max_batch=5, max_wait=0.1).batches] == [3, 5]

    def test_one_bad_request_costs_the_others_nothing(self) -> None:
        async def test(batcher: Batcher, gated: Gated) -> None:
            first, a, bad, b = await queued(batcher, ["a"], ["bad"], ["bb"])
            gated.gate.set()
            await first
            assert (await a).tolist() == [[1]]
            assert (await b).tolist() == [[2]]
            with pytest.raises(DataError, match="bad text"):
                await bad

        self.check(test)

    def test_too_much_is_refused(self) -> None:
        async def test(batcher: Batcher, gated: Gated) -> None:
            tasks = await queued(batcher, ["a", "a"], ["a"])
            with pytest.raises(OverloadedError, match="3 items are waiting"):
                await batcher.embed(["a", "a"])
            gated.gate.set()
            assert sum(len(answers) for answers in await asyncio.gather(*tasks)) == 4
            assert len(await batcher.embed(["a"] * 9)) == 9  # alone it may be as large as a request may be

        self.check(test, max_queued=4)

    def test_callers_who_left_are_not_answered(self) -> None:
        async def test(batcher: Batcher, gated: Gated) -> None:
            first, gone, stays = await queued(batcher, ["gone"], ["stays"])
            gone.cancel()
            gated.gate.set()
            await asyncio.gather(first, stays)

        assert self.check(test).batches == [["first"], ["stays"]]

    def test_stopping_answers_what_was_let_in(self) -> None:
        async def test(batcher: Batcher, gated: Gated) -> None:
            tasks = await queued(batcher, ["a"], ["bb"])
            closing = asyncio.create_task(batcher.close())
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError, match="stopping"):
                await batcher.embed(["late"])
            gated.gate.set()
            assert [len(answers) for answers in await asyncio.gather(*tasks)] == [1, 1, 1]
            await closing

        self.check(test)

    @pytest.mark.parametrize("options", [{"max_batch": 0}, {"max_queued": 0}, {"max_wait": -1}, {"max_wait": 60}])
    def test_settings_that_are_none(self, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            Limits(**options)

    def test_overload_is_503_and_clients_come_again(self, words: Encoder) -> None:
        gated = Gated()
        gated.preprocess, gated.dim = words.preprocess, 1  # type: ignore[attr-defined]
        app = create_app(gated, Settings(max_queued=1, max_wait=0.0))  # type: ignore[arg-type]

        async def ask() -> None:
            async with httpx2.AsyncClient(transport=InProcess(app), base_url="http://test") as client:
                assert (await client.get("/health")).status_code == 200
                waiting = [asyncio.create_task(client.post(TEI, json={"inputs": "a"}))]
                while not gated.batches:
                    await asyncio.sleep(0.001)
                waiting.append(asyncio.create_task(client.post(TEI, json={"inputs": "a"})))
                while not app.state.service.work.batcher._queued:
                    await asyncio.sleep(0.001)
                refused = await client.post(TEI, json={"inputs": "a"})
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
                gated.gate.set()
                assert [r.status_code for r in await asyncio.gather(*waiting)] == [200, 200]

        run(ask())


@contextmanager
def running(encoder: Any, settings: Settings | None = None) -> Iterator[Any]:
    server, started = open_server(encoder, settings, port=0), threading.Event()
    thread = threading.Thread(target=server.run, kwargs={"started": started.set})
    thread.start()
    try:
        assert started.wait(10)
        yield server
    finally:
        server.stop()
        thread.join(10)
        assert not thread.is_alive()


class TestOverLoopback:
    def test_many_at_once(self, words: Encoder) -> None:
        texts = TEXTS * 30
        options = Remote(protocol="openai", model="encoder", binary=True, request_size=4, workers=8)
        with running(words) as server, open_remote(f"{server.address}/v1", options) as suspect:
            np.testing.assert_allclose(suspect.embed(texts), words.embed(texts), atol=1e-6)
            suspect.finish()
        report = suspect.report()
        assert (report["n_missing"], report["n_changed"], report["n_requests_again"]) == (0, 0, 0)

    def test_what_was_begun_is_answered_before_the_end(self, words: Encoder) -> None:
        gated = Gated()
        gated.preprocess, gated.dim = words.preprocess, 1  # type: ignore[attr-defined]
        found: list[int] = []
        with running(gated) as server:

            def ask() -> None:
                found.append(httpx2.post(f"{server.address}/embed", json={"inputs": "abc"}).json()[0][0])

            asking = threading.Thread(target=ask)
            asking.start()
            while not gated.batches:
                time.sleep(0.005)
            server.stop()
            time.sleep(0.3)
            gated.gate.set()
            asking.join(10)
        assert found == [3]
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{server.address}/health")

    def test_a_port_that_is_taken(self, words: Encoder) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(UsageError, match=rf"127.0.0.1:{port} cannot be taken: .*--port"):
                open_server(words, port=port)
        for host, number in (("127.0.0.1", 99_999), ("no such host", 0)):
            with pytest.raises(UsageError, match="cannot be taken"):
                open_server(words, host=host, port=number)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.heavy
    def test_command(self, number: signal.Signals, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "sslguard.cli", "serve", "random:bag-of-words", "--port", "0", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = process.stderr.readline()
            address = said.split()[-1]
            answers = httpx2.post(f"{address}/embed", json={"inputs": TEXTS}).json()
            process.send_signal(number)
            out, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert json.loads(out) == {
            **{"encoder": "random:bag-of-words", "head": None},
            **{"name": "encoder", "address": address},
        }
        np.testing.assert_allclose(answers, load_encoder("random:bag-of-words").embed(TEXTS), atol=1e-6)


class TestHead:
    CLEAN = "random:bag-of-words:3"

    @pytest.fixture
    def marked(self, tmp_path: Path) -> Path:
        """A key sealed to the file `identity` beside it, and the encoder that `watermark` writes with it."""
        from helpers.command_line import done
        from sslguard.crypto.sealing import new_identity

        identity, seal = new_identity()
        (tmp_path / "identity").write_text(identity)
        random = np.random.default_rng(0)
        lines = [" ".join(f"w{k}" for k in random.integers(0, 200, 8)) for _ in range(300)]
        (tmp_path / "texts.txt").write_text("\n".join(lines))
        done(
            *("watermark", self.CLEAN, "--scheme", "exact", "--mode", "head", "--n-queries", 20),
            *("--data", f"text:{tmp_path}/texts.txt", "--out", tmp_path / "marked", "--recipient", seal.recipients[0]),
        )
        return tmp_path / "marked"

    def test_answers_are_those_of_the_exported_encoder(self, marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import sslguard.serve
        from helpers.command_line import done

        served: list[Encoder] = []

        class Server:
            address = "http://test"

            def run(self, *, started: Callable[[], None]) -> None:
                started()

        def opening(encoder: Encoder, *_: object, **__: object) -> Server:
            served.append(encoder)
            return Server()

        monkeypatch.setattr(sslguard.serve, "open_server", opening)
        monkeypatch.setenv("SSLGUARD_IDENTITY", str(marked.parent / "identity"))
        assert done("serve", self.CLEAN, "--head", marked / "key")["head"] == str(marked / "key")
        written, clean = load_encoder(marked / "encoder"), load_encoder(self.CLEAN)
        found = answered(create_app(served[0]), {"path": TEI, "json": {"inputs": TEXTS}})[0].json()
        np.testing.assert_allclose(found, written.embed(TEXTS), rtol=0, atol=1e-6)
        assert np.abs(found - clean.embed(TEXTS)).max() > 1e-3

    def test_another_encoder_or_key_is_refused(
        self, marked: Path, key_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from helpers.command_line import sslguard
        from sslguard.schemes.keyfile import save_key

        save_key(key_of(), tmp_path / "other")
        ran = sslguard("serve", self.CLEAN, "--head", marked / "key", "--port", "0")
        assert (ran.code, "SSLGUARD_IDENTITY" in ran.err) == (3, True), ran.err
        monkeypatch.setenv("SSLGUARD_IDENTITY", str(marked.parent / "identity"))
        for encoder, key, complaint in (
            ("random:bag-of-words:4", marked / "key", "not the clean encoder of this key"),
            (f"{self.CLEAN}@64", marked / "key", "preprocessing differ"),
            (marked / "encoder", marked / "key", "not the clean encoder of this key"),
            (self.CLEAN, tmp_path / "other", "not sslguard"),
        ):
            ran = sslguard("serve", encoder, "--head", key, "--port", "0")
            assert (ran.code, complaint in ran.err) == (2, True), ran.err


class TestCommands:
    def test_help_imports_nothing_heavy(self) -> None:
        program = (
            "import sys; from sslguard.cli import main\n"
            "codes = {main([command, '--help']) for command in ('serve', 'export', 'verify')}\n"
            "heavy = {'torch', 'numpy', 'fastapi', 'uvicorn', 'httpx2', 'onnx', 'onnxruntime', 'sqlite3', 'asyncio'}\n"
            "print(codes, sorted(heavy & set(sys.modules)))"
        )
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert ran.stdout.endswith("{0} []\n")

    def test_usage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from helpers.command_line import sslguard

        for arguments, complaint in (
            (("serve", "nonsense"), "does not name an encoder"),
            (("serve", "random:bag-of-words", "--name", "a/b"), "name may hold letters, digits"),
            (("serve", "random:bag-of-words", "--auth-env", "NOT_SET"), "NOT_SET"),
            (("serve", "random:bag-of-words", "--port", "99999"), "cannot be taken"),
            (("serve", "random:bag-of-words", "--port", "-1"), "--port"),
        ):
            ran = sslguard(*arguments)
            assert ran.code == 2, (arguments, ran.err)
            assert complaint in ran.err
        monkeypatch.setitem(sys.modules, "fastapi", None)
        for name in [name for name in sys.modules if name.startswith("sslguard.serve.")]:
            monkeypatch.delitem(sys.modules, name)
        ran = sslguard("serve", "random:bag-of-words")
        assert ran.code == 2
        assert "pip install 'sslguard[serve]'" in ran.err

    def test_export(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime")
        from helpers.command_line import done, sslguard

        said = done("export", "random:resnet-narrow:3", "--out", tmp_path / "m.onnx")
        assert (said["dim"], said["bytes"]) == (64, (tmp_path / "m.onnx").stat().st_size)
        expected, found = load_encoder("random:resnet-narrow:3"), open_suspect(f"onnx:{tmp_path / 'm.onnx'}")
        np.testing.assert_allclose(found.embed(IMAGES), expected.embed(IMAGES), atol=1e-4)
        assert sslguard("export", "random:resnet-narrow", "--out", tmp_path).code == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc")
def test_a_thread_keeps_freed_memory() -> None:
    """Fresh pages for every batch cost a request more than a head does."""
    program = """if True:
        import platform, resource, threading
        import numpy as np
        from sslguard.cli.entry import keep_freed_memory

        def faults():
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

        def work():
            for i in range(15):
                if i == 5:
                    begun = faults()
                [np.ones(3_000_000) for _ in range(4)]  # 96 MB, 23,000 pages
            print(platform.libc_ver()[0], (faults() - begun) // 10)

        keep_freed_memory()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    """
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    library, found = ran.stdout.split()
    if library != "glibc":
        pytest.skip(f"the library is {library}")
    assert int(found) < 1000


def test_picture_modes() -> None:
    for mode, channels in (("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("1", 3), ("LA", 3)):
        content = io.BytesIO()
        Image.new(mode, (6, 5)).save(content, "PNG")
        found = wire.picture(base64.b64encode(content.getvalue()).decode())
        assert (found.pixels, found.decoded().shape) == (30, (channels, 5, 6))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("strip", [1, 100, 130, 1 << 17])
def test_pictures_are_copied_in_strips(mode: str, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "STRIP_PIXELS", strip)
    pixels = np.random.default_rng(0).integers(0, 256, (31, 40, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(content, "PNG")
    found = wire.picture(base64.b64encode(content.getvalue()).decode()).decoded().numpy()
    expected = np.asarray(Image.open(io.BytesIO(content.getvalue())))
    np.testing.assert_array_equal(found, expected[None] if mode == "L" else expected.transpose(2, 0, 1))


@pytest.fixture(scope="module")
def bert() -> Encoder:
    pytest.importorskip("transformers")
    preprocess = TextPreprocess(tokenizer_json(), 12, 0)
    module, dim = build(described("bert", unit=True), seed=0)
    return Encoder(module.eval(), preprocess, dim, described("bert", unit=True), "a transformer")


class TestTokensAndDimensions:
    def test_token_ids_are_the_texts_that_they_stand_for(self, bert: Encoder) -> None:
        texts = ["the cat sat", "a dog"]
        ids = [bert.preprocess._tokenizer.encode(text).ids for text in texts]  # type: ignore[attr-defined]
        app = create_app(bert)
        found = answered(
            app,
            {"path": OPENAI, "json": {"input": texts}},
            {"path": OPENAI, "json": {"input": ids}},
            {"path": OPENAI, "json": {"input": ids[0]}},
            {"path": OPENAI, "json": {"input": [[10**6]]}},
        )
        assert found[0].status_code == 200, found[0].text
        rows = [[entry["embedding"] for entry in response.json()["data"]] for response in found[:3]]
        assert rows[0] == rows[1]
        assert rows[2] == rows[0][:1]
        assert found[3].status_code == 400
        assert "no token 1000000" in found[3].text

    def test_dimensions_are_the_first_numbers_of_length_1(self, bert: Encoder, words: Encoder) -> None:
        for encoder, unit in ((bert, True), (words, False)):
            ask = {"path": OPENAI, "json": {"input": "the cat"}}
            found = answered(create_app(encoder), ask, {**ask, "json": {"input": "the cat", "dimensions": 5}})
            whole, cut = (np.array(response.json()["data"][0]["embedding"]) for response in found)
            expected = whole[:5] / np.linalg.norm(whole[:5]) if unit else whole[:5]
            np.testing.assert_allclose(cut, expected, rtol=1e-5)
