"""What both demonstrations write: files of their folder, each whole or not at all, and lines on standard error."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sslguard.errors import OutputError
from sslguard.files import write_atomic

PAGE, RESULT, PICTURE, AUDIT = "report.html", "result.json", "result.png", "audit.html"
FORMAT = "sslguard-report"


class Clock:
    """Clock that measures the seconds of each stage, and prints one line a stage on standard error.

    Attributes:
        seconds: Wall-clock seconds by stage.
        shown: Whether lines are printed.
    """

    def __init__(self, shown: bool) -> None:
        """Start without any stage."""
        self.seconds: dict[str, float] = {}
        self.shown = shown

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as the stage of this name."""
        if self.shown:
            from rich.console import Console

            Console(stderr=True).print(f"{name} …", markup=False)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 2)


class Stages:
    """Stages of a demonstration, each of which is done once.

    What a stage found is written to `result.json` at once, so that a demonstration that was killed goes on with the
    stage at which it stopped.

    Attributes:
        out: Folder of the demonstration.
        fields: Content of `result.json`: "format", "settings", "seconds" by stage, and "found" by stage.
    """

    def __init__(self, out: Path, names: Iterable[str], settings: Mapping[str, Any], *, shown: bool) -> None:
        """Read what was done, or begin.

        Args:
            out: Folder of the demonstration.
            names: Names of all that will be written to it.
            settings: Settings of the run, JSON values.
            shown: Whether a line is printed on standard error when a stage begins.

        Raises:
            OutputError: `out` cannot be written to, or holds something else under one of these names, or a
                demonstration of other settings.
        """
        settings = json.loads(json.dumps(settings))
        earlier = begin(out, names)
        self.out, self._clock = out, Clock(shown)
        self.fields: dict[str, Any] = {"format": FORMAT, "settings": settings, "seconds": {}, "found": {}, **earlier}
        if self.fields["settings"] != settings:
            raise OutputError(f"{out} holds a demonstration of other settings: remove it, or choose another --out")

    def do(self, name: str, work: Callable[[], Any]) -> Any:
        """Return what a stage found: what is written of it, or what `work` returns now, JSON values."""
        found = self.fields["found"]
        if name not in found:
            with self._clock.stage(name):
                found[name] = json.loads(json.dumps(work(), allow_nan=False))
            self.fields["seconds"][name] = self._clock.seconds[name]
            write_report(self.out, self.fields, {})
        return found[name]


def begin(out: Path, names: Iterable[str]) -> dict[str, Any]:
    """Make the folder of a demonstration, and mark it as one by its `result.json`. Called before long work.

    Only in a folder that is marked so is anything replaced. A folder whose demonstration was killed is marked, too.

    Args:
        out: Folder of the demonstration.
        names: Names of all that will be written to it.

    Returns:
        Content of the `result.json` that was there; empty if there was none.

    Raises:
        OutputError: `out` cannot be written to, or holds something else under one of these names.
    """
    result = out / RESULT
    earlier = _read_result(result)
    for name in (RESULT, *names) if earlier is None else ():
        if os.path.lexists(out / name):
            raise OutputError(f"{out / name} holds something else, which is not overwritten: choose another --out")
    # Access rights would not tell enough: the file system may be read-only, or full.
    write_report(out, earlier or {"format": FORMAT}, {})
    return earlier or {}


def write_report(out: Path, fields: Mapping[str, Any], pages: Mapping[str, bytes]) -> None:
    """Write `result.json`, then the other files of a report.

    Args:
        out: Folder of the demonstration.
        fields: Content of `result.json`, JSON values; its "format" is `FORMAT`.
        pages: Content of the other files by name.

    Raises:
        OutputError: A file cannot be written. The file of an earlier report is then left as it was.
    """
    encoded = json.dumps(fields, indent=1, allow_nan=False).encode() + b"\n"
    for name, content in {RESULT: encoded, **pages}.items():
        write_atomic(out / name, content)


def _read_result(path: Path) -> dict[str, Any] | None:
    """Return the content of a demonstration's result; None if there is none at this path."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None
