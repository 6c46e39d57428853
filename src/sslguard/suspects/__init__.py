"""Suspects: encoders that run here, ONNX files, answers that were logged elsewhere, and servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslguard.lazy import exports

if TYPE_CHECKING:
    from sslguard.encoders.base import Suspect
    from sslguard.suspects.base import MAX_WIDTH, Counted, checked
    from sslguard.suspects.local import LocalSuspect, load_local
    from sslguard.suspects.logged import LoggedAnswers
    from sslguard.suspects.names import PREFIXES
    from sslguard.suspects.onnx import OnnxSuspect
    from sslguard.suspects.opening import open_suspect
    from sslguard.suspects.remote import Remote, RemoteSuspect, open_remote
    from sslguard.suspects.wrappers import Complete
else:
    __getattr__ = exports(
        __name__,
        {
            "wrappers": ("Complete",),
            "base": ("Counted", "MAX_WIDTH", "Suspect", "checked"),
            "local": ("LocalSuspect", "load_local"),
            "logged": ("LoggedAnswers",),
            "onnx": ("OnnxSuspect",),
            "names": ("PREFIXES",),
            "remote": ("Remote", "RemoteSuspect", "open_remote"),
            "opening": ("open_suspect",),
        },
    )

__all__ = [
    "MAX_WIDTH",
    "PREFIXES",
    "Complete",
    "Counted",
    "LocalSuspect",
    "LoggedAnswers",
    "OnnxSuspect",
    "Remote",
    "RemoteSuspect",
    "Suspect",
    "checked",
    "load_local",
    "open_remote",
    "open_suspect",
]
