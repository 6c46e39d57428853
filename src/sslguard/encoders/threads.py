"""How many CPU threads a network runs on while it embeds.

A small network does so little between two meetings of its threads that a second thread gains nothing, and where another
program keeps a core busy, all threads wait for the one that is not scheduled: verifying a small encoder took 36 s with
two threads and 6 s with one. So networks below `LARGE` parameters embed on one thread, and larger ones on as many as
torch uses. Training keeps torch's number: its batches are larger, and the command line lets threads wait without
spinning, so that a busy neighbour costs no more than the core that it takes.

A number that was asked for (`use_threads`, `--threads`) holds for every network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

LARGE = 4_000_000
"""Parameters from which on a network embeds on several threads."""
_asked: int | None = None


def use_threads(threads: int | None) -> None:
    """Let every network run on so many CPU threads; None goes by the size of each again."""
    global _asked
    _asked = threads
    if threads is not None:
        torch.set_num_threads(threads)


@contextmanager
def few_threads(module: nn.Module) -> Iterator[None]:
    """Let torch use one thread inside the block, unless `module` is large or a number was asked for."""
    before = torch.get_num_threads()
    if _asked is not None or before == 1 or sum(p.numel() for p in module.parameters()) >= LARGE:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
