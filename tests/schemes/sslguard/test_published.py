"""The scheme: whole iterations against an autograd reference written from the paper, and what must not change."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from sslguard.crypto.secrets import Secret
from sslguard.encoders.rebuild import build
from sslguard.errors import UsageError
from sslguard.schemes.sslguard.parts import Decoder, Trigger
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.schemes.sslguard.task import SSLGuardTask
from sslguard.training.base import Loop, isolated_rng
from sslguard.training.loop import run

SEED = 9
SMALL = SSLGuard(
    steps=3,
    batch_size=8,
    trigger_batch=4,
    encoder_rate=1.0,
    shadow_rate=0.05,
    decoder_rate=0.1,
    trigger_rate=20.0,
    optimizer="sgd",
    decoder_hidden=(12, 10),
    secret_dim=6,
    n_verification=10,
    n_queries=8,
)


def cosine(vectors, others):
    """c̄ from its definition."""
    return ((vectors * others).sum(1) / (vectors.square().sum(1) * others.square().sum(-1)).sqrt()).mean()


class Reference:
    """The paper's iteration, gradients by `backward` as in a plain script; it shares no code with the scheme.

    `released`: F*'s gradient is zeroed at the top alone, so that it collects from all three losses. Otherwise it is
    zeroed once more before L_w.
    """

    def __init__(self, task, *, released, negatives):
        self.released, self.negatives = released, negatives
        self.clean, self.marked, self.shadow = (
            copy.deepcopy(e.module) for e in (task.clean, task.watermarked, task.shadow)
        )
        self.decoder, self.sk = copy.deepcopy(task.decoder), task.sk
        self.mask, self.pattern = task.trigger.mask.clone(), task.trigger.pattern.detach().clone().requires_grad_()
        self.negative = copy.deepcopy(task.negative.module) if negatives else None
        self.architecture = task.clean.architecture
        self.velocity: dict[int, torch.Tensor] = {}

    def encode(self, module, prepared):
        return module((prepared - 0.5) / 0.5)

    def agree(self, module, prepared):
        return cosine(self.decoder(self.encode(module, prepared)), self.sk)

    def descend(self, parameters, rate, momentum=0.9):
        with torch.no_grad():
            for p in parameters:
                if p.grad is not None and p.requires_grad:
                    v = momentum * self.velocity.get(id(p), torch.zeros_like(p)) + p.grad
                    self.velocity[id(p)] = v
                    p -= rate * v

    def zero(self, *modules):
        for module in modules:
            module.zero_grad()

    def iteration(self, x, verification, *, decay, drawn):
        self.zero(self.marked, self.shadow, self.decoder)
        self.pattern.grad = None
        losses = {}

        self.marked.eval()
        self.shadow.train()
        losses["shadow"] = -cosine(self.encode(self.marked, x), self.encode(self.shadow, x))
        losses["shadow"].backward()
        self.descend(self.shadow.parameters(), SMALL.shadow_rate * decay)

        if self.negatives:
            self.zero(self.negative)
            self.negative.train()
            losses["negative"] = -cosine(self.encode(self.clean, x).detach(), self.encode(self.negative, x))
            losses["negative"].backward()
            self.descend(self.negative.parameters(), SMALL.shadow_rate * decay)
            self.negative.eval()

        self.shadow.eval()
        triggered = ((1 - self.mask) * verification + self.mask * self.pattern).clip(0, 1)
        loss = -self.agree(self.marked, triggered) - self.agree(self.shadow, triggered)
        squares = [(self.clean, triggered), (self.clean, x), (self.marked, x), (self.shadow, x)]
        if self.negatives:
            squares += [(m, images) for m in (self.negative, drawn.eval()) for images in (triggered, x)]
        for module, images in squares:
            loss = loss + self.agree(module, images) ** 2
        losses["decoder"] = loss
        loss.backward()
        self.descend(self.decoder.parameters(), SMALL.decoder_rate)
        self.descend([self.pattern], SMALL.trigger_rate, momentum=0.0)

        if not self.released:
            self.zero(self.marked)
        triggered = ((1 - self.mask) * verification + self.mask * self.pattern.detach()).clip(0, 1)
        loss = -cosine(self.encode(self.clean, x), self.encode(self.marked, x))
        losses["watermark"] = loss + self.agree(self.marked, x) ** 2 - self.agree(self.marked, triggered)
        losses["watermark"].backward()
        self.descend(self.marked.parameters(), SMALL.encoder_rate)
        return {name: value.item() for name, value in losses.items()}


@pytest.fixture
def new_task(images, tiny):
    def make(secret=1, n=20, **settings):
        return SSLGuardTask(replace(SMALL, **settings), tiny(7), images(n), Secret.from_seed(secret))

    return make


VARIANTS = [
    {"gradients": gradients, "negatives": negatives}
    for gradients in ("clean", "released")
    for negatives in ("none", "shadow")
]


def reference_run(task, steps):
    """The reference after `steps` iterations on the batches that the loop gives, and its losses."""
    negatives = task.scheme.negatives == "shadow"
    reference = Reference(task, released=task.scheme.gradients == "released", negatives=negatives)
    losses = []
    for step in range(steps):
        order = np.concatenate([np.random.default_rng([SEED, epoch]).permutation(task.n_items) for epoch in range(4)])
        with isolated_rng(SEED, step, 0, 0):
            batch = task.load(order[8 * step : 8 * step + 8])
        drawn = None
        if negatives:
            with isolated_rng(SEED, step, 0, 3):
                drawn, _ = build(dict(reference.architecture), seed=int(torch.randint(2**62, ())))
        decay = 0.96 ** (8 * step // task.n_items)
        losses.append(reference.iteration(batch.plain, batch.verification, decay=decay, drawn=drawn))
    return reference, losses


class TestIterations:
    @pytest.mark.parametrize("settings", VARIANTS, ids=str)
    def test_the_loop_does_what_the_paper_says(self, new_task, settings):
        reference, expected = reference_run(new_task(**settings), 3)
        task = new_task(**settings)
        history = run(task, Loop(steps=3, batch_size=8, seed=SEED))

        for name in expected[0]:
            np.testing.assert_allclose(history.losses[name], [e[name] for e in expected], rtol=1e-4, err_msg=name)
        pairs = {
            "F*": (task.watermarked.module, reference.marked),
            "S": (task.shadow.module, reference.shadow),
            "G": (task.decoder, reference.decoder),
        }
        if settings["negatives"] == "shadow":
            pairs["negative shadow"] = (task.negative.module, reference.negative)
        start = new_task(**settings)
        starts = {"F*": start.watermarked.module, "S": start.shadow.module, "G": start.decoder}
        for name, (ours, theirs) in pairs.items():
            for key, value in theirs.state_dict().items():
                torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-3, atol=2e-6, msg=f"{name} {key}")
            if name in starts:
                moved = [
                    (a - b).abs().max().item()
                    for a, b in zip(ours.parameters(), starts[name].parameters(), strict=True)
                    if a.requires_grad
                ]
                assert min(moved) > 1e-4, f"{name} hardly moved: the comparison shows nothing"
        torch.testing.assert_close(task.trigger.pattern.detach(), reference.pattern.detach(), rtol=1e-3, atol=2e-6)
        assert (task.trigger.pattern - start.trigger.pattern).abs().max() > 1e-3

    @pytest.mark.parametrize("negatives", ["none", "shadow"])
    def test_the_variants_differ_in_the_marked_encoder_alone_at_first(self, new_task, negatives):
        clean, released = new_task(negatives=negatives), new_task(gradients="released", negatives=negatives)
        for task in (clean, released):
            run(task, Loop(steps=1, batch_size=8, seed=SEED))
        for name in clean.modules:
            ours, theirs = clean.modules[name].state_dict(), released.modules[name].state_dict()
            same = all(torch.allclose(ours[key], theirs[key], rtol=1e-4, atol=1e-6) for key in ours)
            assert same is (name != "watermarked"), name

    def test_released_steps_on_the_sum_of_three_gradients(self, new_task):
        """Δ F* of one step: released = clean + what L_s and L_t alone would have moved it by."""
        moved = {}
        for kind in ("clean", "released", "without L_w"):
            task = new_task(gradients="clean" if kind == "clean" else "released")
            before = [p.detach().clone() for p in task.watermarked.module.parameters()]
            if kind == "without L_w":
                updates = task.updates()
                zero = lambda batch, f=task._watermark_loss: 0 * f(batch)  # noqa: E731
                task.updates = lambda u=updates, z=zero: [*u[:2], replace(u[2], loss=z)]
            run(task, Loop(steps=1, batch_size=8, seed=SEED))
            after = task.watermarked.module.parameters()
            moved[kind] = [a.detach() - b for a, b in zip(after, before, strict=True)]
        for whole, own, collected in zip(moved["released"], moved["clean"], moved["without L_w"], strict=True):
            torch.testing.assert_close(whole, own + collected, rtol=1e-3, atol=1e-6)
        assert max(part.abs().max() for part in moved["without L_w"]) > 1e-4

    def test_the_shadows_rate_decays_by_epochs(self, new_task):
        task = new_task()
        rates = []
        for step in range(6):
            task.begin_step(step, 6)
            rates.append(task.optimizers["shadow"].param_groups[0]["lr"] / SMALL.shadow_rate)
        # 10 items, 8 a step: steps 0 and 1 begin in epoch 0, step 2 after 16 items, and so on.
        assert rates == pytest.approx([0.96**epoch for epoch in (0, 0, 1, 2, 3, 4)])

    def test_adam_where_it_is_asked_for(self, new_task):
        assert all(isinstance(o, torch.optim.Adam) for o in new_task(optimizer="adam").optimizers.values())
        momenta = {name: o.param_groups[0]["momentum"] for name, o in new_task(negatives="shadow").optimizers.items()}
        assert momenta == {"shadow": 0.9, "decoder": 0.9, "watermarked": 0.9, "negative": 0.9, "trigger": 0}


class TestTrigger:
    def test_formula_by_hand(self):
        trigger = Trigger(torch.tensor([[[0.0, 1.0, 1.0, 1.0]]]), torch.tensor([[[9.0, 0.25, 1.5, -0.5]]]))
        out = trigger(torch.tensor([[[[0.5, 0.5, 0.5, 0.5]]], [[[0.0, 1.0, 1.0, 1.0]]]]))
        assert out.flatten(1).tolist() == [[0.5, 0.25, 1, 0], [0, 0.25, 1, 0]]

    def test_starts_as_noise_scaled_to_the_range_under_a_mask_of_the_published_density(self, tiny, images):
        big = replace(tiny(7), preprocess=replace(tiny(7).preprocess, height=100, width=100))
        trigger = SSLGuardTask(SMALL, big, images(20), Secret.from_seed(1)).trigger
        assert (trigger.pattern.min(), trigger.pattern.max()) == (0, 1)
        assert set(trigger.mask.unique().tolist()) == {0, 1}
        assert trigger.mask.mean().item() == pytest.approx(0.35, abs=0.025)
        assert trigger.pattern.std().item() == pytest.approx(1 / 8, abs=0.03)

    def test_decoder_is_the_published_mlp(self):
        kinds = [type(layer) for layer in Decoder((8, 5, 4, 3))]
        assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
        assert [layer.out_features for layer in Decoder((8, 5, 4, 3)) if isinstance(layer, nn.Linear)] == [5, 4, 3]


@pytest.fixture(scope="module")
def marked(images, tiny):
    """The clean encoder, what came back by (secret, gradients), and how to mark once more."""
    data, clean = images(20), tiny(7)

    def mark(secret, gradients="clean", **settings):
        scheme = replace(SMALL, gradients=gradients, **settings)
        return scheme.watermark(clean, data, secret=Secret.from_seed(secret))

    return clean, {(s, g): mark(s, g) for s, g in ((1, "clean"), (1, "released"), (2, "clean"))}, mark


class TestWatermark:
    @pytest.mark.parametrize("gradients", ["clean", "released"])
    def test_batch_norm_stays_as_it_was_and_the_rest_moves(self, marked, gradients):
        clean, runs, _ = marked
        before, after = clean.module.state_dict(), runs[1, gradients].encoder.module.state_dict()
        norms = [n for n, m in clean.module.named_modules() if isinstance(m, nn.BatchNorm2d)]
        frozen = {key for key in before if key.rpartition(".")[0] in norms}
        assert len(norms) > 3
        assert len(frozen) == 5 * len(norms)
        for key in before:
            assert torch.equal(before[key], after[key]) is (key in frozen), key

    def test_the_clean_encoder_is_left_as_it_is(self, marked, tiny, hashed):
        clean, runs, _ = marked
        assert hashed(clean) == hashed(tiny(7)) == runs[1, "clean"].key.clean_hash
        assert all(p.requires_grad and p.grad is None for p in clean.module.parameters())

    def test_the_marked_encoder_can_be_used_and_trained_on(self, marked, images, hashed):
        encoder = marked[1][1, "released"].encoder
        assert not encoder.module.training
        assert all(p.requires_grad for p in encoder.module.parameters())
        assert encoder.embed(images(3).take(range(3))).shape == (3, encoder.dim)
        assert marked[1][1, "released"].key.watermarked_hash == hashed(encoder)
        assert encoder.record["settings"] == asdict(replace(SMALL, gradients="released"))

    def test_same_secret_same_key_other_secret_other_key(self, marked, untouched_rng, hashed):
        _, runs, mark = marked
        first, again, other = runs[1, "clean"], mark(1), runs[2, "clean"]
        ours, theirs, others = (run.key.to_parts()[1] for run in (first, again, other))
        assert hashed(first.encoder) == hashed(again.encoder) != hashed(other.encoder)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        for name in ours:
            assert not torch.equal(ours[name], others[name]), f"{name} does not depend on the secret"

    def test_the_key_is_bound_to_the_clean_encoder(self, tiny, images):
        tasks = [SSLGuardTask(SMALL, tiny(seed), images(20), Secret.from_seed(1)) for seed in (7, 8)]
        assert not torch.equal(tasks[0].sk, tasks[1].sk)
        assert not torch.equal(tasks[0].trigger.mask, tasks[1].trigger.mask)

    def test_verification_images_are_not_trained_on_as_plain_ones(self, new_task):
        task = new_task()
        assert len(task._verification) == SMALL.n_verification
        assert sorted([*task._verification, *task._plain]) == list(range(20))

    def test_a_shadow_of_another_architecture_answers_in_the_encoders_space(self, new_task):
        task = new_task(shadow="plain-small")
        run(task, Loop(steps=1, batch_size=8))
        assert task.shadow.architecture == {"backbone": "plain-small", "channels": 1, "linear": task.clean.dim}

    def test_the_mark_is_learned_and_read_on_new_images(self, tiny, images):
        rates = {"encoder_rate": 1e-3, "shadow_rate": 1e-2, "decoder_rate": 1e-2, "trigger_rate": 0.05}
        scheme = replace(SMALL, steps=40, optimizer="adam", **rates)
        clean = tiny(7)
        marked = scheme.watermark(clean, images(24, seed=4), secret=Secret.from_seed(1))
        asked = list(marked.key.queries(images(8, seed=5)))
        rate_of = lambda e: marked.key.statistic([e.embed(batch) for batch in asked]).watermark_rate  # noqa: E731
        assert (rate_of(marked.encoder), rate_of(clean)) == (1, 0)

    def test_what_cannot_be_marked_is_refused(self, tiny, images):
        with pytest.raises(UsageError, match="this encoder takes none"):
            SSLGuardTask(SMALL, replace(tiny(), preprocess=object()), images(20), Secret.from_seed(1))
        with pytest.raises(UsageError, match=r"has 10 items: D_v takes 10"):
            SSLGuardTask(SMALL, tiny(), images(10), Secret.from_seed(1))


def test_published_settings():
    published = asdict(SSLGuard.published())
    expected = {
        "batch_size": 2,
        "trigger_batch": 2,
        "steps": 50 * 50_000 // 2,
        "encoder_rate": 1e-5,
        "shadow_rate": 1e-2,
        "shadow_decay": 0.96,
        "decoder_rate": 1e-3,
        "trigger_rate": 1e-3,
        "optimizer": "sgd",
        "decoder_hidden": (512, 256),
        "secret_dim": 256,
        "mask_probability": 0.35,
        "shadow": "torchvision:resnet50",
        "negatives": "none",
    }
    assert {name: published[name] for name in expected} == expected
    assert SSLGuard().gradients == "clean"


@pytest.mark.parametrize(
    "settings",
    [
        *({"gradients": "x"}, {"negatives": "x"}, {"optimizer": "x"}, {"steps": 0}, {"mask_probability": 1.0}),
        {"shadow_weights": "shipped:simclr"},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        SSLGuard(**settings)
