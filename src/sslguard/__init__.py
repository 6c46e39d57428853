"""Watermarks for pre-trained encoders, and evidence that a suspect was derived from one.

`watermark`, `steal`, `verify` and their like are the command line's verbs: see `api`. Nothing heavy is imported until
one of the names is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslguard.lazy import exports

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:  # for type checkers, which do not read the table below
    from sslguard.api import (
        attack,
        audit,
        claim,
        commit,
        compare_weights,
        make_controls,
        pretrain,
        release,
        score_controls,
        steal,
        trace,
        verify,
        watermark,
        watermark_for,
    )
    from sslguard.crypto.secrets import Secret
    from sslguard.data.specs import open_data
    from sslguard.encoders.folder import save_encoder
    from sslguard.encoders.load import load_encoder
    from sslguard.encoders.preprocess import ImagePreprocess
    from sslguard.errors import SslguardError
    from sslguard.schemes.exact.protocol import Protocol
    from sslguard.schemes.exact.scheme import Exact
    from sslguard.schemes.keyfile import load_key, save_key
    from sslguard.schemes.sslguard.scheme import CuredSSLGuard, SSLGuard
    from sslguard.suspects.opening import open_suspect
    from sslguard.suspects.remote import Remote
    from sslguard.training.recipes import Distillation, Pretraining

__getattr__, _names = exports(
    __name__,
    {
        "api": (
            *("attack", "audit", "claim", "commit", "compare_weights", "make_controls", "pretrain"),
            *("release", "score_controls", "steal", "trace", "verify", "watermark", "watermark_for"),
        ),
        "crypto.secrets": ("Secret",),
        "data.specs": ("open_data",),
        "encoders.folder": ("save_encoder",),
        "encoders.load": ("load_encoder",),
        "encoders.preprocess": ("ImagePreprocess",),
        "errors": ("SslguardError",),
        "schemes.exact.protocol": ("Protocol",),
        "schemes.exact.scheme": ("Exact",),
        "schemes.keyfile": ("load_key", "save_key"),
        "schemes.sslguard.scheme": ("CuredSSLGuard", "SSLGuard"),
        "suspects.opening": ("open_suspect",),
        "suspects.remote": ("Remote",),
        "training.recipes": ("Distillation", "Pretraining"),
    },
)
__all__ = [*_names(), "__version__"]


def __dir__() -> list[str]:
    return sorted(__all__)
