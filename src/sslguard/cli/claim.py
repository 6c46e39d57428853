"""Commands of claims that a third party can check: `protect`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sslguard.cli.options import PRINTED, Output
from sslguard.cli.output import Result
from sslguard.errors import UsageError

if TYPE_CHECKING:
    from sslguard.sealing import Seal


def protect(
    key: Path,
    /,
    *,
    recipient: list[str] | None = None,
    ask_passphrase: bool = False,
    clear: bool = False,
    output: Output = PRINTED,  # noqa: ARG001 - `main` reads it
) -> Result:
    """Encrypt a key with age where it stands, encrypt it anew, or take the encryption off.

    Without options it is encrypted by the passphrase in SSLGUARD_PASSPHRASE. An encrypted key is opened by that
    passphrase, by the age identity file that SSLGUARD_IDENTITY names, or by a passphrase asked for on the terminal.

    Args:
        key: Folder of the key.
        recipient: Encrypt it for this age public key, or those in this file; give several by repeating it.
        ask_passphrase: Encrypt it by a passphrase that is asked for.
        clear: Leave it in the clear.
    """
    from sslguard.keyfile import reseal_key

    seal = chosen_seal(recipient, ask_passphrase)
    if clear and (recipient or ask_passphrase):
        raise UsageError("--clear takes the encryption off; leave --recipient and --ask-passphrase out")
    if seal is None and not clear:
        raise UsageError("say how to protect the key: --recipient, --ask-passphrase, SSLGUARD_PASSPHRASE or --clear")
    stored = reseal_key(key, None if clear else seal)
    state = "encrypted with age" if stored.sealed else "in the clear"
    return Result({"key": str(key), "sealed": stored.sealed}, [("key", str(key)), ("protection", state)])


def chosen_seal(recipient: list[str] | None, ask_passphrase: bool) -> Seal | None:
    """What a new key is encrypted by: recipients, an asked passphrase, that of the environment, or nothing."""
    from sslguard.sealing import Seal, read_recipients, seal_from_environment, seal_from_prompt

    if recipient and ask_passphrase:
        raise UsageError("--recipient and --ask-passphrase exclude each other: age takes one kind")
    if recipient:
        return Seal(recipients=read_recipients(recipient))
    return seal_from_prompt() if ask_passphrase else seal_from_environment()


COMMANDS: tuple[Callable[..., Result], ...] = (protect,)
