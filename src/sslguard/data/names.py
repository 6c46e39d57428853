"""Texts that name data sets, and what can be checked of them before torch is imported: see `specs` for the forms."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sslguard.errors import DataError, UsageError
from sslguard.files import exists, located

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
TEXT_FORMS = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Endings of files that texts are read from."""
MAX_SHARDS = 1 << 16
# Eighteen digits fit an int64, and stay far from the length at which int() refuses.
_SLICE = re.compile(r"\[([0-9]{0,18}):([0-9]{0,18})\]")
_NPZ_PART = re.compile(rf"(?P<path>.*\.npz)(:(?P<split>{'|'.join(NPZ_SPLITS)})|#(?P<name>[^#]+))", re.DOTALL)
_NUMBERED = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")
_CLUTTERED = "cluttered-"
_TEXTS = {"text:": "", **{f"{form[1:]}:": form for form in TEXT_FORMS if form != ".txt"}}
_SHARDS = "wds:"
_VADER = "vader:"
_ELSEWHERE = "vader:ROLE, text:FILE, wds:SHARDS.tar, or a path that exists"


@dataclass(frozen=True)
class DataName:
    """A specification, taken apart and checked.

    Attributes:
        kind: What `name` is: a file of texts, a role of vader's texts, a folder, an array file, a pattern of tar
            shards, or a known set.
        whole: The text without its slices.
        name: Path, role or name of a set.
        split: Split of a set or of an archive; empty for none.
        part: Column of a table, or array of an archive; empty where none is named.
        form: How a file of texts is read, an ending of `TEXT_FORMS`; empty for its own ending.
        cluttered: Whether the set is the test bed made from `name`.
        seed: Of where the test bed places its pictures.
        slices: Start and stop of each slice, in the order in which they apply; None for an end left out.
    """

    kind: Literal["text", "vader", "folder", "npz", "npy", "shards", "set"]
    whole: str
    name: str
    split: str = ""
    part: str = ""
    form: str = ""
    cluttered: bool = False
    seed: int = 0
    slices: tuple[tuple[int | None, int | None], ...] = ()


def check_data(spec: str) -> None:
    """Raise an error if `spec` cannot name a data set: see `parse_data`."""
    for part in parts_of(spec):
        parse_data(part)


def parts_of(spec: str) -> list[str]:
    """Return the specifications that " + " joins in `spec`, itself where it names one set."""
    return [spec] if exists(spec) else spec.split(" + ")


def parse_data(spec: str) -> DataName:
    """Return the parts of a specification, checked as far as no file must be read for it.

    Raises:
        DataError: the text names no data set, or a path that does not exist; the message says what would do.
        UsageError: no such role of vader's texts.
    """
    whole, slices = _without_slices(located(spec))
    return replace(_parse_whole(whole), slices=slices)


def _without_slices(spec: str) -> tuple[str, tuple[tuple[int | None, int | None], ...]]:
    """Return the text before its slices, and the slices in the order in which they apply."""
    rest, slices = spec, list[tuple[int | None, int | None]]()
    while rest.endswith("]") and not exists(rest):
        at = rest.rfind("[")
        match = _SLICE.fullmatch(rest, max(at, 0))
        if match is None:
            raise DataError(f"the slice at the end of {spec!r} cannot be read: write [START:STOP] in whole numbers")
        slices.append((int(match[1]) if match[1] else None, int(match[2]) if match[2] else None))
        rest = rest[:at]
    return rest, tuple(slices[::-1])


def _parse_whole(spec: str) -> DataName:
    prefix = next((prefix for prefix in _TEXTS if spec.startswith(prefix)), None)
    if prefix is not None and not exists(spec):
        return _file_of_texts(spec, spec.removeprefix(prefix), _TEXTS[prefix])
    if spec.startswith(_SHARDS):
        return _shards(spec, spec.removeprefix(_SHARDS))
    if spec.startswith(_VADER):
        if (role := spec.removeprefix(_VADER)) not in VADER_ROLES:
            raise UsageError(f"texts are there for {', '.join(VADER_ROLES)}, not for {role!r:.80}")
        return DataName("vader", spec, role)
    if found := _path_and_split(spec):
        return _parse_path(spec, *found)
    cluttered = spec.startswith(_CLUTTERED)
    name, colon, split = spec.removeprefix(_CLUTTERED).partition(":")
    name, at, drawn = name.partition("@") if cluttered else (name, "", "")
    known = CLUTTERABLE if cluttered else tuple(SPLITS)
    if name not in known:
        prefix = _CLUTTERED if cluttered else ""
        others = "" if cluttered else f", {_CLUTTERED}NAME for {', '.join(CLUTTERABLE)}, {_ELSEWHERE}"
        raise DataError(f"no data set {prefix + name!r}; known: {', '.join(prefix + k for k in known)}{others}")
    splits = SPLITS[name]
    if split not in splits:
        came = f"not {split!r}" if colon else f"and one must be named, such as {name}:{splits[0]}"
        raise DataError(f"{name} has the splits {', '.join(splits)}, {came}")
    if at and not (drawn.isascii() and drawn.isdigit() and len(drawn) < 10):
        raise DataError(f"{spec!r:.80}: behind @ comes a whole number, the seed of where pictures are placed")
    return DataName("set", spec, name, split, cluttered=cluttered, seed=int(drawn or 0))


def _file_of_texts(spec: str, name: str, form: str) -> DataName:
    column = ""
    if not exists(name) and "#" in name:
        name, _, column = name.rpartition("#")
    path = Path(name)
    try:
        there = path.is_file()
    except (OSError, ValueError):  # too long, or a null byte
        there = False
    if not there:
        raise DataError(f"there is no file {name!r:.200}: give text:FILE, such as text:reviews.csv")
    if not form and text_form(path) not in TEXT_FORMS:
        raise DataError(f"texts are read from {', '.join(TEXT_FORMS)}, not from {path.name!r:.200}")
    return DataName("text", spec, name, part=column, form=form)


def text_form(path: Path) -> str:
    """Return the ending that tells how a file of texts is read, in lower case, without a .gz behind it."""
    packed = path.suffix.lower() == ".gz"
    return Path(path.stem if packed else path.name).suffix.lower()


def _shards(spec: str, pattern: str) -> DataName:
    names = expanded(pattern)
    if missing := [name for name in names if not exists(name)]:
        raise DataError(f"{len(missing)} of {len(names)} shards are missing; the first is {missing[0]!r:.200}")
    return DataName("shards", spec, pattern)


def expanded(pattern: str) -> list[str]:
    """Return the names that a pattern such as `shards-{000..099}.tar` stands for.

    Raises:
        DataError: a range counts down, or over more than `MAX_SHARDS` numbers.
    """
    match = _NUMBERED.search(pattern)
    if match is None:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + MAX_SHARDS:
        raise DataError(f"{match[0]} must count up, over at most {MAX_SHARDS} shards")
    width = len(match[1]) if match[1].startswith("0") else 0
    heads = [f"{pattern[: match.start()]}{number:0{width}d}" for number in range(first, last + 1)]
    return [head + tail for head in heads for tail in expanded(pattern[match.end() :])]


def _path_and_split(spec: str) -> tuple[str, str, str] | None:
    """Return the path that `spec` is, and split and array of an archive (empty for none); None for a named set."""
    if not exists(spec) and (match := _NPZ_PART.fullmatch(spec)) and _is_path(match["path"]):
        return match["path"], match["split"] or "", match["name"] or ""
    return (spec, "", "") if _is_path(spec) else None


def _parse_path(spec: str, text: str, split: str, part: str) -> DataName:
    if not exists(text):
        raise DataError(f"{text!r} does not exist: give a folder of pictures, a .npy or .npz file, or NAME:SPLIT")
    path = Path(text)
    if path.is_dir():
        return DataName("folder", spec, text)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return DataName("npz", spec, text, split, part)
    if suffix == ".npy":
        return DataName("npy", spec, text)
    if suffix == ".tar":
        return DataName("shards", spec, text)
    raise DataError(f"{text!r} is neither a folder of pictures nor a .npy or .npz file; texts are opened by text:FILE")


def _is_path(text: str) -> bool:
    separators = {os.sep, os.altsep or os.sep, "/", "\\"}
    return text.startswith(".") or any(separator in text for separator in separators) or exists(text)
