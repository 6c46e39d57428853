"""Two CPU processes see what one process sees that accumulates the same halves."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

# Both processes run all of it: the launcher starts this file a second time. Each writes what it saw.
SCRIPT = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sslguard.data.sources import ArrayData
from sslguard.training.distillation import Distillation, distil
from sslguard.encoders.folder import weights_hash
from sslguard.training.pretraining import Pretraining, PretrainingTask, new_encoder
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.schemes.sslguard.task import SSLGuardTask
from sslguard.crypto.secrets import Secret
from sslguard.training.base import Loop
from sslguard.training.loop import run
from sslguard.training.processes import shared

torch.set_num_threads(1)
folder = Path(sys.argv[1])
pictures = np.random.default_rng(0).integers(0, 256, (40, 1, 16, 16), dtype=np.uint8)
data = ArrayData("noise", pictures, None)
STEPS = 3


def task(name):
    encoder = new_encoder("resnet-narrow", data, seed=3)
    if name.startswith("sslguard"):
        scheme = SSLGuard() if name == "sslguard" else replace(SSLGuard(), gradients="released", negatives="shadow")
        scheme = replace(scheme, steps=STEPS, batch_size=8, trigger_batch=4, n_verification=8, n_queries=8)
        return SSLGuardTask(scheme, encoder, data, Secret.from_seed(1))
    recipe = Pretraining(name, steps=STEPS, batch_size=16, queue=24, projection=8)
    return PretrainingTask(recipe, encoder, data, seed=1)


def trained(name, **settings):
    batch = 8 if name.startswith("sslguard") else 16
    chosen = task(name)
    losses = run(chosen, Loop(steps=STEPS, batch_size=batch, seed=2, **settings)).losses
    return losses, {k: weights_hash(m) for k, m in chosen.modules.items()}


seen = {"two": {}, "one": {}, "weights": {}}
for name in ("simclr", "moco", "byol", "sslguard", "sslguard-all"):
    seen["two"][name], seen["weights"][name] = trained(name, devices=2)
    seen["one"][name], _ = trained(name, accumulate=2)

rank = int(os.environ["LOCAL_RANK"])
checkpoint = folder / "run.ckpt"
killed = task("moco")
end = killed.end_step


def interrupt_one(step, carried):
    end(step, carried)
    if step == 0 and rank == 1:
        os.kill(os.getpid(), signal.SIGINT)


killed.end_step = interrupt_one
loop = {"steps": STEPS, "batch_size": 16, "seed": 2, "checkpoint": checkpoint}
try:
    run(killed, Loop(**loop, devices=2))
except KeyboardInterrupt:
    seen["stopped"] = torch.load(checkpoint, weights_only=True)["history"]["steps"]
seen["resumed"] = run(task("moco"), Loop(**loop, devices=2)).losses

asked = [0]


class Teacher:
    def embed(self, batch):
        asked[0] += len(batch)
        return np.asarray(batch, dtype=np.float32).reshape(len(batch), -1)[:, :5]


recipe = Distillation(architecture="resnet-narrow", steps=2, batch_size=4)
student, _ = distil(recipe, Teacher(), data, devices=2)
seen["asked"], seen["student"] = asked[0], weights_hash(student.module)
seen["secret"] = shared(Secret.generate, devices=2).stream("test").integer()
(folder / f"seen{rank}.json").write_text(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What processes 0 and 1 saw."""
    folder = tmp_path_factory.mktemp("processes")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    kept = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    ended = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={**kept, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert ended.stdout == "", "standard output belongs to the program's answer"
    return [json.loads((folder / f"seen{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", ["simclr", "moco", "byol", "sslguard", "sslguard-all"])
class TestTwoProcesses:
    def test_have_the_losses_of_one_that_accumulates(self, seen, name):
        two, one = seen[0]["two"][name], seen[0]["one"][name]
        assert two.keys() == one.keys()
        for update in one:
            assert len(one[update]) == 3
            np.testing.assert_allclose(two[update], one[update], rtol=1e-4, atol=1e-6, err_msg=update)

    def test_end_with_the_same_weights_and_losses(self, seen, name):
        assert seen[0]["two"][name] == seen[1]["two"][name]
        assert seen[0]["weights"][name] == seen[1]["weights"][name]


def test_one_interrupted_process_stops_both_and_they_resume_exactly(seen):
    assert [s["stopped"] for s in seen] == [1, 1]
    assert seen[0]["resumed"] == seen[1]["resumed"] == seen[0]["two"]["moco"]


def test_the_teacher_is_asked_once_for_all(seen):
    assert [s["asked"] for s in seen] == [40, 0]
    assert seen[0]["student"] == seen[1]["student"]


def test_a_fresh_secret_is_the_same_everywhere(seen):
    assert seen[0]["secret"] == seen[1]["secret"]
