"""Processes of a distributed run: which one is first, what all share, and how they are launched."""

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
    """Return whether this process is the one that writes results and reports.

    If there is a process group, it decides. Otherwise the environment variables of launchers do: a launcher starts
    every process with the same command, which must know its rank before training begins.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return os.environ.get("NODE_RANK", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0"


def shared(make: Callable[[], T], *, devices: int = 1, nodes: int = 1, accelerator: str = "cpu", **_: Any) -> T:
    """Call `make` in process 0 only, and return its result in every process of a run on these devices.

    Use it for what must be the same everywhere and cannot be computed twice, such as a fresh secret, or answers that
    cost queries. The result travels between nodes as gradients do, unencrypted.

    Args:
        make: Function to call.
        devices: Processes on each node.
        nodes: Number of nodes.
        accelerator: Kind of device.
        _: Other settings of a loop, which are ignored.
    """
    if devices * nodes == 1:
        return make()
    fabric = launched(accelerator=accelerator, devices=devices, num_nodes=nodes)
    return cast(T, fabric.broadcast(make() if fabric.is_global_zero else None))


def launched(**settings: Any) -> Fabric:
    """Return the Fabric of this run: one process, or several that can reach each other.

    The further processes are started with this program's own command line.
    """
    several = settings["devices"] * settings["num_nodes"] > 1
    fabric = _fabric_class()(strategy="ddp" if several else "auto", **settings)
    if several:
        fabric.launch()
        atexit.unregister(leave)
        atexit.register(leave)
    return fabric


def leave() -> None:
    """Leave the process group. A group that outlives the interpreter may abort the process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _fabric_class() -> type[Fabric]:
    """Return the class Fabric, imported without torchmetrics.

    It imports torchmetrics only to learn its version. That takes seconds, and brings in transformers.
    """
    absent = "torchmetrics" not in sys.modules
    if absent:
        sys.modules["torchmetrics"] = None  # type: ignore[assignment]
    try:
        from lightning_fabric import Fabric
    finally:
        if absent:
            sys.modules.pop("torchmetrics", None)
    return Fabric
