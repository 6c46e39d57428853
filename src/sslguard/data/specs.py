"""Texts that open data sets: `NAME:SPLIT[START:STOP]`, or a path."""

from __future__ import annotations

import re
from collections.abc import Callable

from sslguard.data import sources
from sslguard.data.base import Data
from sslguard.data.testbed import Cluttered
from sslguard.errors import DataError

_SLICE = re.compile(r"^(?P<rest>.*?)\[(?P<start>\d*):(?P<stop>\d*)\]$")
_SETS: dict[str, tuple[Callable[[str], Data], tuple[str, ...]]] = {
    "fashion-mnist": (sources.fashion_mnist, ("train", "test")),
    "mnist-5k": (sources.mnist_5k, ("train", "test")),
}


def open_data(spec: str) -> Data:
    """The data set that `spec` names, such as `fashion-mnist:train[0:20000]`."""
    match = _SLICE.match(spec)
    if match:
        start, stop = match["start"], match["stop"]
        return open_data(match["rest"]).slice(int(start) if start else None, int(stop) if stop else None)
    if spec.startswith("cluttered-"):
        return Cluttered(open_data(spec.removeprefix("cluttered-")))
    name, _, split = spec.partition(":")
    if name not in _SETS:
        raise DataError(f"no data set {name!r}; known: {', '.join(_SETS)}")
    opener, splits = _SETS[name]
    if split not in splits:
        raise DataError(f"{name} has the splits {', '.join(splits)}, not {split!r}")
    return opener(split)
