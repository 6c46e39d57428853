"""Checks whether an ONNX file may be run.

It must parse, use only operators that onnxruntime itself brings, and keep its weights in the file or in files of its
own folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sslguard.errors import SuspectError, first_line, required_by
from sslguard.files import read_plain

if TYPE_CHECKING:
    from google.protobuf.message import Message  # type: ignore[import-untyped]
    from onnx import ModelProto, TensorProto

MAX_FILE = (1 << 31) - 1  # bytes; protobuf ends there
MAX_EXTERNAL = 1 << 36  # bytes of weights beside the file
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_REFUSED = frozenset({"EPContext", "PyOp"})
"""Operators of these domains that are refused, because they reach beyond the model."""


def checked_file(path: Path) -> tuple[bytes, int]:
    """Return the content of an ONNX file that may be run, and how many bytes of weights it has in other files.

    Raises:
        SuspectError: The file is missing, too large or not ONNX; it uses operators that onnxruntime does not bring, or
            weights from outside its folder.
        MissingExtraError: onnx is not installed.
    """
    with required_by("a suspect onnx:FILE", "onnx"):
        import onnx
    content = read_plain(path, MAX_FILE, SuspectError)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # the only common class of protobuf's errors
        raise SuspectError(f"{path} is not an ONNX file: {first_line(error)}") from error
    if not model.graph.node:
        raise SuspectError(f"{path} holds no network")
    own = {(function.domain, function.name) for function in model.functions}
    parts = list(_parts(model))
    for node in (part for part in parts if isinstance(part, onnx.NodeProto)):
        bundled = node.domain in _DOMAINS and node.op_type not in _REFUSED
        if not bundled and (node.domain, node.op_type) not in own:
            raise SuspectError(
                f"{path} uses the operator {node.domain or 'ai.onnx'}.{node.op_type!s:.80}, which is not part of "
                "onnxruntime: custom operators are not loaded"
            )
    tensors = [part for part in parts if isinstance(part, onnx.TensorProto)]
    outside = [tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]
    return content, _external_size(path, outside)


def _external_size(path: Path, tensors: list[TensorProto]) -> int:
    # A file in a hub's cache is a link into a folder of blobs, so weights may be links into the folder of that blob.
    folder, blobs = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path)).parent
    files: set[Path] = set()
    for tensor in tensors:
        location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        pure = PurePosixPath(location)
        target = Path(os.path.realpath(folder / location)) if "\0" not in location else folder
        inside = folder in target.parents or blobs == target.parent
        inside &= not pure.is_absolute() and ".." not in pure.parts
        if not location or not inside or "\\" in location:
            raise SuspectError(f"{path} takes weights from {location!r:.200}, outside its folder: put them beside it")
        if not target.is_file():
            raise SuspectError(f"{path} takes weights from {location!r:.200}, which does not exist: put it there")
        files.add(target)
    if (size := sum(file.stat().st_size for file in files)) > MAX_EXTERNAL:
        raise SuspectError(f"{path} has {size:,} bytes of weights beside it, more than the {MAX_EXTERNAL:,} allowed")
    return size


def _parts(model: ModelProto) -> Iterator[Message]:
    """Yield the model and every part of it, however deep: graphs, nodes, tensors. Tensors are not looked into."""
    from google.protobuf.message import Message  # type: ignore[import-untyped]

    waiting: list[Message] = [model]
    while waiting:
        part = waiting.pop()
        yield part
        if part.DESCRIPTOR.name == "TensorProto":
            continue
        for field, value in part.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if isinstance(value, Message) else value)
