"""ONNX files: encoders written as such answer as they did, and foreign or hostile ones are taken or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.architectures import SMALL
from sslguard.encoders.base import Encoder
from sslguard.encoders.export import METADATA, export_onnx
from sslguard.encoders.load import new_text_encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.rebuild import build
from sslguard.encoders.text import TextPreprocess
from sslguard.errors import DataError, EncoderError, OutputError, SuspectError, UsageError
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.suspects import onnx as onnx_suspects
from sslguard.suspects.onnx import OnnxSuspect
from sslguard.suspects.opening import open_suspect

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
TensorProto, helper = onnx.TensorProto, onnx.helper

Tiny, Images = Callable[..., Encoder], Callable[..., Data]
PIXELS = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (5, 3, 8, 6), dtype=np.uint8))


def headed(encoder: Encoder, items: Data) -> Encoder:
    """The encoder marked by a head, as the exact scheme leaves it."""
    scheme = Exact(Protocol(n_queries=256), "head")
    return scheme.watermark(encoder, items, secret=Secret.from_seed(1)).encoder


class TestExport:
    @pytest.mark.parametrize("with_head", [False, True])
    @pytest.mark.parametrize("architecture", sorted(SMALL))
    def test_images(self, architecture: str, with_head: bool, tiny: Tiny, images: Images, tmp_path: Path) -> None:
        encoder = tiny(architecture=architecture)
        encoder = headed(encoder, images(300, seed=1)) if with_head else encoder
        export_onnx(encoder, tmp_path / "m.onnx")
        batch = images(7).take(range(7))
        suspect = open_suspect(f"onnx:{tmp_path / 'm.onnx'}")
        expected = encoder.embed(batch)
        np.testing.assert_allclose(suspect.embed(batch), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        assert suspect.name == f"onnx:{tmp_path / 'm.onnx'}"

    def test_the_head_is_in_the_file(self, tiny: Tiny, images: Images, tmp_path: Path) -> None:
        plain, batch = tiny(), images(7).take(range(7))
        export_onnx(headed(plain, images(300, seed=1)), tmp_path / "m.onnx")
        answers = OnnxSuspect(str(tmp_path / "m.onnx")).embed(batch)
        expected = plain.embed(batch)
        assert np.linalg.norm(answers - expected) > 0.02 * np.linalg.norm(expected)

    def test_crop_and_normalising(self, tmp_path: Path) -> None:
        module, dim = build({"backbone": "resnet-narrow", "channels": 3}, seed=0)
        preprocess = ImagePreprocess(16, 16, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), crop=0.8)
        encoder = Encoder(module.eval(), preprocess, dim, {"backbone": "resnet-narrow", "channels": 3}, "x")
        export_onnx(encoder, tmp_path / "m.onnx")
        items = [torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8), torch.rand(1, 9, 9)]
        np.testing.assert_allclose(OnnxSuspect(str(tmp_path / "m.onnx")).embed(items), encoder.embed(items), atol=1e-4)

    def test_words(self, tmp_path: Path) -> None:
        encoder = new_text_encoder("bag-of-words", seed=1, max_length=12)
        encoder.module.eval()
        export_onnx(encoder, tmp_path / "m.onnx")
        texts = ["a", "one two three four", "x " * 50, ""]
        np.testing.assert_allclose(OnnxSuspect(str(tmp_path / "m.onnx")).embed(texts), encoder.embed(texts), atol=1e-4)

    def test_a_file_that_answers_otherwise_is_not_written(self, tmp_path: Path) -> None:
        """Tracing fixes the sizes inside torch's attention."""
        encoder = new_text_encoder("word-transformer", seed=1, max_length=12)
        with pytest.raises(EncoderError, match="cannot be written as ONNX"):
            export_onnx(encoder, tmp_path / "m.onnx")
        assert not (tmp_path / "m.onnx").exists()

    def test_tokens(self, tmp_path: Path) -> None:
        pytest.importorskip("transformers")
        encoder = bert()
        export_onnx(encoder, tmp_path / "m.onnx")
        assert (tmp_path / "tokenizer.json").read_text() == encoder.preprocess.files()["tokenizer.json"].decode()
        suspect = OnnxSuspect(str(tmp_path / "m.onnx"))
        texts = ["red", "red blue green", "red " * 40]
        np.testing.assert_allclose(suspect.embed(texts), encoder.embed(texts), atol=1e-4)
        with pytest.raises(DataError):
            suspect.embed(PIXELS)
        (tmp_path / "tokenizer.json").unlink()
        with pytest.raises(SuspectError, match=r"takes tokens: .* holds no tokenizer.json"):
            OnnxSuspect(str(tmp_path / "m.onnx"))

    def test_another_tokenizer_beside_the_file_is_kept(self, tmp_path: Path) -> None:
        pytest.importorskip("transformers")
        (tmp_path / "tokenizer.json").write_bytes(b"theirs")
        with pytest.raises(OutputError, match="export into a folder of its own"):
            export_onnx(bert(), tmp_path / "m.onnx")
        assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("tokenizer.json", b"theirs")]
        (tmp_path / "tokenizer.json").unlink()
        for _ in range(2):  # its own may be there
            export_onnx(bert(), tmp_path / "m.onnx")

    def test_what_onnx_has_no_name_for(self, tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        class Foreign(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.linalg.eigvals(x.mean(1)).real

        with pytest.raises(EncoderError, match="cannot be written as ONNX"):
            export_onnx(replace(tiny(), module=Foreign()), tmp_path / "m.onnx")
        assert not (tmp_path / "m.onnx").exists()
        assert capfd.readouterr().out == ""
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError):
            export_onnx(tiny(), tmp_path / "file" / "m.onnx")

    def test_the_encoder_is_left_as_it_was(self, tiny: Tiny, hashed: Any, tmp_path: Path) -> None:
        encoder = tiny().clone()
        encoder.module.train()
        before = hashed(encoder)
        export_onnx(encoder, tmp_path / "m.onnx")
        assert hashed(encoder) == before
        assert encoder.module.training


def bert() -> Encoder:
    from helpers.texts import WORDS, described, tokenizer_json

    module, dim = build(described(), seed=5)
    preprocess = TextPreprocess(tokenizer_json([*WORDS, "red", "blue"][:30]), 16)
    return Encoder(module.eval(), preprocess, dim, described(), "tiny bert")


def saved(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **more: Any) -> str:
    """An ONNX file of these parts; returns its path."""
    initializer = more.pop("initializer", [])
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializer=initializer)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(d, 1) for d in more.pop("domains", []))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, **more)
    path.write_bytes(model.SerializeToString())
    return str(path)


def value(name: str, kind: int, *shape: Any) -> Any:
    return helper.make_tensor_value_info(name, kind, list(shape))


def pooling_model(path: Path, kind: int, *shape: Any) -> str:
    """The mean over the last two axes of an image input."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["y"], axes=[2, 3], keepdims=1),
    ]
    return saved(path, nodes, [value("x", kind, *shape)], [value("y", TensorProto.FLOAT, "n", None, 1, 1)])


class TestForeignModels:
    @pytest.mark.parametrize(
        ("kind", "shape", "options", "expected"),
        [
            (TensorProto.FLOAT, ("n", 3, 8, 6), "", lambda p: p / 255),
            (TensorProto.FLOAT, ("n", 3, None, None), "@bytes", lambda p: p),
            (TensorProto.FLOAT, (2, 3, 8, 6), "@signed", lambda p: p / 127.5 - 1),
            (TensorProto.DOUBLE, (None, 3, "h", "w"), "", lambda p: p / 255),
            (TensorProto.UINT8, ("n", 3, 8, 6), "", lambda p: p),
            (TensorProto.FLOAT16, ("n", 3, 8, 6), "@unit", lambda p: p / 255),
        ],
        ids=["unit", "bytes", "signed", "double", "uint8", "half"],
    )
    def test_images(self, kind: int, shape: tuple[Any, ...], options: str, expected: Any, tmp_path: Path) -> None:
        suspect = open_suspect(f"onnx:{pooling_model(tmp_path / 'm.onnx', kind, *shape)}{options}")
        np.testing.assert_allclose(
            suspect.embed(PIXELS), expected(PIXELS.float()).mean((2, 3)).numpy(), rtol=2e-3, atol=1e-3
        )
        suspect.finish()

    def test_sizes(self, tmp_path: Path) -> None:
        path = pooling_model(tmp_path / "m.onnx", TensorProto.UINT8, "n", 3, None, None)
        seen: list[tuple[int, ...]] = []
        suspect = OnnxSuspect(f"{path}@12")
        feed = suspect._feed
        suspect._feed = lambda batch: (found := feed(batch), seen.append(found["x"].shape))[0]  # type: ignore[func-returns-value]
        suspect.embed(PIXELS)
        assert seen == [(5, 3, 12, 12)]

    def test_texts_as_strings(self, tmp_path: Path) -> None:
        nodes = [
            helper.make_node("Equal", ["x", "a"], ["e"]),
            helper.make_node("Cast", ["e"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["f", "axis"], ["y"]),
        ]
        constants = [
            helper.make_tensor("a", TensorProto.STRING, [], [b"a"]),
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        ]
        outputs = [value("y", TensorProto.FLOAT, "n", 1)]
        graph = helper.make_graph(nodes, "g", [value("x", TensorProto.STRING, "n")], outputs, initializer=constants)
        file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        (tmp_path / "m.onnx").write_bytes(file.SerializeToString())
        suspect = OnnxSuspect(str(tmp_path / "m.onnx"))
        assert suspect.embed(["a", "b", "a"]).tolist() == [[1], [0], [1]]
        with pytest.raises(UsageError, match="takes texts"):
            suspect.embed(PIXELS)

    def token_model(self, path: Path, *, length: Any = "l", pooled_first: bool = False) -> str:
        """Token k is the vector (k, 1); and where asked for a sentence_embedding of the last token's id."""
        nodes = [
            helper.make_node("Cast", ["input_ids"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["f", "axis"], ["u"]),
            helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["m", "axis"], ["v"]),
            helper.make_node("Concat", ["u", "v"], ["tokens"], axis=2),
            helper.make_node("ReduceMax", ["f"], ["sentence_embedding"], axes=[1], keepdims=1),
        ]
        inputs = [value(name, TensorProto.INT64, "n", length) for name in ("input_ids", "attention_mask")]
        outputs = [value("tokens", TensorProto.FLOAT, "n", length, 2)]
        if pooled_first:
            outputs.append(value("sentence_embedding", TensorProto.FLOAT, "n", 1))
        axis = helper.make_tensor("axis", TensorProto.INT64, [1], [2])
        return saved(path, nodes, inputs, outputs, initializer=[axis])

    def test_tokens(self, tmp_path: Path) -> None:
        pytest.importorskip("tokenizers")
        from helpers.texts import WORDS, tokenizer_json

        (tmp_path / "tokenizer.json").write_text(tokenizer_json())
        texts = [WORDS[0], f"{WORDS[0]} {WORDS[1]} {WORDS[2]}"]  # ids 4; 4 5 6, between [CLS] 2 and [SEP] 3
        for options, expected in (("", [3.0, 4.0]), ("@cls", [2.0, 2.0]), ("@max", [4.0, 6.0]), ("@max,3", [4.0, 4.0])):
            path = self.token_model(tmp_path / "m.onnx")
            assert OnnxSuspect(path + options).embed(texts)[:, 0].tolist() == expected
        assert OnnxSuspect(self.token_model(tmp_path / "m.onnx", length=9)).embed(texts)[:, 0].tolist() == [3.0, 4.0]
        path = self.token_model(tmp_path / "m.onnx", pooled_first=True)
        assert OnnxSuspect(path).embed(texts).tolist() == [[4.0], [6.0]]
        with pytest.raises(UsageError, match="is for images"):
            OnnxSuspect(f"{path}@imagenet")

    def test_weights_beside_the_file(self, tmp_path: Path) -> None:
        path = with_external(tmp_path, "weights.bin")
        (tmp_path / "weights.bin").write_bytes(np.arange(2, dtype=np.float32).tobytes())
        assert OnnxSuspect(path).embed(PIXELS).shape == (5, 3)


def with_external(folder: Path, location: str) -> str:
    """A model one of whose tensors, of two numbers, lies in another file."""
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=text)
    nodes = [
        helper.make_node("ReduceSum", ["w"], ["s"], keepdims=0),
        helper.make_node("ReduceMean", ["x"], ["p"], axes=[2, 3], keepdims=0),
        helper.make_node("Add", ["p", "s"], ["y"]),
    ]
    inputs = [value("x", TensorProto.FLOAT, "n", 3, 8, 6)]
    return saved(folder / "m.onnx", nodes, inputs, [value("y", TensorProto.FLOAT, "n", 3)], initializer=[tensor])


def refused(spec: str, complaint: str) -> None:
    with pytest.raises(SuspectError, match=complaint) as caught:
        open_suspect(f"onnx:{spec}")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


class TestHostileFiles:
    @pytest.mark.parametrize(
        "location",
        [
            "/etc/passwd",
            "../weights.bin",
            "sub/../../weights.bin",
            "link.bin",
            "",
            "..\\weights.bin",
            "a\0b",
            "folder-link/weights.bin",
            ".",
        ],
    )
    def test_weights_from_elsewhere(self, location: str, tmp_path: Path) -> None:
        inner = tmp_path / "inner"
        inner.mkdir()
        (tmp_path / "weights.bin").write_bytes(bytes(8))
        (inner / "link.bin").symlink_to(tmp_path / "weights.bin")
        (inner / "folder-link").symlink_to(tmp_path)
        refused(with_external(inner, location), "outside its folder")

    def test_weights_that_are_not_there(self, tmp_path: Path) -> None:
        refused(with_external(tmp_path, "gone.bin"), "which does not exist")

    def test_weights_hidden_in_a_node(self, tmp_path: Path) -> None:
        tensor = onnx.TensorProto(data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="/etc/passwd")
        branch = helper.make_graph(
            [helper.make_node("Constant", [], ["z"], value=tensor)], "b", [], [value("z", TensorProto.FLOAT, 2)]
        )
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
        condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
        inputs, outputs = [value("x", TensorProto.FLOAT, "n", 3, 8, 6)], [value("y", TensorProto.FLOAT, 2)]
        refused(saved(tmp_path / "m.onnx", nodes, inputs, outputs, initializer=[condition]), "outside its folder")

    @pytest.mark.parametrize(
        ("domain", "operator"), [("evil.ops", "Run"), ("com.microsoft", "EPContext"), ("", "PyOp"), ("x", "Relu")]
    )
    def test_operators_of_others(self, domain: str, operator: str, tmp_path: Path) -> None:
        nodes = [helper.make_node(operator, ["x"], ["y"], domain=domain)]
        inputs, outputs = [value("x", TensorProto.FLOAT, "n", 3, 8, 6)], [value("y", TensorProto.FLOAT, "n", 3)]
        refused(saved(tmp_path / "m.onnx", nodes, inputs, outputs, domains=[domain] if domain else []), "operator")

    def test_operators_of_others_inside_a_function(self, tmp_path: Path) -> None:
        inner = helper.make_node("Run", ["a"], ["b"], domain="evil.ops")
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("evil.ops", 1)]
        function = helper.make_function("mine", "F", ["a"], ["b"], [inner], opsets)
        nodes = [helper.make_node("F", ["x"], ["y"], domain="mine")]
        inputs, outputs = [value("x", TensorProto.FLOAT, "n", 3, 8, 6)], [value("y", TensorProto.FLOAT, "n", 3)]
        refused(saved(tmp_path / "m.onnx", nodes, inputs, outputs, domains=["mine"], functions=[function]), "evil.ops")

    def test_files_that_are_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        refused(str(tmp_path / "gone.onnx"), "gone.onnx is missing")
        refused("", "as a plain file")
        refused(str(tmp_path), "as a plain file")
        for content in (b"", b"not a model", os.urandom(1000), b"\x0a" * 1000):
            (tmp_path / "m.onnx").write_bytes(content)
            refused(str(tmp_path / "m.onnx"), "not an ONNX file|no network")
        good = Path(pooling_model(tmp_path / "g.onnx", TensorProto.FLOAT, "n", 3, 8, 6)).read_bytes()
        for cut in range(1, len(good) - 1, 13):
            (tmp_path / "m.onnx").write_bytes(good[:cut])
            refused(str(tmp_path / "m.onnx"), "not an ONNX file|no network|cannot run|takes")
        monkeypatch.setattr("sslguard.suspects.onnx_files.MAX_FILE", 10)
        refused(str(tmp_path / "g.onnx"), "larger than 10 bytes")

    def test_a_graph_that_does_not_fit_together(self, tmp_path: Path) -> None:
        nodes = [helper.make_node("Relu", ["nowhere"], ["y"])]
        inputs, outputs = [value("x", TensorProto.FLOAT, "n", 3, 8, 6)], [value("y", TensorProto.FLOAT, "n", 3)]
        refused(saved(tmp_path / "m.onnx", nodes, inputs, outputs), "onnxruntime cannot run")

    @pytest.mark.parametrize(
        ("kind", "shape", "complaint"),
        [
            (TensorProto.INT64, ("n", 7), "neither images nor texts"),
            (TensorProto.FLOAT, ("n", 7), "not images"),
            (TensorProto.FLOAT, ("n", 5, 8, 9), "5 channels"),
        ],
    )
    def test_inputs_that_cannot_be_filled(self, kind: int, shape: Any, complaint: str, tmp_path: Path) -> None:
        nodes = [helper.make_node("Identity", ["x"], ["y"])]
        path = saved(tmp_path / "m.onnx", nodes, [value("x", kind, *shape)], [value("y", kind, *shape)])
        with pytest.raises((SuspectError, UsageError), match=complaint):
            OnnxSuspect(path)

    def test_outputs_that_are_no_answers(self, tmp_path: Path) -> None:
        nodes = [helper.make_node("Identity", ["x"], ["y"])]
        shape = ("n", 3, 8, 6)
        path = saved(
            tmp_path / "m.onnx", nodes, [value("x", TensorProto.FLOAT, *shape)], [value("y", TensorProto.FLOAT, *shape)]
        )
        with pytest.raises(SuspectError, match=r"no output with a row .* y \(5, 3, 8, 6\)"):
            OnnxSuspect(path).embed(PIXELS)

    def test_a_failure_while_it_runs(self, tmp_path: Path) -> None:
        constant = helper.make_tensor("s", TensorProto.INT64, [2], [7, 1000])
        nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
        inputs, outputs = [value("x", TensorProto.FLOAT, "n", 3, 8, 6)], [value("y", TensorProto.FLOAT, 7, 1000)]
        suspect = OnnxSuspect(saved(tmp_path / "m.onnx", nodes, inputs, outputs, initializer=[constant]))
        with pytest.raises(SuspectError, match="failed"):
            suspect.embed(PIXELS)

    def test_an_endless_loop_is_ended(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnx_suspects, "RUN_SECONDS", 0.3)
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["v"], ["w"])],
            "body",
            [value("i", TensorProto.INT64), value("go", TensorProto.BOOL), value("v", TensorProto.FLOAT, None, None)],
            [value("on", TensorProto.BOOL), value("w", TensorProto.FLOAT, None, None)],
        )
        constants = [
            helper.make_tensor("many", TensorProto.INT64, [], [2**62]),
            helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
        ]
        nodes = [
            helper.make_node("ReduceMean", ["x"], ["p"], axes=[2, 3], keepdims=0),
            helper.make_node("Loop", ["many", "yes", "p"], ["y"], body=body),
        ]
        inputs, outputs = [value("x", TensorProto.FLOAT, "n", 3, 8, 6)], [value("y", TensorProto.FLOAT, None, None)]
        suspect = OnnxSuspect(saved(tmp_path / "m.onnx", nodes, inputs, outputs, initializer=constants))
        with pytest.raises(SuspectError, match=r"stopped after 0\.3 s"):
            suspect.embed(PIXELS)

    @pytest.mark.parametrize(
        "metadata",
        ["", "{", "[]", '{"kind": "x"}', '{"kind": "text"}', '{"kind": "words"}', "[" * 9999, '{"kind": []}'],
        ids=lambda text: text[:20],
    )
    def test_metadata_that_say_nothing(self, metadata: str, tmp_path: Path) -> None:
        path = Path(pooling_model(tmp_path / "m.onnx", TensorProto.FLOAT, "n", 3, 8, 6))
        model = onnx.load(path)
        helper.set_model_props(model, {METADATA: metadata})
        path.write_bytes(model.SerializeToString())
        refused(str(path), "metadata|tokenizer")
        assert OnnxSuspect(f"{path}@unit").embed(PIXELS).shape == (5, 3)

    def test_metadata_of_another_kind(self, tmp_path: Path) -> None:
        path = Path(pooling_model(tmp_path / "m.onnx", TensorProto.FLOAT, "n", 3, 8, 6))
        model = onnx.load(path)
        helper.set_model_props(model, {METADATA: json.dumps(ImagePreprocess(8, 8, 3).to_json())})
        path.write_bytes(model.SerializeToString())
        refused(str(path), "but its metadata describe others")

    def test_options_that_are_none(self, tmp_path: Path) -> None:
        path = pooling_model(tmp_path / "m.onnx", TensorProto.FLOAT, "n", 3, 8, 6)
        with pytest.raises(UsageError, match=r"an option must be a number, one of .*, not 'fast'"):
            OnnxSuspect(f"{path}@fast")


def test_libraries_load_on_use_and_send_nothing() -> None:
    program = (
        "import sys, sslguard.suspects, sslguard.cli\n"
        "assert not {'onnx', 'onnxruntime', 'httpx2', 'fastapi'} & set(sys.modules)\n"
        "import os, sslguard.suspects.onnx as o\n"
        "o._runtime()\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
    )
    environment = {name: text for name, text in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_without_the_extra_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"pip install 'sslguard\[onnx\]'"):
        OnnxSuspect(str(tmp_path / "m.onnx"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"pip install 'sslguard\[onnx\]'"):
        export_onnx(None, tmp_path / "m.onnx")  # type: ignore[arg-type]
