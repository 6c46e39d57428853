"""The README is short, and what it tells a newcomer to type runs: on a smaller network, and with a briefer theft."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.command_line import sslguard
from sslguard.controls.members import read_population, shipped_population
from sslguard.training.distillation import Distillation

README = (Path(__file__).parents[2] / "README.md").read_text()
STEPS = 3
N_PHOTOS = 5000
SMALLER = {
    "timm:resnet50:weights.pth": "timm:test_resnet:weights.pth@32",
    "torchvision:resnet18:random": "torchvision:resnet18:random@32",
    '"resnet50"': '"test_resnet"',
    "224, 224": "32, 32",
}


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def smaller(block: str) -> str:
    """A block with a network that a test has time for in the place of the reader's own."""
    for theirs, ours in SMALLER.items():
        block = block.replace(theirs, ours)
    return block


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the reader has: `photos/`, and `weights.pth` of a network of timm."""
    import timm
    import torch

    folder, random = tmp_path_factory.mktemp("reader"), np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(N_PHOTOS):
        small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((32, 32)).save(folder / f"photos/{number:04}.bmp")
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "weights.pth")
    return folder


def test_it_is_short() -> None:
    assert len(README.split()) <= 600
    assert len(re.findall(r"^\|(?! ?-)", README, re.MULTILINE)) <= 8


def test_two_commands_only() -> None:
    (install,) = [b for b in blocks("sh") if "make " in b]
    assert [line.split("#")[0].strip() for line in install.strip().splitlines()] == ["make demo", "make test"]


@pytest.mark.trains
@pytest.mark.heavy
def test_the_commands_for_your_own_encoder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    (block,) = [b for b in blocks("sh") if "sslguard " in b]
    commands = [shlex.split(smaller(line))[1:] for line in block.strip().splitlines()]
    assert [command[0] for command in commands] == ["watermark", "commit", "steal", "verify", "verify"]
    commands[2] += ["--steps", str(STEPS)]
    ran = [sslguard(*command, "--json") for command in commands]
    assert [one.code for one in ran[:3]] == [0, 0, 0], [one.err for one in ran]
    assert ran[3].json["decision"] in ("derived", "not shown")
    assert ran[4].json["decision"] == "not shown"


@pytest.mark.trains
@pytest.mark.heavy
def test_python(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(photos)
    monkeypatch.setattr(Distillation.__init__, "__defaults__", _fewer_steps())
    (block,) = blocks("python")
    assert len(block.strip().splitlines()) <= 10
    exec(compile(smaller(block), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert any(word in printed for word in ("derived", "not shown"))


def _fewer_steps() -> tuple[object, ...]:
    defaults = Distillation()
    return tuple(STEPS if name == "steps" else getattr(defaults, name) for name in Distillation.__dataclass_fields__)


def test_shipped_population_supports_one_in_a_hundred() -> None:
    members = read_population(shipped_population())
    assert len(members) >= 100
    assert {"independent", "supervised", "random", "surrogate", "fine-tuned", "pruned"} <= {m.kind for m in members}
