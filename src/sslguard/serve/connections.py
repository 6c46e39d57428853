"""Connections of clients who may mean harm: how many there are, and how long each may take.

uvicorn reads HTTP and gives each request to the application. It has no limit for the time that a request's headers
take, none for a reader who does not read, and none for the connections of one client. They are added here.

A server that is full makes room: it ends the connection that has kept it waiting longest, for headers or for a body. An
honest client is done with both in less time than one that holds connections open, so it is served beside any number of
these. Only where all connections have sent a whole request, a new one is refused with status 503.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from sslguard.serve.budget import RETRY_AFTER

MAX_CONNECTIONS = 512
"""Connections at the same time; each takes a file descriptor, of which a process often has 1,024."""
MAX_OF_CLIENT = 256
"""Connections of one client: an IPv4 address, or an IPv6 network of 64 bits."""
HEADER_SECONDS = 10.0
"""Time for a request's line and headers, from the connection's begin or the last answer."""
READING_SECONDS = 60.0
"""Time in which an answer must be read, from the moment when the system takes no more of it."""
_BUSY = b"this server has too many connections: try again later"
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: %s\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (RETRY_AFTER.encode(), len(_BUSY), _BUSY)
)


class Connection(H11Protocol):
    """One connection of uvicorn's, with limits.

    Attributes:
        of: Client that the connection counts for.
        since: When the server last had nothing from it to wait for, in seconds of the event loop's clock.
    """

    of = ""
    since = 0.0
    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and make room for it where there are too many."""
        super().connection_made(transport)
        self.of, self.since = _client(self.client), self.loop.time()
        self._await_headers()
        everybody = [one for one in self.connections if isinstance(one, Connection)]
        own = [one for one in everybody if one.of == self.of]
        crowd = own if len(own) > MAX_OF_CLIENT else everybody if len(everybody) > MAX_CONNECTIONS else []
        if not crowd:
            return
        slowest = min((one for one in crowd if one.keeps_waiting), key=lambda one: one.since)
        if slowest is self:
            transport.write(_REFUSAL)
            transport.close()
        else:
            slowest.transport.abort()
        self.connections.discard(slowest)

    @property
    def keeps_waiting(self) -> bool:
        """Return whether the server waits for more of a request, not the client for its answer."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def data_received(self, data: bytes) -> None:
        """Take bytes; once the headers are there, their time no longer runs."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._late = _ended(self._late)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.since = self.loop.time()
        self._await_headers()
        if not self.flow.write_paused:
            self._unread = _ended(self._unread)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Start the time that the client has to read what was written."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(READING_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing. The time to read runs on until the whole answer was read."""
        super().resume_writing()
        if self.cycle is None or self.cycle.response_complete:
            self._unread = _ended(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop both clocks."""
        self._late, self._unread = _ended(self._late), _ended(self._unread)
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        _ended(self._late)
        self._late = self.loop.call_later(HEADER_SECONDS, self.transport.abort)


def _ended(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _client(address: tuple[str, int] | None) -> str:
    """Return whom a connection counts for: one holder of an IPv6 network has 2^64 addresses of it."""
    host = address[0] if address else ""
    return ":".join(host.split(":")[:4]) if ":" in host else host
