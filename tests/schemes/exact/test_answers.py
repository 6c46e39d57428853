"""What answers are taken for, and what of them is tested."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from sslguard.errors import SuspectError
from sslguard.schemes.exact.answers import FOLDED, KINDS, MOST_COLUMNS, folded, kind_of, reduced, scores

N = 300


def shares(classes: int = 10, seed: int = 0) -> np.ndarray:
    return softmax(2 * np.random.default_rng(seed).standard_normal((N, classes)), axis=1)


def top(classes: int, named: int) -> np.ndarray:
    found = shares(classes)
    least = np.sort(found, axis=1)[:, -named][:, None]
    return np.where(found >= least, found, 0)


def missing(answers: np.ndarray, every: int = 3) -> np.ndarray:
    return answers * (np.arange(len(answers)) % every > 0)[:, None]


RNG = np.random.default_rng(1)
PLAIN = RNG.standard_normal((N, 16))
RELU = np.maximum(PLAIN, 0)
ONE_HOT = np.eye(10)[RNG.integers(0, 10, N)]
KINDS_OF = {
    "embeddings": [
        ("Gaussian", PLAIN),
        ("ReLU", RELU),
        ("ReLU below 1", RELU / RELU.max()),
        ("nonnegative, of length 1", RELU / np.linalg.norm(RELU, axis=1, keepdims=True)),
        ("all positive, of length 1", np.abs(PLAIN) / np.linalg.norm(PLAIN, axis=1, keepdims=True)),
        ("signs", np.sign(PLAIN)),
        ("bits", (PLAIN > 0) * 1.0),
        ("logits", 3 * RNG.standard_normal((N, 10))),
        ("logarithms of probabilities", np.log(shares())),
        ("half missing", missing(PLAIN, 2)),
        ("zeros", np.zeros((N, 16))),
        ("constant", np.full((N, 16), 0.25)),
        ("constant column", np.full((N, 1), 3.0)),
        ("one number", PLAIN[:, :1]),
        ("whole negative numbers", np.round(3 * PLAIN[:, :1])),
        ("tiny", 1e-30 * np.abs(PLAIN)),
        ("huge", 1e300 * PLAIN),
    ],
    "probabilities": [
        ("softmax", shares()),
        ("two classes", shares(2)),
        ("many classes", shares(1000)),
        ("float32", shares().astype(np.float32).astype(float)),
        ("4 digits", np.round(shares(), 4)),
        ("2 digits", np.round(shares(), 2)),
        ("2 digits, many classes", np.round(shares(100), 2)),
        ("half missing", missing(shares(), 2)),
        ("sure", np.round(softmax(30 * RNG.standard_normal((N, 10)), axis=1), 6)),
        ("top 5 of 100", top(100, 5)),
        ("top 5 of 100, 3 digits, some missing", missing(np.round(top(100, 5), 3))),
    ],
    "labels": [
        ("in one column", RNG.integers(0, 10, (N, 1)) * 1.0),
        ("two labels", RNG.integers(0, 2, (N, 1)) * 1.0),
        ("one-hot", ONE_HOT),
        ("one-hot, some missing", missing(ONE_HOT)),
    ],
}
CASES = [(kind, name, answers) for kind, table in KINDS_OF.items() for name, answers in table]


@pytest.mark.parametrize(("kind", "name", "answers"), CASES, ids=[f"{kind}: {name}" for kind, name, _ in CASES])
def test_kinds_are_told_from_answers_alone(kind, name, answers):
    assert kind_of(answers) == kind
    assert kind_of(answers[::-1]) == kind  # whatever their order


class TestScores:
    H = np.random.default_rng(2).standard_normal((N, 6)) * [1, 0.5, 0.3, 0.2, 0.1, 0.05]

    def test_embeddings_stay(self):
        assert scores("embeddings", PLAIN, self.H) is PLAIN

    def test_logits_lose_their_rows_means(self):
        found = scores("logits", missing(PLAIN), self.H)
        np.testing.assert_allclose(found.mean(1), 0, atol=1e-12)
        assert not found[::3].any()
        np.testing.assert_allclose(
            found, scores("logits", missing(PLAIN) + 7 * (np.arange(N) % 3 > 0)[:, None], self.H)
        )

    def test_probabilities_are_logits_again(self):
        logits = RNG.standard_normal((N, 10))
        found = scores("probabilities", missing(softmax(logits, axis=1)), self.H)
        np.testing.assert_allclose(found, scores("logits", missing(logits), self.H), atol=1e-9)

    def test_rounded_probabilities_count_as_half_a_unit_where_they_are_0(self):
        given = np.round(shares(classes=30), 2)
        given[0] = [0.98, 0.02, *[0.0] * 28]
        found = np.exp(scores("probabilities", given, self.H)[0])
        assert found[0] / found[1] == pytest.approx(49)
        assert found[1] / found[2] == pytest.approx(0.02 / 0.005)

    def test_what_was_left_out_shares_what_is_left(self):
        given = top(100, 5)
        found = np.exp(scores("probabilities", given, self.H))
        rest = (1 - given.sum(1)) / 95
        i, j = given[0].argmax(), given[0].argmin()
        assert found[0, i] / found[0, j] == pytest.approx(given[0, i] / rest[0])

    @pytest.mark.parametrize("column", [False, True])
    def test_of_labels_what_h_does_not_foretell(self, column):
        """Labels that h tells leave little; others nearly all. Either is orthogonal to h."""
        told, untold = self.H[:, 0] > 0, RNG.integers(0, 2, N)
        sizes = []
        for labels in (told, untold):
            given = labels[:, None] * 1.0 if column else np.eye(2)[labels * 1]
            found = scores("labels", given, self.H)
            np.testing.assert_allclose(found.sum(1), 0, atol=1e-9)
            np.testing.assert_allclose(self.H.T @ found / N, 0, atol=2e-3)
            sizes.append(np.square(found).mean())
        assert 4 * sizes[0] < sizes[1]

    def test_missing_labels_stay_missing_but_a_column_has_none(self):
        assert not scores("labels", missing(ONE_HOT), self.H)[::3].any()
        column = scores("labels", ONE_HOT.argmax(1)[:, None] * 1.0, self.H)
        assert column.any(axis=1).all()
        np.testing.assert_allclose(column, scores("labels", ONE_HOT, self.H), atol=1e-9)

    def test_names_of_labels_do_not_count(self):
        labels = ONE_HOT.argmax(1)
        one, two = (scores("labels", column[:, None] * 1.0, self.H) for column in (labels, 1000 - 3 * labels))
        np.testing.assert_allclose(one, two[:, ::-1], atol=1e-6)

    def test_rare_labels_count_as_one(self):
        labels = RNG.integers(0, 3, N)
        labels[:12] = np.arange(12) + 50
        assert scores("labels", labels[:, None] * 1.0, self.H).shape == (N, 4)

    def test_what_cannot_be_of_this_kind(self):
        with pytest.raises(SuspectError, match="must not be negative: say --answers"):
            scores("probabilities", PLAIN, self.H)

    def test_one_label_for_all_tells_nothing(self):
        for same in (np.ones((N, 1)), np.eye(10)[[3] * N]):
            assert not scores("labels", same, self.H).any()

    @pytest.mark.parametrize("kind", KINDS)
    def test_any_answers_give_finite_numbers(self, kind):
        for answers in (RELU, missing(np.round(shares(), 1)), 1e30 * np.abs(PLAIN), 1e-30 * np.abs(PLAIN), ONE_HOT):
            assert np.isfinite(scores(kind, answers, self.H)).all()


class TestWideAnswers:
    def test_leading_components_of_many_columns(self):
        narrow = RNG.standard_normal((N, 40)) * np.geomspace(1, 1e-3, 40)
        wide = narrow @ np.linalg.qr(RNG.standard_normal((1500, 40)))[0].T + 0.3
        found = reduced(wide)
        assert found.shape[1] <= MOST_COLUMNS
        known, kept = (np.linalg.svd(a - a.mean(0), compute_uv=False)[:40] for a in (wide, found))
        np.testing.assert_allclose(kept, known, rtol=1e-3)
        assert np.array_equal(found, reduced(wide))

    def test_few_columns_stay(self):
        assert reduced(PLAIN) is PLAIN

    def test_folding_keeps_inner_products(self):
        rows = np.random.default_rng(0).normal(size=(40, 5000))
        assert folded(rows).shape == (40, FOLDED)
        np.testing.assert_allclose(folded(rows) @ folded(rows).T / 5000, rows @ rows.T / 5000, atol=0.12)
        np.testing.assert_allclose(folded(rows[:7] * 3), 3 * folded(rows)[:7])
        assert not folded(np.zeros((2, 9000))).any()
