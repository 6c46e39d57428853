"""What a command takes before it says something, and a verification while another program keeps a core busy.

Each command is a process of its own on two cores, its bytecode compiled before, as an installation does. Seconds on the
clock and CPU seconds (user and system), medians of the rounds; all commands in turn, so that a drift of the machine
meets each. Ratios compare a verification beside a busy neighbour, a process that never sleeps on one of the two cores,
with the same verification without it. The call in Python runs on one thread. Torch's own choice of threads is measured
too (`--threads` 2, spinning).

Run: python benchmarks/startup.py [--rounds 5]   (a minute or two; it makes a key and steals the encoder first)
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from common import data, options, save

from sslguard import api
from sslguard.encoders.folder import save_encoder
from sslguard.report.markdown import table
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import save_key
from sslguard.training.distillation import Distillation

QUERIES = 2000
STEPS = 150
BUSY = "while True: pass"


def make(folder: Path) -> None:
    """Write a key of the exact scheme to `folder`/key, and a surrogate of the marked encoder to `folder`/stolen."""
    marked = api.watermark("shipped:simclr", data("mark"), scheme=Exact(Protocol(n_queries=QUERIES), mode="head"))
    save_key(marked.key, folder / "key")
    thief = api.steal(marked.encoder, data("thief"), recipe=Distillation(steps=STEPS))
    save_encoder(thief, folder / "stolen")


@contextmanager
def neighbour(core: int) -> Iterator[None]:
    """Keep a core busy inside the block."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    os.sched_setaffinity(process.pid, {core})
    try:
        yield
    finally:
        process.kill()
        process.wait()


def timed(arguments: Sequence[str], environment: Mapping[str, str], codes: Sequence[int]) -> tuple[float, float]:
    """Seconds on the clock and CPU seconds of a command, which must end with one of these exit codes."""
    before, begun = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - begun, os.times()
    if done.returncode not in codes:
        raise SystemExit(f"python {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, spent


def main() -> None:
    given = options(__doc__, rounds=5)
    cores = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cores)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder)
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_"))}
        plain.pop("PYTHONDONTWRITEBYTECODE", None)
        plain["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
        spinning = {**plain, "OMP_WAIT_POLICY": "ACTIVE"}
        program = ("-m", "sslguard.cli")
        suspect = (str(folder / "key"), str(folder / "stolen"))
        verify = (*program, "verify", *suspect, "--data", data("verify").spec, "--quiet")
        called = f"import sslguard; sslguard.verify({suspect[0]!r}, {suspect[1]!r}, {data('verify').spec!r})"
        verdict = (0, 1)
        runs = {
            "help": ((*program, "--help"), plain, (0,), False),
            "usage error": ((*program, "verify", "nokey", "nosus", "--data", "nope"), plain, (3,), False),
            "import and verify in Python": (("-c", called), {**plain, "OMP_NUM_THREADS": "1"}, (0,), False),
            "verify": (verify, plain, verdict, False),
            "verify, busy neighbour": (verify, plain, verdict, True),
            "verify, 2 threads that spin": ((*verify, "--threads", "2"), spinning, verdict, False),
            "verify, 2 threads that spin, busy neighbour": ((*verify, "--threads", "2"), spinning, verdict, True),
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for number in range(given.rounds + 1):
            for name, (arguments, environment, codes, busy) in runs.items():
                with neighbour(cores[-1]) if busy else nullcontext():
                    found = timed(arguments, environment, codes)
                if number:  # the first round compiles
                    seconds[name].append(found)
    clock = {name: statistics.median(c for c, _ in found) for name, found in seconds.items()}
    cpu = {name: statistics.median(c for _, c in found) for name, found in seconds.items()}
    beside = ", busy neighbour"
    ratios = {name: clock[name + beside] / clock[name] for name in clock if name + beside in clock}
    rows = [[name, clock[name], cpu[name], ratios.get(name, "")] for name in runs]
    print(table(["command", "seconds", "CPU seconds", "busy neighbour / idle"], rows))
    figures = {"rounds": given.rounds, "queries": QUERIES, "cores": len(cores), "load_before": load}
    save("startup", {**figures, "seconds": clock, "cpu_seconds": cpu, "busy_over_idle": ratios})


if __name__ == "__main__":
    main()
