"""What a command says: one result on standard output, everything else on standard error.

Texts that come from files or suspects are shown with their control characters escaped, so that a hostile name
cannot write to the terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from shlex import quote
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import RenderableType

Item = TypeVar("Item")


@dataclass(frozen=True)
class Result:
    """What a command found.

    Attributes:
        fields: JSON values, all of them: what `--json` prints.
        rows: label and text of the lines that people read.
        exit_code: what the process returns.
        table: what rich prints before the rows, or None.
        next: the command that usually comes next, and what it is for; "" for none.
        timed: whether the time that the command took is told.
    """

    fields: Mapping[str, Any]
    rows: Sequence[tuple[str, str]]
    exit_code: int = 0
    table: RenderableType | None = None
    next: str = ""
    timed: bool = False

    def took(self, seconds: float) -> Result:
        """Return the result with the time that the command took, where it is told."""
        if not self.timed:
            return self
        rows = [*self.rows, ("seconds", f"{seconds:.1f}")]
        return replace(self, fields={**self.fields, "seconds": round(seconds, 1)}, rows=rows, timed=False)


def show(result: Result, *, as_json: bool, quiet: bool = False) -> None:
    """Print a result to standard output and flush it, so that a full disk is noticed here.

    Args:
        result: What the command found.
        as_json: Print one JSON object.
        quiet: Leave out the next command.
    """
    if as_json:
        show_json(result.fields)
        return
    rows = [*result.rows, *([("next", result.next)] if result.next and not quiet else [])]
    if result.table is not None:
        from rich.console import Console

        # Not printed by rich itself, which turns a broken pipe into exit code 1: not shown.
        console = Console()
        with console.capture() as captured:
            console.print(result.table)
        _write(captured.get())
    width = max((len(label) for label, _ in rows), default=0)
    _write("".join(f"{label:<{width}}  {printable(text)}\n" for label, text in rows))


def show_json(fields: Mapping[str, Any]) -> None:
    """Print one JSON object on one line of standard output."""
    _write(json.dumps(fields, allow_nan=False) + "\n")


def say(text: str) -> None:
    """Write one line to standard error, whatever line breaks `text` holds."""
    sys.stderr.write(f"sslguard: {printable(text)}\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """Return `text` on one line, control characters and what cannot be encoded escaped."""
    line = " ".join(part.strip() for part in text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def command(*words: object) -> str:
    """Return a command line of this program as a shell takes it.

    Words in capitals stand for what the user puts there, and are not quoted.
    """
    return " ".join(["sslguard", *(text if text.isupper() else quote(text) for text in map(str, words))])


def tracked(items: Iterable[Item], total: int, title: str, *, shown: bool) -> Iterator[Item]:
    """Yield the same items, with a bar on standard error that advances with each."""
    if not shown:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=title, total=total, console=Console(stderr=True))


def _write(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
