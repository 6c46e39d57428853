"""Commands of claims that a third party can check: `protect`, `commit`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sslguard.cli.options import PRINTED, Output
from sslguard.cli.output import Result, say
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


def commit(
    key: Path,
    /,
    *,
    out: Path,
    authority: str | None = None,
    token: Path | None = None,
    authority_roots: Path | None = None,
    output: Output = PRINTED,  # noqa: ARG001
) -> Result:
    """Commit to a key in public, before any suspect is seen: a file that hides the key and binds its owner.

    Publish the file and its timestamp, or keep both: the timestamp alone proves when it was made. The same key gives
    the same file, so a timestamp can be added by the same command later.

    Args:
        key: Folder of the key.
        out: File of the commitment; its timestamp stands beside it as OUT.tsr.
        authority: Address of a timestamp authority (RFC 3161). It sees a hash, nothing else.
        token: File of a timestamp that was got otherwise, as by openssl ts and curl.
        authority_roots: Certificates, PEM, that must vouch for the authority; without them its signature is not
            checked here.
    """
    from sslguard.claims.commitment import publish, timestamp_file
    from sslguard.claims.timestamps import read_roots
    from sslguard.keyfile import open_key

    roots = () if authority_roots is None else read_roots(authority_roots)
    made, when = publish(open_key(key), out, authority=authority, token=token, roots=roots)
    if when is None:
        say("the commitment has no timestamp: without one it proves no date. See --authority and --token")
    stamped = None if when is None else when.isoformat()
    fields = {
        "commitment": str(out),
        "owner": made.document.owner,
        "sha256": made.document.digest,
        "timestamp": stamped,
        "timestamp_file": None if when is None else str(timestamp_file(out)),
    }
    rows = [("commitment", str(out)), ("SHA-256", made.document.digest), ("owner", made.document.owner)]
    checked = "" if roots else " (by an authority that was not checked)"
    return Result(fields, [*rows, ("timestamp", "none" if stamped is None else f"{stamped}{checked}")])


def chosen_seal(recipient: list[str] | None, ask_passphrase: bool) -> Seal | None:
    """What a new key is encrypted by: recipients, an asked passphrase, that of the environment, or nothing."""
    from sslguard.sealing import Seal, read_recipients, seal_from_environment, seal_from_prompt

    if recipient and ask_passphrase:
        raise UsageError("--recipient and --ask-passphrase exclude each other: age takes one kind")
    if recipient:
        return Seal(recipients=read_recipients(recipient))
    return seal_from_prompt() if ask_passphrase else seal_from_environment()


COMMANDS: tuple[Callable[..., Result], ...] = (protect, commit)
