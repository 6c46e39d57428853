"""The folders in which data lies."""

from __future__ import annotations

import os
from pathlib import Path

SYSTEM_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def cache_dir() -> Path:
    """Return the folder that downloads and unpacked files go to.

    `$SSLGUARD_CACHE`, else `$XDG_CACHE_HOME/sslguard`, else `~/.cache/sslguard`.
    """
    if chosen := os.environ.get("SSLGUARD_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sslguard"


def data_root() -> Path:
    """Return where torchvision's sets are looked for and downloaded to: `$SSLGUARD_DATA`, else the cache folder."""
    chosen = os.environ.get("SSLGUARD_DATA")
    return Path(chosen) if chosen else cache_dir()
