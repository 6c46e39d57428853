"""Watermarks for pre-trained encoders, and evidence that a suspect was derived from one.

`load_encoder`, `watermark`, `steal` and `verify` are the command line's verbs. Nothing heavy is imported until one
of them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from sslguard.api import steal, verify, watermark
    from sslguard.encoders.load import load_encoder
    from sslguard.schemes.keyfile import load_key, save_key

__all__ = ["__version__", "load_encoder", "load_key", "save_key", "steal", "verify", "watermark"]

_HOME = {
    "load_encoder": "sslguard.encoders.load",
    "load_key": "sslguard.schemes.keyfile",
    "save_key": "sslguard.schemes.keyfile",
    "steal": "sslguard.api",
    "verify": "sslguard.api",
    "watermark": "sslguard.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sslguard' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
