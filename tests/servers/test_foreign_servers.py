"""Servers that this project did not write, around a surrogate: `make test-servers` builds their environment.

MLServer speaks the Open Inference Protocol (1.7.1 without its binary extension over HTTP), LitServe OpenAI's
embeddings. Each runs in a process group of its own that is ended afterwards. infinity-emb is not among them: it pins
numpy below 2, which the project's environment is not built with.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch

from helpers.command_line import done
from sslguard.encoders.load import load_encoder
from sslguard.suspects.remote import Remote, open_remote

PYTHON = os.environ.get("SSLGUARD_SERVERS_PYTHON", "")
HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(not PYTHON, reason="make test-servers builds the environment of other servers"),
]
PICTURES = "random:resnet-narrow:3@16"
Start = Callable[[list[str], int, str], str]


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """texts.txt, the key `marked/key`, and `thief`, a surrogate of what it marks."""
    folder, random = tmp_path_factory.mktemp("servers"), np.random.default_rng(0)
    lines = (" ".join(f"w{k}" for k in random.integers(0, 300, 8)) for _ in range(1600))
    (folder / "texts.txt").write_text("\n".join(lines))
    texts = f"text:{folder}/texts.txt"
    done(
        *("watermark", "random:bag-of-words:1", "--scheme", "exact", "--mode", "head", "--n-queries", 400),
        *("--data", f"{texts}[0:400]", "--out", folder / "marked"),
    )
    done(
        *("steal", folder / "marked" / "encoder", "--data", f"{texts}[400:1200]", "--arch", "bag-of-words"),
        *("--loss", "mse", "--steps", 150, "--batch-size", 64, "--out", folder / "thief"),
    )
    return folder


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Starts a command as a process group and waits for an address of its to answer with 200."""
    running: list[subprocess.Popen[bytes]] = []

    def starting(command: list[str], port: int, ready: str) -> str:
        running.append(subprocess.Popen([PYTHON, *command], cwd=HERE, start_new_session=True))
        address = f"http://127.0.0.1:{port}"
        for _ in range(1200):
            assert running[-1].poll() is None, f"{command} ended"
            with suppress(httpx2.HTTPError):
                if httpx2.get(f"{address}{ready}").status_code == 200:
                    return address
            time.sleep(0.1)
        raise AssertionError(f"{command} does not answer")

    yield starting
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            for process in running:
                process.wait(10)


def free_ports(n: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


@pytest.fixture(scope="module")
def mlserver(bed: Path, start: Start) -> str:
    http, grpc, metrics = free_ports(3)
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    settings: dict[str, Any] = {"host": "127.0.0.1", "parallel_workers": 0, **ports}
    (bed / "settings.json").write_text(json.dumps(settings))
    for name, encoder, tensor in (
        ("texts", str(bed / "thief"), {"name": "texts", "datatype": "BYTES", "shape": [-1]}),
        ("images", PICTURES, {"name": "images", "datatype": "UINT8", "shape": [-1, 1, 16, 16]}),
    ):
        (bed / name).mkdir()
        model = {"name": name, "implementation": "mlserver_runtime.EncoderRuntime", "inputs": [tensor]}
        (bed / name / "model-settings.json").write_text(
            json.dumps({**model, "parameters": {"extra": {"encoder": encoder}}})
        )
    program = f"import sys; sys.path.insert(0, {str(HERE)!r}); from mlserver.cli import main; main()"
    return start(["-c", program, "start", str(bed)], http, "/v2/models/texts/ready")


@pytest.fixture(scope="module")
def litserve(bed: Path, start: Start) -> str:
    (port,) = free_ports(1)
    return start(["litserve_app.py", str(bed / "thief"), str(port)], port, "/health")


def test_mlserver_answers_about_images_as_the_encoder_does(mlserver: str) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 1, 16, 16), dtype=np.uint8))
    with open_remote(mlserver, Remote(protocol="oip", model="images")) as suspect:
        np.testing.assert_allclose(suspect.embed(images), load_encoder(PICTURES).embed(images), atol=1e-5)


def test_a_surrogate_behind_mlserver(mlserver: str, bed: Path) -> None:
    check(bed, mlserver, "--protocol", "oip", "--model", "texts")


@pytest.mark.parametrize("options", [(), ("--binary",)], ids=["numbers", "base64"])
def test_a_surrogate_behind_litserve(litserve: str, bed: Path, options: tuple[str, ...]) -> None:
    check(bed, f"{litserve}/v1", "--protocol", "openai", "--model", "any", *options)


def check(bed: Path, address: str, *options: str) -> None:
    """The address is shown as its encoder is, to the rounding of float32."""
    data = ("--data", f"text:{bed}/texts.txt[1200:1600]")
    remote = done("verify", bed / "marked" / "key", address, *data, *options)
    local = done("verify", bed / "marked" / "key", bed / "thief", *data)
    assert (remote["decision"], remote["remote"]["n_missing"], remote["remote"]["n_changed"]) == ("derived", 0, 0)
    assert remote["statistic"] == pytest.approx(local["statistic"], rel=1e-3)
