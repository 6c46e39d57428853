"""The weights of a network by name, read one at a time: a network need not fit into memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslguard.encoders.base import Encoder
from sslguard.encoders.files import is_plain, read_state_dict, read_tensors
from sslguard.encoders.folder import WEIGHTS
from sslguard.encoders.load import load_encoder
from sslguard.encoders.names import parse_encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.pretrained import weight_files
from sslguard.errors import EncoderError, first_line

MAX_TENSORS = 1 << 17
TOKENS = 16
"""Length of the text by which a network of texts is followed."""
_SUFFIX = 3  # components of a name that must agree, where networks stand below different names


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights by name.

    Attributes:
        name: What the network is called in reports.
        shapes: Name of each tensor → its shape.
        fetch: Returns the tensor of a name.
        program: Operations of a network of the user's own, where they are known: see `encoders.program`.
        below: What stands before the names of its weights here: a mark's head may lie behind the network.
        item: Shape of what it takes; (2, `TOKENS`) for tokens.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    fetch: Callable[[str], Tensor]
    program: object = None
    below: str = ""
    item: tuple[int, ...] = ()

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a tensor as float32.

        Raises:
            EncoderError: It cannot be read, or holds values that are not finite.
        """
        tensor = self.fetch(name)
        if tuple(tensor.shape) != self.shapes[name] or tensor.is_complex():
            raise EncoderError(f"{self.name}: weight {name:.80} is not the plain tensor that the file lists")
        values = tensor.detach().to("cpu", torch.float32).numpy()
        if not np.isfinite(values).all():
            raise EncoderError(f"{self.name}: weight {name:.80} is not finite as float32")
        return values

    def digest(self, change: Callable[[str, NDArray[np.float32]], NDArray[np.float32]] | None = None) -> str:
        """Return the SHA-256, hex, of all tensors as float32, sorted by name.

        Args:
            change: Applied to each tensor before it is hashed.
        """
        found = hashlib.sha256()
        for name in sorted(self.shapes):
            values = self.read(name)
            values = values if change is None else change(name, values)
            found.update(json.dumps([name, list(values.shape)]).encode() + b"\n")
            found.update(np.ascontiguousarray(values, "<f4").tobytes())
        return found.hexdigest()


def open_weights(source: Weights | Encoder | nn.Module | Mapping[str, Tensor] | str | Path) -> Weights:
    """Return the weights of an encoder, a module, a state dict, or of what a specification names.

    Files of safetensors are read tensor by tensor. Folders of `hf:` and `local-dir:` may hold any network in shards:
    no network is built from them.

    Raises:
        EncoderError: The file is missing or damaged, or loading it would run code that it names.
        UsageError: A specification has none of the accepted forms: see `encoders.load`.
    """
    if isinstance(source, Weights):
        return source
    if isinstance(source, Encoder):
        return _with_program(_of_state(source.source, source.module.state_dict()), source)
    if isinstance(source, nn.Module):
        return _of_state(type(source).__name__, source.state_dict())
    if isinstance(source, Mapping):
        return _of_state("weights", source)
    text = str(source)
    named = parse_encoder(text)
    if named.kind == "folder":
        found = of_files(text, [Path(named.name) / WEIGHTS])
        own = any(name.startswith(("net.", "encoder.net.")) for name in found.shapes)
        return _with_program(found, load_encoder(text)) if own else found
    if named.kind in ("hf", "local-dir"):
        return of_files(text, weight_files(Path(named.name)))
    if named.kind == "checkpoint":
        path = Path(named.name)
        if path.suffix == ".safetensors":
            return of_files(text, [path])
        return _of_state(text, read_state_dict(path).tensors)
    encoder = load_encoder(text)
    return _with_program(_of_state(text, encoder.module.state_dict()), encoder)


def of_files(name: str, paths: list[Path]) -> Weights:
    """Return the weights in files, shard by shard: `.safetensors`, or files of `torch.save`.

    Raises:
        EncoderError: A file is missing, damaged, or holds what is no plain tensor.
    """
    places: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        for key, shape in _listed(path):
            if key in places:
                raise EncoderError(f"{path} holds {key:.80}, which another file of {name:.80} holds too")
            places[key], shapes[key] = path, shape
        if len(shapes) > MAX_TENSORS:
            raise EncoderError(f"{name:.80} holds more than the {MAX_TENSORS} tensors that are read")
    held: dict[Path, dict[Any, Any]] = {}

    def fetch(key: str) -> Tensor:
        path = places[key]
        if path.suffix == ".safetensors":
            with _opened(path) as file:
                return file.get_tensor(key)
        if path not in held:
            held.clear()  # one shard at a time
            held[path] = read_tensors(path)
        return held[path][key]

    return Weights(name, shapes, fetch)


def _with_program(weights: Weights, encoder: Encoder) -> Weights:
    """Return the weights with the operations of the encoder's network, where these are known."""
    program, preprocess = encoder.architecture.get("program"), encoder.preprocess
    if program is None:
        return weights
    if isinstance(preprocess, ImagePreprocess):
        item = (preprocess.channels, preprocess.height, preprocess.width)
    else:
        item = tuple(getattr(preprocess, "shape", ())) or (2, TOKENS)
    below = "encoder." if "head" in encoder.architecture else ""
    return replace(weights, program=program, below=below, item=item)


def _of_state(name: str, state: Mapping[str, Tensor]) -> Weights:
    plain = {key: tensor for key, tensor in state.items() if isinstance(key, str) and is_plain(tensor)}
    return Weights(name, {key: tuple(tensor.shape) for key, tensor in plain.items()}, lambda key: plain[key])


def _listed(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of each tensor of a file."""
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                yield key, tuple(file.get_slice(key).get_shape())
        return
    for key, tensor in read_tensors(path).items():
        if not isinstance(key, str) or not is_plain(tensor):
            raise EncoderError(f"{path} holds {key!r:.80}, which is no plain tensor: save a state dict")
        yield key, tuple(tensor.shape)


class _opened:
    """A safetensors file whose errors are EncoderErrors."""

    def __init__(self, path: Path) -> None:
        self._path, self._stack = path, ExitStack()

    def __enter__(self) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            if not self._path.is_file():
                raise EncoderError(f"there is no file {self._path}")
            return self._stack.enter_context(safe_open(self._path, "pt"))
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise self._damaged(error) from error

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        from safetensors import SafetensorError

        self._stack.close()
        if isinstance(error, SafetensorError | OSError | ValueError | KeyError):
            raise self._damaged(error) from error

    def _damaged(self, error: BaseException) -> EncoderError:
        return EncoderError(f"{self._path} is damaged or is not a safetensors file: {first_line(error)}")


def corresponding(a: Weights, b: Weights) -> dict[str, str]:
    """Return the name in `b` of each tensor of `a` that `b` has too, whatever stands before the networks' names.

    "encoder.layer.0.output.dense.weight" of one file may be "model.encoder.layer.0.output.dense.weight" of another.
    The pair of beginnings that fits most tensors of equal shape is taken.
    """
    by_end: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in b.shapes:
        parts = tuple(name.split("."))
        for n in {min(k, len(parts)) for k in range(1, _SUFFIX + 1)}:
            by_end[parts[-n:]].append(name)
    votes: Counter[tuple[str, str]] = Counter()
    for name, shape in a.shapes.items():
        if len(shape) < 2:
            continue
        parts = tuple(name.split("."))
        # A name of fewer components, of a network that stands below none, must agree as a whole.
        alike = by_end[parts[-_SUFFIX:]][:64] + [
            ".".join(parts[-n:]) for n in range(1, min(_SUFFIX, len(parts))) if ".".join(parts[-n:]) in b.shapes
        ]
        votes.update(_beginnings(name, other) for other in alike if b.shapes[other] == shape)
    if not votes:
        return {}
    most = max(votes.values())
    ours, theirs = min((pair for pair, n in votes.items() if n == most), key=lambda pair: len(pair[0] + pair[1]))
    found = {name: theirs + name.removeprefix(ours) for name in a.shapes if name.startswith(ours)}
    return {name: other for name, other in found.items() if other in b.shapes}


def _beginnings(a: str, b: str) -> tuple[str, str]:
    """Return what is left of two names without their longest common ending of whole components."""
    ours, theirs = a.split("."), b.split(".")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop()
        theirs.pop()
    return "".join(f"{part}." for part in ours), "".join(f"{part}." for part in theirs)


def n_numbers(weights: Weights) -> int:
    """Count the numbers in all tensors."""
    return sum(math.prod(shape) for shape in weights.shapes.values())
