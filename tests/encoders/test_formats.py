"""Encoders written in the formats that they came in: the libraries load them alone and give the same numbers.

Folders of transformers and sentence-transformers are written back in test_vision.py and test_sentences.py.
"""

from __future__ import annotations

import importlib.util
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sslguard
from helpers.command_line import done
from helpers.texts import described, tokenizer_json
from sslguard.crypto.secrets import Secret
from sslguard.data.own import own_data
from sslguard.encoders.base import Encoder
from sslguard.encoders.formats import export, usual_formats, write_usual
from sslguard.encoders.load import load_encoder
from sslguard.encoders.model_card import base_name
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.rebuild import build
from sslguard.encoders.text import TextPreprocess
from sslguard.errors import EncoderError, OutputError, UsageError
from sslguard.schemes.exact import Exact, Protocol

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

SETTINGS: dict[str, Any] = {"mode": "head", "protocol": {"n_queries": 256}}
SECRETS = ("watermark", "exact", "sslguard", "mark", "key", "secret")


def pictures(n: int, size: int = 32) -> Tensor:
    coarse = np.random.default_rng(3).integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)
    return torch.from_numpy(coarse.repeat(size // 8, 2).repeat(size // 8, 3))


def headed(encoder: Encoder, items: Any) -> Encoder:
    scheme = Exact(Protocol(n_queries=256), "head")
    return scheme.watermark(encoder, own_data(items), secret=Secret.from_seed(1)).encoder


def off(got: Any, want: np.ndarray) -> float:
    found = got.detach().numpy() if isinstance(got, Tensor) else got
    assert found.shape == want.shape
    return float(np.abs(found - want).max() / np.abs(want).max())


def seen(encoder: Encoder, items: Any) -> Tensor:
    return encoder.preprocess.normalise(encoder.preprocess.prepare(items))


def shaken(module: nn.Module) -> nn.Module:
    """Weights of which none is as a library makes it."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return module.eval()


def texts_of(n: int) -> list[str]:
    rng = np.random.default_rng(0)
    words = ["a", "an", "the", "cat", "dog", "sat", "ran", "on", "under", "mat", "log", "big", "small", "red"]
    return [" ".join(rng.choice(words, rng.integers(2, 12))) for _ in range(n)]


def text_encoder(**fields: Any) -> Encoder:
    architecture = described(unit=True) | fields
    module, dim = build(architecture, seed=0)
    return Encoder(shaken(module), TextPreprocess(tokenizer_json(), 32), dim, architecture, "hf:some/where/tiny")


class TestTimm:
    @pytest.mark.parametrize("spec", ["timm:test_vit:random", "timm:test_resnet:random@64", "timm:test_vit:random@96"])
    def test_a_folder(self, spec: str, tmp_path: Path) -> None:
        encoder = load_encoder(spec)
        shaken(encoder.module)
        assert export(encoder, tmp_path / "out") == "timm"
        images = pictures(3, 96)
        model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
        assert off(model(seen(encoder, images)), encoder.embed(images)) < 1e-5
        assert off(load_encoder(f"timm:local-dir:{tmp_path / 'out'}").embed(images), encoder.embed(images)) < 1e-5
        assert load_file(tmp_path / "out" / "model.safetensors").keys() == encoder.module.state_dict().keys()

    @pytest.mark.parametrize("end", [".pth", ".safetensors"])
    def test_a_checkpoint_keeps_its_names(self, end: str, tmp_path: Path) -> None:
        clean = shaken(timm.create_model("test_vit", num_classes=7))
        theirs = {f"module.{name}": tensor for name, tensor in clean.state_dict().items()}
        copies = {f"ema.{name}": tensor for name, tensor in clean.state_dict().items()}
        torch.save({"state_dict": {**theirs, **copies}, "epoch": 3}, tmp_path / "theirs.pth")
        encoder = load_encoder(f"timm:test_vit:{tmp_path / 'theirs.pth'}@prefix=module")
        assert usual_formats(encoder) == ("timm", "state-dict")
        shaken(encoder.module)
        export(encoder, tmp_path / f"ours{end}")
        found: Any = torch.load(tmp_path / "ours.pth") if end == ".pth" else load_file(tmp_path / f"ours{end}")
        found = found["state_dict"] if end == ".pth" else found
        assert found.keys() == theirs.keys()  # the head that they had too, and no copy without the mark
        again = timm.create_model("test_vit", num_classes=7)
        again.load_state_dict({name.removeprefix("module."): tensor for name, tensor in found.items()})
        again.reset_classifier(0)
        images = pictures(3, 160)
        assert off(again.eval()(seen(encoder, images)), encoder.embed(images)) < 1e-5


class TestTorchvision:
    @pytest.mark.parametrize("numbered", [False, True])
    def test_a_checkpoint_keeps_its_names(self, numbered: bool, tmp_path: Path) -> None:
        network = shaken(torchvision.models.resnet18())
        theirs = dict(network.state_dict())
        if numbered:
            inner = nn.Sequential(*list(network.children())[:-1])
            theirs = {f"encoder.f.{name}": tensor for name, tensor in inner.state_dict().items()}
        torch.save(theirs, tmp_path / "theirs.pth")
        encoder = load_encoder(str(tmp_path / "theirs.pth"))
        shaken(encoder.module)
        assert export(encoder, tmp_path / "ours.pth") == "state-dict"
        found = torch.load(tmp_path / "ours.pth")
        assert found.keys() == theirs.keys()
        images = pictures(2, 64)
        if numbered:
            inner.load_state_dict({name.removeprefix("encoder.f."): tensor for name, tensor in found.items()})
            answer = inner.eval()(seen(encoder, images)).flatten(1)
        else:
            again = torchvision.models.resnet18()
            again.load_state_dict(found)
            again.fc = nn.Identity()
            answer = again.eval()(seen(encoder, images))
        assert off(answer, encoder.embed(images)) < 1e-5
        assert off(load_encoder(str(tmp_path / "ours.pth")).embed(images), encoder.embed(images)) < 1e-5


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 5, 4), nn.Linear(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)).mean((2, 3)))


class TestPrograms:
    @pytest.mark.parametrize(
        ("kind", "with_head"),
        [("images", True), ("own", False), ("own, read again", True), ("texts", True), ("vit", True)],
    )
    def test_torch_export(self, kind: str, with_head: bool, tmp_path: Path) -> None:
        items: Any = pictures(200)
        if kind == "texts":
            encoder, items = text_encoder(), texts_of(200)
        elif kind.startswith("own"):
            items = items.float() / 127 - 1
            encoder = load_encoder(shaken(Mine()), example=items)
        else:
            encoder = load_encoder("shipped:simclr" if kind == "images" else "timm:test_vit:random@32")
        encoder = headed(encoder, items) if with_head else encoder
        if "again" in kind:
            sslguard.save_encoder(encoder, tmp_path / "saved")
            encoder = load_encoder(tmp_path / "saved")
        assert export(encoder, tmp_path / "out.pt2") == "torch-export"
        program = torch.export.load(tmp_path / "out.pt2").module()
        prepared = encoder.preprocess.prepare(items[:5])
        inputs = prepared.unbind(1) if kind == "texts" else (prepared,)
        assert off(program(*inputs), encoder.embed(items[:5])) < 1e-5

    @pytest.mark.parametrize("end", [".pt2", ".onnx"])
    def test_files_name_no_mark(self, end: str, tmp_path: Path) -> None:
        """Neither a mark nor a folder of this machine is named in a file that is handed on."""
        encoder = headed(load_encoder("shipped:simclr"), pictures(200))
        export(encoder, tmp_path / f"out{end}")
        export(encoder, tmp_path / "weights.pth", "state-dict")
        for file in tmp_path.iterdir():
            names = [file.read_bytes()] if file.suffix == ".onnx" else []
            if file.suffix in (".pt2", ".pth"):
                with zipfile.ZipFile(file) as archive:
                    names = [archive.read(one) for one in archive.namelist() if one.endswith((".json", ".pkl", ".pt"))]
            for content in names:
                found = re.search(rb"(?i)watermark|sslguard|[^a-z]mark|secret|" + str(Path.cwd()).encode(), content)
                assert found is None, (file, content[found.start() - 40 : found.end() + 40])

    def test_onnx_of_ones_own_module(self, tmp_path: Path) -> None:
        runtime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnx")
        items = pictures(200).float() / 127 - 1
        encoder = headed(load_encoder(shaken(Mine()), example=items), items)
        sslguard.save_encoder(encoder, tmp_path / "saved")
        export(load_encoder(tmp_path / "saved"), tmp_path / "out.onnx")
        session = runtime.InferenceSession(tmp_path / "out.onnx")
        (found,) = session.run(None, {"images": items[:5].numpy()})
        assert off(found, encoder.embed(items[:5])) < 1e-4

    def test_a_function_is_refused(self, tmp_path: Path) -> None:
        encoder = load_encoder(lambda batch: batch.flatten(1)[:, :8].numpy(), example=pictures(4))
        with pytest.raises(UsageError, match="this is a function"):
            export(encoder, tmp_path / "out.pth")
        assert usual_formats(encoder) == ()


class TestHeads:
    @pytest.mark.parametrize("spec", ["timm:test_vit:random", "shipped:simclr"])
    def test_beside_the_weights(self, spec: str, tmp_path: Path) -> None:
        images = pictures(200, 64)
        encoder = headed(load_encoder(spec), images)
        export(encoder, tmp_path / "out" / "weights.pth", "state-dict")
        clean: Any = load_encoder(spec).module
        clean.load_state_dict(torch.load(tmp_path / "out" / "weights.pth"))
        head = torch.export.load(tmp_path / "out" / "head.pt2").module()
        inputs = seen(encoder, images[:5])
        assert off(head(clean(inputs), inputs), encoder.embed(images[:5])) < 1e-5
        for kind in ("hf", "local-dir", "timm:local-dir"):
            with pytest.raises(
                UsageError, match=r"weights alone answer without it: ask what is served, or move head\.pt2"
            ):
                load_encoder(f"{kind}:{tmp_path / 'out'}")
        assert off(clean(inputs), encoder.embed(images[:5])) > 0.01

    @pytest.mark.parametrize("cut", [None, 12])
    def test_as_a_module_of_sentence_transformers(self, cut: int | None, tmp_path: Path) -> None:
        texts = texts_of(200)
        encoder = headed(text_encoder(**({} if cut is None else {"truncate": cut})), texts)
        assert export(encoder, tmp_path / "out") == "sentence-transformers"
        last = json.loads((tmp_path / "out" / "modules.json").read_text())[-1]
        assert last["type"] == "head.Head"
        assert "truncate_dim" not in json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())
        # As sentence-transformers does: the class from the folder's own file, loaded from the module's folder.
        spec = importlib.util.spec_from_file_location("their_head", tmp_path / "out" / "head.py")
        assert spec is not None
        assert spec.loader is not None
        code = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(code)
        module = code.Head.load(str(tmp_path / "out" / last["path"]))
        whole = text_encoder()
        tokens = dict(zip(("input_ids", "attention_mask"), whole.preprocess.prepare(texts[:5]).unbind(1), strict=True))
        given = {"sentence_embedding": torch.from_numpy(whole.embed(texts[:5])), **tokens}
        assert off(module(given)["sentence_embedding"], encoder.embed(texts[:5])) < 1e-5
        (tmp_path / "again").mkdir()
        module.save(str(tmp_path / "again"))
        assert (tmp_path / "again" / "head.pt2").is_file()
        with pytest.raises(EncoderError, match="code of its own, which is never run"):
            load_encoder(f"hf:{tmp_path / 'out'}")


class TestMarking:
    def test_the_marked_encoder_lies_in_its_owners_format(self, tmp_path: Path) -> None:
        images = pictures(700, 32)
        (tmp_path / "their-model").mkdir()
        export(load_encoder("timm:test_vit:random@32"), tmp_path / "clean")
        spec = f"timm:local-dir:{tmp_path / 'clean'}"
        marked = sslguard.watermark(
            spec,
            images,
            scheme="exact",
            settings={**SETTINGS, "mode": "distilled", "steps": 2, "learning_rate": 1e-5},
            out=tmp_path / "m",
        )
        assert marked.formats == ("timm",)
        place = tmp_path / "m" / "encoder"
        model = timm.create_model(f"local-dir:{place}", pretrained=True).eval()
        assert off(model(seen(marked.encoder, images[:4])), marked.encoder.embed(images[:4])) < 1e-5
        assert off(load_encoder(place).embed(images[:4]), marked.encoder.embed(images[:4])) < 1e-6
        assert done("export", place, "--out", tmp_path / "out")["format"] == "timm"
        for file in (tmp_path / "out").iterdir():
            content = file.read_bytes().lower() if file.suffix != ".safetensors" else file.read_bytes()[:9000].lower()
            assert not any(word.encode() in content for word in SECRETS), file
            assert str(tmp_path).encode() not in content
        assert "base_model: clean" in (tmp_path / "out" / "README.md").read_text()

    def test_a_head_lies_beside(self, tmp_path: Path) -> None:
        items = pictures(700).float() / 127 - 1
        marked = sslguard.watermark(shaken(Mine()), items, scheme="exact", settings=SETTINGS, out=tmp_path / "m")
        place = tmp_path / "m" / "encoder"
        assert marked.formats == ("state-dict",)
        again = Mine().eval()
        again.load_state_dict(load_file(place / "checkpoint.safetensors"))
        served = torch.export.load(place / "head.pt2").module()(again(items[:4]), items[:4])
        assert off(served, load_encoder(place).embed(items[:4])) < 1e-5


class TestRefused:
    def test_formats_that_do_not_fit(self, tmp_path: Path) -> None:
        small = load_encoder("shipped:simclr")
        for form, words in (
            ("hf", "hf is for encoders of transformers"),
            ("timm", "timm is for networks of timm"),
            ("sentence-transformers", "is for encoders of texts"),
            ("tflite", "the format must be one of"),
        ):
            with pytest.raises(UsageError, match=words):
                export(small, tmp_path / "out", form)
        for out, form, words in (("out", None, "name a format"), ("out.zip", "onnx", r"ends in \.onnx")):
            with pytest.raises(UsageError, match=words):
                export(small, tmp_path / out, form)
        assert not list(tmp_path.iterdir())
        with pytest.raises(UsageError, match="layers or a cut come behind"):
            export(text_encoder(truncate=4), tmp_path / "out", "hf")

    def test_what_is_there_stays(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        with pytest.raises(OutputError):
            export(load_encoder("timm:test_vit:random"), tmp_path / "out")
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]

    def test_a_cut_that_no_image_processor_makes(self, tmp_path: Path) -> None:
        pytest.importorskip("transformers")
        config = {"model_type": "vit", "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1}
        config |= {"num_attention_heads": 2, "intermediate_size": 32}
        architecture = {"backbone": "hf-vision", "config": config, "pooling": "cls", "unit": False}
        module, dim = build(architecture, seed=0)
        tall = ImagePreprocess(40, 32, crop=0.8)
        with pytest.raises(UsageError, match="no image processor of transformers"):
            export(Encoder(module.eval(), tall, dim, architecture, "x"), tmp_path / "out")
        assert write_usual(load_encoder("shipped:simclr"), tmp_path) == ()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("exact-marked hf:/models/me/models/bert-tiny@cls", "bert-tiny"),
        ("hf:/cache/models--intfloat--e5-small/snapshots/abc@unit", "intfloat/e5-small"),
        ("timm:vit_tiny_patch16_224", "timm/vit_tiny_patch16_224"),
        ("timm:deit_tiny:/models/me/file.pth@96", "file.pth"),
        ("/models/me/moco.pth.tar@96,raw", "moco.pth.tar"),
        ("__main__.Mine", "__main__.Mine"),
    ],
)
def test_base_names_hold_no_path(source: str, name: str) -> None:
    assert base_name(source) == name
