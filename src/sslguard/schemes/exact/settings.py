"""The settings of the exact scheme."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sslguard.errors import UsageError
from sslguard.schemes.exact.protocol import MAX_STATISTICS, Protocol

MAX_SUB_KEYS = 16


@dataclass(frozen=True)
class ExactSettings:
    """Settings of the exact scheme.

    Attributes:
        protocol: All that the test depends on.
        mode: How the mark is put on: "head" computes it exactly from the output, without training, for an API;
            "distilled" trains it into the weights, for encoders that others receive.
        steps: Number of optimiser steps of the distillation.
        batch_size: Items a step.
        learning_rate: Learning rate of Adam, positive; it falls to 0 by half a cosine.
        sub_keys: Independent sub-keys that share the mark (s), each of length ε/√s with features of its own. A claim
            opens one of them and the others stay secret. The whole key shows what one of ε would.
    """

    protocol: Protocol = field(default_factory=Protocol)
    mode: Literal["head", "distilled"] = "distilled"
    steps: int = 900
    batch_size: int = 64
    learning_rate: float = 2e-3
    sub_keys: int = 1

    def __post_init__(self) -> None:
        if self.mode not in ("head", "distilled"):
            raise UsageError(f"mode must be head or distilled, not {self.mode!r}")
        if min(self.steps, self.batch_size) < 1 or not self.learning_rate > 0:
            raise UsageError("steps, batch_size and learning_rate must be positive")
        if not 1 <= self.sub_keys <= MAX_SUB_KEYS or self.sub_keys * self.protocol.n_statistics > MAX_STATISTICS:
            raise UsageError(
                f"sub_keys must lie in 1 to {MAX_SUB_KEYS}, with at most {MAX_STATISTICS} statistics in all: not "
                f"{self.sub_keys} of {self.protocol.n_statistics}"
            )
