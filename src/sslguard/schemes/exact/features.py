"""Input statistics of whole batches and data sets, as an encoder's network sees them."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from sslguard.data.base import Batch, Data
from sslguard.encoders.base import EMBED_BATCH, Encoder
from sslguard.encoders.running import few_threads
from sslguard.encoders.statistics import InputStatistics


def input_statistics(encoder: Encoder, batch: Batch) -> NDArray[np.float64]:
    """Return the statistics of a batch as the encoder's network sees it: float64 (n, p), p = 356 or, of texts, 96."""
    parts, size = [], len(batch) if isinstance(batch[0], str) else encoder.together
    with few_threads(statistics := _on_cpu()), torch.inference_mode():
        for start in range(0, len(batch), size):
            inputs = encoder.preprocess.normalise(encoder.preprocess.prepare(batch[start : start + size]))
            parts.append(statistics(inputs).double().numpy())
    return np.concatenate(parts)


@cache
def _on_cpu() -> InputStatistics:
    """One for all batches: its constants are two megabytes of hashes."""
    with torch.inference_mode(False):
        return InputStatistics()


def all_statistics(encoder: Encoder, data: Data) -> NDArray[np.float64]:
    """Return the statistics of a whole data set: float64 (len(data), p)."""
    return np.concatenate([input_statistics(encoder, batch) for batch in data.batches(EMBED_BATCH)])
