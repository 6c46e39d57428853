"""The MLP probe, which is the paper's downstream classifier."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import ArrayLike
from torch import nn

from sslguard.errors import UsageError
from sslguard.probes.task import ProbeResult, Task, checked_seed


def mlp_probe(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    seed: int = 0,
    steps: int = 1000,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
) -> ProbeResult:
    """Return the accuracy of an MLP d-512-256-classes with ReLU and dropout 0.2 on standardised features.

    Source: layers and dropout are those of Cong, He, Zhang, "SSLGuard", CCS 2022 (downstream classifiers). The training
    is ours: Adam takes a fixed number of steps, so that few labels do not mean few updates, and features are
    standardised, so that an encoder's scale does not matter.

    Args:
        train_x: float (n, d), finite.
        train_y: int (n,), at least 0, at least two classes.
        test_x: float (n', d), finite.
        test_y: int (n',), classes of train_y.
        seed: Seed of initialisation, order and dropout.
        steps: Number of updates, at least 1.
        batch_size: Items an update, at least 1. If there are fewer training items, all are used.
        learning_rate: Learning rate of Adam, positive.

    Raises:
        UsageError: Shapes, types or values are not as above.
        DataError: Labels are missing, there is one class only, or a class occurs only in `test_y`.
    """
    checked_seed(seed)
    task = Task.of(train_x, train_y, test_x, test_y)
    if steps < 1 or batch_size < 1 or not 0 < learning_rate < np.inf:
        raise UsageError(
            f"steps, batch_size and learning_rate must be positive, not {steps}, {batch_size} and {learning_rate}"
        )
    train, test = (torch.from_numpy(x.astype(np.float32)) for x in task.standardised())
    labels, size = torch.from_numpy(task.train_y), min(batch_size, len(task.train_y))
    # inference_mode(False), because a caller's inference mode would forbid training.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        # Seed the CPU generator only: torch.manual_seed would also seed accelerators, whose state is not restored.
        torch.default_generator.manual_seed(seed)
        network = _mlp(train.shape[1], len(task.classes))
        optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < size:
                order = torch.randperm(len(labels))
            chosen, order = order[:size], order[size:]
            optimiser.zero_grad()
            nnf.cross_entropy(network(train[chosen]), labels[chosen]).backward()
            optimiser.step()
    with torch.inference_mode():
        predicted = network.eval()(test).argmax(1).numpy()
    return task.result("mlp", predicted, seed, {})


def _mlp(width: int, n_classes: int) -> nn.Sequential:
    hidden = [
        nn.Linear(width, 512),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.Dropout(0.2),
    ]
    return nn.Sequential(*hidden, nn.Linear(256, n_classes))
