"""What the README tells a newcomer to type does run, with fewer steps and queries than it has by default."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sslguard.cli import main
from sslguard.controls.members import read_population, shipped_population
from sslguard.schemes.registry import SCHEMES
from sslguard.schemes.sslguard.scheme import CuredSSLGuard
from sslguard.training.distillation import Distillation

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("short_law")]
README = (Path(__file__).parents[2] / "README.md").read_text()
STEPS = 3
N_QUERIES = 24  # asked of each of the 107 controls


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands_of(words: str) -> list[list[str]]:
    """The commands of the one block that holds these words."""
    (block,) = [b for b in blocks("sh") if words in b]
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("sslguard ")]


def story() -> list[list[str]]:
    """The commands of the whole story: mark, steal, verify."""
    return commands_of("sslguard steal")


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = story()
    assert [command[0] for command in commands] == ["watermark", "steal", "verify"]
    mark, steal, verify = commands
    assert main([*mark, "--steps", str(STEPS), "--n-queries", str(N_QUERIES), "--quiet"]) == 0
    assert main([*steal, "--steps", str(STEPS), "--queries", "500", "--quiet"]) == 0
    assert main(verify) in (0, 1)


def test_commands_of_the_exact_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    power, mark, verify = commands_of("--scheme exact")
    assert main([*power, "--quiet"]) == 0
    assert main([*mark, "--steps", str(STEPS), "--quiet"]) == 0
    assert main(verify) in (0, 1)
    # A claim on what was marked there, and its audit.
    commit, claim, audit = commands_of("sslguard claim")
    assert main(commit) == 0
    # Nothing dates this commitment, so the audit asks for more than the claim did.
    assert 0 <= main(claim) <= main(audit) <= 1
    assert (tmp_path / "audit.html").exists()


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    brief = CuredSSLGuard(steps=STEPS, n_queries=N_QUERIES)
    monkeypatch.setitem(SCHEMES, "sslguard-cured", brief)
    monkeypatch.setattr(Distillation.__init__, "__defaults__", _fewer_steps())
    (block,) = blocks("python")
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert any(word in printed for word in ("derived", "not shown"))


def _fewer_steps() -> tuple[object, ...]:
    defaults = Distillation()
    return tuple(STEPS if name == "steps" else getattr(defaults, name) for name in Distillation.__dataclass_fields__)


def test_two_commands_only() -> None:
    (install,) = [b for b in blocks("sh") if "make " in b]
    assert [line.split("#")[0].strip() for line in install.strip().splitlines()] == ["make demo", "make test"]


def test_shipped_population_supports_one_in_a_hundred() -> None:
    members = read_population(shipped_population())
    assert len(members) >= 100
    assert {"independent", "supervised", "random", "surrogate", "fine-tuned", "pruned"} <= {m.kind for m in members}


@pytest.mark.slow
def test_story_at_full_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [main([*command, "--quiet"]) for command in story()] == [0, 0, 0]
