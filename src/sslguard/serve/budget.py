"""What requests may hold at the same time, so that no number of them takes all memory."""

from __future__ import annotations

import asyncio

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sslguard.errors import SslguardError

HELD = "sslguard.held"
"""Key of a request's scope, under which `Holding` keeps its `Held`."""
RETRY_AFTER = "1"
"""Seconds after which a refused client may come again."""


class OverloadedError(SslguardError):
    """The server has too much to do, or is stopping. The caller may try again later."""


class Budget:
    """An amount that all requests share.

    Attributes:
        total: The amount.
        of: What it is an amount of, for messages.
        held: What is taken of it now.
    """

    def __init__(self, total: int, of: str) -> None:
        self.total, self.of, self.held = total, of, 0

    def take(self, n: int, *, own: int = 0) -> None:
        """Take a part of the amount.

        Where nobody else has taken any, it may exceed the total: a large request could never be answered otherwise.

        Args:
            n: How much.
            own: What the same request has taken before.

        Raises:
            OverloadedError: Others have taken too much.
        """
        if self.held > own and self.held + n > self.total:
            raise OverloadedError(f"{self.held:,} {self.of} are in work: try again later")
        self.held += n

    def give(self, n: int) -> None:
        """Return a part to the amount."""
        self.held -= n


class Held:
    """What one request has taken of the memory that all share.

    Attributes:
        budget: The shared memory, in bytes.
        n: Bytes that this request has taken.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget, self.n = budget, 0

    def take(self, n: int) -> None:
        """Take more.

        Raises:
            OverloadedError: Others have taken too much.
        """
        self.budget.take(n, own=self.n)
        self.n += n

    def give_all(self) -> None:
        """Return everything to the shared memory."""
        self.budget.give(self.n)
        self.n = 0


class Holding:
    """Around an application: a request gives its memory back once its answer was sent, or when its client has gone."""

    def __init__(self, app: ASGIApp, budget: Budget) -> None:
        self.app, self.budget = app, budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. One that the server's end interrupts gets status 503."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held, begun = Held(self.budget), False
        scope[HELD] = held

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, sent)
        except asyncio.CancelledError:
            if begun:
                raise
            refusal = PlainTextResponse("this server is stopping", 503, {"Retry-After": RETRY_AFTER})
            await refusal(scope, receive, send)
        finally:
            held.give_all()
