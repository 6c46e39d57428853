"""Pre-training: losses against lightly's and by hand, the slow networks, the queue, and a whole short run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from sslguard.errors import UsageError
from sslguard.training.augmentation import MILD, VIEWS, Augmentation
from sslguard.training.base import Loop, isolated_rng
from sslguard.training.loop import run
from sslguard.training.pretraining import (
    Pretraining,
    PretrainingTask,
    byol_loss,
    new_encoder,
    nt_xent,
    pretrain,
    queue_loss,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def value_and_gradients(loss, *inputs):
    leaves = [t.clone().requires_grad_() for t in inputs]
    value = loss(*leaves)
    return value.item(), [g.numpy() for g in torch.autograd.grad(value, leaves)]


class TestLosses:
    """Values and gradients are lightly's; those that are written out were worked by hand."""

    @pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
    @pytest.mark.parametrize("n", [2, 7])
    def test_nt_xent_is_lightlys(self, n, temperature):
        from lightly.loss import NTXentLoss

        first, second = drawn(n, 5, seed=1), drawn(n, 5, seed=2)
        ours, gradients = value_and_gradients(lambda a, b: nt_xent(a, b, temperature), first, second)
        theirs, expected = value_and_gradients(NTXentLoss(temperature=temperature), first, second)
        assert ours == pytest.approx(theirs, rel=1e-5)
        np.testing.assert_allclose(gradients, expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
    def test_queue_loss_is_lightlys_with_a_memory_bank(self, temperature):
        from lightly.loss import NTXentLoss

        queries, keys, queue = drawn(4, 5, seed=1), drawn(4, 5, seed=2), drawn(9, 5, seed=3)
        theirs = NTXentLoss(temperature=temperature, memory_bank_size=(9, 5))
        theirs.memory_bank.bank = nnf.normalize(queue, dim=1)
        # A bank is put to use before it takes the new keys in, as MoCo's queue is.
        expected = theirs(queries.clone().requires_grad_(), keys).item()
        assert queue_loss(queries, keys, queue, temperature).item() == pytest.approx(expected, rel=1e-5)

    def test_byol_loss_is_lightlys(self):
        from lightly.loss import NegativeCosineSimilarity

        predictions, targets = drawn(6, 5, seed=1), drawn(6, 5, seed=2)
        expected = 2 + 2 * NegativeCosineSimilarity()(predictions, targets).item()
        assert byol_loss(predictions, targets).item() == pytest.approx(expected, rel=1e-6)

    def test_nt_xent_by_hand(self):
        # Views e₁, e₂ | e₁, e₂ at τ = ½: each has its positive at e² and two strangers at e⁰.
        views = torch.eye(2)
        assert nt_xent(3 * views, views, 0.5).item() == pytest.approx(math.log((math.e**2 + 2) / math.e**2))

    def test_queue_loss_by_hand(self):
        # The key lies at cosine 1, the queue's two at 0 and −1; τ = 1; lengths do not matter.
        query, key = torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 0.0]])
        queue = torch.tensor([[0.0, 3.0], [-4.0, 0.0]])
        assert queue_loss(query, key, queue, 1.0).item() == pytest.approx(math.log(1 + math.exp(-1) + math.exp(-2)))

    @pytest.mark.parametrize(("angle", "expected"), [(0.0, 0.0), (math.pi / 3, 1.0), (math.pi, 4.0)])
    def test_byol_loss_by_hand(self, angle, expected):
        target = torch.tensor([[math.cos(angle), math.sin(angle)]])
        assert byol_loss(torch.tensor([[7.0, 0.0]]), target).item() == pytest.approx(expected, abs=1e-6)


def task(images, tiny, method, **settings):
    recipe = Pretraining(method, **{"steps": 4, "batch_size": 8, "queue": 20, "projection": 8, **settings})
    return PretrainingTask(recipe, tiny(3), images(30), seed=1)


def loaded(chosen):
    """A batch of views, drawn from a seeded generator as the loop does; by seed 5 the two views differ well."""
    with isolated_rng(5):
        return chosen.load(np.arange(8))


class TestWiring:
    """Which views meet which networks, on networks whose batch norm does not couple the images."""

    @pytest.fixture
    def projected(self, images, tiny):
        def make(method):
            chosen = task(images, tiny, method, momentum=0.5)
            chosen.begin_step(0, 4)
            with torch.no_grad():
                for p in chosen.modules["projector"].parameters():  # fast and slow differ from here on
                    p.mul_(1.5).add_(0.01)
            batch = loaded(chosen)
            for module in chosen.modules.values():
                module.eval()
            (update,) = chosen.updates()

            def through(view, *names):
                out = (batch[view] - 0.5) / 0.5
                for name in names:
                    out = chosen.modules[name](out)
                return out

            return update.loss(batch).item(), through, chosen

        return make

    def test_simclr_contrasts_the_two_views(self, projected):
        loss, through, _ = projected("simclr")
        one, two = (through(view, "encoder", "projector") for view in ("first", "second"))
        assert loss == pytest.approx(nt_xent(one, two, 0.2).item(), rel=1e-4)

    def test_moco_asks_with_the_first_and_keeps_the_seconds_slow_key(self, projected):
        loss, through, chosen = projected("moco")
        query, key = through("first", "encoder", "projector"), through("second", "slow_encoder", "slow_projector")
        assert loss == pytest.approx(queue_loss(query, key, chosen.modules["queue"].keys, 0.2).item(), rel=1e-4)

    def test_byol_predicts_the_other_views_target_both_ways(self, projected):
        loss, through, _ = projected("byol")
        one, two = (through(view, "encoder", "projector", "predictor") for view in ("first", "second"))
        target_one, target_two = (through(view, "slow_encoder", "slow_projector") for view in ("first", "second"))
        expected = (byol_loss(one, target_two) + byol_loss(two, target_one)) / 2
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert abs(loss - (byol_loss(one, target_one) + byol_loss(two, target_two)).item() / 2) > 1e-4


def parameters(module):
    return [p.detach().clone() for p in module.parameters()]


class TestSlowNetworks:
    @pytest.mark.parametrize(("method", "momentum"), [("moco", 0.9), ("moco", 1.0), ("moco", 0.0), ("byol", 0.9)])
    def test_follow_the_fast_ones_by_the_published_formula(self, images, tiny, method, momentum):
        chosen = task(images, tiny, method, momentum=momentum)
        pairs = (("encoder", "slow_encoder"), ("projector", "slow_projector"))
        for step in range(3):
            before = {slow: parameters(chosen.modules[slow]) for _, slow in pairs}
            chosen.begin_step(step, 4)
            with torch.no_grad():
                for fast, _ in pairs:
                    for p in chosen.modules[fast].parameters():
                        p.add_(1.0)
            chosen.end_step(step, None)
            # BYOL (Grill et al. 2020, section 3.3): τ = 1 − (1 − τ₀)(cos(πk/K) + 1)/2; MoCo's stays.
            tau = momentum if method == "moco" else 1 - (1 - momentum) * (math.cos(math.pi * step / 4) + 1) / 2
            for fast, slow in pairs:
                new = parameters(chosen.modules[slow])
                for f, old, got in zip(parameters(chosen.modules[fast]), before[slow], new, strict=True):
                    torch.testing.assert_close(got, tau * old + (1 - tau) * f, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("method", ["moco", "byol"])
    def test_start_equal_and_are_never_stepped(self, images, tiny, method):
        chosen = task(images, tiny, method)
        fast = [*parameters(chosen.modules["encoder"]), *parameters(chosen.modules["projector"])]
        slow = [*parameters(chosen.modules["slow_encoder"]), *parameters(chosen.modules["slow_projector"])]
        assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))
        stepped = {id(p) for group in chosen.optimizers["all"].param_groups for p in group["params"]}
        for name, module in chosen.modules.items():
            trained = name in ("encoder", "projector", "predictor")
            assert all((id(p) in stepped) is trained for p in module.parameters()), name

    @pytest.mark.parametrize("method", ["moco", "byol"])
    def test_get_no_gradient(self, images, tiny, method):
        chosen = task(images, tiny, method)
        chosen.begin_step(0, 4)
        (update,) = chosen.updates()
        update.loss(loaded(chosen)).backward()
        for name in ("slow_encoder", "slow_projector"):
            assert all(p.grad is None for p in chosen.modules[name].parameters())
        assert all(p.grad is not None for p in chosen.modules["projector"].parameters())


class TestQueue:
    def test_newest_keys_come_first_and_the_oldest_leave(self, images, tiny):
        chosen = task(images, tiny, "moco", queue=5, projection=2)
        chosen.modules["queue"].keys = torch.arange(10.0).view(5, 2)
        chosen.begin_step(0, 4)
        chosen.end_step(0, torch.tensor([[20.0, 21.0], [22.0, 23.0]]))
        assert chosen.modules["queue"].keys.tolist() == [[20, 21], [22, 23], [0, 1], [2, 3], [4, 5]]
        chosen.end_step(1, 30 + torch.arange(12.0).view(6, 2))
        assert chosen.modules["queue"].keys.tolist() == [[30, 31], [32, 33], [34, 35], [36, 37], [38, 39]]

    def test_takes_every_micro_batch_in_order(self, images, tiny):
        chosen = task(images, tiny, "moco", queue=8)
        kept, carry = [], chosen.carry
        chosen.carry = lambda batch: kept.append(carry(batch)) or kept[-1]
        run(chosen, Loop(steps=1, batch_size=8, accumulate=2))
        assert [len(keys) for keys in kept] == [4, 4]
        assert torch.equal(chosen.modules["queue"].keys, torch.cat(kept))

    def test_holds_unit_vectors_that_belong_to_their_images(self, images, tiny):
        """Keys go through batch norm in shuffled groups, and come back in the order of their queries."""
        chosen = task(images, tiny, "moco", momentum=1.0)
        chosen.begin_step(0, 4)
        slow = [chosen.modules["slow_encoder"], chosen.modules["slow_projector"]]
        batch = loaded(chosen)
        (update,) = chosen.updates()
        for module in slow:  # without batch statistics a key depends on its image alone
            module.eval()
        update.loss(batch)
        with torch.no_grad():
            expected = nnf.normalize(chosen._project(batch["second"], "slow_"), dim=1)
        torch.testing.assert_close(batch["keys"], expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(batch["keys"].norm(dim=1), torch.ones(8))


class TestRun:
    @pytest.mark.parametrize("method", ["simclr", "moco", "byol"])
    def test_trains_and_leaves_its_record(self, images, method, untouched_rng, hashed):
        recipe = Pretraining(method, steps=3, batch_size=8, queue=16, projection=8)
        encoder, history = pretrain(recipe, images(20), architecture="resnet-narrow", seed=5)
        again, _ = pretrain(recipe, images(20), architecture="resnet-narrow", seed=5)
        other, _ = pretrain(recipe, images(20), architecture="resnet-narrow", seed=6)
        fresh = new_encoder("resnet-narrow", images(20), seed=5)
        assert hashed(encoder) == hashed(again)
        assert len({hashed(encoder), hashed(other), hashed(fresh)}) == 3
        assert not encoder.module.training
        assert len(history.losses["loss"]) == 3
        assert encoder.record["final_loss"] == history.losses["loss"][-1]
        assert encoder.record["recipe"]["method"] == method
        assert encoder.record["seed"] == 5
        assert encoder.embed(images(4).take([0, 1])).shape == (2, encoder.dim)

    def test_learns_to_tell_its_images_apart(self, images, tiny):
        recipe = Pretraining("simclr", steps=12, batch_size=16, projection=16, views=Augmentation(noise=0.05))
        chosen = PretrainingTask(recipe, tiny(3), images(16), seed=1)
        losses = run(chosen, Loop(steps=12, batch_size=16)).losses["loss"]
        assert losses[-1] < 0.5 * losses[0]

    @pytest.mark.parametrize(("method", "too_small"), [("simclr", 1), ("moco", 3)])
    def test_a_micro_batch_that_cannot_contrast_is_refused(self, images, tiny, method, too_small):
        chosen = task(images, tiny, method)
        with pytest.raises(UsageError, match=f"at least {too_small + 1} images at a time, not {too_small}"):
            run(chosen, Loop(steps=1, batch_size=2 * too_small, accumulate=2))
        run(chosen, Loop(steps=1, batch_size=too_small + 1))

    def test_images_of_another_size_and_colour(self, images):
        data = images(3, channels=3)
        encoder = new_encoder("resnet-narrow", data, seed=0, size=24, linear=7)
        assert encoder.preprocess.shape == (3, 24, 24)
        assert encoder.embed(data.take([0, 1, 2])).shape == (3, 7)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "dino"},
        {"steps": 0},
        {"batch_size": 0},
        {"queue": 0},
        {"projection": 0},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"learning_rate": -1.0},
        {"momentum": 1.5},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(settings):
    name = next(iter(settings))
    with pytest.raises(UsageError, match=name):
        Pretraining(**{"method": "moco", **settings})


class TestAugmentation:
    @pytest.mark.parametrize("recipe", [VIEWS, MILD, Augmentation(noise=0.5), Augmentation(blur=1.0)], ids=str)
    def test_views_keep_shape_and_range_and_differ(self, recipe, images):
        prepared = images(6).take(range(6)).float() / 255
        torch.manual_seed(0)
        view = recipe.build(16, 16)
        one, two = view(prepared), view(prepared)
        assert one.shape == two.shape == prepared.shape
        assert 0 <= one.min() <= one.max() <= 1
        assert not torch.equal(one, two)

    def test_nothing_changes_nothing(self, images):
        prepared = images(2).take([0, 1]).float() / 255
        assert torch.equal(Augmentation().build(16, 16)(prepared), prepared)

    @pytest.mark.parametrize(
        "settings", [{"crop": 0.0}, {"crop": 1.1}, {"flip": 1.5}, {"blur": -0.1}, {"noise": float("nan")}]
    )
    def test_values_out_of_range_are_refused(self, settings):
        with pytest.raises(UsageError, match=next(iter(settings))):
            Augmentation(**settings)
