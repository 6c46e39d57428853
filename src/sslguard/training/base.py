"""What is trained, for how long and on what, and what it measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslguard.errors import UsageError

CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Update:
    """One loss of an iteration.

    Attributes:
        name: how the loss is called in the history.
        loss: micro-batch → scalar.
        optimizers: names of the optimisers stepped once the gradient is complete.
        parameters: what the gradient is taken for; None means the parameters of `optimizers`. Gradients of
            parameters beyond those add to what later updates of the same iteration find.
    """

    name: str
    loss: Callable[[Any], Tensor]
    optimizers: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...] | None = None


class Task(ABC):
    """What is trained. Subclasses fill `modules`, `optimizers` and `n_items` and say what a step is made of."""

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    n_items: int

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """JSON values that tell this run from any other: a checkpoint is only resumed by its own run."""

    @abstractmethod
    def load(self, indices: NDArray[np.int64]) -> Any:
        """A micro-batch on `device`, augmented. Random numbers come from torch's generator, which is seeded."""

    @abstractmethod
    def updates(self) -> Sequence[Update]: ...

    def begin_step(self, step: int, steps: int) -> None:  # noqa: B027 - a hook, empty by default
        """Set learning rates and modes for step `step` of `steps`."""

    def carry(self, microbatch: Any) -> Tensor | None:  # noqa: ARG002
        """What a micro-batch leaves for `end_step`: rows that are gathered from all chunks in order."""
        return None

    def end_step(self, step: int, carried: Tensor | None) -> None:  # noqa: B027
        """After the last update: momentum encoders, queues."""

    def to(self, device: torch.device) -> None:
        """Move the networks. Optimisers follow, since parameters move in place."""
        self.device = device
        for module in self.modules.values():
            module.to(device)

    device: torch.device = torch.device("cpu")


@dataclass(frozen=True)
class Loop:
    """How long and on what a task runs.

    Attributes:
        steps: optimiser steps.
        batch_size: items a step, over all devices, nodes and accumulation.
        accumulate: micro-batches a process runs before it steps.
        devices, nodes: processes of one device each.
        accelerator: "auto", "cpu", "cuda" or "mps".
        precision: "auto" (bfloat16 where a GPU has it), "32" or "bf16".
        checkpoint: file that a killed run resumes from, removed by no one; None keeps none.
        progress: draw a bar on standard error.
    """

    steps: int
    batch_size: int
    seed: int = 0
    accumulate: int = 1
    devices: int = 1
    nodes: int = 1
    accelerator: str = "cpu"
    precision: str = "auto"
    checkpoint: Path | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    progress: bool = False
    title: str = "training"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "devices", "nodes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        chunks = self.accumulate * self.devices * self.nodes
        if self.batch_size % chunks:
            raise UsageError(
                f"batch_size {self.batch_size} must be a multiple of accumulate × devices × nodes = {chunks}"
            )
        if self.precision not in ("auto", "32", "bf16"):
            raise UsageError(f"precision must be auto, 32 or bf16, not {self.precision!r}")


@dataclass
class History:
    """What a run measured: the losses of each step, and the time it took (resumed parts included)."""

    losses: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0


@contextmanager
def isolated_rng(*key: int) -> Iterator[None]:
    """Torch's generators seeded by `key` inside, and as they were outside."""
    seed = int(np.random.SeedSequence(list(key)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def cosine_schedule(step: int, steps: int, *, warmup: int = 0) -> float:
    """Factor of the learning rate: linear over `warmup` steps, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's initial rate, which is kept under `initial_lr`, by `factor`."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor
