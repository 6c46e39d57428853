"""Parts that both demonstrations share: the clock, and the check of the output folder."""

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


def check_folders(out: Path, *, encoders: Sequence[str], keys: Sequence[str]) -> None:
    """Make a folder and check that a demonstration can be written there. Called before long work.

    Args:
        out: Folder of the demonstration.
        encoders: Names of the encoders' folders in it.
        keys: Names of the keys' folders in it.

    Raises:
        OutputError: `out` cannot be written to, or holds something else under one of these names.
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
    """Return whether a folder holds a readable encoder and nothing else. Other folders are not replaced."""
    if not {entry.name for entry in folder.iterdir()} <= set(FILES):
        return False
    try:
        load_folder(folder)
    except EncoderError:
        return False
    return True
