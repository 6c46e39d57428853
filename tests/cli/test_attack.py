"""`sslguard attack`: each command is its attack, goes on where it was stopped, and says what is left of the encoder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from helpers.command_line import done, interrupt_at, sslguard, weights
from sslguard import api
from sslguard.attacks import yardstick
from sslguard.attacks.removal import FineTune, Overwrite, Prune, Quantise, SelfSupervised
from sslguard.attacks.stealing import StolenEncoder
from sslguard.cli.attack import FineTuningOptions
from sslguard.encoders.folder import save_encoder, weights_hash
from sslguard.encoders.load import load_encoder
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.training.pretraining import new_encoder
from sslguard.training.supervised import Supervised

COMMANDS = ("fine-tune", "prune", "self-supervised", "overwrite", "apply")


class Bed(NamedTuple):
    root: Path
    data: str
    victim: Path
    clean: Path


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    root = tmp_path_factory.mktemp("bed")
    labels = np.arange(100) % 4
    images = np.random.default_rng(0).integers(0, 80, (100, 16, 16), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 150
    np.savez(root / "data.npz", images=images, labels=labels)
    np.save(root / "unlabelled.npy", images[:, None])
    for seed, name in enumerate(("victim", "clean")):
        encoder = new_encoder("resnet-narrow", api.as_data(f"{root}/data.npz"), seed=seed)
        save_encoder(replace(encoder, module=encoder.module.eval()), root / name)
    return Bed(root, f"{root}/data.npz", root / "victim", root / "clean")


LINES = {
    "fine-tune": "--data {data} --steps 4 --batch-size 8 --learning-rate 0.01 --layers last --seed 3",
    "fine-tune for epochs": "--data {data}[0:30] --epochs 1.1 --batch-size 8",
    "prune": "--amount 0.3 --scope layer",
    "self-supervised": "--data {data} --steps 4 --batch-size 8 --seed 3",
    "self-supervised by MoCo": "--data {data} --method moco --steps 4 --batch-size 8 --queue 16 --projection 8",
    "overwrite": "--data {data} --steps 4 --batch-size 8 --trigger-batch 8 --n-verification 20 --n-queries 8 --seed 3",
    "apply": "--attack quantise --set bits=4",
    "apply training": (
        "--attack stolen-encoder --data {data} --seed 3 --set recipe.steps=4 --set recipe.batch_size=8 "
        "--set recipe.architecture=resnet-narrow --set recipe.augmentation={{flip=0.5}}"
    ),
}


def command(bed: Bed, name: str, *more: object) -> tuple[object, ...]:
    return ("attack", name.split(" ")[0], bed.victim, *LINES[name].format(**bed._asdict()).split(), "--quiet", *more)


def by_hand(bed: Bed, name: str) -> str:
    """Hash of the weights that the attack itself leaves."""
    victim, data = load_encoder(bed.victim), api.as_data(bed.data)
    tuning = Supervised(steps=4, batch_size=8, learning_rate=0.01, layers="last")
    going_on = replace(SelfSupervised().recipe, steps=4, batch_size=8)
    marking = SSLGuard(steps=4, batch_size=8, trigger_batch=8, n_verification=20, n_queries=8)
    views = replace(StolenEncoder().recipe.augmentation, flip=0.5)
    stealing = replace(StolenEncoder().recipe, architecture="resnet-narrow", steps=4, batch_size=8, augmentation=views)
    left = {
        "fine-tune": lambda: FineTune(tuning)(victim, data, seed=3),
        "fine-tune for epochs": lambda: FineTune(Supervised(batch_size=8), 1.1)(victim, data.slice(0, 30), seed=0),
        "prune": lambda: Prune(0.3, "layer")(victim),
        "self-supervised": lambda: SelfSupervised(going_on)(victim, data, seed=3),
        "self-supervised by MoCo": lambda: SelfSupervised(replace(going_on, method="moco", queue=16, projection=8))(
            victim, data, seed=0
        ),
        "overwrite": lambda: Overwrite(marking)(victim, data, seed=3),
        "apply": lambda: Quantise(bits=4)(victim),
        "apply training": lambda: StolenEncoder(stealing)(victim, data, seed=3),
    }[name]()
    return weights_hash(left.module)


class TestCommands:
    @pytest.mark.parametrize("name", [None, *COMMANDS])
    def test_help(self, name: str | None) -> None:
        ran = sslguard("attack", *([name] if name else []), "--help")
        assert (ran.code, ran.err) == (0, "")
        for word in COMMANDS if name is None else ("--probe-train", "--probe-test", "--clean", "--json", "--quiet"):
            assert word in ran.out
        assert name or "one command after another" in " ".join(ran.out.split())

    def test_help_imports_nothing_heavy(self) -> None:
        program = (
            "import sys; from sslguard.cli import main\n"
            f"codes = [main(['attack', *c, '--help']) for c in ([], *([c] for c in {COMMANDS}))]\n"
            "print(set(codes), sorted({'torch', 'numpy', 'scipy', 'timm', 'kornia'} & set(sys.modules)))"
        )
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert ran.stdout.endswith("{0} []\n")

    def test_options_are_those_of_the_recipe(self) -> None:
        assert {f.name for f in fields(FineTuningOptions)} <= {f.name for f in fields(Supervised)}

    @pytest.mark.parametrize("name", LINES)
    def test_is_its_attack(self, bed: Bed, tmp_path: Path, name: str) -> None:
        before = weights(bed.victim)
        said = done(*command(bed, name, "--out", tmp_path / "o"))
        assert weights(tmp_path / "o") == by_hand(bed, name)
        assert weights(bed.victim) == before
        assert (said["encoder"], said["dim"]) == (str(tmp_path / "o"), 64)
        assert said["seconds"] >= 0
        assert said.get("from", said.get("teacher")) == load_encoder(bed.victim).source
        assert "probe" not in said
        assert [p.name for p in tmp_path.iterdir()] == ["o"]

    def test_epochs_are_steps(self, bed: Bed, tmp_path: Path) -> None:
        said = done(*command(bed, "fine-tune for epochs", "--out", tmp_path / "o"))
        assert said["recipe"]["steps"] == 5  # 33 items in batches of 8

    def test_in_a_row(self, bed: Bed, tmp_path: Path) -> None:
        """Chains are one command after another; a result may be attacked in its turn."""
        done(*command(bed, "fine-tune", "--out", tmp_path / "a"))
        done("attack", "prune", tmp_path / "a", "--out", tmp_path / "b", "--amount", 0.5, "--quiet")
        assert weights(tmp_path / "b") == weights_hash(Prune(0.5)(load_encoder(tmp_path / "a")).module)

    def test_what_is_printed(self, bed: Bed, tmp_path: Path) -> None:
        lines = sslguard(*command(bed, "fine-tune", "--out", tmp_path / "o")).out.splitlines()
        assert [line.split()[0] for line in lines] == ["encoder", "width", "parameters", "final", "seconds"]

    def test_a_result_is_replaced_and_nothing_else(self, bed: Bed, tmp_path: Path) -> None:
        for amount in (0.3, 0.6):
            done("attack", "prune", bed.victim, "--out", tmp_path / "o", "--amount", amount)
        assert weights(tmp_path / "o") == weights_hash(Prune(0.6)(load_encoder(bed.victim)).module)
        (tmp_path / "o" / "notes.txt").write_text("mine")
        ran = sslguard("attack", "prune", bed.victim, "--out", tmp_path / "o")
        assert ran.code == 2
        assert "not overwritten" in ran.err


class TestProbes:
    def task(self, bed: Bed) -> tuple[str, ...]:
        return ("--probe-train", f"{bed.data}[0:60]", "--probe-test", f"{bed.data}[60:100]")

    def accuracy(self, bed: Bed, encoder: Path) -> float:
        return done("probe", encoder, "--train", f"{bed.data}[0:60]", "--test", f"{bed.data}[60:100]")["accuracy"]

    def test_accuracy(self, bed: Bed, tmp_path: Path) -> None:
        said = done(*command(bed, "prune", "--out", tmp_path / "o", *self.task(bed)))["probe"]
        found, before = self.accuracy(bed, tmp_path / "o"), self.accuracy(bed, bed.victim)
        task = {"train": f"{bed.data}[0:60]", "test": f"{bed.data}[60:100]"}
        assert said == {**task, "accuracy": found, "victim": before}

    def test_accuracy_kept(self, bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(yardstick, "baseline", lambda *_: SimpleNamespace(accuracy=0.05))
        line = command(bed, "fine-tune", "--out", tmp_path / "o", *self.task(bed), "--clean", bed.clean)
        said = done(*line)["probe"]
        found, clean = self.accuracy(bed, tmp_path / "o"), self.accuracy(bed, bed.clean)
        assert (said["accuracy"], said["clean"], said["baseline"]) == (found, clean, 0.05)
        assert said["kept"] == pytest.approx((found - 0.05) / (clean - 0.05))
        lines = [line.split() for line in sslguard(*line).out.splitlines()]
        assert ["accuracy", f"{found:.4f},"] in [line[:2] for line in lines]
        assert ["accuracy", "kept", f"{100 * said['kept']:.1f}", "%"] in [line[:4] for line in lines]

    def test_the_baseline_is_the_better_one(self, bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pixels tell these classes apart, so that no encoder has anything to keep: said before any training."""
        interrupt_at(monkeypatch, 0)
        ran = sslguard(*command(bed, "fine-tune", "--out", tmp_path / "o", *self.task(bed), "--clean", bed.clean))
        assert ran.code == 2
        assert "nothing to keep" in ran.err
        assert list(tmp_path.iterdir()) == []

    def test_other_processes_probe_nothing(self, bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setattr(yardstick, "probe_encoder", lambda *_: pytest.fail("probed"))
        ran = sslguard(*command(bed, "prune", "--out", tmp_path / "o", *self.task(bed), "--clean", bed.clean))
        assert ran == (0, "", "")
        assert list(tmp_path.iterdir()) == []


BAD = {
    "amount": ("prune {victim} --out {new} --amount 1.5", 2, "above 0 and below 1"),
    "amount NaN": ("prune {victim} --out {new} --amount nan", 2, "above 0"),
    "scope": ("prune {victim} --out {new} --scope filters", 2, "filters"),
    "victim": ("prune {root}/nothing --out {new}", 3, "nothing"),
    "the victim itself": ("prune {victim} --out {root}/../{root.name}/victim", 2, "--out is the victim"),
    "steps and epochs": ("fine-tune {victim} --data {data} --out {new} --steps 3 --epochs 1", 2, "give one of them"),
    "epochs": ("fine-tune {victim} --data {data} --out {new} --epochs 0", 2, "above 0"),
    "layers": ("fine-tune {victim} --data {data} --out {new} --layers first", 2, "first"),
    "labels": ("fine-tune {victim} --data {root}/unlabelled.npy --out {new}", 2, "no labels"),
    "data": ("self-supervised {victim} --data {root}/no.npz --out {new}", 2, "does not exist"),
    "method": ("self-supervised {victim} --data {data} --out {new} --method dino", 2, "dino"),
    "batch": ("self-supervised {victim} --data {data} --out {new} --batch-size 1 --quiet", 2, "at least 2 images"),
    "no room to mark": ("overwrite {victim} --data {data} --out {new}", 2, "D_v takes 1000"),
    "preset": ("overwrite {victim} --data {data} --out {new} --preset large", 2, "large"),
    "settings": ("overwrite {victim} --data {data} --out {new} --negatives other", 2, "negatives"),
    "seed": ("overwrite {victim} --data {data} --out {new} --seed -1", 2, "at least 0"),
    "probed on nothing": ("prune {victim} --out {new} --probe-train {data}", 2, "go together"),
    "compared without a probe": ("prune {victim} --out {new} --clean {clean}", 2, "--probe-train and --probe-test"),
    "probe overlap": ("prune {victim} --out {new} --probe-train {data} --probe-test {data}[9:50]", 2, "share 41"),
    "no labels to probe": (
        "prune {victim} --out {new} --probe-train {root}/unlabelled.npy --probe-test {data}",
        2,
        "labels",
    ),
    "below a file": ("prune {victim} --out {data}/x", 2, "cannot be written"),
    "name": ("apply {victim} --attack stab --out {new}", 2, "one of distil"),
    "no weights": ("apply {victim} --attack sign-bits --data {data} --out {new}", 2, "leaves no weights"),
    "no data": ("apply {victim} --attack rda --out {new}", 2, "rda needs items: give --data"),
    "useless data": ("apply {victim} --attack prune --data {data} --out {new}", 2, "leave --data out"),
    "unlabelled": ("apply {victim} --attack fine-tune --data {root}/unlabelled.npy --out {new}", 2, "needs labels"),
    "no setting": ("apply {victim} --attack prune --set amount --out {new}", 2, "KEY=VALUE, not 'amount'"),
    "set twice": ("apply {victim} --attack prune --set amount=1 --set amount=2 --out {new}", 2, "--set cannot be read"),
    "command": ("stab {victim}", 2, "Unknown command"),
}


@pytest.mark.parametrize(("line", "code", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input(bed: Bed, tmp_path: Path, line: str, code: int, words: str) -> None:
    before = sorted(bed.root.rglob("*")), weights(bed.victim)
    ran = sslguard("attack", *line.format(**bed._asdict(), new=tmp_path / "new").split(), "--json")
    assert ran.code == ran.json["exit_code"] == code
    assert words in ran.err
    assert ran.err.startswith("sslguard: ")
    assert ran.err.count("\n") == 1, ran.err
    assert (sorted(bed.root.rglob("*")), weights(bed.victim)) == before
    assert list(tmp_path.iterdir()) == []


class TestInterruption:
    @pytest.mark.parametrize("name", [name for name in LINES if name not in ("prune", "apply")])
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["^C", "SIGTERM"])
    def test_it_goes_on(
        self, bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: signal.Signals
    ) -> None:
        out, kept = tmp_path / "o", tmp_path / "o.unfinished" / "checkpoint.pt"
        steps = interrupt_at(monkeypatch, 1, number)
        ran = sslguard(*command(bed, name, "--out", out, "--json"))
        assert ran.code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        assert f"the same command goes on from {kept}" in ran.err
        assert not out.exists()
        steps.clear()
        done(*command(bed, name, "--out", out))
        assert steps[0] == 2
        assert weights(out) == by_hand(bed, name)
        assert [p.name for p in tmp_path.iterdir()] == ["o"]

    def test_another_attack_does_not_take_its_checkpoint(
        self, bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        interrupt_at(monkeypatch, 1)
        assert sslguard(*command(bed, "fine-tune", "--out", tmp_path / "o")).code == 130
        for name in ("self-supervised", "overwrite", "fine-tune for epochs"):
            ran = sslguard(*command(bed, name, "--out", tmp_path / "o"))
            assert ran.code == 2
            assert "belongs to a run with other settings" in ran.err

    @pytest.mark.timeout(60)
    def test_killed_it_goes_on(self, bed: Bed, tmp_path: Path) -> None:
        """By SIGKILL, with a checkpoint after every step."""
        out = tmp_path / "o"
        script = (
            "import os, signal, sys\n"
            "from sslguard.cli import main\n"
            "from sslguard.training.loop import _Runner\n"
            "whole = _Runner._step\n"
            "def step(self, now):\n"
            "    if now == 2:\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
            "    losses = whole(self, now)\n"
            "    self._save()\n"
            "    return losses\n"
            "_Runner._step = step\n"
            "main(sys.argv[1:])\n"
        )
        line = [str(word) for word in command(bed, "fine-tune", "--out", out)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run([sys.executable, "-c", script, *line], capture_output=True, check=False, env=env)
        assert ran.returncode == -signal.SIGKILL
        assert (tmp_path / "o.unfinished" / "checkpoint.pt").exists()
        done(*line)
        assert weights(out) == by_hand(bed, "fine-tune")
