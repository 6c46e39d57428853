"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sslguard.errors import OutputError
from sslguard.files import atomic_file, atomic_folder, located, write_atomic


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_file_is_written_and_replaced_and_nothing_else_stays(tmp_path):
    target = tmp_path / "deep" / "er" / "file.bin"
    write_atomic(target, b"one")
    write_atomic(target, b"two")
    assert target.read_bytes() == b"two"
    assert names(target.parent) == {"file.bin"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_file_leaves_the_old_one(tmp_path, error):
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(target) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == {"file.bin"}


def test_private_files_are_their_owners_only(tmp_path):
    write_atomic(tmp_path / "secret", b"s", private=True)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_what_is_not_a_file_is_not_written_over(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for name in ("pipe", "folder", "file/below", "x" * 300):
        with pytest.raises(OutputError, match=r"cannot be written|not a file"):
            write_atomic(tmp_path / name, b"")
    assert names(tmp_path) == {"pipe", "folder", "file"}
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_folder_stands_there_whole(tmp_path):
    target = tmp_path / "a" / "out"
    with atomic_folder(target) as folder:
        (folder / "file").write_text("1")
        assert not target.exists()
    assert (target / "file").read_text() == "1"
    assert names(tmp_path / "a") == {"out"}


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    assert names(tmp_path / "out") == {"file"}


def test_a_folder_that_holds_something_is_replaced_only_on_consent(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    for replaces in (None, lambda folder: False):
        with pytest.raises(OutputError, match="not overwritten"), atomic_folder(target, replaces=replaces):
            pytest.fail("the block must not run")
    assert names(target) == {"old"}
    with atomic_folder(target, replaces=lambda folder: (folder / "old").exists()) as folder:
        (folder / "new").touch()
    assert names(target) == {"new"}
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_folder_leaves_the_old_one(tmp_path, error):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()

    def write_half() -> None:
        with atomic_folder(target, replaces=lambda _: True) as folder:
            (folder / "new").touch()
            raise error

    with pytest.raises(error):
        write_half()
    assert names(target) == {"old"}
    assert names(tmp_path) == {"out"}


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    monkeypatch.setattr("sslguard.files._exchange", lambda one, other: False)  # as where the system cannot
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    rename = Path.rename

    def refuse_the_new_one(self, to):
        if (self / "new").exists():
            raise OSError(28, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(OutputError, match="No space left"), atomic_folder(target, replaces=lambda _: True) as folder:
        (folder / "new").touch()
    assert names(target) == {"old"}
    assert names(tmp_path) == {"out"}


def test_a_folder_cannot_stand_where_a_file_is(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(OutputError), atomic_folder(tmp_path / name):
            pytest.fail("the block must not run")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home and working folder with a folder `a` that holds `x.npy`, and a file with a backslash in its name."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.npy").touch()
    (tmp_path / "b\\y").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_home_folder_is_found_behind_a_prefix_too(home):
    assert located("~/a/x.npy[0:5]") == f"{home}/a/x.npy[0:5]"
    assert located("hf:~/a@mean") == f"hf:{home}/a@mean"
    assert located("timm:vit_tiny_patch16_224.augreg:~/w.pth") == f"timm:vit_tiny_patch16_224.augreg:{home}/w.pth"
    assert located("~") == str(home)
    for text in ("", "a~b", "x.npz:train", "~nobody-of-this-name/x", "cluttered-mnist@3:train[0:5]", "a\0b", "~\0"):
        assert located(text) == text


@pytest.mark.skipif(os.sep != "/", reason="backslashes are separators here")
def test_backslashes_of_another_system_become_slashes_where_the_folder_exists(home):
    assert located("a\\x.npy") == "a/x.npy"
    assert located("a\\x.npy[0:10]") == "a/x.npy[0:10]"
    assert located("~\\a\\new") == f"{home}/a/new"
    assert located("local-dir:.\\a\\x@96") == "local-dir:./a/x@96"
    assert located("b\\y") == "b\\y"  # a file may have that name here
    assert located("c\\z") == "c\\z"
    assert located("C:\\nowhere\\x.npz:train") == "C:\\nowhere\\x.npz:train"
