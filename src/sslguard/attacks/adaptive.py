"""Mappings of a thief who knows how marks work and not the key.

See also `mapping.SubtractFeatures` and `SubtractStatistics`, `inputs.Smoothed`, and `removal.Overwrite` by a scheme at
a larger ε.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist
from torch import Tensor

from sslguard.attacks.base import Mapping
from sslguard.attacks.mapping import AnswerMap, Map, encoder_behind
from sslguard.attacks.outputs import unit
from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Embedder, Encoder, embed_all
from sslguard.encoders.load import load_encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.statistics import all_statistics, input_statistics
from sslguard.encoders.wrapped import Wrapped, rows
from sslguard.errors import UsageError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ProjectOnto(Mapping):
    """What an innocent encoder's features tell linearly of the copy's answers, in their place.

    A mark that is no linear function of those features is gone; so is whatever else the copy alone could do.

    Attributes:
        encoder: specification of the innocent one.
        ridge: penalty of the fit, as a share of the features' variance.
    """

    encoder: str
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise UsageError(f"ridge must be positive, not {self.ridge}")

    def __call__(self, victim: Embedder, data: Data) -> Wrapped:
        """The prediction, float64 (n, m), m the victim's. The victim itself answers no more."""
        innocent = load_encoder(self.encoder)
        answers = np.asarray(embed_all(victim, data), dtype=np.float64)
        features = np.asarray(embed_all(innocent, data), dtype=np.float64)
        mean, centre = answers.mean(0), features.mean(0)
        z = features - centre
        gram = z.T @ z / len(z)
        gram += self.ridge * np.diag(gram).mean() * np.eye(len(gram))
        weights = np.linalg.solve(gram, z.T @ (answers - mean) / len(z))

        def answer(batch: Batch) -> Array:
            return np.asarray((rows(innocent, batch) - centre) @ weights + mean)

        said = f"as {self.encoder} predicts it"
        return Wrapped(victim, answer, "projected", asdict(self), said, answers.shape[1])


@dataclass(frozen=True)
class CSE(AnswerMap):
    """Cluster, select, eliminate: leading directions of those answers that lie oddly to each other are taken off.

    Source: Shetty et al. 2024, WARDEN, ACL, against backdoors that move some answers towards a target. Answers at
    length 1 are clustered by k-means; within a cluster those pairs are selected whose cosine differs most from what
    an innocent encoder makes of them; the leading singular directions of the items in such pairs are taken off every
    answer, which is put back to length 1. Rebuilt from its abstract: how pairs are compared, and what share of them is
    selected, are ours; a cluster is looked at through at most 2,000 of its items.

    Attributes:
        encoder: specification of the innocent one.
        components: K, directions taken off; the answers must be wider.
        clusters: of k-means.
        share: of the pairs of a cluster that are selected.
        seed: of k-means.
    """

    title = "CSE"

    encoder: str
    components: int = 50
    clusters: int = 20
    share: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.components, self.clusters) < 1 or not 0 < self.share <= 1:
            raise UsageError("components and clusters must be positive, and share lie in (0, 1]")

    def fit(self, answers: Array, data: Data) -> Map:
        if not self.components < answers.shape[1]:
            raise UsageError(f"components must be fewer than the {answers.shape[1]} of an answer: {self.components}")
        if not self.clusters <= len(answers):
            raise UsageError(f"{self.clusters} clusters need as many items; there are {len(answers)}")
        innocent = unit(np.asarray(embed_all(load_encoder(self.encoder), data), dtype=np.float64))
        suspected = self._suspected(unit(answers), innocent)
        axes = np.linalg.svd(unit(answers)[suspected], full_matrices=False)[2][: self.components]
        return lambda g: unit(unit(g) - unit(g) @ axes.T @ axes)

    def _suspected(self, own: Array, innocent: Array) -> NDArray[np.int64]:
        """Indices of the items in selected pairs."""
        rng = np.random.default_rng(self.seed)
        _, cluster = kmeans2(own, self.clusters, minit="++", rng=rng)
        found = []
        for k in range(self.clusters):
            (members,) = np.nonzero(cluster == k)
            members = rng.permutation(members)[:2000]
            first, second = np.triu_indices(len(members), 1)
            apart = np.abs(own[members] @ own[members].T - innocent[members] @ innocent[members].T)[first, second]
            most = np.argsort(-apart, kind="stable")[: int(np.ceil(self.share * len(apart)))]
            found += [members[first[most]], members[second[most]]]
        return np.unique(np.concatenate(found)).astype(np.int64)


@dataclass(frozen=True)
class RemoveTriggers(Mapping):
    """Triggers sought on the thief's own copy, and the directions in which they move its answers taken off these.

    Mask m (one value a pixel, in [0, 1]) and pattern p minimise −c̄(e(x'), mean e(x')) + w·mean m over triggered images
    x' = (1 − m)·x + m·p: what a trigger does to an encoder is to make its answers alike. Source: after Neural Cleanse
    (Wang et al. 2019), and DECREE (Feng et al. 2023), which seeks triggers of encoders by that likeness. Deviations:
    the mask is penalised by its mean at a fixed weight, and nothing is unlearned.

    Attributes:
        triggers: how many are sought, each from a start of its own.
        steps, batch_size, learning_rate: of Adam's on m and p.
        sparsity: w.
        seed: of starts and batches.
    """

    triggers: int = 3
    steps: int = 200
    batch_size: int = 32
    learning_rate: float = 0.1
    sparsity: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.triggers, self.steps) < 1 or self.batch_size < 2 or not self.learning_rate > 0:
            raise UsageError("triggers, steps and learning_rate must be positive, batch_size at least 2")
        if not self.sparsity >= 0:
            raise UsageError(f"sparsity must not be negative, but is {self.sparsity}")

    def __call__(self, victim: Embedder, data: Data) -> Wrapped:
        """`victim` without those directions: float64 (n, m). Raises UsageError unless it is an encoder of images."""
        if not isinstance(victim, Encoder) or not isinstance(victim.preprocess, ImagePreprocess):
            raise UsageError("triggers are sought on the weights of an encoder of images: put no change before this")
        copy, rng = victim.clone(), np.random.default_rng(self.seed)
        copy.module.eval().requires_grad_(False)
        moved = [self._moved(copy, data, rng) for _ in range(self.triggers)]
        axes = np.linalg.svd(np.stack(moved), full_matrices=False)[2]
        mean = np.asarray(embed_all(victim, data), dtype=np.float64).mean(0)

        def answer(batch: Batch) -> Array:
            g = rows(victim, batch).astype(np.float64)
            return np.asarray(g - (g - mean) @ axes.T @ axes * g.any(axis=1, keepdims=True))

        said = f"directions of {self.triggers} triggers taken off"
        return Wrapped(victim, answer, "triggers removed", asdict(self), said, victim.dim)

    def _moved(self, encoder: Encoder, data: Data, rng: np.random.Generator) -> Array:
        """The direction, (m,) of length 1, in which a trigger that is sought here moves answers on average."""
        shape = encoder.prepare(data.take([0])).shape[1:]
        start = rng.standard_normal((2, *shape))
        mask = torch.tensor(0.1 * start[0, :1] - 2, dtype=torch.float32, device=encoder.device, requires_grad=True)
        pattern = torch.tensor(start[1], dtype=torch.float32, device=encoder.device, requires_grad=True)
        optimizer = torch.optim.Adam([mask, pattern], lr=self.learning_rate)
        for _ in range(self.steps):
            m, p = mask.sigmoid(), pattern.sigmoid()
            answers = encoder.forward((1 - m) * self._some(encoder, data, rng) + m * p)
            alike = nnf.cosine_similarity(answers, answers.mean(0, keepdim=True), dim=1).mean()
            optimizer.zero_grad()
            (self.sparsity * m.mean() - alike).backward()
            optimizer.step()
        with torch.no_grad():
            x, m, p = self._some(encoder, data, rng), mask.sigmoid(), pattern.sigmoid()
            moved = (encoder.forward((1 - m) * x + m * p) - encoder.forward(x)).mean(0)
        return unit(moved.double().cpu().numpy()[None])[0]

    def _some(self, encoder: Encoder, data: Data, rng: np.random.Generator) -> Tensor:
        size = min(self.batch_size, len(data))
        return encoder.prepare(data.take(rng.choice(len(data), size, replace=False)))


@dataclass(frozen=True)
class FilterQueries(Mapping):
    """Queries unlike the thief's own items are not answered as themselves: against triggers put on images.

    Unlike are those whose input statistics (`encoders.statistics`) lie farther from the mean of the thief's, in
    standard deviations, than a share of its own items do. The mean and the deviations are those of every other item,
    the share that of the items between them: what fits itself lies nearer.

    Attributes:
        kept: share of items like the thief's that pass, in (0, 1).
        instead: "nothing", a row of zeros, or the answer to the "nearest" of the thief's items.
    """

    kept: float = 0.99
    instead: Literal["nothing", "nearest"] = "nearest"

    def __post_init__(self) -> None:
        if not 0 < self.kept < 1:
            raise UsageError(f"kept must lie between 0 and 1, not {self.kept}")
        if self.instead not in ("nothing", "nearest"):
            raise UsageError(f"instead must be nothing or nearest, not {self.instead!r}")

    def __call__(self, victim: Embedder, data: Data) -> Wrapped:
        """`victim` behind the filter: (n, m). Raises UsageError where no encoder stands behind it."""
        encoder = encoder_behind(victim)
        own, statistics = embed_all(victim, data), all_statistics(encoder, data)
        if len(data) < 4:
            raise UsageError(f"a filter needs at least 4 items to know what is ordinary; {data.spec} has {len(data)}")
        mean = statistics[::2].mean(0)
        values, axes = np.linalg.eigh(np.cov(statistics[::2].T))
        held = values > 1e-6 * values[-1]
        whitener = axes[:, held] / np.sqrt(values[held])
        whitened = (statistics - mean) @ whitener
        farthest = np.quantile(np.linalg.norm(whitened[1::2], axis=1), self.kept)

        def answer(batch: Batch) -> NDArray[np.floating]:
            z = (input_statistics(encoder, batch) - mean) @ whitener
            odd = np.linalg.norm(z, axis=1) > farthest
            answers = rows(victim, batch).copy()
            answers[odd] = own[cdist(z[odd], whitened).argmin(1)] if self.instead == "nearest" else 0
            return answers

        said = f"queries beyond {self.kept:g} answered with {self.instead}"
        return Wrapped(victim, answer, "queries filtered", asdict(self), said, own.shape[1])
