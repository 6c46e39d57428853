"""Mappings of answers: each from its definition, and that a mapped suspect is one like any other."""

from __future__ import annotations

import numpy as np
import pytest

from sslguard.attacks.mapping import (
    Classify,
    LeadingComponents,
    LinearMap,
    ProductQuantise,
    SignBits,
    SubtractFeatures,
    SubtractStatistics,
)
from sslguard.attacks.wrapping import Wrapped
from sslguard.encoders.base import embed_all
from sslguard.errors import DataError, EncoderError, UsageError
from sslguard.schemes.exact.features import all_statistics
from sslguard.suspects.base import checked

MAPPINGS = {
    "rotation": LinearMap(),
    "linear map": LinearMap(condition=1e4, seed=2),
    "half, rotated": LinearMap(dimensions=4),
    "ReLU of a rotation": LinearMap(rectify=True),
    "components": LeadingComponents(5),
    "signs": SignBits(),
    "logits": Classify(),
    "probabilities": Classify("probabilities"),
    "probabilities of 4 digits": Classify("probabilities", digits=4),
    "labels": Classify("labels"),
    "quantised": ProductQuantise(parts=3, codewords=20),
    "subtracted": SubtractFeatures(components=3, features=20),
}
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(200, 8)) * np.linspace(3, 0.5, 8) + 1


class Rows:
    """Answers item k with row k of an array; the item says its number."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def embed(self, batch):
        return self.rows[batch[:, 0, 0, 0].long().numpy()]


@pytest.fixture(scope="module")
def numbered():
    from sslguard.data.sources import ArrayData

    pictures = np.zeros((200, 1, 2, 2), np.uint8)
    pictures[:, 0, 0, 0] = np.arange(200)
    return ArrayData("numbered", pictures, np.arange(200, dtype=np.int64) % 3)


@pytest.mark.parametrize("name", MAPPINGS)
def test_each_is_a_fixed_function_of_one_answer(name, numbered):
    wrapped = MAPPINGS[name](Rows(ROWS), numbered)
    assert isinstance(wrapped, Wrapped)
    whole = wrapped.embed(numbered.take(range(200)))
    checked(whole, 200)
    assert wrapped.dim == whole.shape[1]
    some = wrapped.embed(numbered.take([7, 3]))
    np.testing.assert_allclose(some, whole[[7, 3]], rtol=1e-9, atol=1e-12)
    again = MAPPINGS[name](Rows(ROWS), numbered).embed(numbered.take(range(200)))
    np.testing.assert_array_equal(whole, again)
    assert MAPPINGS[name].title in wrapped.source


@pytest.mark.parametrize("name", MAPPINGS)
def test_a_missing_answer_stays_one(name, numbered):
    rows = ROWS.copy()
    wrapped = MAPPINGS[name](Rows(rows), numbered)
    rows[5] = 0
    assert not wrapped.embed(numbered.take([5])).any()


def test_linear_maps_have_the_singular_values_that_were_asked_for(numbered):
    centred = ROWS - ROWS.mean(0)
    for condition in (1.0, 1e4):
        mapped = LinearMap(condition=condition)(Rows(ROWS), numbered).embed(numbered.take(range(200)))
        matrix = np.linalg.lstsq(centred, mapped, rcond=None)[0]
        np.testing.assert_allclose(centred @ matrix, mapped, atol=1e-9)
        sizes = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(sizes, np.geomspace(1, 1 / condition, 8), rtol=1e-6)


def test_some_of_the_mapped_numbers_are_the_first_of_all(numbered):
    whole, half = (LinearMap(dimensions=n)(Rows(ROWS), numbered).embed(numbered.take(range(200))) for n in (0, 4))
    assert half.shape == (200, 4)
    np.testing.assert_allclose(half, whole[:, :4])


def test_probabilities_are_rounded_as_asked(numbered):
    whole, rounded = (
        Classify("probabilities", digits=n)(Rows(ROWS), numbered).embed(numbered.take(range(200))) for n in (0, 3)
    )
    np.testing.assert_array_equal(rounded, np.round(whole, 3))
    assert not np.array_equal(rounded, whole)


def test_components_keep_the_variance_that_they_should(numbered):
    mapped = LeadingComponents(3)(Rows(ROWS), numbered).embed(numbered.take(range(200)))
    values = np.linalg.eigvalsh(np.cov(ROWS.T, bias=True))[::-1]
    np.testing.assert_allclose(np.cov(mapped.T, bias=True), np.diag(values[:3]), atol=1e-9)


def test_quantised_answers_are_few_and_near(numbered):
    served = ProductQuantise(parts=2, codewords=20)(Rows(ROWS), numbered)
    answers = served.embed(numbered.take(range(200)))
    for part in np.array_split(answers, 2, axis=1):
        assert 1 < len(np.unique(part, axis=0)) <= 20
    centred = ROWS - ROWS.mean(0)
    assert np.square(answers - ROWS).sum() < 0.5 * np.square(centred).sum()


def test_a_classifier_learns_what_can_be_told_apart(numbered):
    rows = ROWS + 6 * np.eye(8)[7 - numbered.labels]
    labels = Classify("labels")(Rows(rows), numbered).embed(numbered.take(range(200)))
    logits = Classify()(Rows(rows), numbered).embed(numbered.take(range(200)))
    assert (labels.argmax(1) == numbered.labels).mean() > 0.95
    assert (labels.sum(1) == 1).all()
    assert np.array_equal(logits.argmax(1), labels.argmax(1))
    np.testing.assert_allclose(logits.sum(1), 0, atol=1e-9)
    probabilities = Classify("probabilities")(Rows(rows), numbered).embed(numbered.take(range(200)))
    odds = np.exp(logits)
    np.testing.assert_allclose(probabilities, odds / odds.sum(1, keepdims=True), rtol=1e-9)


def test_subtracting_takes_features_out_and_leaves_what_is_linear(numbered):
    centred = ROWS - ROWS.mean(0)
    z = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    linear = np.hstack((np.ones((200, 1)), z))
    bend = np.cos(1.3 * z[:, :1] / z[:, 0].std() + 0.4)
    bend -= linear @ np.linalg.lstsq(linear, bend, rcond=None)[0]
    marked = ROWS + bend * np.repeat([0.0, 1.0], [5, 3])  # beside the leading components
    mapping = SubtractFeatures(components=2, features=60, frequency=1.0, ridge=1e-6)
    cleaned = mapping(Rows(marked), numbered).embed(numbered.take(range(200)))
    left, before = (np.abs(bend.T @ rows)[0, 5:] for rows in (cleaned, marked))
    assert left.max() < 0.1 * before.min()
    slopes = [np.linalg.lstsq(z, rows - rows.mean(0), rcond=None)[0] for rows in (cleaned, ROWS)]
    np.testing.assert_allclose(*slopes, atol=0.1)


def test_of_an_encoder(tiny, images):
    victim, data = tiny(1), images(60, classes=3)
    wrapped = LinearMap(seed=4)(victim, data)
    assert wrapped.dim == victim.dim
    mapped = embed_all(wrapped, data)
    own = embed_all(victim, data).astype(float)
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), np.linalg.norm(own - own.mean(0), axis=1), rtol=1e-6)


def test_what_is_refused(numbered, images):
    with pytest.raises(UsageError, match="condition must be at least 1"):
        LinearMap(condition=0.5)
    with pytest.raises(UsageError, match="output must be"):
        Classify("softmax")
    with pytest.raises(UsageError, match="features must be at least 1, not 0"):
        SubtractFeatures(features=0)
    with pytest.raises(UsageError, match=r"between 1 and \d+, the rank of the answers, not be 9"):
        LeadingComponents(9)(Rows(ROWS), numbered)
    bare = type(numbered)("bare", np.zeros((200, 1, 2, 2), np.uint8), None)
    with pytest.raises(DataError, match="no labels"):
        Classify()(Rows(ROWS), bare)
    wrapped = SignBits()(Rows(ROWS), numbered)
    wrapped.victim.rows = ROWS[:, 0]
    with pytest.raises(EncoderError, match="shape"):
        wrapped.embed(numbered.take([1, 2]))


def test_statistics_are_taken_off_and_nothing_else(tiny, images):
    victim, data = tiny(3), images(300)
    psi, plain = all_statistics(victim, data), embed_all(victim, data).astype(float)
    left = embed_all(SubtractStatistics(ridge=1e-9)(victim, data), data)
    z = psi - psi.mean(0)
    assert np.abs(z.T @ (left - left.mean(0))).max() < 1e-5 * np.abs(z.T @ (plain - plain.mean(0))).max()
    taken = plain - left
    half = embed_all(SubtractStatistics(ridge=1e-9, share=0.5)(victim, data), data)
    np.testing.assert_allclose(plain - half, taken / 2, atol=1e-6)
    fit = np.linalg.lstsq(np.hstack([np.ones((300, 1)), psi]), taken, rcond=None)[0]
    np.testing.assert_allclose(np.hstack([np.ones((300, 1)), psi]) @ fit, taken, atol=1e-6)
