"""Known innocents on disk: members of a population, and controls by specification."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import WEIGHTS, load_folder, weights_hash
from sslguard.encoders.load import load_encoder
from sslguard.encoders.names import DESCRIPTION
from sslguard.errors import EncoderError, MissingExtraError, UsageError
from sslguard.files import read_plain

ACCURACIES = "accuracies.json"
MAX_INDEX = 1 << 24  # bytes
TESTBED = "sslguard_testbed"  # the package that holds the controls named "shipped"


@dataclass(frozen=True)
class Member:
    """One known innocent of a made population; its network is read when it is asked for.

    Attributes:
        accuracy: of a linear probe on it, in [0, 1]; None where `probe_population` did not measure it.
    """

    name: str
    kind: str
    parent: str | None
    folder: Path
    accuracy: float | None = None

    def load(self) -> Encoder:
        """Read the network."""
        return load_folder(self.folder)


def read_population(folder: Path) -> list[Member]:
    """Return the members of a folder that `make_population` wrote, in its order.

    Raises:
        UsageError: The folder holds no population, or one of its files is damaged.
    """
    index = folder / "population.json"
    try:
        members = json.loads(read_plain(index, MAX_INDEX, UsageError))["members"]
        if not all(names_a_folder(m["name"]) and _names_a_kind(m["kind"]) for m in members):
            raise ValueError("a member is named as no folder can be, or its kind as no kind is")
        found = [Member(m["name"], m["kind"], m["parent"], folder / m["name"]) for m in members]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise UsageError(f"{folder} holds no population of controls: {error}") from error
        raise UsageError(f"{index} is damaged: make the population again") from error
    accuracies = _accuracies(folder)
    return [replace(member, accuracy=accuracies.get(member.name)) for member in found]


def _accuracies(folder: Path) -> dict[str, float]:
    """Return member's name → accuracy of its probe in [0, 1]; empty where none was measured.

    Raises:
        UsageError: the file is damaged.
    """
    path = folder / ACCURACIES
    if not path.exists():
        return {}
    try:
        found = {
            str(name): float(value)
            for name, value in json.loads(read_plain(path, MAX_INDEX, UsageError))["accuracy"].items()
        }
        if not all(0 <= value <= 1 for value in found.values()):
            raise ValueError("an accuracy lies in [0, 1]")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is damaged: delete it and probe the population again") from error
    return found


def _names_a_kind(kind: object) -> bool:
    return isinstance(kind, str) and 0 < len(kind) <= 40 and kind.isprintable()


def names_a_folder(name: str) -> bool:
    """Return whether `name` is one folder inside another, and no hidden one."""
    return bool(name) and Path(name).name == name and not name.startswith(".") and "\0" not in name


@dataclass(frozen=True)
class Control:
    """One known innocent that a specification names; its network is read when it is asked for.

    Attributes:
        name: the member's, or the specification of a single encoder.
        source: the member's folder, or the specification.
        kind: how it was made, such as "independent"; "unknown" for a single encoder.
    """

    name: str
    source: Path | str
    kind: str = "unknown"

    def load(self) -> Encoder:
        """Read the network."""
        return load_encoder(self.source)

    def fingerprint(self) -> str:
        """Return the SHA-256, hex, of what its answers come from: both files of a folder, else what it is once loaded.

        Raises:
            EncoderError: a file is missing or cannot be read.
        """
        folder, digest = Path(self.source), hashlib.sha256()
        if not folder.is_dir():
            encoder = self.load()
            described = [encoder.architecture, encoder.preprocess.to_json(), weights_hash(encoder.module)]
            return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        for path in (folder / DESCRIPTION, folder / WEIGHTS):
            try:
                if not path.is_file():  # a pipe would block
                    raise EncoderError(f"{folder} is not a whole encoder: it holds no {path.name}")
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise EncoderError(f"{path} cannot be read: {error.strerror}") from error
        return digest.hexdigest()


def list_controls(specs: Sequence[str]) -> list[Control]:
    """Return controls by specification, without loading any.

    Args:
        specs: Each `shipped` (the test bed's population), a folder of a whole population, or a single encoder.

    Raises:
        MissingExtraError: `shipped` is named and its package is not installed.
        UsageError: A population is damaged.
    """
    found: list[Control] = []
    for spec in specs:
        folder = shipped_population() if spec == "shipped" else Path(spec)
        if (folder / "population.json").exists():
            found += [Control(member.name, member.folder, member.kind) for member in read_population(folder)]
        else:
            found.append(Control(spec, spec))
    return found


class SeenWeights:
    """Record of the weights that were seen: one network under two names would count twice."""

    def __init__(self) -> None:
        """Begin without any."""
        self._seen: dict[str, str] = {}

    def check(self, name: str, control: Encoder) -> None:
        """Raise UsageError if another control has the same weights."""
        first = self._seen.setdefault(weights_hash(control.module), name)
        if first != name:
            raise UsageError(f"control {name!r} has the weights of control {first!r}: each must count once")


def open_controls(specs: Sequence[str]) -> Iterator[tuple[str, Encoder]]:
    """Yield name and network of every control that `list_controls` finds."""
    for control in list_controls(specs):
        yield control.name, control.load()


def count_controls(specs: Sequence[str]) -> int:
    """Return how many controls `open_controls` will yield, without loading any."""
    return len(list_controls(specs))


def shipped_population() -> Path:
    """Return the folder of the test bed's population, which the package sslguard-testbed holds.

    Raises:
        MissingExtraError: The package is not installed.
    """
    found = find_spec(TESTBED)
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(
            "the population 'shipped'", command="pip install ./packages/sslguard-testbed (in a checkout of sslguard)"
        )
    return Path(found.submodule_search_locations[0]) / "controls"
