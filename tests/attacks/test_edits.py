"""Edits of answers and of queries: each from its definition."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from sslguard.attacks.inputs import EditImages, EditTexts, Image, Smoothed
from sslguard.attacks.outputs import AverageWith, Edit, EditAnswers, averaged
from sslguard.attacks.wrapping import InputNoise, OutputNoise
from sslguard.errors import DataError, EncoderError, UsageError

ROWS = np.random.default_rng(0).normal(size=(30, 8)) * 3
BATCH = torch.arange(30, dtype=torch.uint8)[:, None, None, None].expand(30, 1, 2, 2)
AMOUNTS = {"round": 3, "top": 2, "truncate": 5, "drop": 3, "pad": 4, "shift": 3, "shuffle": 0, "normalise": 0}


class Rows:
    """Answers item k with row k; the item says its number."""

    dim = 8

    def __init__(self, rows=ROWS):
        self.rows = rows

    def embed(self, batch):
        return self.rows[batch[:, 0, 0, 0].long().numpy()]


def edited(edit, **settings):
    wrapped = EditAnswers(edit, AMOUNTS[edit], **settings)(Rows())
    answers = wrapped.embed(BATCH)
    assert wrapped.dim == answers.shape[1]
    return answers


class TestAnswers:
    def test_every_edit_is_tried(self):
        assert set(AMOUNTS) == set(get_args(Edit))

    @pytest.mark.parametrize("edit", AMOUNTS)
    def test_is_a_function_of_one_answer_and_leaves_missing_ones(self, edit):
        rows = ROWS.copy()
        rows[4] = 0
        wrapped = EditAnswers(edit, AMOUNTS[edit], seed=3)(Rows(rows))
        whole = wrapped.embed(BATCH)
        np.testing.assert_array_equal(wrapped.embed(BATCH[[7, 3]]), whole[[7, 3]])
        assert not whole[4].any()

    def test_rounding_leaves_so_many_levels_and_errs_by_half_a_step(self):
        answers, size = edited("round"), np.abs(ROWS).max(1, keepdims=True)
        levels = answers / size * 8
        np.testing.assert_allclose(levels, np.round(levels), atol=1e-9)
        assert len(np.unique(np.round(levels))) == 8
        assert (np.abs(answers - ROWS) <= size / 8 + 1e-12).all()
        signs = EditAnswers("round", 1)(Rows()).embed(BATCH)
        np.testing.assert_allclose(signs, np.sign(ROWS) * size / 2)

    def test_top_keeps_the_largest(self):
        answers = edited("top")
        kept = answers != 0
        assert (kept.sum(1) == 2).all()
        np.testing.assert_array_equal(answers[kept], ROWS[kept])
        assert (np.abs(ROWS) * ~kept).max(1).max() <= np.abs(ROWS).max()
        assert all(np.abs(r[k]).min() >= np.abs(r[~k]).max() for r, k in zip(ROWS, kept, strict=True))

    def test_places_are_cut_moved_and_mixed(self):
        np.testing.assert_array_equal(edited("truncate"), ROWS[:, :5])
        np.testing.assert_array_equal(edited("shift")[:, 3:], ROWS[:, :5])
        np.testing.assert_array_equal(edited("shift")[:, :3], ROWS[:, 5:])
        shuffled = edited("shuffle")
        np.testing.assert_array_equal(np.sort(shuffled, 1), np.sort(ROWS, 1))
        assert not np.array_equal(shuffled, edited("shuffle", seed=1))
        np.testing.assert_allclose(np.linalg.norm(edited("normalise"), axis=1), 1)
        np.testing.assert_allclose(edited("normalise"), ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True))

    @pytest.mark.parametrize(("edit", "kept"), [("drop", 5), ("pad", 8)])
    def test_secret_places_are_the_same_in_every_answer(self, edit, kept):
        answers = edited(edit)
        same = (answers[:, :, None] == ROWS[:, None, :]).all(0)
        assert same.sum() == kept
        if edit == "pad":
            noise = answers[:, ~same.any(1)] / np.sqrt(np.square(ROWS).mean(1, keepdims=True))
            # 120 normal numbers: the standard error of their root mean square is 6 %.
            assert np.sqrt(np.square(noise).mean()) == pytest.approx(1, abs=0.3)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: EditAnswers("bend", 1), "edit must be one of round, .*normalise, not 'bend'"),
            (lambda: EditAnswers("round"), "amount of round must be positive, not 0"),
            (lambda: EditAnswers("shuffle", 3), "amount of shuffle must be 0, not 3"),
            (lambda: EditAnswers("shuffle", seed=-1), "seed must be at least 0, not -1"),
        ],
    )
    def test_what_makes_no_edit_is_refused(self, make, message):
        with pytest.raises(UsageError, match=message):
            make()

    @pytest.mark.parametrize(("edit", "amount"), [("top", 9), ("truncate", 9), ("drop", 8)])
    def test_answers_that_are_too_narrow_are_refused(self, edit, amount):
        with pytest.raises(EncoderError, match=f"{edit} {amount} does not fit answers of width 8"):
            EditAnswers(edit, amount)(Rows())


class TestAverages:
    def test_unit_rows_are_averaged(self):
        other = ROWS[::-1] * 100
        expected = sum(r / np.linalg.norm(r, axis=1, keepdims=True) for r in (ROWS, other)) / 2
        np.testing.assert_allclose(averaged((Rows(), Rows(other)), BATCH), expected)

    def test_widths_must_agree(self):
        with pytest.raises(EncoderError, match="cannot average answers of widths 8, 5"):
            averaged((Rows(), Rows(ROWS[:, :5])), BATCH)
        with pytest.raises(UsageError, match="at least one encoder"):
            AverageWith(())(Rows())


def sent(wrapping, batch, counting):
    victim = counting()
    wrapping(victim).embed(batch)
    return victim.batches[0]


SCALES = {"blur": (0.3, 2.0), "jpeg": (90, 5), "resize": (0.9, 0.3), "crop": (0.95, 0.5), "colour": (0.1, 0.9)}


class TestImages:
    @pytest.mark.parametrize("edit", get_args(Image))
    def test_more_strength_changes_more_and_each_by_itself(self, edit, images, counting):
        batch = images(9).take(range(9))
        mild, strong = (sent(EditImages(edit, s), batch, counting) for s in SCALES[edit])
        assert (strong.shape, strong.dtype) == (batch.shape, batch.dtype)
        moved = [float((x.float() - batch.float()).square().mean()) for x in (mild, strong)]
        assert 0 < moved[0] < moved[1]
        alone = sent(EditImages(edit, SCALES[edit][1]), batch[4:5], counting)
        assert torch.equal(alone[0], strong[4])
        other = sent(EditImages(edit, SCALES[edit][1], seed=1), batch, counting)
        assert torch.equal(other, strong) is (edit not in ("crop", "colour"))

    @pytest.mark.parametrize("edit", ["blur", "resize", "crop"])
    def test_what_is_all_alike_stays(self, edit, counting):
        grey = torch.full((2, 3, 16, 16), 0.4)
        victim = counting()
        victim.projection = np.ones((768, 1), np.float32)
        EditImages(edit, SCALES[edit][1])(victim).embed(grey)
        torch.testing.assert_close(victim.batches[0], grey)

    def test_a_crop_is_a_part_of_the_image(self, counting):
        ramp = (torch.arange(256.0) / 255).reshape(1, 1, 16, 16)
        found = sent(EditImages("crop", 0.5), ramp, counting)
        assert float(found.max() - found.min()) < 0.6

    def test_texts_are_refused(self, counting):
        with pytest.raises(DataError, match="jpeg of images applies to images, not to items of type str"):
            EditImages("jpeg", 50)(counting()).embed(["a text"])


class Texts:
    def embed(self, batch):
        self.asked = list(batch)
        return np.array([[len(text), text.count("a")] for text in batch], float)


def read(edit, share, texts, **settings):
    victim = Texts()
    EditTexts(edit, share, **settings)(victim).embed(texts)
    return victim.asked


class TestTexts:
    LONG = " ".join(f"word{k}" for k in range(1000))

    @pytest.mark.parametrize("edit", ["case", "typos", "drop"])
    def test_so_many_words_are_drawn(self, edit):
        (text,) = read(edit, 0.3, [self.LONG])
        if edit == "drop":
            changed = 1000 - len(text.split())
            assert set(text.split()) <= set(self.LONG.split())
        else:
            changed = sum(a != b for a, b in zip(text.split(), self.LONG.split(), strict=True))
        # Of 1,000 draws: standard deviation 14.5. Two equal neighbours may change places, two in ninety here.
        assert changed == pytest.approx(300, abs=75)
        assert read(edit, 0.3, ["x", self.LONG])[1] == text
        assert read(edit, 0.3, [self.LONG], seed=1) != [text]

    def test_by_hand(self):
        assert read("case", 1.0, ["An  Apple"]) == ["aN aPPLE"]
        assert read("typos", 1.0, ["ab c"]) == ["ba cc"]
        assert read("drop", 1.0, ["first second", ""]) == ["first", ""]

    def test_images_are_refused(self):
        with pytest.raises(DataError, match="typos edits texts, not items of type Tensor"):
            EditTexts("typos", 0.1)(Texts()).embed(BATCH)


class TestSmoothing:
    def test_is_the_mean_over_seeds(self):
        texts = ["a word and another", "alpha beta gamma"]
        each = [EditTexts("drop", 0.5, seed=k)(Texts()).embed(texts) for k in (4, 5, 6)]
        got = Smoothed(EditTexts("drop", 0.5, seed=4), 3)(Texts()).embed(texts)
        np.testing.assert_allclose(got, np.mean(each, axis=0))
        assert not np.array_equal(each[0], each[1])

    def test_averages_noise_away(self):
        wrappings = OutputNoise(0.5), Smoothed(OutputNoise(0.5), 16)
        noise = [np.square(wrapping(Rows()).embed(BATCH) - ROWS).mean() for wrapping in wrappings]
        # A sixteenth of the variance; each is measured on 240 numbers.
        assert noise[1] / noise[0] == pytest.approx(1 / 16, rel=0.6)

    def test_what_makes_no_mean_is_refused(self):
        with pytest.raises(UsageError, match="by must be a wrapping with a seed"):
            Smoothed(AverageWith(("random:resnet-narrow",)))
        with pytest.raises(UsageError, match="copies must be at least 2, not 1"):
            Smoothed(InputNoise(0.1), 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EditImages("melt", 1),
        lambda: EditImages("jpeg", 0),
        lambda: EditImages("crop", 1.5),
        lambda: EditImages("blur", float("nan")),
        lambda: EditTexts("case", 0.0),
        lambda: EditTexts("case", 0.5, seed=-1),
    ],
)
def test_what_makes_no_edit_is_refused(make):
    with pytest.raises(UsageError):
        make()
