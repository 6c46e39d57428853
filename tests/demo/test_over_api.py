"""The demonstration over addresses, with the smallest encoder of texts: real servers, ended afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.command_line import sslguard

pytest.importorskip("fastapi")
from sslguard.demo import over_api, serving
from sslguard.demo.over_api import ApiSettings, run_api_demo
from sslguard.errors import OutputError, SuspectError, UsageError
from sslguard.training.distillation import Distillation


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ApiSettings:
    file, random = tmp_path_factory.mktemp("texts") / "texts.txt", np.random.default_rng(0)
    file.write_text("\n".join(" ".join(f"w{k}" for k in random.integers(0, 300, 8)) for _ in range(1600)))
    return ApiSettings(
        encoder="random:bag-of-words:1",
        mark=f"text:{file}[0:400]",
        thief=f"text:{file}[400:1200]",
        verify=f"text:{file}[1200:1600]",
        recipe=Distillation(architecture="bag-of-words", loss="mse", steps=150, batch_size=64),
        n_queries=400,
        seed=1,
    )


def running(number: int) -> bool:
    """Whether any process of a group is left."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_thief_is_shown_and_the_innocent_is_not(
    settings: ApiSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, start = [], subprocess.Popen

    def starting(*arguments: object, **more: object) -> subprocess.Popen[bytes]:
        process = start(*arguments, **more)  # type: ignore[call-overload]
        groups.append(process.pid)
        return process

    monkeypatch.setattr(subprocess, "Popen", starting)
    monkeypatch.setattr(over_api, "ApiSettings", lambda: settings)
    ran = sslguard("demo", "--api", "--out", tmp_path / "out", "--json", "--quiet")
    assert ran.code == 0, ran.err
    said = ran.json
    assert [s["verdict"]["decision"] for s in said["suspects"]] == ["derived", "not shown"]
    assert [s["remote"]["n_missing"] for s in said["suspects"]] == [0, 0]
    assert said["theft"]["remote"]["n_asked"] == 812  # six are asked again at the end, twice
    assert len(groups) == 3
    assert not any(map(running, groups))
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == said
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("is shown to be derived") == page.count("nothing is shown of an innocent") == 1
    assert str(tmp_path) in page  # the commands that repeat it


@pytest.mark.parametrize(
    ("number", "serving_already"),
    [(signal.SIGTERM, True), (signal.SIGKILL, True), (signal.SIGKILL, False)],
    ids=["interrupted", "killed", "killed as it starts"],
)
def test_servers_end_with_their_program(number: signal.Signals, serving_already: bool) -> None:
    """Also with one that was killed outright and could not tell them so."""
    program = (
        "import subprocess, sys, time\n"
        "from sslguard.cli.entry import _sigterm_as_interrupt\n"
        "from sslguard.demo import serving\n"
        "start = subprocess.Popen\n"
        "def started(*given, **more):\n"
        "    process = start(*given, **more)\n"
        "    print(process.pid, flush=True)\n"
        "    return process\n"
        "subprocess.Popen = started\n"
        "with _sigterm_as_interrupt(), serving.served('random:bag-of-words') as address:\n"
        "    print(address, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        if serving_already:
            assert parent.stdout.readline().startswith(b"http://127.0.0.1:")
        assert running(child)
        parent.send_signal(number)
        parent.wait(20)
    deadline = time.monotonic() + 8
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(child)


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(SuspectError, match=r"did not start: .*does not name an encoder"), serving.served("nonsense"):
        pytest.fail("there is no server")


def test_what_is_refused_before_anything_is_done(settings: ApiSettings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="share 100 items"):
        run_api_demo(tmp_path / "out", settings=replace(settings, thief=f"{settings.verify[:-11]}[1100:1300]"))
    (tmp_path / "full" / "key").mkdir(parents=True)
    (tmp_path / "full" / "key" / "note").touch()
    with pytest.raises(OutputError, match="holds something else"):
        run_api_demo(tmp_path / "full", settings=settings)
