"""A bound on the size of networks, counted before a network is built.

A description of a few hundred bytes can name a network of any size. `check_size` builds it once without memory (on
torch's meta device) and stops at the first tensor that passes the bound.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from sslguard.errors import UsageError

MAX_PARAMETERS = 1 << 30
_MAX_TENSORS = 1 << 16


def check_size(build: Callable[[], nn.Module], *, most: int = MAX_PARAMETERS) -> None:
    """Raise UsageError if the network that `build` makes has more than `most` parameters. Nothing large is allocated.

    A network that cannot be built without memory is not counted here; `bounded` counts it while it is built.

    Args:
        build: what makes the network, from nothing.
        most: parameters that it may have in the end. While it is built, `MAX_PARAMETERS` may be there.
    """
    try:
        with bounded(), WithoutMemory():
            found = sum(p.numel() for p in build().parameters())
    except UsageError:
        raise
    except Exception:  # some networks compute with values as they are built, which meta has none of
        return
    if found > most:
        raise UsageError(
            f"weights are missing: the network has {found} parameters, and there are {most} numbers for it"
        )


class WithoutMemory(TorchFunctionMode):
    """Give weights that are made inside the block no memory (torch's meta device), so that they have shapes alone.

    What is counted up or cut into steps (`torch.arange`, `torch.linspace`) has its values: some networks compute their
    own widths with them.
    """

    _MADE = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.empty_strided})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, with the meta device where it makes a tensor of a given size."""
        kwargs = kwargs or {}
        if func in self._MADE and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


@contextmanager
def bounded() -> Iterator[None]:
    """Raise UsageError as soon as modules that are made inside the block, by this thread, hold too much together."""
    thread, numbers, tensors = threading.get_ident(), 0, 0

    def count(module: nn.Module, name: str, value: Tensor | None) -> None:  # noqa: ARG001 - as torch calls it
        nonlocal numbers, tensors
        if value is None or threading.get_ident() != thread or is_lazy(value):
            return
        numbers, tensors = numbers + value.numel(), tensors + 1
        if numbers > MAX_PARAMETERS or tensors > _MAX_TENSORS:
            raise UsageError(
                f"a network may have {MAX_PARAMETERS} parameters in {_MAX_TENSORS} tensors at most; this one has more"
            )

    handles: list[Any] = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
