"""Suspects in ONNX files, run by onnxruntime on the CPU.

A file may come from anywhere; `onnx_files` checks it before it runs. What it computes is unknown beforehand: its memory
is not bounded, but a batch is stopped after `RUN_SECONDS`.

The input is read from the model. Images are float or uint8 (n, C, H, W) or (n, H, W, C). Texts are strings, or
`input_ids` and `attention_mask` of the tokenizer.json beside the file. Options follow an @, as in
`onnx:model.onnx@imagenet,224`:

- a number: height and width of images if the model leaves them open, or the largest number of tokens of a text;
- `unit`, `signed`, `bytes`, `imagenet`: scale of images if the model takes floats; see `pixels`;
- `mean`, `cls`, `max`: how to make one vector of a text's tokens, if the model returns one vector for each token.

A file written by `encoders.export` describes its own input.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sslguard.data.base import Batch
from sslguard.encoders.export import METADATA
from sslguard.encoders.preprocess import Preprocess
from sslguard.encoders.rebuild import preprocess_from_json
from sslguard.encoders.text import TOKENIZER, TextPreprocess, read_tokenizer
from sslguard.encoders.words import POOLINGS, Pooling, pooled
from sslguard.errors import EncoderError, MissingExtraError, SuspectError, UsageError
from sslguard.suspects.onnx_files import checked_file, first_line
from sslguard.suspects.pixels import SCALES, ImageInput, Scale

Feeds = dict[str, NDArray[Any]]
RUN_SECONDS = 600.0
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype("f4"),
    "tensor(double)": np.dtype("f8"),
    "tensor(float16)": np.dtype("f2"),
    "tensor(uint8)": np.dtype("u1"),
}
_TOKENS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
_OPTIONS = re.compile(r"(?P<file>.+)@(?P<options>[a-z0-9]+(,[a-z0-9]+)*)")
_DEFAULT_TOKENS = 512


@dataclass(frozen=True)
class _Options:
    """Options after the @; None means not given."""

    size: int | None = None
    scale: Scale | None = None
    pooling: Pooling | None = None


class OnnxSuspect:
    """An Embedder that an ONNX file describes. It answers every query or fails.

    Attributes:
        name: Name of the suspect in reports.
        n_missing: Always 0.
    """

    n_missing = 0

    def __init__(self, spec: str) -> None:
        """Check and load a file.

        Args:
            spec: Path of the file and options, without the leading `onnx:`.

        Raises:
            UsageError: An option is unknown or does not fit the model.
            SuspectError: The file is missing, damaged, hostile, or not an encoder.
            MissingExtraError: onnxruntime or onnx is not installed.
        """
        path, options = _parsed(spec)
        self.name = f"onnx:{spec}"
        runtime = _runtime()
        content, external = checked_file(path)
        settings = runtime.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = runtime.InferenceSession(
                str(path) if external else content, settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the only common class of onnxruntime's errors
            raise SuspectError(f"onnxruntime cannot run {path}: {first_line(error)}") from error
        self._runtime = runtime
        self._feed, self._most = _feeding(self._session, path, options)
        self._pooling: Pooling = options.pooling or "mean"

    def embed(self, batch: Batch, /) -> NDArray[Any]:
        """Return the model's answers, (n, m), unchecked.

        Raises:
            SuspectError: The model fails, takes too long, or has no output with one row a query.
            UsageError: The items are not what it takes.
        """
        if self._most is None:
            return self._answers(batch)
        return np.concatenate(
            [self._padded(batch[start : start + self._most]) for start in range(0, len(batch), self._most)]
        )

    def finish(self) -> None:
        """Do nothing: no query is left over."""

    def _padded(self, part: Batch) -> NDArray[Any]:
        """Return the answers of a model that takes batches of one size only.

        The last item is repeated to fill the batch.
        """
        short = (self._most or 0) - len(part)
        full: Any = part
        if short and isinstance(part, torch.Tensor):
            full = torch.cat([part, part[-1:].expand(short, *part.shape[1:])])
        elif short:
            full = [*part, *[part[-1]] * short]
        return self._answers(full)[: len(part)]

    def _answers(self, batch: Batch) -> NDArray[Any]:
        feeds = self._feed(batch)
        names = [output.name for output in self._session.get_outputs()]
        # sentence-transformers exports both token and sentence embeddings, tokens first.
        names.sort(key=lambda name: name != "sentence_embedding")
        found = dict(zip(names, self._run(names, feeds), strict=True))
        for array in found.values():
            rows = _as_rows(array, len(batch), feeds.get("attention_mask"), self._pooling)
            if rows is not None:
                return rows
        shapes = ", ".join(f"{name} {getattr(array, 'shape', '?')}" for name, array in found.items())
        raise SuspectError(f"{self.name} has no output with a row of numbers a query: {shapes:.200}")

    def _run(self, names: list[str], feeds: Feeds) -> list[Any]:
        options = self._runtime.RunOptions()
        options.log_severity_level = 4
        timer = threading.Timer(RUN_SECONDS, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            return self._session.run(names, feeds, options)
        except Exception as error:
            limit = f" or was stopped after {RUN_SECONDS:g} s" if options.terminate else ""
            raise SuspectError(f"{self.name} failed{limit}: {first_line(error)}") from error
        finally:
            timer.cancel()


def _feeding(session: Any, path: Path, options: _Options) -> tuple[Callable[[Batch], Feeds], int | None]:
    """Return a function from a batch to the model's inputs, and the size of its batches (None: any size)."""
    inputs = session.get_inputs()
    sides = [_side(side) for side in inputs[0].shape] if inputs else []
    most = sides[0] if sides else None
    names = {one.name for one in inputs}
    own = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if own is not None and options == _Options():
        return _as_described(own, path, [one.name for one in inputs]), most
    if "input_ids" in names and names <= _TOKENS:
        if options.scale is not None:
            raise UsageError(f"{path} takes texts: {options.scale} is for images")
        longest = (sides[1] if len(sides) > 1 else None) or options.size or _DEFAULT_TOKENS
        tokens = TextPreprocess(_tokenizer(path), longest)
        return lambda batch: _tokens(tokens, batch, names, sides), most
    if len(inputs) != 1:
        raise SuspectError(
            f"{path} takes the inputs {sorted(names)!s:.200}: it must take one input of images or texts, or tokens"
        )
    (only,) = inputs
    if only.type == "tensor(string)":
        return lambda batch: {only.name: np.array(_texts(batch, path), object).reshape(len(batch), *sides[1:])}, most
    if only.type not in _DTYPES:
        raise SuspectError(f"{path} takes {only.type}, which is neither images nor texts")
    if options.size is not None and len(sides) == 4:
        first = 1 if sides[3] in (1, 3) else 2
        sides[first : first + 2] = [side or options.size for side in sides[first : first + 2]]
    images = ImageInput.of_shape(sides[1:], _DTYPES[only.type], options.scale or "unit", what=str(path))
    return lambda batch: {only.name: images.array(batch)}, most


def _as_described(description: str, path: Path, names: list[str]) -> Callable[[Batch], Feeds]:
    """Return a function from a batch to the model's inputs, as the file's metadata describes them."""
    try:
        fields = json.loads(description)
        kind = fields.get("kind") if isinstance(fields, dict) else None
        files = {TOKENIZER: _tokenizer(path).encode()} if kind == "text" else {}
        preprocess: Preprocess = preprocess_from_json(fields, files)
    except MissingExtraError:
        raise
    except (ValueError, RecursionError) as error:
        raise SuspectError(f"the metadata of {path} cannot be used: {error!s:.200}") from error
    if names == ["images"] and kind == "image":
        return lambda batch: {"images": preprocess.prepare(batch).numpy()}
    if sorted(names) != ["attention_mask", "input_ids"] or kind == "image":
        raise SuspectError(f"{path} takes the inputs {names!s:.200}, but its metadata describe others")
    return lambda batch: _tokens(preprocess, batch, set(names), [])


def _tokens(preprocess: Preprocess, batch: Batch, names: set[str], sides: list[int | None]) -> Feeds:
    prepared = preprocess.prepare(batch)
    if len(sides) > 1 and sides[1]:
        prepared = torch.nn.functional.pad(prepared, (0, sides[1] - prepared.shape[2]))
    ids, mask = (part.contiguous().numpy() for part in prepared.unbind(1))
    every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: array for name, array in every.items() if name in names}


def _as_rows(array: object, n: int, mask: NDArray[Any] | None, pooling: Pooling) -> NDArray[Any] | None:
    """Return an output as (n, m), or None if it does not hold one row a query."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim < 2 or len(array) != n:
        return None
    if mask is not None and array.ndim == 3 and array.shape[1] == mask.shape[1]:
        return pooled(torch.from_numpy(array), torch.from_numpy(mask), pooling).numpy()
    if sum(side != 1 for side in array.shape[1:]) > 1:
        return None
    return array.reshape(n, -1)


def _parsed(spec: str) -> tuple[Path, _Options]:
    match = _OPTIONS.fullmatch(spec)
    if match is None or Path(spec).is_file():
        return Path(spec), _Options()
    size: int | None = None
    scale: Scale | None = None
    pooling: Pooling | None = None
    for option in match["options"].split(","):
        if option.isdigit():
            size = int(option[:9])
        elif chosen := [one for one in SCALES if one == option]:
            scale = chosen[0]
        elif ways := [way for way in POOLINGS if way == option]:
            pooling = ways[0]
        else:
            raise UsageError(
                f"onnx:{spec:.200}: an option must be a number, one of {', '.join(SCALES)} for images, or one of "
                f"{', '.join(POOLINGS)} for texts, not {option!r}"
            )
    return Path(match["file"]), _Options(size, scale, pooling)


def _tokenizer(path: Path) -> str:
    try:
        return read_tokenizer(path.parent)
    except EncoderError as error:
        raise SuspectError(f"{path} takes tokens: {error}") from error


def _texts(batch: Batch, path: Path) -> list[str]:
    found = [item for item in batch if isinstance(item, str)]
    if len(found) != len(batch):
        raise UsageError(f"{path} takes texts, not images")
    return found


def _side(side: object) -> int | None:
    return side if isinstance(side, int) and side > 0 else None


def _runtime() -> Any:
    # onnxruntime reads this variable when it is imported.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("a suspect onnx:FILE", "onnx") from error
    return onnxruntime
