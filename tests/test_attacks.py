"""One contract for every attack, and what each does to a network."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from sslguard.attacks.removal import FineTune, Prune, Removal
from sslguard.attacks.stealing import Distil, Stealing, recipes
from sslguard.distillation import LOSSES
from sslguard.encoders import Encoder, load_folder, save_encoder
from sslguard.errors import DataError, UsageError
from sslguard.supervised import Supervised, SupervisedTask, train_supervised
from sslguard.training import Loop, run

BRIEF = {name: replace(recipe, steps=2, batch_size=8) for name, recipe in recipes().items()}
STEALING = {name: Distil(recipe) for name, recipe in BRIEF.items()}
TUNING = Supervised(steps=2, batch_size=8, learning_rate=1e-2)
REMOVAL = {
    "fine-tune": FineTune(TUNING),
    "fine-tune the last block": FineTune(replace(TUNING, layers="last")),
    "prune a fifth": Prune(0.2),
    "prune most": Prune(0.9),
}
ATTACKS = {**STEALING, **REMOVAL}


@pytest.fixture
def data(images):
    return images(24, classes=3)


def modes(module):
    return [(m.training, [p.requires_grad for p in m.parameters(recurse=False)]) for m in module.modules()]


@pytest.mark.parametrize("name", ATTACKS)
class TestContract:
    def test_the_victim_is_untouched(self, name, data, tiny, hashed, untouched_rng):
        victim = tiny(1)
        victim.module[0].train()
        victim.module[3].requires_grad_(False)
        before, modes_before, record = hashed(victim), modes(victim.module), dict(victim.record)
        ATTACKS[name](victim, data, seed=5)
        assert hashed(victim) == before
        assert modes(victim.module) == modes_before
        assert all(p.grad is None for p in victim.module.parameters())
        assert victim.record == record

    def test_same_seed_same_result(self, name, data, tiny, hashed):
        attack = ATTACKS[name]
        one, two, other = (hashed(attack(tiny(1), data, seed=seed)) for seed in (5, 5, 6))
        assert one == two
        # Pruning draws nothing.
        assert (one == other) is isinstance(attack, Prune)

    def test_gives_an_encoder_that_every_command_takes(self, name, data, tiny, tmp_path, hashed):
        victim = tiny(1)
        got = ATTACKS[name](victim, data, seed=5)
        assert isinstance(got, Encoder)
        assert got.dim == victim.dim
        assert not got.module.training
        assert hashed(got) != hashed(victim)
        assert got.source != victim.source
        assert got.record["made_by"]
        json.dumps(got.record, allow_nan=False)
        save_encoder(got, tmp_path / "got")
        loaded = load_folder(tmp_path / "got")
        batch = data.take(range(5))
        np.testing.assert_array_equal(loaded.embed(batch), got.embed(batch))
        assert np.isfinite(got.embed(batch)).all()

    def test_is_a_frozen_record_of_settings(self, name, data):
        attack = ATTACKS[name]
        assert isinstance(attack, Stealing | Removal)
        assert is_dataclass(attack)
        with pytest.raises(FrozenInstanceError):
            setattr(attack, fields(attack)[0].name, None)
        assert attack == type(attack)(**{f.name: getattr(attack, f.name) for f in fields(attack)})


class TestStealing:
    @pytest.mark.parametrize("name", STEALING)
    def test_sees_answers_alone_and_counts_them(self, name, data, counting):
        victim = counting()
        surrogate = STEALING[name](victim, data, seed=5)
        assert surrogate.dim == 5
        assert surrogate.record["queries"] == victim.asked
        assert surrogate.record["seconds"] >= 0

    def test_the_tables_thieves_cover_what_the_issue_asks(self):
        chosen = recipes(steps=10)
        assert len(chosen) >= 6
        assert {recipe.loss for recipe in chosen.values()} == set(LOSSES)
        assert {recipe.augmentation is None for recipe in chosen.values()} == {True, False}
        assert len({recipe.architecture for recipe in chosen.values()}) >= 4
        assert all(recipe.steps in (10, 20) for recipe in chosen.values())
        assert len({repr(recipe) for recipe in chosen.values()}) == len(chosen)


def convolutions(encoder):
    kinds = (nn.Conv2d, nn.Linear)
    return torch.cat([m.weight.detach().reshape(-1) for m in encoder.module.modules() if isinstance(m, kinds)])


class TestPruning:
    @pytest.mark.parametrize("amount", [0.1, 0.5, 0.95])
    def test_zeroes_that_share_of_the_smallest_weights(self, tiny, amount):
        victim = tiny(1, linear=7)
        before, after = convolutions(victim), convolutions(Prune(amount)(victim))
        zero = after == 0
        assert int(zero.sum()) == int(amount * len(before))
        assert before[zero].abs().max() <= before[~zero].abs().min()
        assert torch.equal(after[~zero], before[~zero])

    def test_leaves_everything_else(self, tiny):
        victim = tiny(1, linear=7)
        before, after = victim.module.state_dict(), Prune(0.5)(victim).module.state_dict()
        weights = {f"{n}.weight" for n, m in victim.module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        for key in before:
            assert torch.equal(before[key], after[key]) is (key not in weights), key

    @pytest.mark.parametrize("amount", [0, 1, -0.1, 1.5, float("nan")])
    def test_all_or_nothing_is_refused(self, amount):
        with pytest.raises(UsageError, match="amount must lie between 0 and 1"):
            Prune(amount)


class TestFineTuning:
    def test_of_the_last_block_moves_no_other_weight(self, data, tiny):
        victim = tiny(1)
        tuned = FineTune(replace(TUNING, layers="last"))(victim, data, seed=0)
        last = max(int(n.split(".")[0]) for n, _ in victim.module.named_parameters())
        for (name, before), after in zip(victim.module.named_parameters(), tuned.module.parameters(), strict=True):
            assert torch.equal(before, after) is not name.startswith(f"{last}."), name

    def test_of_all_moves_every_weight(self, data, tiny):
        victim = tiny(1)
        tuned = FineTune(TUNING)(victim, data, seed=0)
        for (name, before), after in zip(victim.module.named_parameters(), tuned.module.parameters(), strict=True):
            assert not torch.equal(before, after), name

    def test_of_a_linear_layer_on_top(self, data, tiny):
        victim = tiny(1, linear=7)
        tuned = FineTune(replace(TUNING, layers="last"))(victim, data, seed=0)
        assert not torch.equal(victim.module.backbone[5].conv2.weight, tuned.module.backbone[5].conv2.weight)

    def test_learns_the_labels(self, data, tiny):
        task = SupervisedTask(replace(TUNING, steps=30), tiny(1), data, seed=0)
        losses = run(task, Loop(steps=30, batch_size=24)).losses["loss"]
        assert losses[-1] < 0.3 * losses[0]

    def test_the_classifier_is_left_behind(self, data, tiny):
        tuned = train_supervised(TUNING, tiny(1), data, seed=0)
        assert tuned.module.state_dict().keys() == tiny(1).module.state_dict().keys()
        assert tuned.record["from"] == tiny(1).source

    def test_without_labels_is_refused(self, images, tiny):
        with pytest.raises(DataError, match="has no labels"):
            FineTune(TUNING)(tiny(1), images(8), seed=0)

    @pytest.mark.parametrize("settings", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"layers": "first"}])
    def test_a_recipe_that_makes_no_sense_is_refused(self, settings):
        with pytest.raises(UsageError):
            Supervised(**settings)
