"""Encryption of files with age, by a passphrase or to recipients.

Any program that reads age files (age-encryption.org/v1) can open the result. Passphrases and identities are never
given on a command line. They are taken from

- `SSLGUARD_IDENTITY`, the name of an age identity file as `age-keygen` writes it, for files sealed to recipients;
- `SSLGUARD_PASSPHRASE`, or else a prompt if there is a terminal, for files sealed by a passphrase.

What it does not protect against: a program that reads this process's memory or environment, and weak passphrases (one
trial takes scrypt some seconds and a gigabyte of memory, no more).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslguard.errors import KeyFileError, SslguardError, UsageError
from sslguard.files import read_plain

PASSPHRASE, IDENTITY = "SSLGUARD_PASSPHRASE", "SSLGUARD_IDENTITY"
MAX_WORK_FACTOR = 22
"""Largest log₂ N of scrypt that is accepted; it takes 4 GiB of memory. age itself refuses more."""
MAX_RECIPIENTS = 64
_MAX_TEXT = 1 << 16  # bytes of a file of identities or recipients
_MAGIC = b"age-encryption.org/v1\n"
_SCRYPT = re.compile(rb"-> scrypt [A-Za-z0-9+/]{22} ([1-9][0-9]?)\n")


@dataclass(frozen=True, repr=False)
class Seal:
    """Who can open encrypted content: holders of a passphrase, or of the identity of one of the recipients.

    Attributes:
        passphrase: Not empty; None if there are recipients.
        recipients: X25519 public keys, "age1…", at most 64; empty if there is a passphrase.
    """

    passphrase: str | None = None
    recipients: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check passphrase and recipients."""
        if (self.passphrase is None) == (not self.recipients):
            raise UsageError("a seal takes a passphrase or recipients, and not both")
        if self.passphrase is not None and not self.passphrase.strip():
            raise UsageError("the passphrase must not be empty")
        if len(self.recipients) > MAX_RECIPIENTS:
            raise UsageError(f"a seal takes at most {MAX_RECIPIENTS} recipients, not {len(self.recipients)}")
        self._keys()

    def _keys(self) -> list[Any]:
        import pyrage  # type: ignore[import-untyped]

        keys = []
        for text in self.recipients:
            try:
                keys.append(pyrage.x25519.Recipient.from_str(text))
            except pyrage.RecipientError:
                # A user may give an identity by mistake. It must not appear in a log.
                shown = "an identity, which is secret" if text.upper().startswith("AGE-SECRET") else f"{text!r:.80}"
                raise UsageError(f"a recipient is an age public key (age1...), not {shown}") from None
        return keys

    def close(self, content: bytes) -> bytes:
        """Encrypt `content` and return it as a binary age file."""
        import pyrage

        if self.passphrase is not None:
            return bytes(pyrage.passphrase.encrypt(content, self.passphrase))
        return bytes(pyrage.encrypt(content, self._keys()))

    def __repr__(self) -> str:
        """Return a text without the passphrase."""
        return "Seal(passphrase hidden)" if self.recipients == () else f"Seal(recipients={len(self.recipients)})"


def read_recipients(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the public keys of recipients.

    Args:
        texts: Public keys ("age1…"), or names of files with one public key a line and comments after #.

    Raises:
        UsageError: A file cannot be read, or holds no public key.
    """
    found: list[str] = []
    for text in texts:
        if text.lower().startswith("age1"):
            found.append(text)
            continue
        lines = _lines(Path(text), "a recipient is an age public key (age1...) or a file of them", UsageError)
        if not lines:
            raise UsageError(f"{text} holds no recipient")
        found += lines
    return tuple(found)


def seal_from_environment() -> Seal | None:
    """Return a seal by the passphrase in `SSLGUARD_PASSPHRASE`, or None if it is not set."""
    passphrase = os.environ.get(PASSPHRASE)
    return Seal(passphrase) if passphrase else None


def seal_from_prompt() -> Seal:
    """Ask for a passphrase twice on the terminal and return a seal by it.

    Raises:
        UsageError: There is no terminal, the passphrase is empty, or the two answers differ.
    """
    if not _has_terminal():
        raise UsageError(f"there is no terminal to ask for a passphrase on: set {PASSPHRASE}, or name recipients")
    first, second = _ask("Passphrase for the key: "), _ask("The same again: ")
    if first != second:
        raise UsageError("the two passphrases differ: nothing was written")
    return Seal(first)


def unseal(content: bytes, what: str) -> bytes:
    """Decrypt what `Seal.close` encrypted, with an identity or passphrase from the environment or a prompt.

    Args:
        content: Content of an age file.
        what: Its name, for error messages.

    Raises:
        KeyFileError: No identity or passphrase opens it, or it is damaged.
    """
    if not content.startswith(_MAGIC):
        raise KeyFileError(f"{what} is damaged: not an age file")
    scrypt = _SCRYPT.match(content, len(_MAGIC))
    if scrypt is None:
        return _by_identity(content, what)
    if int(scrypt[1]) > MAX_WORK_FACTOR:
        raise KeyFileError(
            f"{what} asks for scrypt with 2^{int(scrypt[1])} blocks; at most 2^{MAX_WORK_FACTOR} are tried"
        )
    return _by_passphrase(content, what)


def open_with(identity: str, content: bytes, what: str) -> bytes:
    """Decrypt what was sealed to the public key of an identity.

    Args:
        identity: An age identity, "AGE-SECRET-KEY-1…".
        content: Content of an age file.
        what: Its name, for error messages.

    Raises:
        KeyFileError: `identity` is no identity or does not open the content, or the content is damaged.
    """
    return _decrypt(content, _identities([identity], what), what)


def new_identity() -> tuple[str, Seal]:
    """Generate an identity and return it with a seal that only this identity opens."""
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    return str(identity), Seal(recipients=(str(identity.to_public()),))


def _by_passphrase(content: bytes, what: str) -> bytes:
    import pyrage

    passphrase = os.environ.get(PASSPHRASE)
    if not passphrase:
        if not _has_terminal():
            raise KeyFileError(f"{what} is sealed by a passphrase: set {PASSPHRASE}, or run where it can be asked for")
        passphrase = _ask(f"Passphrase of {what}: ")
    try:
        return bytes(pyrage.passphrase.decrypt(content, passphrase))
    except pyrage.DecryptError:
        raise KeyFileError(f"the passphrase does not open {what}, or the file is damaged") from None


def _by_identity(content: bytes, what: str) -> bytes:
    named = os.environ.get(IDENTITY)
    if not named:
        raise KeyFileError(f"{what} is sealed to recipients: set {IDENTITY} to the name of an age identity file")
    lines = _lines(Path(named), f"{IDENTITY} must name an age identity file", KeyFileError)
    if not lines:
        raise KeyFileError(f"{named}, which {IDENTITY} names, holds no identity")
    return _decrypt(content, _identities(lines, named), what)


def _identities(texts: Sequence[str], where: str) -> list[Any]:
    import pyrage

    try:
        return [pyrage.x25519.Identity.from_str(text) for text in texts]
    except pyrage.IdentityError:
        raise KeyFileError(f"{where} must hold only age identities (AGE-SECRET-KEY-1...)") from None


def _decrypt(content: bytes, identities: list[Any], what: str) -> bytes:
    import pyrage

    try:
        return bytes(pyrage.decrypt(content, identities))
    except pyrage.DecryptError:
        raise KeyFileError(f"no identity at hand opens {what}, or the file is damaged") from None


def _lines(path: Path, rule: str, kind: type[SslguardError]) -> list[str]:
    """Return the lines of a small text file, without comments and empty lines. No message shows their content."""
    try:
        text = read_plain(path, _MAX_TEXT, kind).decode("ascii")
    except UnicodeDecodeError:
        raise kind(f"{rule}: {path!s:.200} cannot be read as one") from None
    except SslguardError as error:
        raise kind(f"{rule}: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _has_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def _ask(prompt: str) -> str:
    from getpass import getpass

    answer = getpass(prompt, stream=sys.stderr)
    if not answer.strip():
        raise UsageError("the passphrase must not be empty")
    return answer
