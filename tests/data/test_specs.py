"""Data by specs: their grammar, MNIST's files, and the paper's sets as torchvision keeps them."""

from __future__ import annotations

import gzip
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.data_on_disk import accept_any_checksum, everything, idx, noise, root, write_image, write_mnist
from sslguard.data import cache as cache_module
from sslguard.data import sources, texts, vader
from sslguard.data.base import overlap
from sslguard.data.names import SPLITS, TEXT_FORMS, VADER_ROLES, parse_data
from sslguard.data.specs import SETS, open_data
from sslguard.encoders.names import check_encoder
from sslguard.errors import DataError, EncoderError, UsageError

__all__ = ["root"]  # a fixture


# --- specs ---


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "no data set ''; known: fashion-mnist, mnist"),
        (
            "fashionmnist:train",
            "known: fashion-mnist, mnist, mnist-5k, stl10, cifar10, gtsrb, svhn, imagenet, clut",
        ),
        ("mnist", "splits train, test, and one must be named, such as mnist:train"),
        ("mnist:val", "splits train, test, not 'val'"),
        ("stl10:labeled", r"unlabeled, train, test, train\+unlabeled, not 'labeled'"),
        ("MNIST:train", "no data set 'MNIST'"),
        ("cluttered-cifar10:train", "known: cluttered-fashion-mnist, cluttered-mnist, cluttered-mnist-5k"),
        ("cluttered-mnist@:train", "behind @ comes a whole number, the seed"),
        ("cluttered-mnist@x:train", "behind @ comes a whole number, the seed"),
        ("cluttered-mnist@-1:train", "behind @ comes a whole number, the seed"),
        ("cluttered-mnist@1234567890:train", "behind @ comes a whole number, the seed"),
        ("mnist@3:train", "no data set 'mnist@3'"),
        ("cluttered-cluttered-mnist:train", "no data set 'cluttered-cluttered-mnist'"),
        ("mnist:train[5:2]", r"\[5:2\] must satisfy 0 <= start < stop <= 7"),
        ("mnist:train[3:3]", r"\[3:3\] must satisfy"),
        ("mnist:train[0:8]", r"has 7 items: the slice \[0:8\]"),
        ("mnist:train[0:5][0:6]", r"train\[0:5\] has 5 items"),
        ("mnist:train[-3:]", r"write \[START:STOP\]"),
        ("mnist:train[1]", r"write \[START:STOP\]"),
        ("mnist:train[1:2:3]", r"write \[START:STOP\]"),
        ("mnist:train[a:b]", r"write \[START:STOP\]"),
        ("mnist:train[0:99999999999999999999]", r"write \[START:STOP\]"),
        ("mnist:train[٠:٣]", r"write \[START:STOP\]"),
        ("mnist:train 0:3]", r"write \[START:STOP\]"),
        ("./nothing", "'./nothing' does not exist"),
        ("no/such.npz:train", "'no/such.npz' does not exist"),
        ("a\0/b", "does not exist"),
        ("x" * 5000, "no data set"),
    ],
)
def test_a_spec_that_names_nothing_gets_a_sentence(root: Path, spec: str, message: str) -> None:
    write_mnist(root / "MNIST" / "raw", packed=False)
    with pytest.raises(DataError, match=message):
        open_data(spec)


def test_slices_select_and_open_again(root: Path) -> None:
    pictures = write_mnist(root / "MNIST" / "raw", packed=False)
    for spec, chosen in {
        "mnist:train[2:5]": slice(2, 5),
        "mnist:train[:3]": slice(0, 3),
        "mnist:train[4:]": slice(4, 7),
        "mnist:train[:]": slice(0, 7),
        "mnist:train[1:6][2:4]": slice(3, 5),
    }.items():
        data = open_data(spec)
        assert np.array_equal(everything(data)[:, 0], pictures[chosen])
        assert data.labels.tolist() == list(range(7))[chosen]
        assert torch.equal(everything(open_data(data.spec)), everything(data))
        assert sum(len(batch) for batch in data.batches(2)) == len(data)
    with pytest.raises(UsageError, match="batch size must be at least 1"):
        next(data.batches(0))


def test_a_path_wins_over_a_name_and_over_a_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate(("mnist", "odd[0:1]", "cluttered-mnist:train")):
        write_image(tmp_path / name / "a.png", noise(4, 4, seed=k))
        assert np.array_equal(everything(open_data(name))[0, 0], noise(4, 4, seed=k))
    assert len(open_data("odd[0:1][0:1]")) == 1
    np.save("plain.npy", noise(5, 9, 9))
    assert len(open_data("plain.npy[1:3]")) == 2
    Path("notes.txt").write_text("x")
    with pytest.raises(DataError, match="neither a folder of pictures nor"):
        open_data("notes.txt")


@pytest.mark.heavy
def test_importing_specs_leaves_torchvision_alone() -> None:
    heavy = ("torchvision", "timm", "transformers", "mlxtend", "matplotlib", "scipy")
    code = f"import sys, sslguard.data.specs; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("spec", [f"{name}:{split}" for name, s in SPLITS.items() for split in s if name != "mnist-5k"])
def test_what_cannot_be_downloaded_says_where_to_put_the_files(
    root: Path, spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError) as caught:
        open_data(spec)
    message = str(caught.value)
    assert spec in message
    assert str(root) in message
    assert "SSLGUARD_DATA" in message
    assert "\n" not in message
    assert ("no network in tests" in message) is ("imagenet" not in spec)
    assert capsys.readouterr().out == ""


# --- MNIST and Fashion-MNIST ---


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_as_torchvision_reads_it(root: Path, packed: bool) -> None:
    from torchvision.datasets import MNIST

    write_mnist(root / "MNIST" / "raw", packed=packed)
    data = open_data("mnist:test")
    write_mnist(root / "MNIST" / "raw", packed=False)  # torchvision reads unpacked files only
    theirs = MNIST(str(root), train=False)
    assert torch.equal(everything(data)[:, 0], theirs.data)
    assert data.labels.tolist() == theirs.targets.tolist()
    bed, again, other = (open_data(f"cluttered-mnist{seed}:test") for seed in ("", "@0", "@3"))
    assert (bed.spec, again.spec, other.spec) == (*["cluttered-mnist:test"] * 2, "cluttered-mnist@3:test")
    assert everything(bed).shape == (7, 1, 48, 48)
    assert torch.equal(everything(bed), everything(again))
    assert not torch.equal(everything(bed), everything(other))
    assert other.labels.tolist() == bed.labels.tolist()
    assert torch.equal(everything(open_data("cluttered-mnist@3:test[2:4]")), everything(other)[2:4])


def test_fashion_mnist_comes_from_the_root_before_the_system_package(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SYSTEM_FASHION_MNIST", tmp_path / "system")
    theirs = write_mnist(tmp_path / "system", packed=True, seed=1)
    assert np.array_equal(everything(open_data("fashion-mnist:train"))[:, 0], theirs)
    ours = write_mnist(root / "FashionMNIST" / "raw", packed=True, seed=2)
    assert np.array_equal(everything(open_data("fashion-mnist:train"))[:, 0], ours)


def test_a_download_is_used(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from torchvision import datasets

    def download(where: str, download: bool) -> None:
        print("Extracting")  # noqa: T201
        assert download
        write_mnist(Path(where) / "FashionMNIST" / "raw", packed=False)

    monkeypatch.setattr(datasets, "FashionMNIST", download)
    assert len(open_data("fashion-mnist:train")) == 7
    assert capsys.readouterr() == ("", "Extracting\n")


def test_a_packed_file_is_unpacked_once_and_again_when_it_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = root / "MNIST" / "raw"
    write_mnist(raw, packed=True)
    first = everything(open_data("mnist:train"))
    unpacked = list((cache_module.cache_dir() / "unpacked").iterdir())
    assert len(unpacked) == 2
    opened: list[Any] = []
    monkeypatch.setattr(sources, "_idx_stream", lambda *a: opened.append(a))
    assert torch.equal(everything(open_data("mnist:train")), first)
    assert opened == []
    monkeypatch.undo()
    for env, where in (("SSLGUARD_CACHE", root.parent / "cache"), ("SSLGUARD_DATA", root)):
        monkeypatch.setenv(env, str(where))
    # A crash or a full disk may leave half a file behind: it is made again.
    for path in unpacked:
        os.truncate(path, 50)
    assert torch.equal(everything(open_data("mnist:train")), first)
    changed = write_mnist(raw, packed=True, n=6, seed=5)
    assert np.array_equal(everything(open_data("mnist:train"))[:, 0], changed)


def test_a_cache_that_cannot_be_written_costs_memory_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = write_mnist(root / "MNIST" / "raw", packed=True)
    (root / "file").write_text("in the way")
    monkeypatch.setenv("SSLGUARD_CACHE", str(root / "file"))
    assert np.array_equal(everything(open_data("mnist:train"))[:, 0], pictures)
    monkeypatch.setattr(cache_module, "MAX_IN_MEMORY", 1000)
    with pytest.raises(DataError, match="set SSLGUARD_CACHE to a folder with room"):
        open_data("mnist:train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as an IDX file"),
        (b"\0\0\x08", "cannot be read as an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "not an IDX file of unsigned bytes"),
        (b"\0\0\x08\x09" + bytes(36), "not an IDX file of unsigned bytes"),
        (idx(noise(7, 28, 28))[:-1], "promises 5488 bytes"),
        (idx(noise(7, 28, 28)) + b"x", "promises 5488 bytes"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + bytes(99), "promises 79228162458924105385300197375 bytes"),
        (b"\0\0\x08\x03\0\0\0\0\0\0\0\x1c\0\0\0\x1c", "without items"),
        (idx(noise(7, 28)), "has shape"),
        (idx(noise(6, 28, 28)), "has shape"),
    ],
    ids=["empty", "header", "floats", "rank", "short", "long", "exabytes", "no items", "rows", "other count"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_idx_file_is_named(root: Path, content: bytes, message: str, packed: bool) -> None:
    raw = root / "MNIST" / "raw"
    write_mnist(raw, packed=packed)
    path = raw / ("train-images-idx3-ubyte" + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=message) as caught:
        open_data("mnist:train")
    assert str(path) in str(caught.value)
    cache = cache_module.cache_dir() / "unpacked"
    assert not cache.exists() or not [p for p in cache.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("cut", [5, 2000])
def test_a_truncated_gzip_file_is_named(root: Path, cut: int) -> None:
    path = root / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    write_mnist(path.parent, packed=True)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz cannot be"):
        open_data("mnist:train")


# --- the paper's sets ---


def test_stl10_as_torchvision_reads_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    folder = root / "stl10_binary"
    folder.mkdir()
    for seed, (name, n) in enumerate({"train": 4, "test": 3, "unlabeled": 5}.items()):
        (folder / f"{name}_X.bin").write_bytes(noise(n, 3, 96, 96, seed=seed).tobytes())
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes(bytes([10, 1, 3, 2][:n]))
    accept_any_checksum(monkeypatch, "stl10")
    for split in ("train", "test", "unlabeled", "train+unlabeled"):
        data, theirs = open_data(f"stl10:{split}"), STL10(str(root), split=split)
        assert np.array_equal(everything(data), theirs.data)
        backwards = list(range(len(data)))[::-1]
        assert np.array_equal(data.take(backwards), theirs.data[::-1])
        assert data.labels is None if "unl" in split else data.labels.tolist() == theirs.labels.tolist()
    joined, part = open_data("stl10:train+unlabeled"), open_data("stl10:unlabeled")
    assert overlap(joined, part) == 5
    assert overlap(joined.slice(0, 4), part) == 0
    assert overlap(joined.slice(5, 6), part) == 1
    assert overlap(open_data("stl10:train"), part) == 0
    (folder / "test_y.bin").write_bytes(bytes([11, 1, 1]))
    with pytest.raises(DataError, match="3 labels from 1 to 10"):
        open_data("stl10:test")
    os.truncate(folder / "unlabeled_X.bin", 27648 + 1)
    with pytest.raises(DataError, match="cut off"):
        open_data("stl10:unlabeled")


def write_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for k, name in enumerate(
        ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    ):
        content = {"data": noise(2, 3072, seed=k), "labels": [k, (k + 5) % 10]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(c) for c in range(10)]}))


def test_cifar10_as_torchvision_reads_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    write_cifar10(root)
    with pytest.raises(DataError, match=r"corrupted.*cifar-10-python\.tar\.gz, unchanged"):
        open_data("cifar10:test")
    accept_any_checksum(monkeypatch, "cifar")
    for split in ("train", "test"):
        data, theirs = open_data(f"cifar10:{split}"), CIFAR10(str(root), train=split == "train")
        assert everything(data).shape == (10 if split == "train" else 2, 3, 32, 32)
        assert np.array_equal(everything(data).permute(0, 2, 3, 1), theirs.data)
        assert data.labels.tolist() == theirs.targets


def test_cifar10_is_unpickled_only_when_its_checksum_is_right(root: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(root / "exploded"),)

    write_cifar10(root)
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError):
        open_data("cifar10:test")
    assert not (root / "exploded").exists()


def test_svhn_as_torchvision_reads_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    (root / "svhn").mkdir()
    accept_any_checksum(monkeypatch, "svhn")
    for k, split in enumerate(("train", "test", "extra")):
        file = root / "svhn" / f"{split}_32x32.mat"
        savemat(file, {"X": noise(32, 32, 3, 4, seed=k), "y": np.array([[10], [1], [9], [2]], np.uint8)})
        data, theirs = open_data(f"svhn:{split}"), SVHN(str(root / "svhn"), split=split)
        assert np.array_equal(everything(data), theirs.data)
        assert data.labels.tolist() == theirs.labels.tolist() == [0, 1, 9, 2]


def test_gtsrb_as_torchvision_reads_it(root: Path) -> None:
    from torchvision.datasets import GTSRB

    base = root / "gtsrb"
    for k, name in enumerate(["00000/00000_00001.ppm", "00000/00000_00000.ppm", "00001/00000_00000.ppm"]):
        write_image(base / "GTSRB" / "Training" / name, noise(20 + k, 18, 3, seed=k))
        write_image(base / "GTSRB" / "Final_Test" / "Images" / f"0000{k}.ppm", noise(21, 22 + k, 3, seed=9 + k))
    (base / "GTSRB" / "Training" / "00001" / "GT-00001.csv").write_text("Filename;ClassId\n")
    listing = base / "GT-final_test.csv"
    listing.write_text("Filename;Width;ClassId\n00001.ppm;23;16\n00000.ppm;22;1\n00002.ppm;24;42\n")
    for split in ("train", "test"):
        data, theirs = open_data(f"gtsrb:{split}"), GTSRB(str(root), split=split)
        batch = everything(data)
        assert isinstance(batch, list)
        assert data.labels.tolist() == [label for _, label in theirs]
        for picture, (image, _) in zip(batch, theirs, strict=True):
            assert np.array_equal(picture.permute(1, 2, 0), np.asarray(image))
    for hostile in (
        "Filename;ClassId\n../x.ppm;1\n",
        "Filename;ClassId\na.ppm;-1\n",
        "a;b\n1;2\n",
        "",
        "Filename;ClassId\n",
    ):
        listing.write_text(hostile)
        with pytest.raises(DataError, match=r"GT-final_test\.csv must"):
            open_data("gtsrb:test")


def test_imagenet_is_a_folder_of_class_folders_and_never_downloaded(root: Path) -> None:
    from torchvision.datasets import ImageFolder

    for k, name in enumerate(["n02/b.JPEG", "n01/z.JPEG", "n01/a.JPEG"]):
        write_image(root / "imagenet" / "val" / name, noise(10 + k, 12, 3, seed=k))
    data, theirs = open_data("imagenet:val"), ImageFolder(str(root / "imagenet" / "val"))
    assert data.names == ["n01/a.JPEG", "n01/z.JPEG", "n02/b.JPEG"]
    assert data.classes == ("n01", "n02")
    assert data.labels.tolist() == theirs.targets == [0, 0, 1]
    for picture, (image, _) in zip(everything(data), theirs, strict=True):
        assert np.array_equal(picture.permute(1, 2, 0), np.asarray(image))
    with pytest.raises(DataError, match="never downloaded"):
        open_data("imagenet:train")


def test_what_is_checked_early_is_what_can_be_opened() -> None:
    assert SPLITS.keys() == SETS.keys()
    assert tuple(vader.FILES) == VADER_ROLES
    assert (*texts._READERS, ".parquet") == TEXT_FORMS


@pytest.mark.parametrize(
    ("spec", "path", "kind", "split", "slices"),
    [
        (r"C:\d\x.npz:train[0:5]", r"C:\d\x.npz", "npz", "train", ((0, 5),)),
        (r"C:\d\x.npy[2:]", r"C:\d\x.npy", "npy", "", ((2, None),)),
        (r"C:\my pictures", r"C:\my pictures", "folder", "", ()),
    ],
)
def test_a_drive_of_windows_is_no_name_of_a_set(spec, path, kind, split, slices, monkeypatch):
    monkeypatch.setattr("sslguard.data.names.exists", lambda text: text == path)
    monkeypatch.setattr(Path, "is_dir", lambda self: kind == "folder")
    named = parse_data(spec)
    assert (named.kind, named.name, named.split, named.slices) == (kind, path, split, slices)


def test_a_path_of_windows_that_is_missing_is_called_a_path():
    with pytest.raises(DataError, match="does not exist: give a folder"):
        parse_data(r"C:\nowhere[0:5]")
    with pytest.raises(EncoderError, match=r"there is no file C:\\w\.pth"):
        check_encoder(r"timm:resnet50:C:\w.pth@96")
