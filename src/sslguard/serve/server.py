"""The application on a socket: bound before anything else, stopped without dropping what was begun."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from sslguard.errors import UsageError

GRACE_SECONDS = 30
MAX_CONNECTIONS = 1000


class Server:
    """A server on one address.

    Attributes:
        address: as in http://127.0.0.1:8000, with the port that was really taken.
    """

    def __init__(self, app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000) -> None:
        """Take the port; nothing is answered yet.

        Args:
            port: 0 takes any that is free.

        Raises:
            UsageError: the address cannot be taken.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(
                f"{host!s:.80}:{port} cannot be taken: {reason}; choose another --port or --host"
            ) from error
        taken = self._socket.getsockname()[1]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{taken}"
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            http="h11",
            ws="none",
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        self._server = uvicorn.Server(config)

    def run(self, *, started: Callable[[], None] = lambda: None) -> None:
        """Answer requests until ^C, SIGTERM or `stop`; those that were begun are ended first.

        Args:
            started: called when the first request can be answered.
        """
        whole = self._server.startup

        async def startup(sockets: list[socket.socket] | None = None) -> None:
            await whole(sockets)
            started()

        self._server.startup = startup  # type: ignore[method-assign]
        try:
            # The signal is raised again after the stop, which is how this server is meant to end.
            with contextlib.suppress(KeyboardInterrupt):
                self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Let `run` end, from any thread."""
        self._server.should_exit = True
