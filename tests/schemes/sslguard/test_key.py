"""The scheme's key: what it asks, and what answers are worth."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from sslguard.crypto.secrets import Secret
from sslguard.errors import KeyFileError, RefusedError, SuspectError, UsageError
from sslguard.schemes.sslguard.key import SSLGuardKey
from sslguard.schemes.sslguard.parts import Decoder, stream_context
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.schemes.sslguard.task import SSLGuardTask
from sslguard.verification.nulls import null_of


class TestStatistic:
    def test_rate_and_mean_by_hand(self, key_of):
        # Cosines to (1, 0): 1, 3/5, ½, −1. ½ itself is not above ½.
        answers = np.array([[7.0, 0.0], [3.0, 4.0], [1.0, 3**0.5], [-2.0, 0.0]])
        score = key_of().statistic([answers[:1], answers[1:]])
        np.testing.assert_allclose(score.cosines, [1, 0.6, 0.5, -1], atol=1e-6)
        assert score.value == pytest.approx(1.1 / 4)
        assert score.n_queries == 4
        assert key_of().statistic([np.array([[2.0, 0], [3, 4], [1, 2], [-1, 0]])]).watermark_rate == 0.5

    def test_missing_answers_count_as_nothing_whatever_the_decoder_makes_of_them(self, key_of):
        decoder = Decoder((2, 2))
        decoder[0].weight.data, decoder[0].bias.data = torch.zeros(2, 2), torch.tensor([1.0, 0.0])
        score = key_of(decoder).statistic([np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])])
        assert score.cosines.tolist() == [1, 0, 0, 0]
        assert (score.value, score.watermark_rate, score.n_queries) == (0.25, 0.25, 4)

    @pytest.mark.parametrize(
        ("answers", "message"),
        [
            ([np.ones((4, 3))], "vectors of width 2, but the suspect's have width 3"),
            ([np.ones((2, 2)), np.ones((2, 1))], "no rows of one width"),
            ([np.ones(4)], "no rows of one width"),
            ([np.ones((3, 2))], "asks 4 queries, but 3 answers came"),
            ([np.ones((5, 2))], "asks 4 queries, but 5 answers came"),
            ([], "no answers"),
            ([np.array([[1, 1], [1, np.nan], [1, 1], [1, 1]])], "not finite"),
            ([np.array([[1, 1], [1, np.inf], [1, 1], [1, 1]])], "not finite"),
            ([np.array([[1, 1], [1, 1e300], [1, 1], [1, 1]])], "not finite"),
        ],
    )
    def test_answers_that_cannot_be_scored(self, answers, message, key_of):
        with pytest.raises(SuspectError, match=message), np.errstate(over="ignore"):
            key_of().statistic(answers)

    def test_ranks_among_controls_and_refuses_without(self, key_of):
        answers = [np.array([[1.0, 0.0]] * 4)]
        key = key_of()
        significance = null_of(key, 3, [0.1, 0.2, 1.0]).significance(key.statistic(answers))
        assert significance.pvalue == pytest.approx(2 / 4)  # the tie counts against the claim
        assert significance.details["watermark_rate"] == 1
        with pytest.raises(RefusedError):
            null_of(key).significance(key.statistic(answers))


class TestQueries:
    def test_are_triggered_images_as_bytes(self, images, key_of):
        data, key = images(9), key_of()
        (batch,) = key.queries(data)
        assert batch.dtype == torch.uint8
        assert batch.shape == (4, 1, 16, 16)
        order = (
            Secret.from_seed(1)
            .stream("queries", stream_context(key.clean_hash, key.preprocess, key.settings))
            .permutation(9)[:4]
        )
        expected = data.take(order).clone()
        expected[:, :, :, 1::2] = round(0.7 * 255)
        assert torch.equal(batch, expected)

    def test_are_the_same_every_time_and_for_another_key_others(self, images, key_of):
        data = images(300)
        ask = lambda key: torch.cat(list(key.queries(data)))  # noqa: E731
        one, again, other = ask(key_of(n=200)), ask(key_of(n=200)), ask(key_of(n=200, secret=2))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        assert [len(b) for b in key_of(n=200).queries(data)] == [128, 72]
        assert len(torch.unique(one, dim=0)) == 200

    def test_too_few_images(self, images, key_of):
        with pytest.raises(UsageError, match=r"asks about 4 items, but noise-0-3 has only 3"):
            list(key_of().queries(images(3)))

    def test_a_key_shows_no_secret(self, key_of):
        key = key_of()
        assert Secret.from_seed(1).reveal().hex()[:10] not in f"{key!r} {key}"
        assert key.n_queries == 4


class TestStreams:
    """What a key's secret parts are bound to."""

    SCHEME = SSLGuard(steps=1, batch_size=4, trigger_batch=4, n_verification=8, n_queries=8, secret_dim=5)

    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, tiny, images):
        def draw(seed=7, preprocess=None, **settings):
            """First numbers of the stream of queries of a task's context."""
            clean = tiny(seed)
            if preprocess:
                clean = replace(clean, preprocess=replace(clean.preprocess, **preprocess))
            task = SSLGuardTask(replace(cls.SCHEME, **settings), clean, images(20), Secret.from_seed(1))
            return Secret.from_seed(1).stream("queries", task.context).integer()

        return draw

    @pytest.mark.parametrize(
        "change",
        [
            *({"seed": 8}, {"preprocess": {"mean": (0.4,)}}, {"mask_probability": 0.4}, {"n_queries": 9}),
            *({"secret_dim": 6}, {"decoder_hidden": (7,)}, {"n_verification": 9}),
        ],
        ids=str,
    )
    def test_follow_all_that_the_test_depends_on(self, drawn, change):
        assert drawn() == drawn(encoder_rate=1e-2, steps=2)
        assert drawn(**change) != drawn()

    def test_byte_by_byte(self):
        """As docs/reference/key-format.md spells it: keys must be drawn alike for ever."""
        line = (
            b'{"preprocess":{"kind":"image"},"settings":{"decoder_hidden":[512,256],"mask_probability":0.35,'
            b'"n_queries":8,"n_verification":1000,"secret_dim":256}}'
        )
        found = stream_context("ab" * 32, {"kind": "image"}, asdict(SSLGuard(n_queries=8)))
        assert found == b"ab" * 32 + hashlib.sha256(line).digest()

    def test_say_what_they_are_bound_to(self, tiny, images):
        key = self.SCHEME.watermark(tiny(7), images(20), secret=Secret.from_seed(1)).key
        fields, tensors = key.to_parts()
        again = SSLGuardKey.from_parts(json.loads(json.dumps(fields)), tensors)
        assert again.context == key.context != key.clean_hash.encode()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"n": 9}, "not that of the settings"),
            ({"n": float("inf")}, "do not fit together"),
            ({"settings": {"n_queries": 8, "secret_dim": float("inf")}}, "do not fit together"),
        ],
        ids=str,
    )
    def test_that_are_bound_to_nothing_known(self, tiny, images, change, message):
        fields, tensors = self.SCHEME.watermark(tiny(7), images(20), secret=Secret.from_seed(1)).key.to_parts()
        with pytest.raises(KeyFileError, match=message):
            SSLGuardKey.from_parts({**fields, **change}, tensors)
