"""Data by paths: folders of pictures, `.npy` and `.npz` files, well-formed and hostile; and bounded memory."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.data_on_disk import everything, idx, noise, root, write_image
from sslguard.data import cache as cache_module
from sslguard.data.base import overlap, without_unreadable
from sslguard.data.folders import EXTENSIONS, decode
from sslguard.data.specs import open_data
from sslguard.errors import DataError

__all__ = ["root"]  # a fixture

MB = 1 << 20


# --- folders ---


def test_a_folder_keeps_its_order_and_stacks_pictures_of_one_size(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for k, name in enumerate(["c.png", "a.png", "b.PNG", ".hidden.png"]):
        write_image(folder / name, noise(6, 5, 3, seed=k))
    (folder / "notes.txt").write_text("left out")
    data = open_data(f"{folder}/")
    assert data.names == ["a.png", "b.PNG", "c.png"]
    assert data.labels is None
    batch = everything(data)
    assert batch.shape == (3, 3, 6, 5)
    assert batch.dtype == torch.uint8
    assert np.array_equal(batch[2].permute(1, 2, 0), noise(6, 5, 3, seed=0))
    assert overlap(open_data(f"{folder}[0:2]"), open_data(f"{folder}/../photos[1:3]")) == 1
    write_image(folder / "d.png", noise(6, 5))
    mixed = everything(open_data(str(folder)))
    assert [tuple(picture.shape) for picture in mixed] == [(3, 6, 5)] * 3 + [(1, 6, 5)]


def test_class_folders_become_labels_as_in_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    folder = tmp_path / "photos"
    for k, name in enumerate(["dog/x/2.png", "dog/1.png", "cat/9.png", "cat/10.png", "emu/1.bmp", "dog/x.png"]):
        write_image(folder / name, noise(4, 4, 3, seed=k))
    theirs, data = ImageFolder(str(folder)), open_data(str(folder))
    assert [str(folder / name) for name in data.names] == [path for path, _ in theirs.samples]
    assert data.labels.tolist() == theirs.targets
    assert list(data.classes) == theirs.classes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no pictures"),
        (["notes.txt"], "holds no pictures"),
        (["a.png", "cat/b.png"], "beside folders"),
        (["cat/a.png", "dog/notes.txt"], "dog is a class folder without pictures"),
    ],
)
def test_a_folder_that_is_no_data_set_is_named(tmp_path: Path, names: list[str], message: str) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in names:
        if name.endswith(".png"):
            write_image(folder / name, noise(4, 4))
        else:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("text")
    with pytest.raises(DataError, match=message):
        open_data(str(folder))


def encoded(pixels: np.ndarray, kind: str, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind)
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing; its checksums are right."""

    def chunk(content: bytes) -> bytes:
        return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR" + header) + chunk(b"IDAT" + zlib.compress(bytes(99)))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"just text", "damaged, or not a picture"),
        (b"", "damaged, or not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "damaged, or not a picture"),
        (encoded(noise(64, 64, 3), "PNG")[:3000], "cannot be read as a picture"),
        (encoded(noise(64, 64, 3), "JPEG")[:900], "cannot be read as a picture"),
        (png_of(9000, 9000), "above the limit"),
        (png_of(100000, 100000), "cannot be read as a picture.*bomb"),
        (encoded(np.ones((4, 4), np.float32), "TIFF"), "32-bit values"),
    ],
    ids=["text", "empty", "postscript", "cut png", "cut jpeg", "large", "bomb", "floats"],
)
def test_a_picture_that_cannot_be_decoded_is_named_when_it_is_taken(
    tmp_path: Path, content: bytes, message: str
) -> None:
    write_image(tmp_path / "photos" / "a.png", noise(4, 4))
    (tmp_path / "photos" / "b.png").write_bytes(content)
    data = open_data(str(tmp_path / "photos"))
    assert data.take([0]).shape == (1, 1, 4, 4)
    with pytest.raises(DataError, match=message) as caught:
        data.take([0, 1])
    assert str(tmp_path / "photos" / "b.png") in str(caught.value)


def test_formats_of_today_are_read_as_pillow_reads_them(tmp_path: Path) -> None:
    folder, pictures = tmp_path / "photos", [noise(8, 9, 3, seed=k) for k in range(4)]
    for name, pixels in zip(("a.gif", "b.avif", "c.JFIF", "d.PNG"), pictures, strict=True):
        write_image(folder / name, pixels)
    expected = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]
    np.testing.assert_array_equal(open_data(str(folder)).take(range(4)).numpy().transpose(0, 2, 3, 1), expected)


def test_grey_of_sixteen_bits_is_scaled_in_every_format(tmp_path: Path) -> None:
    grey = noise(5, 6)
    wide, folder = Image.fromarray(grey.astype(np.uint16) * 257), tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "a.tiff"):
        wide.save(folder / name)
    (folder / "a.pgm").write_bytes(b"P5 6 5 65535\n" + (grey.astype(">u2") * 257).tobytes())
    for path in sorted(folder.iterdir()):
        np.testing.assert_array_equal(decode(path)[0].numpy(), grey)


def test_pictures_of_a_kind_that_is_not_read_are_named(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.png", noise(4, 4))
    (tmp_path / "photos" / "b.HEIC").write_bytes(b"x")
    with pytest.raises(DataError, match=r"b\.HEIC is a picture of a kind that is not read: convert it"):
        open_data(str(tmp_path / "photos"))


def test_unreadable_items_are_left_out_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in "abdef":
        write_image(folder / f"{name}.png", noise(4, 4, seed=ord(name)))
    (folder / "c.png").write_bytes(b"no picture")
    data, bad = without_unreadable(open_data(str(folder)))
    assert len(data) == 5
    assert len(bad) == 1
    assert "c.png cannot be read" in bad[0]
    np.testing.assert_array_equal(data.take([2]), decode(folder / "d.png")[None])
    assert overlap(data.slice(2, 3), open_data(str(folder)).slice(3, 4)) == 1
    assert overlap(data.slice(2, 3), open_data(str(folder)).slice(4, 6)) == 0
    whole = open_data(str(folder)).slice(3, 5)
    assert without_unreadable(whole) == (whole, [])
    with pytest.raises(DataError, match="none of the 1 items"):
        without_unreadable(open_data(str(folder)).slice(2, 3))


def test_a_description_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        file.write(b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little"))
        file.truncate(1 << 30)
    tracemalloc.start()
    with pytest.raises(DataError, match="its description has"):
        open_data(str(tmp_path / "a.npy"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_arrays_of_any_name(tmp_path: Path) -> None:
    images = noise(3, 4, 5)[:, None]
    np.savez(tmp_path / "a.npz", images, np.arange(3))
    data = open_data(str(tmp_path / "a.npz"))
    assert np.array_equal(data.take(range(3)), images)
    assert data.labels is not None
    np.savez(tmp_path / "b.npz", faces=images)
    assert np.array_equal(open_data(str(tmp_path / "b.npz")).take(range(3)), images)
    np.savez(tmp_path / "c.npz", faces=images, houses=images[::-1])
    with pytest.raises(DataError, match=r"FILE\.npz#NAME"):
        open_data(str(tmp_path / "c.npz"))
    assert np.array_equal(open_data(f"{tmp_path}/c.npz#houses").take(range(3)), images[::-1])
    with pytest.raises(DataError, match="has no array 'dogs'; it holds faces, houses"):
        open_data(f"{tmp_path}/c.npz#dogs")


def test_every_mode_becomes_one_or_three_channels(tmp_path: Path) -> None:
    grey, colour, path = noise(5, 6), noise(5, 6, 3), tmp_path / "a.png"
    for mode, channels in {"L": 1, "1": 1, "LA": 1, "RGB": 3, "RGBA": 3, "P": 3}.items():
        path.write_bytes(encoded(grey if channels == 1 else colour, "PNG", mode))
        assert decode(path).shape == (channels, 5, 6)
    path.write_bytes(encoded(grey.astype(np.uint16) * 257, "PNG"))
    assert np.array_equal(decode(path)[0], grey)
    for extension in EXTENSIONS:
        write_image(tmp_path / f"b{extension}", grey)
        assert decode(tmp_path / f"b{extension}").shape[1:] == (5, 6)


# --- arrays ---


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 8, 9), (5, 1, 8, 9)),
        ((5, 3, 8, 9), (5, 3, 8, 9)),
        ((5, 8, 9, 1), (5, 1, 8, 9)),
        ((3, 8, 9), (3, 1, 8, 9)),
    ],
)
@pytest.mark.parametrize("dtype", ["u1", "<f4", ">f8", "f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_as_n_c_h_w(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...], dtype: str, order
) -> None:
    array = np.asarray(noise(*shape) if dtype == "u1" else noise(*shape) / 255, dtype=dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", images=array, labels=np.arange(shape[0]))
    want = np.moveaxis(array, 3, 1) if array.ndim == 4 and shape != expected else array.reshape(expected)
    for name in ("a.npy", "a.npz"):
        batch = everything(open_data(str(tmp_path / name)))
        assert batch.dtype == (torch.uint8 if dtype == "u1" else torch.float32)
        assert batch.shape == expected
        assert np.array_equal(batch.numpy(), want.astype(batch.numpy().dtype))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (noise(5, 3, 8, 3), "may be"),
        (noise(5, 1, 8, 1), "may be"),
        (noise(5, 8, 9, 4), "neither C = 1 nor C = 3"),
        (noise(8, 9, 3), "one colour picture"),
        (noise(5, 9), "pictures have shape"),
        (noise(1, 2, 3, 4, 5), "pictures have shape"),
        (np.uint8(3), "pictures have shape"),
        (noise(0, 8, 9), "holds no pictures|cannot be read"),
        (noise(5, 8, 9).astype(np.int64), "must be uint8"),
        (np.ones((5, 8, 9), bool), "must be uint8"),
        (np.ones((5, 8, 9), complex), "must be uint8"),
        (np.full((5, 8, 9), "x"), "must be uint8"),
        (np.zeros((5, 8, 9), [("r", "u1")]), "must be uint8"),
        (np.array([object()] * 3), "pickled|Python objects"),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_an_array_that_is_no_pictures_is_named(tmp_path: Path, array: np.ndarray, message: str, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "npy":
        np.save(path, array, allow_pickle=True)
    else:
        np.savez(path, images=array)
    with pytest.raises(DataError, match=message) as caught:
        open_data(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.01, 1.01])
def test_a_floating_picture_outside_its_range_is_found_when_it_is_taken(tmp_path: Path, value: float) -> None:
    array = np.full((6, 8, 9), 0.5, np.float32)
    array[4, 7, 8] = value
    np.save(tmp_path / "a.npy", array)
    data = open_data(str(tmp_path / "a.npy"))
    assert data.take([0, 3, 5]).shape == (3, 1, 8, 9)
    with pytest.raises(DataError, match="item 4 does not"):
        data.take([5, 4, 0])


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Bomb()))
    np.save(tmp_path / "array.npy", np.array([Bomb()] * 4), allow_pickle=True)
    np.savez(tmp_path / "pictures.npz", images=np.array([Bomb()] * 4))
    np.savez(tmp_path / "labels.npz", images=noise(4, 8, 8), labels=np.array([Bomb()] * 4))
    for name in ("raw.npy", "array.npy", "pictures.npz", "labels.npz"):
        with pytest.raises(DataError, match=name):
            open_data(str(tmp_path / name))
    assert not (tmp_path / "exploded").exists()


def test_npz_names_and_splits(tmp_path: Path) -> None:
    a, b = noise(4, 8, 8), noise(3, 8, 8, seed=1)
    path = tmp_path / "a.npz"
    for arrays in (
        {"images": a, "y": np.arange(4)},
        {"x": a, "labels": np.arange(4)[:, None]},
        {"x_train": a, "y_train": range(4)},
    ):
        np.savez_compressed(path, **arrays)
        data = open_data(str(path))
        assert np.array_equal(everything(data)[:, 0], a)
        assert data.labels.tolist() == [0, 1, 2, 3]
    np.savez(path, x_train=a, y_train=np.arange(4), test_images=b)
    assert open_data(f"{path}:train[1:3]").labels.tolist() == [1, 2]
    assert np.array_equal(everything(open_data(f"{path}:test"))[:, 0], b)
    assert open_data(f"{path}:test").labels is None
    assert overlap(open_data(f"{path}:test"), open_data(f"{path}:train")) == 0
    with pytest.raises(DataError, match=r"several arrays of pictures \(x_train, test_images\)"):
        open_data(str(path))
    with pytest.raises(DataError, match="one of the arrays x_val, val_images; it holds test_images, x_train, y_train"):
        open_data(f"{path}:val")


@pytest.mark.parametrize(
    "labels", [np.arange(3), np.arange(4.0), np.arange(4) - 1, np.zeros((4, 2), int), np.array(["a"] * 4)]
)
def test_labels_that_do_not_fit_are_named(tmp_path: Path, labels: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", images=noise(4, 8, 8), labels=labels)
    with pytest.raises(DataError, match=r"array labels: labels must be"):
        open_data(str(tmp_path / "a.npz"))


def test_an_archive_that_promises_more_than_it_holds_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    header = cache_module.npy_header((10**6, 1000, 1000), np.dtype("u1"))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header + bytes(100))
    with pytest.raises(DataError, match="is damaged"):
        open_data(str(tmp_path / "a.npz"))
    (tmp_path / "b.npy").write_bytes(header + bytes(100))
    with pytest.raises(DataError, match=r"b\.npy cannot be read"):
        open_data(str(tmp_path / "b.npy"))
    with zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images.npy", cache_module.npy_header((1, 8, 8), np.dtype("u1")) + bytes(64))
    with pytest.raises(DataError, match="savez"):
        open_data(str(tmp_path / "c.npz"))


@pytest.mark.parametrize("surplus", [-64, -1, 1])
def test_an_array_of_another_length_than_its_header_says_is_refused(tmp_path: Path, surplus: int) -> None:
    header = cache_module.npy_header((4, 8, 8), np.dtype("u1"))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header + bytes(256 + surplus))
    with pytest.raises(DataError, match="promises shape"):
        open_data(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("n", [100, 10**6], ids=["within what deflate can do", "beyond it"])
@pytest.mark.parametrize("cache_is_writable", [True, False])
def test_a_directory_that_lies_about_a_length_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, cache_is_writable: bool
) -> None:
    header, path = cache_module.npy_header((n, 32, 32), np.dtype("u1")), tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header + bytes(200))
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = struct.pack("<I", len(header) + n * 1024)
    path.write_bytes(content)
    if not cache_is_writable:
        monkeypatch.setenv("SSLGUARD_CACHE", str(path))
    written: list[int] = []
    original = cache_module._store
    monkeypatch.setattr(cache_module, "_store", lambda *a: (written.append(a[1]), original(*a)))
    with pytest.raises(DataError, match="is damaged"):
        open_data(str(path))
    assert written == ([len(header) + 100 * 1024] if n == 100 else [])


@pytest.mark.parametrize("cut", [0, 10, 200, 900])
def test_a_truncated_file_is_named(tmp_path: Path, cut: int) -> None:
    np.save(tmp_path / "a.npy", noise(20, 8, 8))
    np.savez(tmp_path / "a.npz", images=noise(20, 8, 8))
    for name in ("a.npy", "a.npz"):
        os.truncate(tmp_path / name, cut)
        with pytest.raises(DataError, match=f"{name} cannot be read as"):
            open_data(str(tmp_path / name))


def test_a_flipped_byte_inside_an_archive_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=noise(20, 64, 64))
    content = bytearray(path.read_bytes())
    content[60000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be unpacked: Bad CRC-32"):
        open_data(str(path))
    assert list((cache_module.cache_dir() / "unpacked").iterdir()) == []


# --- memory ---


@pytest.mark.parametrize("kind", ["npy", "npz", "idx.gz", "stl10"])
def test_memory_is_bounded_by_the_batch(root: Path, tmp_path: Path, kind: str) -> None:
    n, spec = 40 * MB // (28 * 28), str(tmp_path / f"a.{kind}")
    pictures = np.zeros((n, 28, 28), np.uint8)
    if kind == "npy":
        np.save(spec, pictures)
    elif kind == "npz":
        np.savez_compressed(spec, images=pictures)
    elif kind == "stl10":
        spec = "stl10:unlabeled"
        (root / "stl10_binary").mkdir()
        (root / "stl10_binary" / "unlabeled_X.bin").write_bytes(bytes(40 * MB // 27648 * 27648))
    else:
        spec, raw = "mnist:train", root / "MNIST" / "raw"
        raw.mkdir(parents=True)
        (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pictures), 1))
        (raw / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(n, np.uint8)))
    del pictures
    tracemalloc.start()
    data = open_data(spec)
    for batch in data.slice(len(data) - 64, len(data)).batches(32):
        assert len(batch) == 32
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * MB
