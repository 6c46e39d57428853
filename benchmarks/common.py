"""What the scripts share: options, the test bed's data, and where results go."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sslguard.cli.entry import keep_freed_memory
from sslguard.data.base import Data
from sslguard.data.roles import ROLES
from sslguard.data.specs import open_data
from sslguard.files import write_atomic

RESULTS = Path(__file__).parent / "results"
STARTED = time.time()


def options(about: str, **defaults: Any) -> argparse.Namespace:
    """Return the values of the command line's options.

    Args:
        about: Docstring of the script, for `--help`.
        defaults: Default of each option, of the type that it takes: a number, a text, a tuple of texts, or False for a
            switch.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        option = f"--{name.replace('_', '-')}"
        if default is False:
            parser.add_argument(option, action="store_true")
        elif isinstance(default, tuple):
            parser.add_argument(option, nargs="+", default=default)
        else:
            parser.add_argument(option, type=type(default), default=default)
    return parser.parse_args()


def prepare() -> None:
    """Give this process one thread, and let the allocator keep what tensors free, as the command line does."""
    keep_freed_memory()
    torch.set_num_threads(1)


def data(role: str) -> Data:
    """Return the test bed's slice for a role."""
    return open_data(getattr(ROLES, role))


def items(encoder: str, role: str) -> Data:
    """Return what an encoder's owner marks with or asks: the test bed's slice, or texts for an encoder of texts."""
    return open_data(f"vader:{role}") if "minilm" in encoder else data(role)


def save(name: str, figures: Mapping[str, Any]) -> None:
    """Write `results/NAME.json` with the command, the machine and the time since the start."""
    stamp = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(time.time() - STARTED),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    content = json.dumps({"run": stamp, **figures}, indent=1, sort_keys=True)
    write_atomic(RESULTS / f"{name}.json", content.encode())
