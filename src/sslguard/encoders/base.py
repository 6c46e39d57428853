"""What an encoder is: something that embeds batches, and a network that can also be trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslguard.data.base import Batch, Data
from sslguard.encoders.preprocess import ImagePreprocess, Preprocess
from sslguard.encoders.running import EMBED_BATCH, running, together
from sslguard.errors import EncoderError, SuspectError


@runtime_checkable
class Embedder(Protocol):
    """All that a suspect has to be: `wrapped.as_suspect` adds the rest."""

    def embed(self, batch: Batch, /) -> NDArray[np.floating]:
        """Return the embeddings of a batch, shape (n, m), finite."""
        ...


@runtime_checkable
class Suspect(Embedder, Protocol):
    """An Embedder with a name, which is told when no more queries follow."""

    @property
    def name(self) -> str:
        """Name of the suspect in reports."""
        ...

    @property
    def n_missing(self) -> int:
        """Number of queries so far without an answer. The answer to each was a zero vector."""
        ...

    def finish(self) -> None:
        """Note that no more queries follow.

        Raises:
            SuspectError: The answers are unusable because the queries ended here.
        """
        ...


@dataclass(frozen=True, eq=False)
class Encoder:
    """A network with its preprocessing.

    Attributes:
        module: prepared and normalised input → embeddings (n, dim).
        preprocess: items → the network's input, in two steps.
        dim: width of an embedding.
        architecture: what `rebuild.build` rebuilds the module from.
        source: where it came from, for people.
        record: how it was made (command, seed, seconds …), JSON values only.
    """

    module: nn.Module
    preprocess: Preprocess
    dim: int
    architecture: dict[str, Any]
    source: str
    record: dict[str, Any] = field(default_factory=dict)

    n_missing = 0  # as a suspect, it answers every query

    @property
    def name(self) -> str:
        """Name of the encoder in reports: where it came from."""
        return self.source

    def finish(self) -> None:
        """Do nothing: no query is left over."""

    def prepare(self, batch: Batch, /) -> Tensor:
        """Return items as a float tensor in [0, 1] on the module's device, where a trigger may be put on."""
        return self.preprocess.prepare(batch).to(self.device)

    def forward(self, prepared: Tensor, /) -> Tensor:
        """Return the embeddings (n, dim) of prepared items, differentiable, in whatever mode the module is."""
        inputs = self.preprocess.normalise(prepared)
        if inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return self.module(inputs)

    def features(self, batch: Batch, /) -> Tensor:
        """Return the embeddings (n, dim) of items, differentiable."""
        return self.forward(self.prepare(batch))

    def embed(self, batch: Batch, /) -> NDArray[np.float32]:
        """Return the embeddings of a batch in evaluation mode, float32 (n, dim). Leave every layer's mode as it was.

        Raises:
            DataError: the batch is not what this encoder takes.
            SuspectError: an embedding is not finite, or the answer has another shape.
        """
        answers = np.empty((len(batch), self.dim), np.float32)
        with evaluating(self.module), running(self.module), torch.inference_mode():
            for places, chunk in self._chunks(batch):
                part = self.features(chunk)
                if part.shape != (len(chunk), self.dim):
                    raise SuspectError(
                        f"{self.source} answered {len(chunk)} items with shape {tuple(part.shape)}, "
                        f"not ({len(chunk)}, {self.dim})"
                    )
                answers[places] = part.float().cpu().numpy()
        if not np.isfinite(answers).all():
            raise SuspectError(f"{self.source} answered with values that are not finite")
        return answers

    def _chunks(self, batch: Batch) -> Iterator[tuple[list[int] | slice, Batch]]:
        """Yield what goes through the network together, and its places. Texts are of like length: little is filler."""
        texts = [item for item in batch if isinstance(item, str)] if isinstance(batch, list) else []
        if texts and len(texts) == len(batch):
            size, order = together(None), sorted(range(len(texts)), key=lambda k: len(texts[k]))
            for start in range(0, len(order), size):
                places = order[start : start + size]
                yield places, [texts[k] for k in places]
            return
        size = self.together
        for start in range(0, len(batch), size):
            yield slice(start, start + size), batch[start : start + size]

    @property
    def together(self) -> int:
        """Return how many pictures go through the network together: few large ones, so that memory stays bounded."""
        sides = self.preprocess.shape[1:] if isinstance(self.preprocess, ImagePreprocess) else (1, 1)
        return together(math.prod(sides))

    def clone(self) -> Encoder:
        """Return an independent copy: training it leaves this one as it is."""
        return replace(
            self,
            module=copy.deepcopy(self.module),
            architecture=copy.deepcopy(self.architecture),
            record=copy.deepcopy(self.record),
        )

    @property
    def device(self) -> torch.device:
        """Return the device of the module's parameters; the CPU where it has none."""
        parameter = next(self.module.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def n_parameters(self) -> int:
        """Return the number of the module's parameters, buffers not counted."""
        return sum(p.numel() for p in self.module.parameters())


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every layer in evaluation mode inside the block, and back in the mode it had after it.

    Layer by layer: one flag for all would wake batch norms that a recipe keeps frozen in a training module.
    """
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def embed_all(encoder: Embedder, data: Data, *, batch_size: int = EMBED_BATCH) -> NDArray[np.floating]:
    """Return the embeddings of a whole data set, (len(data), m), all in memory.

    Args:
        encoder: What embeds.
        data: What is embedded.
        batch_size: Items at a time.

    Raises:
        EncoderError: A batch is not answered with one row an item.
    """
    parts: list[NDArray[np.floating]] = []
    for batch in data.batches(batch_size):
        part = np.asarray(encoder.embed(batch))
        if part.ndim != 2 or len(part) != len(batch):
            raise EncoderError(f"{len(batch)} items were answered with an array of shape {part.shape}")
        parts.append(part)
    return np.concatenate(parts)
