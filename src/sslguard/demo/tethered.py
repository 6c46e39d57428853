"""A command that ends with the program that started it, even if that program is killed.

    python -P tethered.py ARGUMENTS

runs `sslguard ARGUMENTS` for as long as standard input stays open. The program that starts it holds the other end of a
pipe, which the system closes however that program ends. The file is run by its path, so that it watches the pipe before
anything heavy is imported.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

GRACE_SECONDS = 10.0


def _end_with_input() -> None:
    """Wait for the end of standard input, then send SIGTERM to this process, and end it if that takes too long."""
    while os.read(sys.stdin.fileno(), 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, daemon=True).start()
    runpy.run_module("sslguard.cli", run_name="__main__", alter_sys=True)
