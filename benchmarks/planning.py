"""What `sslguard plan` foretells beside what then came: CPU seconds and the peak of memory of the same commands.

Each command is a process of its own on one thread. Ratios are foretold over measured; the target is a factor of two.

Run: python benchmarks/planning.py [--encoders shipped:simclr ...]   (some minutes an encoder)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import RESULTS, options, save

from sslguard.data.roles import ROLES
from sslguard.report.markdown import table

ENCODERS = ("shipped:simclr", "shipped:moco")
STEPS = 50
N = 2000


def ran(arguments: Sequence[str]) -> tuple[float, float, str]:
    """Return CPU seconds, peak of memory in GB, and what the command printed."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "sslguard.cli", *arguments],
            stdout=out,
            stderr=err,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        if process.returncode not in (0, 1):
            raise SystemExit(f"sslguard {' '.join(arguments)} ended with {process.returncode}: {err.read()}")
        out.seek(0)
        return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9, out.read()


def compared(encoder: str, place: Path) -> dict[str, dict[str, float]]:
    """Return what was foretold and measured of each task, by name."""
    mark, thief, held = (f"{getattr(ROLES, role)}[0:{N}]" for role in ("mark", "thief", "verify"))
    few = ("--steps", str(STEPS))
    cases: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for name, how in {
        "exact, head": ("--scheme", "exact", "--mode", "head"),
        "exact, distilled": ("--scheme", "exact", "--mode", "distilled", *few),
        "sslguard, cured": ("--scheme", "sslguard", *few),
    }.items():
        out = str(place / name.replace(", ", "-"))
        cases[f"watermark, {name}"] = (
            ("plan", encoder, "--data", mark, *how),
            ("watermark", encoder, "--data", mark, *how, "--out", out),
        )
    cases["steal"] = (
        ("plan", encoder, "--task", "steal", "--data", thief, *few),
        ("steal", encoder, "--data", thief, *few, "--out", str(place / "stolen")),
    )
    key = str(place / "exact-head" / "key")
    cases["verify, exact"] = (
        ("plan", encoder, "--task", "verify", "--data", held),
        ("verify", key, encoder, "--data", held),
    )
    found = {}
    for name, (planned, command) in cases.items():
        plan = json.loads(ran([*planned, "--json"])[2])
        seconds, memory, _ = ran([*command, "--quiet"])
        found[name] = {
            "seconds": seconds,
            "foretold_seconds": plan["seconds"],
            "memory_gb": memory,
            "foretold_memory_gb": plan["memory"] / 1e9,
            "sample_seconds": plan["sampled"],
        }
    return found


def main() -> None:
    given = options(__doc__, encoders=ENCODERS)
    file = RESULTS / "planning.json"
    found = json.loads(file.read_text())["encoders"] if file.exists() else {}
    for encoder in given.encoders:
        with tempfile.TemporaryDirectory() as place:
            found[encoder] = compared(encoder, Path(place))
        save("planning", {"steps": STEPS, "items": N, "encoders": found})
    rows = [
        [encoder, name, one["foretold_seconds"], one["seconds"], one["foretold_memory_gb"], one["memory_gb"]]
        for encoder, cases in found.items()
        for name, one in cases.items()
    ]
    print(table(["encoder", "task", "foretold, s", "CPU s", "foretold, GB", "GB"], rows))


if __name__ == "__main__":
    main()
