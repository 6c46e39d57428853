"""What every probe is given, checked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sslguard.errors import DataError, UsageError


@dataclass(frozen=True)
class ProbeResult:
    """Accuracy of one probe on a test set, averaged over seeds.

    Attributes:
        method: "linear", "mlp" or "knn".
        accuracy: share of test items classified rightly, in [0, 1]; the mean of `accuracies`.
        n_train, n_test: items trained and tested on, for each seed.
        per_class: class → share of its test items classified rightly, for the classes in the test set.
        seeds, accuracies: each seed and its accuracy.
        details: the probe's own numbers, averaged over seeds: of the linear probe the chosen penalty `l2` and
            `converged` (the share of final fits whose gradient vanished), of kNN the `k` used.
    """

    method: str
    accuracy: float
    n_train: int
    n_test: int
    per_class: Mapping[int, float]
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    details: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Every field under its own name, JSON values only."""
        return {**asdict(self), "seeds": list(self.seeds), "accuracies": list(self.accuracies)}


@dataclass(frozen=True)
class Task:
    """A checked classification task: features float64, labels as positions in `classes`."""

    train_x: NDArray[np.float64]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.float64]
    test_y: NDArray[np.int64]
    classes: NDArray[np.int64]

    @classmethod
    def of(cls, train_x: ArrayLike, train_y: ArrayLike, test_x: ArrayLike, test_y: ArrayLike) -> Task:
        """The task that these arrays pose. Raises UsageError or DataError where they pose none."""
        features, others = checked_features("train_x", train_x), checked_features("test_x", test_x)
        labels = checked_labels("train_y", train_y, len(features))
        truth = checked_labels("test_y", test_y, len(others))
        if features.shape[1] != others.shape[1]:
            raise UsageError(f"train_x and test_x must be equally wide, not {features.shape[1]} and {others.shape[1]}")
        classes = np.unique(labels)
        if len(classes) < 2:
            raise DataError(f"a probe needs at least two classes; every training label is {classes[0]}")
        unknown = np.setdiff1d(truth, classes)
        if len(unknown):
            raise DataError(
                f"class {unknown[0]} occurs in the test labels and not in the training labels: "
                "train on items of every class"
            )
        codes, truth_codes = np.searchsorted(classes, labels), np.searchsorted(classes, truth)
        return cls(features, codes, others, truth_codes, classes)

    def standardised(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Train and test features, shifted and scaled to the training part's mean 0 and variance 1."""
        mean, scale = self.standard()
        return (self.train_x - mean) / scale, (self.test_x - mean) / scale

    def standard(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of the training part's columns; infinity where a column carries nothing."""
        mean, std = self.train_x.mean(0), self.train_x.std(0)
        # A column that is constant but for rounding must not be blown up to variance 1.
        return mean, np.where(std > 1e-9 * np.maximum(np.abs(mean), 1e-30), std, np.inf)

    def result(self, method: str, predicted: NDArray[np.int64], seed: int, details: Mapping[str, float]) -> ProbeResult:
        """What predictions (n', as positions in `classes`) of the test part are worth."""
        right = predicted == self.test_y
        per_class = {int(self.classes[c]): float(right[self.test_y == c].mean()) for c in np.unique(self.test_y)}
        accuracy = float(right.mean())
        sizes = len(self.train_y), len(self.test_y)
        return ProbeResult(method, accuracy, *sizes, per_class, (seed,), (accuracy,), dict(details))


def checked_features(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Features as float64 (n, d), finite, n and d at least 1; or a UsageError that names the argument."""
    try:
        features = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be an array of numbers: {error}") from error
    if features.ndim != 2 or 0 in features.shape:
        raise UsageError(f"{name} must have shape (n, d) with n, d >= 1, not {features.shape}")
    # Beyond 1e100 the variance of a column overflows.
    if not (np.abs(features) <= 1e100).all():
        raise UsageError(f"{name} must be finite (and at most 1e100); look at the encoder's embeddings")
    return features


def checked_labels(name: str, values: ArrayLike, n: int | None) -> NDArray[np.int64]:
    """Labels as int64 (n,), at least 0; or a UsageError or DataError that names the argument."""
    labels = np.asarray(values)
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise UsageError(f"{name} must be whole numbers of shape (n,), not {labels.dtype} of shape {labels.shape}")
    if n is not None and len(labels) != n:
        raise UsageError(f"{name} must hold one label for each of {n} items, not {len(labels)}")
    if labels.min() < 0:
        raise DataError(f"{name} must be at least 0; {int((labels < 0).sum())} items are unlabelled (negative)")
    return labels.astype(np.int64)


def checked_seed(seed: int) -> int:
    """A seed as a Python int; or a UsageError. Booleans are refused: they are slips, not seeds."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UsageError(f"seed must be a whole number of at least 0, not {seed!r}")
    return int(seed)
