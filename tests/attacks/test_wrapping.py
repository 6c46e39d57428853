"""Noise before and behind an encoder: how much, on what, and that nothing leaks from one item to another."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from scipy import stats

from sslguard.attacks.stealing import Distil
from sslguard.attacks.wrapping import InputNoise, OutputNoise, Wrapping
from sslguard.encoders.wrapped import LocalSuspect
from sslguard.errors import DataError, EncoderError, SuspectError, UsageError
from sslguard.suspects.logged import LoggedAnswers
from sslguard.training.augmentation import MILD
from sslguard.training.distillation import Distillation
from sslguard.verification.verdict import score_suspect, verify

WRAPPINGS = {"input": InputNoise(0.1, seed=3), "output": OutputNoise(0.2, seed=3)}
BRIEF = Distillation(architecture="resnet-narrow", steps=2, batch_size=8)


class Fixed:
    """Answers with the rows that it is given, whatever it is asked."""

    def __init__(self, rows):
        self.rows = np.asarray(rows)

    def embed(self, batch):
        return self.rows[: len(batch)]


class Plane:
    """Answers (cos a, sin a) with a from the mean of the picture."""

    def embed(self, batch):
        angle = batch.float().reshape(len(batch), -1).mean(1).numpy() / 255
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def sent(wrapping, batch, counting):
    """What a victim behind `wrapping` is asked."""
    victim = counting()
    wrapping(victim).embed(batch)
    (asked,) = victim.batches
    return asked


@pytest.mark.parametrize("name", WRAPPINGS)
class TestContract:
    def test_the_victim_is_untouched(self, name, images, tiny, hashed, untouched_rng):
        victim, batch = tiny(1), images(9).take(range(9))
        before, asked, record = hashed(victim), batch.clone(), dict(victim.record)
        wrapped = WRAPPINGS[name](victim)
        answers = wrapped.embed(batch)
        assert hashed(victim) == before
        assert torch.equal(batch, asked)
        assert victim.record == record
        assert (answers.shape, answers.dtype, wrapped.dim) == ((9, victim.dim), np.float32, victim.dim)
        assert not np.array_equal(answers, victim.embed(batch))

    def test_an_answer_depends_on_its_own_item_alone(self, name, images, counting):
        batch = images(9).take(range(9))
        wrapped = WRAPPINGS[name](counting())
        together = wrapped.embed(batch)
        alone = np.concatenate([wrapped.embed(batch[i : i + 1]) for i in range(9)])
        np.testing.assert_allclose(alone, together, atol=1e-4)
        np.testing.assert_allclose(wrapped.embed(batch.flip(0)), together[::-1], atol=1e-4)
        np.testing.assert_array_equal(WRAPPINGS[name](counting()).embed(batch), together)

    def test_seeds_draw_different_noise(self, name, images, counting):
        batch = images(9).take(range(9))
        one, other = (replace(WRAPPINGS[name], seed=seed)(counting()).embed(batch) for seed in (3, 4))
        assert (one != other).any(axis=1).all()

    def test_a_picture_is_the_same_in_bytes_and_floats(self, name, images, counting):
        batch = images(9).take(range(9))
        wrapped = WRAPPINGS[name](counting())
        # Bytes are rounded back to bytes: half a level of 256 pixels, weighed by the projection.
        np.testing.assert_allclose(wrapped.embed(batch), wrapped.embed(batch.float() / 255), atol=0.1)

    def test_is_stolen_from(self, name, images, tiny, hashed):
        victim, queries = tiny(1), images(24)
        for recipe in (BRIEF, replace(BRIEF, augmentation=MILD)):
            before = hashed(victim)
            one, two = (Distil(recipe)(WRAPPINGS[name](victim), queries, seed=5) for _ in range(2))
            assert hashed(one) == hashed(two) != hashed(Distil(recipe)(victim, queries, seed=5))
            assert hashed(victim) == before
            assert one.dim == victim.dim
            assert one.record["queries"] == recipe.n_queries(24)
            assert one.record["teacher"] == f"{victim.source}, {name} noise {WRAPPINGS[name].std:g} (seed 3)"

    def test_is_verified(self, name, images, key_of):
        key, data = key_of(), images(4)
        plain = score_suspect(key, Plane(), data).value
        controls = {f"control {i}": -0.1 * i for i in range(99)}
        verdict = verify(key, WRAPPINGS[name](LocalSuspect(Plane(), "mine")), data, control_scores=controls)
        assert verdict.suspect == f"mine, {name} noise {WRAPPINGS[name].std:g} (seed 3)"
        assert verdict.decision == "derived"
        assert verdict.significance.statistic != plain
        assert abs(verdict.significance.statistic - plain) < 0.2

    def test_says_what_it_is(self, name, tiny, counting):
        wrapped = WRAPPINGS[name](counting())
        assert wrapped.source == wrapped.name == f"CountingTeacher, {name} noise {WRAPPINGS[name].std:g} (seed 3)"
        assert wrapped.record == {
            "made_by": f"{name} noise",
            "from": "CountingTeacher",
            "recipe": {"std": WRAPPINGS[name].std, "seed": 3},
        }
        json.dumps(wrapped.record, allow_nan=False)
        assert not hasattr(wrapped, "dim")
        assert WRAPPINGS[name](tiny(1)).name.startswith(tiny(1).source)

    def test_hands_on_what_a_suspect_is_told(self, name, images, key_of, tmp_path):
        """A missing answer stays one, whatever is put on answers; a row too many is found at the end."""
        rows = np.tile(np.array([1.0, 0.0], np.float32), (5, 1))
        rows[2] = np.nan
        np.save(tmp_path / "four.npy", rows[:4])
        np.save(tmp_path / "five.npy", rows)
        suspect = WRAPPINGS[name](LoggedAnswers(tmp_path / "four.npy"))
        score = score_suspect(key_of(), suspect, images(4))
        assert suspect.n_missing == 1
        assert score.cosines[2] == 0
        assert (score.cosines[[0, 1, 3]] > 0.5).all()
        with pytest.raises(SuspectError, match="holds 5 answers for 4 queries"):
            score_suspect(key_of(), WRAPPINGS[name](LoggedAnswers(tmp_path / "five.npy")), images(4))

    def test_is_a_frozen_record_of_settings(self, name):
        wrapping = WRAPPINGS[name]
        assert isinstance(wrapping, Wrapping)
        with pytest.raises(FrozenInstanceError):
            wrapping.std = 1.0
        assert wrapping == type(wrapping)(wrapping.std, seed=3)

    def test_goes_to_another_process(self, name, images, tiny):
        batch = images(3).take(range(3))
        wrapped = WRAPPINGS[name](tiny(1))
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(wrapped)).embed(batch), wrapped.embed(batch))

    @pytest.mark.parametrize("std", [0, -0.1, float("nan"), float("inf")])
    def test_refuses_a_std_that_is_no_noise(self, name, std):
        with pytest.raises(UsageError, match=rf"std must be (a finite number )?above 0, not {std}"):
            type(WRAPPINGS[name])(std)

    def test_refuses_a_negative_seed(self, name):
        with pytest.raises(UsageError, match="seed must be at least 0, not -1"):
            type(WRAPPINGS[name])(0.1, seed=-1)

    def test_leaves_an_empty_batch_to_the_victim(self, name):
        class Nothing:
            def embed(self, batch):
                return np.zeros((len(batch), 3), np.float32)

        assert WRAPPINGS[name](Nothing()).embed(torch.zeros(0, 1, 16, 16)).shape == (0, 3)


class TestInputNoise:
    def test_is_gaussian_of_that_std_on_floats(self, counting):
        # Sixty standard deviations from the ends of the range: nothing is clipped.
        grey = (0.5 + 0.001 * torch.arange(40.0)[:, None, None, None] / 40).expand(40, 1, 16, 16)
        asked = sent(InputNoise(0.008, seed=1), grey, counting)
        assert asked.dtype == torch.float32
        noise = ((asked - grey) / 0.008).numpy().reshape(40, -1)
        assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
        # Correlations of 40 pictures over 256 pixels: standard deviation 1/16, 780 pairs.
        assert np.abs(np.corrcoef(noise) - np.eye(40)).max() < 5 / 16

    def test_is_of_that_std_on_bytes(self, counting):
        grey = torch.arange(100, 140, dtype=torch.uint8)[:, None, None, None].expand(40, 1, 16, 16)
        asked = sent(InputNoise(0.08, seed=1), grey, counting)
        assert asked.dtype == torch.uint8
        noise = asked.double() - grey.double()
        # 0.08 of 255 is 20.4 levels; the standard error of a std over 10,240 pixels is 0.7 %.
        assert noise.std() == pytest.approx(20.4, rel=0.035)
        assert abs(noise.mean()) < 5 * 20.4 / np.sqrt(10_240)

    def test_far_below_a_level_leaves_bytes_as_they_are(self, images, counting):
        batch = images(9).take(range(9))
        assert torch.equal(sent(InputNoise(1e-4), batch, counting), batch)

    @pytest.mark.parametrize("white", [torch.full((20, 1, 16, 16), 255, dtype=torch.uint8), torch.ones(20, 1, 16, 16)])
    def test_is_clipped_and_never_wraps_around(self, white, counting):
        asked = sent(InputNoise(0.1), white, counting)
        brightness = asked.double() / white.max()
        assert brightness.max() == 1
        assert brightness.min() > 0.4
        # Half of a Gaussian lies above its mean; 5,120 pixels; bytes round the first half level up as well.
        assert float((brightness == 1).double().mean()) == pytest.approx(0.5, abs=0.05)

    def test_keeps_what_a_batch_is_made_of(self, counting):
        several = [torch.full((3, 5, 7), 9, dtype=torch.uint8), torch.full((1, 4, 4), 0.5, dtype=torch.float64)]
        victim = counting()
        victim.embed = lambda batch: victim.batches.append(batch) or np.zeros((len(batch), 2))
        InputNoise(0.1)(victim).embed(several)
        ((first, second),) = victim.batches
        assert (first.shape, first.dtype) == ((3, 5, 7), torch.uint8)
        assert (second.shape, second.dtype) == ((1, 4, 4), torch.float64)
        assert not torch.equal(first, several[0])
        assert not torch.equal(second, several[1])

    def test_goes_around_output_noise(self, images, counting):
        batch = images(9).take(range(9))
        outer, inner = InputNoise(0.1, seed=1), OutputNoise(0.2, seed=1)
        both = outer(inner(counting()))
        expected = inner(counting()).embed(sent(outer, batch, counting))
        np.testing.assert_array_equal(both.embed(batch), expected)
        assert both.name == "CountingTeacher, output noise 0.2 (seed 1), input noise 0.1 (seed 1)"

    @pytest.mark.parametrize(
        ("batch", "message"),
        [
            (["a text"], "applies to images, not to items of type str"),
            (torch.full((1, 1, 4, 4), 255.0), r"lie in \[0, 1\]"),
            (torch.full((1, 1, 4, 4), float("nan")), "must be finite"),
            (torch.zeros(1, 1, 4, 4, dtype=torch.int64), "must be uint8 or float"),
        ],
    )
    def test_refuses_what_is_no_image(self, batch, message, counting):
        with pytest.raises(DataError, match=message):
            InputNoise(0.1)(counting()).embed(batch)


class TestOutputNoise:
    def test_is_a_share_of_each_answer_s_own_size(self, images):
        sizes = np.array([0.01, 1.0, 50.0])
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (3, 4096))
        rows = sizes[:, None] * signs
        noise = (OutputNoise(0.25)(Fixed(rows)).embed(images(3).take(range(3))) - rows) / sizes[:, None] / 0.25
        # Root mean square of ±a is a; the standard error of a std over 4,096 numbers is 1.1 %.
        np.testing.assert_allclose(noise.std(axis=1), 1, rtol=0.055)
        assert min(stats.kstest(row, "norm").pvalue for row in noise) > 1e-3
        assert np.abs(np.corrcoef(noise) - np.eye(3)).max() < 5 / 64

    def test_draws_apart_for_rows_of_one_answer(self, images):
        """One answer for all: noise follows what was asked, not what was answered."""
        rows = np.ones((3, 4096))
        batch = images(3).take(range(3))
        noise = OutputNoise(0.1)(Fixed(rows)).embed(torch.stack([batch[0], batch[1], batch[0]])) - rows
        np.testing.assert_array_equal(noise[0], noise[2])
        assert abs(np.corrcoef(noise[:2])[0, 1]) < 5 / 64

    def test_is_not_the_noise_of_the_input_under_one_seed(self):
        class Pixels:
            def embed(self, batch):
                return batch.reshape(len(batch), -1).double().numpy()

        grey = torch.full((1, 1, 64, 64), 0.5)
        before, behind = (kind(0.05, seed=3)(Pixels()).embed(grey)[0] - 0.5 for kind in (InputNoise, OutputNoise))
        assert abs(np.corrcoef(before, behind)[0, 1]) < 5 / 64

    def test_a_row_of_zeros_stays_one(self, images):
        rows = np.array([[0.0, 0.0], [3.0, 4.0]])
        noisy = OutputNoise(0.5)(Fixed(rows)).embed(images(2).take(range(2)))
        assert (noisy[0] == 0).all()
        assert (noisy[1] != rows[1]).all()

    @pytest.mark.parametrize(("given", "got"), [("f2", "f2"), ("f4", "f4"), ("f8", "f8"), ("i8", "f8")])
    def test_answers_in_the_victim_s_type(self, images, given, got):
        rows = np.full((2, 3), 7, given)
        assert OutputNoise(0.1)(Fixed(rows)).embed(images(2).take(range(2))).dtype == got
        assert (rows == 7).all()

    def test_is_put_on_answers_to_texts(self):
        rows = np.ones((3, 8))
        one, two, again = OutputNoise(0.1)(Fixed(rows)).embed(["one", "two", "one"])
        assert (one != two).any()
        np.testing.assert_array_equal(one, again)

    @pytest.mark.parametrize("shape", [(3,), (2, 4), (3, 2, 2)])
    def test_refuses_answers_that_are_not_one_row_an_item(self, images, shape):
        class Wrong:
            def embed(self, batch):
                return np.zeros(shape)

        with pytest.raises(EncoderError, match="3 items were answered with an array of shape"):
            OutputNoise(0.1)(Wrong()).embed(images(3).take(range(3)))
