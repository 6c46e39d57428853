"""The routes of the server: one encoder over the APIs of OIP, OpenAI and text-embeddings-inference.

=======================================  ============================================================================
POST /v2/models/NAME/infer               Open Inference Protocol V2: images or texts, as JSON or as bytes
GET /v2, /v2/models/NAME[/ready]         description of the server and the model, and whether it is ready
POST /v1/embeddings, GET /v1/models      OpenAI: texts
POST /embed, GET /info                   text-embeddings-inference: texts
POST /v1/embed                           `{"texts": [...]}` or `{"images": [base64, ...]}` → `{"embeddings": [...]}`
GET /health, /v2/health/live, …/ready    status 200 while the server accepts requests
=======================================  ============================================================================

Texts and images go through the encoder's own preprocessing.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from torch import Tensor

from sslguard import __version__
from sslguard.encoders.base import Encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.text import TextPreprocess
from sslguard.errors import DataError, SslguardError, UsageError
from sslguard.serve import wire
from sslguard.serve.batching import Answers, Batcher, Limits, OverloadedError
from sslguard.settings import Count, Positive

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings(Limits):
    """Settings of a server; see also `Limits`.

    Attributes:
        name: Name of the model in paths and answers.
        max_items: Most items of one request.
        max_bytes: Most bytes of a request's body.
        body_seconds: Seconds within which a body must arrive.
        token: Token that callers must send as `Authorization: Bearer TOKEN`; None lets anybody call.
    """

    name: str = "encoder"
    max_items: Count = 1024
    max_bytes: Count = 1 << 25
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
    """What the routes share: the encoder behind its queue, and the settings."""

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        self.encoder, self.settings = encoder, settings
        self.takes_images = isinstance(encoder.preprocess, ImagePreprocess)
        self.batcher: Batcher | None = None

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        self.batcher = Batcher(self.encoder, self.settings)
        self.batcher.start()
        try:
            yield
        finally:
            await self.batcher.close()
            self.batcher = None

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
        """
        self.admit(request)
        most = self.settings.max_bytes
        too_large = _RefusedError(413, f"a request may have at most {most:,} bytes", {"Connection": "close"})
        promised = request.headers.get("content-length", "0")
        if promised.isdigit() and int(promised[:19]) > most:
            raise too_large
        found = bytearray()
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                async for part in request.stream():
                    found += part
                    if len(found) > most:
                        raise too_large
        except TimeoutError:
            raise _RefusedError(408, "the request came too slowly", {"Connection": "close"}) from None
        return bytes(found)

    def model(self, name: str) -> None:
        if name != self.settings.name:
            raise _RefusedError(404, f"unknown model; this server has the model {self.settings.name}")

    def texts(self, items: list[str] | list[list[int]] | list[Tensor]) -> list[str]:
        """Return texts, decoded by the encoder's own tokenizer if they came as token ids.

        Raises:
            _RefusedError: The encoder has no tokenizer.
            DataError: It does not know an id.
        """
        texts = [item for item in items if isinstance(item, str)]
        if texts:
            return texts
        if not isinstance(self.encoder.preprocess, TextPreprocess):
            raise _RefusedError(400, "this encoder takes texts, not token ids: it has no tokenizer")
        return [self.encoder.preprocess.decoded(ids) for ids in items if isinstance(ids, list)]

    async def embedded(self, ask: wire.Ask) -> Answers:
        """Return the answers to a decoded request.

        Raises:
            _RefusedError: The encoder does not take these items, fails, or has too much to do.
        """
        images = [item for item in ask.items if isinstance(item, Tensor)]
        if bool(images) != self.takes_images:
            raise _RefusedError(400, f"this encoder takes {'images' if self.takes_images else 'texts'}")
        if self.batcher is None:
            raise _RefusedError(503, "this server is stopping")
        try:
            return await self.batcher.embed(images or self.texts(ask.items))
        except OverloadedError as error:
            raise _RefusedError(503, str(error), {"Retry-After": "1"}) from error
        except DataError as error:
            raise _RefusedError(400, str(error)) from error
        except SslguardError as error:
            logger.warning("the encoder failed: %s", error)
            raise _RefusedError(500, "the encoder failed on this request") from error


def create_app(encoder: Encoder, settings: Settings | None = None) -> FastAPI:
    """Return the server as an ASGI application.

    Args:
        encoder: Encoder to serve.
        settings: Settings of the server; None takes the defaults.
    """
    service = _Service(encoder, settings or Settings())
    app = FastAPI(
        title="sslguard", version=__version__, lifespan=service.running, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.state.service = service
    app.add_exception_handler(_RefusedError, _refused)
    app.add_exception_handler(wire.BadRequestError, _refused)
    _add_oip(app, service)
    _add_texts(app, service)
    _add_health(app, service)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, _RefusedError) else 400
    headers = error.headers if isinstance(error, _RefusedError) else None
    # OpenAI's clients expect an object under "error", those of OIP and TEI a text.
    said: Any = {"message": str(error), "code": status} if request.url.path.startswith("/v1") else str(error)
    return JSONResponse({"error": said}, status, headers)


def _response(content: wire.Content) -> Response:
    return Response(content.body, headers=dict(content.headers))


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
        ask = wire.oip_ask(await service.body(request), request.headers, service.settings.max_items)
        return _response(wire.oip_answer(ask, await service.embedded(ask), name))


def _add_texts(app: FastAPI, service: _Service) -> None:
    name, most = service.settings.name, service.settings.max_items

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "sslguard"}]}

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        ask = wire.openai_ask(await service.body(request), most)
        answers = wire.first_numbers(await service.embedded(ask), ask.dimensions)
        return _response(wire.openai_answer(ask, answers, name))

    @app.post("/embed")
    async def embed(request: Request) -> Response:
        fields = wire.parsed(await service.body(request))
        ask = wire.Ask(wire.texts_of(fields.get("inputs"), "inputs", most))
        return _response(wire.as_json((await service.embedded(ask)).tolist()))

    @app.post("/v1/embed")
    async def embed_either(request: Request) -> Response:
        fields = wire.parsed(await service.body(request))
        ask = wire.Ask(
            wire.pictures_of(fields["images"], "images", most)
            if "images" in fields
            else wire.texts_of(fields.get("texts"), "texts", most)
        )
        return _response(wire.as_json({"embeddings": (await service.embedded(ask)).tolist()}))

    @app.get("/info")
    async def info() -> Any:
        return {"model_id": name, "max_client_batch_size": most, "version": __version__}


def _add_health(app: FastAPI, service: _Service) -> None:
    async def ready() -> Any:
        if service.batcher is None:
            raise _RefusedError(503, "this server is stopping")
        return {"status": "ok"}

    for path in ("/health", "/v2/health/ready", "/v2/health/live"):
        app.get(path)(ready)
