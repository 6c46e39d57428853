"""The loop: exact resume, refused checkpoints, accumulation, several processes, no global state."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sslguard.crypto.secrets import Secret
from sslguard.encoders.folder import weights_hash
from sslguard.errors import OutputError, UsageError
from sslguard.schemes.sslguard.cured import CuredTask
from sslguard.schemes.sslguard.scheme import CuredSSLGuard, SSLGuard
from sslguard.schemes.sslguard.task import SSLGuardTask
from sslguard.training.base import Loop, Task, Update, cosine_schedule, isolated_rng, set_learning_rate
from sslguard.training.distillation import Distillation, DistillationTask
from sslguard.training.loop import run
from sslguard.training.pretraining import Pretraining, PretrainingTask
from sslguard.training.processes import shared

STEPS = 4


class Line(Task):
    """Least squares of one number over the items, y = w · i: small enough to follow by hand."""

    def __init__(self, n: int = 6, rate: float = 0.01, scale: float = 1.0) -> None:
        self.n_items, self.scale = n, scale
        self.identity = {"task": "line", "n": n}
        self.module = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.module.weight)
        self.modules = {"line": self.module}
        self.optimizers = {"sgd": torch.optim.SGD(self.module.parameters(), lr=rate)}
        self.seen: list[int] = []
        self.at_end: Callable[[int], None] = lambda step: None

    def load(self, indices):
        self.seen += indices.tolist()
        return torch.from_numpy(indices).float()[:, None]

    def updates(self):
        return [Update("loss", lambda x: self.scale * (self.module(x) - 2 * x).square().mean(), ("sgd",))]

    def end_step(self, step, carried):
        self.at_end(step)


@pytest.fixture
def tasks(images, tiny):
    """Every kind of long run: name → a new task, the same each time."""

    def pretraining(method):
        recipe = Pretraining(method, steps=STEPS, batch_size=8, queue=20, projection=8)
        return lambda: PretrainingTask(recipe, tiny(3), images(30), seed=1)

    def distillation(anneal):
        recipe = Distillation(architecture="resnet-narrow", steps=STEPS, batch_size=8, anneal=anneal)
        return lambda: DistillationTask(recipe, tiny(5), tiny(6), images(30))

    def marking(scheme, **settings):
        sizes = {"steps": STEPS, "batch_size": 8, "trigger_batch": 4, "n_verification": 8, "n_queries": 8}
        scheme = replace(scheme, **sizes, **settings)
        return lambda: SSLGuardTask(scheme, tiny(7), images(20), Secret.from_seed(1))

    def cured():
        scheme = CuredSSLGuard(steps=STEPS, batch_size=8, trigger_batch=4, law_steps=20)
        return CuredTask(scheme, tiny(7), images(20), Secret.from_seed(1))

    return {
        "simclr": pretraining("simclr"),
        "moco": pretraining("moco"),
        "byol": pretraining("byol"),
        "distil": distillation(True),
        "distil at a constant rate": distillation(False),
        "sslguard": marking(SSLGuard()),
        "sslguard, published": marking(SSLGuard(), optimizer="sgd", gradients="released", negatives="shadow"),
        "sslguard, cured": cured,
    }


def state(task: Task) -> dict[str, str]:
    return {name: weights_hash(module) for name, module in task.modules.items()}


class TestResume:
    @pytest.mark.parametrize(
        "name",
        [
            "simclr",
            "moco",
            "byol",
            "distil",
            "distil at a constant rate",
            "sslguard",
            "sslguard, published",
            "sslguard, cured",
        ],
    )
    def test_a_run_stopped_by_sigint_goes_on_bit_by_bit(self, tasks, name, tmp_path, monkeypatch):
        unbroken = tasks[name]()
        expected = run(unbroken, Loop(steps=STEPS, batch_size=8, seed=9))

        loop = Loop(steps=STEPS, batch_size=8, seed=9, checkpoint=tmp_path / "run.ckpt")
        killed = tasks[name]()
        end = killed.end_step

        def interrupt(step, carried):
            end(step, carried)
            if step == 1:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(killed, "end_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(killed, loop)
        resumed = tasks[name]()
        history = run(resumed, loop)

        assert history.losses == expected.losses
        assert history.steps == STEPS
        assert state(resumed) == state(unbroken)
        assert state(resumed) != state(killed)

    def test_an_interrupt_inside_a_step_loses_only_that_step(self, tasks, tmp_path, monkeypatch):
        unbroken, killed, resumed = (tasks["moco"]() for _ in range(3))
        expected = run(unbroken, Loop(steps=STEPS, batch_size=8, seed=9))
        loop = Loop(steps=STEPS, batch_size=8, seed=9, checkpoint=tmp_path / "run.ckpt", checkpoint_seconds=0)
        load, calls = killed.load, []

        def break_in(indices):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return load(indices)

        monkeypatch.setattr(killed, "load", break_in)
        with pytest.raises(KeyboardInterrupt):
            run(killed, loop)
        assert run(resumed, loop).losses == expected.losses
        assert state(resumed) == state(unbroken)

    def test_the_first_sigint_waits_for_the_step_and_the_handler_comes_back(self, tmp_path):
        before = signal.getsignal(signal.SIGINT)
        task = Line()
        task.at_end = lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 2 else None
        with pytest.raises(KeyboardInterrupt):
            run(task, Loop(steps=9, batch_size=2, checkpoint=tmp_path / "c"))
        assert signal.getsignal(signal.SIGINT) is before
        assert len(task.seen) == 6

    def test_a_finished_run_is_not_run_again(self, tmp_path):
        loop = Loop(steps=3, batch_size=2, checkpoint=tmp_path / "c")
        first, second = Line(), Line()
        losses = run(first, loop).losses
        assert run(second, loop).losses == losses
        assert second.seen == []
        assert state(second) == state(first)

    def test_time_adds_up_over_the_parts(self, tmp_path):
        loop = Loop(steps=3, batch_size=2, checkpoint=tmp_path / "c")
        seconds = run(Line(), loop).seconds
        assert run(Line(), loop).seconds >= seconds > 0


class RunsCode:
    """Unpickled by anything but a weights-only reader, this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "executed"))


class TestCheckpointFiles:
    @pytest.fixture
    def loop(self, tmp_path):
        loop = Loop(steps=3, batch_size=2, checkpoint=tmp_path / "run.ckpt")
        run(Line(), loop)
        return loop

    @pytest.mark.parametrize("other", [{"steps": 5}, {"batch_size": 3}, {"seed": 1}, {"accumulate": 2}])
    def test_of_another_loop_is_refused(self, loop, other):
        settings = {"steps": 3, "batch_size": 2, "checkpoint": loop.checkpoint, **other}
        with pytest.raises(UsageError, match="other settings"):
            run(Line(), Loop(**settings))

    def test_of_another_task_is_refused_and_kept(self, loop):
        before = loop.checkpoint.read_bytes()
        task = Line(n=7)
        with pytest.raises(UsageError, match="other settings"):
            run(task, loop)
        assert loop.checkpoint.read_bytes() == before
        assert task.module.weight.item() == 1

    @pytest.mark.parametrize("keep", [0, 1, 100, -1])
    def test_truncated_is_refused(self, loop, keep):
        loop.checkpoint.write_bytes(loop.checkpoint.read_bytes()[:keep])
        with pytest.raises(UsageError, match=r"run\.ckpt is damaged"):
            run(Line(), loop)

    @pytest.mark.parametrize(
        "content",
        [b"garbage", [1, 2], {"fingerprint": "x"}, {}],
        ids=["bytes", "list", "another fingerprint", "nothing"],
    )
    def test_foreign_is_refused(self, loop, content):
        if isinstance(content, bytes):
            loop.checkpoint.write_bytes(content)
        else:
            torch.save(content, loop.checkpoint)
        with pytest.raises(UsageError, match=r"run\.ckpt"):
            run(Line(), loop)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda s: s.pop("modules"),
            lambda s: s.pop("history"),
            lambda s: s["modules"].pop("line"),
            lambda s: s["modules"]["line"].update(weight=torch.zeros(3, 3)),
            lambda s: s["optimizers"].update(sgd={}),
            lambda s: s["history"].update(unknown=1),
        ],
        ids=["no modules", "no history", "no line", "another shape", "no groups", "unknown field"],
    )
    def test_that_fits_in_part_is_refused_in_one_sentence(self, loop, spoil):
        content = torch.load(loop.checkpoint, weights_only=True)
        spoil(content)
        torch.save(content, loop.checkpoint)
        with pytest.raises(UsageError, match="damaged") as caught:
            run(Line(), loop)
        assert "\n" not in str(caught.value)

    def test_that_holds_code_is_refused_and_not_executed(self, loop, tmp_path):
        content = torch.load(loop.checkpoint, weights_only=True)
        torch.save({**content, "extra": RunsCode(tmp_path / "trace")}, loop.checkpoint)
        with pytest.raises(UsageError, match="damaged") as caught:
            run(Line(), loop)
        assert not (tmp_path / "trace").exists()
        assert "weights_only" not in str(caught.value)
        # The attack itself works: only the way of reading stands in between.
        torch.load(loop.checkpoint, weights_only=False)
        assert (tmp_path / "trace").exists()

    def test_is_for_its_owner_alone(self, loop):
        assert stat.S_IMODE(loop.checkpoint.stat().st_mode) == 0o600

    def test_that_cannot_be_written_is_said(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match="cannot be written"):
            run(Line(), Loop(steps=1, batch_size=2, checkpoint=tmp_path / "file" / "run.ckpt"))


class TestSteps:
    def test_gradient_descent_by_hand(self):
        task = Line(n=3, rate=0.1)
        history = run(task, Loop(steps=2, batch_size=3))
        # Items 0, 1, 2: mean i² = 5/3; loss 5/3 (w − 2)², gradient 10/3 (w − 2): w = 1 → 4/3 → 14/9.
        assert history.losses["loss"] == pytest.approx([5 / 3, 5 / 3 * (2 / 3) ** 2])
        assert task.module.weight.item() == pytest.approx(14 / 9)

    @pytest.mark.parametrize("accumulate", [2, 3, 6])
    def test_accumulated_micro_batches_are_one_batch(self, accumulate):
        whole, parts = Line(), Line()
        one = run(whole, Loop(steps=5, batch_size=6, seed=4))
        many = run(parts, Loop(steps=5, batch_size=6, seed=4, accumulate=accumulate))
        assert parts.seen == whole.seen
        np.testing.assert_allclose(many.losses["loss"], one.losses["loss"], rtol=1e-5)
        assert parts.module.weight.item() == pytest.approx(whole.module.weight.item(), rel=1e-5)

    def test_running_statistics_are_the_mean_over_micro_batches(self):
        task = Line()
        norm = task.modules["norm"] = nn.BatchNorm1d(1)
        task.updates = lambda: [Update("loss", lambda x: (norm(x) + task.module(x)).mean(), ("sgd",))]
        run(task, Loop(steps=1, batch_size=6, accumulate=3))
        # Each pair of items starts from 0; the mean of 0.1 × a pair's mean over all pairs is 0.1 × 2.5.
        assert float(norm.running_mean) == pytest.approx(0.25)
        assert int(norm.num_batches_tracked) == 1

    @pytest.mark.parametrize(("n", "batch"), [(6, 2), (7, 3), (5, 8)])
    def test_every_epoch_holds_every_item_once_in_an_order_of_its_own(self, n, batch):
        task = Line(n=n, rate=1e-6)
        run(task, Loop(steps=4 * n, batch_size=batch, seed=2))
        epochs = [tuple(task.seen[i : i + n]) for i in range(0, len(task.seen) - n + 1, n)]
        assert len(epochs) >= 4
        assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
        assert len(set(epochs)) > 1

    def test_another_seed_another_order(self):
        orders = []
        for seed in (0, 0, 1):
            task = Line(n=40)
            run(task, Loop(steps=1, batch_size=40, seed=seed))
            orders.append(task.seen)
        assert orders[0] == orders[1] != orders[2]

    def test_gradients_for_a_later_update_wait_for_it(self):
        """An update may collect for parameters that another one steps; those it does not name get none."""
        a, b = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
        task = Line()
        task.optimizers = {"a": torch.optim.SGD([a], lr=1.0), "b": torch.optim.SGD([b], lr=1.0)}
        task.updates = lambda: [
            Update("first", lambda x: 2 * a + 3 * b, ("a",), (a, b)),
            Update("second", lambda x: 5 * a + 7 * b, ("b",)),
        ]
        run(task, Loop(steps=2, batch_size=2))
        assert (a.item(), b.item()) == (1 - 2 * 2, 1 - 2 * (3 + 7))

    @pytest.mark.parametrize("scale", [float("nan"), float("inf")])
    def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoint(self, tmp_path, scale):
        task = Line()
        task.at_end = lambda step: setattr(task, "scale", scale if step == 1 else 1.0)
        checkpoint = tmp_path / "c"
        with pytest.raises(UsageError, match=r"loss .loss. is (nan|inf) at step 3"):
            run(task, Loop(steps=9, batch_size=2, checkpoint=checkpoint, checkpoint_seconds=0))
        assert torch.load(checkpoint, weights_only=True)["history"]["steps"] == 2


class TestGlobalState:
    @pytest.mark.parametrize("name", ["simclr", "moco", "distil", "sslguard, published", "sslguard, cured"])
    def test_a_run_neither_reads_nor_sets_it(self, tasks, name):
        results = []
        for seed in (11, 22):
            torch.manual_seed(seed)
            before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
            task = tasks[name]()
            run(task, Loop(steps=2, batch_size=8, seed=9))
            assert torch.equal(torch.get_rng_state(), before)
            assert all(np.array_equal(x, y) for x, y in zip(np.random.get_state(), numpy_before, strict=True))  # noqa: NPY002
            results.append(state(task))
        assert results[0] == results[1]

    def test_isolated_rng_is_a_function_of_its_key(self, untouched_rng):
        def draw(*key):
            with isolated_rng(*key):
                return float(torch.rand(()))

        assert draw(1, 2) == draw(1, 2)
        assert len({draw(1, 2), draw(2, 1), draw(1, 3), draw(2**62)}) == 4


def test_cosine_schedule_by_hand():
    factors = [cosine_schedule(step, 6, warmup=2) for step in range(6)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])


def test_learning_rates_are_scaled_from_the_first_one():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(()))], lr=0.5)
    for factor in (0.5, 0.1):
        set_learning_rate(optimizer, factor)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"devices": 0}, "devices must be at least 1"),
        ({"batch_size": 3, "accumulate": 2}, "must be a multiple of"),
        ({"precision": "16"}, "precision must be one of auto, 32, bf16"),
    ],
)
def test_a_loop_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Loop(**{"steps": 1, "batch_size": 2, **settings})


def test_on_one_device_nothing_has_to_be_shared():
    assert shared(lambda: 5, devices=1, precision="32") == 5


def test_progress_goes_to_standard_error(capsys):
    run(Line(), Loop(steps=3, batch_size=2, progress=True, title="counting sheep"))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "counting sheep" in printed.err
    assert "3/3" in printed.err


def test_leaves_no_module_hidden_from_others():
    run(Line(), Loop(steps=1, batch_size=2))
    assert None not in sys.modules.values()
