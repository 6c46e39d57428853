"""The recipients of an encoder: their names, in the file `recipients.jsonl` beside the key.

A recipient's secrets are derived from the key's secret and from his name, so a name is all that is kept. The file is
not encrypted, even where the key is: use numbers for names that nobody may read. It is UTF-8, mode 0600. Its first line
is a JSON object of `format`, `key`, the key's public id, and `count`, the number of recipients, so that a list that was
cut is told. Each other line is one recipient, a JSON array:

    [name, [time of the first secret, of the second ...], time of the revocation or null]

Times are ISO 8601 with their zone. A revoked name stays in the file, and is compared in every trace.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from sslguard.errors import KeyFileError, OutputError, UsageError
from sslguard.files import canonical_json, read_plain, write_atomic
from sslguard.schemes.keyfile import RECIPIENTS, read_header

FORMAT = "sslguard-recipients"
MOST_RECIPIENTS = 2_000_000
MOST_BYTES = 1 << 30
LONGEST_NAME = 128


class Recipient(NamedTuple):
    """One recipient.

    Attributes:
        name: His name, in the Unicode normal form NFC.
        secrets: When each of his secrets was given out, ISO 8601. The last one is in use; the others were rotated out.
        revoked: When he was revoked, ISO 8601; None while he is served.
    """

    name: str
    secrets: tuple[str, ...]
    revoked: str | None = None

    @property
    def rotation(self) -> int:
        """How many secrets he had before the one in use."""
        return len(self.secrets) - 1


def checked_name(name: str) -> str:
    """Return a recipient's name in the normal form NFC.

    Raises:
        UsageError: It is empty, too long, has spaces around it, or holds what cannot be printed.
    """
    plain = unicodedata.normalize("NFC", name)
    if not 1 <= len(plain) <= LONGEST_NAME:
        raise UsageError(f"a recipient's name must have 1 to {LONGEST_NAME} characters, not {len(plain)}")
    if not plain.isprintable() or plain != plain.strip():
        raise UsageError(
            f"a recipient's name must be printable, without spaces around it, unlike {plain!a}: give another"
        )
    return plain


def read_recipients(folder: Path) -> list[Recipient]:
    """Return the recipients of the key in a folder, in the order in which they were added; none where none were.

    Raises:
        KeyFileError: The list is damaged, or belongs to another key.
    """
    path = folder / RECIPIENTS
    if not os.path.lexists(path):
        return []
    lines = read_plain(path, MOST_BYTES, KeyFileError).split(b"\n")
    if len(lines) < 2 or lines.pop() != b"" or len(lines) - 1 > MOST_RECIPIENTS:
        raise KeyFileError(f"{path} is damaged: it does not end with a line, or holds too many names")
    found = list[Recipient]()
    try:
        header = json.loads(lines[0])
        for line in lines[1:]:
            found.append(_recipient(json.loads(line)))
    except RecursionError:
        raise KeyFileError(f"{path} is damaged after line {len(found) + 1}: it is nested too deeply") from None
    except ValueError as error:
        raise KeyFileError(f"{path} is damaged after line {len(found) + 1}: {error!s:.200}") from None
    if not isinstance(header, dict) or header != {**_header(folder), "count": header.get("count")}:
        raise KeyFileError(f"{path} is no list of recipients of this key")
    if header["count"] != len(found):
        raise KeyFileError(f"{path} is damaged: it holds {len(found):,} recipients, and says {header['count']!s:.20}")
    if len({one.name for one in found}) != len(found):
        raise KeyFileError(f"{path} is damaged: a name comes twice")
    return found


def find(recipients: Iterable[Recipient], name: str) -> Recipient:
    """Return the recipient of this name. Raise UsageError if there is none."""
    plain = checked_name(name)
    for one in recipients:
        if one.name == plain:
            return one
    raise UsageError(f"the key has no recipient {plain!r}: `sslguard recipients add KEY NAME` adds one")


def add(folder: Path, names: Sequence[str]) -> list[Recipient]:
    """Add recipients to the list of the key in a folder, all of them or none, and return them.

    Raises:
        UsageError: A name cannot be one, comes twice, or is in the list, if only as revoked.
        KeyFileError: The list is damaged.
        OutputError: It cannot be written.
    """
    with _changed(folder) as found:
        known, new = {one.name for one in found}, list[Recipient]()
        now = _now()
        for name in map(checked_name, names):
            if name in known:
                raise UsageError(f"the recipient {name!r} is there already: `rotate` gives a fresh secret")
            known.add(name)
            new.append(Recipient(name, (now,)))
        if len(found) + len(new) > MOST_RECIPIENTS:
            raise UsageError(f"a key has at most {MOST_RECIPIENTS:,} recipients: make another key")
        found += new
    return new


def revoke(folder: Path, name: str) -> Recipient:
    """Mark a recipient as revoked, and return him. He is served no more, and is compared in every trace.

    Raises:
        UsageError: There is no such recipient, or he was revoked before.
    """
    with _changed(folder) as found:
        one = find(found, name)
        if one.revoked is not None:
            raise UsageError(f"the recipient {one.name!r} was revoked on {one.revoked}")
        changed = one._replace(revoked=_now())
        found[found.index(one)] = changed
    return changed


def rotate(folder: Path, name: str) -> Recipient:
    """Draw a fresh secret for a recipient, and return him; one who was revoked is served again.

    What he was given before is still compared in every trace.

    Raises:
        UsageError: There is no such recipient.
    """
    with _changed(folder) as found:
        one = find(found, name)
        changed = Recipient(one.name, (*one.secrets, _now()))
        found[found.index(one)] = changed
    return changed


@contextmanager
def _changed(folder: Path) -> Iterator[list[Recipient]]:
    """Yield the list, and write what it has become. Nobody else changes it meanwhile."""
    with _alone(folder):
        found = read_recipients(folder)
        yield found
        lines = [canonical_json({**_header(folder), "count": len(found)})]
        lines += [canonical_json(list(one)) for one in found]
        write_atomic(folder / RECIPIENTS, b"\n".join(lines) + b"\n", private=True)


def _header(folder: Path) -> dict[str, str]:
    return {"format": FORMAT, "key": read_header(folder)["id"]}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process changes the list. Where the system has no such locks, do not wait."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{folder} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _recipient(found: object) -> Recipient:
    if not isinstance(found, list) or len(found) != 3:
        raise ValueError("a line is no recipient")
    name, secrets, revoked = found
    if not isinstance(name, str) or checked_name(name) != name:
        raise ValueError("a name is not in its normal form")
    if not isinstance(secrets, list) or not secrets or not all(map(_is_time, secrets)):
        raise ValueError(f"{name!r} has no secrets, or times without a zone")
    if revoked is not None and not _is_time(revoked):
        raise ValueError(f"{name!r} has no time of revocation with its zone")
    return Recipient(name, tuple(secrets), revoked)


def _is_time(when: object) -> bool:
    try:
        return isinstance(when, str) and datetime.fromisoformat(when).tzinfo is not None
    except ValueError:
        return False


def _now() -> str:
    return datetime.now(UTC).replace(microsecond=0).isoformat()
