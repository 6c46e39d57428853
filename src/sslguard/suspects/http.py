"""Requests to a server that nobody trusts. Each answer is bounded in size and in time.

The time limit covers everything: connecting, redirects, headers, and the body, however slowly it comes. A redirect is
followed only to the same host, so that neither queries nor credentials go elsewhere.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import threading
import time
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

from sslguard.errors import SuspectError, UsageError
from sslguard.suspects.base import UnansweredError

if TYPE_CHECKING:
    import httpx2

MAX_REDIRECTS = 3
_AGAIN = frozenset({408, 409, 425, 429})
_SMALLER = frozenset({400, 413, 422})
"""Statuses after which smaller requests may help: the request is too large, or the server refuses one query of it."""
_HOPELESS = frozenset({401, 402, 403, 404, 405, 407, 410, 415, 451})
_SILENT = frozenset({401, 403, 407})
"""Statuses whose body is not shown, because it may repeat the credential, whole or in part."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_EXCERPT = 200  # characters
_ENCODINGS = frozenset({"", "identity", "gzip", "deflate"})
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")


@dataclass(frozen=True)
class Credential:
    """A header that identifies the caller. Its value appears in no message and no `repr`.

    Attributes:
        header: Name of the header.
        value: Value of the header.
    """

    header: str
    value: str = field(repr=False)

    @classmethod
    def from_environment(cls, variable: str, header: str = "Authorization") -> Credential:
        """Read the credential from an environment variable.

        Args:
            variable: Name of the variable.
            header: Name of the header. For "Authorization", a value without a space is sent as "Bearer" and the value.

        Raises:
            UsageError: The variable is not set, or a header cannot hold its value.
        """
        if not _HEADER_NAME.fullmatch(header):
            raise UsageError(f"a header's name has up to 64 letters, digits and hyphens, unlike {header!r:.80}")
        value = os.environ.get(variable, "").strip()
        if not value:
            raise UsageError(f"the environment variable {variable!r:.80} holds no credential: set it")
        if not (value.isascii() and value.isprintable()):
            raise UsageError(f"the environment variable {variable!r:.80} must hold printable ASCII only: check it")
        return cls(header, f"Bearer {value}" if header.lower() == "authorization" and " " not in value else value)

    def hidden(self, text: str) -> str:
        """Return `text` with the credential replaced by "[hidden]"."""
        secret = self.value.rpartition(" ")[2]
        return text.replace(self.value, "[hidden]").replace(secret, "[hidden]")


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        path: Path appended to the address.
        body: Body of the request.
        headers: Headers besides the connection's own.
        method: HTTP method.
    """

    path: str = ""
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"


@dataclass(frozen=True)
class Reply:
    """The answer to a request, with a status from 200 to 299.

    Attributes:
        body: Body of the answer, decompressed.
        headers: Headers of the answer.
    """

    body: bytes
    headers: Mapping[str, str]


class Exchange:
    """Requests to one address, from any number of threads. Connections are kept alive, cookies are not stored.

    Attributes:
        address: Scheme, host, port and path, without the query or fragment. It may be shown.
        full_address: The address with its query, which may hold a credential.
    """

    def __init__(
        self,
        address: str,
        *,
        credential: Credential | None = None,
        seconds: float = 60.0,
        answer_bytes: int = 1 << 25,
        connections: int = 16,
        agent: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Check the address and prepare the connection. Nothing is sent yet.

        Args:
            address: http:// or https:// address. Its query becomes part of every request.
            credential: Header that identifies the caller; None sends none.
            seconds: Time from the start of a request to the last byte of the answer.
            answer_bytes: Size of an answer's body, decompressed.
            connections: Connections open at the same time.
            agent: Header User-Agent; None sends that of the HTTP library.
            transport: Replacement for the network, for tests.

        Raises:
            UsageError: The address is not valid, holds a password, or would send a credential unencrypted over a
                network.
        """
        import httpx2

        self._url = checked_address(address)
        if credential is not None and self._url.scheme == "http" and self._url.host not in _LOOPBACK:
            raise UsageError(
                f"a credential would go to {self._url.host} unencrypted: give an https:// address, or no --auth-env"
            )
        self.address = str(self._url.copy_with(query=None, fragment=None)).rstrip("?#/")
        self.full_address = str(self._url)
        self._credential, self._seconds, self._answer_bytes = credential, seconds, answer_bytes
        self._loop = _Loop()
        headers = {"Accept-Encoding": "gzip, deflate"}
        if agent is not None:
            headers["User-Agent"] = agent
        if credential is not None:
            headers[credential.header] = credential.value
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=seconds,
            limits=httpx2.Limits(max_connections=connections),
            transport=transport,
            follow_redirects=False,
            # A proxy from the environment must not see requests that are meant for this machine only.
            trust_env=self._url.host not in _LOOPBACK,
        )
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def send(self, call: Call, *, seconds: float = math.inf) -> Reply:
        """Send one request and return the answer.

        Args:
            call: The request.
            seconds: Time limit of this call, if it is below that of all calls.

        Raises:
            UnansweredError: No usable answer came.
            SuspectError: This address will answer no request: it does not exist, refuses access, or has moved.
        """
        limit = min(seconds, self._seconds)
        return self._loop.run(self._sent(call, limit), limit)

    def close(self) -> None:
        """Close all connections. Requests in progress fail."""
        self._loop.stop(self._client.aclose())

    async def _sent(self, call: Call, limit: float) -> Reply:
        try:
            async with asyncio.timeout(limit):
                return await self._exchanged(call)
        except TimeoutError:
            raise UnansweredError(f"{self.address} did not answer within {limit:.3g} s", again=True) from None
        except SuspectError:
            raise
        # A server may send anything, and transports and decoders raise many kinds of errors on it.
        except Exception as error:
            reason = self._shown(str(error)) or "without a reason"
            raise UnansweredError(
                f"{self.address} gave no answer: {type(error).__name__}, {reason}", again=True
            ) from error

    async def _exchanged(self, call: Call) -> Reply:
        url = self._url.copy_with(path=self._url.path.rstrip("/") + call.path) if call.path else self._url
        for _ in range(MAX_REDIRECTS + 1):
            request = self._client.build_request(call.method, url, content=call.body, headers=dict(call.headers))
            response = await self._client.send(request, stream=True)
            try:
                if response.is_redirect and "location" in response.headers:
                    url = self._moved(response, url)
                    continue
                body = await self._body(response)
            finally:
                await response.aclose()
            if not response.is_success:
                raise self._refused(response, body)
            return Reply(body, response.headers)
        raise SuspectError(
            f"{self.address} redirects more than {MAX_REDIRECTS} times: give the address where the suspect answers"
        )

    async def _body(self, response: httpx2.Response) -> bytes:
        most = self._answer_bytes
        promised = response.headers.get("content-length", "")
        if promised.isascii() and promised.isdigit() and len(promised) < 19 and int(promised) > most:
            raise self._too_large()
        if response.headers.get("content-encoding", "identity").strip().lower() not in _ENCODINGS:
            # Nested encodings can make a short body expensive to decode.
            raise UnansweredError(f"{self.address} answered in an encoding that was not asked for", again=False)
        parts, size = [], 0
        async for part in response.aiter_bytes():
            size += len(part)
            if size > most:
                raise self._too_large()
            parts.append(part)
        return b"".join(parts)

    def _too_large(self) -> UnansweredError:
        most = self._answer_bytes
        return UnansweredError(f"{self.address} answered with more than {most:,} bytes, the limit", again=False)

    def _moved(self, response: httpx2.Response, url: httpx2.URL) -> httpx2.URL:
        try:
            target = url.join(response.headers["location"])
        except Exception as error:
            raise SuspectError(f"{self.address} redirects to something that is not an address") from error
        if (target.scheme, target.host, target.port) != (url.scheme, url.host, url.port) or target.userinfo:
            raise SuspectError(
                f"{self.address} redirects to another server, {self._shown(target.host)}, which is not followed: give "
                "the address where the suspect itself answers"
            )
        if response.status_code not in (307, 308):
            raise SuspectError(
                f"{self.address} redirects with status {response.status_code}, which drops the request: give the "
                "address where the suspect answers"
            )
        return target

    def _refused(self, response: httpx2.Response, body: bytes) -> SuspectError:
        status = response.status_code
        said = "" if status in _SILENT else self._shown(body[:4096].decode("utf-8", "replace"))
        message = f"{self.address} answered with status {status}" + (f": {said}" if said else "")
        if status in (401, 403):
            message += "; name the variable that holds the credential with --auth-env"
        if status in _HOPELESS:
            return SuspectError(message)
        again = status in _AGAIN or status >= 500
        after = _retry_after(response.headers.get("retry-after"))
        return UnansweredError(message, again=again, after=after, smaller=status in _SMALLER)

    def _shown(self, text: str) -> str:
        """Return what the server sent on one line, short, and without the credential."""
        line = " ".join(text.split())
        return (line if self._credential is None else self._credential.hidden(line))[:_EXCERPT]


def checked_address(address: str) -> httpx2.URL:
    """Return an http:// or https:// address as a URL.

    Raises:
        UsageError: It is not such an address, or it holds a user name or a password, which lists of processes would
            show.
    """
    import httpx2

    try:
        url = httpx2.URL(address)
    except (httpx2.InvalidURL, ValueError) as error:
        raise UsageError(f"the address of the suspect is not valid: {error!s:.200}") from None
    if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 80) < 1 << 16:
        raise UsageError("a remote suspect's address must begin with http:// or https:// and name a host")
    if url.userinfo:
        raise UsageError(
            f"the address of {url.host} holds a user or a password: put the credential into an environment variable "
            "and name that with --auth-env"
        )
    return url


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which holds a number or a date; None if it holds neither."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


class _Loop:
    """An event loop in its own thread, so that time limits hold in any thread of the caller."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._running: set[Future[Reply]] = set()
        self._thread = threading.Thread(target=self._run, name="sslguard-http", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def run(self, coroutine: Any, limit: float) -> Reply:
        """Return the coroutine's result.

        The coroutine itself keeps to `limit` seconds; 30 seconds more are allowed for a busy loop.
        """
        if self._loop.is_closed() or not self._thread.is_alive():
            coroutine.close()
            raise SuspectError("this suspect was closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._running.add(future)
        try:
            return future.result(limit + 30)
        except TimeoutError:
            raise UnansweredError(f"no answer within {limit:.3g} s", again=True) from None
        except CancelledError:
            raise SuspectError("this suspect was closed") from None
        finally:
            future.cancel()
            self._running.discard(future)

    def stop(self, last: Any) -> None:
        """Cancel what runs, then run `last`, then end the thread."""
        if self._loop.is_closed() or not self._thread.is_alive():
            last.close()
            return

        for future in list(self._running):
            future.cancel()

        async def end() -> None:
            try:
                await last
            finally:
                self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join(5)
