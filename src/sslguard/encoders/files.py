"""Tensors out of files that nobody vouches for: safetensors, and torch's own without its code.

A torch file is a pickle, and a free pickle runs whatever it names. Only what `torch.load(weights_only=True)`
rebuilds is read here: tensors and plain containers. Options (`argparse.Namespace`) and numbers of numpy, which training
programs put beside the weights, are read as `_Nothing`, so that their own code is not run either.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import torch
from torch import Tensor

from sslguard.errors import EncoderError, first_line

# Where a file keeps its state dict: timm's average of the weights before the weights, the trained network before its
# momentum copy, but DINO's teacher before its student, for the teacher is what is published.
_CONTAINERS = (
    "state_dict_ema",
    "model_ema",
    "online_network_state_dict",
    "online_backbone",
    "online_network",
    "online_encoder",
    "state_dict",
    "model_state_dict",
    "classy_state_dict",
    "base_model",
    "model",
    "trunk",
    "net",
    "network",
    "teacher",
    "student",
    "encoder",
    "backbone",
    "module",
)
_MAX_DEPTH = 8

# torch's format before archives: a magic number, a version, the system, then the object, pickled one by one.
_LEGACY_PICKLES = 4
_HARMLESS = ("collections.OrderedDict", "torch._utils.", "torch.storage.", "torch.FloatStorage", "torch.LongStorage")

# What torch's reader lets out for bytes that are not a torch file, found by cutting files and flipping bytes.
_DAMAGED = (
    RuntimeError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    ImportError,
)


class _Nothing:
    """What stands for an object that is named in a file and not needed: it takes any arguments and keeps none."""

    def __new__(cls, *_: object) -> _Nothing:
        return object.__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_DTYPES = ("Bool", *(f"{kind}{bits}" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)), "Float16", "Float32")
_AS_NOTHING: list[Any] = [
    (_Nothing, name)
    for name in (
        "argparse.Namespace",
        "numpy.dtype",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        *(f"numpy.dtypes.{name}DType" for name in (*_DTYPES, "Float64")),
    )
]


def read_tensors(path: Path) -> dict[Any, Any]:
    """Return all that the file holds: tensors by name, nested dictionaries where the file nests them, on the CPU.

    Args:
        path: `.safetensors`, or anything else as a file of `torch.save`.

    Raises:
        EncoderError: there is no such file, it is damaged, or loading it would run code that it names.
    """
    try:
        there = path.is_file()
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror or error}") from error
    if not there:
        raise EncoderError(f"there is no file {path}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(content, dict):
        raise EncoderError(f"{path} holds a {type(content).__name__}, not a state dict: save a state dict")
    return content


@dataclass(frozen=True)
class StateDict:
    """The state dict in a file.

    Attributes:
        path: the file.
        container: the way to the state dict through what encloses it, such as "state_dict"; empty at the top.
        tensors: its tensors by name.
        aside: names of what lies on that way or in the state dict and is not among `tensors`.
    """

    path: Path
    container: str
    tensors: dict[str, Tensor] = field(repr=False)
    aside: tuple[str, ...]


def read_state_dict(path: Path) -> StateDict:
    """Find the state dict in a file, below the containers that training programs put around it.

    Tensors that are sparse, quantised or larger than their own storage are put aside: no network's state dict
    holds such, and a few bytes could stand for any number of them.

    Raises:
        EncoderError: as `read_tensors`, or nothing in the file looks like a state dict.
    """
    content = read_tensors(path)
    way: list[str] = []
    aside: list[str] = []
    node: Mapping[Any, Any] = content
    while len(way) <= _MAX_DEPTH:
        tensors = {k: v for k, v in node.items() if isinstance(k, str) and is_plain(v)}
        if any(tensor.dim() >= 2 for tensor in tensors.values()):
            aside += ["/".join([*way, str(k)]) for k in node if k not in tensors]
            return StateDict(path, "/".join(way), tensors, tuple(aside))
        inner = [k for k, v in node.items() if isinstance(k, str) and isinstance(v, Mapping) and v]
        known = [name for name in _CONTAINERS if name in inner]
        if not known and len(inner) != 1:
            break
        chosen = known[0] if known else inner[0]
        aside += ["/".join([*way, str(k)]) for k in node if k != chosen]
        way.append(chosen)
        node = node[chosen]
    found = ", ".join(f"{k!r:.40}" for k in list(content)[:8]) or "nothing"
    raise EncoderError(f"{path} holds no state dict where one is looked for; at its top there is {found}")


def is_plain(value: object) -> TypeGuard[Tensor]:
    """Return whether a value is a dense tensor that is not quantised and lies wholly inside its own storage."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise EncoderError(f"{path} is damaged or is not a safetensors file: {first_line(error)}") from error


def _read_torch(path: Path) -> Any:
    _check_packing(path)
    try:
        with warnings.catch_warnings():
            # About old protocols and program archives: what matters of it is said in the errors below.
            warnings.simplefilter("ignore", UserWarning)
            with torch.serialization.safe_globals(_AS_NOTHING):
                return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *_DAMAGED) as error:
        if "TorchScript" in str(error):
            raise EncoderError(f"{path} is a TorchScript program, not a state dict: save a state dict") from error
        if isinstance(error, pickle.UnpicklingError) and (code := _named_code(path)):
            raise EncoderError(
                f"{path} is a pickle that holds more than tensors ({code}), and loading it would run that; "
                "if you trust its origin, load it yourself and save its state dict as .safetensors"
            ) from error
        reason = f": {first_line(error)}" if isinstance(error, OSError | RuntimeError) else ""
        raise EncoderError(f"{path} is damaged or is not a file of torch.save{reason}") from error


def _check_packing(path: Path) -> None:
    """Raise EncoderError for an archive that unpacks to more than it is: torch packs nothing."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        packed = path.stat().st_size
    except (zipfile.BadZipFile, *_DAMAGED) as error:
        raise EncoderError(f"{path} is damaged or is not a file of torch.save: {first_line(error)}") from error
    if size > packed:
        raise EncoderError(
            f"{path} has {packed:,} bytes and unpacks to {size:,}: save it with torch.save, which packs nothing"
        )


def _named_code(path: Path) -> str:
    """Return the functions and classes that a pickle would call, for the message; empty where it names none."""
    try:
        return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))[:3])
    except (pickle.UnpicklingError, *_DAMAGED):
        pass
    # Not one of torch's archives. Reading the opcodes runs none of them.
    try:
        with path.open("rb") as file:
            for _ in range(_LEGACY_PICKLES):
                for name in _globals(file):
                    if not name.startswith(_HARMLESS):
                        return name
    except (pickle.UnpicklingError, *_DAMAGED):
        pass
    return ""


def _globals(file: BinaryIO) -> Iterator[str]:
    """Yield the dotted names that the next pickle in `file` asks for."""
    strings = ["", ""]
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings)
        elif isinstance(argument, str):
            strings = [strings[1], argument]
