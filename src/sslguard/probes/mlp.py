"""The paper's downstream classifier."""

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
    """Accuracy of an MLP d-512-256-classes with ReLU and dropout 0.2 on standardised features.

    Source: layers and dropout are those of Cong, He, Zhang, "SSLGuard", CCS 2022 (downstream classifiers).
    The training is ours: Adam for a fixed number of steps, so that few labels are not few updates, and
    features standardised, so that an encoder's scale does not decide.

    Args:
        train_x, train_y, test_x, test_y: as in `linear_probe`.
        seed: of initialisation, order and dropout.
        steps: updates, at least 1.
        batch_size: items an update, at least 1; no more than there are.
        learning_rate: of Adam, positive.

    Raises:
        UsageError: shapes, types or values are not as above.
    """
    checked_seed(seed)
    task = Task.of(train_x, train_y, test_x, test_y)
    if steps < 1 or batch_size < 1 or not 0 < learning_rate < np.inf:
        raise UsageError(
            f"steps, batch_size and learning_rate must be positive, not {steps}, {batch_size} and {learning_rate}"
        )
    train, test = (torch.from_numpy(x.astype(np.float32)) for x in task.standardised())
    labels, size = torch.from_numpy(task.train_y), min(batch_size, len(task.train_y))
    # inference_mode(False): a caller's inference mode would forbid training here.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        # The CPU generator alone: torch.manual_seed would reseed accelerators, which nothing puts back.
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
