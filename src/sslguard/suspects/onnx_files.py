"""Checks whether an ONNX file may be run.

It must parse, use only operators that onnxruntime itself brings, and keep its weights in the file or in files of its
own folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sslguard.errors import MissingExtraError, SuspectError, first_line

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

MAX_FILE = (1 << 31) - 1  # bytes; protobuf ends there
MAX_EXTERNAL = 1 << 36  # bytes of weights beside the file
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_REFUSED = frozenset({"EPContext", "PyOp"})
"""Operators of these domains that are refused, because they reach beyond the model."""


def checked_file(path: Path) -> tuple[bytes, bool]:
    """Return the content of an ONNX file that may be run, and whether some of its weights are in other files.

    Raises:
        SuspectError: The file is missing, too large or not ONNX; it uses operators that onnxruntime does not bring, or
            weights from outside its folder.
        MissingExtraError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("a suspect onnx:FILE", "onnx") from error
    content = _read(path)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # the only common class of protobuf's errors
        raise SuspectError(f"{path} is not an ONNX file: {first_line(error)}") from error
    if not model.graph.node:
        raise SuspectError(f"{path} holds no network")
    own = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        bundled = node.domain in _DOMAINS and node.op_type not in _REFUSED
        if not bundled and (node.domain, node.op_type) not in own:
            raise SuspectError(
                f"{path} uses the operator {node.domain or 'ai.onnx'}.{node.op_type!s:.80}, which is not part of "
                "onnxruntime: custom operators are not loaded"
            )
    outside = [tensor for tensor in _tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    _check_external(path, outside)
    return content, bool(outside)


def _check_external(path: Path, tensors: list[TensorProto]) -> None:
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


def _graphs(model: ModelProto) -> Iterator[GraphProto]:
    """Yield all graphs: the model's, and those inside its nodes, however deep."""
    waiting: list[GraphProto] = [model.graph, *(info.algorithm for info in model.training_info)]
    nodes: list[NodeProto] = [node for function in model.functions for node in function.node]
    while waiting or nodes:
        if waiting:
            graph = waiting.pop()
            nodes.extend(graph.node)
            yield graph
            continue
        for attribute in nodes.pop().attribute:
            waiting.extend([attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs)


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    for graph in _graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    for graph in _graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from _in_attribute(attribute)


def _in_attribute(attribute: AttributeProto) -> Iterator[TensorProto]:
    yield from (attribute.t, *attribute.tensors)
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise SuspectError(f"there is no ONNX file {path!s:.200}")
        if (size := path.stat().st_size) > MAX_FILE:
            raise SuspectError(f"{path} has {size:,} bytes, more than the {MAX_FILE:,} of an ONNX file")
        return path.read_bytes()
    except OSError as error:
        raise SuspectError(f"{path!s:.200} cannot be read: {error.strerror or error}") from error
