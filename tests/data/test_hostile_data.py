"""Data of strangers: each damaged or malicious file ends in one sentence, soon and in little memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sslguard.controls.members import read_population
from sslguard.data import texts
from sslguard.data.specs import open_data
from sslguard.errors import SslguardError, SuspectError, UsageError
from sslguard.suspects.logged import LoggedAnswers
from sslguard.suspects.memory import limited_memory

GIB = 1 << 30


@pytest.fixture(autouse=True)
def little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let each test take 1 GiB: what tries more fails here, and does not end the machine."""
    monkeypatch.setenv("SSLGUARD_CACHE", str(tmp_path / "cache"))
    with limited_memory(GIB):
        yield


def refused(spec: str) -> str:
    """Open and read a data set that must not be read; return the sentence."""
    with pytest.raises(SslguardError) as caught:
        open_data(spec).take([0])
    said = str(caught.value)
    assert caught.value.exit_code in (2, 3)
    assert 0 < len(said) < 1000
    return said


def sparse(path: Path, head: bytes, size: int) -> Path:
    """Write a file of a few bytes on disk that has `size` bytes."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def npy(header: str, content: bytes = b"", version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    text = header.encode("latin-1")
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + version + size + text + content


def described(**fields: Any) -> str:
    return repr({"descr": "<f4", "fortran_order": False, "shape": (2, 3), **fields}) + "\n"


NPY = {
    "nothing": b"",
    "magic alone": b"\x93NUMPY",
    "no magic": b"x" * 200,
    "version 0": npy(described(), bytes(24), b"\x00\x00"),
    "version 9": npy(described(), bytes(24), b"\x09\x00"),
    "empty header": npy(""),
    "header cut off": npy(described(), length=4000),
    "header of 4 GiB": npy(described(), version=b"\x02\x00", length=(1 << 32) - 1),
    "header is no dict": npy("[1, 2]\n"),
    "header is code": npy("__import__('os').getcwd()\n"),
    "header is a call": npy("dict(descr='<f4', fortran_order=False, shape=(2, 3))\n"),
    "nested": npy("(" * 2000 + ")" * 2000),
    "lists nested": npy("[" * 5000),
    "null bytes": npy("\x00" * 64),
    "no descr": npy("{'fortran_order': False, 'shape': (2, 3)}\n"),
    "one field more": npy(described(more=1), bytes(24)),
    "shape negative": npy(described(shape=(-1, 3)), bytes(24)),
    "shape is text": npy(described(shape="2, 3"), bytes(24)),
    "shape holds a float": npy(described(shape=(2.0, 3)), bytes(24)),
    "shape holds a truth": npy(described(shape=(True, 3)), bytes(24)),
    "shape overflows": npy(described(shape=(1 << 62, 1 << 62)), bytes(24)),
    "shape of a number of 5,000 digits": npy(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}\n"
    ),
    "shape of 70 axes": npy(described(shape=(1,) * 70), bytes(4)),
    "shape promises a terabyte": npy(described(shape=(1 << 20, 1 << 18)), bytes(24)),
    "objects": npy(described(descr="|O"), bytes(24)),
    "text": npy(described(descr="<U4"), bytes(96)),
    "fields": npy(described(descr=[("a", "<f4"), ("b", "<i4")]), bytes(48)),
    "fields of a gigabyte": npy(described(descr=[("a", "<f4", (1 << 28,))]), bytes(48)),
    "void of a gigabyte": npy(described(descr="|V1073741824"), bytes(48)),
    "complex": npy(described(descr="<c8"), bytes(48)),
    "dates": npy(described(descr="<M8[s]"), bytes(48)),
    "no such type": npy(described(descr="<q9"), bytes(48)),
    "empty": npy(described(shape=(0, 3))),
    "one axis": npy(described(shape=(6,)), bytes(24)),
    "three axes": npy(described(shape=(2, 3, 1)), bytes(24)),
    "no axis": npy(described(shape=()), bytes(4)),
    "cut off": npy(described(), bytes(23)),
    "too long": npy(described(), bytes(25)),
    "an archive": b"PK\x03\x04" + bytes(100),
    "a pickle": b"\x80\x04cos\nsystem\nX\x02\x00\x00\x00id\x85R.",
}


class TestNpy:
    # One axis holds labels, which are answers.
    @pytest.mark.parametrize("name", sorted(NPY.keys() - {"one axis"}))
    def test_as_answers(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "x.npy").write_bytes(NPY[name])
        with pytest.raises(SuspectError) as caught:
            LoggedAnswers(tmp_path / "x.npy").embed([0])  # type: ignore[arg-type]
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("content", NPY.values(), ids=NPY.keys())
    def test_as_pictures(self, content: bytes, tmp_path: Path) -> None:
        if content == NPY["three axes"]:
            content = npy(described(descr="<i8", shape=(2, 3, 5)), bytes(240))
        (tmp_path / "x.npy").write_bytes(content)
        refused(str(tmp_path / "x.npy"))

    @pytest.mark.parametrize("content", NPY.values(), ids=NPY.keys())
    def test_as_a_member_of_an_archive(self, content: bytes, tmp_path: Path) -> None:
        if content == NPY["three axes"]:
            content = npy(described(descr="<i8", shape=(2, 3, 5)), bytes(240))
        with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", content)
        refused(str(tmp_path / "x.npz"))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39], ids=str)
    def test_answers_that_are_no_numbers(self, value: float, tmp_path: Path) -> None:
        rows = np.ones((4, 3))
        rows[2, 1] = value
        np.save(tmp_path / "x.npy", rows)
        with pytest.raises(SuspectError):
            LoggedAnswers(tmp_path / "x.npy").embed([0, 1, 2, 3])  # type: ignore[arg-type]


def tar_header(kind: bytes, size: int, name: str = "a.jpg") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.USTAR_FORMAT)


def tar(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def pax(records: bytes) -> bytes:
    return tar_header(b"x", len(records)) + records.ljust(512, b"\0") + tar_header(b"0", 4) + b"text".ljust(1024, b"\0")


TARS = {
    "nothing": b"",
    "zeros": bytes(10240),
    "no tar": b"x" * 2000,
    "packed": gzip.compress(tar(("a.txt", b"a"))),
    "no items": tar(("a.json", b"{}")),
    "hidden": tar((".a.txt", b"a")),
    "cut off": tar(("a.txt", b"a" * 2000))[:1000],
    "texts and pictures": tar(("a.txt", b"a"), ("b.jpg", b"b")),
    "class is none": tar(("a.txt", b"a"), ("a.cls", b"x")),
    "class of 20 digits": tar(("a.txt", b"a"), ("a.cls", b"9" * 20)),
    "class is negative": tar(("a.txt", b"a"), ("a.cls", b"-1")),
    "one without a class": tar(("a.txt", b"a"), ("a.cls", b"1"), ("b.txt", b"b")),
    "not UTF-8": tar(("a.txt", b"\xff\xfe")),
    "no picture": tar(("a.jpg", b"not a picture")),
    "size negative": tar_header(b"0", 0)[:124] + b"-0000000010\0" + tar_header(b"0", 0)[136:] + bytes(1024),
    "size of 8 EiB": tar_header(b"0", 0)[:124] + b"\x80" + b"\xff" * 11 + tar_header(b"0", 0)[136:] + bytes(1024),
    "bad checksum": tar_header(b"0", 4)[:148] + b"0000000\0" + tar_header(b"0", 4)[156:] + bytes(1024),
    "pax without a length": pax(b"path=a\n"),
    "pax length of 0": pax(b"0 path=a\n"),
    "pax length beyond": pax(b"999 path=a.txt\n"),
    "pax size is none": pax(b"12 size=xyz\n"),
    "pax size of 30 digits": pax(b"39 size=" + b"9" * 30 + b"\n"),
    "sparse map": tar_header(b"S", 10) + bytes(1024),
}


class TestShards:
    @pytest.mark.parametrize("content", TARS.values(), ids=TARS.keys())
    def test_damaged(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "x.tar").write_bytes(content)
        refused(f"wds:{tmp_path}/x.tar")

    @pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"], ids=["pax", "global", "name", "link"])
    def test_a_header_of_gigabytes(self, kind: bytes, tmp_path: Path) -> None:
        sparse(tmp_path / "x.tar", tar_header(kind, 8 * GIB - 1024), 8 * GIB)
        assert "longer than the 1,048,576 that are read" in refused(f"wds:{tmp_path}/x.tar")

    def test_a_member_of_gigabytes(self, tmp_path: Path) -> None:
        sparse(tmp_path / "x.tar", tar_header(b"0", 8 * GIB - 1024), 8 * GIB)
        assert "more than 268,435,456 bytes" in refused(f"wds:{tmp_path}/x.tar")


TEXTS = {
    "nothing.txt": b"",
    "blank.txt": b"\n \n\t\n",
    "latin.txt": b"caf\xe9\n",
    "surrogate.txt": "\ud800\n".encode("utf-8", "surrogatepass"),
    "long.txt": b"a" * (1 << 18),
    "nothing.csv": b"",
    "head.csv": b"text,label\n",
    "quote.csv": b'text,label\n"never closed,1\n' + b"a,1\n" * 100_000,
    "fields.csv": b"text,label\na\n",
    "twice.csv": b"text,text\na,b\n",
    "label.csv": b"text,label\na,\n",
    "null.csv": b"text\na\x00b\n\x00",
    "none.jsonl": b"null\n",
    "list.jsonl": b"[]\n",
    "number.jsonl": b'{"text": 1}\n',
    "nan.jsonl": b"NaN\n",
    "deep.jsonl": b"[" * 60_000 + b"\n",
    "digits.jsonl": b'{"text": "a", "label": ' + b"9" * 5000 + b"}\n",
    "truth.jsonl": b'{"text": "a", "label": true}\n',
    "half.jsonl": b'{"text": "a", "label": 1}\n{"text": "b"}\n',
    "cut.txt.gz": gzip.compress(b"some text\n" * 100)[:30],
    "checksum.txt.gz": gzip.compress(b"some text\n")[:-8] + bytes(8),
    "plain.txt.gz": b"some text\n",
    "nothing.parquet": b"",
    "cut.parquet": b"PAR1" + bytes(100) + b"PAR1",
    "footer.parquet": b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1",
    "other.xyz": b"some text\n",
}


class TestTexts:
    @pytest.mark.parametrize(("name", "content"), TEXTS.items(), ids=TEXTS.keys())
    def test_damaged(self, name: str, content: bytes, tmp_path: Path) -> None:
        if name == "null.csv":
            content = b'text\n"\x00\n'
        (tmp_path / name).write_bytes(content)
        refused(f"text:{tmp_path / name}")

    def test_a_packed_file_that_unpacks_to_a_thousand_times_its_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(texts, "_SMALL", 1 << 16)
        (tmp_path / "x.txt.gz").write_bytes(gzip.compress((b"a" * 99 + b"\n") * 100_000))
        assert "200 times its own: unpack it yourself" in refused(f"text:{tmp_path}/x.txt.gz")
        assert not list((tmp_path / "cache").rglob("*.txt"))

    def test_a_long_text_that_stands_in_many_rows(self, tmp_path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        long = pyarrow.DictionaryArray.from_arrays(np.zeros(2000, np.int8), ["x" * 10_000_000])
        parquet.write_table(pyarrow.table({"text": long}), tmp_path / "x.parquet", compression="zstd")
        assert (tmp_path / "x.parquet").stat().st_size < 100_000
        assert "must stay below 131072 bytes, not 10,000,000" in refused(f"text:{tmp_path}/x.parquet")

    def test_many_rows_from_few_bytes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(texts, "_SMALL", 1 << 16)
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        many = pyarrow.DictionaryArray.from_arrays(np.zeros(10_000, np.int8), ["x" * 1000])
        parquet.write_table(pyarrow.table({"text": many}), tmp_path / "x.parquet", compression="zstd")
        assert "unpacks to more than" in refused(f"text:{tmp_path}/x.parquet")


def picture(form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, form, **options)
    return file.getvalue()


PICTURES = {
    "nothing.png": b"",
    "text.png": b"not a picture",
    "cut.png": picture("PNG")[:40],
    "cut.jpg": picture("JPEG")[:300],
    "cut.webp": picture("WEBP")[:30],
    "cut.gif": picture("GIF")[:20],
    "cut.bmp": picture("BMP")[:60],
    "cut.tif": picture("TIFF")[:40],
    "size.png": picture("PNG")[:16] + struct.pack(">II", 100_000, 100_000) + picture("PNG")[24:],
    "zero.png": picture("PNG")[:16] + struct.pack(">II", 0, 8) + picture("PNG")[24:],
    "size.bmp": picture("BMP")[:18] + struct.pack("<ii", 1 << 30, 1 << 30) + picture("BMP")[26:],
    "size.ppm": b"P6 99999 99999 255\n" + bytes(100),
    "digits.ppm": b"P6 " + b"9" * 5000 + b" 8 255\n" + bytes(100),
    "depth.ppm": b"P6 8 8 99999999\n" + bytes(400),
    "float.tif": b"",
    "script.svg": b"<svg onload='alert(1)'/>",
    "code.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "code.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
}


class TestPictures:
    @pytest.mark.parametrize(("name", "content"), PICTURES.items(), ids=PICTURES.keys())
    def test_damaged(self, name: str, content: bytes, tmp_path: Path) -> None:
        folder = tmp_path / "photos"
        folder.mkdir()
        (folder / name).write_bytes(content)
        if name == "float.tif":
            Image.new("F", (8, 8)).save(folder / name)
        refused(str(folder))


@pytest.mark.parametrize(
    "spec", ["{}.npy", "{}.npz", "text:{}.txt", "text:{}.csv", "text:{}.txt.gz", "text:{}.parquet", "wds:{}.tar"]
)
def test_a_pipe_is_never_waited_for(spec: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"x{spec.partition('{}')[2]}")
    found: list[str] = []
    reading = threading.Thread(target=lambda: found.append(refused(spec.format(tmp_path / "x"))), daemon=True)
    reading.start()
    reading.join(20)
    assert found


MEMBER = {"name": "a", "kind": "random", "parent": None}
POPULATIONS = {
    "nothing": b"",
    "list": b"[]",
    "no members": b"{}",
    "members are none": b'{"members": null}',
    "a member is a number": b'{"members": [1]}',
    "deep": b"[" * 100_000,
    "digits": b'{"members": ' + b"9" * 5000 + b"}",
    **{
        f"{field} {value!r:.20}": json.dumps({"members": [{**MEMBER, field: value}]}).encode()
        for field, value in (
            *(("name", name) for name in ("", ".", "..", "../a", "/etc", "a/b", ".hidden", "a\0b", None, 1, ["a"])),
            *(("kind", kind) for kind in (None, 1, ["random"], {}, "", "x" * 1000, "\x1b[2J", "a\nb")),
        )
    },
}


class TestPopulations:
    @pytest.mark.parametrize("content", POPULATIONS.values(), ids=POPULATIONS.keys())
    def test_damaged(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "population.json").write_bytes(content)
        with pytest.raises(UsageError):
            read_population(tmp_path)

    @pytest.mark.parametrize("name", ["population.json", "accuracies.json"])
    def test_of_gigabytes(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "population.json").write_text(json.dumps({"members": [MEMBER]}))
        sparse(tmp_path / name, b"{", 8 * GIB)
        with pytest.raises(UsageError, match="larger than 16777216 bytes"):
            read_population(tmp_path)

    @pytest.mark.parametrize("value", ["x", None, [], 2, -1, float("nan"), 10**400], ids=lambda v: f"{v!r:.10}")
    def test_accuracies(self, value: Any, tmp_path: Path) -> None:
        (tmp_path / "population.json").write_text(json.dumps({"members": [MEMBER]}))
        (tmp_path / "accuracies.json").write_text(json.dumps({"accuracy": {"a": value}}))
        with pytest.raises(UsageError, match="damaged"):
            read_population(tmp_path)
