"""From pictures of one's own and an encoder of timm to an audited claim: each command says the next one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.command_line import Ran, sslguard

SETTINGS = ("--n-queries", "100", "--functions", "8", "--rank", "2")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a folder of 400 pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    coarse = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 3), dtype=np.uint8)
    for number, picture in enumerate(coarse):
        Image.fromarray(picture).resize((40, 32)).save(tmp_path / "photos" / f"{number:03d}.png")
    return tmp_path


def following(ran: Ran, **put: str) -> list[str]:
    """Return the words of the command that a command calls the next one, its words in capitals filled in."""
    (line,) = [line for line in ran.out.splitlines() if line.startswith("next ")]
    found = re.search(r"sslguard (.*?)(?=, and then|, once|, with the|$)", line)
    assert found is not None, line
    return [put.pop(word, word) for word in shlex.split(found[1])]


@pytest.mark.trains
@pytest.mark.heavy
def test_six_commands_each_named_by_the_one_before(photos: Path) -> None:
    plan = sslguard("plan", "timm:test_resnet:random@32", "--data", "photos/[0:150]", "--mode", "head")
    mark = following(plan)
    assert mark[:2] == ["watermark", "timm:test_resnet:random@32"]
    marked = sslguard(*mark, *SETTINGS)
    assert marked.code == 0, marked.err
    commit = following(marked)
    assert commit == ["commit", "marked/key", "--out", "commitment.json"]
    committed = sslguard(*commit)
    assert committed.code == 0, committed.err

    theft = (
        "steal",
        "marked/encoder",
        "--data",
        "photos/[150:250]",
        "--steps",
        3,
        "--batch-size",
        16,
        "--out",
        "stolen",
    )
    stolen = sslguard(*theft)
    assert stolen.code == 0, stolen.err
    verify = following(stolen, HELD_OUT="photos/[250:400]")
    assert verify == ["verify", "marked/key", "stolen", "--data", "photos/[250:400]"]
    assert sslguard(*verify).code in (0, 1)  # three steps make no copy
    verify = following(committed, SUSPECT="marked/encoder", HELD_OUT="photos/[250:400]")
    derived = sslguard(*verify)
    assert derived.code == 0, derived.out

    claimed = sslguard(*following(derived, SEED="chosen by the examiner", COMMITMENT="commitment.json"))
    assert claimed.code == 0, claimed.err
    audited = sslguard(*following(claimed))
    assert audited.code in (0, 1), audited.err
    assert Path("audit.html").exists()


@pytest.mark.trains
def test_a_verdict_that_shows_nothing_leads_to_no_claim_and_quiet_names_no_next_command(photos: Path) -> None:
    mark = ("watermark", "random:resnet-narrow@16", "--data", "photos/[0:100]", "--out", "weak", "--mode", "head")
    assert "\nnext" not in sslguard(*mark, *SETTINGS, "--quiet").out
    clean = sslguard("verify", "weak/key", "random:resnet-narrow@16", "--data", "photos/[250:400]")
    assert (clean.code, "sslguard claim" in clean.out) == (1, False)
    assert re.search(r"-[0-9.]+ bits", clean.out) is None
