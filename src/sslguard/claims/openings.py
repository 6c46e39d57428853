"""The record of which parts of a key were opened to an examiner, and when: `openings.json` in the key's folder.

The file is a line of canonical JSON, an object of `format`, `version` and `opened`. `opened` maps a number to a time in
ISO 8601 with its zone; 0 is the whole key, i is sub-key i, 17 the secret order, "recipient 0 NAME" the first secret of
a recipient. An opened key shows nothing about younger suspects, because anybody who saw it could have marked them.

What it does not protect against: anybody who may write to the folder may write anything there. The record reminds the
owner; an examiner relies on what was published.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from sslguard.claims.documents import MAX_DOCUMENT, moment, parse_line, read_file
from sslguard.errors import ClaimError, OutputError, UsageError
from sslguard.files import canonical_json, write_atomic
from sslguard.schemes.exact.settings import MAX_SUB_KEYS
from sslguard.schemes.keyfile import OPENINGS, ORDER, StoredKey

FORMAT, VERSION = "sslguard-openings", 1
_RECIPIENT = re.compile(r"recipient [0-9]{1,7} .{1,128}")
_NUMBERS: dict[str, int | str] = {str(number): number for number in (*range(MAX_SUB_KEYS + 1), ORDER)}


def read_openings(folder: Path) -> dict[int | str, datetime]:
    """Read when each part of a key was opened first.

    Args:
        folder: Folder of the key.

    Returns:
        Time of the first opening by number; empty if nothing was opened.

    Raises:
        ClaimError: The record is damaged.
    """
    path = folder / OPENINGS
    if not os.path.lexists(path):
        return {}
    found = parse_line(read_file(path, MAX_DOCUMENT), str(path))
    opened = found.get("opened")
    if (found.get("format"), found.get("version")) != (FORMAT, VERSION) or not isinstance(opened, dict):
        raise ClaimError(f"{path} is no record of openings of version {VERSION}")
    if not all(number in _NUMBERS or _RECIPIENT.fullmatch(number) for number in opened):
        raise ClaimError(
            f"{path} must name the whole key, 0, or sub-keys up to {MAX_SUB_KEYS}, or the order, {ORDER}, or recipients"
        )
    return {_NUMBERS.get(number, number): moment(when, f"each opening in {path}") for number, when in opened.items()}


def opened_at(folder: Path | None, number: int | str) -> datetime | None:
    """Return since when somebody else may know a sub-key, or any part of the whole key. Recipients' keys are no parts.

    Args:
        folder: Folder of the key; None if it has none.
        number: Number of the sub-key; 0 for the whole key, `keyfile.ORDER` for the secret order, the name of a
            recipient's secret for his key.

    Returns:
        The time, or None if nobody else knows it.

    Raises:
        ClaimError: The record is damaged.
    """
    found = {} if folder is None else read_openings(folder)
    parts = [each for each in found if each in (0, number) or (number == 0 and isinstance(each, int))]
    return min((found[each] for each in parts), default=None)


def check_not_opened(folder: Path, names: Iterable[str]) -> None:
    """Check that new recipients have had no secret that a claim opened, as where their list was lost.

    Raises:
        UsageError: A name's secret is known to others.
        ClaimError: The record is damaged.
    """
    known = {number.split(" ", 2)[2] for number in read_openings(folder) if isinstance(number, str) and " " in number}
    for name in names:
        if name in known:
            raise UsageError(
                f"a claim opened a secret of the recipient {name!r}, whom the list does not hold: bring the list back "
                "from a copy, or choose another name"
            )


def check_recordable(stored: StoredKey) -> None:
    """Check that an opening can be recorded. Called before a suspect is asked.

    Raises:
        OutputError: The key's folder cannot be written to.
    """
    if stored.folder is not None and not os.access(stored.folder, os.W_OK):
        raise OutputError(f"{stored.folder} must be writable: a claim records there that it opened the key")


def record_opening(stored: StoredKey) -> None:
    """Record in the key's folder, if it has one, that the key is opened now. An earlier time is kept.

    Raises:
        OutputError: The folder cannot be written to.
    """
    if stored.folder is None:
        return
    found = {stored.number: datetime.now(UTC).replace(microsecond=0), **read_openings(stored.folder)}
    opened = {str(number): when.isoformat() for number, when in found.items()}
    line = canonical_json({"format": FORMAT, "version": VERSION, "opened": opened}) + b"\n"
    write_atomic(stored.folder / OPENINGS, line, private=True)
