"""The list of recipients beside a key: names, dates, and a file that may come from anybody."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sslguard.claims.openings import check_not_opened
from sslguard.crypto.sealing import Seal, new_identity
from sslguard.errors import KeyFileError, OutputError, UsageError
from sslguard.files import canonical_json
from sslguard.schemes.base import Key
from sslguard.schemes.keyfile import RECIPIENTS, load_key, reseal_key, save_key
from sslguard.tracing import recipients
from sslguard.tracing.recipients import LONGEST_NAME, add, checked_name, find, read_recipients, revoke, rotate


@pytest.fixture
def folder(tmp_path: Path, key_of: Callable[..., Key]) -> Path:
    save_key(key_of(), tmp_path / "key")
    return tmp_path / "key"


def test_names_are_kept_in_the_order_of_their_coming(folder: Path) -> None:
    assert read_recipients(folder) == []
    add(folder, ["bob", "Zoë AG"])
    add(folder, ["株式会社"])
    assert [one.name for one in read_recipients(folder)] == ["bob", "Zoë AG", "株式会社"]
    assert stat.S_IMODE((folder / RECIPIENTS).stat().st_mode) == 0o600


def test_two_spellings_of_one_name_are_one_recipient(folder: Path) -> None:
    add(folder, ["Zoe\u0308"])
    assert find(read_recipients(folder), "Zo\u00eb").name == "Zo\u00eb"
    with pytest.raises(UsageError, match="is there already"):
        add(folder, ["Zo\u00eb"])


@pytest.mark.parametrize(
    "name", ["", "a" * (LONGEST_NAME + 1), "a\nb", "a\x00", " a", "a ", "a\u202eb", "\ud800", "a\u2028b", "a\u200bb"]
)
def test_what_cannot_be_a_name_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(UsageError, match="a recipient's name must"):
        add(folder, ["good", name])
    assert read_recipients(folder) == []


def test_a_name_given_twice_at_once_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="is there already"):
        add(folder, ["a", "a"])
    assert read_recipients(folder) == []


def test_a_revoked_name_stays_and_a_rotated_one_has_another_secret(folder: Path) -> None:
    add(folder, ["a", "b"])
    assert revoke(folder, "a").revoked is not None
    with pytest.raises(UsageError, match="was revoked on"):
        revoke(folder, "a")
    with pytest.raises(UsageError, match="is there already"):
        add(folder, ["a"])
    assert rotate(folder, "a").rotation == 1
    first, second = read_recipients(folder)
    assert (first.name, first.rotation, first.revoked) == ("a", 1, None)
    assert (second.name, second.rotation, second.revoked) == ("b", 0, None)
    with pytest.raises(UsageError, match="no recipient 'c'"):
        rotate(folder, "c")


def test_the_list_stays_where_a_key_is_sealed(folder: Path) -> None:
    add(folder, ["a"])
    reseal_key(folder, new_identity()[1])
    assert [one.name for one in read_recipients(folder)] == ["a"]
    add(folder, ["b"])
    assert len(read_recipients(folder)) == 2


def test_a_list_of_another_key_is_refused(folder: Path, tmp_path: Path, key_of: Callable[..., Key]) -> None:
    add(folder, ["a"])
    save_key(key_of(), tmp_path / "other")
    (tmp_path / "other" / RECIPIENTS).write_bytes((folder / RECIPIENTS).read_bytes())
    with pytest.raises(KeyFileError, match="no list of recipients of this key"):
        read_recipients(tmp_path / "other")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"x",
        b"{}",
        b'["a"]',
        b'["a",[],null]',
        b'["a",["2026"],3]',
        b'["a",[3],null]',
        b'[" a",["2026"],null]',
        b'["Zoe\\u0308",["2026"],null]',
        b'["good",["2026"],null]',
        b"[" * 100_000,
        b'["\\ud800",["2026"],null]',
        b"\xff",
    ],
)
def test_a_damaged_line_is_refused(line: bytes, folder: Path) -> None:
    add(folder, ["good"])
    with (folder / RECIPIENTS).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(KeyFileError, match="is damaged"):
        read_recipients(folder)


def test_a_list_without_its_end_is_refused(folder: Path) -> None:
    add(folder, ["good", "other"])
    content = (folder / RECIPIENTS).read_bytes()
    (folder / RECIPIENTS).write_bytes(content[:-4])
    with pytest.raises(KeyFileError, match="is damaged"):
        read_recipients(folder)


def test_a_list_that_cannot_be_written_stays_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(folder, ["a"])

    def full(*_: object, **__: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(recipients, "write_atomic", full)
    with pytest.raises(OutputError, match="full"):
        add(folder, ["b"])
    monkeypatch.undo()
    assert [one.name for one in read_recipients(folder)] == ["a"]


def test_a_pipe_in_its_place_does_not_block(folder: Path) -> None:
    os.mkfifo(folder / RECIPIENTS)
    with pytest.raises(KeyFileError, match="not a plain file"):
        read_recipients(folder)


def test_a_name_whose_secret_was_opened_is_not_added_again(folder: Path) -> None:
    said = {"format": "sslguard-openings", "version": 1, "opened": {"recipient 0 Zoë AG": "2026-12-01T00:00:00+00:00"}}
    (folder / "openings.json").write_bytes(canonical_json(said) + b"\n")
    check_not_opened(folder, ["acme", "AG"])
    with pytest.raises(UsageError, match="a claim opened a secret"):
        check_not_opened(folder, ["acme", "Zoë AG"])


def test_a_list_that_was_cut_at_a_line_is_refused(folder: Path) -> None:
    add(folder, ["a", "b", "c"])
    path = folder / RECIPIENTS
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(KeyFileError, match="it holds 2 recipients, and says 3"):
        read_recipients(folder)


@pytest.mark.parametrize("when", ["2026-12-01", "2026-12-01T00:00:00", "yesterday"])
def test_a_time_without_its_zone_is_refused(folder: Path, when: str) -> None:
    add(folder, ["a"])
    path = folder / RECIPIENTS
    header, line = path.read_bytes().splitlines()
    name, (_, *_), revoked = json.loads(line)
    path.write_bytes(header + b"\n" + json.dumps([name, [when], revoked]).encode() + b"\n")
    with pytest.raises(KeyFileError, match="after line 1"):
        read_recipients(folder)


def test_many_names_are_read_in_little_time(folder: Path) -> None:
    """A list of 10^6 is read in seconds; here a fiftieth of it, whose lines are as the program writes them."""
    add(folder, ["first"])
    path, lines = (
        folder / RECIPIENTS,
        [b'["customer %d",["2026-12-01T00:00:00+00:00"],null]\n' % i for i in range(20_000)],
    )
    path.write_bytes(path.read_bytes().replace(b'"count":1,', b'"count":20001,') + b"".join(lines))
    assert len(read_recipients(folder)) == 20_001
    assert json.loads((folder / RECIPIENTS).read_bytes().splitlines()[0])["format"] == recipients.FORMAT


def test_the_key_is_read_as_before(folder: Path) -> None:
    add(folder, ["a"])
    assert load_key(folder).n_queries == 4


def test_a_name_of_greatest_length_is_one() -> None:
    assert checked_name("x" * LONGEST_NAME) == "x" * LONGEST_NAME
    assert isinstance(new_identity()[1], Seal)
