"""The command line from end to end on tiny data: results, exit codes, messages, interruption."""

from __future__ import annotations

import ctypes
import io
import json
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.command_line import Ran, done, interrupt_at, sslguard, weights
from sslguard import api
from sslguard.attacks.removal import Prune
from sslguard.cli import entry, main
from sslguard.cli.make import DistillationOptions, PretrainingOptions, SchemeOptions
from sslguard.cli.output import printable
from sslguard.encoders.load import load_encoder
from sslguard.errors import UsageError
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import load_key
from sslguard.schemes.sslguard.key import SSLGuardKey
from sslguard.schemes.sslguard.scheme import CuredSSLGuard, SSLGuard
from sslguard.training.distillation import Distillation
from sslguard.training.pretraining import Pretraining
from sslguard.training.processes import is_first_process

COMMANDS = (
    *("doctor", "pretrain", "watermark", "steal", "embed", "probe", "power", "queries", "verify", "controls", "demo"),
    *("protect", "commit", "claim", "audit", "export", "serve", "lineage", "release", "trace"),
)
PRETRAIN = ("--arch", "resnet-narrow", "--steps", "4", "--batch-size", "16", "--quiet")
SIZES = ("--batch-size", "8", "--trigger-batch", "8", "--n-queries", "20", "--quiet")
MARK = ("--preset", "small", "--n-verification", "40", *SIZES)
STEAL = ("--arch", "resnet-narrow", "--steps", "4", "--batch-size", "16", "--quiet")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSLGUARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Bed(NamedTuple):
    """Tiny data, and what the first three commands made of it."""

    root: Path
    data: str
    clean: Path
    marked: Path
    key: Path
    controls: Path
    said: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory, short_law: None) -> Bed:
    root = tmp_path_factory.mktemp("bed")
    generator = np.random.default_rng(0)
    labels = np.arange(160) % 4
    images = generator.integers(0, 80, (160, 16, 16), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 150
    data = root / "data.npz"
    np.savez(data, images=images, labels=labels)
    clean, out, population = root / "clean", root / "out", root / "controls"
    said = {"pretrain": done("pretrain", "simclr", "--data", f"{data}[0:80]", "--out", clean, *PRETRAIN)}
    said["watermark"] = done("watermark", clean, "--data", f"{data}[0:80]", "--out", out, "--steps", 60, *MARK)
    kinds = ("independent", "supervised", "public", "surrogate", "fine-tuned")
    said["controls"] = done(
        *("controls", "--data", data, "--pretrain-data", data, "--labelled-data", data, "--quiet"),
        *("--victim", f"clean={clean}", "--out", population, *(word for k in kinds for word in ("--without", k))),
        *("--probe-train", f"{data}[0:80]", "--probe-test", f"{data}[80:160]"),
    )
    # The key keeps what these innocents score, so that no test below is the first to ask them.
    done(
        "verify",
        out / "key",
        out / "encoder",
        "--data",
        f"{data}[80:160]",
        "--control",
        population,
        "--alpha",
        0.07,
        "--quiet",
    )
    return Bed(root, str(data), clean, out / "encoder", out / "key", population, said)


# --- help


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(command: str | None) -> None:
    ran = sslguard(*([command] if command else []), "--help")
    assert ran.code == 0
    assert ran.err == ""
    for word in COMMANDS if command is None else ("--json", "--quiet", "--verbose"):
        assert word in ran.out
    assert command is None or ran.out.startswith(f"Usage: sslguard {command}")


def test_help_names_the_exit_codes() -> None:
    text = " ".join(sslguard("--help").out.split())
    for meaning in ("0 done or derived", "1 not shown", "2 usage", "3 suspect, encoder or key", "4 refused"):
        assert meaning in text


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from sslguard.cli import main\n"
        f"codes = [main([*c, '--help']) for c in ([], *([c] for c in {COMMANDS}))] + [main(['--version'])]\n"
        "heavy = sorted({'torch', 'numpy', 'scipy', 'timm', 'kornia', 'matplotlib'} & set(sys.modules))\n"
        "print(set(codes), heavy)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("{0} []\n")


# --- the whole story


def test_pretrain(bed: Bed) -> None:
    said = bed.said["pretrain"]
    assert said["encoder"] == str(bed.clean)
    assert said["recipe"]["steps"] == 4
    assert load_encoder(bed.clean).dim == said["dim"] == 64
    assert not bed.clean.with_name("clean.unfinished").exists()


def test_watermark(bed: Bed) -> None:
    said = bed.said["watermark"]
    assert (said["encoder"], said["key"]) == (str(bed.marked), str(bed.key))
    assert said["settings"]["steps"] == 60
    key = load_key(bed.key)
    assert isinstance(key, SSLGuardKey)
    assert key.watermarked_hash == weights(bed.marked)
    assert key.clean_hash == weights(bed.clean)
    assert stat.S_IMODE(bed.key.stat().st_mode) == 0o700
    assert key.secret.reveal().hex() not in json.dumps(bed.said)
    assert sorted(p.name for p in bed.root.iterdir()) == ["clean", "controls", "data.npz", "out"]


def test_controls(bed: Bed) -> None:
    said = bed.said["controls"]
    assert said["kinds"] == {"random": 12, "pruned": 3}
    assert said["n_controls"] == 15
    assert said["floor"] == 1 / 16
    assert len(list(bed.controls.glob("*/encoder.json"))) == 15
    assert said["accuracy"].keys() == {path.parent.name for path in bed.controls.glob("*/encoder.json")}
    assert all(0 <= accuracy <= 1 for accuracy in said["accuracy"].values())


def test_steal(bed: Bed, tmp_path: Path) -> None:
    out = tmp_path / "stolen"
    said = done("steal", bed.marked, "--data", bed.data, "--out", out, "--queries", 32, "--loss", "mse", *STEAL)
    assert said["queries"] == 32
    assert said["recipe"]["loss"] == "mse"
    assert said["recipe"]["augmentation"] is None
    assert load_encoder(out).dim == said["dim"] == 64
    augmented = done("steal", bed.marked, "--data", bed.data, "--out", out, "--augment", *STEAL)
    assert augmented["queries"] >= 4 * 16
    assert augmented["recipe"]["augmentation"] is not None


def test_embed(bed: Bed, tmp_path: Path) -> None:
    out = tmp_path / "new" / "answers.npy"
    said = done("embed", bed.clean, "--data", f"{bed.data}[3:50]", "--out", out, "--batch-size", 16, "--quiet")
    answers = np.load(out, allow_pickle=False)
    expected = load_encoder(bed.clean).embed(api.as_data(f"{bed.data}[3:50]").take(range(47)))
    assert said["shape"] == [47, 64]
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, expected, atol=1e-5)


def test_probe(bed: Bed) -> None:
    train, test = f"{bed.data}[0:80]", f"{bed.data}[80:160]"
    said = done("probe", bed.clean, "--train", train, "--test", test, "--method", "knn", "--baseline")
    assert 0 <= said["accuracy"] <= 1
    assert said["baseline"]["better"] == max(said["baseline"]["pixels"], said["baseline"]["random"])
    few = done("probe", bed.clean, "--train", train, "--test", test, "--per-class", 5, "--seed", 3, "--seed", 4)
    assert (few["n_train"], few["seeds"]) == (20, [3, 4])
    assert few["accuracy"] == pytest.approx(sum(few["accuracies"]) / 2)
    lines = sslguard("probe", bed.clean, "--train", train, "--test", test, "--method", "knn").out.splitlines()
    assert lines[0].split() == ["accuracy", f"{said['accuracy']:.4f}"]


def test_queries_asked_elsewhere_give_the_same_verdict(bed: Bed, tmp_path: Path) -> None:
    asked, answers = tmp_path / "queries.npy", tmp_path / "answers.npy"
    held_out = f"{bed.data}[80:160]"
    said = done("queries", bed.key, "--data", held_out, "--out", asked)
    written = np.load(asked, allow_pickle=False)
    assert said["shape"] == list(written.shape) == [20, 1, 16, 16]
    assert written.dtype == np.uint8
    assert stat.S_IMODE(asked.stat().st_mode) == 0o600
    done("embed", bed.marked, "--data", asked, "--out", answers, "--quiet")
    common = ("--data", held_out, "--control", bed.controls, "--alpha", 0.07)
    live, logged = done("verify", bed.key, bed.marked, *common), done("verify", bed.key, f"answers:{answers}", *common)
    assert logged["statistic"] == pytest.approx(live["statistic"], abs=1e-5)
    same = {"suspect": "", "statistic": 0, "stored_controls": True}
    assert live["lineage"]["decision"] == "shared weights"  # of a suspect whose weights are at hand
    assert {**live, **same} == {**logged, **same, "details": live["details"], "lineage": live["lineage"]}


def test_verify_derived(bed: Bed) -> None:
    command = ("verify", bed.key, bed.marked, "--data", f"{bed.data}[80:160]", "--control", bed.controls)
    said = done(*command, "--alpha", "0.07")
    assert said["decision"] == "derived"
    assert said["floor"] == said["pvalue"] == pytest.approx(1 / 16)
    assert said["log2_pvalue"] == pytest.approx(-4)
    assert (said["null"], said["n_controls"], said["n_queries"]) == ("controls", 15, 20)
    text = sslguard(*command, "--alpha", "0.07").out
    for label in ("decision", "statistic", "watermark rate", "evidence", "null", "floor", "queries", "alpha"):
        assert any(line.startswith(f"{label} ") for line in text.splitlines())
    assert text.splitlines()[0].split() == ["decision", "derived"]


def test_verify_not_shown(bed: Bed) -> None:
    """Controls one after another behind one flag, and repeated flags, are the same list."""
    names = [f"random:resnet-narrow:{seed}" for seed in range(3)]
    common = ("verify", bed.key, bed.clean, "--data", f"{bed.data}[80:160]", "--alpha", "0.2", "--json")
    first = sslguard(*common, "--control", bed.marked, *names)
    second = sslguard(*common, "--control", bed.marked, *(word for n in names for word in ("--control", n)))
    assert first.code == second.code == 1
    assert first.json == {**second.json, "stored_controls": False}
    assert first.json["decision"] == "not shown"
    assert first.json["n_controls"] == 4


def test_the_default_key_needs_no_controls_and_shows_the_rank_beside(bed: Bed, tmp_path: Path) -> None:
    out = tmp_path / "o"
    done(
        "watermark",
        bed.clean,
        "--data",
        f"{bed.data}[0:80]",
        "--out",
        out,
        "--scheme",
        "sslguard",
        "--steps",
        60,
        *SIZES,
    )
    command = ("verify", out / "key", out / "encoder", "--data", f"{bed.data}[80:160]")
    said = done(*command)
    assert (said["decision"], said["null"], said["n_queries"], said["rank"]) == ("derived", "exact", 40, None)
    ranked = done(*command, "--control", bed.controls, "random:resnet-narrow:1")
    assert (ranked["rank"], sum(ranked["control_kinds"].values())) == (1, 16)
    assert {name for name in said if said[name] != ranked[name]} <= {
        *("rank", "gap", "gap_deviations", "control_kinds", "warnings"),
    }
    # The rank alone decides nothing: the smallest one does not save a level that the p-value misses.
    high = sslguard(*command, "--control", bed.controls, "--alpha", f"{2.0**-240:.3g}", "--json")
    assert (high.code, high.json["rank"]) == (1, 1)
    assert "it decides nothing" in sslguard(*command, "--control", bed.controls).out


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration itself is tested elsewhere."""

    class Shown:
        again = False

        def to_json(self) -> dict[str, Any]:
            return {"verdicts": ["derived"]}

        def table(self) -> str:
            return "a table"

    asked: list[tuple[Path, bool]] = []

    def run_demo(out: Path, *, progress: bool) -> Shown:
        asked.append((out, progress))
        return Shown()

    monkeypatch.setattr("sslguard.demo.run.run_demo", run_demo)
    assert done("demo", "--out", tmp_path) == {"verdicts": ["derived"]}
    assert sslguard("demo", "--out", tmp_path, "--quiet") == (0, f"a table\nreport  {tmp_path}/report.html\n", "")
    assert asked == [(tmp_path, True), (tmp_path, False)]
    Shown.again = True
    assert f"remove {tmp_path}" in sslguard("demo", "--out", tmp_path, "--quiet").out
    monkeypatch.setattr("sslguard.cli.prove.find_spec", lambda _: None)
    missing = sslguard("demo", "--api", "--out", tmp_path)
    assert (missing.code, "sslguard[demo]" in missing.err) == (2, True)


@pytest.mark.parametrize("claims", [1, 2])
def test_claims_share_alpha(bed: Bed, claims: int) -> None:
    common = ("--data", f"{bed.data}[80:160]", "--control", bed.controls, "--alpha", 0.07, "--claims", claims)
    assert sslguard("verify", bed.key, bed.marked, *common).code == (0 if claims == 1 else 4)


def test_published_preset_and_settings(bed: Bed, tmp_path: Path) -> None:
    settings = done(
        *("watermark", bed.clean, "--data", bed.data, "--out", tmp_path / "o", "--preset", "published"),
        *("--steps", 1, "--shadow", "resnet-narrow", "--negatives", "shadow", "--quiet", "--n-verification", 10),
        *("--shadow-weights", "random:resnet-narrow@16"),
    )["settings"]
    assert (settings["optimizer"], settings["gradients"], settings["batch_size"]) == ("sgd", "released", 2)
    assert (settings["steps"], settings["shadow"], settings["negatives"]) == (1, "resnet-narrow", "shadow")


def test_secret_seed_repeats_a_key_and_warns(bed: Bed, tmp_path: Path) -> None:
    for name in ("a", "b"):
        ran = sslguard(
            *("watermark", bed.clean, "--data", bed.data, "--out", tmp_path / name, "--secret-seed", 5),
            *("--steps", 2, *MARK),
        )
        assert ran.code == 0
        assert "proves nothing" in ran.err
    assert weights(tmp_path / "a" / "encoder") == weights(tmp_path / "b" / "encoder")
    # Without it every key is another, and nothing of it is said.
    assert load_key(bed.key).secret.reveal() != load_key(tmp_path / "a" / "key").secret.reveal()  # type: ignore[attr-defined]


def test_options_are_those_of_the_settings() -> None:
    for options, recipe in (
        (SchemeOptions, (CuredSSLGuard, SSLGuard, Exact, Protocol)),
        (PretrainingOptions, (Pretraining,)),
        (DistillationOptions, (Distillation,)),
    ):
        known = {field.name for kind in recipe for field in fields(kind)}
        assert {field.name for field in fields(options)} <= known  # type: ignore[arg-type]
    ours, theirs = get_type_hints(SchemeOptions), get_type_hints(SSLGuard)
    for name in ("gradients", "negatives", "optimizer"):
        assert get_args(get_args(ours[name])[0]) == get_args(theirs[name])
    chosen = SchemeOptions(steps=3, rank=2)  # type: ignore[call-arg]
    assert chosen.table("exact") == {"steps": 3, "protocol": {"rank": 2}}
    with pytest.raises(UsageError, match=r"^--rank belongs to --scheme exact$"):
        chosen.table("sslguard")


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("pretrain", {**asdict(Pretraining("simclr")), "method": None, "views": None}),
        ("steal", {"steps": 400, "learning_rate": 0.003, "loss": "cosine"}),
        (
            "watermark",
            {"steps": "800 for sslguard, 1000 for exact", "carrier": 1, "largest": 0.05, "mode": "distilled"},
        ),
        ("attack overwrite", {"steps": 200, "decoder_rate": 0.001}),
        ("attack fine-tune", {"steps": 100, "layers": "all"}),
        ("attack self-supervised", {"steps": 200, "learning_rate": 0.001}),
    ],
)
def test_help_shows_every_default(command: str, defaults: dict[str, object]) -> None:
    page = " ".join(word for word in sslguard(*command.split(), "--help").out.split() if word != "│")
    for name, value in defaults.items():
        if value is not None:
            shown = f"{value:g}" if isinstance(value, float) else value
            assert re.search(rf"--{name.replace('_', '-')} (?:(?! --).)*\[default: {shown}\]", page), name


# --- what goes wrong


@pytest.fixture(scope="module")
def broken(bed: Bed) -> Path:
    """Files that are damaged in one way each."""
    root = bed.root.parent / "broken"
    root.mkdir(exist_ok=True)
    np.save(root / "shape.npy", np.zeros((5, 7), np.uint8))
    np.save(root / "nan.npy", np.full((4, 1, 16, 16), np.nan, np.float32))
    np.save(root / "unlabelled.npy", np.zeros((80, 1, 16, 16), np.uint8))
    np.save(root / "few.npy", np.zeros((3, 64), np.float32))
    np.save(root / "wide.npy", np.ones((20, 65), np.float32))
    np.save(root / "partly-nan.npy", np.where(np.arange(64) < 3, np.nan, np.ones((20, 64), np.float32)))
    (root / "file").write_text("a regular file")
    (root / "empty.npz").write_bytes(b"")
    (root / "taken").mkdir()
    (root / "taken" / "precious.txt").write_text("mine")
    for name, source, damaged in (
        ("cut-encoder", bed.clean, "weights.safetensors"),
        ("cut-key", bed.key, "tensors.safetensors"),
        ("cut-key-json", bed.key, "key.json"),
    ):
        shutil.copytree(source, root / name)
        content = (root / name / damaged).read_bytes()
        (root / name / damaged).write_bytes(content[: len(content) // 2])
    shutil.copytree(bed.clean, root / "half-encoder")
    (root / "half-encoder" / "weights.safetensors").unlink()
    return root


PROBE = "probe {clean} --train {data}[0:80] --test"
VERIFY = "verify {key} {marked} --data {data}[80:160]"
ASKED = "--data {data}[80:160] --control {controls} --alpha 0.07"
TRAIN = "pretrain simclr --data {data} --out {new} --steps 1 --batch-size 16"
POPULATE = "controls --data {data} --pretrain-data {data} --labelled-data {data} --out {new} --without public"

BAD = {
    # 2: usage, data, places to write to
    "no such command": ("prove", 2, "Unknown command"),
    "no such option": (f"{TRAIN} --stepz 3", 2, "--stepz"),
    "option missing": ("pretrain simclr --data {data}", 2, "--out"),
    "argument missing": ("verify {key} --data {data}", 2, "SUSPECT"),
    "method": ("pretrain dino --data {data} --out {new}", 2, "dino"),
    "half a step": (f"{TRAIN} --devices 1.5", 2, "whole number"),
    "no steps": (f"{TRAIN} --threads 0", 2, "at least 1"),
    "rate below zero": (f"{TRAIN} --learning-rate -1", 2, "above 0"),
    "rate NaN": (f"{TRAIN} --learning-rate nan", 2, "above 0"),
    "chunks": (f"{TRAIN} --accumulate 3", 2, "multiple"),
    "architecture": (f"{TRAIN} --arch resnet-huge", 2, "resnet-huge"),
    "data missing": ("embed {clean} --data {broken}/nothing.npz --out {new}.npy", 2, "does not exist"),
    "data name": ("embed {clean} --data mnist:trian --out {new}.npy", 2, "trian"),
    "data slice": ("embed {clean} --data {data}[0:999] --out {new}.npy", 2, "999"),
    "data shape": ("embed {clean} --data {broken}/shape.npy --out {new}.npy", 2, "shape"),
    "data NaN": ("embed {clean} --data {broken}/nan.npy --out {new}.npy", 2, "finite"),
    "data empty": ("embed {clean} --data {broken}/empty.npz --out {new}.npy", 2, "empty.npz"),
    "no labels": (f"{PROBE} {{broken}}/unlabelled.npy", 2, "labels"),
    "overlap": (f"{PROBE} {{data}}[79:160]", 2, "share 1 items"),
    "no room to mark": (
        "watermark {clean} --data {data}[0:30] --out {new} --preset small --n-verification 40",
        2,
        "30 items",
    ),
    "too few to ask": ("queries {key} --data {data}[0:10] --out {new}.npy", 2, "20 items"),
    "encoder form": ("embed hub:bert --data {data} --out {new}.npy", 2, "hub:bert"),
    "suffix": ("embed {clean} --data {data} --out {new}.txt", 2, ".npy"),
    "out taken": (
        "watermark {clean} --data {data} --out {broken}/taken --preset small --n-verification 9",
        2,
        "not overwritten",
    ),
    "key kept": (
        "watermark {clean} --data {data} --out {marked}/.. --preset small --n-verification 9",
        2,
        "not overwritten",
    ),
    "pretrain below a file": ("pretrain byol --data {data} --out {broken}/file/x --steps 1", 2, "cannot be written"),
    "watermark below a file": ("watermark {clean} --data {data} --out {broken}/file/x", 2, "cannot be written"),
    "steal below a file": ("steal {clean} --data {data} --out {broken}/file/x --steps 1", 2, "cannot be written"),
    "embed below a file": ("embed {clean} --data {data} --out {broken}/file/x.npy", 2, "cannot be written"),
    "queries below a file": ("queries {key} --data {data} --out {broken}/file/x.npy", 2, "cannot be written"),
    "controls probed on nothing": (f"{POPULATE} --victim a={{clean}} --probe-train {{data}}", 2, "go together"),
    "controls below a file": (
        "controls --data {data} --pretrain-data {data} --labelled-data {data} --without public --without supervised "
        "--without independent --victim a={clean} --out {broken}/file/x",
        2,
        "file/x",
    ),
    "demo below a file": ("demo --out {broken}/file/x", 2, "cannot be written"),
    "too many asked": ("steal {clean} --data {data} --out {new} --queries 999", 2, "999"),
    "alpha": (f"{VERIFY} --control {{controls}} --alpha 2", 2, "alpha"),
    "alpha NaN": (f"{VERIFY} --control {{controls}} --alpha nan", 2, "above 0"),
    "control missing": (f"{VERIFY} --alpha 0.5 --control {{broken}}/nothing", 2, "nothing"),
    "control cut": (f"{VERIFY} --alpha 0.5 --control {{broken}}/cut-encoder", 2, "control"),
    "control twice": (f"{VERIFY} --alpha 0.5 --control {{clean}} --control {{clean}}", 2, "twice"),
    "control width": (f"{VERIFY} --alpha 0.5 --control random:resnet-small", 2, "width 64"),
    "victim form": (f"{POPULATE} --victim {{clean}}", 2, "NAME=ENCODER"),
    "victim name": (f"{POPULATE} --victim ../a={{clean}}", 2, "NAME=ENCODER"),
    "victim twice": (f"{POPULATE} --victim a={{clean}} a={{marked}}", 2, "twice"),
    "victim widths": (f"{POPULATE} --victim a={{clean}} b=random:resnet-small", 2, "128 dimensions"),
    # 3: suspects, encoders, keys
    "encoder cut": ("embed {broken}/cut-encoder --data {data} --out {new}.npy", 3, "weights.safetensors"),
    "encoder half": ("steal {broken}/half-encoder --data {data} --out {new}", 3, "weights.safetensors"),
    "key missing": (f"verify {{broken}}/nothing {{marked}} {ASKED}", 3, "not a key"),
    "key is an encoder": ("queries {marked} --data {data} --out {new}.npy", 3, "not a key"),
    "key cut": (f"verify {{broken}}/cut-key {{marked}} {ASKED}", 3, "damaged"),
    "key text cut": (f"verify {{broken}}/cut-key-json {{marked}} {ASKED}", 3, "damaged"),
    "key of another width": (f"verify {{key}} random:resnet-small {ASKED}", 3, "width 64"),
    "suspect cut": (f"verify {{key}} {{broken}}/cut-encoder {ASKED}", 3, "weights.safetensors"),
    "answers missing": (f"verify {{key}} answers:{{broken}}/nothing.npy {ASKED}", 3, "nothing.npy"),
    "answers too few": (f"verify {{key}} answers:{{broken}}/few.npy {ASKED}", 3, "3 answers"),
    "answers too wide": (f"verify {{key}} answers:{{broken}}/wide.npy {ASKED}", 3, "width 64"),
    "answers NaN": (f"verify {{key}} answers:{{broken}}/partly-nan.npy {ASKED}", 3, "NaN"),
    # 4: refused
    "alpha below the floor": (f"{VERIFY} --control {{controls}} --alpha 0.01", 4, "at least 99 controls"),
    "no controls": (VERIFY, 4, "--control shipped"),
}


@pytest.mark.parametrize(("line", "code", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input(bed: Bed, broken: Path, tmp_path: Path, line: str, code: int, words: str) -> None:
    """One sentence, the exit code of its kind, one JSON object where one was asked for, nothing left behind."""
    names = {**bed._asdict(), "broken": broken, "new": tmp_path / "new"}
    before = sorted(bed.root.rglob("*")), sorted(broken.rglob("*"))
    ran = sslguard(*line.format(**names).split(), "--json", "--quiet")
    assert ran.code == code
    assert words in ran.err
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.startswith("sslguard: ")
    assert ran.json["exit_code"] == code
    assert ran.err == f"sslguard: {ran.json['error']}\n"
    assert (sorted(bed.root.rglob("*")), sorted(broken.rglob("*"))) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["text", "cut", "other settings"])
def test_unusable_checkpoint_is_named_and_kept(bed: Bed, tmp_path: Path, content: str) -> None:
    out, kept = tmp_path / "o", tmp_path / "o.unfinished" / "checkpoint.pt"
    kept.parent.mkdir()
    torch.save({"fingerprint": "another run"}, kept)
    if content != "other settings":
        kept.write_bytes(b"no checkpoint" if content == "text" else kept.read_bytes()[:100])
    before = kept.read_bytes()
    ran = sslguard("pretrain", "simclr", "--data", bed.data, "--out", out, *PRETRAIN)
    assert ran.code == 2
    assert str(kept) in ran.err
    assert ran.out == ""
    assert not out.exists()
    assert kept.read_bytes() == before


def test_fault_of_the_program(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("line one\nline two\x1b[2J")

    monkeypatch.setattr(api, "verify", fail)
    command = ("verify", bed.key, bed.marked, "--data", f"{bed.data}[80:160]", "--control", "shipped")
    ran = sslguard(*command)
    assert ran.code == entry.FAULT == 70
    assert ran.err.count("\n") == 1
    assert "RuntimeError: line one line two\\x1b[2J" in ran.err
    assert "Traceback" not in ran.err
    monkeypatch.setenv("SSLGUARD_DEBUG", "1")
    assert "Traceback" in sslguard(*command).err


def test_log_and_stray_prints_go_to_standard_error(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = api.verify

    def chatty(*arguments: Any, **options: Any) -> Any:
        print("a library speaks")  # noqa: T201
        logging.getLogger("sslguard.somewhere").info("a step")
        return verify(*arguments, **options)

    monkeypatch.setattr(api, "verify", chatty)
    command = (
        "verify",
        bed.key,
        bed.marked,
        "--data",
        f"{bed.data}[80:160]",
        "--control",
        bed.controls,
        "--alpha",
        0.5,
        "--json",
    )
    quiet, verbose = sslguard(*command), sslguard(*command, "--verbose")
    assert quiet.json == verbose.json
    assert "a library speaks" in quiet.err
    assert "a step" not in quiet.err
    assert "sslguard.somewhere: a step" in verbose.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_result_that_cannot_be_printed_is_no_success(bed: Bed, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full, redirect_stdout(full), redirect_stderr(io.StringIO()) as err:
        code = main(
            ["embed", str(bed.clean), "--data", f"{bed.data}[0:2]", "--out", str(tmp_path / "x.npy"), "--quiet"]
        )
    assert code == 2
    assert "No space left" in err.getvalue()


def test_printable() -> None:
    assert printable("two\nlines\r\n") == "two lines"
    assert printable("\x1b[31mred\x00\u202e\udcff é") == "\\x1b[31mred\\x00\\u202e\\udcff é"


def test_without_glibc(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert sslguard("--version").code == 0


# --- interruption


LONG = {
    "pretrain": ("pretrain", "moco", "--data", "{data}", "--seed", "1", *PRETRAIN, "--queue", "32"),
    "watermark": ("watermark", "{clean}", "--data", "{data}", "--secret-seed", "1", "--steps", "4", *MARK),
    "steal": ("steal", "{marked}", "--data", "{data}", *STEAL, "--augment"),
}


@pytest.mark.parametrize("name", LONG)
def test_interrupted_command_goes_on(bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    command = [word.format(**bed._asdict()) for word in LONG[name]]
    at_once, broken_off = tmp_path / "a", tmp_path / "b"
    done(*command, "--out", at_once)
    interrupt_at(monkeypatch, 1)
    ran = sslguard(*command, "--out", broken_off, "--json")
    kept = tmp_path / "b.unfinished"
    assert ran.code == ran.json["exit_code"] == 130
    assert f"the same command goes on from {kept / 'checkpoint.pt'}" in ran.err
    assert not broken_off.exists()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    done(*command, "--out", broken_off)
    inside = "encoder" if name == "watermark" else "."
    assert weights(broken_off / inside) == weights(at_once / inside)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_resumed_marking_keeps_its_secret(bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("watermark", bed.clean, "--data", bed.data, "--out", tmp_path / "o", "--steps", 4, *MARK)
    interrupt_at(monkeypatch, 1)
    ran = sslguard(*command)
    kept = tmp_path / "o.unfinished" / "secret"
    secret = kept.read_bytes()
    assert ran.code == 130
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert secret.hex() not in ran.err
    done(*command)
    key = load_key(tmp_path / "o" / "key")
    assert isinstance(key, SSLGuardKey)
    assert key.secret.reveal() == secret
    assert not kept.parent.exists()


def test_terminated_command_goes_on_too(bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    interrupt_at(monkeypatch, 1, signal.SIGTERM)
    ran = sslguard("steal", bed.clean, "--data", bed.data, "--out", tmp_path / "o", *STEAL)
    assert ran.code == 143
    assert (tmp_path / "o.unfinished" / "checkpoint.pt").exists()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("command", ["embed", "watermark"])
def test_interrupted_before_anything_could_be_kept(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    target = "sslguard.encoders.base.Encoder.embed" if command == "embed" else "sslguard.api.watermark"
    monkeypatch.setattr(target, interrupt)
    ran = sslguard(command, bed.clean, "--data", bed.data, "--out", tmp_path / "x.npy", "--quiet")
    assert ran.code == 130
    assert "nothing was written" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_interrupted_population_keeps_its_members(bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, prune, calls = tmp_path / "o", Prune.__call__, []

    def second_time(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return prune(*arguments, **options)

    monkeypatch.setattr(Prune, "__call__", second_time)
    kinds = ("independent", "supervised", "public", "surrogate", "fine-tuned", "random")
    command = (
        *("controls", "--data", bed.data, "--pretrain-data", bed.data, "--labelled-data", bed.data, "--out", out),
        *("--victim", f"a={bed.clean}", "--quiet", *(word for kind in kinds for word in ("--without", kind))),
    )
    ran = sslguard(*command)
    assert ran.code == 130
    assert "same command goes on" in ran.err
    assert len(list(out.glob("*/encoder.json"))) == 1
    assert done(*command)["n_controls"] == 3
    assert len(calls) == 4


def test_only_what_was_put_there_is_cleared(bed: Bed, tmp_path: Path) -> None:
    mine = tmp_path / "o.unfinished" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    done("pretrain", "simclr", "--data", bed.data, "--out", tmp_path / "o", *PRETRAIN)
    assert [p.name for p in mine.parent.iterdir()] == ["notes.txt"]


# --- several processes


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID"])
def test_only_the_first_process_is_first(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    assert is_first_process()
    monkeypatch.setenv(variable, "0")
    assert is_first_process()
    monkeypatch.setenv(variable, "1")
    assert not is_first_process()


def test_other_processes_write_and_print_nothing(bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take the secret that the first one drew."""
    out, kept = tmp_path / "o", tmp_path / "o.unfinished" / "secret"
    kept.parent.mkdir(mode=0o700)
    kept.touch(mode=0o600)
    kept.write_bytes(bytes(32))
    monkeypatch.setenv("LOCAL_RANK", "1")
    ran = sslguard("watermark", bed.clean, "--data", bed.data, "--out", out, "--steps", 2, *MARK, "--json")
    assert ran == (0, "", "")
    assert [p.name for p in tmp_path.iterdir()] == ["o.unfinished"]
    assert kept.read_bytes() == bytes(32)
    failed = sslguard("watermark", bed.clean, "--data", "nothing.npz", "--out", out, "--json")
    assert (failed.code, failed.out) == (2, "")
    assert failed.err.startswith("sslguard: process 1: ")


@pytest.mark.parametrize("planted", ["open folder", "link", "open secret"])
def test_a_secret_that_somebody_else_may_have_put_there_is_not_used(bed: Bed, tmp_path: Path, planted: str) -> None:
    """In a shared folder: the mark would be theirs to find and to forge."""
    kept = tmp_path / "o.unfinished"
    kept.mkdir(mode=0o700)
    (kept / "secret").touch(mode=0o600)
    (kept / "secret").write_bytes(b"A" * 32)
    if planted == "link":
        kept.rename(tmp_path / "elsewhere")
        kept.symlink_to(tmp_path / "elsewhere")
    else:
        (kept if planted == "open folder" else kept / "secret").chmod(0o777 if planted == "open folder" else 0o644)
    ran = sslguard("watermark", bed.clean, "--data", bed.data, "--out", tmp_path / "o", "--steps", 2, *MARK)
    assert (ran.code, "is not used: remove it" in ran.err) == (2, True), ran.err
    assert not (tmp_path / "o").exists()
    assert (kept / "secret").read_bytes() == b"A" * 32


@pytest.mark.slow
def test_two_processes_make_one_result(bed: Bed, tmp_path: Path) -> None:
    command = ("watermark", bed.clean, "--data", bed.data, "--out", tmp_path / "o", "--steps", "2", *MARK)
    ran = subprocess.run(
        [sys.executable, "-m", "sslguard.cli", *map(str, command), "--devices", "2", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert Ran(0, ran.stdout, ran.stderr).json["settings"]["steps"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o"]
    key = load_key(tmp_path / "o" / "key")
    assert isinstance(key, SSLGuardKey)
    assert key.watermarked_hash == weights(tmp_path / "o" / "encoder")


def test_unreadable_pictures_are_left_out_where_one_says_so(bed: Bed, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    images = np.load(bed.root / "data.npz")["images"]
    for i in range(60):
        Image.fromarray(images[i]).save(folder / f"{i:03d}.png")
    (folder / "020.png").write_bytes(b"no picture")
    scheme = ("--scheme", "exact", "--mode", "head", "--functions", 4, "--rank", 1)
    command = ("watermark", bed.clean, "--data", folder, *scheme, "--n-queries", 20)
    refused = sslguard(*command, "--out", tmp_path / "a")
    assert (refused.code, "020.png cannot be read" in refused.err) == (2, True)
    ran = sslguard(*command, "--out", tmp_path / "b", "--skip-unreadable", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["n_unreadable"] == 1
    assert "left out: " in ran.err
    assert "020.png cannot be read" in ran.err
