"""Texts that name data sets, and what can be checked of them before torch is imported: see `specs` for the forms."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sslguard.errors import DataError, UsageError

SPLITS: Mapping[str, tuple[str, ...]] = {
    "fashion-mnist": ("train", "test"),
    "mnist": ("train", "test"),
    "mnist-5k": ("train", "test"),
    "stl10": ("unlabeled", "train", "test", "train+unlabeled"),
    "cifar10": ("train", "test"),
    "gtsrb": ("train", "test"),
    "svhn": ("train", "test", "extra"),
    "imagenet": ("train", "val"),
}
"""Known set → its splits."""
CLUTTERABLE = ("fashion-mnist", "mnist", "mnist-5k")
NPZ_SPLITS = ("train", "val", "test")
VADER_ROLES = ("mark", "thief", "verify", "probe_train", "probe_test")
TEXT_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")
# Eighteen digits fit an int64, and stay far from the length at which int() refuses.
_SLICE = re.compile(r"\[([0-9]{0,18}):([0-9]{0,18})\]")
_NPZ_SPLIT = re.compile(rf"(?P<path>.*\.npz):(?P<split>{'|'.join(NPZ_SPLITS)})", re.DOTALL)
_CLUTTERED = "cluttered-"
_TEXT = "text:"
_VADER = "vader:"
_ELSEWHERE = "vader:ROLE, text:FILE, or a path that exists"


@dataclass(frozen=True)
class DataName:
    """A specification, taken apart and checked.

    Attributes:
        kind: What `name` is: a file of texts, a role of vader's texts, a folder, an array file, or a known set.
        whole: The text without its slices.
        name: Path, role or name of a set.
        split: Split of a set or of an archive; empty for none.
        cluttered: Whether the set is the test bed made from `name`.
        slices: Start and stop of each slice, in the order in which they apply; None for an end left out.
    """

    kind: Literal["text", "vader", "folder", "npz", "npy", "set"]
    whole: str
    name: str
    split: str = ""
    cluttered: bool = False
    slices: tuple[tuple[int | None, int | None], ...] = ()


def check_data(spec: str) -> None:
    """Raise an error if `spec` cannot name a data set: see `parse_data`."""
    parse_data(spec)


def parse_data(spec: str) -> DataName:
    """Return the parts of a specification, checked as far as no file must be read for it.

    Raises:
        DataError: the text names no data set, or a path that does not exist; the message says what would do.
        UsageError: no such role of vader's texts.
    """
    whole, slices = _without_slices(spec)
    return replace(_parse_whole(whole), slices=slices)


def _without_slices(spec: str) -> tuple[str, tuple[tuple[int | None, int | None], ...]]:
    """Return the text before its slices, and the slices in the order in which they apply."""
    rest, slices = spec, list[tuple[int | None, int | None]]()
    while rest.endswith("]") and not _exists(rest):
        at = rest.rfind("[")
        match = _SLICE.fullmatch(rest, max(at, 0))
        if match is None:
            raise DataError(f"the slice at the end of {spec!r} cannot be read: write [START:STOP] in whole numbers")
        slices.append((int(match[1]) if match[1] else None, int(match[2]) if match[2] else None))
        rest = rest[:at]
    return rest, tuple(slices[::-1])


def _parse_whole(spec: str) -> DataName:
    if spec.startswith(_TEXT) and not _exists(spec):
        return DataName("text", spec, _file_of_texts(spec.removeprefix(_TEXT)))
    if spec.startswith(_VADER):
        if (role := spec.removeprefix(_VADER)) not in VADER_ROLES:
            raise UsageError(f"texts are there for {', '.join(VADER_ROLES)}, not for {role!r:.80}")
        return DataName("vader", spec, role)
    if found := _path_and_split(spec):
        return _parse_path(spec, *found)
    cluttered = spec.startswith(_CLUTTERED)
    name, colon, split = spec.removeprefix(_CLUTTERED).partition(":")
    known = CLUTTERABLE if cluttered else tuple(SPLITS)
    if name not in known:
        prefix = _CLUTTERED if cluttered else ""
        others = "" if cluttered else f", {_CLUTTERED}NAME for {', '.join(CLUTTERABLE)}, {_ELSEWHERE}"
        raise DataError(f"no data set {prefix + name!r}; known: {', '.join(prefix + k for k in known)}{others}")
    splits = SPLITS[name]
    if split not in splits:
        came = f"not {split!r}" if colon else f"and one must be named, such as {name}:{splits[0]}"
        raise DataError(f"{name} has the splits {', '.join(splits)}, {came}")
    return DataName("set", spec, name, split, cluttered)


def _file_of_texts(name: str) -> str:
    path = Path(name)
    try:
        there = path.is_file()
    except (OSError, ValueError):  # too long, or a null byte
        there = False
    if not there:
        raise DataError(f"there is no file {name!r:.200}: give text:FILE, such as text:reviews.csv")
    if path.suffix.lower() not in TEXT_SUFFIXES:
        raise DataError(f"texts are read from {', '.join(TEXT_SUFFIXES)}, not from {path.name!r:.200}")
    return name


def _path_and_split(spec: str) -> tuple[str, str] | None:
    """Return the path that `spec` is, and the split of an archive (empty for none); None for a named set."""
    if not _exists(spec) and (match := _NPZ_SPLIT.fullmatch(spec)) and _is_path(match["path"]):
        return match["path"], match["split"]
    return (spec, "") if _is_path(spec) else None


def _parse_path(spec: str, text: str, split: str) -> DataName:
    if not _exists(text):
        raise DataError(f"{text!r} does not exist: give a folder of pictures, a .npy or .npz file, or NAME:SPLIT")
    path = Path(text)
    if path.is_dir():
        return DataName("folder", spec, text)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return DataName("npz", spec, text, split)
    if suffix == ".npy":
        return DataName("npy", spec, text)
    raise DataError(f"{text!r} is neither a folder of pictures nor a .npy or .npz file; texts are opened by text:FILE")


def _is_path(text: str) -> bool:
    separators = {os.sep, os.altsep or os.sep, "/"}
    return text.startswith(".") or any(separator in text for separator in separators) or _exists(text)


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # too long, or a null byte
        return False
