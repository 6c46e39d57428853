"""Decoding of requests and encoding of answers, in every protocol that `app` offers. No input is trusted."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslguard.errors import UsageError
from sslguard.suspects.protocols.base import MalformedReplyError
from sslguard.suspects.protocols.oip import DTYPES, LENGTH_HEADER, split_body, unpacked_texts

if TYPE_CHECKING:
    from PIL import Image

Answers = NDArray[np.floating]
MAX_SIDE = 4096  # pixels
MAX_PIXELS = 1 << 26  # of all images of a request
STRIP_PIXELS = 1 << 17  # copied at a time
MAX_ASPECT = 8  # longer side to shorter; scaling a small shorter side up would make the longer one huge
MAX_SCANS = 100  # of a progressive JPEG; each takes the time of a whole picture
MAX_TEXT = 1 << 17  # characters
MAX_VALUES = 1 << 22  # of a JSON body; a value takes up to 30 times the memory of its text
_DATATYPES = ("UINT8", "FP32")
_JSON = "application/json"
_NO_IMAGE = "an image must be the base64 of a PNG, JPEG or WebP file"


class BadRequestError(UsageError):
    """A request that cannot be answered. The message says why."""


@dataclass(frozen=True)
class Picture:
    """An image as it came. Its size is known from its header, and none of its pixels is decoded yet.

    Attributes:
        content: Content of a PNG, JPEG or WebP file.
        pixels: Number of its pixels.
    """

    content: bytes
    pixels: int

    def decoded(self) -> Tensor:
        """Return the image, uint8 (1 or 3, H, W).

        Raises:
            BadRequestError: It cannot be decoded.
        """
        with _opened(self.content) as image:
            shown = image if image.mode in ("L", "RGB") else image.convert("RGB")
            bands = len(shown.getbands())
            found = np.empty((bands, shown.height, shown.width), np.uint8)
            rows = max(1, STRIP_PIXELS // shown.width)
            for top in range(0, shown.height, rows):  # Pillow keeps all other threads waiting while it copies
                bottom = min(top + rows, shown.height)
                strip = np.asarray(shown.crop((0, top, shown.width, bottom))).reshape(bottom - top, shown.width, bands)
                found[:, top:bottom] = strip.transpose(2, 0, 1)
        return torch.from_numpy(found)


@dataclass(frozen=True)
class Ask:
    """A decoded request.

    Attributes:
        items: Images (C, H, W), images as they came, texts, or texts as ids of the encoder's own tokenizer.
        dimensions: How many of the first numbers of an answer the caller wants (OpenAI); None for all.
        coded: Whether the caller wants numbers as base64 (OpenAI) or as bytes (OIP).
        request_id: The caller's name for the request (OIP).
    """

    items: list[Tensor] | list[Picture] | list[str] | list[list[int]]
    coded: bool = False
    request_id: str | None = None
    dimensions: int | None = None


@dataclass(frozen=True)
class Content:
    """The body of an answer and its headers.

    Attributes:
        body: Body of the answer.
        headers: Headers of the answer.
    """

    body: bytes
    headers: Mapping[str, str]


def parsed(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises:
        BadRequestError: The body is not a JSON object, or holds too many values.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise BadRequestError(
            f"the JSON of a request may hold {MAX_VALUES:,} commas and brackets at most: send tensors as bytes"
        )
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError("the body must be JSON") from error
    if not isinstance(value, dict):
        raise BadRequestError("the body must be a JSON object")
    return value


def texts_of(value: object, name: str, most: int) -> list[str]:
    """Return a text, or a list of texts, as a list.

    Args:
        value: Value of a field of the request.
        name: Name of the field, for error messages.
        most: Most texts allowed.

    Raises:
        BadRequestError: The value is not a text or a list of 1 to `most` texts of valid Unicode, or one is too long.
    """
    found = _list_of_texts(value, name, most)
    for item in found:
        _check_text(item)
    return found


def _list_of_texts(value: object, name: str, most: int) -> list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(item, str) for item in found):
        raise BadRequestError(f"{name!r} must be a text or a list of texts")
    _check_number(len(found), most)
    return found


def pictures_of(value: object, name: str, most: int) -> list[Picture]:
    """Return images that came as base64 or as data URIs, without decoding one.

    Args:
        value: Value of a field of the request.
        name: Name of the field, for error messages.
        most: Most images allowed.

    Raises:
        BadRequestError: The value is not an image or a list of images, or the images are too many or too large.
    """
    found = list(map(picture, _list_of_texts(value, name, most)))
    if sum(one.pixels for one in found) > MAX_PIXELS:
        raise BadRequestError(f"the images of a request may have at most {MAX_PIXELS:,} pixels in all")
    return found


def picture(coded: str) -> Picture:
    """Return an image from the base64 of a PNG, JPEG or WebP file.

    Args:
        coded: base64, alone or in a data URI.

    Raises:
        BadRequestError: It is not such an image, or it is too large.
    """
    try:
        content = base64.b64decode(coded.partition(",")[2] if coded.startswith("data:") else coded, validate=True)
    except ValueError as error:
        raise BadRequestError(_NO_IMAGE) from error
    # The size comes from the file's header; no pixels have been decoded yet.
    with _opened(content) as image:
        _check_sides(*image.size)
        if image.format == "JPEG" and content.count(b"\xff\xda") > MAX_SCANS:
            raise BadRequestError(f"a JPEG may have {MAX_SCANS} scans at most")
        return Picture(content, math.prod(image.size))


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as image:
            yield image
    except BadRequestError:
        raise
    except (ValueError, OSError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise BadRequestError(_NO_IMAGE) from error


def openai_ask(body: bytes, most: int) -> Ask:
    """Decode a request to /v1/embeddings, `{"input", "encoding_format", "dimensions"}`.

    Raises:
        BadRequestError: The body is not such a request, or asks for more than `most` texts.
    """
    fields = parsed(body)
    encoding = fields.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise BadRequestError(f"'encoding_format' must be float or base64, not {str(encoding)[:80]!r}")
    dimensions = fields.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise BadRequestError(f"'dimensions' must be a whole number from 1 up, not {str(dimensions)[:80]!r}")
    items = ids_of(fields.get("input"), most) or texts_of(fields.get("input"), "input", most)
    return Ask(items, encoding == "base64", dimensions=dimensions)


def tei_ask(body: bytes, most: int) -> Ask:
    """Decode a request to /embed, `{"inputs"}`.

    Raises:
        BadRequestError: The body is not such a request, or asks for more than `most` texts.
    """
    return Ask(texts_of(parsed(body).get("inputs"), "inputs", most))


def either_ask(body: bytes, most: int) -> Ask:
    """Decode a request to /v1/embed, `{"images"}` or `{"texts"}`.

    Raises:
        BadRequestError: The body is not such a request, or asks for more than `most` items.
    """
    fields = parsed(body)
    if "images" in fields:
        return Ask(pictures_of(fields["images"], "images", most))
    return Ask(texts_of(fields.get("texts"), "texts", most))


def ids_of(value: object, most: int) -> list[list[int]] | None:
    """Return one text or several as lists of token ids, or None if the value is something else.

    Raises:
        BadRequestError: There are more than `most` texts, or an id is none.
    """
    if not isinstance(value, list) or not value or not isinstance(value[0], int | list):
        return None
    found = [value] if isinstance(value[0], int) else value
    _check_number(len(found), most)
    for ids in found:
        if not isinstance(ids, list) or not ids or not all(type(one) is int and 0 <= one < 1 << 31 for one in ids):
            raise BadRequestError("'input' must be texts, or lists of token ids")
    return found


def first_numbers(answers: Answers, dimensions: int | None) -> Answers:
    """Return the first `dimensions` numbers of each answer (n, m); of length 1 if the answers have length 1.

    Raises:
        BadRequestError: Answers have fewer numbers.
    """
    if dimensions is None:
        return answers
    if dimensions > answers.shape[1]:
        raise BadRequestError(f"'dimensions' must be at most {answers.shape[1]}, not {dimensions}")
    cut = answers[:, :dimensions]
    if not np.allclose(np.linalg.norm(answers, axis=1), 1, atol=1e-3):
        return cut
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def openai_answer(ask: Ask, answers: Answers, model: str) -> Content:
    """Encode answers as `{"data": [{"index", "embedding"}, …]}`."""
    rows: list[Any] = answers.tolist()
    if ask.coded:
        rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in answers]
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return as_json({"object": "list", "data": data, "model": model, "usage": usage})


def oip_ask(body: bytes, headers: Mapping[str, str], most: int) -> Ask:
    """Decode a request with one tensor: UINT8 or FP32 (n, C, H, W), or BYTES (n) or (n, 1).

    Raises:
        BadRequestError: The body is not such a request, or asks for more than `most` items.
    """
    try:
        head, rest = split_body(body, headers.get(LENGTH_HEADER))
    except MalformedReplyError as error:
        raise BadRequestError(str(error)) from error
    fields = parsed(head)
    inputs = fields.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadRequestError("'inputs' must hold one tensor")
    (tensor,) = inputs
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(side) is int and 0 < side <= 1 << 31 for side in shape) or not shape:
        raise BadRequestError("'shape' must be a list of positive whole numbers")
    _check_number(shape[0], most)
    size = _parameters(tensor).get("binary_data_size")
    if size is not None and (type(size) is not int or size != len(rest)):
        raise BadRequestError(f"'binary_data_size' must be {len(rest)}, the number of bytes behind the JSON")
    content = rest if size is not None else tensor.get("data")
    coded = _wants_bytes(fields)
    request_id = fields.get("id")
    items = _texts(shape, content) if tensor.get("datatype") == "BYTES" else _images(tensor, shape, content)
    return Ask(items, coded, request_id if isinstance(request_id, str) else None)


def oip_answer(ask: Ask, answers: Answers, model: str) -> Content:
    """Encode answers as one tensor FP32 (n, m), named `embeddings`."""
    tensor: dict[str, Any] = {"name": "embeddings", "datatype": "FP32", "shape": list(answers.shape)}
    reply: dict[str, Any] = {"model_name": model, "outputs": [tensor]}
    if ask.request_id is not None:
        reply["id"] = ask.request_id
    if not ask.coded:
        tensor["data"] = answers.reshape(-1).tolist()
        return as_json(reply)
    numbers = answers.astype("<f4").tobytes()
    tensor["parameters"] = {"binary_data_size": len(numbers)}
    head = json.dumps(reply).encode()
    return Content(head + numbers, {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(len(head))})


def as_json(value: object) -> Content:
    """Return a value as the JSON body of an answer."""
    return Content(json.dumps(value, separators=(",", ":"), allow_nan=False).encode(), {"Content-Type": _JSON})


def _images(tensor: Mapping[str, Any], shape: list[int], content: object) -> list[Tensor]:
    datatype = tensor.get("datatype")
    if datatype not in _DATATYPES:
        raise BadRequestError(f"'datatype' must be UINT8, FP32 or BYTES, not {str(datatype)[:80]!r}")
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise BadRequestError(f"images have the shape (n, 1 or 3, H, W), not {shape}")
    _check_sides(*shape[2:])
    dtype = DTYPES[datatype]
    array = _numbers(content, dtype)
    if array.size != math.prod(shape):
        raise BadRequestError(f"a tensor of shape {shape} has {math.prod(shape)} values, not {array.size}")
    return list(torch.from_numpy(array.reshape(shape)))


def _numbers(content: object, dtype: np.dtype[Any]) -> NDArray[Any]:
    if isinstance(content, bytes):
        if len(content) % dtype.itemsize:
            raise BadRequestError(f"a tensor must have {dtype.itemsize} bytes a number, and has {len(content)} bytes")
        return np.frombuffer(content, dtype).copy()
    try:
        array = np.asarray(content)
    except ValueError as error:
        raise BadRequestError("'data' must be an array of numbers") from error
    if array.dtype.kind not in "iuf":
        raise BadRequestError("'data' must be an array of numbers")
    if dtype.kind == "u" and (array.dtype.kind == "f" or array.min(initial=0) < 0 or array.max(initial=0) > 255):
        raise BadRequestError("'data' of UINT8 must be whole numbers from 0 to 255")
    return array.astype(dtype)


def _texts(shape: list[int], content: object) -> list[str]:
    if math.prod(shape) != shape[0]:
        raise BadRequestError(f"texts have the shape (n) or (n, 1), not {shape}")
    if isinstance(content, bytes):
        try:
            found: list[Any] = list(unpacked_texts(content))
        except MalformedReplyError as error:
            raise BadRequestError(str(error)) from error
    else:
        flat = content if isinstance(content, list) else []
        found = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in flat]
    if len(found) != shape[0] or not all(isinstance(item, str) for item in found):
        raise BadRequestError(f"'data' must hold {shape[0]} texts")
    for item in found:
        _check_text(item)
    return found


def _wants_bytes(fields: Mapping[str, Any]) -> bool:
    outputs = fields.get("outputs")
    if isinstance(outputs, list) and outputs and isinstance(outputs[0], dict):
        chosen = _parameters(outputs[0]).get("binary_data")
        if isinstance(chosen, bool):
            return chosen
    return _parameters(fields).get("binary_data_output") is True


def _parameters(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    found = fields.get("parameters")
    return found if isinstance(found, dict) else {}


def _check_sides(one: int, other: int) -> None:
    if max(one, other) > MAX_SIDE or max(one, other) > MAX_ASPECT * min(one, other):
        raise BadRequestError(
            f"an image has sides up to {MAX_SIDE} pixels, one at most {MAX_ASPECT} times the other, not {one} x {other}"
        )


def _check_number(n: int, most: int) -> None:
    if not 1 <= n <= most:
        raise BadRequestError(f"a request may hold 1 to {most} items, not {n}")


def _check_text(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise BadRequestError(f"a text may have at most {MAX_TEXT:,} characters, not {len(text):,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequestError("a text is not valid Unicode") from error
