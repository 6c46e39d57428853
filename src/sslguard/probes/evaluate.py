"""Probe an encoder on data sets: choose the items and labels, embed them, and average over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sslguard.data.base import Data, overlap
from sslguard.encoders.base import EMBED_BATCH, Embedder
from sslguard.errors import DataError, EncoderError, UsageError
from sslguard.probes.knn import knn_probe
from sslguard.probes.linear import linear_probe
from sslguard.probes.mlp import mlp_probe
from sslguard.probes.task import ProbeResult, checked_labels, checked_seed

PROBES: dict[str, Callable[..., ProbeResult]] = {"linear": linear_probe, "mlp": mlp_probe, "knn": knn_probe}


def few_label_subset(labels: ArrayLike, per_class: int, seed: int) -> NDArray[np.int64]:
    """Return the indices of `per_class` items of each class, drawn without replacement: int64, ascending.

    Args:
        labels: int (n,), at least 0.
        per_class: Items of each class, at least 1.
        seed: Seed of the draw.

    Raises:
        UsageError: `per_class` or `seed` is out of range.
        DataError: A class has fewer items than that, or an item has no label.
    """
    generator = np.random.default_rng(checked_seed(seed))
    known = checked_labels("labels", labels, None)
    if per_class < 1:
        raise UsageError(f"per_class must be at least 1, not {per_class}")
    chosen = []
    for label in np.unique(known):
        members = np.flatnonzero(known == label)
        if len(members) < per_class:
            raise DataError(
                f"class {label} has {len(members)} items, fewer than the {per_class} asked for: lower per_class"
            )
        chosen.append(generator.choice(members, per_class, replace=False))
    return np.sort(np.concatenate(chosen))


def probe_encoder(
    embedder: Embedder,
    train: Data,
    test: Data,
    *,
    method: str = "linear",
    per_class: int | None = None,
    seeds: Sequence[int] = (0,),
) -> ProbeResult:
    """Return the accuracy of a probe on an encoder's embeddings.

    Args:
        embedder: Embedder to probe. Only the items that are used are embedded.
        train: Labelled items to train on. With `per_class`, that many of each class are drawn for each seed.
        test: Labelled items to test on, disjoint from `train`.
        method: "linear", "mlp" or "knn".
        per_class: Labels a class; None takes all.
        seeds: One probe is trained for each seed; the result averages them.

    Raises:
        UsageError: The method is unknown, there is no seed, or `per_class` is out of range.
        DataError: Labels are missing, there are too few classes, a class occurs only in `test`, or the two sets
            overlap.
        EncoderError: The embeddings are not finite or of the wrong shape.
    """
    if method not in PROBES:
        raise UsageError(f"method must be one of {', '.join(PROBES)}, not {method!r}")
    if not seeds:
        raise UsageError("seeds must hold at least one seed")
    known, truth = _labels_of(train), _labels_of(test)
    if shared := overlap(train, test):
        raise DataError(f"{train.spec} and {test.spec} share {shared} items: test on items not trained on")
    subsets = [
        np.arange(len(known)) if per_class is None else few_label_subset(known, per_class, seed) for seed in seeds
    ]
    used = np.unique(np.concatenate(subsets))
    train_x, test_x = _embed_items(embedder, train, used), _embed_items(embedder, test, np.arange(len(truth)))
    results = [
        PROBES[method](train_x[np.searchsorted(used, subset)], known[subset], test_x, truth, seed=seed)
        for subset, seed in zip(subsets, seeds, strict=True)
    ]
    return average(results)


def average(results: Sequence[ProbeResult]) -> ProbeResult:
    """Return the average of several results that differ in their seed only."""

    def mean(parts: Sequence[Mapping[Any, float]]) -> dict[Any, float]:
        return {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}

    return replace(
        results[0],
        accuracy=float(np.mean([result.accuracy for result in results])),
        per_class=mean([result.per_class for result in results]),
        seeds=tuple(seed for result in results for seed in result.seeds),
        accuracies=tuple(accuracy for result in results for accuracy in result.accuracies),
        details=mean([result.details for result in results]),
    )


def _embed_items(embedder: Embedder, data: Data, indices: NDArray[np.int64]) -> NDArray[np.floating]:
    parts: list[NDArray[np.floating]] = []
    for start in range(0, len(indices), EMBED_BATCH):
        chosen = indices[start : start + EMBED_BATCH]
        part = np.asarray(embedder.embed(data.take(chosen)))
        if part.ndim != 2 or len(part) != len(chosen) or (parts and part.shape[1] != parts[0].shape[1]):
            raise EncoderError(f"{len(chosen)} items were answered with an array of shape {part.shape}")
        if not np.isfinite(part).all():
            raise EncoderError(f"embeddings of {data.spec} must be finite; some are NaN or infinite")
        parts.append(part)
    return np.concatenate(parts)


def _labels_of(data: Data) -> NDArray[np.int64]:
    if data.labels is None:
        raise DataError(f"{data.spec} has no labels, and a probe needs them: choose a labelled split")
    return checked_labels(f"the labels of {data.spec}", data.labels, len(data))
