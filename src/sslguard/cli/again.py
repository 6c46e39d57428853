"""Whether a command was run before: the same inputs, and its output stands as it was made.

A finished command leaves a record in the cache, `runs/HASH.json`: what it printed, and name, size and time of change of
the files that it wrote. HASH stands for the command, its arguments, and the same three facts of every file that they
name. Whoever gives the command again gets the same answer at once; a change of an input or of the output makes it run,
or be refused where something is in its way.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslguard import __version__
from sslguard.cli.output import Result
from sslguard.data.places import cache_dir
from sslguard.errors import OutputError
from sslguard.files import canonical_json, exists, located, write_atomic

_SLICES = re.compile(r"(\[[0-9]*:[0-9]*\])+$")
_KEPT = 500  # records, the newest
_KEY_FILES = ("key.json", "tensors.safetensors", "recipients.jsonl")
"""What a key is, and whose secrets it gives. Its folder also keeps what later commands learn."""


@dataclass(frozen=True)
class Run:
    """A command with its arguments.

    Attributes:
        out: What the command writes.
        record: File that tells of it once it is done.
    """

    out: Path
    record: Path

    def earlier(self) -> Result | None:
        """Return what this command printed when it made what stands at `out`; None if it did not."""
        try:
            kept = json.loads(self.record.read_text())
            if not all(_facts(self.out / name) == facts for name, facts in kept["wrote"].items()):
                return None
            rows = [(label, text) for label, text in kept["rows"]]
            return Result({**kept["fields"], "already_done": True}, rows, kept["exit_code"], next=kept["next"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or a damaged one
            return None

    def keep(self, result: Result) -> None:
        """Write down what the command printed and wrote. Where the cache cannot be written, it is not remembered."""
        wrote = {str(path.relative_to(self.out)): _facts(path) for path in _files(self.out)}
        printed = {"fields": dict(result.fields), "rows": list(result.rows), "next": result.next}
        with suppress(OutputError, OSError):
            content = {**printed, "exit_code": result.exit_code, "wrote": wrote}
            write_atomic(self.record, canonical_json(content), private=True)
            for old in sorted(self.record.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
                old.unlink()


def run_of(name: str, arguments: Mapping[str, Any]) -> Run | None:
    """Return the run of a command that writes to its argument `out`; None where sameness cannot be told.

    That is so where code of the user's own takes part, or other machines, whose caches know nothing of this one's.

    Args:
        name: Name of the command.
        arguments: Its arguments by name, without those that only say how its result is printed.
    """
    out, machine = arguments.get("out"), arguments.get("machine")
    if not isinstance(out, Path) or getattr(machine, "nodes", 1) > 1:
        return None
    given = {key: _plain(value) for key, value in arguments.items() if key != "out"}
    texts = list(_texts(given))
    if any(text.startswith("python:") for text in texts):
        return None
    inputs = {str(path): [_facts(file) for file in _files(path)] for text in texts for path in paths_in(text)}
    asked = [name, __version__, str(Path.cwd()), str(out.absolute()), given, inputs]
    return Run(out.absolute(), cache_dir() / "runs" / f"{hashlib.sha256(canonical_json(asked)).hexdigest()}.json")


def paths_in(text: str) -> set[Path]:
    """Return the files and folders that a specification names: of the parts between : @ # those that exist.

    They may be more than it means. Of a pattern of tar files the folder is taken.
    """
    found = set()
    for whole in text.split(" + "):
        part = _SLICES.sub("", located(whole))
        starts = [0, *(at + 1 for at, c in enumerate(part) if c in ":@")]
        stops = [len(part), *(at for at, c in enumerate(part) if c in ":@#")]
        names = {part[start:stop] for start in starts for stop in stops if start < stop}
        names |= {name.partition("{")[0].rpartition("/")[0] or "." for name in names if "{" in name}
        found |= {Path(name).absolute() for name in map(located, names) if exists(name)}
    return found


def _plain(value: Any) -> Any:
    """Return an argument as JSON holds it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return {name: _plain(one) for name, one in vars(value).items()}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _files(path: Path) -> list[Path]:
    """Return the files in a folder; of a key's folder the key, of a file itself."""
    if not path.is_dir():
        return [path]
    if (path / "key.json").is_file():
        return [path / name for name in _KEY_FILES]
    return sorted(file for file in path.rglob("*") if file.is_file())


def _facts(path: Path) -> list[str | int]:
    """Return name, size and time of change of a file; its name alone where it cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return [path.name]
    return [path.name, found.st_size, found.st_mtime_ns]
