"""The same command once more: nothing is done twice, and nothing is taken for done that is not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.command_line import Ran, done, sslguard
from sslguard.cli import again
from sslguard.cli.again import paths_in


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an array of pictures and a folder of two."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (160, 16, 16), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(again, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path


EMBED = ("embed", "random:resnet-narrow@16", "--data", "x.npy[0:20]", "--out", "a.npy", "--quiet")
MARK = (
    *("watermark", "random:resnet-narrow@16", "--data", "x.npy[0:100]", "--out", "marked", "--scheme", "exact"),
    *("--mode", "head", "--n-queries", "60", "--functions", "8", "--rank", "2"),
)


def stamp(path: str) -> int:
    return Path(path).stat().st_mtime_ns


def test_the_same_command_says_already_done(place: Path) -> None:
    first = done(*EMBED)
    written = stamp("a.npy")
    again = sslguard(*(word for word in EMBED if word != "--quiet"), "--json")
    assert again.code == 0
    assert again.err.startswith("sslguard: already done: ")
    assert again.json == {**first, "already_done": True}
    assert stamp("a.npy") == written
    assert sslguard(*EMBED).err == ""
    assert sslguard(*EMBED).out.splitlines()[1].split() == ["shape", "20", "x", "64"]


@pytest.mark.parametrize("change", ["argument", "input", "output", "no output", "record", "folder"])
def test_whatever_changed_makes_it_run(place: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    done(*EMBED)
    os.utime("a.npy", ns=(0, stamp("a.npy")))
    written, command = stamp("a.npy"), list(EMBED)
    if change == "argument":
        command[3] = "x.npy[0:21]"
    elif change == "input":
        np.save("x.npy", np.zeros((160, 16, 16), np.uint8))
    elif change == "output":
        np.save("a.npy", np.zeros(3))
    elif change == "no output":
        Path("a.npy").unlink()
    elif change == "record":
        (record,) = (place / "cache" / "runs").iterdir()
        record.write_text(record.read_text()[:-20])
    else:
        (place / "other").mkdir()
        shutil.copy("x.npy", "other")
        monkeypatch.chdir("other")
    assert "already_done" not in done(*command)
    assert stamp("a.npy") != written
    assert np.load("a.npy").shape == (21 if change == "argument" else 20, 64)


def refused(ran: Ran) -> bool:
    return ran.code == 2 and "not overwritten" in ran.err


def test_a_key_is_kept_and_another_command_is_refused(place: Path) -> None:
    """Marking refuses a folder that is taken. The same command finds its own key there, also after a verification."""
    said = done(*MARK)
    key = Path("marked/key/tensors.safetensors").read_bytes()
    assert sslguard("verify", "marked/key", "marked/encoder", "--data", "x.npy[100:160]").code in (0, 1)
    assert done(*MARK) == {**said, "already_done": True}
    assert Path("marked/key/tensors.safetensors").read_bytes() == key
    assert refused(sslguard(*MARK, "--largest", "0.01"))
    done("protect", "marked/key", "--clear")
    os.utime("marked/key/key.json")
    assert refused(sslguard(*MARK))


def test_a_claim_is_made_once_though_it_writes_to_the_key_that_it_reads(place: Path) -> None:
    done(*MARK)
    done("commit", "marked/key", "--out", "commitment.json")
    command = (
        *("claim", "marked/key", "marked/encoder", "--data", "x.npy[100:160]", "--seed", "s"),
        *("--commitment", "commitment.json", "--out", "bundle"),
    )
    first, again = sslguard(*command, "--json"), sslguard(*command, "--json")
    assert first.code == again.code != 2, again.err
    assert again.json == {**first.json, "already_done": True}
    other = sslguard(*command[:6], "another", *command[7:])
    assert refused(other), other.err


def test_code_of_the_user_is_never_taken_for_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "nets_of_mine.py").write_text(
        "from sslguard.encoders.load import load_encoder\ndef make(): return load_encoder('random:resnet-narrow@16')\n"
    )
    monkeypatch.syspath_prepend(str(place))
    command = [*EMBED]
    command[1] = "python:nets_of_mine:make"
    assert "already_done" not in done(*command)
    assert "already_done" not in done(*command)


def test_paths_in_a_specification(place: Path) -> None:
    (place / "shards").mkdir()
    (place / "w@1.pth").touch()
    names = {
        "x.npy": {"x.npy"},
        "x.npy[0:3] + x.npy[4:5]": {"x.npy"},
        "hf:shards@mean": {"shards"},
        "mnist:train": set(),
    }
    names |= {"timm:resnet18:w@1.pth@96,raw": {"w@1.pth"}, "wds:shards/{000..099}.tar": {"shards"}, "@x.npy": {"x.npy"}}
    for text, found in names.items():
        assert paths_in(text) == {place / name for name in found}, text
