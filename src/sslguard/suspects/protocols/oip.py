"""The Open Inference Protocol, version 2: tensors as JSON, or as bytes after the JSON (the binary extension).

The shape and type of the input are read from the model's metadata. If the server has none, images are sent as UINT8 (n,
C, H, W) and texts as BYTES (n), under the name `input`.

Source: github.com/kserve/open-inference-protocol, and Triton's extension_binary_data.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Batch
from sslguard.errors import SuspectError, UsageError
from sslguard.suspects.base import MAX_WIDTH, UnansweredError
from sslguard.suspects.http import Call, Exchange, Reply
from sslguard.suspects.pixels import ImageInput
from sslguard.suspects.protocols.base import MalformedReplyError, Protocol, json_call, member, read_json, shown, texts
from sslguard.suspects.settings import Scale

LENGTH_HEADER = "Inference-Header-Content-Length"
DTYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Data types of the tensors of numbers that are sent or read."""
MAX_IMAGE, MAX_REQUEST = 1 << 23, 1 << 22
"""Most numbers of one image, and of a request of several. The server chooses the size, and numbers travel as text."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}")


@dataclass
class OIP(Protocol):
    """The Open Inference Protocol: POST /v2/models/MODEL/infer.

    Attributes:
        model: The model's name on the server, optionally with a version, as NAME/versions/VERSION.
        binary: Whether to send and receive tensors as bytes.
        scale: Scale of images if the model takes floats; see `pixels`.
        output: Name of the tensor to read; None reads the first with one row a query.
    """

    name: ClassVar[str] = "oip"
    model: str
    binary: bool = False
    scale: Scale = "unit"
    output: str | None = None
    _input: str = field(default="input", init=False)
    _datatype: str | None = field(default=None, init=False)
    _sides: list[int | None] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not all(_NAME.fullmatch(part) for part in self.model.split("/")):
            raise UsageError(f"--model may hold letters, digits, '_', '.', ':' and '-' only, not {self.model!r:.80}")

    def begin(self, exchange: Exchange) -> None:
        """Read the model's metadata. If the server has none, ask as the module describes.

        Raises:
            SuspectError: The server did not answer, or the model takes something that cannot be sent.
        """
        try:
            reply = exchange.send(Call(f"/v2/models/{self.model}", method="GET"))
            inputs = member(read_json(reply.body), "inputs") or []
        except (SuspectError, MalformedReplyError) as error:
            if isinstance(error, UnansweredError):
                raise SuspectError(str(error)) from error
            return
        if not isinstance(inputs, list) or len(inputs) > 1:
            raise SuspectError(f"the model {self.model} must take one tensor, not {shown(inputs)}")
        if inputs:
            self._take(inputs[0])

    def call(self, batch: Batch, /) -> Call:
        """Return the request for a batch. See `Protocol.call`."""
        tensor, content = self._tensor(batch)
        request: dict[str, Any] = {"inputs": [tensor]}
        if self.output is not None:
            request["outputs"] = [{"name": self.output, "parameters": {"binary_data": self.binary}}]
        if not self.binary:
            tensor["data"] = content
            return json_call(f"/v2/models/{self.model}/infer", request)
        packed = packed_texts(content) if isinstance(content, list) else content.tobytes()
        tensor["parameters"] = {"binary_data_size": len(packed)}
        if self.output is None:
            request["parameters"] = {"binary_data_output": True}
        head = json.dumps(request).encode()
        headers = {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(len(head))}
        return Call(f"/v2/models/{self.model}/infer", head + packed, headers)

    def answers(self, reply: Reply, n: int) -> object:
        """Return the rows of the output tensor. See `Protocol.answers`."""
        head, rest = split_body(reply.body, reply.headers.get(LENGTH_HEADER))
        outputs = member(read_json(head), "outputs")
        if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
            raise MalformedReplyError("'outputs' must be a list of tensors")
        for output in outputs:
            size = _binary_size(output)
            content, rest = (None, rest) if size is None else (rest[:size], rest[size:])
            if self.output in (None, output.get("name")) and _has_rows(output, n):
                return _rows(output, content, n)
        raise MalformedReplyError(
            f"none of the {len(outputs)} tensors has one row of numbers a query"
            if self.output is None
            else f"there is no tensor {self.output!r} with one row of numbers a query"
        )

    def identity(self) -> dict[str, Any]:
        """Return the protocol, the model and its input, the scale and the output."""
        asked = {"input": self._input, "datatype": self._datatype, "sides": self._sides}
        return {"protocol": self.name, "model": self.model, "scale": self.scale, "output": self.output, **asked}

    def _take(self, found: Any) -> None:
        try:
            name, datatype, shape = member(found, "name"), member(found, "datatype"), member(found, "shape")
        except MalformedReplyError as error:
            raise SuspectError(f"the metadata of the model {self.model} cannot be used: {error}") from error
        whole = isinstance(shape, list) and 1 <= len(shape) <= 8 and all(type(side) is int for side in shape)
        if not isinstance(name, str) or not whole or str(datatype) not in (*DTYPES, "BYTES"):
            raise SuspectError(f"the model {self.model} takes a tensor of an unknown kind: {found!s:.200}")
        self._input, self._datatype, self._sides = name, datatype, shape[1:]
        numbers = math.prod(side for side in shape[1:] if side > 0)
        if numbers > MAX_IMAGE:
            raise SuspectError(
                f"the model {self.model} takes {numbers:,} numbers an item, more than the limit of {MAX_IMAGE:,}"
            )
        most = max(1, MAX_REQUEST // numbers)
        self.largest = min(shape[0], most) if shape[0] > 0 else most

    def _tensor(self, batch: Batch) -> tuple[dict[str, Any], Any]:
        """Return name, shape and dtype of the input, and its content: a list of texts, or an array."""
        if isinstance(batch[0], str):
            if self._datatype not in (None, "BYTES"):
                raise UsageError(f"the model {self.model} takes {self._datatype}, not texts")
            shape = [len(batch), *(1 for _ in self._sides or [])]
            return {"name": self._input, "shape": shape, "datatype": "BYTES"}, texts(batch, self.name)
        if self._datatype == "BYTES":
            raise UsageError(f"the model {self.model} takes texts, not images")
        datatype = self._datatype or "UINT8"
        sides = self._sides if self._sides is not None else [None, None, None]
        accepts = ImageInput.of_shape(sides, DTYPES[datatype], self.scale, what=f"the model {self.model}")
        array = accepts.array(batch)
        tensor = {"name": self._input, "shape": list(array.shape), "datatype": datatype}
        return tensor, array if self.binary else array.reshape(-1).tolist()


def split_body(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    """Return the JSON of a body and the bytes of the binary extension behind it.

    Args:
        body: Body of a request or a reply.
        length: Value of the header `LENGTH_HEADER`, the number of bytes of JSON; None if all of the body is JSON.

    Raises:
        MalformedReplyError: The length is not a number, or exceeds the body.
    """
    if length is None:
        return body, b""
    if not (length.isascii() and length.isdigit() and len(length) < 19 and int(length) <= len(body)):
        raise MalformedReplyError(f"{LENGTH_HEADER} must be at most the {len(body)} bytes that came")
    return body[: int(length)], body[int(length) :]


def packed_texts(items: list[str]) -> bytes:
    """Return texts as BYTES of the binary extension.

    Each text is encoded as its length in 4 bytes, little-endian, followed by its UTF-8.
    """
    encoded = [item.encode("utf-8", "replace") for item in items]
    return b"".join(struct.pack("<I", len(item)) + item for item in encoded)


def unpacked_texts(content: bytes) -> list[str]:
    """Decode what `packed_texts` encodes.

    Raises:
        MalformedReplyError: The content is truncated or not UTF-8.
    """
    found, start = [], 0
    while start < len(content):
        if start + 4 > len(content):
            raise MalformedReplyError("a tensor of BYTES is cut off")
        (size,) = struct.unpack_from("<I", content, start)
        text = content[start + 4 : start + 4 + size]
        if len(text) != size:
            raise MalformedReplyError("a tensor of BYTES is cut off")
        try:
            found.append(text.decode())
        except UnicodeDecodeError as error:
            raise MalformedReplyError("a tensor of BYTES holds what is no UTF-8") from error
        start += 4 + size
    return found


def _binary_size(output: dict[str, Any]) -> int | None:
    parameters = output.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None and (type(size) is not int or size < 0):
        raise MalformedReplyError(f"a 'binary_data_size' must be a number of bytes, not {shown(size)}")
    return size


def _has_rows(output: dict[str, Any], n: int) -> bool:
    """Whether a tensor is n rows of numbers; sides of 1 do not count."""
    shape = output.get("shape")
    if str(output.get("datatype")) not in DTYPES or not isinstance(shape, list):
        return False
    if not shape or not all(type(side) is int and 0 <= side <= 1 << 40 for side in shape) or shape[0] != n:
        return False
    return sum(side != 1 for side in shape[1:]) <= 1 and max([1, *shape[1:]]) <= MAX_WIDTH


def _rows(output: dict[str, Any], content: bytes | None, n: int) -> NDArray[Any]:
    width = max(output["shape"][1:], default=1)
    dtype = DTYPES[output["datatype"]]
    if content is not None:
        size = n * width * dtype.itemsize
        if len(content) != size:
            raise MalformedReplyError(f"a tensor of {n} x {width} numbers has {len(content)} bytes, not {size}")
        return np.frombuffer(content, dtype).reshape(n, width)
    array = np.asarray(member(output, "data"))
    if array.size != n * width or array.dtype.kind not in "fiu":
        raise MalformedReplyError(f"a tensor of {n} x {width} numbers has {array.size} values of type {array.dtype}")
    return array.reshape(n, width)
