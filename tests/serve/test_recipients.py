"""One encoder for many recipients: each gets his own mark, and nobody another's or none."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.command_line import sslguard as command
from helpers.in_process import InProcess, answered
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.data.specs import open_data
from sslguard.encoders.base import Encoder
from sslguard.encoders.load import load_encoder, new_text_encoder
from sslguard.errors import EncoderError, KeyFileError, UsageError
from sslguard.schemes.base import Key
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import RECIPIENTS, open_key, save_key
from sslguard.tracing.recipients import add, revoke, rotate

pytest.importorskip("fastapi")
from sslguard.serve import recipients as served_recipients
from sslguard.serve.app import Settings, create_app
from sslguard.serve.headers import checked_header
from sslguard.serve.recipients import Recipients

SCHEME = Exact(Protocol(n_queries=20), mode="head")
CLEAN, HEADER = "random:bag-of-words:3", "X-Customer"
TEXTS = [" ".join(f"w{k}" for k in range(i, 2 * i + 2)) for i in (9, 1, 5, 0, 7, 3)]
PATH = "/embed"


@pytest.fixture(scope="module")
def words() -> Encoder:
    return load_encoder(CLEAN)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Data:
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(" ".join(f"w{k}" for k in random.integers(0, 200, 8)) for _ in range(300)))
    return open_data(f"text:{path}")


@pytest.fixture(scope="module")
def key(words: Encoder, lines: Data) -> ExactKey:
    made = SCHEME.watermark(words, lines, secret=Secret.from_seed(1)).key
    assert isinstance(made, ExactKey)
    return made


@pytest.fixture
def folder(key: ExactKey, tmp_path: Path) -> Path:
    save_key(key, tmp_path / "key")
    add(tmp_path / "key", ["acme", "Zoë AG", "bob"])
    return tmp_path / "key"


@pytest.fixture
def served(words: Encoder, folder: Path) -> Any:
    return create_app(words, Settings(max_wait=0.05), Recipients(words, open_key(folder), HEADER))


def ask(name: str | bytes | None, texts: list[str] = TEXTS, **more: str) -> dict[str, Any]:
    value = name.encode() if isinstance(name, str) else name
    headers = [] if value is None else [(HEADER.lower().encode(), value)]
    return {"path": PATH, "json": {"inputs": texts}, "headers": [*headers, *((k, v) for k, v in more.items())]}


def written(key: ExactKey, data: Data, name: str, rotation: int = 0) -> Encoder:
    """What `watermark --key KEY --recipient-mark NAME --mode head` writes."""
    made = SCHEME.watermark_for(key, data, name=name, rotation=rotation).embedder
    assert isinstance(made, Encoder)
    return made


class TestMarks:
    def test_requests_of_several_in_one_batch_get_what_each_ones_head_gives(
        self, served: Any, key: ExactKey, lines: Data
    ) -> None:
        import httpx2

        names = ["acme", "Zoë AG", "bob", "acme"]

        async def together() -> list[Any]:
            async with httpx2.AsyncClient(transport=InProcess(served), base_url="http://test") as client:
                await client.get("/health")
                asks = [client.request("POST", one.pop("path"), **one) for one in map(ask, names)]
                found = [response.json() for response in await asyncio.gather(*asks)]
                batcher = served.state.service.work.batcher
                assert batcher.n_items == len(names) * len(TEXTS)
                assert batcher.n_batches < 6  # the first parts hold 8 items
                return found

        found = dict(zip(names, asyncio.run(together()), strict=True))
        for name, answers in found.items():
            np.testing.assert_allclose(answers, written(key, lines, name).embed(TEXTS), rtol=0, atol=1e-6)
        clean = key.clean.embed(TEXTS)
        for one, other in (("acme", "bob"), ("acme", "Zoë AG")):
            apart = np.abs(np.subtract(found[one], found[other])).max()
            assert min(apart, np.abs(found[one] - clean).max()) > 1e-3

    def test_of_pictures_too(self, tiny: Callable[..., Encoder], images: Callable[..., Data], tmp_path: Path) -> None:
        scheme, encoder, data = Exact(Protocol(n_queries=250), mode="head"), tiny(7), images(400)
        key = scheme.watermark(encoder, data, secret=Secret.from_seed(1)).key
        save_key(key, tmp_path / "key")
        add(tmp_path / "key", ["a", "b"])
        recipients = Recipients(encoder, open_key(tmp_path / "key"), HEADER)
        batch = images(9, seed=5).take(np.arange(9))
        names = ["b", "a", "b", "b", "a", "a", "a", "b", "a"]

        async def drawn() -> list[Any]:
            return [await recipients.mark(name, 0) for name in names]

        found = recipients.marked(recipients.encoder.embed(batch), asyncio.run(drawn()))
        assert isinstance(key, ExactKey)
        for name in ("a", "b"):
            head = scheme.watermark_for(key, data, name=name).embedder
            some = [i for i, one in enumerate(names) if one == name]
            np.testing.assert_allclose(found[some], head.embed(batch)[some], rtol=1e-5, atol=1e-5)

    def test_every_route_marks(self, served: Any, key: ExactKey, lines: Data) -> None:
        headers = [(HEADER, "acme")]
        tensor = {"name": "t", "datatype": "BYTES", "shape": [len(TEXTS)], "data": TEXTS}
        responses = answered(
            served,
            {"path": "/v1/embed", "json": {"texts": TEXTS}, "headers": headers},
            {"path": "/v1/embeddings", "json": {"input": TEXTS}, "headers": headers},
            {"path": "/v2/models/encoder/infer", "json": {"inputs": [tensor]}, "headers": headers},
        )
        expected = written(key, lines, "acme").embed(TEXTS)
        found = [
            responses[0].json()["embeddings"],
            [row["embedding"] for row in responses[1].json()["data"]],
            np.reshape(responses[2].json()["outputs"][0]["data"], expected.shape),
        ]
        for answers in found:
            np.testing.assert_allclose(answers, expected, rtol=0, atol=1e-6)
        for response in responses:
            assert (response.headers["cache-control"], response.headers["vary"]) == ("no-store", HEADER)

    def test_marks_are_kept_while_there_is_room(
        self, words: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipients = Recipients(words, open_key(folder), HEADER)

        async def asked(*names: str) -> int:
            before = recipients.n_drawn
            for name in names:
                await recipients.mark(name, 0)
            return recipients.n_drawn - before

        assert asyncio.run(asked("acme", "bob", "acme", "bob")) == 2
        one = asyncio.run(recipients.mark("bob", 0))
        monkeypatch.setattr(served_recipients, "KEPT_BYTES", 2 * (one.mixtures.nbytes + one.rows.nbytes))
        assert asyncio.run(asked("Zoë AG", "bob", "Zoë AG")) == 1  # acme was longest not asked for
        assert asyncio.run(asked("bob", "acme")) == 1

    def test_an_item_without_a_mark_is_not_answered(self, words: Encoder, folder: Path) -> None:
        recipients = Recipients(words, open_key(folder), HEADER)
        with pytest.raises(EncoderError, match="no recipient"):
            recipients.marked(recipients.encoder.embed(TEXTS), [])


class TestWhoAsks:
    @pytest.mark.parametrize(
        ("headers", "status", "said"),
        [
            ([], 400, "is missing"),
            ([(HEADER, "acme"), (HEADER, "acme")], 400, "more than once"),
            ([(HEADER, "acme"), (HEADER.lower(), "bob")], 400, "more than once"),
            ([(HEADER, "")], 400, "printable"),
            ([(HEADER, "x" * 129)], 400, "printable"),
            ([(b"X-Customer", b"\xff")], 400, "printable"),
            ([(b"X-Customer", "a\u202eb".encode())], 400, "printable"),
            ([(b"X-Customer", b"a\x00b")], 400, "printable"),
            ([(HEADER, "Acme")], 403, "unknown, or revoked"),
            ([(HEADER, "acme, bob")], 403, "unknown, or revoked"),
            ([(HEADER, "../acme")], 403, "unknown, or revoked"),
        ],
        ids=str,
    )
    def test_others_are_refused_in_one_sentence(self, headers: Any, status: int, said: str, served: Any) -> None:
        (response,) = answered(served, {"path": PATH, "json": {"inputs": TEXTS}, "headers": headers})
        assert (response.status_code, said in response.text) == (status, True), response.text
        assert set(response.json()) == {"error"}

    def test_another_spelling_of_a_name_is_the_same(self, served: Any) -> None:
        composed, apart = (response.json() for response in answered(served, ask("Zo\u00eb AG"), ask("Zoe\u0308 AG")))
        assert composed == apart

    def test_a_token_comes_first(self, words: Encoder, folder: Path) -> None:
        app = create_app(words, Settings(token="t"), Recipients(words, open_key(folder), HEADER))
        asks = [ask(None), ask("acme", authorization="Bearer t"), ask("nobody", authorization="Bearer t")]
        assert [response.status_code for response in answered(app, *asks)] == [401, 200, 403]

    def test_descriptions_need_no_header(self, served: Any) -> None:
        paths = ("/health", "/v2", "/v1/models", "/info", "/v2/models/encoder")
        found = answered(served, *({"method": "GET", "path": path} for path in paths))
        assert {response.status_code for response in found} == {200}
        assert found[-1].json()["outputs"][0]["shape"] == [-1, served.state.service.encoder.dim]


class TestChanges:
    """What happens to the list while the server runs."""

    def check(self, app: Any, *steps: tuple[Callable[[], object], str, int]) -> list[Any]:
        """Do each step, ask as somebody, and compare the status."""
        import httpx2

        async def whole() -> list[Any]:
            found = []
            async with httpx2.AsyncClient(transport=InProcess(app), base_url="http://test") as client:
                for change, name, status in steps:
                    change()
                    one = ask(name)
                    response = await client.request("POST", one.pop("path"), **one)
                    assert response.status_code == status, response.text
                    found.append(response.json())
            return found

        return asyncio.run(whole())

    def test_revoked_rotated_and_added(self, served: Any, folder: Path, key: ExactKey, lines: Data) -> None:
        found = self.check(
            served,
            (lambda: None, "acme", 200),
            (lambda: revoke(folder, "acme"), "acme", 403),
            (lambda: None, "bob", 200),
            (lambda: rotate(folder, "acme"), "acme", 200),
            (lambda: None, "new", 403),
            (lambda: add(folder, ["new"]), "new", 200),
        )
        for answers, name, rotation in ((found[0], "acme", 0), (found[3], "acme", 1), (found[5], "new", 0)):
            expected = written(key, lines, name, rotation).embed(TEXTS)
            np.testing.assert_allclose(answers, expected, rtol=0, atol=1e-6)
        assert np.abs(np.subtract(found[0], found[3])).max() > 1e-3

    def test_the_list_is_read_once_a_change(self, served: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[Path] = []
        whole = served_recipients.read_recipients
        monkeypatch.setattr(served_recipients, "read_recipients", lambda one: [read.append(one), whole(one)][1])
        self.check(
            served, *[(lambda: None, "bob", 200)] * 3, (lambda: add(folder, ["c"]), "c", 200), (lambda: None, "c", 200)
        )
        assert len(read) == 1

    def test_while_it_is_damaged_nobody_is_served(self, served: Any, folder: Path) -> None:
        content = (folder / RECIPIENTS).read_bytes()
        self.check(
            served,
            (lambda: (folder / RECIPIENTS).write_bytes(content[:-3]), "acme", 503),
            (lambda: None, "acme", 503),
            (lambda: (folder / RECIPIENTS).write_bytes(content), "acme", 200),
            (lambda: (folder / RECIPIENTS).unlink(), "acme", 403),
        )

    def test_another_key_in_its_place_serves_nobody(self, served: Any, folder: Path, key: ExactKey) -> None:
        def replace() -> None:
            save_key(key, folder)
            add(folder, ["acme"])

        self.check(served, (lambda: None, "acme", 200), (replace, "acme", 503))


class TestOpening:
    @pytest.mark.parametrize("name", ["", "X Customer", "X:y", "Zoë", "a\r\nb", "x" * 101])
    def test_what_is_no_header(self, name: str) -> None:
        with pytest.raises(UsageError, match="a header's name"):
            checked_header(name)

    @pytest.mark.parametrize("name", ["Authorization", "host", "Inference-Header-Content-Length"])
    def test_a_header_with_a_meaning_of_its_own(self, name: str) -> None:
        with pytest.raises(UsageError, match="meaning of its own"):
            checked_header(name)

    def test_another_encoder_key_or_list_is_refused(
        self, words: Encoder, folder: Path, key_of: Callable[..., Key], tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError, match="not the clean encoder"):
            Recipients(new_text_encoder("bag-of-words", seed=4), open_key(folder), HEADER)
        save_key(key_of(), tmp_path / "other")
        with pytest.raises(UsageError, match="not sslguard"):
            Recipients(words, open_key(tmp_path / "other"), HEADER)
        os.truncate(folder / RECIPIENTS, 20)
        with pytest.raises(KeyFileError, match="damaged"):
            Recipients(words, open_key(folder), HEADER)


class TestCommand:
    def test_it_serves_recipients_and_says_whom_it_believes(
        self, folder: Path, key: ExactKey, lines: Data, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import sslguard.serve

        opened: dict[str, Any] = {}

        class Server:
            address = "http://test"

            def run(self, *, started: Callable[[], None]) -> None:
                started()

        def opening(encoder: Encoder, settings: Settings, **given: Any) -> Server:
            opened.update(given, app=create_app(encoder, settings, given["recipients"]))
            return Server()

        monkeypatch.setattr(sslguard.serve, "open_server", opening)
        revoke(folder, "bob")
        ran = command("serve", CLEAN, "--head", folder, "--recipient-header", HEADER)
        assert ran.code == 0
        assert "2 recipients are served, each as the header X-Customer names him" in ran.err
        assert "served as anybody" in ran.err
        (response,) = answered(opened["app"], ask("acme"))
        np.testing.assert_allclose(response.json(), written(key, lines, "acme").embed(TEXTS), rtol=0, atol=1e-6)

    def test_what_cannot_be_is_refused_at_once(self, folder: Path) -> None:
        for given, complaint in (
            (("--recipient-header", HEADER), "needs --head"),
            (("--recipient-header", "X Y", "--head", folder), "a header's name"),
            (("--recipient-header", "Host", "--head", folder), "meaning of its own"),
        ):
            ran = command("serve", CLEAN, *given, "--port", "0")
            assert (ran.code, complaint in ran.err) == (2, True), ran.err
