"""The one function that opens suspects of every kind."""

from __future__ import annotations

from pathlib import Path

from sslguard.encoders.base import Suspect
from sslguard.encoders.load import load_encoder
from sslguard.encoders.wrapped import LocalSuspect
from sslguard.errors import EncoderError, SuspectError, UsageError
from sslguard.files import located
from sslguard.suspects.logged import LoggedAnswers
from sslguard.suspects.names import LOGGED, ONNX, PREFIXES
from sslguard.suspects.onnx import OnnxSuspect
from sslguard.suspects.remote import Remote, open_remote


def open_suspect(spec: str | Path, remote: Remote | None = None) -> Suspect:
    """Return the suspect that `spec` names.

    Args:
        spec: `answers:FILE.npy`, `onnx:FILE`, an http:// or https:// address, or an encoder specification.
        remote: How to ask an address, if the address does not tell (see `remote.guessed`); must be None for other
            suspects.

    Raises:
        UsageError: `spec` names none of these, or `remote` does not go with it.
        SuspectError: What it names is missing or damaged, or has the wrong shape.
    """
    if not isinstance(spec, str | Path) or not str(spec):
        raise UsageError(f"a suspect must be named by a text or a path, not {spec!r}")
    if isinstance(spec, str) and spec.startswith(PREFIXES):
        return open_remote(spec, remote)
    spec = located(spec) if isinstance(spec, str) else spec
    if remote is not None:
        raise UsageError("--protocol is for suspects behind an http:// or https:// address")
    if isinstance(spec, str) and spec.startswith(LOGGED):
        file = spec.removeprefix(LOGGED)
        if not file:
            raise UsageError("answers: must be followed by a file of logged answers, as in answers:FILE.npy")
        return LoggedAnswers(file, name=spec)
    if isinstance(spec, str) and spec.startswith(ONNX):
        return OnnxSuspect(spec.removeprefix(ONNX))
    try:
        return LocalSuspect(load_encoder(spec), str(spec))
    except EncoderError as error:
        raise SuspectError(f"the suspect {spec!s:.200} cannot be loaded: {error}") from error
