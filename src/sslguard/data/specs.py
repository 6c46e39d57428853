"""Specs of data sets: `NAME:SPLIT`, `cluttered-NAME:SPLIT`, `vader:ROLE`, `text:FILE`, a path; or a slice of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sslguard.data import sources, vision
from sslguard.data.arrays import open_npy, open_npz
from sslguard.data.base import Data, Joined
from sslguard.data.folders import open_folder
from sslguard.data.names import DataName, expanded, parse_data, parts_of
from sslguard.data.shards import Shards
from sslguard.data.testbed import Cluttered
from sslguard.data.texts import TextFile
from sslguard.data.vader import texts_file

SETS: Mapping[str, Callable[[str], Data]] = {
    "fashion-mnist": sources.fashion_mnist,
    "mnist": sources.mnist,
    "mnist-5k": sources.mnist_5k,
    "stl10": vision.stl10,
    "cifar10": vision.cifar10,
    "gtsrb": vision.gtsrb,
    "svhn": vision.svhn,
    "imagenet": vision.imagenet,
}


def open_data(spec: str) -> Data:
    """Open the data set that `spec` names.

    ====================================  =========================================================
    `fashion-mnist:train[0:20000]`        a known set, a split, and items 0 ≤ i < 20000 of it
    `cluttered-fashion-mnist:train`       the test bed made from it (also of mnist and mnist-5k)
    `cluttered-fashion-mnist@3:train`     the same pictures, placed anew by seed 3
    `photos/`                             a folder of pictures, or of one folder a class
    `x.npy`, `x.npz`, `x.npz:train`       arrays of pictures, see `sslguard.data.arrays`; also `x.npz#NAME`
    `wds:shards-{000..099}.tar`           tar shards as WebDataset has them, see `sslguard.data.shards`
    `vader:thief`                         real sentences by role, see `sslguard.data.vader`
    `text:reviews.csv`                    texts of a .txt, .csv, .tsv, .jsonl or .parquet, see `sslguard.data.texts`
    `text:reviews.csv#review`             the column of that name; `csv:`, `parquet:` … for files of other endings
    `A + B`                               the items of A, then those of B
    ====================================  =========================================================

    A text that contains a path separator, starts with a dot or names something that exists is a path. Either
    end of a slice may be left out; slices count from 0 and never beyond the end.

    Raises:
        DataError: the text names no data set, or the set cannot be opened; the message says what would do.
        MissingExtraError: the set comes from a package that is not installed.
    """
    if len(parts := parts_of(spec)) > 1:
        return Joined([open_data(part) for part in parts])
    named = parse_data(spec)
    data = _open_whole(named)
    for start, stop in named.slices:
        data = data.slice(start, stop)
    return data


def _open_whole(named: DataName) -> Data:
    spec, path = named.whole, Path(named.name)
    if named.kind == "text":
        return TextFile(spec, path, column=named.part or None, form=named.form or None)
    if named.kind == "shards":
        return Shards(spec, [Path(name) for name in expanded(named.name)])
    if named.kind == "vader":
        return TextFile(spec, texts_file(named.name))
    if named.kind == "folder":
        return open_folder(spec, path)
    if named.kind == "npz":
        return open_npz(spec, path, named.split, named.part)
    if named.kind == "npy":
        return open_npy(spec, path)
    data = SETS[named.name](named.split)
    return Cluttered(data, seed=named.seed) if named.cluttered else data
