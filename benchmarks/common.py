"""What the scripts share: where results go, how tables look, and the test bed's data."""

from __future__ import annotations

import ctypes
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslguard.data.base import Data
from sslguard.data.roles import ROLES
from sslguard.data.specs import open_data
from sslguard.files import write_atomic

RESULTS = Path(__file__).parent / "results"


def keep_freed_memory() -> None:
    """Let the allocator keep what tensors free, as the command line does."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)
        libc.mallopt(-1, 2**31 - 1)
        libc.mallopt(-8, 1)


def data(role: str) -> Data:
    """The test bed's slice for a role."""
    return open_data(getattr(ROLES, role))


def save(name: str, figures: Mapping[str, Any], *, started: float) -> None:
    """Write `results/NAME.json` with the machine and the time it took."""
    import torch

    stamp = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(time.time() - started),
        "command": f"python benchmarks/{name}.py",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    RESULTS.mkdir(exist_ok=True)
    content = json.dumps({"run": stamp, **figures}, indent=1, sort_keys=True)
    write_atomic(RESULTS / f"{name}.json", content.encode())


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells) + " |"

    return "\n".join([line(header), line(["---"] * len(header)), *(line(row) for row in rows)])
