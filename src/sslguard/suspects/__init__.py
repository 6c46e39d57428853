"""Who is tested: encoders that run here, and answers that were logged elsewhere."""

from __future__ import annotations

from pathlib import Path

from sslguard.errors import UsageError
from sslguard.suspects.base import MAX_WIDTH, Counted, Suspect, checked
from sslguard.suspects.local import LocalSuspect, load_local
from sslguard.suspects.logged import LoggedAnswers

__all__ = [
    "MAX_WIDTH",
    "Counted",
    "LocalSuspect",
    "LoggedAnswers",
    "Suspect",
    "checked",
    "load_local",
    "open_suspect",
]

_LOGGED = "answers:"


def open_suspect(spec: str | Path) -> Suspect:
    """The suspect that `spec` names: `answers:FILE.npy`, else any specification of an encoder.

    Raises:
        UsageError: `spec` names neither.
        SuspectError: what it names is missing, damaged or of another shape.
    """
    if not isinstance(spec, str | Path) or not str(spec):
        raise UsageError(f"a suspect is named by a text or a path, not {spec!r}")
    if isinstance(spec, str) and spec.startswith(_LOGGED):
        file = spec.removeprefix(_LOGGED)
        if not file:
            raise UsageError("answers: must be followed by a file of logged answers, as in answers:FILE.npy")
        return LoggedAnswers(file, name=spec)
    return load_local(spec)
