"""The inputs of a probe, checked, and its result."""

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
        accuracy: Share of test items that are classified correctly, in [0, 1]; the mean of `accuracies`.
        n_train: Training items for each seed.
        n_test: Test items for each seed.
        per_class: Share of each class's test items that are classified correctly, for the classes in the test set.
        seeds: Seeds of the probes.
        accuracies: Accuracy for each seed.
        details: Further numbers, averaged over seeds. For the linear probe: the chosen penalty `l2`, and `converged`,
            the share of final fits whose gradient vanished. For kNN: the number of neighbours `k`.
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
        """Return every field under its own name, as JSON values."""
        return {**asdict(self), "seeds": list(self.seeds), "accuracies": list(self.accuracies)}


@dataclass(frozen=True)
class Task:
    """A checked classification task.

    Attributes:
        train_x: Training features, float64 (n, d).
        train_y: Training labels as positions in `classes`, int64 (n,).
        test_x: Test features, float64 (n', d).
        test_y: Test labels as positions in `classes`, int64 (n',).
        classes: Sorted classes of the training labels.
    """

    train_x: NDArray[np.float64]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.float64]
    test_y: NDArray[np.int64]
    classes: NDArray[np.int64]

    @classmethod
    def of(cls, train_x: ArrayLike, train_y: ArrayLike, test_x: ArrayLike, test_y: ArrayLike) -> Task:
        """Check arrays and return them as a task.

        Args:
            train_x: float (n, d), finite.
            train_y: int (n,), at least 0, at least two classes.
            test_x: float (n', d), finite.
            test_y: int (n',), classes of train_y.

        Raises:
            UsageError: Shapes, types or values are not as above.
            DataError: Labels are missing, there is one class only, or a class occurs only in `test_y`.
        """
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
        """Return train and test features, shifted and scaled to mean 0 and variance 1 of the training features."""
        mean, scale = self.standard()
        return (self.train_x - mean) / scale, (self.test_x - mean) / scale

    def standard(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and standard deviation of the training features' columns, (d,) each.

        The standard deviation is infinite for constant columns, so that dividing by it gives zeros.
        """
        mean, std = self.train_x.mean(0), self.train_x.std(0)
        # A column that is constant up to rounding must not be scaled up to variance 1.
        return mean, np.where(std > 1e-9 * np.maximum(np.abs(mean), 1e-30), std, np.inf)

    def result(self, method: str, predicted: NDArray[np.int64], seed: int, details: Mapping[str, float]) -> ProbeResult:
        """Return the result of predictions for the test items.

        Args:
            method: Name of the probe.
            predicted: Predicted classes as positions in `classes`, int64 (n',).
            seed: Seed of the probe.
            details: Further numbers of the probe.
        """
        right = predicted == self.test_y
        per_class = {int(self.classes[c]): float(right[self.test_y == c].mean()) for c in np.unique(self.test_y)}
        accuracy = float(right.mean())
        sizes = len(self.train_y), len(self.test_y)
        return ProbeResult(method, accuracy, *sizes, per_class, (seed,), (accuracy,), dict(details))


def checked_features(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return features as float64 (n, d).

    Args:
        name: Name of the argument, for error messages.
        values: Numbers of shape (n, d), with n and d at least 1.

    Raises:
        UsageError: The values are not finite numbers of that shape, or exceed 1e100.
    """
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
    """Return labels as int64 (n,).

    Args:
        name: Name of the argument, for error messages.
        values: Whole numbers of shape (n,), at least 0.
        n: Number of items; None takes any.

    Raises:
        UsageError: The values are not whole numbers of that shape.
        DataError: A label is negative, which means that its item has none.
    """
    labels = np.asarray(values)
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise UsageError(f"{name} must be whole numbers of shape (n,), not {labels.dtype} of shape {labels.shape}")
    if n is not None and len(labels) != n:
        raise UsageError(f"{name} must hold one label for each of {n} items, not {len(labels)}")
    if labels.min() < 0:
        raise DataError(f"{name} must be at least 0; {int((labels < 0).sum())} items are unlabelled (negative)")
    return labels.astype(np.int64)


def checked_seed(seed: int) -> int:
    """Return a seed as an int.

    Raises:
        UsageError: The seed is not a whole number of at least 0. Booleans are refused, because they are likely
            mistakes.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UsageError(f"seed must be a whole number of at least 0, not {seed!r}")
    return int(seed)
