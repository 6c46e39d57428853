"""Learning from answers: losses by hand, every query counted, and any width, size and loss."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch

from sslguard.encoders.base import Encoder
from sslguard.errors import EncoderError, UsageError
from sslguard.training.augmentation import MILD, Augmentation
from sslguard.training.base import Loop, Task
from sslguard.training.distillation import (
    Distillation,
    DistillationTask,
    answers_before,
    centred_loss,
    cont_steal_loss,
    cosine_loss,
    distil,
    infonce_loss,
    mse_loss,
    rda_loss,
)
from sslguard.training.loop import run
from sslguard.training.recipes import Loss, augmented

BRIEF = Distillation(architecture="resnet-narrow", steps=3, batch_size=8)
STUDENT = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
TEACHER = torch.tensor([[1.0, 0.0], [0.0, -5.0]])


class TestLosses:
    def test_cosine_by_hand(self):
        # cos = 3/5 and −1.
        assert cosine_loss(STUDENT, TEACHER).item() == pytest.approx(-(0.6 - 1) / 2)

    def test_centred_by_hand(self):
        # The teacher's mean is (½, −2½): rows (2½, 6½) and (−½, 4½) against ±(½, 2½).
        cosines = [17.5 / (48.5 * 6.5) ** 0.5, -11 / (20.5 * 6.5) ** 0.5]
        assert centred_loss(STUDENT, TEACHER).item() == pytest.approx(-sum(cosines) / 2)

    def test_centred_does_not_see_what_all_answers_share(self):
        shift = torch.tensor([100.0, -50.0])
        assert centred_loss(STUDENT + shift, TEACHER + shift).item() == pytest.approx(
            centred_loss(STUDENT, TEACHER).item(), rel=1e-4
        )

    def test_mse_by_hand(self):
        # Squares of the differences: 4, 16, 0, 49; of the teacher: 1, 0, 0, 25.
        assert mse_loss(STUDENT, TEACHER).item() == pytest.approx((69 / 4) / (26 / 4))

    def test_mse_does_not_depend_on_the_scale_of_both(self):
        assert mse_loss(1000 * STUDENT, 1000 * TEACHER).item() == pytest.approx(mse_loss(STUDENT, TEACHER).item())

    def test_mse_of_a_teacher_that_answers_zero_is_finite(self):
        assert math.isfinite(mse_loss(STUDENT, torch.zeros(2, 2)).item())

    def test_infonce_by_hand(self):
        # Cosines (student row × teacher row): 0.6, −0.8 / 0, −1; τ = ½; own teacher on the diagonal.
        rows = [1.2 - math.log(math.exp(1.2) + math.exp(-1.6)), -2 - math.log(math.exp(0) + math.exp(-2))]
        assert infonce_loss(STUDENT, TEACHER, temperature=0.5).item() == pytest.approx(-sum(rows) / 2)

    def test_cont_steal_by_hand(self):
        # As InfoNCE, and beside it the cosine of the two student rows, 0.8.
        rows = [
            1.2 - math.log(math.exp(1.2) + math.exp(-1.6) + math.exp(1.6)),
            -2 - math.log(math.exp(0) + math.exp(-2) + math.exp(1.6)),
        ]
        assert cont_steal_loss(STUDENT, TEACHER, temperature=0.5).item() == pytest.approx(-sum(rows) / 2)

    def test_rda_sees_amplitude_and_angle(self):
        """Doubled answers have the least contrast and angle, and an amplitude that is off by 1 of 1."""
        doubled, same = (rda_loss(k * TEACHER, TEACHER, temperature=0.5).item() for k in (2, 1))
        assert doubled - same == pytest.approx(1)
        assert same == pytest.approx(infonce_loss(TEACHER, TEACHER, temperature=0.5).item() - 1)

    @pytest.mark.parametrize("name", get_args(Loss))
    def test_the_recipe_uses_the_loss_it_names(self, name, images, tiny):
        """The first loss of a run is the named one, of the untrained student in training mode."""
        by_hand = {
            "cosine": cosine_loss,
            "centred": centred_loss,
            "mse": mse_loss,
            "infonce": infonce_loss,
            "cont-steal": partial(cont_steal_loss, temperature=0.1),
            "rda": rda_loss,
        }[name]
        teacher, data = tiny(1), images(8)
        student, history = distil(replace(BRIEF, loss=name, steps=1), teacher, data, seed=4)
        fresh = tiny(4, linear=teacher.dim)
        fresh.module.train()
        order = np.random.default_rng([4, 0]).permutation(8)
        expected = by_hand(fresh.features(data.take(order)), torch.from_numpy(teacher.embed(data.take(order))))
        assert history.losses["loss"] == pytest.approx([expected.item()], rel=1e-4)
        assert student.record["recipe"]["loss"] == name


class TestQueries:
    def test_without_augmentation_each_item_is_asked_once(self, images, teacher):
        data = images(11)
        student, _ = distil(BRIEF, teacher, data)
        assert teacher.asked == BRIEF.n_queries(11) == student.record["queries"] == 11
        assert torch.equal(torch.cat(teacher.batches), data.take(range(11)))

    def test_with_augmentation_every_view_is_one_and_one_shows_the_width(self, images, teacher):
        recipe = augmented(BRIEF)
        student, _ = distil(recipe, teacher, images(11))
        assert [len(batch) for batch in teacher.batches] == [1, 8, 8, 8]
        assert teacher.asked == recipe.n_queries(11) == student.record["queries"] == 1 + 3 * 8

    def test_the_student_learns_from_the_view_that_was_answered(self, images, teacher, monkeypatch):
        seen = []
        forward = Encoder.forward
        monkeypatch.setattr(Encoder, "forward", lambda self, x: seen.append(x.clone()) or forward(self, x))
        distil(augmented(BRIEF, Augmentation(noise=0.3)), teacher, images(11))
        views = teacher.batches[1:]
        assert all(torch.equal(a, b) for a, b in zip(seen, views, strict=True))
        assert 0 <= min(v.min() for v in views) <= max(v.max() for v in views) <= 1

    @pytest.mark.parametrize("views", ["other", "local", "prototype"])
    def test_views_say_what_is_asked_and_what_is_learned_from(self, views, images, teacher, monkeypatch):
        seen = []
        forward = Encoder.forward
        monkeypatch.setattr(Encoder, "forward", lambda self, x: seen.append(x.clone()) or forward(self, x))
        recipe = replace(augmented(BRIEF, Augmentation(noise=0.3)), views=views, asked_views=4)
        data = images(11)
        student, _ = distil(recipe, teacher, data)
        assert teacher.asked == recipe.n_queries(11) == student.record["queries"]
        assert teacher.asked == {"other": 1 + 3 * 8, "local": 11, "prototype": 1 + 4 * 11}[views]
        plain = student.prepare(data.take(range(11)))
        if views == "local":
            assert [len(x) for x in seen] == [16, 16, 16]
            assert all((x[:8, None] == plain).flatten(2).all(2).any(1).all() for x in seen)
        else:
            asked = torch.cat(teacher.batches[1:])
            assert not (torch.cat(seen)[:, None] == asked).flatten(2).all(2).any()
        assert not (torch.cat([x[-8:] for x in seen])[:, None] == plain).flatten(2).all(2).any()

    def test_a_prototype_is_the_mean_answer(self, images, tiny, teacher):
        recipe = replace(augmented(BRIEF, Augmentation(noise=0.3)), views="prototype", asked_views=4)
        data = images(11)
        found = answers_before(recipe, teacher, tiny(1, linear=5), data)
        each = [np.matmul(batch.reshape(11, -1).numpy(), teacher.projection) for batch in teacher.batches]
        assert len(each) == 4
        np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-4)

    def test_a_teacher_needs_nothing_but_embed(self, images):
        class Bare:
            __slots__ = ()

            def embed(self, batch, /):
                return np.asarray(batch, np.float64).reshape(len(batch), -1)[:, :3]

        student, _ = distil(BRIEF, Bare(), images(9))
        assert student.dim == 3
        assert student.record["teacher"] == "Bare"

    def test_a_resumed_run_does_not_repeat_answered_views(self, images, teacher, tmp_path, monkeypatch):
        recipe, checkpoint = augmented(BRIEF), tmp_path / "c"
        distil(recipe, teacher, images(11), checkpoint=checkpoint)
        before = teacher.asked
        distil(recipe, teacher, images(11), checkpoint=checkpoint)
        assert teacher.asked - before == 1

    def test_a_run_is_resumed_by_its_own_teacher_and_queries_alone(self, images, tiny, tmp_path):
        """Marked copies of one encoder have one name, and so has a file that was written again."""
        checkpoint, queries = tmp_path / "c", images(11)
        distil(BRIEF, replace(tiny(7), source="marked"), queries, checkpoint=checkpoint)
        rewritten = images(11, seed=5)
        rewritten.spec = queries.spec
        for teacher, asked in ((tiny(8), queries), (tiny(7), rewritten)):
            with pytest.raises(UsageError, match="belongs to a run with other settings"):
                distil(BRIEF, replace(teacher, source="marked"), asked, checkpoint=checkpoint)
        distil(BRIEF, replace(tiny(7), source="marked"), queries, checkpoint=checkpoint)

    @pytest.mark.parametrize(
        "answer", [lambda n: np.ones(n), lambda n: np.ones((n + 1, 3)), lambda n: np.ones((n, 3, 1))]
    )
    def test_answers_of_another_shape_are_refused(self, images, answer):
        class Broken:
            def embed(self, batch, /):
                return answer(len(batch))

        with pytest.raises(EncoderError, match="answered with an array of shape"):
            distil(BRIEF, Broken(), images(4))

    def test_answers_that_are_not_finite_end_the_run(self, images):
        class Broken:
            def embed(self, batch, /):
                return np.full((len(batch), 3), np.nan)

        for recipe in (BRIEF, augmented(BRIEF)):
            with pytest.raises(EncoderError, match="not finite"):
                distil(recipe, Broken(), images(4))

    def test_a_width_that_changes_is_refused(self, images, counting):
        class Fickle(counting):
            def embed(self, batch, /):
                return super().embed(batch)[:, : 5 - len(self.batches) // 3]

        with pytest.raises(EncoderError, match=r"rows of width 5; it answered with shape \(8, 4\)"):
            distil(augmented(BRIEF), Fickle(), images(9))


class TestStudents:
    @pytest.mark.parametrize("architecture", ["resnet-narrow", "plain-small", "separable-small"])
    @pytest.mark.parametrize("width", [3, 200])
    def test_a_linear_layer_maps_to_the_teachers_width(self, images, counting, architecture, width):
        student, _ = distil(replace(BRIEF, architecture=architecture, steps=1), counting(width), images(8))
        assert student.dim == width
        assert student.architecture == {"backbone": architecture, "channels": 1, "linear": width}
        assert student.embed(images(4).take(range(4))).shape == (4, width)

    def test_takes_images_of_the_teachers_size(self, images, tiny):
        teacher = tiny(1)
        larger = replace(teacher, preprocess=replace(teacher.preprocess, height=24, width=24))
        student, _ = distil(replace(BRIEF, steps=1), larger, images(8))
        assert student.preprocess.shape == (1, 24, 24)

    @pytest.mark.parametrize("recipe", [BRIEF, augmented(BRIEF)], ids=["plain", "augmented"])
    def test_same_seed_same_student_and_the_teacher_stays(self, recipe, images, tiny, hashed, untouched_rng):
        teacher = tiny(1)
        teacher.module.train()
        before = hashed(teacher)
        one, two, other = (distil(recipe, teacher, images(9), seed=seed)[0] for seed in (3, 3, 4))
        assert hashed(one) == hashed(two) != hashed(other)
        assert hashed(teacher) == before
        assert teacher.module.training
        assert not one.module.training

    @pytest.mark.parametrize("loss", get_args(Loss))
    def test_learns(self, loss, images, tiny):
        recipe = replace(BRIEF, loss=loss, steps=60, batch_size=16, learning_rate=1e-2)
        student, history = distil(recipe, tiny(1, linear=6), images(16), seed=2)
        first, last = np.mean(history.losses["loss"][:3]), np.mean(history.losses["loss"][-3:])
        assert last < first - 0.3
        assert student.record["final_loss"] == history.losses["loss"][-1]

    @pytest.mark.parametrize(
        ("anneal", "share"), [(False, [1, 1, 1]), (True, [1, 0.75, 0.25])], ids=["constant", "annealed"]
    )
    def test_learning_rate(self, images, tiny, monkeypatch, anneal, share):
        rates = []

        def note(task, step, carried):
            rates.append(task.optimizers["student"].param_groups[0]["lr"])

        monkeypatch.setattr(Task, "end_step", note)
        distil(replace(BRIEF, anneal=anneal), tiny(1), images(9))
        assert rates == pytest.approx([3e-3 * factor for factor in share])

    def test_views_need_images(self, tiny, images):
        blind = replace(tiny(2), preprocess=object())
        with pytest.raises(UsageError, match="views of images"):
            DistillationTask(augmented(BRIEF), tiny(1), blind, images(4))

    def test_the_order_of_batches_is_the_seeds(self, images, tiny):
        losses = [
            run(DistillationTask(BRIEF, tiny(1), tiny(2), images(9)), Loop(steps=2, batch_size=4, seed=seed)).losses
            for seed in (1, 1, 2)
        ]
        assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "l1"}, "loss must be one of cosine, .*rda, not 'l1'"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, not -1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, not 0.0"),
        ({"views": "local"}, "views='local' needs an augmentation"),
        ({"views": "all"}, "views must be one of asked, other, local, prototype, not 'all'"),
        ({"temperature": 0.0}, "temperature must be above 0, not 0.0"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Distillation(**settings)


def test_augmented_changes_nothing_else():
    assert augmented(BRIEF) == replace(BRIEF, augmentation=MILD)
    assert BRIEF.augmentation is None


@pytest.fixture
def teacher(counting):
    return counting()
