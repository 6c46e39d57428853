"""Mappings of answers, which a thief puts behind its copy so that it no longer answers in the victim's space.

A secret linear map, fewer dimensions, one bit a number, a classifier's outputs in place of embeddings, or the
subtraction of parts in which a nonlinear mark could lie. A mapping that needs data is fitted to the thief's own items.
Afterwards it is a fixed function of one answer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2, vq
from scipy.special import softmax

from sslguard.attacks.base import Mapping, Needs
from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Embedder, Encoder, embed_all
from sslguard.encoders.wrapped import Wrapped, rows
from sslguard.errors import DataError, EncoderError, UsageError
from sslguard.probes.linear import linear_classifier
from sslguard.schemes.exact.features import all_statistics, input_statistics
from sslguard.settings import Count, NotNegative, Positive, Range, Seed

Array = NDArray[np.float64]
Map = Callable[[Array], Array]

_ROUNDS = 10  # of k-means


class AnswerMap(Mapping):
    """Mapping that computes each new answer from the old answer alone. Subclasses are frozen dataclasses."""

    title: ClassVar[str]

    def __call__(self, victim: Embedder, data: Data) -> Wrapped:
        """Fit the map and return `victim` with mapped answers: float64 (n, m').

        A missing answer, which is a row of zeros, stays a row of zeros. See `Mapping`.
        """
        answers = np.asarray(embed_all(victim, data), dtype=np.float64)
        fitted = self.fit(answers, data)
        settings = asdict(self)  # type: ignore[call-overload]
        said = ", ".join([self.title, *(f"{name} {value}" for name, value in settings.items())])
        width = fitted(answers[:1]).shape[1]
        return Wrapped(victim, partial(_answer, victim, fitted), self.title, settings, said, width)

    @abstractmethod
    def fit(self, answers: Array, data: Data) -> Map:
        """Fit the map.

        Args:
            answers: The victim's answers to `data`, float64 (n, m).
            data: Items of the attacker's own.

        Returns:
            Function from answers (k, m) to mapped answers (k, m').
        """


@dataclass(frozen=True)
class LinearMap(AnswerMap):
    """Subtract the mean and apply an invertible linear map with secret singular vectors.

    The singular values fall geometrically from 1 to 1/condition.

    Attributes:
        condition: Largest singular value over the smallest, at least 1; 1 is a rotation.
        rectify: Whether to replace negative numbers of the mapped answers by zero.
        dimensions: How many of the mapped answers' numbers are given; 0 for all.
        seed: Seed of the singular vectors.
    """

    title = "linear map"

    condition: Annotated[float, Range(least=1)] = 1.0
    rectify: bool = False
    dimensions: Seed = 0
    seed: Seed = 0

    def fit(self, answers: Array, data: Data) -> Map:  # noqa: ARG002
        """Return the linear map, with the mean of `answers`. See `AnswerMap.fit`."""
        rng, m = np.random.default_rng(self.seed), answers.shape[1]
        left, right = (np.linalg.qr(rng.standard_normal((m, m)))[0] for _ in range(2))
        matrix, mean = (left * np.geomspace(1, 1 / self.condition, m)) @ right, answers.mean(0)
        matrix = matrix[:, : self.dimensions or m]
        if self.rectify:
            return lambda g: np.maximum((g - mean) @ matrix, 0)
        return lambda g: (g - mean) @ matrix


@dataclass(frozen=True)
class LeadingComponents(AnswerMap):
    """Replace each answer by its leading principal components.

    Attributes:
        components: Number of components to keep; at most the rank of the answers.
    """

    title = "leading components"

    components: Count = 32

    def fit(self, answers: Array, data: Data) -> Map:  # noqa: ARG002
        """Return the projection onto the leading components of `answers`. See `AnswerMap.fit`."""
        mean, _, axes = _principal(answers, self.components)
        return lambda g: (g - mean) @ axes.T


@dataclass(frozen=True)
class SignBits(AnswerMap):
    """Subtract the mean and replace each number by its sign, 1 or −1."""

    title = "sign bits"

    def fit(self, answers: Array, data: Data) -> Map:  # noqa: ARG002
        """Return the map to signs, with the mean of `answers`. See `AnswerMap.fit`."""
        mean = answers.mean(0)
        return lambda g: np.where(g >= mean, 1.0, -1.0)


@dataclass(frozen=True)
class ProductQuantise(AnswerMap):
    """Cut each answer into parts, and replace each part by its nearest codeword, as compressed indexes do.

    Attributes:
        parts: Number of parts, at most the width of the answers.
        codewords: Number of codewords of each part; with 256 a part takes one byte.
        seed: Seed of k-means, which finds the codewords of each part among the items' own.

    Source: Jégou et al. 2011, "Product quantization for nearest neighbor search".
    """

    title = "product quantisation"

    parts: Count = 16
    codewords: Annotated[int, Range(least=2, most=65536)] = 256
    seed: Seed = 0

    def fit(self, answers: Array, data: Data) -> Map:
        """Find the codewords. See `AnswerMap.fit`.

        Raises:
            DataError: There are fewer items than codewords.
            EncoderError: The answers are narrower than the number of parts.
        """
        if len(answers) < self.codewords:
            raise DataError(
                f"{data.spec} has {len(answers)} items: give at least as many as codewords, {self.codewords}"
            )
        if answers.shape[1] < self.parts:
            raise EncoderError(f"answers of width {answers.shape[1]} have no {self.parts} parts: set fewer")
        rng = np.random.default_rng(self.seed)
        books = [
            kmeans2(part, self.codewords, iter=_ROUNDS, minit="points", missing="warn", rng=rng)[0]
            for part in np.array_split(answers, self.parts, axis=1)
        ]

        def nearest(g: Array) -> Array:
            parts = np.array_split(g, self.parts, axis=1)
            return np.hstack([book[vq(part, book)[0]] for part, book in zip(parts, books, strict=True)])

        return nearest


@dataclass(frozen=True)
class Classify(AnswerMap):
    """Replace each answer by the output of a linear classifier, trained on the thief's labels.

    Attributes:
        output: "logits" minus their mean over classes; "probabilities", the softmax; or "labels", one-hot.
        digits: Digits that probabilities are rounded to; 0 for all.
    """

    title = "linear classifier"
    needs: ClassVar[Needs] = "labels"

    output: Literal["logits", "probabilities", "labels"] = "logits"
    digits: Seed = 0

    def fit(self, answers: Array, data: Data) -> Map:
        """Train the classifier and return the map to its output.

        Raises:
            DataError: `data` has no labels.
        """
        if data.labels is None:
            raise DataError(f"{data.spec} has no labels to train a classifier on")
        weights, intercepts = linear_classifier(answers, data.labels)
        if self.output == "labels":
            return lambda g: np.eye(len(intercepts))[(g @ weights + intercepts).argmax(1)]
        if self.output == "probabilities":
            if self.digits:
                return lambda g: np.round(softmax(g @ weights + intercepts, axis=1), self.digits)
            return lambda g: softmax(g @ weights + intercepts, axis=1)
        weights, intercepts = weights - weights.mean(1, keepdims=True), intercepts - intercepts.mean()
        return lambda g: g @ weights + intercepts


@dataclass(frozen=True)
class SubtractFeatures(AnswerMap):
    """Fit generic random features of the answers' leading components to the answers, and subtract the fit.

    The exact scheme adds K features of this kind as its mark. With more features than the answers have degrees of
    freedom, the thief need not know which. The linear part of the answers stays, and with it most of the accuracy.

    Attributes:
        components: Number q of leading components that the features read.
        features: Number of random Fourier features.
        frequency: Frequency of the features over whitened components, positive.
        ridge: Ridge penalty of the fit, as a share of the features' mean variance; at least 0.
        seed: Seed of the features.
    """

    title = "features subtracted"

    components: Count = 12
    features: Count = 800
    frequency: Positive = 1.5
    ridge: NotNegative = 1e-3
    seed: Seed = 0

    def fit(self, answers: Array, data: Data) -> Map:  # noqa: ARG002
        """Return the map that subtracts the fitted features. See `AnswerMap.fit`."""
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
        weights = ridge_fit(bent, answers - mean, self.ridge)

        def mapped(g: Array) -> Array:
            z = components(g)
            return np.asarray(g - (raw(z) - np.hstack((np.ones((len(z), 1)), z)) @ straight) @ weights)

        return mapped


@dataclass(frozen=True)
class SubtractStatistics(Mapping):
    """Predict the answers linearly from statistics of the input, and subtract the prediction.

    This targets the exact scheme, whose marks are secret combinations of these statistics. The statistics themselves
    (`all_statistics`) are public. The attack also subtracts whatever the task needs of them.

    Attributes:
        ridge: Ridge penalty of the fit, as a share of the statistics' variance.
        share: Share of the prediction that is subtracted, in (0, 1]: less keeps more accuracy.
    """

    ridge: NotNegative = 1e-4
    share: Annotated[float, Range(above=0, most=1)] = 1.0

    def __call__(self, victim: Embedder, data: Data) -> Wrapped:
        """Fit the prediction on `data` and return `victim` with it subtracted: answers are float64 (n, m).

        Raises:
            UsageError: No encoder stands behind `victim`.
        """
        encoder = encoder_behind(victim)
        answers = np.asarray(embed_all(victim, data), dtype=np.float64)
        fitted = self.fit(answers, all_statistics(encoder, data))

        def taken(statistics: Array) -> Array:
            return self.share * fitted(statistics)

        def answer(batch: Batch) -> Array:
            found = rows(victim, batch).astype(np.float64)
            return np.asarray(found - taken(input_statistics(encoder, batch)) * found.any(axis=1, keepdims=True))

        said = f"statistics subtracted, {self.ridge}, {self.share}"
        return Wrapped(victim, answer, "statistics subtracted", asdict(self), said)

    def fit(self, answers: Array, statistics: Array) -> Map:
        """Fit the prediction of answers from statistics.

        Args:
            answers: The victim's answers, float64 (n, m).
            statistics: Input statistics of the same items, float64 (n, p).

        Returns:
            Function from statistics (k, p) to what is subtracted from the answers, (k, m).
        """
        mean, size = statistics.mean(0), statistics.std(0)
        size = np.where(size > 0, size, 1)
        z = (statistics - mean) / size
        gram = z.T @ z / len(z) + self.ridge * np.eye(z.shape[1])
        weights = np.linalg.solve(gram, z.T @ (answers - answers.mean(0)) / len(z))
        return lambda psi: np.asarray((psi - mean) / size @ weights)


def ridge_fit(features: Array, targets: Array, ridge: float) -> Array:
    """Return weights (k, m) with features @ weights near the targets.

    Args:
        features: Shape (n, k).
        targets: Shape (n, m).
        ridge: Penalty, as a share of the features' mean square.
    """
    gram = features.T @ features / len(features)
    gram += ridge * np.diag(gram).mean() * np.eye(len(gram))
    return np.asarray(np.linalg.solve(gram, features.T @ targets / len(features)))


def encoder_behind(victim: Embedder) -> Encoder:
    """Return the encoder that answers behind any wrappings. Attacks prepare items in the same way as it does.

    Raises:
        UsageError: `victim` is not an Encoder, wrapped or not.
    """
    while isinstance(victim, Wrapped):
        victim = victim.victim
    if not isinstance(victim, Encoder):
        raise UsageError(
            "this attack prepares items as the victim's own encoder does: the victim must be an Encoder, wrapped or "
            f"not, not a {type(victim).__name__}; steal from it first"
        )
    return victim


def _answer(victim: Embedder, fitted: Map, batch: Batch) -> Array:
    answers = rows(victim, batch).astype(np.float64)
    # A missing answer, which is a row of zeros, stays a row of zeros.
    return np.asarray(fitted(answers) * answers.any(axis=1, keepdims=True))


def _principal(answers: Array, components: int) -> tuple[Array, Array, Array]:
    """Return the mean (m,), the standard deviations (q,) and the axes (q, m) of the leading components."""
    mean = answers.mean(0)
    _, sizes, axes = np.linalg.svd(answers - mean, full_matrices=False)
    rank = int((sizes > 1e-9 * max(sizes[0], 1e-300)).sum())
    if not 1 <= components <= rank:
        raise UsageError(f"components must lie between 1 and {rank}, the rank of the answers, not be {components}")
    return mean, sizes[:components] / np.sqrt(len(answers)), axes[:components]
