"""Servers of the demonstration: `sslguard serve`, each in its own process on this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sslguard.errors import SuspectError

TETHERED = Path(__file__).with_name("tethered.py")
START_SECONDS = 180.0
GRACE_SECONDS = 10.0
_ADDRESS = re.compile(r" at (http://\S+)")


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """Run `sslguard serve ARGUMENTS` on a free port of 127.0.0.1 for the length of a block.

    The server leads a process group, which is ended with the block, however the block ends. If this process is killed,
    the server ends by itself.

    Args:
        arguments: Arguments of `sslguard serve`, without a port.

    Yields:
        Address of the server.

    Raises:
        SuspectError: The server does not start. The message is the server's own.
    """
    command = [sys.executable, "-P", str(TETHERED), "serve", *arguments, "--port", "0"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
        )
        try:
            yield _address(process, said)
        finally:
            _end(process)


def _address(process: subprocess.Popen[bytes], said: IO[bytes]) -> str:
    """Wait until the server prints its address, and return it."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        ended = process.poll() is not None
        # The server writes through the same descriptor, whose position must stay where it is.
        text = os.pread(said.fileno(), 1 << 16, 0).decode(errors="replace")
        if found := _ADDRESS.search(text):
            return found[1]
        if ended or time.monotonic() > deadline:
            reason = (text.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise SuspectError(f"a server of the demonstration did not start: {reason:.300}")
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
            return
