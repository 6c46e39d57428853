"""Every command of docs/how-to/comparing-weights.md runs as it stands there and says what the page says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.command_line import sslguard

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "comparing-weights.md").read_text()
COMMANDS = [
    shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]
CODES = {
    "shipped:simclr random:resnet-small:7": 1,
    "released/encoder shipped:simclr --key released/key": 1,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two networks of unknown names, one a copy of the other, and the page's description of them."""
    shapes = {"entry.weight": (24, 9), "block.expand.weight": (40, 24), "block.reduce.weight": (24, 40)}
    state = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in shapes.items()}
    for name, share in (("mine", 0), ("theirs", 0.1)):
        save_file({n: t + share * torch.randn(t.shape) for n, t in state.items()}, tmp_path / f"{name}.safetensors")
    (block,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "groups.json").write_text(json.dumps(json.loads(block)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_and_their_output(place: Path) -> None:
    assert len(COMMANDS) == 8
    outputs = []
    for program, *words in COMMANDS:
        assert program == "sslguard"
        ran = sslguard(*words, "--quiet")
        outputs.append(ran.out)
        assert ran.code == CODES.get(" ".join(words[1:]), 0), (words, ran.err)
    (said,) = re.findall(r"```\n(decision.*?)```", PAGE, re.DOTALL)
    for line in said.splitlines():  # another processor may round to another count
        assert re.sub(r"\d", "0", line) in re.sub(r"\d", "0", outputs[0])
    assert "2,211.9 bits" in outputs[1]
    assert (place / "lineage.html").exists()
    assert "explains it" in outputs[2]
