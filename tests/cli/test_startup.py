"""Mistakes are reported before anything heavy is imported, and a verification imports what it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.command_line import done

MISTAKES = {
    "--help": 0,
    "verify --help": 0,
    "verify nokey nosus --data nope": 3,
    "queries nokey --data mnist:test --out x.npy": 3,
    "protect nokey --clear": 3,
    "commit nokey --out x": 3,
    "claim nokey nosus --data nope --seed s --commitment c --out o": 3,
    "audit bundle --data nope --seed s": 2,
    "audit bundle --data mnist:test --seed s --not-after yesterday": 2,
    "embed random:nope --data mnist:test --out x.npy": 2,
    "embed shipped:simclr --data mnist:test --out x.txt": 2,
    "embed shipped:simclr --data mnist:all --out x.npy": 2,
    "embed shipped:simclr@256 --data mnist:test --out x.npy": 2,
    "embed hf:nowhere --data mnist:test --out x.npy": 3,
    "probe shipped:simclr --train nope --test mnist:test": 2,
    "power nope --data mnist:test": 2,
    "serve nope": 2,
    "export torchvision:resnet18:nowhere.pth --out x.onnx": 3,
    "bench run nowhere.toml out": 2,
    "pretrain simclr --data nope --out o": 2,
    "pretrain simclr --data mnist:test --out o --queue 0": 2,
    "watermark nope --data mnist:test --out o": 2,
    "watermark shipped:simclr --data nope --out o": 2,
    "watermark shipped:simclr --data mnist:test --out o --scheme exact --carrier 2": 2,
    "watermark shipped:simclr --data mnist:test --out o --steps 0": 2,
    "watermark shipped:simclr --data mnist:test --out o --scheme exact --n-statistics 97": 2,
    "steal nope --data mnist:test --out o": 2,
    "attack prune nope --out o": 2,
    "attack fine-tune shipped:simclr --data nope --out o": 2,
    "attack self-supervised shipped:simclr --data mnist:test --out o --batch-size 0": 2,
    "attack overwrite shipped:simclr --data mnist:test --out o --mask-probability 2": 2,
    "attack apply shipped:simclr --attack prune --out o --set x": 2,
    "controls --data nope --pretrain-data x --labelled-data y --victim a=b --out o": 2,
}
RUN = """
import contextlib, io, json, sys
from sslguard.cli.entry import main
found = {}
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(line.split())
    heavy = [name for name in ("torch", "numpy", "scipy") if name in sys.modules]
    found[line] = [code, heavy, said.getvalue().count("\\n")]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[int, list[str], int]]:
    """Exit code, heavy packages imported so far, and lines on standard error of each command, in one process."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(list(MISTAKES))],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_ends_in_one_sentence_before_torch_is_imported(found, line):
    code, heavy, lines = found[line]
    assert (code, heavy) == (MISTAKES[line], [])
    assert lines == (0 if line.endswith("--help") else 1)


# What torch and the parsing of a command import of others, and what this package does. All that is left takes long.
NEEDED = {
    *("torch", "torchgen", "cuda", "tqdm", "typing_extensions", "numpy", "scipy", "safetensors", "PIL"),
    *("cryptography", "cyclopts", "attr", "attrs"),
    "charset_normalizer",  # by numpy.f2py, where the packages of the documents have installed it
}
HEAVY = {"torch._dynamo", "torch._inductor", "torch.onnx", "scipy.stats", "scipy.optimize"}
IMPORTED = """
import json, sys
from sslguard.cli.entry import main
code = main(sys.argv[1:])
files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
print(json.dumps([code, sorted(name for name, file in files.items() if "site-packages" in file)]))
"""


@pytest.mark.heavy
def test_a_verification_of_a_small_encoder_imports_what_it_needs(tmp_path: Path) -> None:
    np.save(tmp_path / "pictures.npy", np.random.default_rng(0).integers(0, 256, (160, 16, 16), dtype=np.uint8))
    pictures, out = f"{tmp_path}/pictures.npy", tmp_path / "marked"
    few = ("--n-queries", 60, "--functions", 8, "--rank", 2)
    done(
        "watermark",
        "random:resnet-narrow@16",
        "--data",
        f"{pictures}[0:100]",
        "--scheme",
        "exact",
        "--mode",
        "head",
        *few,
        "--out",
        out,
    )
    ran = subprocess.run(
        [sys.executable, "-c", IMPORTED, "verify", out / "key", out / "encoder", "--data", f"{pictures}[100:160]"],
        capture_output=True,
        text=True,
        check=True,
    )
    code, names = json.loads(ran.stdout.splitlines()[-1])
    assert code in (0, 1), ran.stderr
    assert {name for name in names if name.partition(".")[0] not in NEEDED and not name.startswith("_")} == set()
    assert HEAVY & set(names) == set()
