"""Suspects behind an address: how they are asked, and the whole stack of wrappers around one request."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Batch
from sslguard.encoders.base import Embedder
from sslguard.errors import SuspectError, UsageError
from sslguard.suspects.base import Counted, UnansweredError, checked
from sslguard.suspects.cached import AnswerStore, Cached
from sslguard.suspects.clock import Clock
from sslguard.suspects.http import Credential, Exchange, Limits
from sslguard.suspects.pixels import SCALES, Scale
from sslguard.suspects.protocols import OIP, TEI, MalformedReplyError, OpenAI, Protocol, Template
from sslguard.suspects.steadiness import Steadiness
from sslguard.suspects.wrappers import Concurrent, RateLimited, Retrying, Tolerant

if TYPE_CHECKING:
    import httpx2

Answers = NDArray[np.floating]
PREFIXES = ("http://", "https://")


@dataclass(frozen=True)
class Remote:
    """How a suspect behind an address is asked.

    Attributes:
        protocol: oip, openai, tei or json.
        model: the model's name there; oip and openai need it.
        binary: oip: tensors as bytes; openai: numbers as base64.
        output: oip: the tensor to read.
        scale: oip: of images where the model takes floats; see `pixels`.
        body, path: json: see `protocols.template`.
        auth_env: environment variable that holds the credential.
        auth_header: the header that carries it.
        cache: folder that keeps answers; None keeps none.
        budget: queries that may be asked, asking again included.
        price: of one query, in a currency of the caller's.
        rate: queries a second at most.
        request_size: queries of a request.
        workers: requests at a time.
        attempts: how often a request is sent at most.
        patience: unanswered requests in a row that end it all.
        request_seconds, seconds: time limits of one request and of all.
        reask: first queries that are asked again, to see whether answers change; 0 for none.
    """

    protocol: Literal["oip", "openai", "tei", "json"]
    model: str | None = None
    binary: bool = False
    output: str | None = None
    scale: Scale = "unit"
    body: str | None = field(default=None, repr=False)
    path: str | None = None
    auth_env: str | None = None
    auth_header: str = "Authorization"
    cache: Path | None = None
    budget: int | None = None
    price: float = 0.0
    rate: float | None = None
    request_size: int = 16
    workers: int = 4
    attempts: int = 5
    patience: int = 8
    request_seconds: float = 60.0
    seconds: float | None = 86_400.0
    reask: int = 4

    def spoken(self) -> Protocol:
        """The protocol with its settings. Raises UsageError where one is missing or does not belong there."""
        if self.protocol == "json":
            if self.body is None or self.path is None:
                raise UsageError("--protocol json needs --body, what is sent, and --answers, where the answers are")
            return Template(self.body, self.path)
        if self.body is not None or self.path is not None:
            raise UsageError(f"--body and --answers are for --protocol json, not {self.protocol}")
        if self.protocol == "tei":
            return TEI()
        if self.model is None:
            raise UsageError(f"--protocol {self.protocol} needs --model, the model's name there")
        if self.scale not in SCALES:
            raise UsageError(f"--scale must be one of {', '.join(SCALES)}, not {self.scale!r:.80}")
        if self.protocol == "openai":
            return OpenAI(self.model, "base64" if self.binary else "float")
        if self.protocol == "oip":
            return OIP(self.model, self.binary, self.scale, self.output)
        raise UsageError(f"--protocol must be oip, openai, tei or json, not {self.protocol!r:.80}")


class HTTPSuspect:
    """One request for each batch; no batch is asked again here.

    Attributes:
        name: the address, without its query.
        width: numbers in an answer; None before the first.
    """

    n_missing = 0

    def __init__(
        self, exchange: Exchange, protocol: Protocol, *, clock: Clock | None = None, width: int | None = None
    ) -> None:
        self.exchange, self.protocol, self.width = exchange, protocol, width
        self.clock = clock or Clock()
        self.name = exchange.address

    def embed(self, batch: Batch, /) -> Answers:
        """Checked answers to a batch, float32 (n, m).

        Raises:
            UsageError: the protocol does not carry such items.
            UnansweredError: nothing usable came back.
            SuspectError: nothing will.
        """
        call = self.protocol.call(batch)
        reply = self.exchange.send(call, seconds=self.clock.left())
        try:
            raw = self.protocol.answers(reply, len(batch))
            answers = checked(raw, len(batch), width=self.width, name=self.name)
        except SuspectError as error:
            raise UnansweredError(str(error), again=True) from error
        except (MalformedReplyError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
            raise UnansweredError(f"{self.name}: {error!s:.300}", again=True) from error
        self.width = answers.shape[1]
        return answers.astype(np.float32)

    def finish(self) -> None:
        """Nothing is left over."""


class RemoteSuspect:
    """A suspect behind an address, with everything that stands before it.

    Attributes:
        name: the address, without its query.
        n_missing: queries so far that went unanswered; each was handed on as a zero vector.
        steadiness: what asking again showed, after `finish`.
    """

    def __init__(self, source: HTTPSuspect, options: Remote, store: AnswerStore | None) -> None:
        clock = source.clock
        self.name, self.n_missing = source.name, 0
        self._source, self._clock, self._store = source, clock, store
        self._counted = Counted(source, budget=options.budget, price=options.price)
        limited: Embedder = self._counted
        if options.rate is not None:
            limited = RateLimited(limited, options.rate, clock)
        self._retrying = Retrying(limited, clock, attempts=options.attempts)
        tolerant = Tolerant(self._retrying, width=source.width, patience=options.patience)
        self._cached = None if store is None else Cached(tolerant, store)
        size = min(options.request_size, source.protocol.largest or options.request_size)
        self._concurrent = Concurrent(self._cached or tolerant, size=size, workers=options.workers)
        again = Concurrent(self._retrying, size=size, workers=1)
        self._closing: tuple[Callable[[], None], ...] = (again.close, self._concurrent.close)
        self.steadiness = Steadiness(again, options.reask)

    def embed(self, batch: Batch, /) -> Answers:
        """Answers, float32 (n, m); zeros where none came.

        Raises:
            SuspectError: the suspect cannot be asked on: see `Clock`, `Counted`, `Tolerant`, `HTTPSuspect`.
        """
        answers = self._concurrent.embed(batch)
        missing: NDArray[np.bool_] = np.asarray(np.isnan(answers).all(axis=1))
        answers[missing] = 0
        self.n_missing += int(missing.sum())
        self.steadiness.see(batch, answers, ~missing)
        return answers

    def finish(self) -> None:
        """Ask the kept queries again; whatever comes, the answers before stand."""
        self.steadiness.finish()

    def close(self) -> None:
        """End all waiting and cut all connections."""
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
        """What asking took and showed, JSON values only."""
        at_once, at_end = self.steadiness.at_once, self.steadiness.at_end
        return {
            "protocol": self._source.protocol.name,
            "n_asked": self._counted.n_queries,
            "n_requests": self._counted.n_requests,
            "n_requests_again": self._retrying.n_again,
            "n_cached": 0 if self._cached is None else self._cached.n_cached,
            "cost": self._counted.cost,
            "n_missing": self.n_missing,
            "again_at_once": None if at_once is None else at_once.to_json(),
            "again_at_end": None if at_end is None else at_end.to_json(),
            "n_changed": self.steadiness.n_changed,
        }


def open_remote(address: str, options: Remote, *, transport: httpx2.AsyncBaseTransport | None = None) -> RemoteSuspect:
    """The suspect at an address. Only its metadata is asked for, where the protocol has any.

    Args:
        transport: in place of the network.

    Raises:
        UsageError: address or options are wrong.
        SuspectError: the metadata cannot be had.
    """
    protocol = options.spoken()
    credential = None
    if options.auth_env is not None:
        credential = Credential.from_environment(options.auth_env, options.auth_header)
    limits = Limits(seconds=options.request_seconds, connections=options.workers)
    clock = Clock(options.seconds)
    exchange = Exchange(address, credential=credential, limits=limits, transport=transport)
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
