"""What both demonstrations share: the clock, and the folders that they may write to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sslguard.demo.output import check_report_folder
from sslguard.encoders.folder import FILES, load_folder
from sslguard.errors import EncoderError, OutputError
from sslguard.schemes.keyfile import is_key_folder


class Clock:
    """Seconds by stage, and one line a stage on standard error."""

    def __init__(self, shown: bool) -> None:
        self.seconds: dict[str, float] = {}
        self.shown = shown

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.shown:
            from rich.console import Console

            Console(stderr=True).print(f"{name} …", markup=False)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 2)


def check_folders(out: Path, *, encoders: Sequence[str], keys: Sequence[str]) -> None:
    """Make `out`, and find out before any work whether a demonstration can be written there.

    Raises:
        OutputError: It cannot be written, or holds something else under a name that is needed.
    """
    check_report_folder(out)
    for name in (*encoders, *keys):
        folder = out / name
        ours: Callable[[Path], bool] = is_key_folder if name in keys else _is_encoder
        if folder.is_dir() and (not any(folder.iterdir()) or ours(folder)):
            continue
        if folder.exists() or folder.is_symlink():
            raise OutputError(f"{folder} holds something else, which is not overwritten: choose another --out")


def _is_encoder(folder: Path) -> bool:
    """Only what an encoder's folder holds, and readable: else it is the user's and not ours to replace."""
    if not {entry.name for entry in folder.iterdir()} <= set(FILES):
        return False
    try:
        load_folder(folder)
    except EncoderError:
        return False
    return True
