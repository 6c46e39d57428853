"""Keys on disk: a folder of `key.json` and `tensors.safetensors`, readable by its owner alone.

The folder holds the master secret in the clear; keep it as you would keep a private key. Its controls' scores may
stand beside the key: see `scorefile`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sslguard.errors import KeyFileError
from sslguard.files import atomic_folder, write_atomic
from sslguard.schemes.base import Key
from sslguard.schemes.exact import ExactKey
from sslguard.schemes.sslguard import SSLGuardKey

FORMAT = "sslguard-key"
VERSION = 1
MAX_JSON_BYTES = 1 << 20
MAX_TENSOR_BYTES = 1 << 30
_SCHEMES: dict[str, type[Key]] = {SSLGuardKey.scheme: SSLGuardKey, ExactKey.scheme: ExactKey}


def save_key(key: Key, folder: Path) -> None:
    """Write `key` to `folder` (mode 0700, files 0600), whole or not at all; replaces a key that is there, with its
    stored scores.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
    """
    from safetensors.torch import save

    fields, tensors = key.to_parts()
    description = {"format": FORMAT, "version": VERSION, "scheme": key.scheme, "fields": fields}
    with atomic_folder(folder, replaces=is_key_folder) as partial:
        partial.chmod(0o700)
        content = json.dumps(description, sort_keys=True, indent=1, allow_nan=False).encode()
        write_atomic(partial / "key.json", content, private=True)
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_atomic(partial / "tensors.safetensors", save(contiguous), private=True)


def load_key(folder: Path) -> Key:
    """The key that `save_key` wrote.

    Raises:
        KeyFileError: something is missing, damaged, oversized or of another version. Messages hold no secret.
    """
    description = _read_description(folder)
    kind = _SCHEMES.get(str(description.get("scheme")))
    if kind is None:
        raise KeyFileError(f"{folder} is a key of the scheme {description.get('scheme')!r}, which is not known here")
    fields = description.get("fields")
    if not isinstance(fields, dict):
        raise KeyFileError(f"{folder}/key.json has no fields")
    return kind.from_parts(fields, _read_tensors(folder))


def key_hash(key: Key) -> str:
    """SHA-256, hex, of the key's scheme, fields and tensors: the same wherever and however often it is written.

    It covers the secret, which it does not give away; still it belongs beside the key and nowhere else.
    """
    fields, tensors = key.to_parts()
    digest = hashlib.sha256(json.dumps([key.scheme, fields], sort_keys=True, allow_nan=False).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + b"\n" + tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """A line of JSON with dtype and shape, then the values in row-major order, little-endian: for hashes."""
    values = tensor.detach().cpu().numpy()
    head = json.dumps([str(values.dtype), list(values.shape)]).encode()
    return head + b"\n" + np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()


def is_key_folder(folder: Path) -> bool:
    """Whether `folder` holds a key of any version."""
    try:
        return _read_description(folder)["format"] == FORMAT
    except KeyFileError:
        return False


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "key.json"
    try:
        _check_plain(path)
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise KeyFileError(f"{path} is larger than {MAX_JSON_BYTES} bytes: not a key")
        description = json.loads(content)
    except FileNotFoundError:
        raise KeyFileError(f"{folder} is not a key: it has no key.json") from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise KeyFileError(f"{path} is damaged: not JSON") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise KeyFileError(f"{folder} is not a key of this program")
    if description.get("version") != VERSION:
        raise KeyFileError(f"{folder} is a key of version {description.get('version')!r}; this program reads {VERSION}")
    return description


def _check_plain(path: Path) -> None:
    """A pipe or a device would block or never end."""
    if path.exists() and not path.is_file():
        raise KeyFileError(f"{path} is not a file")


def _read_tensors(folder: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / "tensors.safetensors"
    try:
        _check_plain(path)
        if path.stat().st_size > MAX_TENSOR_BYTES:
            raise KeyFileError(f"{path} is larger than {MAX_TENSOR_BYTES} bytes: not a key")
        tensors = load(path.read_bytes())
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise KeyFileError(f"{path} is damaged: {error}") from None
    bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise KeyFileError(f"{path} is damaged: {bad[0]} holds values that are not finite")
    return tensors
