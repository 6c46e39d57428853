"""Dynamic batching: requests that arrive at about the same time go through the encoder together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import as_batch
from sslguard.encoders.base import Embedder
from sslguard.serve.budget import OverloadedError
from sslguard.serve.recipients import Mark, Recipients
from sslguard.settings import Checked, Count, Range

Items = Sequence[Tensor] | Sequence[str]
Answers = NDArray[np.floating]
PART_SECONDS = 1.0
"""Time that a part of a batch should take. Between parts the server sees whether anybody waits for the rest."""
_FIRST_PART = 8  # items, before it is known how long they take


@dataclass
class _Waiting:
    items: Items
    answers: asyncio.Future[Answers]
    mark: Mark | None = None
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Limits(Checked):
    """Limits of a queue before an encoder.

    Attributes:
        max_batch: Most items that go through the encoder together.
        max_wait: Seconds that a request waits for others.
        max_queued: Most items that may wait. A request that is larger than this is let in only if nothing waits.
    """

    max_batch: Count = 64
    max_wait: Annotated[float, Range(least=0, below=60)] = 0.002
    max_queued: Count = 4096


class Batcher:
    """An encoder behind a queue, for one event loop. One thread runs it, one batch after another.

    Attributes:
        encoder: Encoder that answers.
        limits: How many items go through it together, and wait.
        recipients: Those whose answers are marked, by whoever asks; None marks nothing here.
        n_batches: Batches run so far.
        n_items: Items run so far.
    """

    def __init__(self, encoder: Embedder, limits: Limits, recipients: Recipients | None = None) -> None:
        self.encoder, self.limits, self.recipients = encoder, limits, recipients
        self.n_batches = self.n_items = 0
        self._part = _FIRST_PART
        self._queue: deque[_Waiting] = deque()
        self._queued = 0
        self._came = asyncio.Event()
        self._closing = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sslguard-encoder")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to work, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def embed(self, items: Items, mark: Mark | None = None) -> Answers:
        """Return the answers (n, m) to the items of one request, in their order.

        Args:
            items: The items.
            mark: What the answers are marked by: of whoever asks, where there are recipients.

        Raises:
            OverloadedError: Too many items are waiting, or the server is stopping.
            SslguardError: The encoder refuses the items.
        """
        if self._closing or self._task is None:
            raise OverloadedError("this server is stopping")
        if self._queued + len(items) > self.limits.max_queued and self._queued:
            raise OverloadedError(f"{self._queued} items are waiting: try again later")
        waiting = _Waiting(items, asyncio.get_running_loop().create_future(), mark)
        self._queue.append(waiting)
        self._queued += len(items)
        self._came.set()
        return await waiting.answers

    async def close(self) -> None:
        """Accept no more requests, answer those that wait, and stop."""
        self._closing = True
        self._came.set()
        if self._task is not None:
            await self._task
        self._pool.shutdown()

    async def _work(self) -> None:
        while True:
            self._came.clear()
            if not self._queue:
                if self._closing:
                    return
                await self._came.wait()
                continue
            await self._fill()
            batch = self._taken()
            if batch:
                await self._answer(batch)

    async def _fill(self) -> None:
        """Wait until a batch is full or its first request has waited long enough."""
        deadline = self._queue[0].since + self.limits.max_wait
        while self._queued < self.limits.max_batch and not self._closing:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._came.clear()
            try:
                async with asyncio.timeout(left):
                    await self._came.wait()
            except TimeoutError:
                return

    def _taken(self) -> list[_Waiting]:
        """Return the requests of the next batch, without those whose callers have gone."""
        taken: list[_Waiting] = []
        size = 0
        while self._queue and (not taken or size + len(self._queue[0].items) <= self.limits.max_batch):
            waiting = self._queue.popleft()
            self._queued -= len(waiting.items)
            if not waiting.answers.done():
                taken.append(waiting)
                size += len(waiting.items)
        return taken

    async def _answer(self, requests: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        items = [item for waiting in requests for item in waiting.items]
        try:
            answers = await loop.run_in_executor(self._pool, self._embedded, items, requests)
        except Exception as error:
            if len(requests) == 1:
                _settle(requests[0], error)
                return
            # Answer each request by itself, so that one with bad items does not fail the others.
            for waiting in requests:
                await self._answer([waiting])
            return
        start = 0
        for waiting in requests:
            _settle(waiting, answers[start : start + len(waiting.items)])
            start += len(waiting.items)

    def _embedded(self, items: list[Tensor | str], requests: list[_Waiting]) -> Answers:
        parts = []
        start = 0
        marks = [waiting.mark for waiting in requests if waiting.mark is not None for _ in waiting.items]
        while start < len(items):
            if all(waiting.answers.done() for waiting in requests):
                raise OverloadedError("nobody waits for this batch")
            part = items[start : start + min(self._part, self.limits.max_batch)]
            whose = marks[start : start + len(part)]
            start += len(part)
            self.n_batches += 1
            self.n_items += len(part)
            begun = time.monotonic()
            found = self.encoder.embed(as_batch(part))
            parts.append(found if self.recipients is None else self.recipients.marked(found, whose))
            seconds = max(time.monotonic() - begun, 1e-6) / len(part)
            self._part = max(1, min(int(PART_SECONDS / seconds), self.limits.max_batch))
        return np.concatenate(parts)


def _settle(waiting: _Waiting, result: Answers | Exception) -> None:
    if waiting.answers.done():
        return
    if isinstance(result, Exception):
        waiting.answers.set_exception(result)
    else:
        waiting.answers.set_result(result)
