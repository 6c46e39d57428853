"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter, Token

MACHINE = Group("Machine", sort_key=2)
OUTPUT = Group("Output", sort_key=3)


def whole(kind: object, tokens: Sequence[Token]) -> int:  # noqa: ARG001 - what cyclopts calls
    """Return a whole number, where cyclopts itself would round 1.5 to 2. Raise ValueError for anything else."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"must be a whole number, not {tokens[0].value!r}") from None


def _at_least_one(kind: object, value: int | None) -> None:  # noqa: ARG001
    if value is not None and value < 1:
        raise ValueError("it must be at least 1")


def _not_negative(kind: object, value: float | None) -> None:  # noqa: ARG001
    if value is not None and not 0 <= value < math.inf:
        raise ValueError("it must be at least 0 and finite")


def _positive(kind: object, value: float | None) -> None:  # noqa: ARG001
    if value is not None and not 0 < value < math.inf:
        raise ValueError("it must be positive and finite")


def _seed(kind: object, value: int | None) -> None:  # noqa: ARG001
    if value is not None and not 0 <= value < 1 << 63:
        raise ValueError("it must be at least 0 and below 2^63")


Count = Annotated[int, Parameter(converter=whole, validator=_at_least_one)]
Seed = Annotated[int, Parameter(converter=whole, validator=_seed)]
Rate = Annotated[float, Parameter(validator=_positive)]
Share = Annotated[float, Parameter(validator=_not_negative)]


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class Output:
    """How results and messages are printed.

    Attributes:
        json: Print the result as exactly one JSON object; a failure too.
        quiet: Show no progress.
        verbose: Show the log on standard error.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def progress(self) -> bool:
        """Return whether bars are drawn."""
        return not self.quiet


@Parameter(name="*", group=MACHINE)
@dataclass(frozen=True, kw_only=True)
class Machine:
    """What training runs on.

    Attributes:
        devices: Processes on this machine, one device each.
        nodes: Machines; start the same command on each.
        accelerator: Kind of device.
        precision: auto is bfloat16 where a GPU has it.
        threads: CPU threads of a process. By default all cores train, and networks below 4 million parameters embed on
            one thread.
    """

    devices: Count = 1
    nodes: Count = 1
    accelerator: Literal["cpu", "cuda", "mps", "auto"] = "cpu"
    precision: Literal["auto", "32", "bf16"] = "auto"
    threads: Count | None = None

    def loop(self) -> dict[str, Any]:
        """Return the arguments that the training functions take, threads set."""
        set_threads(self.threads)
        return {
            "devices": self.devices,
            "nodes": self.nodes,
            "accelerator": self.accelerator,
            "precision": self.precision,
        }


PRINTED, ONE_MACHINE = Output(), Machine()
"""The defaults of every command."""

Threads = Annotated[int, Parameter(converter=whole, validator=_at_least_one, group=MACHINE)]


def set_threads(threads: int | None) -> None:
    """Let every network run on so many CPU threads; None leaves the choice to `encoders.threads`."""
    if threads is not None:
        from sslguard.encoders.threads import use_threads

        use_threads(threads)
