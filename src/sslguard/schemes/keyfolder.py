"""What can be checked of a key's folder before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from sslguard.errors import KeyFileError

HEADER = "key.json"


def check_key(folder: Path) -> None:
    """Raise KeyFileError if `folder` holds no key. The key is not read."""
    if not (folder / HEADER).exists():
        raise KeyFileError(f"{folder} is not a key: it has no {HEADER}")
