"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter, Token

from sslguard.settings import Range

MACHINE = Group("Machine", sort_key=2)
OUTPUT = Group("Output", sort_key=3)


def whole(kind: object, tokens: Sequence[Token]) -> int:  # noqa: ARG001 - what cyclopts calls
    """Return a whole number, where cyclopts itself would round 1.5 to 2. Raise ValueError for anything else."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"must be a whole number, not {tokens[0].value!r}") from None


def within(rule: Range) -> Callable[[object, float | None], None]:
    """Return the check of an option's number as cyclopts calls it: it raises ValueError outside the range."""

    def check(kind: object, value: float | None) -> None:  # noqa: ARG001
        if value is not None and value not in rule:
            raise ValueError(f"It must be {rule.rule(value)}.")

    return check


Count = Annotated[int, Parameter(converter=whole, validator=within(Range(least=1)))]
Seed = Annotated[int, Parameter(converter=whole, validator=within(Range(least=0, below=1 << 63)))]
Positive = Annotated[float, Parameter(validator=within(Range(above=0)))]
NotNegative = Annotated[float, Parameter(validator=within(Range(least=0)))]


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class Output:
    """What every command takes: how results and messages are printed, and whose code may run.

    Attributes:
        factory: Your own function that makes the network of a key or of an encoder's folder, package.module:function.
            They only say its name; its code runs where you name it here.
        json: Print the result as exactly one JSON object; a failure too.
        quiet: Show no progress.
        verbose: Show the log on standard error.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    factory: Annotated[str | None, Parameter(group=MACHINE)] = None

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

Threads = Annotated[Count, Parameter(group=MACHINE)]


def set_threads(threads: int | None) -> None:
    """Let every network run on so many CPU threads; None leaves the choice to `encoders.threads`."""
    if threads is not None:
        from sslguard.encoders.threads import use_threads

        use_threads(threads)
