"""The routes of the server: one encoder over the APIs of OIP, OpenAI and text-embeddings-inference.

=======================================  ============================================================================
POST /v2/models/NAME/infer               Open Inference Protocol V2: images or texts, as JSON or as bytes
GET /v2, /v2/models/NAME[/ready]         description of the server and the model, and whether it is ready
POST /v1/embeddings, GET /v1/models      OpenAI: texts
POST /embed, GET /info                   text-embeddings-inference: texts
POST /v1/embed                           `{"texts": [...]}` or `{"images": [base64, ...]}` → `{"embeddings": [...]}`
GET /health, /v2/health/live, …/ready    status 200 while the server accepts requests
=======================================  ============================================================================

Texts and images go through the encoder's own preprocessing. Requests are decoded, and answers written, in threads of
their own (`work`), and all requests share a bounded memory (`budget`).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from sslguard import __version__
from sslguard.encoders.base import Encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.text import TextPreprocess
from sslguard.errors import DataError, SslguardError, UsageError
from sslguard.serve import wire
from sslguard.serve.batching import Answers, Limits
from sslguard.serve.budget import HELD, RETRY_AFTER, Budget, Holding, OverloadedError
from sslguard.serve.recipients import NotServedError, Recipients
from sslguard.serve.work import Work
from sslguard.settings import Count, Positive

T = TypeVar("T")
logger = logging.getLogger(__name__)
ASKED_BY = "sslguard.asked_by"
"""Key of a request's scope: the recipient who sends it, and the number of his secret."""
_NUMBER_BYTES = 24  # of a number in an answer: as JSON, and as what it is made of
_PIECE = 1 << 16  # bytes of an answer that are handed to the connection at a time


@dataclass(frozen=True)
class Settings(Limits):
    """Settings of a server; see also `Limits`.

    Attributes:
        name: Name of the model in paths and answers.
        max_items: Most items of one request.
        max_bytes: Most bytes of a request's body.
        max_held: Most bytes that all requests may hold together: bodies, prepared items and answers.
        max_pixels: Most pixels of images that all requests may have in work together.
        body_seconds: Seconds within which a body must arrive.
        token: Token that callers must send as `Authorization: Bearer TOKEN`; None lets anybody call.
    """

    name: str = "encoder"
    max_items: Count = 1024
    max_bytes: Count = 1 << 25
    max_held: Count = 1 << 27
    max_pixels: Count = 1 << 27
    body_seconds: Positive = 30.0
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.name and self.name.replace("-", "").replace("_", "").replace(".", "").isalnum()):
            raise UsageError(f"name may hold letters, digits, '_', '.' and '-' only, not {self.name!r:.80}")


class _RefusedError(Exception):
    """An answer with a status other than 200."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class _Service:
    """What the routes share: the encoder behind its queue, the settings, and what requests may hold."""

    def __init__(self, encoder: Encoder, settings: Settings, recipients: Recipients | None) -> None:
        self.encoder, self.settings, self.recipients = encoder, settings, recipients
        self.takes_images = isinstance(encoder.preprocess, ImagePreprocess)
        self.item_size = 0
        if isinstance(encoder.preprocess, ImagePreprocess):
            self.item_size = 4 * math.prod(encoder.preprocess.shape)
        self.memory = Budget(settings.max_held, "bytes")
        self.work: Work | None = None

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        self.work = Work(self.encoder, self.settings, Budget(self.settings.max_pixels, "pixels"), self.recipients)
        self.work.batcher.start()
        try:
            yield
        finally:
            await self.work.close()
            self.work = None

    def working(self) -> Work:
        """Return the threads that work for requests.

        Raises:
            _RefusedError: The server is stopping.
        """
        if self.work is None:
            raise _RefusedError(503, "this server is stopping", {"Retry-After": RETRY_AFTER})
        return self.work

    def admit(self, request: Request) -> None:
        """Check the token.

        Raises:
            _RefusedError: The caller did not send the token.
        """
        if self.settings.token is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self.settings.token.encode()):
            raise _RefusedError(401, "this server needs the header Authorization: Bearer TOKEN with the right token")

    async def body(self, request: Request) -> bytes:
        """Return the request's body.

        Raises:
            _RefusedError: The caller did not send the token, or the body is too large or too slow.
            NotServedError: No recipient asks who is served.
            OverloadedError: Other requests hold too much.
        """
        self.admit(request)
        if self.recipients is not None:
            request.scope[ASKED_BY] = await self.recipients.asked_by(request.headers.raw)
        most, held = self.settings.max_bytes, request.scope[HELD]
        too_large = _RefusedError(413, f"a request may have at most {most:,} bytes", {"Connection": "close"})
        promised = request.headers.get("content-length", "0")
        if promised.isdigit() and int(promised[:19]) > most:
            raise too_large
        found = bytearray()
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                async for part in request.stream():
                    if len(found) + len(part) > most:
                        raise too_large
                    held.take(len(part))
                    found += part
        except TimeoutError:
            raise _RefusedError(408, "the request came too slowly", {"Connection": "close"}) from None
        return bytes(found)

    def model(self, name: str) -> None:
        if name != self.settings.name:
            raise _RefusedError(404, f"unknown model; this server has the model {self.settings.name}")

    def texts(self, items: list[list[int]]) -> list[str]:
        """Return the texts of token ids of the encoder's own tokenizer.

        Raises:
            _RefusedError: The encoder has no tokenizer.
            DataError: It does not know an id.
        """
        if not isinstance(self.encoder.preprocess, TextPreprocess):
            raise _RefusedError(400, "this encoder takes texts, not token ids: it has no tokenizer")
        return [self.encoder.preprocess.decoded(ids) for ids in items]

    async def asked(self, request: Request, read: Callable[[bytes], wire.Ask]) -> wire.Ask:
        """Return the request that `read` decodes a body as."""
        body = await self.body(request)
        return await self.working().run(len(body), read, body)

    async def answer(self, request: Request, ask: wire.Ask, write: Callable[[Answers], wire.Content]) -> Response:
        """Return the response that `write` makes of the answers to a decoded request.

        Raises:
            _RefusedError: The encoder does not take these items, or fails.
            OverloadedError: There is too much to do.
        """
        n, work = len(ask.items), self.working()
        if self.takes_images == isinstance(ask.items[0], str | list):
            raise _RefusedError(400, f"this encoder takes {'images' if self.takes_images else 'texts'}")
        request.scope[HELD].take(
            n * self.encoder.dim * _NUMBER_BYTES + min(n, self.settings.max_batch) * self.item_size
        )
        try:
            items: Any = ask.items
            if isinstance(items[0], list):
                items = await work.run(0, self.texts, items)
            mark = None if self.recipients is None else await self.recipients.mark(*request.scope[ASKED_BY])
            answers = await work.embedded(items, mark)
        except (DataError, wire.BadRequestError) as error:
            raise _RefusedError(400, str(error)) from error
        except OverloadedError:
            raise
        except SslguardError as error:
            logger.warning("the encoder failed: %s", error)
            raise _RefusedError(500, "the encoder failed on this request") from error
        content = await work.run(answers.size * _NUMBER_BYTES, write, answers)
        headers = {**content.headers, "Content-Length": str(len(content.body))}
        if self.recipients is not None:
            # One recipient's answers must not be another's from a cache on the way.
            headers |= {"Cache-Control": "no-store", "Vary": self.recipients.header}
        return StreamingResponse(_pieces(content.body), headers=headers)


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    """Yield a body in pieces, each when the connection has taken those before."""
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]


def create_app(encoder: Encoder, settings: Settings | None = None, recipients: Recipients | None = None) -> FastAPI:
    """Return the server as an ASGI application.

    Args:
        encoder: Encoder to serve.
        settings: Settings of the server; None takes the defaults.
        recipients: Those whose answers are marked, each by his own mark; nobody else is answered. None marks nothing.
    """
    service = _Service(encoder, settings or Settings(), recipients)
    app = FastAPI(
        title="sslguard", version=__version__, lifespan=service.running, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.state.service = service
    app.add_exception_handler(_RefusedError, _refused)
    app.add_exception_handler(NotServedError, _refused)
    app.add_exception_handler(wire.BadRequestError, _refused)
    app.add_exception_handler(OverloadedError, _refused)
    app.add_middleware(Holding, budget=service.memory)
    _add_oip(app, service)
    _add_texts(app, service)
    _add_health(app, service)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    status, headers = 400, None
    if isinstance(error, OverloadedError):
        status, headers = 503, {"Retry-After": RETRY_AFTER}
    elif isinstance(error, NotServedError):
        status = error.status
    elif isinstance(error, _RefusedError):
        status, headers = error.status, error.headers
    # OpenAI's clients expect an object under "error", those of OIP and TEI a text.
    said: Any = {"message": str(error), "code": status} if request.url.path.startswith("/v1") else str(error)
    return JSONResponse({"error": said}, status, headers)


def _add_oip(app: FastAPI, service: _Service) -> None:
    name = service.settings.name

    @app.get("/v2")
    async def server() -> Any:
        return {"name": "sslguard", "version": __version__, "extensions": ["binary_tensor_data"]}

    @app.get("/v2/models/{model}")
    async def metadata(model: str) -> Any:
        service.model(model)
        tensor = {"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, -1]}
        if not service.takes_images:
            tensor = {"name": "texts", "datatype": "BYTES", "shape": [-1]}
        outputs = [{"name": "embeddings", "datatype": "FP32", "shape": [-1, service.encoder.dim]}]
        return {"name": name, "versions": ["1"], "platform": "sslguard", "inputs": [tensor], "outputs": outputs}

    @app.get("/v2/models/{model}/ready")
    async def model_ready(model: str) -> Any:
        service.model(model)
        return {"name": name, "ready": True}

    @app.post("/v2/models/{model}/infer")
    async def infer(model: str, request: Request) -> Response:
        service.model(model)
        ask = await service.asked(request, lambda body: wire.oip_ask(body, request.headers, service.settings.max_items))
        return await service.answer(request, ask, lambda answers: wire.oip_answer(ask, answers, name))


def _add_texts(app: FastAPI, service: _Service) -> None:
    name, most = service.settings.name, service.settings.max_items

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "sslguard"}]}

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        ask = await service.asked(request, lambda body: wire.openai_ask(body, most))
        return await service.answer(
            request, ask, lambda found: wire.openai_answer(ask, wire.first_numbers(found, ask.dimensions), name)
        )

    @app.post("/embed")
    async def embed(request: Request) -> Response:
        ask = await service.asked(request, lambda body: wire.tei_ask(body, most))
        return await service.answer(request, ask, lambda found: wire.as_json(found.tolist()))

    @app.post("/v1/embed")
    async def embed_either(request: Request) -> Response:
        ask = await service.asked(request, lambda body: wire.either_ask(body, most))
        return await service.answer(request, ask, lambda found: wire.as_json({"embeddings": found.tolist()}))

    @app.get("/info")
    async def info() -> Any:
        return {"model_id": name, "max_client_batch_size": most, "version": __version__}


def _add_health(app: FastAPI, service: _Service) -> None:
    async def ready() -> Any:
        service.working()
        return {"status": "ok"}

    for path in ("/health", "/v2/health/ready", "/v2/health/live"):
        app.get(path)(ready)
