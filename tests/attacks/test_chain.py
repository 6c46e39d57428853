"""Attacks in a row: what each is given, what is refused before anything is asked, and what is written down."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from sslguard.attacks.chain import Chain
from sslguard.attacks.mapping import SignBits
from sslguard.attacks.removal import FineTune, Overwrite, Prune, Removal, SelfSupervised
from sslguard.attacks.stealing import Distil
from sslguard.attacks.wrapping import OutputNoise
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.encoders.wrapped import Wrapped
from sslguard.errors import DataError, UsageError
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.training.distillation import Distillation
from sslguard.training.pretraining import Pretraining
from sslguard.training.supervised import Supervised

STEAL = Distil(Distillation(architecture="resnet-narrow", steps=2, batch_size=8))
TUNE = FineTune(Supervised(steps=2, batch_size=8, learning_rate=1e-2))
LAUNDER = Distil(Distillation(architecture="plain-small", loss="mse", steps=2, batch_size=8))
MARK = Overwrite(
    SSLGuard(
        steps=1, batch_size=4, trigger_batch=4, decoder_hidden=(12, 10), secret_dim=6, n_verification=10, n_queries=8
    )
)
GO_ON = SelfSupervised(Pretraining("simclr", steps=1, batch_size=8, projection=8))
CHAINS = {
    "steal, tune, prune": Chain((STEAL, TUNE, Prune(0.5))),
    "tune, launder": Chain((TUNE, LAUNDER)),
    "steal, go on, overwrite, prune layers": Chain((STEAL, GO_ON, MARK, Prune(0.3, scope="layer"))),
}


# numpy.random.SeedSequence([5, place]).generate_state(1, numpy.uint64)[0] >> 1, of NumPy 2.
SEEDS = {1: 8_998_383_282_213_416_150, 2: 2_080_082_186_671_054_586}


@dataclass(frozen=True)
class Noted(Removal):
    """Writes down what it is given and hands on a copy."""

    calls: list

    def __call__(self, victim, data, *, seed):
        self.calls.append((victim, data, seed))
        return replace(victim.clone(), record={"made_by": "noted", "seconds": 1.5})


@pytest.fixture
def data(images):
    return images(24, classes=3)


@pytest.mark.parametrize("name", CHAINS)
class TestContract:
    def test_the_victim_is_untouched(self, name, data, tiny, hashed, untouched_rng):
        victim = tiny(1)
        before, record = hashed(victim), dict(victim.record)
        CHAINS[name](victim, data, seed=5)
        assert hashed(victim) == before
        assert victim.record == record

    def test_same_seed_same_result(self, name, data, tiny, hashed):
        one, two, other = (hashed(CHAINS[name](tiny(1), data, seed=seed)) for seed in (5, 5, 6))
        assert one == two != other

    def test_gives_an_encoder_that_every_command_takes(self, name, data, tiny, tmp_path, hashed):
        got = CHAINS[name](tiny(1), data, seed=5)
        assert got.dim == tiny(1).dim
        assert not got.module.training
        json.dumps(got.record, allow_nan=False)
        save_encoder(got, tmp_path / "got")
        assert hashed(load_folder(tmp_path / "got")) == hashed(got)

    def test_is_a_frozen_record_of_settings(self, name, data):
        with pytest.raises(FrozenInstanceError):
            CHAINS[name].steps = ()
        assert CHAINS[name] == Chain(CHAINS[name].steps)
        hash(CHAINS[name])


class TestSteps:
    def test_each_works_on_what_the_one_before_it_made(self, images, data, tiny, hashed):
        """Step by step."""
        queries = images(16, seed=8)
        got = Chain((STEAL, TUNE, Prune(0.5)))(tiny(1), (queries, data, None), seed=5)
        stolen = STEAL(tiny(1), queries, seed=5)
        tuned = TUNE(stolen, data, seed=SEEDS[1])
        pruned = Prune(0.5)(tuned)
        assert hashed(got) == hashed(pruned)
        assert got.source == f"distilled from {tiny(1).source}, trained on labels, pruned 50%"
        weights = torch.cat([m.weight.flatten() for m in got.module.modules() if isinstance(m, nn.Conv2d | nn.Linear)])
        assert int((weights == 0).sum()) == len(weights) // 2

    def test_each_gets_its_own_data_and_seed(self, images, tiny):
        calls = []
        sets = [images(4, seed=k) for k in range(3)]
        Chain((Noted(calls), Noted(calls), Noted(calls)))(tiny(1), sets, seed=5)
        assert [given for _, given, _ in calls] == sets
        assert [seed for *_, seed in calls] == [5, SEEDS[1], SEEDS[2]]

    def test_one_set_serves_all(self, images, tiny):
        calls = []
        Chain((Noted(calls), Noted(calls)))(tiny(1), data := images(4), seed=5)
        assert [given for _, given, _ in calls] == [data, data]

    def test_answers_are_changed_before_a_stealing_and_after_it(self, images, data, counting):
        """Step by step; what is served last is no encoder."""
        noise, signs, queries = OutputNoise(0.1), SignBits(), images(16)
        victim = counting()
        got = Chain((noise, STEAL, signs))(victim, (None, queries, data), seed=5)
        expected = signs(STEAL(noise(counting()), queries, seed=SEEDS[1]), data)
        batch = data.take(range(9))
        assert isinstance(got, Wrapped)
        np.testing.assert_array_equal(got.embed(batch), expected.embed(batch))
        assert victim.asked == got.record["queries"] == 16
        assert [step["made_by"] for step in got.record["steps"]] == ["output noise", "distil", "sign bits"]
        json.dumps(got.record, allow_nan=False)

    def test_a_chain_of_one_is_that_attack(self, data, tiny, hashed):
        assert hashed(Chain((STEAL,))(tiny(1), data, seed=5)) == hashed(STEAL(tiny(1), data, seed=5))

    def test_a_later_stealing_changes_the_architecture_and_asks_no_victim(self, images, counting):
        victim = counting()
        got = Chain((STEAL, LAUNDER))(victim, (images(16), images(20, seed=8)), seed=5)
        assert got.architecture["backbone"] == "plain-small"
        assert victim.asked == got.record["queries"] == 16

    def test_starts_from_answers_alone(self, data, counting):
        victim = OutputNoise(0.1)(counting())
        got = CHAINS["steal, tune, prune"](victim, data, seed=5)
        assert isinstance(got, Encoder)
        assert got.record["from"] == victim.source

    def test_record_holds_every_step(self, data, tiny):
        record = CHAINS["steal, tune, prune"](tiny(1), data, seed=5).record
        assert [step["made_by"] for step in record["steps"]] == ["distil", "supervised", "prune"]
        assert (record["made_by"], record["from"], record["seed"]) == ("chain", tiny(1).source, 5)
        assert record["queries"] == 24

    def test_record_adds_seconds_and_counts_no_queries_where_none_were_asked(self, images, tiny):
        record = Chain((Noted([]), Noted([]), Prune(0.5)))(tiny(1), images(4), seed=5).record
        assert 3.0 <= record["seconds"] < 4  # those of the last step are its own
        assert "queries" not in record


class TestRefusals:
    @pytest.mark.parametrize("steps", [(), [], [Prune(0.5)], None, "prune"])
    def test_steps_that_are_none(self, steps):
        with pytest.raises(UsageError, match="steps must be a tuple of at least one attack"):
            Chain(steps)

    @pytest.mark.parametrize("step", [Prune, Chain((Prune(0.5),))])
    def test_a_step_of_another_kind(self, step):
        with pytest.raises(UsageError, match="step 2 must be a stealing, removal, wrapping or mapping"):
            Chain((Prune(0.5), step))

    @pytest.mark.parametrize("before", [OutputNoise(0.1), SignBits()])
    def test_a_removal_where_there_are_no_weights(self, before):
        with pytest.raises(UsageError, match=f"step 3, Prune, changes weights, and behind {type(before).__name__}"):
            Chain((STEAL, before, Prune(0.5)))

    def test_a_removal_from_answers_alone(self, data, counting):
        victim = counting()
        with pytest.raises(UsageError, match="step 1, FineTune, changes weights: the victim must be an Encoder"):
            Chain((TUNE, STEAL))(victim, data, seed=0)
        assert victim.asked == 0

    @pytest.mark.parametrize("n", [0, 1, 3])
    def test_another_number_of_sets_than_steps(self, data, counting, n):
        victim = counting()
        with pytest.raises(UsageError, match=f"one for each of the 2 steps, not {n}"):
            Chain((STEAL, TUNE))(victim, [data] * n, seed=0)
        assert victim.asked == 0

    @pytest.mark.parametrize(
        ("steps", "place"), [((STEAL, TUNE), 2), ((STEAL, GO_ON), 2), ((STEAL, MARK), 2), ((STEAL, LAUNDER), 2)]
    )
    def test_nothing_for_a_step_that_needs_data(self, data, counting, steps, place):
        victim = counting()
        with pytest.raises(UsageError, match=f"step {place}, {type(steps[-1]).__name__}, needs a data set, not None"):
            Chain(steps)(victim, (data, None), seed=0)
        assert victim.asked == 0

    def test_a_specification_in_place_of_data(self, data, counting):
        with pytest.raises(UsageError, match="step 1, Distil, needs a data set, not 'fashion-mnist:train'"):
            Chain((STEAL, TUNE))(counting(), ("fashion-mnist:train", data), seed=0)

    def test_no_labels_for_a_fine_tuning(self, images, counting):
        victim = counting()
        with pytest.raises(DataError, match="step 2, FineTune, needs labels"):
            Chain((STEAL, TUNE))(victim, images(8), seed=0)
        assert victim.asked == 0

    def test_a_negative_seed(self, data, tiny):
        with pytest.raises(UsageError, match="seed must not be negative"):
            Chain((Prune(0.5),))(tiny(1), data, seed=-1)
