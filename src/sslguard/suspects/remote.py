"""Suspects behind an address: how they are asked, and the stack of wrappers around one request."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from random import SystemRandom
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Batch
from sslguard.encoders.base import Embedder
from sslguard.errors import SuspectError, UsageError
from sslguard.suspects.base import Counted, UnansweredError, checked
from sslguard.suspects.cached import AnswerStore, Cached
from sslguard.suspects.clock import Clock
from sslguard.suspects.http import Credential, Exchange, checked_address
from sslguard.suspects.manner import Manner
from sslguard.suspects.protocols import OIP, TEI, IncompleteReplyError, MalformedReplyError, OpenAI, Protocol, Template
from sslguard.suspects.settings import Remote
from sslguard.suspects.steadiness import Steadiness
from sslguard.suspects.wrappers import Concurrent, Paced, RateLimited, Retrying, Splitting, Tolerant

if TYPE_CHECKING:
    import httpx2

Answers = NDArray[np.floating]
_PLAIN = (
    (re.compile(r"(?P<base>.*/v1)(/embeddings)?"), "openai"),
    (re.compile(r"(?P<base>.*)/embeddings"), "openai"),
    (re.compile(r"(?P<base>.*(?<!/v1))/embed"), "tei"),
    (re.compile(r"(?P<base>.*)/v2/models/(?P<model>[^/]+(/versions/[^/]+)?)(/infer)?"), "oip"),
)
"""Paths of addresses that tell their protocol, and where in them its own path begins."""


def guessed(address: str, options: Remote | None) -> tuple[str, Remote]:
    """Return the base address, without the protocol's own path, and the settings with the protocol that it tells.

    Args:
        address: http:// or https://; `/v1`, `/embeddings`, `/embed` and `/v2/models/NAME` at its end tell the protocol.
        options: Settings; a protocol among them takes precedence over that of the address.

    Raises:
        UsageError: No protocol was chosen, and the address does not tell one.
    """
    path = str(checked_address(address).copy_with(query=None, fragment=None)).rstrip("/")
    chosen = None if options is None else options.protocol
    for pattern, protocol in _PLAIN:
        if chosen in (None, protocol) and (match := pattern.fullmatch(path)):
            told: dict[str, Any] = match.groupdict()
            base = address.replace(path, told["base"], 1)
            known = options or Remote()
            model = known.model or told.get("model")
            return base, replace(known, protocol=cast("Any", protocol), model=model)
    if options is None or chosen is None:
        raise UsageError("this address does not tell its protocol: name it with --protocol oip, openai, tei or json")
    return address, options


class HTTPSuspect:
    """A suspect that sends one request for each batch and does not repeat it.

    Attributes:
        exchange: Connection to the server.
        protocol: Protocol of the requests.
        clock: Time limit of all requests together.
        name: The address, without its query.
        width: Width of the answers; None before the first.
        n_missing: Always 0; a request without an answer raises an error.
    """

    n_missing = 0

    def __init__(
        self, exchange: Exchange, protocol: Protocol, *, clock: Clock | None = None, width: int | None = None
    ) -> None:
        self.exchange, self.protocol, self.width = exchange, protocol, width
        self.clock = clock or Clock()
        self.name = exchange.address

    def embed(self, batch: Batch, /) -> Answers:
        """Return the checked answers to a batch, float32 (n, m).

        Raises:
            UsageError: The protocol cannot carry these items.
            UnansweredError: No usable answer came.
            SuspectError: No usable answer will come.
        """
        call = self.protocol.call(batch)
        reply = self.exchange.send(call, seconds=self.clock.left())
        try:
            raw = self.protocol.answers(reply, len(batch))
            answers = checked(raw, len(batch), width=self.width, name=self.name)
        except SuspectError as error:
            raise UnansweredError(str(error), again=True) from error
        except IncompleteReplyError as error:
            raise UnansweredError(f"{self.name}: {error}", again=False, smaller=True) from error
        except (MalformedReplyError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
            raise UnansweredError(f"{self.name}: {error!s:.300}", again=True) from error
        self.width = answers.shape[1]
        return answers.astype(np.float32)

    def finish(self) -> None:
        """Do nothing: no query is left over."""


class RemoteSuspect:
    """A suspect behind an address, with all wrappers around it.

    Attributes:
        name: The address, without its query.
        n_missing: Queries so far without an answer. The answer to each was a zero vector.
        steadiness: Comparison of first and repeated answers, complete after `finish`.
    """

    def __init__(self, source: HTTPSuspect, options: Remote, store: AnswerStore | None) -> None:
        clock = source.clock
        self.name, self.n_missing = source.name, 0
        self._source, self._clock, self._store = source, clock, store
        self._counted = Counted(source, budget=options.budget, price=options.price)
        limited: Embedder = self._counted
        if options.rate is not None:
            limited = RateLimited(limited, options.rate, clock)
        size = min(options.request_size, source.protocol.largest or options.request_size)
        random, sizes = None, None
        if options.pace is not None:
            random = SystemRandom()
            manner = Manner.drawn(random, options.pace, size)
            sizes, limited = manner.size, Paced(limited, manner.gap, clock)
        self._retrying = Retrying(limited, clock, attempts=options.attempts)
        splitting = Splitting(self._retrying)
        tolerant = Tolerant(splitting, width=source.width, patience=options.patience)
        self._cached = None if store is None else Cached(tolerant, store)
        asked = self._cached or tolerant
        self._concurrent = Concurrent(asked, size=size, workers=options.workers, random=random, sizes=sizes)
        again = Concurrent(self._retrying, size=size, workers=1, random=random, sizes=sizes)
        self._closing: tuple[Callable[[], None], ...] = (again.close, self._concurrent.close)
        self.steadiness = Steadiness(again, options.reask)

    def embed(self, batch: Batch, /) -> Answers:
        """Return answers, float32 (n, m). A row is zero if no answer came.

        Raises:
            SuspectError: No more can be asked: see `Clock`, `Counted`, `Tolerant` and `HTTPSuspect`.
        """
        answers = self._concurrent.embed(batch)
        missing: NDArray[np.bool_] = np.asarray(np.isnan(answers).all(axis=1))
        answers[missing] = 0
        self.n_missing += int(missing.sum())
        self.steadiness.see(batch, answers, ~missing)
        return answers

    def finish(self) -> None:
        """Ask the kept queries again. The first answers stand, whatever comes back."""
        self.steadiness.finish()

    def close(self) -> None:
        """End all waiting and close all connections."""
        self._clock.stop()
        for close in self._closing:
            close()
        self._source.exchange.close()
        if self._store is not None:
            self._store.close()

    def __enter__(self) -> RemoteSuspect:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def report(self) -> dict[str, Any]:
        """Return what asking took and showed, JSON values only."""
        noise, again = self.steadiness.noise, self.steadiness.again
        return {
            "protocol": self._source.protocol.name,
            "n_asked": self._counted.n_queries,
            "n_requests": self._counted.n_requests,
            "n_requests_again": self._retrying.n_again,
            "n_cached": 0 if self._cached is None else self._cached.n_cached,
            "cost": self._counted.cost,
            "n_missing": self.n_missing,
            "again": None if again is None else again.to_json(),
            "again_twice": None if noise is None else noise.to_json(),
            "n_changed": self.steadiness.n_changed,
        }


def open_remote(
    address: str, options: Remote | None = None, *, transport: httpx2.AsyncBaseTransport | None = None
) -> RemoteSuspect:
    """Return the suspect at an address. Only its metadata is asked for, if the protocol has any.

    Args:
        address: http:// or https:// address.
        options: How to ask.
        transport: Replacement for the network, for tests.

    Raises:
        UsageError: The address or an option is wrong.
        SuspectError: The server does not give usable metadata.
    """
    address, options = guessed(address, options)
    protocol = spoken(options)
    credential = None
    if options.auth_env is not None:
        credential = Credential.from_environment(options.auth_env, options.auth_header)
    clock = Clock(options.time_limit)
    exchange = Exchange(
        address,
        credential=credential,
        seconds=options.request_limit,
        connections=options.workers,
        agent=options.user_agent,
        transport=transport,
    )
    try:
        protocol.begin(exchange)
        store = None
        if options.cache is not None:
            identity = json.dumps({"address": exchange.full_address, **protocol.identity()}, sort_keys=True)
            store = AnswerStore(options.cache, identity)
        source = HTTPSuspect(exchange, protocol, clock=clock, width=None if store is None else store.width)
        return RemoteSuspect(source, options, store)
    except BaseException:
        exchange.close()
        raise


def spoken(options: Remote) -> Protocol:
    """Return the protocol that is named, with its settings.

    Raises:
        UsageError: A setting is missing, or does not belong to this protocol.
    """
    if options.protocol == "json":
        if options.body is None or options.found_at is None:
            raise UsageError("--protocol json needs --body, the request, and --found-at, the path to the answers")
        return Template(options.body, options.found_at)
    if options.body is not None or options.found_at is not None:
        raise UsageError(f"--body and --found-at are for --protocol json, not {options.protocol}")
    if options.protocol == "tei":
        return TEI()
    if options.model is None:
        raise UsageError(f"--protocol {options.protocol} needs --model, the model's name on the server")
    if options.protocol == "openai":
        return OpenAI(options.model, "base64" if options.binary else "float")
    return OIP(options.model, options.binary, options.scale, options.output_tensor)
