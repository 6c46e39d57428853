"""The application on a socket. The port is taken first. Stopping lets requests in progress end, for a few seconds."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from sslguard.errors import UsageError
from sslguard.serve.connections import Connection

GRACE_SECONDS = 6
"""Time for requests in progress once the server is told to stop. Within 10 s it is gone."""
BACKLOG = 1000
"""Connections that the system keeps until the server takes them."""


class Server:
    """A server on one address.

    Attributes:
        app: Application that is served.
        address: Address of the server with the port that was taken, as in http://127.0.0.1:8000.
    """

    def __init__(self, app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000) -> None:
        """Take the port. Nothing is answered yet.

        Args:
            app: Application to serve.
            host: Address to listen on.
            port: Port to listen on; 0 takes any free one.

        Raises:
            UsageError: The address cannot be taken.
        """
        self.app = app
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(
                f"{host!s:.80}:{port} cannot be taken: {reason}; choose another --port or --host"
            ) from error
        # Answers go out in two writes; without this the second waits 40 ms for the first one's receipt. asyncio sets it
        # for sockets that name their protocol alone.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        taken = self._socket.getsockname()[1]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{taken}"
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            http=Connection,
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        self._server = uvicorn.Server(config)

    def run(self, *, started: Callable[[], None] = lambda: None) -> None:
        """Answer requests until ^C, SIGTERM or `stop`. Requests in progress are answered first.

        Args:
            started: Function to call as soon as requests can be answered.
        """
        whole = self._server.startup

        async def startup(sockets: list[socket.socket] | None = None) -> None:
            await whole(sockets)
            started()

        self._server.startup = startup  # type: ignore[method-assign]
        try:
            # uvicorn raises the signal again once it has stopped, which is the normal end of this server.
            with contextlib.suppress(KeyboardInterrupt):
                self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Stop `run`, from any thread."""
        self._server.should_exit = True
