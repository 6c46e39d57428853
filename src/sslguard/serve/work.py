"""What a request's items go through before the encoder, in threads, so that the server answers others meanwhile.

A picture of 4,096 pixels a side takes 250 KB as a file, and 600 MB while it is decoded, scaled and resized. So pictures
are counted by their headers before one is decoded. Large ones are decoded one at a time, in a thread of their own, so
that small ones do not wait for them. What waits for the encoder has the encoder's own size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np
from torch import Tensor

from sslguard.data.base import Batch, as_batch
from sslguard.encoders.base import Encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.serve.batching import Answers, Batcher, Limits
from sslguard.serve.budget import Budget
from sslguard.serve.recipients import Mark, Recipients
from sslguard.serve.wire import Picture

T = TypeVar("T")
LARGE_PIXELS = 1 << 20
"""Pixels of a picture from which on it is a large one."""
TOGETHER_PIXELS = 1 << 22
"""Pixels of pictures that are decoded together."""
LARGE_BYTES = 1 << 18
"""Bytes of a request or an answer from which on it is a large one."""


@dataclass(frozen=True)
class _Prepared(ImagePreprocess):
    """The preprocessing of pictures that are prepared already."""

    def prepare(self, batch: Batch, /) -> Tensor:
        """Return the pictures as they are."""
        return cast(Tensor, batch)


class Work:
    """An encoder with the threads that prepare its items.

    Attributes:
        batcher: The encoder behind its queue.
        pixels: Pixels that all requests may have in work.
    """

    def __init__(self, encoder: Encoder, limits: Limits, pixels: Budget, recipients: Recipients | None = None) -> None:
        encoder = encoder if recipients is None else recipients.encoder
        self._preprocess = encoder.preprocess
        self._limits, self.pixels = limits, pixels
        if isinstance(self._preprocess, ImagePreprocess):
            encoder = replace(encoder, preprocess=_Prepared(**vars(self._preprocess)))
        self.batcher = Batcher(encoder, limits, recipients)
        self._small, self._large = (ThreadPoolExecutor(1, f"sslguard-{name}") for name in ("small", "large"))

    async def run(self, n_bytes: int, function: Callable[..., T], *arguments: object) -> T:
        """Return `function(*arguments)`, which reads or writes so many bytes, computed beside the event loop."""
        pool = self._large if n_bytes > LARGE_BYTES else self._small
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)

    async def embedded(
        self, items: Sequence[Picture] | Sequence[Tensor] | Sequence[str], mark: Mark | None = None
    ) -> Answers:
        """Return the answers (n, m) to the items of one request, by the mark of whoever asks.

        Raises:
            OverloadedError: Too much is in work.
            BadRequestError: A picture cannot be decoded.
            SslguardError: The encoder refuses the items.
        """
        if isinstance(items[0], str):
            return await self.batcher.embed(cast("Sequence[str]", items), mark)
        pictures: Sequence[Picture | Tensor] = [one for one in items if not isinstance(one, str)]
        pixels = sum(map(_pixels, pictures))
        self.pixels.take(pixels)
        try:
            found = []
            for part in _parts(pictures, self._limits.max_batch):
                pool = self._large if max(map(_pixels, part)) > LARGE_PIXELS else self._small
                prepared = await asyncio.get_running_loop().run_in_executor(pool, self._prepared, part)
                found.append(await self.batcher.embed(prepared, mark))
            return np.concatenate(found)
        finally:
            self.pixels.give(pixels)

    def _prepared(self, pictures: Sequence[Picture | Tensor]) -> list[Tensor]:
        decoded = [one.decoded() if isinstance(one, Picture) else one for one in pictures]
        if not isinstance(self._preprocess, ImagePreprocess):
            return decoded
        return list(self._preprocess.prepare(as_batch(decoded)))

    async def close(self) -> None:
        """Answer what waits for the encoder, and end the threads."""
        await self.batcher.close()
        for pool in (self._small, self._large):
            pool.shutdown(cancel_futures=True)


def _pixels(picture: Picture | Tensor) -> int:
    return picture.pixels if isinstance(picture, Picture) else picture[0].numel()


def _parts(pictures: Sequence[Picture | Tensor], most: int) -> Iterator[list[Picture | Tensor]]:
    """Yield pictures in order, in parts of at most `most` and few pixels; a large one by itself."""
    part: list[Picture | Tensor] = []
    pixels = 0
    for one in pictures:
        if part and (len(part) == most or pixels + _pixels(one) > TOGETHER_PIXELS):
            yield part
            part, pixels = [], 0
        part.append(one)
        pixels += _pixels(one)
    yield part
