"""Options out of a file, and what the command line offers without running anything."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from helpers.command_line import done, sslguard
from sslguard import __version__
from sslguard.cli.entry import app


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    np.save(tmp_path / "pictures.npy", np.random.default_rng(0).integers(0, 256, (20, 16, 16), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(place: Path, text: str) -> Path:
    (place / "run.toml").write_text(text)
    return place / "run.toml"


EMBED = """
[embed]
encoder = "random:resnet-narrow@16"
data = "pictures.npy[0:10]"
out = "answers.npy"
batch-size = 4
quiet = true
"""


def test_arguments_and_options_come_from_the_file(place: Path) -> None:
    assert done("embed", "--config", write(place, EMBED))["shape"] == [10, 64]
    by_hand = (
        "embed",
        "random:resnet-narrow@16",
        "--data",
        "pictures.npy[0:10]",
        "--out",
        "again.npy",
        "--batch-size",
        4,
    )
    done(*by_hand, "--quiet")
    assert (place / "answers.npy").read_bytes() == (place / "again.npy").read_bytes()


def test_the_command_line_goes_before_the_file(place: Path) -> None:
    file = write(place, EMBED)
    said = done("embed", "random:resnet-wide@16", "--data", "pictures.npy", "--config", file)
    assert (said["shape"], said["encoder"], said["out"]) == ([20, 192], "random:resnet-wide@16", "answers.npy")


def test_a_table_of_a_group_of_commands_has_both_names(place: Path) -> None:
    file = write(place, '[attack.prune]\nvictim = "random:resnet-narrow@16"\nout = "pruned"\namount = 0.25\n')
    assert done("attack", "prune", "--config", file)["recipe"]["amount"] == 0.25


@pytest.mark.skipif(os.sep != "/", reason="backslashes are separators here")
def test_paths_of_the_home_folder_and_of_another_system(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    (place / "sets").mkdir()
    (place / "pictures.npy").rename(place / "sets" / "pictures.npy")
    done("embed", "random:resnet-narrow@16", "--data", "sets\\pictures.npy[0:3]", "--out=~/one.npy", "--quiet")
    done("attack", "prune", "random:resnet-narrow@16", "--out", "sets\\pruned")
    said = done(
        "embed", "~/sets/pruned", "--data", "~/sets/pictures.npy[0:3] + sets\\pictures.npy", "--out=sets\\two.npy"
    )
    assert said["shape"] == [23, 64]
    assert {path.name for path in place.glob("**/*")} >= {"one.npy", "two.npy", "pruned"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (EMBED + "steps = 3\n", "steps"),
        (EMBED.replace("batch-size = 4", "batch-size = 0"), "at least 1"),
        (EMBED.replace("batch-size = 4", "batch-size = 1.5"), "whole number"),
        (EMBED.replace("[embed]", "[steal]"), "has no table [embed]"),
        (EMBED + 'config = "other.toml"\n', "cannot name another"),
        ("embed = 3\n", "has no table [embed]"),
        ("[embed", "is not TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(place: Path, text: str | None, message: str) -> None:
    file = place / "none.toml" if text is None else write(place, text)
    ran = sslguard("embed", "--config", file)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert message in ran.err
    assert not (place / "answers.npy").exists()


def test_every_command_takes_a_file_and_can_be_quiet() -> None:
    for name in (*sorted(app.resolved_commands()), "attack prune", "bench run", "recipients list"):
        if not name.startswith("-") and name not in ("attack", "bench", "recipients"):
            page = sslguard(*name.split(), "--help").out
            assert all(option in page for option in ("--config", "--quiet", "--json")), name


def test_version() -> None:
    assert sslguard("-V").out == sslguard("--version").out == f"{__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(tmp_path: Path, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    script = tmp_path / "complete"
    ran = sslguard("--install-completion", "--shell", shell, "--output", script)
    assert ran.code == 0, ran.err
    text = script.read_text()
    for word in ("watermark", "doctor", "prune", "--secret-seed", "--config"):
        assert word.lstrip("-") in text, word


def test_doctor() -> None:
    said = done("doctor")
    assert said["versions"]["sslguard"] == __version__
    assert said["missing"] == []
    assert said["threads"]["allowed"] >= 1
    assert "cpu" in said["devices"][0]
    assert min(said["free_disk"].values()) > 0
    assert said["data"]["mnist-5k"] is not None
    text = sslguard("doctor").out
    for label in ("versions", "devices", "threads", "extras here", "memory", "disk", "data here", "next"):
        assert any(line.startswith(label) for line in text.splitlines()), label


def test_doctor_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    installed = metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "timm" else installed(name)

    monkeypatch.setattr(metadata, "version", version)
    ran = sslguard("doctor")
    assert ran.code == 2
    assert "pip install 'sslguard[onnx]'" in ran.out
    assert any(line.startswith("missing") and "timm is 0.0.1" in line for line in ran.out.splitlines())
    assert json.loads(sslguard("doctor", "--json").out)["extras"]["onnx"] == {
        "installed": False,
        "missing": ["onnxruntime"],
    }


def test_doctor_knows_what_every_extra_is_for() -> None:
    import tomllib

    from sslguard.cli.doctor import EXTRAS

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) == set(project["optional-dependencies"])


@pytest.mark.trains
def test_who_steals_an_encoder_of_texts_gets_one_of_texts(place: Path) -> None:
    (place / "texts.txt").write_text("".join(f"text number {n}\n" for n in range(40)))
    steal = ("steal", "random:word-transformer@8", "--data", "text:texts.txt", "--steps", 1, "--batch-size", 8)
    said = done(*steal, "--out", "stolen")
    assert said["recipe"]["architecture"] == "bag-of-words"
    assert done(*steal, "--out", "o", "--arch", "word-transformer")["recipe"]["architecture"] == "word-transformer"
    refused = sslguard(*steal, "--out", "p", "--arch", "resnet-narrow")
    assert (refused.code, "takes no texts" in refused.err) == (2, True)
