"""Suspects in ONNX files, run by onnxruntime on the CPU.

A file may come from anywhere; `onnx_files` checks it before it runs. What it computes is unknown beforehand: a batch is
stopped after `RUN_SECONDS`, and on Linux it may take `RUN_MEMORY` beside the weights. 200 bytes can ask for a
terabyte.

The input is read from the model. Images are float or uint8 (n, C, H, W) or (n, H, W, C). Texts are strings, or
`input_ids`, `attention_mask` and the like, made by the tokenizer.json beside the file or one folder up. A file with
both towers of a CLIP model is asked for images or for texts, as the data is. Options follow an @, as in
`onnx:model.onnx@imagenet,224`:

- a number: height and width of images if the model leaves them open, or the largest number of tokens of a text;
- `unit`, `signed`, `bytes`, `imagenet`: scale of images if the model takes floats; see `pixels`;
- `mean`, `cls`, `max`: how to make one vector of a text's tokens, or of an image's patches, if the model returns one
  vector for each.

A file written by `encoders.export` describes its own input.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sslguard.data.base import Batch
from sslguard.encoders.export import METADATA
from sslguard.encoders.names import POOLINGS, Pooling
from sslguard.encoders.preprocess import Preprocess
from sslguard.encoders.rebuild import preprocess_from_json
from sslguard.encoders.text import TOKENIZER, TextPreprocess, read_tokenizer
from sslguard.encoders.words import pooled
from sslguard.errors import EncoderError, MissingExtraError, SuspectError, UsageError, first_line, required_by
from sslguard.suspects.memory import limited_memory
from sslguard.suspects.names import ONNX_OPTIONS
from sslguard.suspects.onnx_files import checked_file
from sslguard.suspects.pixels import SCALES, ImageInput
from sslguard.suspects.settings import Scale

Feeds = dict[str, NDArray[Any]]
RUN_SECONDS = 600.0
RUN_MEMORY = 1 << 33  # bytes
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype("f4"),
    "tensor(double)": np.dtype("f8"),
    "tensor(float16)": np.dtype("f2"),
    "tensor(uint8)": np.dtype("u1"),
}
_TOKENS = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
_PIXELS = "pixel_values"
_WHOLE = ("sentence_embedding", "image_embeds", "text_embeds", "image_features", "text_features")
"""Names of outputs that hold one vector for each query, in the order in which they are looked for."""
_WHOLE_NUMBERS: dict[str, np.dtype[Any]] = {"tensor(int64)": np.dtype("i8"), "tensor(int32)": np.dtype("i4")}
_PLACEHOLDER: dict[str, tuple[int, ...]] = {**dict.fromkeys(_TOKENS, (1, 8)), _PIXELS: (1, 3, 224, 224)}
"""Default shapes of the constant input for the tower that is not asked; the model's own shapes come first."""
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
        # Weights are read, and copied as they are prepared.
        self._memory = RUN_MEMORY + 3 * (len(content) + external)
        try:
            with limited_memory(self._memory):  # constants are computed here
                self._session = runtime.InferenceSession(
                    str(path) if external else content,
                    settings,
                    providers=["CPUExecutionProvider"],
                    enable_fallback=0,  # it would print to standard output, and try the same again
                )
        except Exception as error:  # the only common class of onnxruntime's errors
            raise SuspectError(f"onnxruntime cannot run {path}: {first_line(error)}") from error
        self._runtime = runtime
        try:
            self._outputs = [output.name for output in self._session.get_outputs()]
            self._feed, self._most = _feeding(self._session, path, options)
        except UnicodeDecodeError as error:
            raise SuspectError(
                f"{path} names an input, an output or a side in bytes that are no text: export the model again"
            ) from error
        self._pooling = options.pooling

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
        of_texts = isinstance(batch[0], str)
        names = self._outputs
        other = "image" if of_texts else "text"
        # A CLIP model also returns its logits and the vectors of the other tower, which are not read.
        whole = [name for name in _WHOLE if name in names and not name.startswith(other)]
        found = dict(zip(wanted := whole[:1] or names, self._run(wanted, feeds), strict=True))
        mask = feeds.get("attention_mask") if of_texts else None
        for array in found.values():
            rows = _as_rows(array, len(batch), mask, self._pooling)
            if rows is not None:
                return rows
        shapes = ", ".join(f"{name} {getattr(array, 'shape', '?')}" for name, array in found.items())
        hint = "" if self._pooling else "; add @mean or @cls to the file to make one vector of many"
        raise SuspectError(f"{self.name} has no output with a row of numbers a query: {shapes:.200}{hint}")

    def _run(self, names: list[str], feeds: Feeds) -> list[Any]:
        options = self._runtime.RunOptions()
        options.log_severity_level = 4
        timer = threading.Timer(RUN_SECONDS, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            with limited_memory(self._memory):
                return self._session.run(names, feeds, options)
        except Exception as error:
            limit = f" or was stopped after {RUN_SECONDS:g} s" if options.terminate else ""
            raise SuspectError(f"{self.name} failed{limit}: {first_line(error)}") from error
        finally:
            timer.cancel()


def _feeding(session: Any, path: Path, options: _Options) -> tuple[Callable[[Batch], Feeds], int | None]:
    """Return a function from a batch to the model's inputs, and the size of its batches (None: any size)."""
    inputs = {one.name: one for one in session.get_inputs()}
    names = set(inputs)
    own = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if own is not None and options == _Options():
        most = _sides(next(iter(inputs.values())))[0] if inputs else None
        return _as_described(own, path, list(inputs)), most
    if names - {_PIXELS} and names - {_PIXELS} <= _TOKENS and "input_ids" in names:
        tokens, most = _token_feed(inputs, path, options)
        if _PIXELS not in names:
            return tokens, most
        return _either(inputs, tokens, _image_feed(inputs[_PIXELS], path, options)), most
    if len(inputs) != 1:
        raise SuspectError(
            f"{path} takes the inputs {sorted(names)!s:.200}: it must take one input of images or texts, or tokens"
        )
    (only,) = inputs.values()
    sides = _sides(only)
    if only.type == "tensor(string)":
        return lambda batch: {only.name: np.array(_texts(batch, path), object).reshape(len(batch), *sides[1:])}, sides[
            0
        ] if sides else None
    return _image_feed(only, path, options), sides[0] if sides else None


def _image_feed(one: Any, path: Path, options: _Options) -> Callable[[Batch], Feeds]:
    """Return a function from images to a model's input."""
    if one.type not in _DTYPES:
        raise SuspectError(f"{path} takes {one.type}, which is neither images nor texts")
    sides = _sides(one)
    if options.size is not None and len(sides) == 4:
        first = 1 if sides[3] in (1, 3) else 2
        sides[first : first + 2] = [side or options.size for side in sides[first : first + 2]]
    images = ImageInput.of_shape(sides[1:], _DTYPES[one.type], options.scale or "unit", what=str(path))
    return lambda batch: {one.name: images.array(batch)}


def _token_feed(
    inputs: Mapping[str, Any], path: Path, options: _Options
) -> tuple[Callable[[Batch], Feeds], int | None]:
    """Return a function from texts to a model's inputs of tokens, and the size of its batches (None: any size)."""
    if options.scale is not None and _PIXELS not in inputs:
        raise UsageError(f"{path} takes texts: {options.scale} is for images")
    sides = _sides(inputs["input_ids"])
    taken = {name: one.type for name, one in inputs.items() if name in _TOKENS}
    if unknown := sorted(set(taken.values()) - set(_WHOLE_NUMBERS)):
        raise SuspectError(f"{path} takes tokens as {unknown[0]}: they must be int32 or int64")
    tokens: list[TextPreprocess] = []

    def feed(batch: Batch) -> Feeds:
        if not tokens:  # lazily: a model of images and texts needs no tokenizer if it is asked about images only
            longest = (sides[1] if len(sides) > 1 else None) or options.size or _DEFAULT_TOKENS
            tokens.append(TextPreprocess(_tokenizer(path), longest))
        return {
            name: array.astype(_WHOLE_NUMBERS[taken[name]])
            for name, array in _tokens(tokens[0], batch, set(taken), sides).items()
        }

    if _PIXELS not in inputs:
        _tokenizer(path)  # raises now, not at the first query, if there is none
    return feed, sides[0] if sides else None


def _either(
    inputs: Mapping[str, Any], tokens: Callable[[Batch], Feeds], images: Callable[[Batch], Feeds]
) -> Callable[[Batch], Feeds]:
    """Return a function from a batch to the inputs of both towers of a CLIP model; one gets a constant."""
    names = [name for name in inputs if name in _TOKENS]
    shapes = {
        name: [side or default for side, default in zip(_sides(one), _PLACEHOLDER[name], strict=False)]
        for name, one in inputs.items()
    }

    def feed(batch: Batch) -> Feeds:
        if isinstance(batch[0], str):
            return {**tokens(batch), _PIXELS: np.zeros(shapes[_PIXELS], _DTYPES[inputs[_PIXELS].type])}
        constant = {name: np.ones(shapes[name], _WHOLE_NUMBERS[inputs[name].type]) for name in names}
        return {**constant, **images(batch)}

    return feed


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
    places = np.maximum(mask.cumsum(1) - 1, 0)
    every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids), "position_ids": places}
    return {name: array for name, array in every.items() if name in names}


def _as_rows(array: object, n: int, mask: NDArray[Any] | None, pooling: Pooling | None) -> NDArray[Any] | None:
    """Return an output as (n, m), or None where it has no row for each query.

    Args:
        array: What the model gave.
        n: Number of queries.
        mask: (n, L), of texts, whose tokens are pooled by their mean unless `pooling` says otherwise.
        pooling: How vectors of tokens (n, L, m), or maps (n, m, H, W), become one.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim < 2 or len(array) != n:
        return None
    if mask is not None and array.ndim == 3 and array.shape[1] == mask.shape[1]:
        return pooled(torch.from_numpy(array), torch.from_numpy(mask), pooling or "mean").numpy()
    if sum(side != 1 for side in array.shape[1:]) <= 1:
        return array.reshape(n, -1)
    if mask is not None or pooling is None or array.ndim not in (3, 4):
        return None
    vectors = array if array.ndim == 3 else array.reshape(n, array.shape[1], -1).transpose(0, 2, 1)
    return pooled(torch.from_numpy(vectors), torch.ones(vectors.shape[:2]), pooling).numpy()


def _parsed(spec: str) -> tuple[Path, _Options]:
    match = ONNX_OPTIONS.fullmatch(spec)
    if match is None or Path(spec).is_file():
        return Path(spec), _Options()
    names = {**dict.fromkeys(SCALES, "scale"), **dict.fromkeys(POOLINGS, "pooling")}
    chosen: dict[str, Any] = {}
    for option in match["options"].split(","):
        if option.isdigit():
            chosen["size"] = int(option[:9])
        elif option in names:
            chosen[names[option]] = option
        else:
            raise UsageError(
                f"onnx:{spec:.200}: an option must be a number, one of {', '.join(SCALES)} for images, or one of "
                f"{', '.join(POOLINGS)}, not {option!r}"
            )
    return Path(match["file"]), _Options(**chosen)


def _tokenizer(path: Path) -> str:
    """Return the tokenizer.json beside the file, or one folder up, as hubs keep it."""
    folder = path.parent if (path.parent / TOKENIZER).is_file() else path.absolute().parent.parent
    try:
        return read_tokenizer(folder if (folder / TOKENIZER).is_file() else path.parent)
    except EncoderError as error:
        raise SuspectError(f"{path} takes tokens: {error}") from error


def _texts(batch: Batch, path: Path) -> list[str]:
    found = [item for item in batch if isinstance(item, str)]
    if len(found) != len(batch):
        raise UsageError(f"{path} takes texts, not images")
    return found


def _sides(one: Any) -> list[int | None]:
    """Return the shape of a model's input; None where any size is allowed."""
    return [side if isinstance(side, int) and side > 0 else None for side in one.shape]


def _runtime() -> Any:
    # onnxruntime reads this variable when it is imported.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    with required_by("a suspect onnx:FILE", "onnx"):
        import onnxruntime
    return onnxruntime
