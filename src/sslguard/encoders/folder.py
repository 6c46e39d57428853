"""An encoder as a folder: a description, weights, and a tokenizer where it reads texts through one.

The files are `encoder.json`, `weights.safetensors` and `tokenizer.json`.

The JSON is canonical (sorted keys, UTF-8, one trailing newline)::

    architecture   what `rebuild.build` rebuilds the network from
    dim            width of an embedding
    dtype          how the floating-point weights are stored: "float32" or "float16"
    format         "sslguard-encoder"
    preprocess     what `rebuild.preprocess_from_json` rebuilds the preprocessing from
    record         how the encoder was made
    source         where it came from, for people
    version        1

Nothing in any file is code, and a damaged or foreign one is refused with a sentence.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sslguard.encoders.base import Encoder
from sslguard.encoders.names import DESCRIPTION
from sslguard.encoders.rebuild import build, preprocess_from_json
from sslguard.encoders.size import MAX_PARAMETERS
from sslguard.errors import EncoderError, MissingExtraError, UsageError
from sslguard.files import atomic_folder

FORMAT = "sslguard-encoder"
VERSION = 1
WEIGHTS = "weights.safetensors"
BESIDE = ("tokenizer.json",)
FILES = frozenset({DESCRIPTION, WEIGHTS, *BESIDE})
"""What an encoder's folder may hold: description, weights, and what `Preprocess.files` names."""
_MAX_DESCRIPTION = 1 << 20  # bytes
_MAX_BESIDE = 1 << 26  # bytes; multilingual vocabularies take 20 MB
_FIELDS: dict[str, type] = {
    "architecture": dict,
    "preprocess": dict,
    "dim": int,
    "source": str,
    "record": dict,
    "dtype": str,
}
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def save_encoder(encoder: Encoder, folder: str | Path, *, half: bool = False) -> None:
    """Write an encoder to `folder`, whole or not at all; an encoder that sslguard wrote there is replaced.

    Args:
        encoder: its weights are stored as they are, as float32 at most.
        folder: an encoder's folder, an empty one, or one that does not exist yet.
        half: store the weights as float16, half the size. They come back as float32 values rounded once.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
        UsageError: what the encoder says about itself does not rebuild it, so that it could never be loaded.
    """
    from safetensors.torch import save

    folder = Path(folder)
    description: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": encoder.architecture,
        "preprocess": encoder.preprocess.to_json(),
        "dim": encoder.dim,
        "source": encoder.source,
        "record": encoder.record,
        "dtype": "float16" if half else "float32",
    }
    text = _canonical(description)
    tensors = _stored(encoder, half=half)
    try:
        check_weights(_rebuilt(description), tensors, description["dtype"])
    except EncoderError as error:
        raise UsageError(f"this encoder could not be loaded again: {error}") from error
    with atomic_folder(folder, replaces=is_encoder_folder) as partial:
        (partial / DESCRIPTION).write_bytes(text)
        # Not safetensors' own writer: it reports a full disk as an error of the format.
        (partial / WEIGHTS).write_bytes(save(tensors))
        for name, content in encoder.preprocess.files().items():
            (partial / name).write_bytes(content)


def load_folder(folder: Path) -> Encoder:
    """Return the encoder that `save_encoder` wrote to `folder`, on the CPU and in evaluation mode.

    Raises:
        EncoderError: a file is missing, damaged, of another format, or of weights that do not fit or are not
            finite.
        MissingExtraError: it takes a library that is not installed.
    """
    folder = Path(folder)
    description = _read_description(folder / DESCRIPTION)
    try:
        module = _rebuilt(description, most=min(MAX_PARAMETERS, _n_weights(folder / WEIGHTS)))
        preprocess = preprocess_from_json(description["preprocess"], _read_beside(folder))
    except MissingExtraError:
        raise
    except UsageError as error:
        raise EncoderError(f"{folder / DESCRIPTION}: {error}") from error
    module.load_state_dict(_read_weights(folder / WEIGHTS, module, description["dtype"]))
    return Encoder(
        module=module.eval(),
        preprocess=preprocess,
        dim=description["dim"],
        architecture=description["architecture"],
        source=description["source"],
        record=description["record"],
    )


def weights_hash(module: nn.Module) -> str:
    """Return the SHA-256 of a module's state dict, in hexadecimal.

    It is taken over the tensors sorted by name: for each one line of JSON with name, dtype and shape, then its values
    in row-major order, little-endian. It does not depend on device, memory format or platform; running statistics and
    counters count.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        head = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(head, separators=(",", ":")).encode() + b"\n")
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        if sys.byteorder == "big":
            values = values.reshape(-1, tensor.element_size())[:, ::-1].reshape(-1)
        digest.update(values.tobytes())
    return digest.hexdigest()


def _canonical(description: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(description, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"an encoder's record and architecture must be plain JSON values: {error}") from error
    content = text.encode() + b"\n"
    if len(content) > _MAX_DESCRIPTION:
        raise UsageError(f"an encoder's record must stay below {_MAX_DESCRIPTION} bytes, not {len(content)}")
    return content


def _stored(encoder: Encoder, *, half: bool) -> dict[str, Tensor]:
    """Contiguous copies, because safetensors refuses tensors that share memory."""
    dtype = torch.float16 if half else torch.float32
    tensors = {}
    for name, tensor in encoder.module.state_dict().items():
        values = tensor.detach().cpu()
        values = values.to(dtype) if values.is_floating_point() else values
        if values.is_floating_point() and not bool(values.isfinite().all()):
            raise UsageError(
                f"weight {name} of the encoder is not finite"
                + (" as float16: store it with half=False" if half and bool(tensor.isfinite().all()) else "")
            )
        tensors[name] = values.contiguous().clone(memory_format=torch.contiguous_format)
    return tensors


def is_encoder_folder(folder: Path) -> bool:
    """Return whether a folder holds an encoder and nothing else. Anything more is the user's, not ours to remove."""
    if not {entry.name for entry in folder.iterdir()} <= FILES:
        return False
    try:
        _read_description(folder / DESCRIPTION)
    except EncoderError:
        return False
    return True


def _read_description(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise EncoderError(f"{path.parent} is not an encoder's folder: it holds no {path.name}")
        size = path.stat().st_size
        if size > _MAX_DESCRIPTION:
            raise EncoderError(f"{path} has {size} bytes, more than the {_MAX_DESCRIPTION} that are read")
        content = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise EncoderError(f'{path} does not say that its format is "{FORMAT}"')
    if content.get("version") != VERSION:
        raise EncoderError(f"{path} is of version {content.get('version')!r:.40}; this sslguard reads {VERSION}")
    for name, kind in _FIELDS.items():
        if not isinstance(content.get(name), kind) or isinstance(content[name], bool):
            raise EncoderError(f"{path} must have a field {name!r} of type {kind.__name__}")
    if content["dtype"] not in _DTYPES:
        raise EncoderError(f"{path}: dtype must be one of {', '.join(_DTYPES)}, not {content['dtype']!r:.40}")
    return content


def _read_beside(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in (folder / name for name in BESIDE):
        try:
            if path.is_file():
                if (size := path.stat().st_size) > _MAX_BESIDE:
                    raise EncoderError(f"{path} has {size} bytes, more than the {_MAX_BESIDE} that are read")
                found[path.name] = path.read_bytes()
        except OSError as error:
            raise EncoderError(f"{path} cannot be read: {error}") from error
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _n_weights(path: Path) -> int:
    """Return how many numbers a file of weights says it holds: no larger network is built for it."""
    from safetensors import SafetensorError, safe_open

    try:
        if not path.is_file():
            raise EncoderError(f"{path.parent} is not a whole encoder: it holds no {path.name}")
        with safe_open(path, "numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise EncoderError(f"{path} is damaged or is not a safetensors file: {error}") from error


def _rebuilt(description: dict[str, Any], *, most: int = MAX_PARAMETERS) -> nn.Module:
    module, width = build(description["architecture"], seed=0, most=most)
    if width != description["dim"]:
        raise UsageError(f"dim is {description['dim']}, but the network's embeddings have width {width}")
    return module


def check_weights(module: nn.Module, tensors: dict[str, Tensor], dtype: str) -> None:
    """Raise EncoderError unless names, shapes and kinds of the tensors are those of the network, all of them."""
    wanted = module.state_dict()
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise EncoderError(f"{len(missing)} weights are missing, first {missing[0]}")
    if extra := sorted(tensors.keys() - wanted.keys()):
        raise EncoderError(f"{len(extra)} weights have no place in the network, first {extra[0]:.80}")
    for name, place in wanted.items():
        found = tensors[name]
        if found.shape != place.shape:
            raise EncoderError(f"weight {name} has shape {tuple(found.shape)}, not {tuple(place.shape)}")
        kind = _DTYPES[dtype] if place.is_floating_point() else place.dtype
        if found.dtype != kind:
            raise EncoderError(f"weight {name} is stored as {found.dtype}, not {kind}")


def _read_weights(path: Path, module: nn.Module, dtype: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise EncoderError(f"{path} is damaged or is not a safetensors file: {error}") from error
    try:
        check_weights(module, tensors, dtype)
    except EncoderError as error:
        raise EncoderError(f"{path}: {error}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise EncoderError(f"{path}: weight {name} is not finite")
    return tensors
