"""Watermarks for pre-trained encoders, and evidence that a suspect was derived from one.

`load_encoder`, `watermark`, `steal` and `verify` are the command line's verbs. Nothing heavy is imported until one
of them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslguard.lazy import exports

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from sslguard.api import steal, verify, watermark
    from sslguard.encoders.load import load_encoder
    from sslguard.schemes.keyfile import load_key, save_key
else:
    __getattr__ = exports(
        __name__,
        {
            "api": ("steal", "verify", "watermark"),
            "encoders.load": ("load_encoder",),
            "schemes.keyfile": ("load_key", "save_key"),
        },
    )

__all__ = ["__version__", "load_encoder", "load_key", "save_key", "steal", "verify", "watermark"]
