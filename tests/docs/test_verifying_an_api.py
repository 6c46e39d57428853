"""Every command of docs/how-to/verifying-an-api.md runs, against servers that its own commands start."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest

from helpers.command_line import Ran, sslguard
from sslguard.suspects.protocols import Template

pytest.importorskip("fastapi")
pytest.importorskip("onnxruntime")
PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "verifying-an-api.md").read_text()
ENCODER = "random:resnet-narrow@16"
Start = Callable[[list[str]], None]
BODIES = re.findall(r"^\| [^|]+ \| `(\{.*?\})` \| (?:`(.*?)` )?\|$", PAGE, re.MULTILINE)
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


def free_ports(n: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server as a process of its own, and waits until it answers; all are ended afterwards."""
    running: list[subprocess.Popen[bytes]] = []

    def starting(arguments: list[str]) -> None:
        command = [sys.executable, "-m", "sslguard.cli", *arguments]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        address = f"http://127.0.0.1:{arguments[arguments.index('--port') + 1]}/health"
        for _ in range(600):
            try:
                if httpx2.get(address).status_code == 200:
                    return
            except httpx2.ConnectError:
                assert running[-1].poll() is None, f"{arguments} ended"
                time.sleep(0.05)
        raise AssertionError(f"{arguments} does not answer")

    yield starting
    for process in running:
        process.terminate()
    assert [process.wait(30) for process in running] == [0] * len(running)


def test_every_command(
    start: Callable[[list[str]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    lines = [" ".join(f"w{k}" for k in random.integers(0, 3000, 12)) for _ in range(3000)]
    (tmp_path / "texts.txt").write_text("\n".join(lines) + "\n")
    ports = dict(zip(("8000", "8001", "8002", "8003"), map(str, free_ports(4)), strict=True))

    def here(text: str) -> str:
        """The same on free ports, with a smaller encoder than the shipped one."""
        return re.sub(r"\b800[0-3]\b", lambda match: ports[match[0]], text).replace("shipped:simclr", ENCODER)

    ran: list[Ran] = []
    for words in COMMANDS:
        match [here(word) for word in words]:
            case ["export", assignment]:
                monkeypatch.setenv(*assignment.split("=", 1))
            case ["sslguard", "serve", *more, "&"]:
                start(["serve", *more])
            case ["sslguard", *more]:
                ran.append(sslguard(*more, "--json"))
                assert ran[-1].code == 0, (more, ran[-1].err)
            case other:
                pytest.fail(f"this test cannot run {other}")
    verdicts = [one.json for one in ran if "decision" in one.json]
    assert [verdict["decision"] for verdict in verdicts] == ["derived"] * 8
    remote = [verdict["remote"] for verdict in verdicts if "remote" in verdict]
    assert [found["n_missing"] for found in remote] == [0] * 7
    # What the page shows of the first, and says of the one that finds its answers in the cache.
    assert remote[0]["n_asked"] == 1014
    assert f"{remote[0]['n_asked']} queries in {remote[0]['n_requests']} requests" in PAGE
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(here(code), "verifying-an-api.md", "exec"), {})
    assert capsys.readouterr().out == "derived 0\n"


@pytest.mark.parametrize(("body", "path"), BODIES, ids=[body[:40] for body, _ in BODIES])
def test_templates(body: str, path: str) -> None:
    """Each is one, and several queries go into one request."""
    template = Template(body, path)
    assert template.largest is None
    assert '"{' not in body or "images" in body or b"second" in template.call(["first", "second"]).body


def test_there_are_templates_and_commands() -> None:
    assert len(BODIES) == 7
    assert len(COMMANDS) == 17
