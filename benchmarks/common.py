"""What the benchmarks share: where results go, how tables look, and probes that are asked for once."""

from __future__ import annotations

import ctypes
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sslguard.controls import Bed, make
from sslguard.controls import population as all_recipes
from sslguard.data.base import Data
from sslguard.data.roles import ROLES
from sslguard.data.specs import open_data
from sslguard.encoders.base import Embedder, Encoder
from sslguard.files import write_atomic
from sslguard.probes import probe_encoder
from sslguard.training import Loop, Task, run
from sslguard.training.pretraining import Pretraining

RESULTS = Path(__file__).parent / "results"
VICTIMS = ("simclr", "moco", "byol")
FEW = 10
FEW_SEEDS = (0, 1, 2, 3, 4)


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


def accuracy(
    embedder: Embedder,
    *,
    domain: str = "garments",
    per_class: int | None = None,
    source: Callable[[str], Data] = data,
) -> float:
    """Linear-probe accuracy on one domain of the test bed, in [0, 1]. `source` gives the data of a role."""
    train, test = ("probe_train", "probe_test") if domain == "garments" else ("digits_probe_train", "digits_probe_test")
    seeds = (0,) if per_class is None else FEW_SEEDS
    return probe_encoder(embedder, source(train), source(test), per_class=per_class, seeds=seeds).accuracy


def public_member(width: int) -> tuple[str, str, Encoder]:
    """Name, kind and encoder of the innocent that is too heavy to ship: EfficientNet-Lite0."""
    (lite0,) = (recipe for recipe in all_recipes({}) if recipe.kind == "public")
    return lite0.name, lite0.kind, make(lite0, Bed(ROLES.pretrain, ROLES.thief, ROLES.tune), width=width)


def pretraining_of(victim: Encoder) -> Pretraining:
    """The recipe that a shipped encoder records."""
    fields: dict[str, Any] = dict(victim.record["recipe"])
    fields.pop("views")
    return Pretraining(**fields)


def seconds_a_step(
    tasks: Mapping[str, Task],
    *,
    rounds: int = 3,
    steps: int = 4,
    batch_size: int = 128,
    precisions: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of a step, all tasks in turn so that a drift of the machine meets them alike.

    Args:
        rounds, steps: how often each is timed, after one round of warming up, and steps each time.
        precisions: of tasks that do not run in "auto".
        clock: what seconds are read from.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            precision = (precisions or {}).get(name, "auto")
            begun = clock()
            run(task, Loop(steps=steps, batch_size=batch_size, seed=number, precision=precision))
            if number:  # the first round warms up
                times[name].append((clock() - begun) / steps)
    return {name: statistics.median(values) for name, values in times.items()}


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
