"""Mappings of answers: what a thief puts behind its copy so that it no longer answers in its victim's space.

A secret linear map, fewer dimensions, one bit a number, a classifier's outputs in place of embeddings, or the part of
the answers that a nonlinear mark could live in taken out. Each is fitted to the thief's own items, where it needs any,
and is then a fixed function of one answer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from sslguard.attacks.base import Mapping, Needs
from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Embedder, Encoder, embed_all
from sslguard.encoders.statistics import all_statistics, input_statistics
from sslguard.encoders.wrapped import Wrapped, rows
from sslguard.errors import DataError, UsageError
from sslguard.probes import linear_classifier

Array = NDArray[np.float64]
Map = Callable[[Array], Array]


class AnswerMap(Mapping):
    """A map of one answer to another, fitted to the victim's answers. Subclasses are frozen dataclasses."""

    title: ClassVar[str]

    def __call__(self, victim: Embedder, data: Data) -> Wrapped:
        """As `Mapping`: answers (n, m'), float64, of that `dim`. Missing answers, rows of zeros, stay so."""
        answers = np.asarray(embed_all(victim, data), dtype=np.float64)
        fitted = self.fit(answers, data)
        settings = asdict(self)  # type: ignore[call-overload]
        said = ", ".join([self.title, *(f"{name} {value}" for name, value in settings.items())])
        width = fitted(answers[:1]).shape[1]
        return Wrapped(victim, partial(_answer, victim, fitted), self.title, settings, said, width)

    @abstractmethod
    def fit(self, answers: Array, data: Data) -> Map:
        """The map, from the victim's answers (n, m) to the items of `data`."""


@dataclass(frozen=True)
class LinearMap(AnswerMap):
    """An invertible linear map after a shift of the mean to 0: secret singular vectors, singular values from 1 down.

    Attributes:
        condition: largest singular value over the smallest; 1 is a rotation.
        rectify: keep only what is positive of the mapped answers.
        seed: of the singular vectors.
    """

    title = "linear map"

    condition: float = 1.0
    rectify: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.condition < np.inf:
            raise UsageError(f"condition must be at least 1 and finite, not {self.condition}")

    def fit(self, answers: Array, data: Data) -> Map:  # noqa: ARG002
        rng, m = np.random.default_rng(self.seed), answers.shape[1]
        left, right = (np.linalg.qr(rng.standard_normal((m, m)))[0] for _ in range(2))
        matrix, mean = (left * np.geomspace(1, 1 / self.condition, m)) @ right, answers.mean(0)
        if self.rectify:
            return lambda g: np.maximum((g - mean) @ matrix, 0)
        return lambda g: (g - mean) @ matrix


@dataclass(frozen=True)
class LeadingComponents(AnswerMap):
    """Only the leading principal components of the answers.

    Attributes:
        components: how many.
    """

    title = "leading components"

    components: int = 32

    def fit(self, answers: Array, data: Data) -> Map:  # noqa: ARG002
        mean, _, axes = _principal(answers, self.components)
        return lambda g: (g - mean) @ axes.T


@dataclass(frozen=True)
class SignBits(AnswerMap):
    """Of each number, less its mean, the sign alone."""

    title = "sign bits"

    def fit(self, answers: Array, data: Data) -> Map:  # noqa: ARG002
        mean = answers.mean(0)
        return lambda g: np.where(g >= mean, 1.0, -1.0)


@dataclass(frozen=True)
class Classify(AnswerMap):
    """The outputs of a linear classifier on the answers, trained on the thief's labels.

    Attributes:
        output: "logits", less their mean over classes; "probabilities", their softmax; or "labels", one-hot.
    """

    title = "linear classifier"
    needs: ClassVar[Needs] = "labels"

    output: Literal["logits", "probabilities", "labels"] = "logits"

    def __post_init__(self) -> None:
        if self.output not in ("logits", "probabilities", "labels"):
            raise UsageError(f"output must be logits, probabilities or labels, not {self.output!r}")

    def fit(self, answers: Array, data: Data) -> Map:
        if data.labels is None:
            raise DataError(f"{data.spec} has no labels to train a classifier on")
        weights, intercepts = linear_classifier(answers, data.labels)
        if self.output == "labels":
            return lambda g: np.eye(len(intercepts))[(g @ weights + intercepts).argmax(1)]
        if self.output == "probabilities":
            return lambda g: softmax(g @ weights + intercepts, axis=1)
        weights, intercepts = weights - weights.mean(1, keepdims=True), intercepts - intercepts.mean()
        return lambda g: g @ weights + intercepts


@dataclass(frozen=True)
class SubtractFeatures(AnswerMap):
    """Generic random features of the answers' own leading components, fitted to the answers and taken off them.

    What the exact scheme adds is K features of that kind. With more of them than the answers have degrees of freedom
    the thief need not know which. Linear parts stay, and so does most of the accuracy.

    Attributes:
        components: q, leading components that the features read.
        features: how many random Fourier features.
        frequency: of the features over whitened components.
        ridge: penalty of the fit, as a share of the features' variance.
        seed: of the features.
    """

    title = "features subtracted"

    components: int = 12
    features: int = 800
    frequency: float = 1.5
    ridge: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.features < 1 or not self.frequency > 0 or not self.ridge >= 0:
            raise UsageError("features and frequency must be positive, ridge must not be negative")

    def fit(self, answers: Array, data: Data) -> Map:  # noqa: ARG002
        q = self.components
        mean, sizes, axes = _principal(answers, q)
        rng = np.random.default_rng(self.seed)
        frequencies = rng.standard_normal((q, self.features)) * (self.frequency / np.sqrt(q))
        phases = rng.uniform(0, 2 * np.pi, self.features)

        def components(g: Array) -> Array:
            return np.asarray((g - mean) @ axes.T / sizes)

        def raw(z: Array) -> Array:
            return np.asarray(np.cos(z @ frequencies + phases))

        z = components(answers)
        linear = np.hstack((np.ones((len(z), 1)), z))
        straight = np.linalg.lstsq(linear, raw(z), rcond=None)[0]
        bent = raw(z) - linear @ straight
        gram = bent.T @ bent
        gram += self.ridge * np.diag(gram).mean() * np.eye(self.features)
        weights = np.linalg.solve(gram, bent.T @ (answers - mean))

        def mapped(g: Array) -> Array:
            z = components(g)
            return np.asarray(g - (raw(z) - np.hstack((np.ones((len(z), 1)), z)) @ straight) @ weights)

        return mapped


@dataclass(frozen=True)
class SubtractStatistics(Mapping):
    """What a copy's answers tell linearly of the input's statistics taken off them: against the exact scheme's marks.

    The statistics are public (`encoders.statistics`), so their secret combinations cannot hide in them. What of them
    the task needs goes too.

    Attributes:
        ridge: penalty of the fit, as a share of the statistics' variance.
    """

    ridge: float = 1e-4

    def __call__(self, victim: Embedder, data: Data) -> Wrapped:
        """`victim` without them, fitted to the thief's items. Raises UsageError where no encoder stands behind it."""
        encoder = encoder_behind(victim)
        answers = np.asarray(embed_all(victim, data), dtype=np.float64)
        taken = self.fit(answers, all_statistics(encoder, data))

        def answer(batch: Batch) -> Array:
            found = rows(victim, batch).astype(np.float64)
            return np.asarray(found - taken(input_statistics(encoder, batch)) * found.any(axis=1, keepdims=True))

        return Wrapped(victim, answer, "statistics subtracted", asdict(self), f"statistics subtracted, {self.ridge}")

    def fit(self, answers: Array, statistics: Array) -> Map:
        """From statistics (n, 96) to what is taken off answers (n, m)."""
        mean, size = statistics.mean(0), statistics.std(0)
        size = np.where(size > 0, size, 1)
        z = (statistics - mean) / size
        gram = z.T @ z / len(z) + self.ridge * np.eye(z.shape[1])
        weights = np.linalg.solve(gram, z.T @ (answers - answers.mean(0)) / len(z))
        return lambda psi: np.asarray((psi - mean) / size @ weights)


def encoder_behind(victim: Embedder) -> Encoder:
    """The encoder that answers behind any wrappings, whose way of reading items the thief knows."""
    while isinstance(victim, Wrapped):
        victim = victim.victim
    if not isinstance(victim, Encoder):
        raise UsageError(f"this needs the thief's own encoder behind the answers, not a {type(victim).__name__}")
    return victim


def _answer(victim: Embedder, fitted: Map, batch: Batch) -> Array:
    answers = rows(victim, batch).astype(np.float64)
    # A missing answer, a row of zeros, stays one.
    return np.asarray(fitted(answers) * answers.any(axis=1, keepdims=True))


def _principal(answers: Array, components: int) -> tuple[Array, Array, Array]:
    """Mean (m,), standard deviations (q,) and axes (q, m) of the leading components."""
    mean = answers.mean(0)
    _, sizes, axes = np.linalg.svd(answers - mean, full_matrices=False)
    if not 1 <= components <= int((sizes > 1e-9 * max(sizes[0], 1e-300)).sum()):
        raise UsageError(f"components must lie between 1 and the rank of the answers, not be {components}")
    return mean, sizes[:components] / np.sqrt(len(answers)), axes[:components]
