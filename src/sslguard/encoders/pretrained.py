"""Files of folders that `save_pretrained` wrote: JSON and weights, whole or in shards. No code is run.

Weights are looked for as `model.safetensors`, `model.safetensors.index.json` with its shards, `pytorch_model.bin`, and
`pytorch_model.bin.index.json` with its shards, in this order.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from sslguard.encoders.files import is_plain, read_tensors
from sslguard.errors import EncoderError

MAX_JSON = 1 << 20  # bytes
_MAX_INDEX = 1 << 25  # bytes
_MAX_SHARDS = 1024
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def read_json(path: Path, *, kind: type = dict, most: int = MAX_JSON) -> Any:
    """Return the JSON in a file; None where there is no such file.

    Args:
        path: the file.
        kind: what it must hold: `dict` or `list`.
        most: bytes that are read.

    Raises:
        EncoderError: the file is larger, no JSON, or holds something else.
    """
    try:
        if not path.is_file():
            return None
        if (size := path.stat().st_size) > most:
            raise EncoderError(f"{path} has {size} bytes, more than the {most} that are read")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, kind):
        raise EncoderError(f"{path} must hold a JSON {kind.__name__}, not a {type(content).__name__}")
    return content


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder's weights, in the order of their names.

    Raises:
        EncoderError: there are none, or an index names a file outside the folder or one that is missing.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        content = read_json(index, most=_MAX_INDEX)
        if content is not None:
            return _shards(index, content)
    others = sorted(file.name for file in folder.glob("*") if file.suffix in (".h5", ".pt", ".msgpack", ".onnx"))
    reason = f"; {', '.join(others[:3])} is not read" if others else ""
    raise EncoderError(f"{folder} holds no {' and no '.join(_WEIGHTS)}{reason}: write it with save_pretrained")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder's weights by name; those of floating point as float32.

    Raises:
        EncoderError: as `weight_files`, or a file is damaged, would run code, or holds what is no finite tensor.
    """
    return dict(stream_weights(folder))


def stream_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield what `read_weights` returns, name by name: one file is in memory at a time. Raise as `read_weights`."""
    for path in weight_files(folder):
        if path.suffix != ".safetensors":
            _check_packed(path)
        tensors = read_tensors(path)
        for name in list(tensors):
            tensor = tensors.pop(name)
            if not isinstance(name, str) or not is_plain(tensor):
                raise EncoderError(f"{path} holds {name!r:.80}, which is no plain tensor: save a state dict")
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise EncoderError(f"{path}: weight {name:.80} is not finite")
            yield name, tensor


def _check_packed(path: Path) -> None:
    """Raise EncoderError if a torch file, a ZIP archive, would take more memory than its size on disk says."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # torch's older format, which packs nothing; or no torch file, as its reader will say
    if unpacked > path.stat().st_size:
        raise EncoderError(f"{path} is packed, as torch.save never writes it: save a state dict with torch.save")


def _shards(index: Path, content: dict[str, Any]) -> list[Path]:
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise EncoderError(f"{index} must hold a weight_map from names of weights to names of files")
    names = sorted(set(places.values()))
    if len(names) > _MAX_SHARDS:
        raise EncoderError(f"{index} names {len(names)} files, more than the {_MAX_SHARDS} that are read")
    for name in names:
        if Path(name).name != name or "\\" in name:
            raise EncoderError(f"{index} names a file outside its own folder: {name!r:.80}")
        if not (index.parent / name).is_file():
            raise EncoderError(f"{index} names {name}, which is not there: download the folder again")
    return [index.parent / name for name in names]
