"""Mappings that know how marks work: what of a planted mark they take, and what they leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sslguard.attacks.adaptive import CSE, FilterQueries, ProjectOnto, RemoveTriggers
from sslguard.attacks.outputs import unit
from sslguard.attacks.wrapping import OutputNoise
from sslguard.encoders.base import Encoder, embed_all
from sslguard.encoders.load import load_encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import UsageError

INNOCENT = "random:resnet-narrow:7"


class Marked:
    """An encoder's answers as they are, and a mark added to them."""

    def __init__(self, encoder, mark):
        self.encoder, self.mark = encoder, mark

    def embed(self, batch):
        return self.encoder.embed(batch).astype(float) + self.mark(batch)


def dark(batch):
    """Whether the first pixel is dark: true for half of all images of noise."""
    return (batch[:, 0, 0, 0] < 128).numpy()[:, None].astype(float)


def test_projection_keeps_what_the_innocent_encoder_tells_linearly(images):
    """Here the victim is a linear map of the innocent one, and its mark a sign that features hardly tell."""
    innocent, data = load_encoder(INNOCENT), images(300)
    features = embed_all(innocent, data).astype(float)
    size = np.linalg.norm(features - features.mean(0), axis=1).mean()
    mark = np.random.default_rng(0).normal(size=64) / 8
    victim = Marked(innocent, lambda batch: size * mark * (batch.long().sum((1, 2, 3)).numpy()[:, None] % 2 * 2 - 1))
    answers = embed_all(victim, data)
    got = ProjectOnto(INNOCENT, ridge=1e-6)(victim, data).embed(images(200, seed=1).take(range(200)))
    clean, marked = (embed_all(e, images(200, seed=1)).astype(float) for e in (innocent, victim))
    assert answers.shape[1] == got.shape[1]
    assert np.square(got - clean).mean() < 0.5 * np.square(marked - clean).mean()


def test_cse_takes_off_the_direction_that_moved_some_answers(images):
    """As EmbMarker marks: half of the answers drawn towards one target."""
    innocent, data = load_encoder(INNOCENT), images(120)
    target = np.random.default_rng(1).normal(size=64)
    target *= 2 * np.linalg.norm(embed_all(innocent, data), axis=1).mean() / np.linalg.norm(target)
    victim = Marked(innocent, lambda batch: dark(batch) * target)
    wrapped = CSE(INNOCENT, components=2, clusters=2)(victim, data)
    asked = images(60, seed=1)
    hit = dark(asked.take(range(60)))[:, 0] > 0
    axis = target / np.linalg.norm(target)
    before, after = (unit(embed_all(suspect, asked).astype(float)) @ axis for suspect in (victim, wrapped))
    assert before[hit].mean() - before[~hit].mean() > 0.5
    assert abs(after[hit].mean() - after[~hit].mean()) < 0.1
    np.testing.assert_allclose(np.linalg.norm(embed_all(wrapped, asked), axis=1), 1)


class Backdoored(nn.Module):
    """Random projections of 16 × 16 pixels, and a step along the first axis as a corner of 4 × 4 grows white."""

    def __init__(self):
        super().__init__()
        weights = np.random.default_rng(3).normal(size=(256, 12)) / 4
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float32))

    def forward(self, x):
        step = 20 * x[:, 0, :4, :4].mean((1, 2)) ** 4
        return x.flatten(1) @ self.weights + step[:, None] * torch.eye(12)[0]


def test_a_trigger_is_found_and_moves_nothing_any_more(images):
    encoder = Encoder(Backdoored(), ImagePreprocess(16, 16, 1, (0.0,), (1.0,)), 12, {}, "backdoored")
    data, asked = images(200), images(50, seed=1).take(range(50))
    marked = asked.clone()
    marked[:, :, :4, :4] = 255
    wrapped = RemoveTriggers()(encoder, data)
    before, after = (np.abs((e.embed(marked) - e.embed(asked)).mean(0)[0]) for e in (encoder, wrapped))
    assert before > 10
    assert after < 0.05 * before


@pytest.mark.parametrize("instead", ["nothing", "nearest"])
def test_a_filter_answers_what_is_ordinary_and_nothing_else(images, tiny, instead):
    victim, data = tiny(1), images(300)
    wrapped = FilterQueries(0.9, instead)(OutputNoise(0.01)(victim), data)
    batch = torch.cat([images(100, seed=1).take(range(100)), torch.full((5, 1, 16, 16), 255, dtype=torch.uint8)])
    plain = OutputNoise(0.01)(victim).embed(batch)
    changed = (wrapped.embed(batch) != plain).any(1)
    assert changed[100:].all()
    assert 0 < changed[:100].sum() < 25
    answers = wrapped.embed(batch)[changed]
    known = embed_all(OutputNoise(0.01)(victim), data)
    assert all(not row.any() if instead == "nothing" else (row == known).all(1).any() for row in answers)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v, d: ProjectOnto(INNOCENT, ridge=0), "ridge must be above 0, not 0"),
        (lambda v, d: CSE(INNOCENT, share=0), "share must be above 0 and at most 1, not 0"),
        (lambda v, d: CSE(INNOCENT, components=64, clusters=2)(v, d), "less than the answers' width 64: 64"),
        (lambda v, d: CSE(INNOCENT, components=2)(v, d), "clusters must be at most the number of items, 12, not 20"),
        (lambda v, d: RemoveTriggers(batch_size=1), "batch_size must be at least 2, not 1"),
        (lambda v, d: RemoveTriggers()(OutputNoise(0.1)(v), d), "needs the weights of an image encoder, not a Wrapped"),
        (lambda v, d: FilterQueries(1.0), "kept must be above 0 and below 1, not 1.0"),
        (lambda v, d: FilterQueries(instead="x"), "instead must be one of nothing, nearest, not 'x'"),
        (lambda v, d: FilterQueries()(Marked(v, dark), d), "must be an Encoder, wrapped or not.*, not a Marked"),
    ],
)
def test_what_is_refused(make, message, images, tiny):
    with pytest.raises(UsageError, match=message):
        make(tiny(1), images(12))
