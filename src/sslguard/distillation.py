"""Learning an encoder from another's answers: the recipes that thieves, shadow encoders and controls share.

Only `Embedder.embed` of the teacher is used. Without augmentation each query is asked once and its answer kept;
with it, every augmented view is a query of its own, and counted. Several processes share one another's answers. A
killed run that is resumed asks again for the answers that it kept.

Source: StolenEncoder and Cont-Steal describe such attacks; the cosine loss is SSLGuard's own (L_s, Cong et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from sslguard.augmentation import MILD, Augmentation
from sslguard.data.base import Data
from sslguard.encoders.base import Embedder, Encoder, embed_all
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import EncoderError, UsageError
from sslguard.pretraining import new_encoder
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

Loss = Literal["cosine", "centred", "mse", "infonce"]
LOSSES: tuple[Loss, ...] = ("cosine", "centred", "mse", "infonce")


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


_LOSS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine_loss,
    "centred": centred_loss,
    "mse": mse_loss,
    "infonce": infonce_loss,
}


@dataclass(frozen=True)
class Distillation:
    """A recipe of learning from answers.

    Attributes:
        architecture: the student's network; see `encoders.architectures`.
        loss: "cosine", "centred", "mse" or "infonce".
        augmentation: views that are asked and learned from; None asks each query once, as it is.
        steps, batch_size: optimiser steps, items a step.
        learning_rate, weight_decay: AdamW's.
        anneal: half a cosine to 0 (after 5 % of warm-up); else constant.
    """

    architecture: str = "resnet-small"
    loss: Loss = "cosine"
    augmentation: Augmentation | None = None
    steps: int = 400
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    anneal: bool = True

    def __post_init__(self) -> None:
        if self.loss not in _LOSS:
            raise UsageError(f"loss must be one of {', '.join(LOSSES)}, not {self.loss!r}")
        if self.steps < 1 or self.batch_size < 1 or self.learning_rate <= 0:
            raise UsageError("steps, batch_size and learning_rate must be positive")

    def n_queries(self, n_items: int) -> int:
        """Answers that an unbroken run asks for when the query set has `n_items`.

        With augmentation one comes before the views: it shows how wide the teacher's answers are.
        """
        return n_items if self.augmentation is None else 1 + self.steps * self.batch_size


class DistillationTask(Task):
    """The student's side of a recipe. `student` is trained in place.

    Args:
        answers: the teacher's to every query, (len(queries), student.dim), where they were asked already. Without
            them they are asked here, unless the recipe augments.
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
        self._answers: NDArray[np.floating] | None = None
        self._augment: Callable[[Tensor], Tensor] | None = None
        if recipe.augmentation is None:
            self._answers = embed_all(teacher, queries) if answers is None else answers
        else:
            if not isinstance(student.preprocess, ImagePreprocess):
                raise UsageError("augmentation makes views of images: this student takes none")
            self._augment = recipe.augmentation.build(student.preprocess.height, student.preprocess.width)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "task": "distil",
            "recipe": asdict(self.recipe),
            "architecture": self.student.architecture,
            "data": self.queries.spec,
            "teacher": getattr(self.teacher, "source", type(self.teacher).__name__),
        }

    def load(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        images = self.student.prepare(self.queries.take(indices))
        if self._augment is not None:
            images = self._augment(images)
            answers = np.asarray(self.teacher.embed(images.cpu()))
        else:
            assert self._answers is not None
            answers = self._answers[indices]
        if answers.shape != (len(indices), self.student.dim) or not np.isfinite(answers).all():
            raise EncoderError(
                f"the teacher must answer {len(indices)} items with as many finite rows of width {self.student.dim}; "
                f"it answered with shape {answers.shape}"
                + ("" if np.isfinite(answers).all() else " and values that are not finite")
            )
        return images, torch.from_numpy(np.ascontiguousarray(answers)).float().to(self.device)

    def updates(self) -> Sequence[Update]:
        return [Update("loss", self._loss, ("student",))]

    def begin_step(self, step: int, steps: int) -> None:
        if self.recipe.anneal:
            set_learning_rate(self.optimizers["student"], cosine_schedule(step, steps, warmup=steps // 20))
        self.student.module.train()

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, answers = batch
        return _LOSS[self.recipe.loss](self.student.forward(images), answers)


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
    first = queries if recipe.augmentation is None else queries.slice(0, 1)
    answers = shared(lambda: embed_all(teacher, first), **place)
    student = new_student(recipe, teacher, queries, seed=seed, width=answers.shape[1])
    with isolated_rng(seed, 2):
        task = DistillationTask(recipe, teacher, student, queries, answers=answers)
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
    "Distillation",
    "DistillationTask",
    "augmented",
    "centred_loss",
    "cosine_loss",
    "distil",
    "infonce_loss",
    "mse_loss",
    "new_student",
]
