"""Specs of data sets: `NAME:SPLIT`, `cluttered-NAME:SPLIT`, `vader:ROLE`, `text:FILE`, a path; or a slice of one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from sslguard.data import sources, vision
from sslguard.data.arrays import NPZ_SPLITS, open_npy, open_npz
from sslguard.data.base import Data
from sslguard.data.folders import open_folder
from sslguard.data.testbed import Cluttered
from sslguard.data.texts import TextFile
from sslguard.data.vader import texts_file
from sslguard.errors import DataError

# Eighteen digits fit an int64, and stay far from the length at which int() refuses.
_SLICE = re.compile(r"\[([0-9]{0,18}):([0-9]{0,18})\]")
_NPZ_SPLIT = re.compile(rf"(?P<path>.*\.npz):(?P<split>{'|'.join(NPZ_SPLITS)})", re.DOTALL)
_CLUTTERED = "cluttered-"
_TEXT = "text:"
_VADER = "vader:"
_ELSEWHERE = "vader:ROLE, text:FILE, or a path that exists"

SETS: Mapping[str, tuple[Callable[[str], Data], tuple[str, ...]]] = {
    "fashion-mnist": (sources.fashion_mnist, ("train", "test")),
    "mnist": (sources.mnist, ("train", "test")),
    "mnist-5k": (sources.mnist_5k, ("train", "test")),
    "stl10": (vision.stl10, ("unlabeled", "train", "test", "train+unlabeled")),
    "cifar10": (vision.cifar10, ("train", "test")),
    "gtsrb": (vision.gtsrb, ("train", "test")),
    "svhn": (vision.svhn, ("train", "test", "extra")),
    "imagenet": (vision.imagenet, ("train", "val")),
}
CLUTTERABLE = ("fashion-mnist", "mnist", "mnist-5k")


def open_data(spec: str) -> Data:
    """Open the data set that `spec` names.

    ====================================  =========================================================
    `fashion-mnist:train[0:20000]`        a known set, a split, and items 0 ≤ i < 20000 of it
    `cluttered-fashion-mnist:train`       the test bed made from it (also of mnist and mnist-5k)
    `photos/`                             a folder of pictures, or of one folder a class
    `x.npy`, `x.npz`, `x.npz:train`       arrays of pictures, see `sslguard.data.arrays`
    `vader:thief`                         real sentences by role, see `sslguard.data.vader`
    `text:reviews.csv`                    texts of a .txt, .csv, .tsv or .jsonl, see `sslguard.data.texts`
    ====================================  =========================================================

    A text that contains a path separator, starts with a dot or names something that exists is a path. Either
    end of a slice may be left out; slices count from 0 and never beyond the end.

    Raises:
        DataError: the text names no data set, or the set cannot be opened; the message says what would do.
        MissingExtraError: the set comes from a package that is not installed.
    """
    whole, slices = _without_slices(spec)
    data = _open_whole(whole)
    for start, stop in slices:
        data = data.slice(start, stop)
    return data


def _without_slices(spec: str) -> tuple[str, list[tuple[int | None, int | None]]]:
    """Return the text before its slices, and the slices in the order in which they apply."""
    rest, slices = spec, []
    while rest.endswith("]") and not _exists(rest):
        at = rest.rfind("[")
        match = _SLICE.fullmatch(rest, max(at, 0))
        if match is None:
            raise DataError(f"the slice at the end of {spec!r} cannot be read: write [START:STOP] in whole numbers")
        slices.append((int(match[1]) if match[1] else None, int(match[2]) if match[2] else None))
        rest = rest[:at]
    return rest, slices[::-1]


def _open_whole(spec: str) -> Data:
    if spec.startswith(_TEXT) and not _exists(spec):
        return TextFile(spec, Path(spec.removeprefix(_TEXT)))
    if spec.startswith(_VADER):
        return TextFile(spec, texts_file(spec.removeprefix(_VADER)))
    if found := _path_and_split(spec):
        return _open_path(spec, *found)
    cluttered = spec.startswith(_CLUTTERED)
    name, colon, split = spec.removeprefix(_CLUTTERED).partition(":")
    known = CLUTTERABLE if cluttered else tuple(SETS)
    if name not in known:
        prefix = _CLUTTERED if cluttered else ""
        others = "" if cluttered else f", {_CLUTTERED}NAME for {', '.join(CLUTTERABLE)}, {_ELSEWHERE}"
        raise DataError(f"no data set {prefix + name!r}; known: {', '.join(prefix + k for k in known)}{others}")
    opener, splits = SETS[name]
    if split not in splits:
        came = f"not {split!r}" if colon else f"and one must be named, such as {name}:{splits[0]}"
        raise DataError(f"{name} has the splits {', '.join(splits)}, {came}")
    data = opener(split)
    return Cluttered(data) if cluttered else data


def _path_and_split(spec: str) -> tuple[str, str] | None:
    """Return the path that `spec` is, and the split of an archive (empty for none); None for a named set."""
    if not _exists(spec) and (match := _NPZ_SPLIT.fullmatch(spec)) and _is_path(match["path"]):
        return match["path"], match["split"]
    return (spec, "") if _is_path(spec) else None


def _open_path(spec: str, text: str, split: str) -> Data:
    if not _exists(text):
        raise DataError(f"{text!r} does not exist: give a folder of pictures, a .npy or .npz file, or NAME:SPLIT")
    path = Path(text)
    if path.is_dir():
        return open_folder(spec, path)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return open_npz(spec, path, split)
    if suffix == ".npy":
        return open_npy(spec, path)
    raise DataError(f"{text!r} is neither a folder of pictures nor a .npy or .npz file; texts are opened by text:FILE")


def _is_path(text: str) -> bool:
    separators = {os.sep, os.altsep or os.sep, "/"}
    return text.startswith(".") or any(separator in text for separator in separators) or _exists(text)


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # too long, or a null byte
        return False
