"""A server without a socket."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import httpx2


class InProcess(httpx2.AsyncBaseTransport):
    """An application without a socket, started with the first request and stopped when it is closed."""

    def __init__(self, app: Any) -> None:
        self.app, self.inner, self.stack = app, httpx2.ASGITransport(app), AsyncExitStack()
        self.started = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if not self.started:
            self.started = True
            await self.stack.enter_async_context(self.app.router.lifespan_context(self.app))
        return await self.inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self.stack.aclose()


def answered(app: Any, *requests: dict[str, Any]) -> list[httpx2.Response]:
    """Responses to requests that are sent one after the other; each is a path, and what httpx2 takes."""

    async def ask() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(transport=InProcess(app), base_url="http://test") as client:
            return [await client.request(r.pop("method", "POST"), r.pop("path"), **r) for r in map(dict, requests)]

    return asyncio.run(ask())
