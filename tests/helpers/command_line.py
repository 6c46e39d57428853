"""What tests of the command line share: a command run inside this process, and a signal sent while it trains."""

from __future__ import annotations

import io
import json
import signal
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sslguard.cli import main
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.load import load_encoder
from sslguard.training import loop as training_loop


class Ran(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Return the one JSON object that was printed."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        assert self.out.count("\n") == 1
        return value


def sslguard(*arguments: object) -> Ran:
    """Run a command inside this process."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main([str(argument) for argument in arguments])
    return Ran(code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> dict[str, Any]:
    """Run a command that must succeed, and return its JSON."""
    ran = sslguard(*arguments, "--json")
    assert ran.code == 0, ran.err
    return ran.json


def weights(folder: Path) -> str:
    """Return the hash of an encoder's weights."""
    return weights_hash(load_encoder(folder).module)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> list[int]:
    """Send this process a signal while step `step` of a training runs, once. Returns a list that notes every step."""
    whole, sent, steps = training_loop._Runner._step, list[int](), list[int]()

    def stepping(self: Any, now: int) -> Any:
        steps.append(now)
        if now == step and not sent:
            sent.append(now)
            signal.raise_signal(number)
        return whole(self, now)

    monkeypatch.setattr(training_loop._Runner, "_step", stepping)
    return steps
