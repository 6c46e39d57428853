"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
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
        config: File of options, TOML: a table for each command, such as [watermark], with its arguments and options by
            name. What the command line says goes before.
        factory: Your own function that makes the network of a key or of an encoder's folder, package.module:function.
            They only say its name; its code runs where you name it here.
        json: Print the result as exactly one JSON object; a failure too.
        quiet: Show the result, warnings and errors alone: no progress, no hints, no next command.
        verbose: Show the log on standard error.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    config: Path | None = None
    factory: Annotated[str | None, Parameter(group=MACHINE)] = None

    @property
    def progress(self) -> bool:
        """Return whether bars are drawn."""
        return not self.quiet


@Parameter(name="*", group=MACHINE)
@dataclass(frozen=True, kw_only=True)
class Running:
    """What encoders run on.

    Attributes:
        accelerator: Kind of device; auto takes a GPU where there is one.
        precision: bf16 computes in bfloat16 what allows it.
        batch_size: Items that go through a network together. By default at most 256, and few large pictures: 7 of
            518 x 518, for which a ViT-S takes 1.5 GB of memory.
        threads: CPU threads. By default 1 for networks below 4 million parameters, all cores for larger ones.
    """

    accelerator: Literal["cpu", "cuda", "mps", "auto"] = "cpu"
    precision: Literal["32", "bf16"] = "32"
    batch_size: Count | None = None
    threads: Count | None = None

    def start(self) -> None:
        """Let every network of this process embed so from now on."""
        from sslguard.encoders.running import run_on

        asked = {"precision": self.precision, "threads": self.threads, "batch_size": self.batch_size}
        run_on(self.accelerator, **asked, training=False)


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
        """Return the arguments that the training functions take; networks also embed on that device from now on."""
        if self != ONE_MACHINE:
            from sslguard.encoders.running import run_on

            run_on(self.accelerator if self.devices == self.nodes == 1 else "cpu", threads=self.threads)
        return {
            "devices": self.devices,
            "nodes": self.nodes,
            "accelerator": self.accelerator,
            "precision": self.precision,
        }


PRINTED, ONE_MACHINE, EMBEDDING = Output(), Machine(), Running()
"""The defaults of every command."""
