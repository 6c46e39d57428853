"""Processes: who is first, what all share, and how they are launched."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")


def is_first_process() -> bool:
    """Whether this process is the one of a run's that writes results and reports.

    Asks the process group where there is one, else the environment that launchers set: theirs starts every process
    with the same command, so that who is first must be known before training begins.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return os.environ.get("NODE_RANK", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0"


def shared(make: Callable[[], T], *, devices: int = 1, nodes: int = 1, accelerator: str = "cpu", **_: Any) -> T:
    """What `make` returns in process 0, in every process of a run on these devices; `make` runs there alone.

    For what must be the same everywhere and cannot be had twice: a fresh secret, answers that cost queries. It
    travels as the gradients do, unencrypted between nodes. Settings of a loop that do not matter are taken too.
    """
    if devices * nodes == 1:
        return make()
    fabric = launched(accelerator=accelerator, devices=devices, num_nodes=nodes)
    return cast(T, fabric.broadcast(make() if fabric.is_global_zero else None))


def launched(**settings: Any) -> Fabric:
    """One process or, begun by re-running this program's command line, several that reach each other."""
    several = settings["devices"] * settings["num_nodes"] > 1
    fabric = _fabric_class()(strategy="ddp" if several else "auto", **settings)
    if several:
        fabric.launch()
        atexit.unregister(leave)
        atexit.register(leave)
    return fabric


def leave() -> None:
    """End this process's part in a run of several: a group that outlives the interpreter may abort it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _fabric_class() -> type[Fabric]:
    """Fabric without torchmetrics, which it imports only to learn its version: seconds, and transformers with it."""
    absent = "torchmetrics" not in sys.modules
    if absent:
        sys.modules["torchmetrics"] = None  # type: ignore[assignment]
    try:
        from lightning_fabric import Fabric
    finally:
        if absent:
            sys.modules.pop("torchmetrics", None)
    return Fabric
