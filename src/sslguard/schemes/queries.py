"""What keys of every scheme do with their queries: draw items, send them as bytes, and gather the answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslguard.crypto.secrets import Stream
from sslguard.data.base import Batch, Data
from sslguard.errors import SuspectError, UsageError

QUERY_BATCH = 128


def check_enough(data: Data, n: int) -> None:
    """Raise UsageError where a data set has fewer than `n` items, which a key asks about."""
    if len(data) < n:
        raise UsageError(
            f"this key asks about {n} items, but {data.spec} has only {len(data)}: give as many; "
            "how many a key asks is set when it is made (watermark --n-queries)"
        )


def drawn(stream: Stream, data: Data, n: int) -> NDArray[np.int64]:
    """Draw `n` different items of `data`.

    Raises:
        UsageError: There are fewer.
    """
    check_enough(data, n)
    return stream.permutation(len(data))[:n]


def asked(data: Data, order: Sequence[int] | NDArray[np.integer], *, pictures: bool = True) -> Iterator[Batch]:
    """Yield items of `data` in this order, ≤ 128 at a time.

    Args:
        data: Where the items are.
        order: Their places.
        pictures: Whether tensors are images, which are sent as bytes.
    """
    for start in range(0, len(order), QUERY_BATCH):
        batch = data.take(order[start : start + QUERY_BATCH])
        yield as_bytes(batch) if pictures and isinstance(batch, Tensor) else batch


def as_bytes(images: Tensor) -> Tensor:
    """Convert images to uint8; floats from [0, 1]."""
    return (images * 255).round().to(torch.uint8) if images.is_floating_point() else images


def gathered(answers: Iterable[NDArray[np.floating]], n: int, *, width: int | None = None) -> NDArray[np.float64]:
    """Return all answers, float64 (n, m).

    Args:
        answers: Batch by batch.
        n: How many there must be.
        width: M where the scheme can only score answers of the owner's width.

    Raises:
        SuspectError: The answers are not finite, of changing or another width, or not as many as the queries.
    """
    parts: list[NDArray[np.floating]] = []
    for part in answers:
        parts.append(np.asarray(part) if np.asarray(part).dtype == np.float32 else np.asarray(part, dtype=np.float64))
        if parts[-1].ndim != 2 or parts[-1].shape[1] != parts[0].shape[1]:
            raise SuspectError("the suspect gave answers that are no rows of one width")
        if width is not None and parts[0].shape[1] != width:
            raise SuspectError(
                f"this key compares answers with vectors of width {width}, but the suspect's have width "
                f"{parts[0].shape[1]}: this scheme cannot score it"
            )
        # Larger numbers would overflow in networks of float32.
        if not (np.abs(parts[-1]) <= np.finfo(np.float32).max).all():
            raise SuspectError("the suspect answered with values that are not finite")
    if not parts:
        raise SuspectError("the suspect gave no answers")
    rows = np.concatenate(parts, dtype=np.float64)
    if len(rows) != n:
        raise SuspectError(f"this key asks {n} queries, but {len(rows)} answers came")
    return rows
