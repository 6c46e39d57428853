"""Every command of docs/tutorial/first-watermark.md runs as it stands, and ends as the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from helpers.command_line import sslguard

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial" / "first-watermark.md").read_text()
LINES = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.mark.trains
@pytest.mark.network
def test_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert LINES[:2] == ["make setup", ". .venv/bin/activate"]
    commands = [shlex.split(line) for line in LINES[2:]]
    assert [words[:2] for words in commands] == [
        ["sslguard", name] for name in ("watermark", "commit", "steal", "verify", "verify", "claim", "audit")
    ]
    ran = [sslguard(*words[1:], "--json") for words in commands]
    assert [one.code for one in ran] == [0, 0, 0, 0, 1, 0, 0], [one.err for one in ran]
    assert [one.json["decision"] for one in ran[3:]] == ["derived", "not shown", "derived", "derived"]
    assert ran[3].json["log2_pvalue"] < -100
    assert (tmp_path / "audit.html").exists()
