"""Random images, and a teacher that counts what it is asked."""

from __future__ import annotations

import numpy as np
import torch

from sslguard.data.base import Data
from sslguard.data.sources import ArrayData

SIZE = 16  # pixels


def random_images(n: int, *, seed: int = 0, channels: int = 1, classes: int | None = None) -> Data:
    """Return `n` images of uniform bytes, (channels, 16, 16), with labels 0, 1, 2 … in turn if `classes` is given."""
    pictures = np.random.default_rng(seed).integers(0, 256, (n, channels, SIZE, SIZE), dtype=np.uint8)
    labels = None if classes is None else np.arange(n, dtype=np.int64) % classes
    return ArrayData(f"noise-{seed}-{n}", pictures, labels)


class CountingTeacher:
    """Answers with fixed random projections of the pixels, and notes what it is asked; it can only `embed`."""

    def __init__(self, width: int = 5) -> None:
        """Draw the projection."""
        self.projection = np.random.default_rng(99).normal(size=(SIZE * SIZE, width)).astype(np.float32)
        self.batches: list[torch.Tensor] = []

    def embed(self, batch: torch.Tensor) -> np.ndarray:
        """Return answers (n, width), and note the batch."""
        self.batches.append(batch)
        pixels = batch.float() / 255 if batch.dtype == torch.uint8 else batch
        return pixels.reshape(len(batch), -1).numpy() @ self.projection

    @property
    def asked(self) -> int:
        """Return how many items were asked."""
        return sum(len(batch) for batch in self.batches)
