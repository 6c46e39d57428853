"""The nearest-neighbour probe. It trains nothing, so that its result depends on the embeddings only."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from numpy.typing import ArrayLike

from sslguard.errors import UsageError
from sslguard.probes.task import ProbeResult, Task, checked_seed

TEMPERATURE = 0.07
_BATCH = 1024


def knn_probe(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    seed: int = 0,
    k: int = 20,
) -> ProbeResult:
    """Return the accuracy of a vote of the k nearest training items by cosine, each weighted by exp(cosine/0.07).

    Source: Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018, section
    3.4.

    Args:
        train_x: float (n, d), finite. A zero row has cosine 0 to every other.
        train_y: int (n,), at least 0, at least two classes.
        test_x: float (n', d), finite.
        test_y: int (n',), classes of train_y.
        seed: Not used, because the probe is not random.
        k: Number of neighbours, at least 1. If there are fewer training items, all of them vote.

    Raises:
        UsageError: Shapes, types or values are not as above.
        DataError: Labels are missing, there is one class only, or a class occurs only in `test_y`.
    """
    checked_seed(seed)
    task = Task.of(train_x, train_y, test_x, test_y)
    if k < 1:
        raise UsageError(f"k must be at least 1, not {k}")
    k = min(k, len(task.train_y))
    train = nnf.normalize(torch.from_numpy(task.train_x)).float()
    labels = torch.from_numpy(task.train_y)
    predicted = []
    for part in nnf.normalize(torch.from_numpy(task.test_x)).float().split(_BATCH):
        cosine, nearest = (part @ train.T).topk(k, dim=1)
        weight = ((cosine.double() - 1) / TEMPERATURE).exp()
        votes = weight.new_zeros(len(part), len(task.classes)).scatter_add_(1, labels[nearest], weight)
        predicted.append(votes.argmax(1))
    return task.result("knn", torch.cat(predicted).numpy(), seed, {"k": float(k)})
