"""What both demonstrations write: files of their folder, each whole or not at all, and lines on standard error."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
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


def begin(out: Path, names: Iterable[str]) -> None:
    """Make the folder of a demonstration, and mark it as one by its `result.json`. Called before long work.

    Only in a folder that is marked so is anything replaced. A folder whose demonstration was killed is marked, too.

    Args:
        out: Folder of the demonstration.
        names: Names of all that will be written to it.

    Raises:
        OutputError: `out` cannot be written to, or holds something else under one of these names.
    """
    result = out / RESULT
    earlier = _read_result(result)
    for name in (RESULT, *names) if earlier is None else ():
        if os.path.lexists(out / name):
            raise OutputError(f"{out / name} holds something else, which is not overwritten: choose another --out")
    # Access rights would not tell enough: the file system may be read-only, or full.
    write_atomic(result, _encoded({"format": FORMAT}) if earlier is None else earlier)


def write_report(out: Path, fields: Mapping[str, Any], pages: Mapping[str, bytes]) -> None:
    """Write `result.json`, then the other files of a report.

    Args:
        out: Folder of the demonstration.
        fields: Content of `result.json`, JSON values; its "format" is `FORMAT`.
        pages: Content of the other files by name.

    Raises:
        OutputError: A file cannot be written. The file of an earlier report is then left as it was.
    """
    for name, content in {RESULT: _encoded(fields), **pages}.items():
        write_atomic(out / name, content)


def _encoded(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def _read_result(path: Path) -> bytes | None:
    """Return the content of a demonstration's result; None if there is none at this path."""
    try:
        content = path.read_bytes()
        found = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(found, dict) and found.get("format") == FORMAT else None
