"""The settings of the exact scheme."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from sslguard.errors import UsageError
from sslguard.schemes.exact.protocol import MAX_STATISTICS, Protocol
from sslguard.settings import Checked, Count, Positive, Range

MAX_SUB_KEYS = 16


@dataclass(frozen=True)
class ExactSettings(Checked):
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
    steps: Count = 900
    batch_size: Count = 64
    learning_rate: Positive = 2e-3
    sub_keys: Annotated[int, Range(least=1, most=MAX_SUB_KEYS)] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sub_keys * self.protocol.n_statistics > MAX_STATISTICS:
            raise UsageError(
                f"n_statistics times sub_keys must be at most {MAX_STATISTICS}, not {self.protocol.n_statistics} times "
                f"{self.sub_keys}"
            )
