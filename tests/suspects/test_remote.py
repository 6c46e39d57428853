"""Suspects behind an address: protocols on the wire, and the wrappers around a request."""

from __future__ import annotations

import base64
import io
import json
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from helpers.remote_servers import ADDRESS, Server, openai_reply, rows_of, some_texts, tei_reply, vector
from sslguard.data.watched import digest
from sslguard.errors import OutputError, SuspectError, UsageError
from sslguard.suspects.base import Counted, UnansweredError
from sslguard.suspects.cached import AnswerStore, Cached
from sslguard.suspects.clock import Clock
from sslguard.suspects.http import Credential
from sslguard.suspects.manner import Manner
from sslguard.suspects.opening import open_suspect
from sslguard.suspects.pixels import ImageInput
from sslguard.suspects.protocols import MalformedReplyError, Template
from sslguard.suspects.protocols.oip import LENGTH_HEADER, packed_texts, unpacked_texts
from sslguard.suspects.remote import Remote, guessed, spoken
from sslguard.suspects.wrappers import Concurrent, Paced, RateLimited, Retrying, Tolerant

TEXTS = some_texts(11)
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 8, 6), dtype=np.uint8))


class TestTexts:
    """Over every protocol that carries them, answers come back in the order of the queries."""

    @pytest.mark.parametrize(
        ("reply", "options", "path"),
        [
            (tei_reply, {"protocol": "tei"}, "/api/embed"),
            (openai_reply, {"protocol": "openai", "model": "m"}, "/api/embeddings"),
            (openai_reply, {"protocol": "openai", "model": "m", "binary": True}, "/api/embeddings"),
        ],
        ids=["tei", "openai", "openai base64"],
    )
    def test_answers(self, reply: Any, options: dict[str, Any], path: str) -> None:
        server = Server(reply)
        with server.suspect(**options) as suspect:
            answers = suspect.embed(TEXTS)
            suspect.finish()
        np.testing.assert_array_equal(answers, rows_of(TEXTS))
        assert answers.dtype == np.float32
        assert {request.url.path for request in server.requests} == {path}
        assert {request.method for request in server.requests} == {"POST"}
        assert len(server.requests) == 3  # 4, 4 and 3 texts
        assert (suspect.name, suspect.n_missing) == (ADDRESS, 0)

    def test_requests_are_what_the_protocols_say(self) -> None:
        for reply, options, expected in (
            (tei_reply, {"protocol": "tei"}, {"inputs": ["a"], "truncate": True}),
            (
                openai_reply,
                {"protocol": "openai", "model": "m"},
                {"model": "m", "input": ["a"], "encoding_format": "float"},
            ),
        ):
            server = Server(reply)
            with server.suspect(**options) as suspect:
                suspect.embed(["a"])
            assert json.loads(server.requests[0].content) == expected
            assert server.requests[0].headers["content-type"] == "application/json"

    @pytest.mark.parametrize("protocol", ["tei", "openai"])
    def test_images_do_not_go_over_them(self, protocol: str) -> None:
        server = Server()
        with server.suspect(protocol=protocol, model="m") as suspect, pytest.raises(UsageError, match="carries texts"):
            suspect.embed(IMAGES)
        assert server.requests == []

    @pytest.mark.parametrize(
        "indices",
        [[1, 1], [0, 2], [-1, 0], [True, False], ["0", "1"], [0.0, 1.0], [None, 0], [None, None, 1], [0, 0, 1]],
        ids=str,
    )
    def test_index_must_be_a_permutation(self, indices: list[Any]) -> None:
        server = Server(
            lambda _: httpx2.Response(200, json={"data": [{"index": i, "embedding": [1.0]} for i in indices]})
        )
        with server.suspect(protocol="openai", model="m") as suspect, pytest.raises(SuspectError, match="'index' must"):
            suspect.embed(["a", "b", "c"][: len(indices)])

    @pytest.mark.parametrize(
        ("entries", "order"),
        [
            ([{}, {}, {}], [0, 1, 2]),
            ([{"index": None}] * 3, [0, 1, 2]),
            ([{"index": 0}] * 3, [0, 1, 2]),
            ([{}, {"index": 1}, {"index": 2}], [0, 1, 2]),
            ([{"index": 2}, {"index": None}, {"index": 1}], [1, 2, 0]),
        ],
        ids=["none", "null", "all 0", "the first left out", "the first null, in another order"],
    )
    def test_index_may_be_left_out_where_the_order_is_plain(self, entries: list[Any], order: list[int]) -> None:
        vectors = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
        data = [{**entry, "embedding": row} for entry, row in zip(entries, vectors, strict=True)]
        with Server(lambda _: httpx2.Response(200, json={"data": data})).suspect(
            protocol="openai", model="m"
        ) as suspect:
            np.testing.assert_array_equal(suspect.embed(["a", "b", "c"]), [vectors[place] for place in order])

    def test_query_of_the_address_stays_and_is_not_shown(self) -> None:
        server = Server(openai_reply)
        with server.suspect(f"{ADDRESS}?api-version=7", protocol="openai", model="m") as suspect:
            suspect.embed(["a"])
        assert str(server.requests[0].url) == f"{ADDRESS}/embeddings?api-version=7"
        assert suspect.name == ADDRESS


class OIPServer(Server):
    """A model over the Open Inference Protocol, its tensors decoded by hand as the specification says."""

    def __init__(self, metadata: Any, *, binary_reply: bool = False) -> None:
        super().__init__(self.answer)
        self.metadata, self.binary_reply = metadata, binary_reply
        self.inputs: list[dict[str, Any]] = []

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            assert request.url.path == "/api/v2/models/m"
            status = 404 if self.metadata is None else 200
            return httpx2.Response(status, json=self.metadata)
        assert request.url.path == "/api/v2/models/m/infer"
        length = request.headers.get(LENGTH_HEADER)
        head = json.loads(request.content if length is None else request.content[: int(length)])
        (tensor,) = head["inputs"]
        if length is not None:
            packed = request.content[int(length) :]
            assert tensor["parameters"]["binary_data_size"] == len(packed)
            tensor["bytes"] = packed
        self.inputs.append(tensor)
        n = tensor["shape"][0]
        rows = np.arange(n * 4, dtype=np.float32).reshape(n, 4) / 7
        return self.reply_binary(rows) if self.binary_reply else self.reply_json(rows)

    def reply_json(self, rows: np.ndarray) -> httpx2.Response:
        other = {"name": "labels", "datatype": "BYTES", "shape": [len(rows)], "data": ["x"] * len(rows)}
        first = {"name": "y", "datatype": "FP32", "shape": [len(rows), 1, 4], "data": rows.tolist()}
        return httpx2.Response(200, json={"model_name": "m", "outputs": [other, first]})

    def reply_binary(self, rows: np.ndarray) -> httpx2.Response:
        words, packed = rows.astype("<f2").tobytes(), packed_texts(["x"] * len(rows))
        outputs = [
            {
                "name": "labels",
                "datatype": "BYTES",
                "shape": [len(rows)],
                "parameters": {"binary_data_size": len(packed)},
            },
            {
                "name": "y",
                "datatype": "FP16",
                "shape": list(rows.shape),
                "parameters": {"binary_data_size": len(words)},
            },
        ]
        head = json.dumps({"outputs": outputs}).encode()
        return httpx2.Response(200, headers={LENGTH_HEADER: str(len(head))}, content=head + packed + words)


def image_model(datatype: str, *shape: int) -> dict[str, Any]:
    return {"name": "m", "inputs": [{"name": "x", "datatype": datatype, "shape": list(shape)}], "outputs": []}


class TestOIP:
    def test_a_server_does_not_say_how_much_memory_we_take(self) -> None:
        """Images are stretched to the sides that it names, and sent as text."""
        with pytest.raises(SuspectError, match="takes 50,331,648 numbers an item, more than the limit of 8,388,608"):
            OIPServer(image_model("FP32", -1, 3, 4096, 4096)).suspect(protocol="oip", model="m")
        with OIPServer(image_model("FP32", -1, 3, 1024, 1024)).suspect(protocol="oip", model="m", request_size=9) as s:
            assert s._source.protocol.largest == 1

    @pytest.mark.parametrize("binary", [False, True])
    def test_images_as_the_model_takes_them(self, binary: bool) -> None:
        server = OIPServer(image_model("FP32", -1, 8, 6, 3), binary_reply=binary)
        with server.suspect(protocol="oip", model="m", binary=binary) as suspect:
            answers = suspect.embed(IMAGES[:4])
        (tensor,) = server.inputs
        assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("x", "FP32", [4, 8, 6, 3])
        sent = np.frombuffer(tensor["bytes"], "<f4") if binary else np.array(tensor["data"], np.float32)
        expected = IMAGES[:4].permute(0, 2, 3, 1).numpy().astype(np.float32) / 255
        np.testing.assert_allclose(sent.reshape(4, 8, 6, 3), expected, atol=1e-7)
        np.testing.assert_allclose(answers, np.arange(16).reshape(4, 4) / 7, atol=2e-3 if binary else 1e-7)

    def test_texts(self) -> None:
        for binary in (False, True):
            server = OIPServer({"inputs": [{"name": "t", "datatype": "BYTES", "shape": [-1, 1]}]})
            with server.suspect(protocol="oip", model="m", binary=binary) as suspect:
                suspect.embed(TEXTS[:3])
            (tensor,) = server.inputs
            assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("t", "BYTES", [3, 1])
            assert (unpacked_texts(tensor["bytes"]) if binary else tensor["data"]) == TEXTS[:3]

    @pytest.mark.parametrize("metadata", [None, {"name": "m"}, {"inputs": []}, {"inputs": None}, ["?"]], ids=str)
    def test_without_metadata_items_go_as_they_are(self, metadata: Any) -> None:
        server = OIPServer(metadata)
        with server.suspect(protocol="oip", model="m") as suspect:
            suspect.embed(IMAGES[:2])
            suspect.embed(["a"])
        pixels, text = server.inputs
        assert (pixels["name"], pixels["datatype"], pixels["shape"]) == ("input", "UINT8", [2, 3, 8, 6])
        assert pixels["data"] == IMAGES[:2].flatten().tolist()
        assert (text["datatype"], text["shape"], text["data"]) == ("BYTES", [1], ["a"])

    def test_fixed_batch_bounds_the_request(self) -> None:
        server = OIPServer(image_model("UINT8", 1, 3, 8, 6))
        with server.suspect(protocol="oip", model="m") as suspect:
            suspect.embed(IMAGES)
        assert [tensor["shape"][0] for tensor in server.inputs] == [1] * 5

    @pytest.mark.parametrize(
        ("metadata", "items", "complaint"),
        [
            (image_model("BYTES", -1), IMAGES, "takes texts, not images"),
            (image_model("FP32", -1, 3, 8, 8), ["a"], "takes FP32, not texts"),
            (image_model("FP32", -1, 17), IMAGES, "not images"),
            (image_model("FP32", -1, 5, 8, 5), IMAGES, "5 channels"),
        ],
        ids=str,
    )
    def test_items_that_the_model_does_not_take(self, metadata: Any, items: Any, complaint: str) -> None:
        server = OIPServer(metadata)
        with server.suspect(protocol="oip", model="m") as suspect, pytest.raises(UsageError, match=complaint):
            suspect.embed(items)

    @pytest.mark.parametrize(
        "metadata",
        [
            {"inputs": [{"name": "x"}]},
            {"inputs": ["x"]},
            {"inputs": "x"},
            {"inputs": [{}, {}]},
            image_model("COMPLEX", -1, 3, 8, 8),
            image_model("FP32"),
            {"inputs": [{"name": "x", "datatype": [], "shape": [1]}]},
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1.5, "a"]}]},
        ],
        ids=str,
    )
    def test_metadata_that_is_none(self, metadata: Any) -> None:
        with pytest.raises(SuspectError):
            OIPServer(metadata).suspect(protocol="oip", model="m")

    def test_texts_survive_packing(self) -> None:
        assert unpacked_texts(packed_texts([*TEXTS, ""])) == [*TEXTS, ""]
        assert packed_texts(["ab"]) == b"\x02\x00\x00\x00ab"
        for cut in (b"\x02\x00", b"\x02\x00\x00\x00a", struct.pack("<I", 2**32 - 1) + b"a", b"\x01\0\0\0\xff"):
            with pytest.raises(MalformedReplyError):
                unpacked_texts(cut)

    @pytest.mark.parametrize("model", ["", "a/../b", "m/infer?x=1", "a b", "/"])
    def test_model_names_cannot_lead_elsewhere(self, model: str) -> None:
        with pytest.raises(UsageError, match="--model"):
            spoken(Remote(protocol="oip", model=model))


class TestTemplate:
    def reply(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        found = [part["t"] for part in body["parts"]] if "parts" in body else body["input"]
        return httpx2.Response(200, json={"out": [{"v": row.tolist()} for row in rows_of(found)]})

    @pytest.mark.parametrize("body", ['{"input": "{texts}", "k": 3}', '{"parts": [{"t": "{text}"}]}'])
    def test_texts_in_one_request(self, body: str) -> None:
        server = Server(self.reply)
        with server.suspect(protocol="json", body=body, found_at="out[*].v") as suspect:
            np.testing.assert_array_equal(suspect.embed(TEXTS), rows_of(TEXTS))
        assert len(server.requests) == 3
        assert server.requests[0].url.path == "/api"

    def test_one_text_a_request(self) -> None:
        server = Server(
            lambda request: httpx2.Response(200, json={"e": vector(json.loads(request.content)["q"].encode()).tolist()})
        )
        with server.suspect(protocol="json", body='{"q": "query: {text}"}', found_at="$.e") as suspect:
            answers = suspect.embed(TEXTS[:3])
        np.testing.assert_array_equal(answers, rows_of([f"query: {text}" for text in TEXTS[:3]]))
        assert len(server.requests) == 3

    def test_images_are_png(self) -> None:
        def reply(request: httpx2.Request) -> httpx2.Response:
            found = json.loads(request.content)["images"]
            pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(item)))) for item in found]
            return httpx2.Response(200, json=[p.astype(float).sum((0, 1)).tolist() for p in pixels])

        with Server(reply).suspect(protocol="json", body='{"images": "{images}"}', found_at="") as suspect:
            answers = suspect.embed(IMAGES)
        np.testing.assert_array_equal(answers, IMAGES.float().sum((2, 3)).numpy())

    def test_base64_and_indices(self) -> None:
        coded = [base64.b64encode(row.tobytes()).decode() for row in rows_of(["a", "b"])]
        server = Server(lambda _: httpx2.Response(200, json=[0, {"x": coded}]))
        with server.suspect(protocol="json", body='["{texts}"]', found_at="[1].x") as suspect:
            np.testing.assert_array_equal(suspect.embed(["a", "b"]), rows_of(["a", "b"]))

    @pytest.mark.parametrize(
        ("body", "path", "complaint"),
        [
            ("{", "a", "must be JSON"),
            ("[" * 100_000, "a", "must be JSON"),
            ('{"a": "b"}', "a", "must hold"),
            ('{"a": "all {texts}"}', "a", "must hold"),
            ('{"a": "{text}", "b": "{image}"}', "a", "not both"),
            ('"{text}"', "a..b", "path"),
            ('"{text}"', "a[x]", "path"),
            ('"{text}"', "a b", "path"),
        ],
        ids=lambda value: value[:20],
    )
    def test_templates_that_are_none(self, body: str, path: str, complaint: str) -> None:
        with pytest.raises(UsageError, match=complaint):
            Template(body, path)

    def test_texts_cannot_break_out(self) -> None:
        hostile = ['"}, "admin": true, {"', "{texts}", "\\", "\x00", "\ud800"]
        server = Server(self.reply)
        with server.suspect(protocol="json", body='{"parts": [{"t": "{text}"}]}', found_at="out[*].v") as suspect:
            server.reply = lambda request: httpx2.Response(200, json={"out": [{"v": [1.0]}] * 1})
            for text in hostile:
                suspect.embed([text])
        sent = [json.loads(request.content) for request in server.requests]
        assert sent == [{"parts": [{"t": text}]} for text in hostile]


class TestPixels:
    def test_scales(self) -> None:
        black_white = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 2, 2)
        for scale, expected in (("unit", (0, 1)), ("signed", (-1, 1)), ("bytes", (0, 255))):
            array = ImageInput(3, 2, 2, dtype=np.dtype("f4"), scale=scale).array(black_white)  # type: ignore[arg-type]
            assert (array.min(), array.max()) == pytest.approx(expected)
        imagenet = ImageInput(3, 2, 2, dtype=np.dtype("f4"), scale="imagenet").array(black_white)
        # (0 − 0.485)/0.229 and (1 − 0.406)/0.225, torchvision's constants.
        assert imagenet[0, 0, 0, 0] == pytest.approx(-2.1179, abs=1e-4)
        assert imagenet[0, 2, 0, 1] == pytest.approx(2.64, abs=1e-4)

    def test_sizes(self) -> None:
        assert ImageInput(1, 16, 12).array(IMAGES).shape == (5, 1, 16, 12)
        assert ImageInput().array([IMAGES[0]]).shape == (1, 3, 8, 6)
        assert ImageInput(3, 4, 4).array([IMAGES[0], IMAGES[1, :, :5]]).shape == (2, 3, 4, 4)
        with pytest.raises(UsageError, match="one size"):
            ImageInput().array([IMAGES[0], IMAGES[1, :, :5]])


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"protocol": "openai"}, "needs --model"),
            ({"protocol": "oip"}, "needs --model"),
            ({"protocol": "json"}, "needs --body"),
            ({"protocol": "json", "body": '"{text}"'}, "needs --body"),
            ({"protocol": "tei", "body": '"{text}"'}, "are for --protocol json"),
            ({"protocol": "grpc", "model": "m"}, "protocol must be one of oip, openai"),
            ({"request_size": 0}, "at least 1"),
            ({"rate": 0.0}, "rate"),
            ({"time_limit": -1.0}, "time_limit must be above 0"),
            ({"request_limit": 0.0}, "request_limit must be above 0 and at most 86,400, not 0.0"),
            ({"budget": -1}, "budget"),
            ({"price": float("nan")}, "price"),
            ({"patience": 0}, "patience"),
            ({"attempts": 0}, "attempts must be at least 1, not 0"),
            ({"reask": -1}, "reask must be at least 0"),
        ],
        ids=str,
    )
    def test_settings_that_are_none(self, options: dict[str, Any], complaint: str) -> None:
        with pytest.raises(UsageError, match=complaint):
            Server().suspect(**options)

    @pytest.mark.parametrize("address", ["https://", "http:///x", "https://h:99999/", "https://\x00"])
    def test_addresses_that_are_none(self, address: str) -> None:
        with pytest.raises(UsageError):
            Server().suspect(address)

    def test_an_address_needs_a_protocol_and_a_protocol_an_address(self) -> None:
        with pytest.raises(UsageError, match="does not tell its protocol: name it with --protocol"):
            open_suspect(ADDRESS)
        with pytest.raises(UsageError, match="for suspects behind"):
            open_suspect("shipped:x", Remote(protocol="tei"))


class TestGuessedProtocol:
    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            ("https://h/v1", ("https://h/v1", "openai", "m")),
            ("https://h/v1/embeddings", ("https://h/v1", "openai", "m")),
            ("https://h/v1/?api-version=7", ("https://h/v1/?api-version=7", "openai", "m")),
            ("https://h/deployments/x/embeddings?v=1", ("https://h/deployments/x?v=1", "openai", "m")),
            ("https://h/embed", ("https://h", "tei", "m")),
            ("https://h/a/v2/models/n/infer", ("https://h/a", "oip", "m")),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_plain_addresses(self, address: str, expected: tuple[str, str, str]) -> None:
        base, options = guessed(address, Remote(model="m"))
        assert (base, options.protocol, options.model) == expected

    def test_the_address_names_the_model_of_oip(self) -> None:
        assert guessed("https://h/v2/models/n", None)[1].model == "n"

    def test_the_chosen_protocol_wins(self) -> None:
        chosen = Remote(protocol="json", body='{"t": "{text}"}', found_at="v")
        assert guessed("https://h/v1/embeddings", chosen) == ("https://h/v1/embeddings", chosen)
        assert guessed("https://h/embed", Remote(protocol="tei"))[0] == "https://h"

    @pytest.mark.parametrize("address", [ADDRESS, "https://h", "https://h/v1/embed", "https://h/encode"])
    def test_others_are_asked_for_at_once(self, address: str) -> None:
        with pytest.raises(UsageError, match="--protocol oip, openai, tei or json"):
            guessed(address, Remote(workers=1))


class TestRefusedRequests:
    """A server that refuses a whole request because of one query, or because of its size."""

    @staticmethod
    def server(refuses: Callable[[list[str]], bool], status: int) -> Server:
        def reply(request: httpx2.Request) -> httpx2.Response:
            texts = json.loads(request.content)["inputs"]
            return httpx2.Response(status, json={"error": "no"}) if refuses(texts) else tei_reply(request)

        return Server(reply)

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_one_bad_query_is_lost_alone(self, status: int) -> None:
        texts = some_texts(64)
        server = self.server(lambda asked: texts[17] in asked, status)
        with server.suspect(request_size=16) as suspect:
            answers = suspect.embed(texts)
        assert suspect.n_missing == 1
        assert not answers[17].any()
        kept = np.arange(64) != 17
        np.testing.assert_array_equal(answers[kept], rows_of(texts)[kept])

    def test_a_bad_first_query_is_lost_alone(self) -> None:
        texts = some_texts(32)
        with self.server(lambda asked: texts[0] in asked, 400).suspect(request_size=16) as suspect:
            answers = suspect.embed(texts)
        assert suspect.n_missing == 1
        np.testing.assert_array_equal(answers[1:], rows_of(texts)[1:])

    def test_requests_that_are_too_large_are_cut_once_and_for_all(self) -> None:
        texts, server = some_texts(128), self.server(lambda asked: len(asked) > 6, 413)
        with server.suspect(request_size=16, workers=1) as suspect:
            np.testing.assert_array_equal(suspect.embed(texts), rows_of(texts))
        sizes = [len(json.loads(request.content)["inputs"]) for request in server.requests]
        assert sizes[:2] == [16, 8]
        assert max(sizes[4:]) <= 4

    def test_answers_that_are_missing_are_asked_for_alone(self) -> None:
        texts = some_texts(8)

        def reply(request: httpx2.Request) -> httpx2.Response:
            answered = [text for text in json.loads(request.content)["inputs"] if text != texts[3]]
            return httpx2.Response(200, json=rows_of(answered).tolist() if answered else [])

        with Server(reply).suspect(request_size=8) as suspect:
            answers = suspect.embed(texts)
        assert suspect.n_missing == 1
        assert not answers[3].any()

    def test_a_server_that_refuses_everything_is_found_out_soon(self) -> None:
        server = self.server(lambda _: True, 400)
        with server.suspect(request_size=64) as suspect, pytest.raises(SuspectError, match="status 400"):
            suspect.embed(some_texts(640))
        assert len(server.requests) < 20


class TestCredentials:
    SECRET = "sk-Very-Secret-0123456789"

    @pytest.fixture(autouse=True)
    def _variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SUSPECT_TOKEN", f" {self.SECRET}\n")

    def test_header(self) -> None:
        server = Server()
        with server.suspect(auth_env="SUSPECT_TOKEN") as suspect:
            suspect.embed(["a"])
        with server.suspect(auth_env="SUSPECT_TOKEN", auth_header="X-Api-Key") as suspect:
            suspect.embed(["a"])
        assert server.requests[0].headers["authorization"] == f"Bearer {self.SECRET}"
        assert server.requests[1].headers["x-api-key"] == self.SECRET
        assert "authorization" not in server.requests[1].headers

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 500])
    def test_no_message_holds_it(self, status: int, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("DEBUG")
        said = f"key {self.SECRET} is not welcome, nor is Bearer {self.SECRET}"
        server = Server(lambda _: httpx2.Response(status, text=said))
        with server.suspect(auth_env="SUSPECT_TOKEN") as suspect, pytest.raises(SuspectError) as caught:
            suspect.embed(["a"])
        error: BaseException | None = caught.value
        while error is not None:
            assert self.SECRET not in str(error)
            assert self.SECRET not in repr(error)
            error = error.__cause__
        assert self.SECRET not in caplog.text
        assert self.SECRET not in repr(suspect.__dict__)
        assert self.SECRET not in repr(Credential.from_environment("SUSPECT_TOKEN"))
        assert str(status) in str(caught.value)

    def test_never_in_clear_over_a_network(self) -> None:
        with pytest.raises(UsageError, match="unencrypted"):
            Server().suspect("http://suspect.test", auth_env="SUSPECT_TOKEN")
        Server().suspect("http://127.0.0.1:9", auth_env="SUSPECT_TOKEN").close()

    def test_not_in_the_address(self) -> None:
        with pytest.raises(UsageError, match="--auth-env") as caught:
            Server().suspect(f"https://me:{self.SECRET}@suspect.test")
        assert self.SECRET not in str(caught.value)

    @pytest.mark.parametrize("value", ["", "  ", "a\nb", "ü", "a\x00b"])
    def test_what_no_header_can_hold(self, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        if "\x00" in value:
            value = "a\x01b"
        monkeypatch.setenv("SUSPECT_TOKEN", value)
        with pytest.raises(UsageError, match="SUSPECT_TOKEN"):
            Server().suspect(auth_env="SUSPECT_TOKEN")
        with pytest.raises(UsageError, match="NOT_SET"):
            Server().suspect(auth_env="NOT_SET")
        with pytest.raises(UsageError, match="header"):
            Server().suspect(auth_env="SUSPECT_TOKEN", auth_header="A: b\r\nC")


class Formula:
    """An Embedder that answers rows_of, notes what it was asked, and fails as often as it is told to."""

    name, n_missing = "formula", 0

    def __init__(self, *failures: BaseException | None) -> None:
        self.failures, self.asked = list(failures), list[list[str]]()

    def embed(self, batch: Any, /) -> np.ndarray:
        self.asked.append(list(batch))
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        return rows_of(batch)

    def finish(self) -> None: ...


def unanswered(again: bool = True, after: float | None = None) -> UnansweredError:
    return UnansweredError("busy", again=again, after=after)


class Time:
    """A clock that stands still until somebody sleeps."""

    def __init__(self, limit: float | None = None) -> None:
        self.at, self.sleeps = 0.0, list[float]()
        self.clock = Clock(limit, now=lambda: self.at)
        self.clock.sleep = self.sleep  # type: ignore[method-assign]

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.at += max(0.0, seconds)
        self.clock.left()


class TestRetrying:
    def test_waits_grow_and_end(self) -> None:
        time, inner = Time(), Formula(*[unanswered()] * 4)
        retrying = Retrying(inner, time.clock, attempts=5, first=1, most=3)
        np.testing.assert_array_equal(retrying.embed(TEXTS), rows_of(TEXTS))
        assert time.sleeps == [1, 2, 3, 3]
        assert retrying.n_again == 4

    def test_what_the_suspect_asks_for_within_limits(self) -> None:
        time, inner = Time(), Formula(unanswered(after=20), unanswered(after=1e6), unanswered(after=0))
        Retrying(inner, time.clock, first=1, most=60).embed(["a"])
        assert time.sleeps == [20, 60, 4]

    def test_no_attempt_too_many(self) -> None:
        inner = Formula(*[unanswered()] * 9)
        with pytest.raises(UnansweredError):
            Retrying(inner, Time().clock, attempts=3).embed(["a"])
        assert len(inner.asked) == 3

    @pytest.mark.parametrize("failure", [unanswered(again=False), SuspectError("gone"), ValueError("?")])
    def test_what_asking_again_does_not_help(self, failure: BaseException) -> None:
        inner = Formula(failure)
        with pytest.raises(type(failure)):
            Retrying(inner, Time().clock).embed(["a"])
        assert len(inner.asked) == 1

    def test_time_limit_ends_waiting(self) -> None:
        time = Time(limit=5)
        time.clock.left()
        with pytest.raises(SuspectError, match="time limit of 5 s"):
            Retrying(Formula(*[unanswered()] * 99), time.clock, attempts=99, first=1).embed(["a"])
        assert time.at <= 8


class TestRateLimited:
    def test_queries_are_spaced(self) -> None:
        time = Time()
        limited = RateLimited(Formula(), 10, time.clock)
        for n in (5, 5, 1):
            limited.embed(TEXTS[:n])
        assert time.at == pytest.approx(1.0)
        time.at += 100
        limited.embed(TEXTS[:1])
        limited.embed(TEXTS[:1])
        assert time.at == pytest.approx(101.1)

    def test_threads_share_it(self) -> None:
        limited = RateLimited(Formula(), 200, Clock())
        start = Clock().now()
        threads = [threading.Thread(target=limited.embed, args=(["a"],)) for _ in range(21)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Clock().now() - start >= 0.1


class TestPaced:
    """Clients that a verification with --pace asks like."""

    @pytest.mark.parametrize("pace", [0.2, 5.0, 60.0])
    @pytest.mark.parametrize("most", [1, 3, 16])
    def test_every_manner_keeps_to_the_pace(self, pace: float, most: int) -> None:
        names = set()
        for seed in range(20):
            manner = Manner.drawn(Random(seed), pace, most)
            names.add(manner.name)
            gaps, sizes = ([draw() for _ in range(4000)] for draw in (manner.gap, manner.size))
            assert min(gaps) >= 0
            assert np.mean(gaps) == pytest.approx(pace, rel=0.5)
            assert 1 <= min(sizes) <= max(sizes) <= most
        assert names == {
            *(["job"] if pace < 10 else []),
            *(["worker" if most > 5 else "application"] if pace >= 1 else []),
            *(["import"] if pace >= 8 else []),
        }

    def test_gaps_are_kept(self) -> None:
        time, gaps = Time(), iter(range(1, 11))
        paced = Paced(Formula(), lambda: float(next(gaps)), time.clock)
        for _ in range(10):
            paced.embed(["a"])
        assert time.sleeps == [0, *range(1, 10)]

    def test_order_and_sizes_are_random_and_answers_come_back_in_order(self) -> None:
        inner, queries, random = Formula(), some_texts(500), Random(1)
        concurrent = Concurrent(inner, size=16, workers=1, random=random, sizes=lambda: random.randint(1, 20))
        np.testing.assert_array_equal(concurrent.embed(queries), rows_of(queries))
        concurrent.close()
        asked = [text for part in inner.asked for text in part]
        assert sorted(asked) == sorted(queries)
        places = [queries.index(text) for text in asked]
        assert abs(spearmanr(places, range(500)).statistic) < 0.15
        sizes = set(map(len, inner.asked))
        assert sizes <= set(range(1, 17))
        assert len(sizes) > 10

    def test_of_a_suspect(self) -> None:
        server, texts = Server(), some_texts(60)
        with server.suspect(pace=0.001, reask=2) as suspect:
            np.testing.assert_allclose(suspect.embed(texts), rows_of(texts))
            suspect.finish()
        assert sorted(server.asked[:60]) == sorted(texts)  # nothing twice before the last new one
        assert server.asked[:60] != texts
        assert max(len(json.loads(request.content)["inputs"]) for request in server.requests) <= 4

    def test_nothing_says_who_asks(self) -> None:
        for given, sent in ((None, f"python-httpx2/{httpx2.__version__}"), ("curl/8.14.1", "curl/8.14.1")):
            server = Server()
            with server.suspect(user_agent=given) as suspect:
                suspect.embed(["a"])
            (request,) = server.requests
            assert request.headers["user-agent"] == sent
            assert "sslguard" not in str(request.headers.raw) + request.content.decode()

    @pytest.mark.parametrize("agent", ["", "a\r\nb: c", "é", "a" * 201])
    def test_of_a_user_agent_that_no_header_holds(self, agent: str) -> None:
        with pytest.raises(UsageError, match="--user-agent takes"):
            Remote(user_agent=agent)

    def test_with_a_rate(self) -> None:
        with pytest.raises(UsageError, match="give one of them"):
            Remote(pace=1.0, rate=1.0)


class TestCounted:
    def test_budget_is_never_overrun(self) -> None:
        inner = Formula()
        counted = Counted(inner, budget=10, price=0.5)  # type: ignore[arg-type]
        counted.embed(TEXTS[:4])
        counted.embed(TEXTS[:4])
        with pytest.raises(SuspectError, match="budget of 10 queries is too small: formula was asked 8, and 4 more"):
            counted.embed(TEXTS[:4])
        counted.embed(TEXTS[:2])
        assert (counted.n_queries, counted.n_requests, counted.cost) == (10, 3, 5.0)
        assert sum(map(len, inner.asked)) == 10

    def test_not_by_many_threads_either(self) -> None:
        inner = Formula()
        counted = Counted(inner, budget=50)  # type: ignore[arg-type]
        concurrent = Concurrent(counted, size=1, workers=8)
        with pytest.raises(SuspectError, match="budget"):
            concurrent.embed(some_texts(80))
        concurrent.close()
        assert sum(map(len, inner.asked)) <= 50

    def test_attempts_count(self) -> None:
        server = Server(lambda _: httpx2.Response(500))
        with server.suspect(budget=9, attempts=4) as suspect, pytest.raises(SuspectError, match="budget of 9"):
            suspect.embed(TEXTS[:4])
        assert len(server.requests) == 2
        assert suspect.report()["n_asked"] == 8


class TestConcurrent:
    def test_order_and_number(self) -> None:
        at_once, most, lock = [0], [0], threading.Lock()
        gate = threading.Barrier(3, timeout=5)

        class Slow(Formula):
            def embed(self, batch: Any, /) -> np.ndarray:
                with lock:
                    at_once[0] += 1
                    most[0] = max(most[0], at_once[0])
                if len(self.asked) > 0:
                    gate.wait()
                answers = super().embed(batch)
                with lock:
                    at_once[0] -= 1
                return answers

        slow = Slow()
        concurrent = Concurrent(slow, size=2, workers=3)
        queries = some_texts(14)  # one request alone, then two rounds of three
        np.testing.assert_array_equal(concurrent.embed(queries), rows_of(queries))
        concurrent.close()
        assert most[0] == 3
        assert slow.asked[0] == queries[:2]

    def test_first_request_goes_alone(self) -> None:
        inner = Formula(SuspectError("wrong address"))
        concurrent = Concurrent(inner, size=1, workers=4)
        with pytest.raises(SuspectError, match="wrong address"):
            concurrent.embed(TEXTS)
        concurrent.close()
        assert len(inner.asked) == 1

    def test_failure_ends_the_batch(self) -> None:
        inner = Formula(None, None, SuspectError("gone"))
        concurrent = Concurrent(inner, size=1, workers=1)
        with pytest.raises(SuspectError, match="gone"):
            concurrent.embed(some_texts(50))
        concurrent.close()
        assert len(inner.asked) <= 5

    def test_tensors_and_lists(self) -> None:
        class Sums(Formula):
            def embed(self, batch: Any, /) -> np.ndarray:
                return np.array([[float(item.sum()), 1.0] for item in batch])

        for batch in (IMAGES, list(IMAGES)):
            concurrent = Concurrent(Sums(), size=2)
            assert concurrent.embed(batch)[:, 0].tolist() == IMAGES.sum((1, 2, 3)).tolist()
            concurrent.close()


class TestCached:
    def test_nothing_is_asked_twice(self, tmp_path: Path) -> None:
        for name, expected in (("one", 11), ("one", 0), ("other", 11)):
            inner = Formula()
            store = AnswerStore(tmp_path, name)
            cached = Cached(inner, store)
            np.testing.assert_array_equal(cached.embed(TEXTS), rows_of(TEXTS))
            store.close()
            assert sum(map(len, inner.asked)) == expected
            assert cached.n_cached == 11 - expected

    def test_only_what_is_missing_is_asked(self, tmp_path: Path) -> None:
        inner = Formula()
        cached = Cached(inner, AnswerStore(tmp_path, "x"))
        cached.embed(TEXTS[2:5])
        np.testing.assert_array_equal(cached.embed(TEXTS), rows_of(TEXTS))
        assert inner.asked[1] == TEXTS[:2] + TEXTS[5:]

    def test_missing_answers_are_not_kept(self, tmp_path: Path) -> None:
        inner = Formula(None, unanswered(), None)
        cached = Cached(Tolerant(inner), AnswerStore(tmp_path, "x"))
        cached.embed(TEXTS[:2])
        mixed = cached.embed(TEXTS[:4])
        assert np.isnan(mixed[2:]).all()
        np.testing.assert_array_equal(mixed[:2], rows_of(TEXTS[:2]))
        np.testing.assert_array_equal(cached.embed(TEXTS[:4]), rows_of(TEXTS[:4]))
        assert len(cached.store) == 4

    def test_private(self, tmp_path: Path) -> None:
        assert AnswerStore(tmp_path, "x").path.stat().st_mode & 0o077 == 0

    def test_items_are_told_apart(self) -> None:
        items = [
            *("a", "b", ""),
            *(torch.zeros(1, 2, 2, dtype=torch.uint8), torch.zeros(1, 4, 1, dtype=torch.uint8)),
            *(torch.zeros(1, 2, 2), torch.ones(1, 2, 2)),
        ]
        assert len({digest(item) for item in items}) == len(items)
        assert digest("\ud800")
        assert digest(IMAGES[0]) == digest(IMAGES.flip(0)[-1])

    def test_damage(self, tmp_path: Path) -> None:
        store = AnswerStore(tmp_path, "x")
        store.put([b"1", b"2", b"3"], np.ones((3, 4), np.float32))
        with store._base:
            store._base.execute("UPDATE answers SET answer = x'00' WHERE query = ?", (b"1",))
            nan = np.full(4, np.nan, np.float32).tobytes()
            store._base.execute("UPDATE answers SET answer = ? WHERE query = ?", (nan, b"2"))
        assert [store.get(query) is None for query in (b"1", b"2", b"3", b"4")] == [True, True, False, True]
        with store._base:
            store._base.execute("DROP TABLE answers")
            store._base.execute("CREATE TABLE answers (query, answer)")
            store._base.execute("INSERT INTO answers VALUES (?, NULL)", (b"1",))
        store.close()
        crafted = AnswerStore(tmp_path, "x")
        assert (crafted.width, crafted.get(b"1")) == (None, None)
        crafted.close()
        whole = AnswerStore(tmp_path, "y").path.read_bytes()
        store.path.write_bytes(whole.replace(b"NOT NULL", b"NOT NU\x9dL"))
        with pytest.raises(OutputError, match=r"can't decode byte 0x9d.*delete it and ask again"):
            AnswerStore(tmp_path, "x")
        store.path.write_bytes(b"this is no database" * 100)
        with pytest.raises(OutputError, match="delete it and ask again"):
            AnswerStore(tmp_path, "x")

    def test_another_width_is_another_model(self, tmp_path: Path) -> None:
        store = AnswerStore(tmp_path, "x")
        store.put([b"1"], np.ones((1, 4), np.float32))
        with pytest.raises(SuspectError, match="another model"):
            store.put([b"2"], np.ones((1, 5), np.float32))

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match="cannot be used"):
            AnswerStore(tmp_path / "file", "x")

    def test_interrupted_verification_goes_on(self, tmp_path: Path) -> None:
        queries, server = some_texts(40), Server()

        def dying(request: httpx2.Request) -> httpx2.Response:
            return tei_reply(request) if len(server.requests) <= 5 else httpx2.Response(403)

        server.reply = dying
        with server.suspect(cache=tmp_path, workers=1) as suspect, pytest.raises(SuspectError, match="403"):
            suspect.embed(queries)
        answered = set(server.asked[:20])
        again = Server()
        with again.suspect(cache=tmp_path) as suspect:
            np.testing.assert_array_equal(suspect.embed(queries), rows_of(queries))
        assert answered.isdisjoint(again.asked)
        assert sorted(again.asked) == sorted(set(queries) - answered)
        assert suspect.report()["n_cached"] == 20

    def test_another_model_at_the_same_address_is_asked_anew(self, tmp_path: Path) -> None:
        for model in ("one", "other"):
            server = Server(openai_reply)
            with server.suspect(protocol="openai", model=model, cache=tmp_path) as suspect:
                suspect.embed(["a"])
            assert len(server.requests) == 1
        assert len(list(tmp_path.glob("*.sqlite"))) == 2


def test_memory_does_not_grow_with_queries() -> None:
    """Fifty thousand queries leave nothing behind but a few kept ones."""
    import tracemalloc

    def reply(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=b"[" + b",".join([b"[1.0,2.0]"] * request.content.count(b"text ")) + b"]")

    suspect = open_remote_without_log(reply)
    tracemalloc.start()
    try:
        sizes = []
        for start in range(0, 50_000, 1000):
            suspect.embed([f"text {i}" for i in range(start, start + 1000)])
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        suspect.close()
    assert suspect.report()["n_asked"] >= 50_000
    assert sizes[-1] - sizes[10] < 200_000  # bytes; the answers alone would be 320,000, the texts 3 million


def open_remote_without_log(reply: Any) -> Any:
    from sslguard.suspects.remote import open_remote

    options = Remote(protocol="tei", request_size=500, workers=2)
    return open_remote(ADDRESS, options, transport=httpx2.MockTransport(reply))
