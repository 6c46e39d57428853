"""What a long run keeps beside its result until that stands, so that the same command goes on after an interruption.

For a result in the folder `DIR` it is the folder `DIR.unfinished`, readable by its owner alone: `checkpoint.pt`, and
for a marking `secret`, because a resumed marking must draw the same key. It is removed when the result is in place.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sslguard.crypto.secrets import Secret
from sslguard.errors import OutputError
from sslguard.files import atomic_folder, write_atomic
from sslguard.training.processes import is_first_process

SECRET_WAIT = 60.0  # seconds that other processes wait for the first one's secret


class InterruptedRun(KeyboardInterrupt):
    """Interruption by the user, with a sentence on what can be resumed."""


@dataclass(frozen=True)
class Unfinished:
    """Where a run works.

    Attributes:
        folder: what is kept until the result stands.
        result: an empty folder to write the result into; None in all processes but the first.
    """

    folder: Path
    result: Path | None

    @property
    def checkpoint(self) -> Path:
        """Return the file that training saves to and resumes from."""
        return self.folder / "checkpoint.pt"

    def secret(self) -> Secret:
        """Return the master secret of this marking: drawn by the first process, kept for a resumed run and the others.

        Raises:
            KeyFileError: the file that keeps it is damaged.
            OutputError: it cannot be written, or the first process did not write it in time.
        """
        path = self.folder / "secret"
        _check_own(path, 0o077)
        if self.result is not None and not path.exists():
            write_atomic(path, Secret.generate().reveal(), private=True)
        deadline = time.monotonic() + SECRET_WAIT
        while not path.exists():
            if time.monotonic() > deadline:
                raise OutputError(f"{path} was not written by the first process: --out must be a shared folder")
            time.sleep(0.1)
        return Secret(path.read_bytes())


@contextmanager
def unfinished(out: Path, *, replaces: Callable[[Path], bool] | None = None) -> Iterator[Unfinished]:
    """Yield a place to make the folder `out` in, which stands there after the block, whole or not at all.

    A block that ends early leaves its checkpoint where it has one, and otherwise nothing.

    Args:
        out: the folder of the result.
        replaces: says of a folder that is there already whether the result may take its place.

    Raises:
        OutputError: `out` is taken or cannot be written. Before the block where that can be known.
        InterruptedRun: in place of a KeyboardInterrupt.
    """
    target = Path(os.path.realpath(out))
    folder = target.with_name(f"{target.name}.unfinished") if target.name else target
    if not is_first_process():
        yield Unfinished(folder, None)
        return
    with atomic_folder(out, replaces=replaces) as result:
        work = Unfinished(folder, result)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}, where checkpoints go, cannot be made: {error.strerror}") from error
        _check_own(folder, 0o022)
        _check_own(folder / "secret", 0o077)
        try:
            yield work
        except KeyboardInterrupt:
            raise InterruptedRun(_what_is_left(work)) from None
        finally:
            if not work.checkpoint.exists():
                _clear(folder)
    _clear(folder)


def _check_own(path: Path, denied: int) -> None:
    """Raise OutputError for a path that somebody else could have put there, or that has one of the modes `denied`.

    What is resumed from it would be theirs, a secret that they know for one.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}") from error
    mine = os.name != "posix" or (found.st_uid == os.geteuid() and not found.st_mode & denied)
    if stat.S_ISLNK(found.st_mode) or not mine:
        raise OutputError(f"{path} is a link, somebody else's, or open to others, and is not used: remove it")


def _clear(folder: Path) -> None:
    """Remove what was put there, and the folder where nothing else is in it."""
    with suppress(OSError):
        for pattern in ("checkpoint.pt", "secret", ".checkpoint.pt.*.partial", ".secret.*.partial"):
            for file in folder.glob(pattern):
                file.unlink()
        folder.rmdir()


def _what_is_left(work: Unfinished) -> str:
    if work.checkpoint.exists():
        return f"interrupted; the same command goes on from {work.checkpoint}"
    return "interrupted before the first checkpoint; nothing was written"
