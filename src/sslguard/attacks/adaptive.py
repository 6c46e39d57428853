"""Mappings by an attacker who knows how marks work but does not know the key.

Related attacks elsewhere: `mapping.SubtractFeatures`, `mapping.SubtractStatistics`, `inputs.Smoothed`, and
`removal.Overwrite` by a scheme with a larger ε.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist
from torch import Tensor

from sslguard.attacks.base import Mapping
from sslguard.attacks.mapping import AnswerMap, Map, encoder_behind, ridge_fit
from sslguard.attacks.outputs import unit
from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Embedder, Encoder, embed_all
from sslguard.encoders.load import load_encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.wrapped import Wrapped, rows
from sslguard.errors import UsageError
from sslguard.schemes.exact.features import all_statistics, input_statistics
from sslguard.settings import Count, NotNegative, Positive, Range, Seed, Share

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ProjectOnto(Mapping):
    """Replace each answer by its linear prediction from the features of an innocent encoder.

    This removes every mark that is not a linear function of those features. It also removes everything else that only
    the copy could do.

    Attributes:
        encoder: Specification of the innocent encoder.
        ridge: Ridge penalty of the fit, as a share of the features' mean variance; positive.
    """

    encoder: str
    ridge: Positive = 1e-3

    def __call__(self, victim: Embedder, data: Data) -> Wrapped:
        """Return the prediction as an Embedder: answers are float64 (n, m), with m the victim's width.

        The victim answers `data` once, for the fit, and no query afterwards.
        """
        innocent = load_encoder(self.encoder)
        answers = np.asarray(embed_all(victim, data), dtype=np.float64)
        features = np.asarray(embed_all(innocent, data), dtype=np.float64)
        mean, centre = answers.mean(0), features.mean(0)
        weights = ridge_fit(features - centre, answers - mean, self.ridge)

        def answer(batch: Batch) -> Array:
            return np.asarray((rows(innocent, batch) - centre) @ weights + mean)

        said = f"as {self.encoder} predicts it"
        return Wrapped(victim, answer, "projected", asdict(self), said, answers.shape[1])


@dataclass(frozen=True)
class CSE(AnswerMap):
    """Remove leading directions of suspicious answers: cluster, select, eliminate.

    Source: Shetty et al. 2024, WARDEN, ACL, against backdoors that move some answers towards a target. Answers are
    scaled to length 1 and clustered by k-means. Within each cluster, the attack selects those pairs of items whose
    cosine differs most from the cosine that an innocent encoder gives them. It then subtracts the leading singular
    directions of the selected items from every answer and scales the result to length 1 again. Rebuilt from the paper's
    abstract: how pairs are compared, and the share that is selected, are our choice. At most 2,000 items of a cluster
    are compared.

    Attributes:
        encoder: Specification of the innocent encoder.
        components: Number of directions to subtract (K in the paper); less than the width of the answers.
        clusters: Number of k-means clusters; at most the number of items.
        share: Share of a cluster's pairs to select, in (0, 1].
        seed: Seed of k-means, and of the draw within large clusters.
    """

    title = "CSE"

    encoder: str
    components: Count = 50
    clusters: Count = 20
    share: Annotated[float, Range(above=0, most=1)] = 0.05
    seed: Seed = 0

    def fit(self, answers: Array, data: Data) -> Map:
        """Return the map that subtracts the suspicious directions. See `AnswerMap.fit`."""
        if not self.components < answers.shape[1]:
            raise UsageError(f"components must be less than the answers' width {answers.shape[1]}: {self.components}")
        if not self.clusters <= len(answers):
            raise UsageError(f"clusters must be at most the number of items, {len(answers)}, not {self.clusters}")
        innocent = unit(np.asarray(embed_all(load_encoder(self.encoder), data), dtype=np.float64))
        suspected = self._suspected(unit(answers), innocent)
        axes = np.linalg.svd(unit(answers)[suspected], full_matrices=False)[2][: self.components]
        return lambda g: unit(unit(g) - unit(g) @ axes.T @ axes)

    def _suspected(self, own: Array, innocent: Array) -> NDArray[np.int64]:
        """Return the indices of all items in selected pairs, ascending."""
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
    """Search for triggers on the thief's own copy, and subtract the directions in which they move answers.

    A trigger makes an encoder's answers alike. The attack searches for a mask m (one value a pixel, in [0, 1]) and a
    pattern p that minimise −c̄(e(x'), mean e(x')) + w·mean m over triggered images x' = (1 − m)·x + m·p.

    Source: after Neural Cleanse (Wang et al. 2019) and DECREE (Feng et al. 2023), which searches for triggers of
    encoders by that likeness. Deviations: the penalty on the mask is its mean times a fixed weight, and the encoder is
    not trained to forget the triggers.

    Attributes:
        triggers: Number of triggers to search for, each from its own random start.
        steps: Optimiser steps of Adam on m and p, for each trigger.
        batch_size: Images a step, at least 2.
        learning_rate: Learning rate of Adam, positive.
        sparsity: Weight w of the penalty on the mask, at least 0.
        seed: Seed of the starts and the batches.
    """

    triggers: Count = 3
    steps: Count = 200
    batch_size: Annotated[int, Range(least=2)] = 32
    learning_rate: Positive = 0.1
    sparsity: NotNegative = 0.5
    seed: Seed = 0

    def __call__(self, victim: Embedder, data: Data) -> Wrapped:
        """Return `victim` without the triggers' directions: answers are float64 (n, m).

        Raises:
            UsageError: `victim` is not an image encoder whose weights can be read.
        """
        if not isinstance(victim, Encoder) or not isinstance(victim.preprocess, ImagePreprocess):
            raise UsageError(
                f"RemoveTriggers needs the weights of an image encoder, not a {type(victim).__name__}: "
                "put it before any wrapping or mapping"
            )
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
        """Search for one trigger and return the mean direction in which it moves answers: (m,), of length 1."""
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
    """Refuse queries that do not look like the thief's own items.

    This targets marks that are read with triggered images. A query is refused when its input statistics
    (`all_statistics`) lie too far from the mean of the thief's items, measured in standard deviations. The mean and the
    deviations come from every second item. The threshold comes from the items between them: items that the mean was
    fitted to lie closer and would set it too low.

    Attributes:
        kept: Share of items like the thief's that pass, in (0, 1).
        instead: Answer to a refused query: "nothing" (a row of zeros), or the answer to the "nearest" of the thief's
            items.
    """

    kept: Share = 0.99
    instead: Literal["nothing", "nearest"] = "nearest"

    def __call__(self, victim: Embedder, data: Data) -> Wrapped:
        """Return `victim` behind the filter: answers are (n, m).

        Raises:
            UsageError: No encoder stands behind `victim`, or `data` has fewer than 4 items.
        """
        encoder = encoder_behind(victim)
        own, statistics = embed_all(victim, data), all_statistics(encoder, data)
        if len(data) < 4:
            raise UsageError(f"FilterQueries needs at least 4 items to fit to; {data.spec} has {len(data)}")
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
