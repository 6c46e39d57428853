"""Texts that name suspects, and what can be checked of them before anything heavy is imported."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from sslguard.encoders.names import check_encoder
from sslguard.errors import EncoderError, MissingExtraError, SuspectError, UsageError
from sslguard.files import located

PREFIXES = ("http://", "https://")
LOGGED, ONNX = "answers:", "onnx:"
ONNX_OPTIONS = re.compile(r"(?P<file>.+)@(?P<options>[a-z0-9]+(,[a-z0-9]+)*)")


def check_suspect(spec: str) -> None:
    """Raise an error if `spec` cannot name a suspect: a form, a file or an extra is missing. Nothing is opened.

    Raises:
        UsageError: `spec` has no known form.
        SuspectError: The file or folder that it names is missing.
        MissingExtraError: It needs a package that is not installed.
    """
    if spec.startswith(PREFIXES):
        return
    spec = located(spec)
    if spec.startswith(LOGGED):
        file = spec.removeprefix(LOGGED)
        if not file:
            raise UsageError("answers: must be followed by a file of logged answers, as in answers:FILE.npy")
        if not Path(file).is_file():
            raise SuspectError(f"there is no file of logged answers {file:.200}")
        return
    if spec.startswith(ONNX):
        file = spec.removeprefix(ONNX)
        options = ONNX_OPTIONS.fullmatch(file)
        if not Path(file).is_file() and not (options and Path(options["file"]).is_file()):
            raise SuspectError(f"there is no ONNX file {file:.200}")
        if find_spec("onnxruntime") is None or find_spec("onnx") is None:
            raise MissingExtraError("a suspect onnx:FILE", "onnx")
        return
    try:
        check_encoder(spec)
    except EncoderError as error:
        raise SuspectError(f"the suspect {spec:.200} cannot be loaded: {error}") from error
