"""The errors that callers may catch.

::

    SslguardError                 exit code
    ├── UsageError                2   an argument, a specification or a setting is wrong
    │   ├── DataError             2   a data set cannot be opened, or holds what it must not
    │   ├── OutputError           2   a result cannot be written where it was asked for
    │   └── MissingExtraError     2   an optional dependency is not installed
    ├── EncoderError              3   an encoder's files are missing, damaged or of another shape
    ├── SuspectError              3   a suspect gave no usable answer
    ├── KeyFileError             3   a key is damaged, or does not fit what it is asked about
    ├── ClaimError               3   a commitment, a timestamp or a bundle is missing, damaged or forged
    └── RefusedError              4   the null distribution cannot support the claim asked for

Every message names the argument, the rule, what came, and what to do next. None holds a secret.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SslguardError(Exception):
    """Anything that sslguard refuses or cannot do. `exit_code` is what the command line returns."""

    exit_code = 2


class UsageError(SslguardError, ValueError):
    """An argument, a specification or a setting is wrong."""


class DataError(UsageError):
    """A data set cannot be opened, or holds what it must not."""


class OutputError(UsageError):
    """A result cannot be written where it was asked for."""


class MissingExtraError(UsageError):
    """An optional dependency is not installed; the message holds the command that installs it.

    Args:
        what: What needs it.
        extra: Name of the extra of `sslguard` that holds it; the empty string where `command` installs it.
        command: Command that installs it.
    """

    def __init__(self, what: str, extra: str = "", *, command: str = "") -> None:
        missing = "an extra" if extra else "a package"
        command = command or f"pip install 'sslguard[{extra}]'"
        super().__init__(f"{what} needs {missing} that is not installed: {command}")


class EncoderError(SslguardError):
    """An encoder's files are missing, damaged or of another shape."""

    exit_code = 3


class SuspectError(SslguardError):
    """A suspect gave no usable answer."""

    exit_code = 3


class KeyFileError(SslguardError):
    """A key is damaged, or does not fit what it is asked about."""

    exit_code = 3


class ClaimError(SslguardError):
    """A commitment, a timestamp or a bundle is missing, damaged or forged."""

    exit_code = 3


class RefusedError(SslguardError):
    """The null distribution cannot support the claim asked for."""

    exit_code = 4


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters; its class where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def required_by(what: str, extra: str) -> Iterator[None]:
    """Turn an ImportError of the block, which imports packages of an extra, into a MissingExtraError.

    Args:
        what: What needs them.
        extra: Name of the extra of `sslguard` that holds them.
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(what, extra) from error
