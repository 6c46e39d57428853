"""The parts of a training run: the task, its updates, the settings of the loop, and the history of losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslguard.errors import UsageError
from sslguard.settings import Checked, Count

CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Update:
    """One loss of a training step.

    Attributes:
        name: Name of the loss in the history.
        loss: Function from a micro-batch to a scalar.
        optimizers: Names of the optimisers that step once the gradient is complete.
        parameters: Parameters that the gradient is computed for; None means the parameters of `optimizers`. Gradients
            of parameters beyond those of `optimizers` add up with those of later updates in the same step.
    """

    name: str
    loss: Callable[[Any], Tensor]
    optimizers: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...] | None = None


class Task(ABC):
    """What is trained. Subclasses set the attributes and define the parts of a step.

    Attributes:
        modules: All networks that are trained or saved in checkpoints, by name.
        optimizers: Optimisers, by name.
        n_items: Number of items in the training data.
        identity: JSON values that identify this run. A checkpoint is resumed only by a run with the same ones.
        device: Device that the networks are on.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    n_items: int
    identity: Mapping[str, Any]

    @abstractmethod
    def load(self, indices: NDArray[np.int64]) -> Any:
        """Return the micro-batch of these items, augmented and on `device`.

        Augmentation draws from torch's generator, which the loop seeds.

        Args:
            indices: Positions of the items in the training data, int64 (n,).
        """

    def updates(self) -> Sequence[Update]:
        """Return the updates of one step, in order. The default is a single one: all optimisers step on `loss`."""
        return [Update("loss", self.loss, tuple(self.optimizers))]

    def loss(self, microbatch: Any) -> Tensor:
        """Return the loss of a micro-batch, a scalar, for tasks of a single update."""
        raise NotImplementedError

    def begin_step(self, step: int, steps: int) -> None:  # noqa: B027 - a hook, empty by default
        """Set learning rates and modes for step `step` (from 0) of `steps`. The default does nothing."""

    def anneal(self, step: int, steps: int) -> None:
        """Set all learning rates: they rise over 5 % of the steps, and then fall to 0 by half a cosine."""
        for optimizer in self.optimizers.values():
            set_learning_rate(optimizer, cosine_schedule(step, steps, warmup=steps // 20))

    def carry(self, microbatch: Any) -> Tensor | None:  # noqa: ARG002
        """Return the rows of a micro-batch that `end_step` needs, or None.

        The loop gathers them from all chunks, in order.
        """
        return None

    def end_step(self, step: int, carried: Tensor | None) -> None:  # noqa: B027
        """Finish a step after its last update, such as by updating a momentum encoder or a queue.

        The default does nothing.

        Args:
            step: Number of the step, from 0.
            carried: Rows of all chunks that `carry` returned; None if it returned none.
        """

    def to(self, device: torch.device) -> None:
        """Move the networks to `device`. Optimisers follow, because parameters move in place."""
        self.device = device  # pyrefly: ignore[read-only] - torch.device is no descriptor
        for module in self.modules.values():
            module.to(device)

    device: torch.device = torch.device("cpu")


@dataclass(frozen=True)
class Loop(Checked):
    """Length, devices and bookkeeping of a training run.

    Attributes:
        steps: Number of optimiser steps.
        batch_size: Items of a step, over all devices, nodes and accumulation.
        seed: Seed of all randomness.
        accumulate: Micro-batches that a process runs before it steps.
        devices: Processes on each node, with one device each.
        nodes: Number of nodes.
        accelerator: "auto", "cpu", "cuda" or "mps".
        precision: "32", "bf16", or "auto" (bfloat16 if the GPU supports it).
        checkpoint: File that a killed run resumes from; None writes none. Nothing here deletes it.
        checkpoint_seconds: Seconds between two checkpoints.
        progress: Whether to draw a progress bar on standard error.
        title: Label of the progress bar.
    """

    steps: Count
    batch_size: Count
    seed: int = 0
    accumulate: Count = 1
    devices: Count = 1
    nodes: Count = 1
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    precision: Literal["auto", "32", "bf16"] = "auto"
    checkpoint: Path | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    progress: bool = False
    title: str = "training"

    def __post_init__(self) -> None:
        super().__post_init__()
        chunks = self.accumulate * self.devices * self.nodes
        if self.batch_size % chunks:
            raise UsageError(
                f"batch_size {self.batch_size} must be a multiple of accumulate × devices × nodes = {chunks}"
            )


@dataclass
class History:
    """Measurements of a run.

    Attributes:
        losses: Value of each loss at each step, by name.
        steps: Number of steps done.
        seconds: Wall-clock time in seconds, resumed parts included.
        cpu_seconds: Processor time in seconds, resumed parts included.
    """

    losses: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def times(self) -> dict[str, float]:
        """Return `seconds` and `cpu_seconds`, rounded to tenths, for the record of what was trained."""
        return {"seconds": round(self.seconds, 1), "cpu_seconds": round(self.cpu_seconds, 1)}


@contextmanager
def isolated_rng(*key: int) -> Iterator[None]:
    """Seed torch's generators by `key` inside the context, and restore their state afterwards."""
    seed = int(np.random.SeedSequence(list(key)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def cosine_schedule(step: int, steps: int, *, warmup: int = 0) -> float:
    """Return the factor of the learning rate at `step`, in [0, 1].

    Args:
        step: Number of the step, from 0.
        steps: Steps of the whole run.
        warmup: Steps over which the factor rises linearly. Afterwards it falls to 0 by half a cosine.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its initial rate, which is stored under `initial_lr`."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor
