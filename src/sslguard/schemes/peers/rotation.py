"""A rotation task as a watermark: a head of the owner's tells from an answer which way the image was turned.

Image x is turned by an angle θ, uniform in [0°, 360°); the head M says whether θ < 180°. F* and M are trained together,
and the statistic is the share of turned images that M∘suspect gets right.

    L = |F*(x) − F(x)|²/s² + w·CE(M(F*(R_θ x)), θ ≥ 180°),   s² the variance of F's answers.

The p-value beside it is that of as many tosses of a fair coin: the paper compares the accuracy with one half. It does
not bear a claim: one head is right about an innocent more or less often than half of the time, whatever the number of
queries, and innocent copies of F, which the head was trained beside, come nearest to F*.

Source: Dziedzic, Dhawan, Kaleem, Guan and Papernot, "On the Difficulty of Defending Self-Supervised Learning against
Model Extraction", ICML 2022 (arXiv 2205.07890). Deviations:

- A clean encoder is fine-tuned and held to its own answers; the paper trains encoder and head from scratch, with the
  contrastive loss in the place of |F* − F|². Batch norm stays in evaluation mode.
- The range of angles, the head's size, w and the budget are ours. Corners that a turn leaves empty are black.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder, embed_all
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import UsageError
from sslguard.schemes.base import Key, Score, Watermarked
from sslguard.schemes.peers.base import Peer, log2_pvalue
from sslguard.schemes.queries import QUERY_BATCH, as_bytes, drawn, gathered
from sslguard.settings import Count, Positive
from sslguard.training.base import Loop, Task, isolated_rng
from sslguard.training.loop import run

_SPREAD_ITEMS = 2000


@dataclass(frozen=True)
class Rotation(Peer):
    """The settings.

    Attributes:
        hidden: Width of the head's hidden layer.
        weight: W.
        steps, batch_size, learning_rate: Of the training; Adam's, annealed by half a cosine.
        n: Turned images that a verification asks.
    """

    name: ClassVar[str] = "rotation"
    trains: ClassVar[bool] = True

    hidden: Count = 128
    weight: Positive = 1.0
    steps: Count = 600
    batch_size: Count = 64
    learning_rate: Positive = 2e-3
    n: Count = 500

    def watermark(
        self, clean: Encoder, data: Data, *, secret: Secret, checkpoint: Path | None = None, **loop: Any
    ) -> Watermarked:
        """Train F* to answer rotated items separably; return it with its key. See `Scheme.watermark`."""
        del loop  # recorded results are those of the training loop's own defaults
        if not isinstance(clean.preprocess, ImagePreprocess):
            raise UsageError("a rotation task needs an encoder of images: texts cannot be turned")
        seed = secret.stream("training", weights_hash(clean.module).encode()).integer()
        task = RotationTask(self, clean, data, seed)
        training = Loop(self.steps, self.batch_size, seed=seed, title=self.name, checkpoint=checkpoint)
        history = run(task, training)
        record = {
            "made_by": self.name,
            "settings": asdict(self),
            "data": data.spec,
            "seconds": round(history.seconds, 1),
        }
        marked = replace(task.marked, source=f"rotation-marked {clean.source}", record=record)
        key = RotationKey(secret, clean.preprocess, task.head.eval().requires_grad_(False), clean.dim, self.n)
        return Watermarked(marked, key)


@dataclass(frozen=True, eq=False, repr=False)
class RotationKey(Key):
    """The head, and what turns images.

    Attributes:
        preprocess: The owner's, in whose frame images are turned.
        head: M, answers (n, width) → logits (n, 2).
    """

    scheme: ClassVar[str] = Rotation.name
    statistic_name: ClassVar[str] = "share of turns told right"

    secret: Secret
    preprocess: ImagePreprocess
    head: nn.Module
    width: int
    n: int

    @property
    def n_queries(self) -> int:
        """Number of queries that a verification asks."""
        return self.n

    def angles(self) -> NDArray[np.float64]:
        """Return θ of each query, degrees, (n,)."""
        return 360 * self.secret.stream("angles").uniform((self.n,))

    def queries(self, data: Data) -> Iterator[Tensor]:
        """Yield turned images as bytes."""
        order, angles = drawn(self.secret.stream("queries", data.spec.encode()), data, self.n), self.angles()
        for start in range(0, self.n, QUERY_BATCH):
            batch = data.take(order[start : start + QUERY_BATCH])
            degrees = torch.from_numpy(angles[start : start + QUERY_BATCH])
            turned_images = turned(self.preprocess.prepare(batch), degrees)
            yield as_bytes(self.preprocess.framed(turned_images, batch))

    def statistic(self, answers: Iterable[NDArray[np.floating]], data: Data) -> Score:  # noqa: ARG002
        """Share of queries whose half-turn the head tells, in [0, 1].

        Raises:
            SuspectError: The answers have another width than the head takes.
        """
        found = torch.from_numpy(gathered(answers, self.n, width=self.width)).float()
        with torch.inference_mode():
            right = int((self.head(found).argmax(1).numpy() == (self.angles() >= 180)).sum())
        published = stats.binomtest(right, self.n, alternative="greater").pvalue
        return Score(right / self.n, self.n, published_log2_pvalue=log2_pvalue(float(published)))


@dataclass(eq=False)
class _Microbatch:
    items: Tensor
    turned: Tensor
    labels: Tensor
    target: Tensor


class RotationTask(Task):
    """F* and M from F. Augmentation is the turning alone."""

    def __init__(self, peer: Rotation, clean: Encoder, data: Data, seed: int) -> None:
        self.peer, self.data, self.n_items = peer, data, len(data)
        self.clean, self.marked = clean.clone(), clean.clone()
        self.clean.module.eval().requires_grad_(False)
        self.marked.module.eval().requires_grad_(True)
        answers = embed_all(clean, data.slice(0, min(len(data), _SPREAD_ITEMS)))
        self._spread = float(answers.astype(np.float64).var(0).sum())
        with isolated_rng(seed):
            self.head = nn.Sequential(nn.Linear(clean.dim, peer.hidden), nn.ReLU(), nn.Linear(peer.hidden, 2))
        self.identity = {"peer": asdict(peer), "clean": weights_hash(clean.module), "data": data.identity()}
        self.modules = {"clean": self.clean.module, "marked": self.marked.module, "head": self.head}
        parameters = [*self.marked.module.parameters(), *self.head.parameters()]
        self.optimizers = {"marked": torch.optim.Adam(parameters, lr=peer.learning_rate)}

    def load(self, indices: NDArray[np.int64]) -> _Microbatch:
        """Return the prepared items, the same rotated at random, the labels and the clean answers."""
        items = self.marked.prepare(self.data.take(indices))
        angles = 360 * torch.rand(len(items), device=items.device)
        with torch.no_grad():
            return _Microbatch(items, turned(items, angles), (angles >= 180).long(), self.clean.forward(items).float())

    def begin_step(self, step: int, steps: int) -> None:
        """Set the networks' modes and the learning rates for a step."""
        self.clean.module.eval()
        self.marked.module.eval()
        self.anneal(step, steps)

    def loss(self, microbatch: _Microbatch) -> Tensor:
        """Return the loss of the marked encoder and the head."""
        answers = self.marked.forward(microbatch.items).float()
        kept = (answers - microbatch.target).square().sum(1).mean() / self._spread
        told = nnf.cross_entropy(self.head(self.marked.forward(microbatch.turned).float()), microbatch.labels)
        return kept + self.peer.weight * told


def turned(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn images (n, C, H, W) in [0, 1], each by its own angle (n,); what lies outside is black."""
    from kornia.geometry.transform import rotate

    return rotate(images, degrees.to(images)).clamp(0, 1)
