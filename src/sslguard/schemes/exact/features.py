"""Input statistics of whole batches and data sets, as an encoder's network sees them."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from sslguard.data.base import Batch, Data
from sslguard.encoders.base import EMBED_BATCH, Encoder
from sslguard.encoders.statistics import InputStatistics
from sslguard.encoders.threads import few_threads


def input_statistics(encoder: Encoder, batch: Batch) -> NDArray[np.float64]:
    """Return the statistics of a batch as the encoder's network sees it: float64 (n, 96)."""
    with few_threads(statistics := _on_cpu()), torch.inference_mode():
        inputs = encoder.preprocess.normalise(encoder.preprocess.prepare(batch))
        return statistics(inputs).double().numpy()


@cache
def _on_cpu() -> InputStatistics:
    """One for all batches: its constants are two megabytes of hashes."""
    with torch.inference_mode(False):
        return InputStatistics()


def all_statistics(encoder: Encoder, data: Data) -> NDArray[np.float64]:
    """Return the statistics of a whole data set: float64 (len(data), 96)."""
    return np.concatenate([input_statistics(encoder, batch) for batch in data.batches(EMBED_BATCH)])
