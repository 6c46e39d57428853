"""What networks run on while they embed: device, precision, CPU threads, and how many items at a time.

A small network does so little between two meetings of its threads that a second thread gains nothing, and where another
program keeps a core busy, all threads wait for the one that is not scheduled: verifying a small encoder took 36 s with
two threads and 6 s with one. So networks below `LARGE` parameters embed on one thread, and larger ones on as many as
torch uses. Training keeps torch's number: its batches are larger, and the command line lets threads wait without
spinning, so that a busy neighbour costs no more than the core that it takes. Commands that train nothing run all else,
such as drawing pictures and preparing them, on one thread.

What was asked for with `run_on` holds for every network of the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from sslguard.errors import UsageError

Accelerator = Literal["cpu", "cuda", "mps", "auto"]
Precision = Literal["32", "bf16"]

LARGE = 4_000_000
"""Parameters from which on a network embeds on several threads."""
EMBED_BATCH = 256
"""Items that go through a network together at most, unless another number was asked for."""
TEXT_BATCH = 32
_PIXELS = 1 << 21  # of all pictures that go through together: 7 of 518 x 518


@dataclass(frozen=True)
class _Running:
    device: torch.device | None = None
    precision: Precision = "32"
    threads: int | None = None
    batch_size: int | None = None


_asked = _Running()
_cores = torch.get_num_threads()


def run_on(
    accelerator: Accelerator = "cpu",
    *,
    precision: Precision = "32",
    threads: int | None = None,
    batch_size: int | None = None,
    training: bool = True,
) -> None:
    """Let every network of this process embed so from now on.

    Args:
        accelerator: Kind of device; "auto" takes a GPU where there is one.
        precision: "bf16" computes in bfloat16 what autocast allows.
        threads: CPU threads; None goes by the size of each network.
        batch_size: Items that go through a network together; None goes by their size.
        training: Whether something will be trained. If not, one thread does all but embedding by large networks.

    Raises:
        UsageError: There is no such device.
    """
    global _asked
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        accelerator = "cuda" if there["cuda"] else "mps" if there["mps"] else "cpu"
    if not there[accelerator]:
        raise UsageError(f"this machine has no {accelerator} device that torch can use: choose another --accelerator")
    device = None if accelerator == "cpu" else torch.device(accelerator)
    _asked = _Running(device, precision, threads, batch_size)
    if threads is not None or not training:
        torch.set_num_threads(threads or 1)


@contextmanager
def running(module: nn.Module) -> Iterator[None]:
    """Put a network on the device that was asked for, and compute inside the block as was asked for."""
    if _asked.device is not None:
        module.to(_asked.device)
    kind = "cpu" if _asked.device is None else _asked.device.type
    with few_threads(module), torch.autocast(kind, torch.bfloat16, enabled=_asked.precision == "bf16"):
        yield


@contextmanager
def few_threads(module: nn.Module) -> Iterator[None]:
    """Let torch use one thread inside the block, and all for a large module, unless a number was asked for."""
    before = torch.get_num_threads()
    fit = _cores if sum(p.numel() for p in module.parameters()) >= LARGE else 1
    torch.set_num_threads(_asked.threads or fit)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def together(pixels: int | None) -> int:
    """Return how many items go through a network together.

    Args:
        pixels: Height times width of a picture; None for texts.
    """
    if _asked.batch_size is not None:
        return _asked.batch_size
    return TEXT_BATCH if pixels is None else max(1, min(EMBED_BATCH, _PIXELS // max(1, pixels)))
