"""Tar shards, as WebDataset writes them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.data_on_disk import everything
from sslguard.data.base import overlap
from sslguard.data.specs import open_data
from sslguard.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 12, 9, 3), dtype=np.uint8)


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(2):
        members = {}
        for i in range(5 * number, 5 * number + 5):
            members |= {f"x/{i:04d}.cls": b"%d\n" % (i % 3), f"x/{i:04d}.png": png(PIXELS[i]), f"x/{i:04d}.json": b"{}"}
        write_tar(tmp_path / f"part-{number:03d}.tar", members)
    return tmp_path


def test_pictures_and_classes(shards: Path) -> None:
    data = open_data(f"wds:{shards}/part-{{000..001}}.tar")
    assert len(data) == 10
    np.testing.assert_array_equal(data.take([7, 0, 3]).numpy(), PIXELS[[7, 0, 3]].transpose(0, 3, 1, 2))
    assert data.labels is not None
    assert data.labels.tolist() == [i % 3 for i in range(10)]
    np.testing.assert_array_equal(data.slice(4, 6).take([1]).numpy(), PIXELS[[5]].transpose(0, 3, 1, 2))
    assert overlap(data.slice(0, 6), data.slice(4, 10)) == 2


def test_one_shard_by_its_path(shards: Path) -> None:
    assert len(open_data(f"{shards}/part-001.tar")) == 5


def test_texts(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", {f"{i}.txt": f"text {i} ü\n".encode() for i in range(3)})
    assert open_data(f"wds:{tmp_path}/t.tar").take([2, 0]) == ["text 2 ü", "text 0 ü"]


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"a.json": b"{}"}, "holds no pictures"),
        ({"a.txt": b"x", "b.png": png(PIXELS[0])}, "shards of their own"),
        ({"a.txt": b"x", "b.txt": b"y", "b.cls": b"1"}, "have a class"),
        ({"a.txt": b"x", "a.cls": b"one"}, "whole number"),
    ],
    ids=["nothing", "both", "some classes", "a class that is none"],
)
def test_what_is_refused(tmp_path: Path, members: dict[str, bytes], complaint: str) -> None:
    write_tar(tmp_path / "t.tar", members)
    with pytest.raises(DataError, match=complaint):
        open_data(f"wds:{tmp_path}/t.tar")


def test_damaged_files_are_named(tmp_path: Path, shards: Path) -> None:
    write_tar(tmp_path / "packed.tar", {"a.txt": b"x" * 9999}, "w:gz")
    with pytest.raises(DataError, match=r"packed\.tar cannot be read as a plain tar"):
        open_data(f"wds:{tmp_path}/packed.tar")
    with pytest.raises(DataError, match=r"1 of 3 shards are missing.*part-002"):
        open_data(f"wds:{shards}/part-{{000..002}}.tar")
    write_tar(tmp_path / "bad.tar", {"good.png": png(PIXELS[0]), "bad.png": b"no picture"})
    with pytest.raises(DataError, match=r"bad\.tar, member bad\.png"):
        open_data(f"wds:{tmp_path}/bad.tar").take([0, 1])
    (shards / "part-000.tar").write_bytes((shards / "part-000.tar").read_bytes()[:700])
    with pytest.raises(DataError, match=r"part-000\.tar"):
        everything(open_data(f"wds:{shards}/part-000.tar"))
