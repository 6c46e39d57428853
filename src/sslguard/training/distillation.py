"""Learning an encoder from another's answers: the recipes that thieves, shadow encoders and controls share.

Only `Embedder.embed` of the teacher is used. Without augmentation each query is asked once and its answer kept;
with it, `views` says what is asked and what is learned from. Several processes share one another's answers. A
killed run that is resumed asks again for the answers that it kept.

Source: the cosine loss is SSLGuard's own (L_s, Cong et al. 2022); for the attacks that combine losses and views see
`attacks.stealing`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Data
from sslguard.encoders.base import EMBED_BATCH, Embedder, Encoder, embed_all
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import EncoderError, UsageError
from sslguard.training import (
    History,
    Loop,
    Task,
    Update,
    cosine_schedule,
    isolated_rng,
    run,
    set_learning_rate,
    shared,
)
from sslguard.training.augmentation import MILD, Augmentation
from sslguard.training.pretraining import new_encoder

Loss = Literal["cosine", "centred", "mse", "infonce", "cont-steal", "rda"]
LOSSES: tuple[Loss, ...] = ("cosine", "centred", "mse", "infonce", "cont-steal", "rda")
Views = Literal["asked", "other", "local", "prototype"]
VIEWS: tuple[Views, ...] = ("asked", "other", "local", "prototype")


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """−mean cosine of rows of two (n, d) batches: scalar in [−1, 1]."""
    return -nnf.cosine_similarity(student, teacher, dim=1).mean()


def centred_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """−mean cosine once the teacher's batch mean is taken off both: scalar in [−1, 1].

    Embeddings behind a ReLU share a large mean, which a plain cosine mostly measures; a thief can subtract it.
    """
    mean = teacher.mean(0)
    return -nnf.cosine_similarity(student - mean, teacher - mean, dim=1).mean()


def mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error relative to the teacher's mean square, so that its scale sets no learning rate."""
    return nnf.mse_loss(student, teacher) / teacher.square().mean().clamp_min(1e-12)


def infonce_loss(student: Tensor, teacher: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of picking one's own teacher row among the batch's by cosine: scalar."""
    logits = nnf.normalize(student, dim=1) @ nnf.normalize(teacher, dim=1).T / temperature
    return nnf.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def cont_steal_loss(student: Tensor, teacher: Tensor, *, temperature: float = 0.5) -> Tensor:
    """InfoNCE in which the student's other rows are negatives too: scalar (Sha et al. 2023).

    Deviation: the positive pair stands in the denominator as well, so that the loss has a least value.
    """
    own = nnf.normalize(student, dim=1)
    to_own, to_teacher = own @ own.T, own @ nnf.normalize(teacher, dim=1).T
    itself = torch.eye(len(own), dtype=torch.bool, device=own.device)
    logits = torch.cat([to_teacher, to_own.masked_fill(itself, -torch.inf)], 1) / temperature
    return nnf.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def rda_loss(student: Tensor, teacher: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Rows told apart by InfoNCE, and pairs aligned in amplitude (MSE) and in angle (cosine): scalar."""
    apart = infonce_loss(student, teacher, temperature=temperature)
    return apart + mse_loss(student, teacher) + cosine_loss(student, teacher)


_LOSS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine_loss,
    "centred": centred_loss,
    "mse": mse_loss,
}
_CONTRASTIVE: dict[str, Callable[..., Tensor]] = {
    "infonce": infonce_loss,
    "cont-steal": cont_steal_loss,
    "rda": rda_loss,
}


@dataclass(frozen=True)
class Distillation:
    """A recipe of learning from answers.

    Attributes:
        architecture: the student's network; see `encoders.architectures`.
        loss: "cosine", "centred", "mse", "infonce", "cont-steal" or "rda".
        augmentation: of random views; None asks each query once, as it is, and learns from it.
        steps, batch_size: optimiser steps, items a step.
        learning_rate, weight_decay: AdamW's.
        anneal: half a cosine to 0 (after 5 % of warm-up); else constant.
        views: of an augmentation,
            "asked": each step asks a view of each item and learns from that view;
            "other": each step asks a view of each item and learns from another;
            "local": each item is asked once, as it is, and its answer learned for itself and for a new view a step;
            "prototype": `asked_views` views of each item are asked before training, and the mean of their answers is
            learned for a new view a step.
        asked_views: of a prototype.
        view_weight: of the view's loss beside the item's own, under "local".
        temperature: of the contrastive losses.
    """

    architecture: str = "resnet-small"
    loss: Loss = "cosine"
    augmentation: Augmentation | None = None
    steps: int = 400
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    anneal: bool = True
    views: Views = "asked"
    asked_views: int = 1
    view_weight: float = 1.0
    temperature: float = 0.1

    def __post_init__(self) -> None:
        for name, allowed in (("loss", LOSSES), ("views", VIEWS)):
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.steps < 1 or self.batch_size < 1 or self.learning_rate <= 0:
            raise UsageError("steps, batch_size and learning_rate must be positive")
        if self.asked_views < 1 or not (self.view_weight > 0 and self.temperature > 0):
            raise UsageError("asked_views, view_weight and temperature must be positive")
        if self.augmentation is None and self.views != "asked":
            raise UsageError(f"views {self.views!r} are made by an augmentation: give one")

    @property
    def asks_items(self) -> bool:
        """Whether each item is asked once, as it is, and nothing else."""
        return self.augmentation is None or self.views == "local"

    def n_queries(self, n_items: int) -> int:
        """Answers that an unbroken run asks for when the query set has `n_items`.

        Before any views comes one that shows how wide the teacher's answers are.
        """
        if self.asks_items:
            return n_items
        return 1 + (n_items * self.asked_views if self.views == "prototype" else self.steps * self.batch_size)


class DistillationTask(Task):
    """The student's side of a recipe. `student` is trained in place.

    Args:
        answers: what `answers_before` gave, where it was asked already.
    """

    def __init__(
        self,
        recipe: Distillation,
        teacher: Embedder,
        student: Encoder,
        queries: Data,
        *,
        answers: NDArray[np.floating] | None = None,
    ) -> None:
        self.recipe, self.teacher, self.student, self.queries = recipe, teacher, student, queries
        self.n_items = len(queries)
        self.modules = {"student": student.module}
        self.optimizers = {
            "student": torch.optim.AdamW(
                student.module.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
            )
        }
        self._augment = _augment(recipe, student)
        self._answers = answers_before(recipe, teacher, student, queries) if answers is None else answers
        self._identity = queries.identity()
        self._taught_by = [getattr(teacher, "source", type(teacher).__name__)]
        if isinstance(teacher, Encoder):
            self._taught_by.append(weights_hash(teacher.module))
        elif self._answers is not None:
            self._taught_by.append(hashlib.sha256(np.ascontiguousarray(self._answers).tobytes()).hexdigest())

    def fingerprint(self) -> dict[str, Any]:
        return {
            "task": "distil",
            "recipe": asdict(self.recipe),
            "architecture": self.student.architecture,
            "data": self._identity,
            "teacher": self._taught_by,
        }

    def load(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        images = self.student.prepare(self.queries.take(indices))
        seen = images if self._augment is None else self._augment(images)
        if self._answers is not None:
            answers = self._answers[indices]
            if self._augment is not None and self.recipe.views == "local":
                seen = torch.cat([images, seen])
        else:
            assert self._augment is not None
            answers = np.asarray(self.teacher.embed(seen.cpu()))
            if self.recipe.views == "other":
                seen = self._augment(images)
        if answers.shape != (len(indices), self.student.dim) or not np.isfinite(answers).all():
            raise EncoderError(
                f"the teacher must answer {len(indices)} items with as many finite rows of width {self.student.dim}; "
                f"it answered with shape {answers.shape}"
                + ("" if np.isfinite(answers).all() else " and values that are not finite")
            )
        return seen, torch.from_numpy(np.ascontiguousarray(answers)).float().to(self.device)

    def updates(self) -> Sequence[Update]:
        return [Update("loss", self._loss, ("student",))]

    def begin_step(self, step: int, steps: int) -> None:
        if self.recipe.anneal:
            set_learning_rate(self.optimizers["student"], cosine_schedule(step, steps, warmup=steps // 20))
        self.student.module.train()

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, answers = batch
        recipe, embedded = self.recipe, self.student.forward(images)
        measure = _LOSS.get(recipe.loss) or partial(_CONTRASTIVE[recipe.loss], temperature=recipe.temperature)
        loss = measure(embedded[: len(answers)], answers)
        if len(embedded) > len(answers):
            loss = loss + recipe.view_weight * measure(embedded[len(answers) :], answers)
        return loss


def _augment(recipe: Distillation, student: Encoder) -> Callable[[Tensor], Tensor] | None:
    if recipe.augmentation is None:
        return None
    if not isinstance(student.preprocess, ImagePreprocess):
        raise UsageError("augmentation makes views of images: this student takes none")
    return recipe.augmentation.build(student.preprocess.height, student.preprocess.width)


def answers_before(
    recipe: Distillation, teacher: Embedder, student: Encoder, queries: Data
) -> NDArray[np.floating] | None:
    """What is asked before training: (len(queries), m), or None where each step asks.

    Randomness of views: torch's generator.
    """
    if recipe.asks_items:
        return embed_all(teacher, queries)
    augment = _augment(recipe, student)
    if recipe.views != "prototype" or augment is None:
        return None
    parts = []
    for batch in queries.batches(EMBED_BATCH):
        images = student.prepare(batch)
        asked = [np.asarray(teacher.embed(augment(images).cpu()), np.float64) for _ in range(recipe.asked_views)]
        parts.append(np.mean(asked, axis=0))
    return np.concatenate(parts)


def new_student(recipe: Distillation, teacher: Embedder, queries: Data, *, seed: int, width: int) -> Encoder:
    """A fresh student with a linear layer that answers in `width` dimensions, as many as the teacher does."""
    size = None
    if isinstance(teacher, Encoder) and isinstance(teacher.preprocess, ImagePreprocess):
        size = teacher.preprocess.height
    return new_encoder(recipe.architecture, queries, seed=seed, size=size, linear=width)


def distil(
    recipe: Distillation,
    teacher: Embedder,
    queries: Data,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = False,
    title: str = "distil",
    devices: int = 1,
    nodes: int = 1,
    accelerator: str = "cpu",
    precision: str = "auto",
) -> tuple[Encoder, History]:
    """Train a student on the teacher's answers to `queries`.

    Returns:
        The student in evaluation mode, its record filled in, and the history of losses.
    """
    place: dict[str, Any] = {"devices": devices, "nodes": nodes, "accelerator": accelerator}
    first = queries if recipe.asks_items else queries.slice(0, 1)
    answers = shared(lambda: embed_all(teacher, first), **place)
    student = new_student(recipe, teacher, queries, seed=seed, width=answers.shape[1])
    prior: NDArray[np.floating] | None = answers
    if not recipe.asks_items:
        with isolated_rng(seed, 4):
            prior = shared(lambda: answers_before(recipe, teacher, student, queries), **place)
    with isolated_rng(seed, 2):
        task = DistillationTask(recipe, teacher, student, queries, answers=prior)
    loop = Loop(
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        seed=seed,
        **place,
        precision=precision,
        checkpoint=checkpoint,
        progress=progress,
        title=title,
    )
    history = run(task, loop)
    student.module.eval()
    teacher_name = getattr(teacher, "source", type(teacher).__name__)
    record = {
        "made_by": "distil",
        "recipe": asdict(recipe),
        "teacher": teacher_name,
        "data": queries.spec,
        "queries": recipe.n_queries(len(queries)),
        "seed": seed,
        "seconds": round(history.seconds, 1),
        "cpu_seconds": round(history.cpu_seconds, 1),
        "final_loss": history.losses["loss"][-1],
    }
    return replace(student, source=f"distilled from {teacher_name}", record=record), history


def augmented(recipe: Distillation, augmentation: Augmentation = MILD) -> Distillation:
    """The same recipe on augmented views."""
    return replace(recipe, augmentation=augmentation)


__all__ = [
    "LOSSES",
    "VIEWS",
    "Distillation",
    "DistillationTask",
    "augmented",
    "centred_loss",
    "cont_steal_loss",
    "cosine_loss",
    "distil",
    "infonce_loss",
    "mse_loss",
    "new_student",
    "rda_loss",
]
