"""One contract for every attack, and what each does to a network."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from helpers.command_line import interrupt_at
from sslguard.attacks import removal
from sslguard.attacks.removal import FineTune, LoRA, Overwrite, Prune, Removal, SelfSupervised, Soup
from sslguard.attacks.stealing import Distil, Stealing, recipes
from sslguard.crypto.secrets import Secret
from sslguard.data.sources import ArrayData
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import DataError, UsageError
from sslguard.schemes.base import Scheme, Watermarked
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.training.base import Loop
from sslguard.training.loop import run
from sslguard.training.pretraining import Pretraining
from sslguard.training.supervised import Supervised, SupervisedTask, train_supervised

BRIEF = {name: replace(recipe, steps=2, batch_size=8) for name, recipe in recipes().items()}
STEALING = {name: Distil(recipe) for name, recipe in BRIEF.items()}
TUNING = Supervised(steps=2, batch_size=8, learning_rate=1e-2)
GOING_ON = Pretraining("simclr", steps=2, batch_size=8, learning_rate=1e-3, queue=16, projection=8)
MARKING = SSLGuard(
    steps=2, batch_size=4, trigger_batch=4, decoder_hidden=(12, 10), secret_dim=6, n_verification=10, n_queries=8
)
REMOVAL = {
    "fine-tune": FineTune(TUNING),
    "fine-tune the last block": FineTune(replace(TUNING, layers="last")),
    "prune a fifth": Prune(0.2),
    "prune most": Prune(0.9),
    "prune every layer": Prune(0.5, scope="layer"),
    "go on with SimCLR": SelfSupervised(GOING_ON),
    "go on with MoCo": SelfSupervised(replace(GOING_ON, method="moco")),
    "go on with BYOL": SelfSupervised(replace(GOING_ON, method="byol")),
    "overwrite": Overwrite(MARKING),
}
REMOVAL["fine-tune for epochs"] = FineTune(TUNING, epochs=0.6)
REMOVAL["updates of low rank"] = LoRA(TUNING, rank=2)
REMOVAL["soup"] = Soup(TUNING, copies=2)
ATTACKS = {**STEALING, **REMOVAL}
TRAINED = {name: attack for name, attack in ATTACKS.items() if not isinstance(attack, Prune | Soup)}


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


@pytest.mark.parametrize("name", TRAINED)
class TestCheckpoints:
    def test_a_killed_run_goes_on_to_the_same_result(self, name, data, tiny, hashed, tmp_path, monkeypatch):
        kept, attack = tmp_path / "checkpoint.pt", TRAINED[name]
        expected = hashed(attack(tiny(1), data, seed=5))
        steps = interrupt_at(monkeypatch, 0)
        with pytest.raises(KeyboardInterrupt):
            attack(tiny(1), data, seed=5, checkpoint=kept)
        assert kept.exists()
        steps.clear()
        victim = tiny(1)
        before = hashed(victim)
        got = attack(victim, data, seed=5, checkpoint=kept)
        assert steps == [1]
        assert hashed(got) == expected
        assert hashed(victim) == before
        # Once more it has nothing left to do.
        steps.clear()
        assert hashed(attack(tiny(1), data, seed=5, checkpoint=kept)) == expected
        assert steps == []

    def test_progress_is_drawn_on_standard_error(self, name, data, tiny, capsys):
        TRAINED[name](tiny(1), data, seed=5, progress=True)
        out, err = capsys.readouterr()
        assert out == ""
        assert "2/2" in err
        TRAINED[name](tiny(1), data, seed=5)
        assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", sorted(TRAINED.keys() & REMOVAL.keys()))
def test_a_checkpoint_of_another_victim_or_seed_is_refused(name, data, tiny, tmp_path):
    kept, attack = tmp_path / "checkpoint.pt", TRAINED[name]
    attack(tiny(1), data, seed=5, checkpoint=kept)
    for victim, seed in ((tiny(2), 5), (tiny(1), 6)):
        with pytest.raises(UsageError, match="belongs to a run with other settings"):
            attack(victim, data, seed=seed, checkpoint=kept)


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
        assert {recipe.loss for recipe in chosen.values()} == {"cosine", "mse", "infonce", "centred"}
        assert {recipe.augmentation is None for recipe in chosen.values()} == {True, False}
        assert len({recipe.architecture for recipe in chosen.values()}) >= 4
        assert all(recipe.steps in (10, 20) for recipe in chosen.values())
        assert len({repr(recipe) for recipe in chosen.values()}) == len(chosen)

    def test_the_population_s_thieves_keep_their_names(self):
        # The shipped controls were made by them.
        assert list(recipes()) == [
            "cosine", "mse", "infonce", "centred-augmented", "narrow", "plain", "separable-augmented",
        ]  # fmt: skip


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

    @pytest.mark.parametrize(
        ("scope", "first", "second"),
        [("global", [0.0] * 10, [20.0 * k for k in range(1, 11)]), ("layer", [0.0] * 5, [0.0] * 5)],
    )
    def test_ranks_weights_by_scope(self, scope, first, second):
        """Layers of 1 … 10 and of 20 … 200, signs in turn: by hand."""
        layers = [nn.Linear(5, 2), nn.Linear(2, 5)]
        with torch.no_grad():
            for layer, unit in zip(layers, (1, 20), strict=True):
                signed = torch.tensor([unit * k * (-1.0) ** k for k in range(1, 11)])
                layer.weight.copy_(signed.reshape(layer.weight.shape))
        victim = Encoder(nn.Sequential(*layers), ImagePreprocess(1, 1), 5, {}, "by hand")
        pruned = Prune(0.5, scope=scope)(victim).module
        assert pruned[0].weight.abs().flatten()[: len(first)].tolist() == first
        assert pruned[1].weight.abs().flatten()[: len(second)].tolist() == second
        assert int((pruned[0].weight == 0).sum() + (pruned[1].weight == 0).sum()) == 10
        for before, after in zip(layers, pruned, strict=True):
            kept = after.weight != 0
            assert torch.equal(after.weight[kept], before.weight[kept])
            assert torch.equal(after.bias, before.bias)

    @pytest.mark.parametrize("amount", [0.1, 0.3, 0.5, 0.7, 0.9])
    def test_takes_the_share_of_every_layer(self, tiny, amount):
        victim = tiny(1, linear=7)
        pruned = Prune(amount, scope="layer")(victim)
        kinds = (nn.Conv2d, nn.Linear)
        shares = []
        for before, after in zip(victim.module.modules(), pruned.module.modules(), strict=True):
            if isinstance(before, kinds):
                order = np.argsort(np.abs(before.weight.detach().numpy()), axis=None)
                expected = before.weight.detach().numpy().copy().reshape(-1)
                expected[order[: int(amount * len(order))]] = 0
                np.testing.assert_array_equal(after.weight.detach().numpy().reshape(-1), expected)
                shares.append(float((after.weight == 0).float().mean()))
        assert len(shares) == 10
        np.testing.assert_allclose(shares, amount, atol=0.01)

    def test_twice_takes_the_share_once(self, tiny, hashed):
        once = Prune(0.5, scope="layer")(tiny(1))
        assert hashed(Prune(0.3, scope="layer")(once)) == hashed(once)

    def test_spares_a_layer_too_small_for_the_share(self):
        victim = Encoder(nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 10)), ImagePreprocess(1, 1), 10, {}, "by hand")
        pruned = Prune(0.2, scope="layer")(victim).module
        assert [int((layer.weight == 0).sum()) for layer in pruned] == [0, 2]

    def test_of_an_unknown_scope_is_refused(self):
        with pytest.raises(UsageError, match="scope must be one of global, layer, not 'network'"):
            Prune(0.5, scope="network")

    @pytest.mark.parametrize("amount", [0, 1, -0.1, 1.5, float("nan")])
    def test_all_or_nothing_is_refused(self, amount):
        with pytest.raises(UsageError, match=r"amount must be (a finite number )?above 0 and below 1"):
            Prune(amount)


class TestFineTuning:
    def test_of_the_last_block_moves_no_other_weight(self, data, tiny):
        victim = tiny(1)
        tuned = FineTune(replace(TUNING, layers="last"))(victim, data, seed=0)
        last = max(int(n.split(".")[0]) for n, _ in victim.module.named_parameters())
        for (name, before), after in zip(victim.module.named_parameters(), tuned.module.parameters(), strict=True):
            assert torch.equal(before, after) is not name.startswith(f"{last}."), name

    def test_of_low_rank_moves_each_layer_by_that_rank_and_nothing_else(self, data, tiny):
        victim = tiny(1)
        tuned = LoRA(TUNING, rank=2)(victim, data, seed=0)
        assert tuned.module.state_dict().keys() == victim.module.state_dict().keys()
        for (name, before), after in zip(victim.module.named_parameters(), tuned.module.parameters(), strict=True):
            rank = (
                torch.linalg.matrix_rank((after - before).detach().double().flatten(1), rtol=1e-5)
                if before.dim() > 1
                else 0
            )
            assert rank == (min(2, *before.flatten(1).shape) if before.dim() > 1 else 0), name
            assert after.requires_grad

    def test_of_a_soup_is_the_mean_of_copies(self, data, tiny):
        victim = tiny(1)
        first, second = (FineTune(TUNING)(victim, data, seed=seed).module.state_dict() for seed in (3, 4))
        mixed = Soup(TUNING, copies=2)(victim, data, seed=3).module.state_dict()
        for name, value in mixed.items():
            assert torch.allclose(value.double(), (first[name].double() + second[name].double()) / 2, atol=1e-6), name

    def test_of_all_moves_every_weight(self, data, tiny):
        victim = tiny(1)
        tuned = FineTune(TUNING)(victim, data, seed=0)
        for (name, before), after in zip(victim.module.named_parameters(), tuned.module.parameters(), strict=True):
            assert not torch.equal(before, after), name

    def test_of_a_linear_layer_on_top(self, data, tiny):
        victim = tiny(1, linear=7)
        tuned = FineTune(replace(TUNING, layers="last"))(victim, data, seed=0)
        assert not torch.equal(victim.module.backbone[5].conv2.weight, tuned.module.backbone[5].conv2.weight)

    @pytest.mark.parametrize(
        ("epochs", "n", "batch_size", "steps"),
        # 1.1 · 100 is 110.00000000000001 in binary.
        [(1, 24, 8, 3), (0.6, 24, 8, 2), (0.01, 24, 8, 1), (2.5, 24, 24, 3), (1.1, 100, 10, 11), (1, 25, 8, 4)],
    )
    def test_for_epochs_rounds_their_steps_up(self, images, tiny, monkeypatch, epochs, n, batch_size, steps):
        given = []
        monkeypatch.setattr(removal, "train_supervised", lambda recipe, *_, **__: given.append(recipe))
        FineTune(replace(TUNING, batch_size=batch_size, steps=77), epochs)(tiny(1), images(n, classes=3), seed=0)
        assert given == [replace(TUNING, batch_size=batch_size, steps=steps)]

    @pytest.mark.parametrize("epochs", [0, -1, float("nan"), float("inf")])
    def test_for_no_epochs_is_refused(self, epochs):
        with pytest.raises(UsageError, match=f"epochs must be (a finite number )?above 0, not {epochs}"):
            FineTune(TUNING, epochs)

    def test_says_what_it_cost(self, data, tiny):
        record = FineTune(TUNING)(tiny(1), data, seed=0).record
        assert record["seconds"] >= 0
        assert record["cpu_seconds"] >= 0
        assert np.isfinite(record["final_loss"])

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


class TestGoingOn:
    @pytest.mark.parametrize("method", ["simclr", "moco", "byol"])
    def test_starts_from_the_victim(self, data, tiny, method):
        victim = tiny(1)
        barely = SelfSupervised(replace(GOING_ON, method=method, learning_rate=1e-7))(victim, data, seed=0)
        pairs = list(zip(victim.module.parameters(), barely.module.parameters(), strict=True))
        assert max(float((a - b).detach().abs().max()) for a, b in pairs) < 1e-6
        assert any(not torch.equal(a, b) for a, b in pairs)

    def test_trains_frozen_weights_too(self, data, tiny):
        victim = tiny(1)
        victim.module.requires_grad_(False)
        after = SelfSupervised(GOING_ON)(victim, data, seed=0)
        for (name, a), b in zip(victim.module.named_parameters(), after.module.parameters(), strict=True):
            assert not torch.equal(a, b), name

    def test_pulls_views_together(self, tiny):
        """NT-Xent of fixed pairs of views of blotches, written out here, falls."""
        blotches = np.random.default_rng(0).integers(0, 256, (24, 1, 3, 3), dtype=np.uint8)
        data = ArrayData("blotches", blotches.repeat(6, axis=2).repeat(6, axis=3)[:, :, 1:17, 1:17], None)
        victim = tiny(1)
        views = GOING_ON.views.build(16, 16)
        recipe = replace(GOING_ON, steps=80, batch_size=24)
        after = SelfSupervised(recipe)(victim, data, seed=0)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            prepared = victim.prepare(data.take(range(24)))
            first, second = (views(prepared) for _ in range(2))

        def loss(encoder):
            with torch.inference_mode():
                a, b = (nn.functional.normalize(encoder.forward(v), dim=1) for v in (first, second))
            logits = (a @ b.T / recipe.temperature).double().numpy()
            return float(np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits)))

        assert loss(after) < loss(victim) - 0.1

    def test_names_what_it_came_from(self, data, tiny):
        victim = tiny(1)
        after = SelfSupervised(GOING_ON)(victim, data, seed=4)
        assert after.source == f"{victim.source}, simclr on {data.spec}"
        assert (after.record["from"], after.record["seed"]) == (victim.source, 4)
        assert after.record["recipe"]["steps"] == 2

    def test_labels_are_not_asked_for(self, images, tiny):
        assert SelfSupervised(GOING_ON)(tiny(1), images(8), seed=0).dim == tiny(1).dim


class Spy(Scheme):
    """Notes what it is given, and marks nothing."""

    name = "spy"

    def __init__(self):
        self.calls = []

    def watermark(self, clean, data, *, secret, **rest):
        self.calls.append((clean, data, secret))
        return Watermarked(clean.clone(), None, None)


class TestOverwriting:
    def test_is_the_scheme_itself_on_the_thief_s_secret(self, data, tiny, hashed):
        spy = Spy()
        Overwrite(spy)(tiny(1), data, seed=5)
        ((given, asked, secret),) = spy.calls
        assert hashed(given) == hashed(tiny(1))
        assert asked is data
        overwritten = Overwrite(MARKING)(tiny(1), data, seed=5)
        direct = MARKING.watermark(tiny(1), data, secret=secret)
        assert direct.key.watermarked_hash == hashed(overwritten)
        assert overwritten.source == f"{tiny(1).source}, overwritten by sslguard"
        assert overwritten.record["from"] == tiny(1).source
        assert secret.reveal().hex() not in json.dumps(overwritten.record)

    def test_takes_another_secret_for_every_seed_and_never_a_table_s(self, data, tiny):
        spy = Spy()
        for seed in (0, 1, 2, 2):
            Overwrite(spy)(tiny(1), data, seed=seed)
        secrets = [secret.reveal() for *_, secret in spy.calls]
        assert len(set(secrets)) == 3
        assert secrets[2] == secrets[3]
        assert not set(secrets) & {Secret.from_seed(k).reveal() for k in range(1000)}

    def test_marks_weights_that_came_frozen(self, data, tiny, hashed):
        victim = tiny(1)
        victim.module.requires_grad_(False)
        assert hashed(Overwrite(MARKING)(victim, data, seed=5)) == hashed(Overwrite(MARKING)(tiny(1), data, seed=5))

    def test_of_too_few_items_is_refused(self, images, tiny):
        with pytest.raises(UsageError, match="D_v takes 10"):
            Overwrite(MARKING)(tiny(1), images(8), seed=0)

    def test_under_a_negative_seed_is_refused(self, data, tiny):
        with pytest.raises(UsageError, match="seed must not be negative"):
            Overwrite(MARKING)(tiny(1), data, seed=-1)
