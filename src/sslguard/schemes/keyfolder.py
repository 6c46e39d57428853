"""What can be checked of a key's folder before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from sslguard.errors import KeyFileError

HEADER = "key.json"


def check_key(folder: Path) -> None:
    """Raise KeyFileError if `folder` holds no key. The key is not read."""
    if not is_key(folder):
        raise KeyFileError(f"{folder} is not a key: it has no {HEADER}")


def is_key(folder: Path) -> bool:
    """Return whether `folder` looks like a key."""
    return (folder / HEADER).exists()
