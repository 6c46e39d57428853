"""Files that are there whole or not at all, and small files that may come from anybody.

A result is written beside its place under a temporary name and renamed when it is complete, so that a full
disk, an error or ^C halfway leaves what was there before. A process that is killed outright may leave the temporary
name behind (`.NAME.xxxxxxxx.partial`), with key material in it where NAME holds some.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sslguard.errors import OutputError, SslguardError

# One letter is a drive of Windows.
_PREFIXED = re.compile(r"((?:[\w.-]{2,}:)*)(.*)", re.DOTALL)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def located(text: str) -> str:
    """Return a path, or a text that names something by one, as this system writes paths.

    ~ becomes the home folder, also behind a prefix as in hf:~/model. Backslashes are separators on Windows only;
    elsewhere they become slashes where nothing has that name and the folder with slashes exists, as in a file of
    options that was written on Windows. All else stays as it is.
    """
    prefix, path = _PREFIXED.fullmatch(text).groups()  # pyrefly: ignore[missing-attribute] - it matches every text
    if path == "~" or path.startswith(("~/", "~\\")):
        path = str(Path.home()) + path[1:]
    slashes = path.replace("\\", "/")
    if os.sep == "/" and slashes != path and not exists(path) and exists(slashes.rpartition("/")[0]):
        path = slashes
    return prefix + path


def exists(path: str) -> bool:
    """Return whether a path exists; one that the system cannot even look up does not, and neither does an empty one."""
    try:
        return bool(path) and Path(path).exists()
    except (OSError, ValueError):  # too long to be a name, or a null byte
        return False


def canonical_json(value: Any) -> bytes:
    """Return a JSON value as the bytes that are hashed or signed: there is one way to write it.

    UTF-8, of which ASCII alone is used (other characters as escapes), keys sorted by code points, no white space,
    floats as the shortest decimal that reads as the same double (`repr` of Python), no newline at the end.

    Raises:
        ValueError, TypeError: NaN, infinity, or what is no JSON value.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def read_plain(path: Path, most: int, error: type[SslguardError], *, links: bool = True) -> bytes:
    """Return the content of a plain file. Pipes and devices are refused, since they could block or never end.

    Args:
        path: The file.
        most: Most bytes that it may have.
        error: Class of what is raised.
        links: Whether a link to a file is followed.

    Raises:
        SslguardError: One of the class `error`: the file is missing, larger, anything else, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise error(f"{path!s:.200} is not a plain file")
            content = file.read(most + 1)
    except FileNotFoundError:
        raise error(f"{path!s:.200} is missing") from None
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise error(f"{path!s:.200} cannot be read as a plain file: {reason}") from None
    if len(content) > most:
        raise error(f"{path!s:.200} is larger than {most} bytes")
    return content


def write_atomic(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write `content` to the file `path`, replacing a file that is there. Missing parent folders are made.

    Args:
        path: where the file shall be.
        content: all of its bytes.
        private: only the owner may read the file (mode 0600), as befits key material.

    Raises:
        OutputError: `path` is something other than a file, or cannot be written.
    """
    with atomic_file(path, private=private) as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Do as `write_atomic` for content that comes piece by piece: yield a binary handle, in place after the block.

    An exception inside the block leaves `path` as it was and passes on, an `OSError` as an `OutputError`.
    """
    with _written(path):
        target = _target(path)
        # A rename would put a plain file in the place of a device or a pipe.
        if target.exists() and not target.is_file():
            raise OutputError(f"{path} is there and is not a file: choose another name")
        partial = _beside(target)
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(descriptor)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replaces: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yield an empty folder to fill, which stands at `path` after the block. Make missing parent folders.

    Args:
        path: where the folder shall be. An empty folder may be there already.
        replaces: says of a folder at `path` that holds something whether it may be thrown away for the new
            one; without it none may. It is asked before the block, so that no work is done in vain.

    Yields:
        The folder to write into, beside `path`. An exception inside the block removes it, leaves `path` as it
        was and passes on; an `OSError` becomes an `OutputError`.

    Raises:
        OutputError: `path` is a file or a folder that must not be replaced, or cannot be written.
    """
    with _written(path):
        target = _target(path)
        if target.exists():
            _check_replaceable(target, replaces)
        partial = _beside(target)
        partial.mkdir()
        try:
            yield partial
            _move_folder(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def _target(path: Path) -> Path:
    """Return the place that `path` means, links followed, its parent folder made."""
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _check_replaceable(target: Path, replaces: Callable[[Path], bool] | None) -> None:
    if not target.is_dir():
        raise OutputError(f"{target} is there and is not a folder: choose another name")
    if any(target.iterdir()) and not (replaces is not None and replaces(target)):
        raise OutputError(f"{target} holds something else, which is not overwritten: choose another name")


def _move_folder(partial: Path, target: Path) -> None:
    """Put `partial` in the place of `target`; what was at `target` comes back if that fails."""
    for file in partial.rglob("*"):
        if file.is_file():
            _sync(file)
    if not target.exists():
        partial.rename(target)
        return
    # A folder that holds files cannot be renamed over.
    if _exchange(partial, target):
        return
    old = _beside(target)
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        with suppress(OSError):
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places, in one step that nothing can interrupt; False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return not renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    """Return a name in the same folder, hence on the same file system, that nobody else uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
