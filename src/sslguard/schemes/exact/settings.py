"""The settings of the exact scheme."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from sslguard.errors import UsageError
from sslguard.schemes.exact.protocol import Protocol
from sslguard.settings import Checked, Count, Positive, Range, Seed

MAX_SUB_KEYS = 16
MOST_RANK = 64


@dataclass(frozen=True)
class ExactSettings(Checked):
    """Settings of the exact scheme.

    Attributes:
        protocol: All that the test depends on.
        mode: How the mark is put on: "head" computes it exactly from the output, without training, for an API;
            "distilled" trains it into the weights, for encoders that others receive.
        largest: Largest size of the mark: its mean square, for embeddings of length 1 (E).
        share: Largest size of the mark as a share of the clean embeddings' own variance.
        overlap: Share of each item's 10 nearest neighbours that must stay its neighbours. A head is made smaller until
            they do; marked weights show a part of their mark alone.
        steps: Number of optimiser steps of the distillation.
        batch_size: Items a step.
        learning_rate: Learning rate of Adam, positive; it falls to 0 by half a cosine.
        overshoot: How many times larger the mark is that weights are trained to show. They show a part of it alone.
        sub_keys: Independent sub-keys that share the mark (s), each with secrets of its own and 1/s of its size. A
            claim opens one of them and the others stay secret.
        redraw: Number of times that the secret's draw was given up for another one, after a marking that was too weak.
            Each verification is charged for it.
    """

    protocol: Protocol = field(default_factory=Protocol)
    mode: Literal["head", "distilled"] = "distilled"
    largest: Positive = 0.05
    share: Positive = 0.3
    overlap: Annotated[float, Range(least=0, below=1)] = 0.42
    steps: Count = 1000
    batch_size: Count = 64
    learning_rate: Positive = 1e-3
    overshoot: Positive = 1.6
    sub_keys: Annotated[int, Range(least=1, most=MAX_SUB_KEYS)] = 1
    redraw: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sub_keys * self.protocol.rank > MOST_RANK:
            raise UsageError(
                f"rank times sub_keys must be at most {MOST_RANK}, not {self.protocol.rank} times {self.sub_keys}"
            )

    @classmethod
    def gentle(cls) -> Self:
        """Return the preset gentle, for vectors that live in an index: a mark that neighbours hardly feel."""
        return cls(largest=0.008, share=0.05, overlap=0.8)
