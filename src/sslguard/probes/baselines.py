"""Baselines of a task, which need no learned encoder, and accuracy measured relative to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as nnf
from numpy.typing import NDArray

from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Embedder, Encoder
from sslguard.encoders.preprocess import Preprocess
from sslguard.encoders.rebuild import build
from sslguard.errors import DataError, UsageError
from sslguard.probes.evaluate import average, probe_encoder
from sslguard.probes.task import ProbeResult, checked_seed

PIXEL_WIDTH = 2304  # 48×48, the size of the test bed's images


def accuracy_kept(accuracy: float, clean: float, baseline: float) -> float:
    """Return (A − A₀)/(A_F − A₀): 1 if nothing was lost, 0 at the baseline, negative below it.

    Args:
        accuracy: Accuracy A of the encoder in question, in [0, 1].
        clean: Accuracy A_F of the clean encoder, in [0, 1].
        baseline: Accuracy A₀ of the better baseline, in [0, 1]. See `baseline`.

    Raises:
        UsageError: A value lies outside [0, 1], or the clean encoder is no better than the baseline.
    """
    for name, value in (("accuracy", accuracy), ("clean", clean), ("baseline", baseline)):
        if not 0 <= value <= 1:
            raise UsageError(f"{name} must be an accuracy in [0, 1], not {value}")
    if clean <= baseline:
        raise UsageError(
            f"the clean encoder's accuracy {clean:.4g} is not above the baseline's {baseline:.4g}, so there is "
            "nothing to keep: choose a task on which the clean encoder helps"
        )
    return (accuracy - baseline) / (clean - baseline)


@dataclass(frozen=True)
class Baseline:
    """Accuracy on a task without a learned encoder.

    Attributes:
        pixels: Result of a probe on raw pixels; None if items are not images.
        random: Result of a probe on the untrained network.
    """

    pixels: ProbeResult | None
    random: ProbeResult

    @property
    def accuracy(self) -> float:
        """Accuracy A₀ of the better of the two, in [0, 1]."""
        return max(self.random.accuracy, self.pixels.accuracy if self.pixels else 0.0)


def baseline(
    encoder: Encoder,
    train: Data,
    test: Data,
    *,
    method: str = "linear",
    per_class: int | None = None,
    seeds: Sequence[int] = (0,),
) -> Baseline:
    """Return the baselines for this encoder: raw pixels as it prepares them, and its architecture without training.

    Args:
        encoder: Encoder whose architecture and preprocessing are used. Its weights are not read.
        train: Labelled items to train on; see `probe_encoder`.
        test: Labelled items to test on; see `probe_encoder`.
        method: "linear", "mlp" or "knn".
        per_class: Labels a class; None takes all.
        seeds: Seeds of the probes. Each also initialises an untrained network.

    Raises:
        UsageError: An argument is out of range; see `probe_encoder`.
        DataError: The data does not allow a probe; see `probe_encoder`.
        EncoderError: The embeddings are not usable; see `probe_encoder`.
    """

    def probe(embedder: Embedder, of: Sequence[int]) -> ProbeResult:
        return probe_encoder(embedder, train, test, method=method, per_class=per_class, seeds=of)

    pictures = encoder.preprocess.prepare(train.take([0])).dim() == 4
    pixels = probe(PixelEmbedder(encoder.preprocess), seeds) if pictures else None
    return Baseline(pixels, average([probe(_untrained(encoder, seed), (seed,)) for seed in seeds]))


def _untrained(encoder: Encoder, seed: int) -> Encoder:
    module, dim = build(encoder.architecture, seed=checked_seed(seed))
    source = f"{encoder.architecture.get('backbone')} at random initialisation (seed {seed})"
    return replace(encoder, module=module.to(encoder.device), dim=dim, source=source, record={})


@dataclass(frozen=True)
class PixelEmbedder:
    """An Embedder without learning. It flattens the prepared pixels; too many are averaged over areas first.

    Attributes:
        preprocess: Preparation of items as (n, C, H, W) in [0, 1].
        max_width: Largest width of an embedding. If C·H·W is larger, images are pooled, keeping their aspect ratio.
    """

    preprocess: Preprocess
    max_width: int = PIXEL_WIDTH

    def embed(self, batch: Batch, /) -> NDArray[np.float32]:
        """Return the pixels of a batch, float32 (n, m) with m ≤ max_width, in [0, 1].

        Raises:
            DataError: The items are not images.
            UsageError: `max_width` is less than the number of channels.
        """
        prepared = self.preprocess.prepare(batch)
        if prepared.dim() != 4:
            raise DataError(f"raw pixels need pictures (n, C, H, W), not items of shape {tuple(prepared.shape)}")
        channels, height, width = prepared.shape[1:]
        if channels > self.max_width:
            raise UsageError(f"max_width must be at least {channels}, one value a channel, not {self.max_width}")
        if channels * height * width > self.max_width:
            ratio = (self.max_width / (channels * height * width)) ** 0.5
            rows = min(max(1, int(height * ratio)), self.max_width // channels)
            columns = min(max(1, int(width * ratio)), self.max_width // (channels * rows))
            prepared = nnf.adaptive_avg_pool2d(prepared, (rows, columns))
        return prepared.flatten(1).float().cpu().numpy()
