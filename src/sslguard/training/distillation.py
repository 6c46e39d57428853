"""Distillation: train an encoder on another's answers. Thieves, shadow encoders and controls share these recipes.

Only `Embedder.embed` of the teacher is used. Without augmentation, each query is asked once and its answer kept. With
augmentation, the setting `views` says what is asked and what is learned. Several processes share their answers. A
resumed run asks again for the answers that the killed run kept in memory.

Source: the cosine loss is SSLGuard's own (L_s, Cong et al. 2022); for the attacks that combine losses and views see
`attacks.stealing`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Data
from sslguard.encoders.base import EMBED_BATCH, Embedder, Encoder, embed_all
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.wrapped import source_of
from sslguard.errors import EncoderError, UsageError
from sslguard.training.base import History, Loop, Task, isolated_rng
from sslguard.training.loop import run
from sslguard.training.pretraining import new_encoder
from sslguard.training.processes import shared
from sslguard.training.recipes import Distillation


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return minus the mean cosine of the rows of two (n, d) batches: scalar in [−1, 1]."""
    return -nnf.cosine_similarity(student, teacher, dim=1).mean()


def centred_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return minus the mean cosine after subtracting the teacher's batch mean from both: scalar in [−1, 1].

    Embeddings behind a ReLU share a large mean, which dominates a plain cosine. A thief can subtract it.
    """
    mean = teacher.mean(0)
    return -nnf.cosine_similarity(student - mean, teacher - mean, dim=1).mean()


def mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error of (n, d) batches, divided by the teacher's mean square: scalar, at least 0.

    The division makes the loss independent of the teacher's scale, so that one learning rate fits all teachers.
    """
    return nnf.mse_loss(student, teacher) / teacher.square().mean().clamp_min(1e-12)


def infonce_loss(student: Tensor, teacher: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return the cross-entropy of finding each row's own teacher row among the batch's, by cosine: scalar, at least 0.

    Args:
        student: Embeddings, (n, d).
        teacher: Answers to the same items, (n, d).
        temperature: Divisor of the cosines, positive.
    """
    logits = nnf.normalize(student, dim=1) @ nnf.normalize(teacher, dim=1).T / temperature
    return nnf.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def cont_steal_loss(student: Tensor, teacher: Tensor, *, temperature: float = 0.5) -> Tensor:
    """Return InfoNCE with the student's other rows as further negatives (Sha et al. 2023): scalar, at least 0.

    Deviation: the positive pair is in the denominator as well, so that the loss is bounded from below.

    Args:
        student: Embeddings, (n, d).
        teacher: Answers to the same items, (n, d).
        temperature: Divisor of the cosines, positive.
    """
    own = nnf.normalize(student, dim=1)
    to_own, to_teacher = own @ own.T, own @ nnf.normalize(teacher, dim=1).T
    itself = torch.eye(len(own), dtype=torch.bool, device=own.device)
    logits = torch.cat([to_teacher, to_own.masked_fill(itself, -torch.inf)], 1) / temperature
    return nnf.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def rda_loss(student: Tensor, teacher: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return the sum of InfoNCE, a relative MSE and minus the mean cosine: scalar.

    InfoNCE tells rows apart; the other two terms align each pair in length and in angle.

    Args:
        student: Embeddings, (n, d).
        teacher: Answers to the same items, (n, d).
        temperature: Divisor of the cosines of InfoNCE, positive.
    """
    apart = infonce_loss(student, teacher, temperature=temperature)
    return apart + mse_loss(student, teacher) + cosine_loss(student, teacher)


_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cosine": cosine_loss,
    "centred": centred_loss,
    "mse": mse_loss,
    "infonce": infonce_loss,
    "cont-steal": cont_steal_loss,
    "rda": rda_loss,
}
_CONTRASTIVE = frozenset({"infonce", "cont-steal", "rda"})
"""Losses that take a temperature."""


class DistillationTask(Task):
    """Training of a student on a teacher's answers, in place."""

    def __init__(
        self,
        recipe: Distillation,
        teacher: Embedder,
        student: Encoder,
        queries: Data,
        *,
        answers: NDArray[np.floating] | None = None,
    ) -> None:
        """Prepare the task, and ask what the recipe asks before training.

        Args:
            recipe: Recipe of the distillation.
            teacher: Embedder to learn from.
            student: Encoder to train, in place.
            queries: Items to ask about.
            answers: What `answers_before` returned, if it was called already.
        """
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
        taught_by = [source_of(teacher)]
        if isinstance(teacher, Encoder):
            taught_by.append(weights_hash(teacher.module))
        elif self._answers is not None:
            taught_by.append(hashlib.sha256(np.ascontiguousarray(self._answers).tobytes()).hexdigest())
        self.identity = {
            "task": "distil",
            "recipe": asdict(recipe),
            "architecture": student.architecture,
            "data": queries.identity(),
            "teacher": taught_by,
        }

    def load(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the student's inputs for these items, and the teacher's answers, (n, m) float32. See `Task.load`.

        Under the views "local", the inputs hold the n items followed by n views of them.

        Raises:
            EncoderError: The teacher's answers are not finite, or of another shape.
        """
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

    def begin_step(self, step: int, steps: int) -> None:
        """Set the learning rate of this step, and the student to training mode."""
        if self.recipe.anneal:
            self.anneal(step, steps)
        self.student.module.train()

    def loss(self, microbatch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the recipe's loss."""
        images, answers = microbatch
        recipe, embedded = self.recipe, self.student.forward(images)
        measure = _LOSSES[recipe.loss]
        if recipe.loss in _CONTRASTIVE:
            measure = partial(measure, temperature=recipe.temperature)
        loss = measure(embedded[: len(answers)], answers)
        if len(embedded) > len(answers):
            loss = loss + recipe.view_weight * measure(embedded[len(answers) :], answers)
        return loss


def _augment(recipe: Distillation, student: Encoder) -> Callable[[Tensor], Tensor] | None:
    if recipe.augmentation is None:
        return None
    if not isinstance(student.preprocess, ImagePreprocess):
        raise UsageError("an augmentation makes views of images, and this student takes texts: give no augmentation")
    return recipe.augmentation.build(student.preprocess.height, student.preprocess.width)


def answers_before(
    recipe: Distillation, teacher: Embedder, student: Encoder, queries: Data
) -> NDArray[np.floating] | None:
    """Ask what the recipe asks before training.

    The randomness of views comes from torch's generator.

    Returns:
        Answers, (len(queries), m), or None if each step asks on its own.
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


def new_student(
    recipe: Distillation, teacher: Embedder, queries: Data, *, seed: int, width: int, size: int | None = None
) -> Encoder:
    """Return a fresh student that takes `queries` and ends in a linear layer of output width `width`.

    Its images have `size` pixels in height and width; by default the teacher's height, where that is known.
    """
    if size is None and isinstance(teacher, Encoder) and isinstance(teacher.preprocess, ImagePreprocess):
        size = teacher.preprocess.height
    return new_encoder(recipe.architecture, queries, seed=seed, size=size, linear=width)


def distil(
    recipe: Distillation,
    teacher: Embedder,
    queries: Data,
    *,
    seed: int = 0,
    size: int | None = None,
    title: str = "distil",
    **loop: Any,
) -> tuple[Encoder, History]:
    """Train a student on the teacher's answers to `queries`.

    Args:
        recipe: Recipe of the distillation.
        teacher: Embedder to learn from.
        queries: Items to ask about.
        seed: Seed of all randomness.
        size: Height and width of the student's images in pixels; those of the teacher unless given.
        title: Label of the progress bar.
        loop: Further settings of `training.base.Loop`, such as `checkpoint` and `devices`.

    Returns:
        The student in evaluation mode, its record filled in, and the history of losses.

    Raises:
        EncoderError: The teacher's answers are not finite, or of different widths.
    """
    first = queries if recipe.asks_items else queries.slice(0, 1)
    answers = shared(lambda: embed_all(teacher, first), **loop)
    student = new_student(recipe, teacher, queries, seed=seed, width=answers.shape[1], size=size)
    prior: NDArray[np.floating] | None = answers
    if not recipe.asks_items:
        with isolated_rng(seed, 4):
            prior = shared(lambda: answers_before(recipe, teacher, student, queries), **loop)
    with isolated_rng(seed, 2):
        task = DistillationTask(recipe, teacher, student, queries, answers=prior)
    history = run(task, Loop(recipe.steps, recipe.batch_size, seed, title=title, **loop))
    student.module.eval()
    teacher_name = source_of(teacher)
    record = {
        "made_by": "distil",
        "recipe": asdict(recipe),
        "teacher": teacher_name,
        "data": queries.spec,
        "queries": recipe.n_queries(len(queries)),
        "seed": seed,
        **history.times(),
        "final_loss": history.losses["loss"][-1],
    }
    return replace(student, source=f"distilled from {teacher_name}", record=record), history
