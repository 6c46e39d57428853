"""ONNX files of strangers: what asks for too much memory or time, or reaches beyond the file, fails in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from sslguard.errors import SuspectError, UsageError  # noqa: E402
from sslguard.suspects import onnx as suspects  # noqa: E402
from sslguard.suspects.opening import open_suspect  # noqa: E402

node = helper.make_node
IMAGES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)


def constant(name: str, value: Any, dtype: Any = np.int64) -> Any:
    return numpy_helper.from_array(np.array(value, dtype), name)


def summed(*nodes: Any) -> list[Any]:
    """Return nodes that add the sum of `big`, which `nodes` make, to each picture's numbers."""
    return [
        node("Flatten", ["x"], ["f"]),
        *nodes,
        node("ReduceSum", ["big"], ["r"], keepdims=0),
        node("Add", ["f", "r"], ["y"]),
    ]


def model(nodes: list[Any], *constants: Any, domains: tuple[str, ...] = ("",), **changes: Any) -> bytes:
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, changes.pop("shape", ["n", 3, 8, 8]))]
    outs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", ends, outs, list(constants))
    opsets = [helper.make_opsetid(domain, 17 if not domain else 1) for domain in domains]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


def endless() -> list[Any]:
    truth, numbers = TensorProto.BOOL, TensorProto.FLOAT
    ins = [("i", TensorProto.INT64, []), ("go", truth, []), ("v", numbers, None)]
    outs = [("on", truth, []), ("w", numbers, None)]
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Sin", ["v"], ["w"])],
        "body",
        [helper.make_tensor_value_info(*each) for each in ins],
        [helper.make_tensor_value_info(*each) for each in outs],
    )
    return [node("Flatten", ["x"], ["f"]), node("Loop", ["", "yes", "f"], ["y"], body=body)]


FLAT = [node("Flatten", ["x"], ["y"])]
TERABYTE = constant("s", [1 << 38])
FILES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "text": lambda: b"not a model",
    "cut off": lambda: model(FLAT)[:40],
    "no network": lambda: model([]),
    "a terabyte of constants": lambda: model(summed(node("ConstantOfShape", ["s"], ["big"])), TERABYTE),
    "a terabyte of copies": lambda: model(
        summed(node("Expand", ["one", "s"], ["big"])), TERABYTE, constant("one", [1], np.float32)
    ),
    "a terabyte of tiles": lambda: model(
        summed(node("Tile", ["one", "s"], ["big"])), TERABYTE, constant("one", [1], np.float32)
    ),
    "a terabyte of numbers": lambda: model(
        summed(node("Range", ["a", "b", "d"], ["w"]), node("Cast", ["w"], ["big"], to=1)),
        *(constant(name, value) for name, value in (("a", 0), ("b", 1 << 38), ("d", 1))),
    ),
    "a terabyte of noise": lambda: model(summed(node("RandomNormal", [], ["big"], shape=[1 << 20, 1 << 18]))),
    "a terabyte of zeros beside": lambda: model(
        summed(node("Pad", ["one", "p"], ["big"])), constant("one", [1], np.float32), constant("p", [0, 1 << 38])
    ),
    "a terabyte of one kind": lambda: model(
        summed(node("OneHot", ["i", "depth", "v"], ["big"])),
        *(constant("i", [0]), constant("depth", 1 << 38), constant("v", [0, 1], np.float32)),
    ),
    "enlarged": lambda: model(
        [node("Resize", ["x", "", "s"], ["z"]), node("ReduceMean", ["z"], ["y"], axes=[2, 3], keepdims=0)],
        constant("s", [1, 1, 60_000, 60_000], np.float32),
    ),
    "negative shape": lambda: model(summed(node("ConstantOfShape", ["s"], ["big"])), constant("s", [-5])),
    "shape that overflows": lambda: model(
        summed(node("ConstantOfShape", ["s"], ["big"])), constant("s", [1 << 62, 1 << 62])
    ),
    "without end": lambda: model(endless(), constant("yes", True, np.bool_)),
    "an operator of somebody's": lambda: model([node("Thing", ["x"], ["y"], domain="evil")], domains=("", "evil")),
    "an operator that runs Python": lambda: model(
        [node("PyOp", ["x"], ["y"], domain="com.microsoft")], domains=("", "com.microsoft")
    ),
    "an operator that does not exist": lambda: model([node("NoSuch", ["x"], ["y"])]),
    "a name that is no text": lambda: model([node("NoSuch", ["x"], ["y"])]).replace(b"NoSuch", b"NoSu\xd7\xff"),
    "a side that is no text": lambda: model(FLAT, shape=["nobody", 3, 8, 8]).replace(b"nobody", b"nob\xffdy"),
    "an output that is no text": lambda: model(FLAT).replace(b"y", b"\xff"),
    "an input that nobody makes": lambda: model([node("Add", ["x", "nowhere"], ["y"])]),
    "a circle": lambda: model(
        [node("Add", ["x", "b"], ["a"]), node("Add", ["a", "x"], ["b"]), node("Flatten", ["b"], ["y"])]
    ),
    "one row for all": lambda: model([node("ReduceMean", ["x"], ["y"], axes=[0, 2, 3], keepdims=0)]),
    "no row": lambda: model([node("ReduceMean", ["x"], ["y"], keepdims=0)]),
    "not numbers": lambda: model(
        [*FLAT[:0], node("Flatten", ["x"], ["f"]), node("Sub", ["f", "f"], ["z"]), node("Div", ["z", "z"], ["y"])]
    ),
    "pictures of no size": lambda: model(FLAT, shape=["n", 3, 0, 0]),
    "pictures of 2^40 pixels": lambda: model(FLAT, shape=["n", 3, 1 << 20, 1 << 20]),
    "seven channels": lambda: model(FLAT, shape=["n", 7, 8, 8]),
    "a vector": lambda: model(FLAT, shape=["n", 8]),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("made", FILES.values(), ids=FILES.keys())
def test_files(
    made: Callable[[], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(suspects, "RUN_SECONDS", 1.0)
    monkeypatch.setattr(suspects, "RUN_MEMORY", 1 << 29)
    (tmp_path / "x.onnx").write_bytes(made())
    from sslguard.suspects.base import checked

    with pytest.raises((SuspectError, UsageError)) as caught:
        checked(open_suspect(f"onnx:{tmp_path}/x.onnx").embed(IMAGES), len(IMAGES))
    assert 0 < len(str(caught.value)) < 700
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("location", ["", "/etc/passwd", "../x", "a/../../x", "a\\..\\x", "x\0y", "no-such-file", "."])
def test_weights_elsewhere(location: str, tmp_path: Path) -> None:
    weights = constant("w", np.ones(192), np.float32)
    weights.data_location = TensorProto.EXTERNAL
    del weights.external_data[:]
    weights.ClearField("raw_data")
    entry = weights.external_data.add()
    entry.key, entry.value = "location", location
    (tmp_path / "x.onnx").write_bytes(model([node("Flatten", ["x"], ["f"]), node("Add", ["f", "w"], ["y"])], weights))
    with pytest.raises(SuspectError, match="takes weights from"):
        open_suspect(f"onnx:{tmp_path}/x.onnx")
