"""Encoders of images in folders that transformers wrote: the library's own numbers, and hostile folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.encoders.formats import export
from sslguard.encoders.load import load_encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.processors import processed
from sslguard.encoders.rebuild import build
from sslguard.encoders.vision import MODEL_TYPES, checked_config
from sslguard.errors import DataError, EncoderError, UsageError

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VIT = {"image_size": 32, "patch_size": 8, **SMALL}
MAPS = {"hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1]}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
TEXT = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **SMALL}
HEAD_OF_MAE = {
    **{"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2},
    **{"decoder_intermediate_size": 16, "mask_ratio": 0.0},
}
BOX, EDGE = {"height": 32, "width": 32}, {"shortest_edge": 32}
Answer = Callable[[Any, Tensor], Tensor]


def cls(model: Any, seen: Tensor) -> Tensor:
    return model(pixel_values=seen).last_hidden_state[:, 0]


def pooler(model: Any, seen: Tensor) -> Tensor:
    return model(pixel_values=seen).pooler_output.flatten(1)


def inner(part: str, answer: Answer) -> Answer:
    return lambda model, seen: answer(getattr(model, part), seen)


def patches(model: Any, seen: Tensor) -> Tensor:
    """The mean of the patches of a ViT-MAE, whichever order it shuffles them to."""
    return model(pixel_values=seen).last_hidden_state[:, 1:].mean(1)


def features(model: Any, seen: Tensor) -> Tensor:
    return model.visual_projection(model.vision_model(pixel_values=seen).pooler_output)


def of(name: str, config: str, /, *, extra: dict[str, Any] | None = None, **fields: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(getattr(transformers, config)(**fields), **(extra or {}))


def tall(**fields: Any) -> dict[str, Any]:
    return {"size": {"height": 40, "width": 40}, "crop_size": BOX, **fields}


# name → the model, its processor and the processor's options, and what the library answers.
MODELS: dict[str, tuple[Callable[[], Any], str, dict[str, Any], Answer]] = {
    "vit, no pooler": (
        of("ViTModel", "ViTConfig", extra={"add_pooling_layer": False}, **VIT),
        "ViT",
        {"size": BOX},
        cls,
    ),
    "vit": (of("ViTModel", "ViTConfig", **VIT), "ViT", {"size": BOX}, pooler),
    "vit, classifier": (of("ViTForImageClassification", "ViTConfig", **VIT), "ViT", {"size": BOX}, inner("vit", cls)),
    "deit": (of("DeiTModel", "DeiTConfig", extra={"add_pooling_layer": False}, **VIT), "DeiT", tall(), cls),
    "dinov2": (
        of("Dinov2Model", "Dinov2Config", **{k: v for k, v in VIT.items() if k != "intermediate_size"}),
        "Bit",
        {"size": {"shortest_edge": 40}, "crop_size": BOX},
        pooler,
    ),
    "dinov2 with registers": (
        of(
            "Dinov2WithRegistersModel",
            "Dinov2WithRegistersConfig",
            **{k: v for k, v in VIT.items() if k != "intermediate_size"},
            num_register_tokens=3,
        ),
        "Bit",
        {"size": EDGE, "crop_size": BOX},
        pooler,
    ),
    "dinov3": (
        of("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=2, **VIT),
        "DINOv3ViT",
        {"size": BOX},
        pooler,
    ),
    "dinov3 convnext": (
        of("DINOv3ConvNextModel", "DINOv3ConvNextConfig", image_size=32, **MAPS),
        "DINOv3ViT",
        {"size": BOX},
        pooler,
    ),
    "clip": (
        of("CLIPModel", "CLIPConfig", vision_config=VIT, text_config=TEXT, projection_dim=20),
        "CLIP",
        {"size": EDGE, "crop_size": BOX},
        features,
    ),
    "clip, projected tower": (
        of("CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=20, **VIT),
        "CLIP",
        {"size": EDGE, "crop_size": BOX},
        features,
    ),
    "clip, tower": (
        of("CLIPVisionModel", "CLIPVisionConfig", **VIT),
        "CLIP",
        {"size": EDGE, "crop_size": BOX},
        pooler,
    ),
    "siglip": (
        of("SiglipModel", "SiglipConfig", vision_config=VIT, text_config=TEXT),
        "Siglip",
        {"size": BOX},
        inner("vision_model", pooler),
    ),
    "siglip, tower": (of("SiglipVisionModel", "SiglipVisionConfig", **VIT), "Siglip", {"size": BOX}, pooler),
    "convnext": (of("ConvNextModel", "ConvNextConfig", image_size=32, **MAPS), "ConvNext", {"size": EDGE}, pooler),
    "convnextv2, classifier": (
        of("ConvNextV2ForImageClassification", "ConvNextV2Config", image_size=32, **MAPS),
        "ConvNext",
        {"size": EDGE, "crop_pct": 1.0},
        inner("convnextv2", pooler),
    ),
    "resnet": (
        of("ResNetModel", "ResNetConfig", embedding_size=8, layer_type="basic", **MAPS),
        "ConvNext",
        {"size": {"shortest_edge": 384}, "resample": 2},
        pooler,
    ),
    "regnet, classifier": (
        of("RegNetForImageClassification", "RegNetConfig", embedding_size=8, groups_width=4, **MAPS),
        "ConvNext",
        {"size": EDGE},
        inner("regnet", pooler),
    ),
    "swin": (of("SwinModel", "SwinConfig", **SWIN), "ViT", {"size": BOX}, pooler),
    "swinv2": (of("Swinv2Model", "Swinv2Config", **SWIN), "ViT", {"size": BOX}, pooler),
    "vit mae": (
        of("ViTMAEForPreTraining", "ViTMAEConfig", **VIT, **HEAD_OF_MAE),
        "ViT",
        {"size": BOX, "resample": 3},
        inner("vit", patches),
    ),
    "vit msn": (of("ViTMSNModel", "ViTMSNConfig", **VIT), "ViT", {"size": BOX}, cls),
}


def pictures(*shape: int, seed: int = 0) -> Tensor:
    """Smooth pictures of bytes, so that resizing does not average all of them to the same grey."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        small = torch.rand(shape[0], shape[1], 5, 6)
    big = torch.nn.functional.interpolate(small, shape[2:], mode="bilinear", align_corners=False)
    return (big * 255).round().to(torch.uint8)


def written(folder: Path, name: str) -> tuple[Any, Any]:
    """Write a model with random weights, and its processor; return both."""
    make, kind, options, _ = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = make().eval()
        # Fresh biases and norms are all alike, and would hide weights that went to another's place.
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    processor = getattr(transformers, f"{kind}ImageProcessor")(**options)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def answers(model: Any, processor: Any, images: Tensor, answer: Answer) -> np.ndarray:
    seen = processor(images=list(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return answer(model, seen).numpy()


def off(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("name", MODELS)
def test_the_library_gives_the_same_numbers(name: str, tmp_path: Path) -> None:
    """On pictures of the model's size and on larger ones, which must be resized and cut as the library does it."""
    model, processor = written(tmp_path / "model", name)
    encoder = load_encoder(f"hf:{tmp_path / 'model'}")
    for images in (pictures(3, 3, 32, 32), pictures(2, 3, 50, 67)):
        assert off(encoder.embed(images), answers(model, processor, images, MODELS[name][3])) < 1e-5
    save_encoder(encoder, tmp_path / "saved")
    assert np.array_equal(load_folder(tmp_path / "saved").embed(images), encoder.embed(images))
    written_back(encoder, tmp_path / "back", images)


def written_back(encoder: Encoder, folder: Path, images: Tensor) -> None:
    """What is written loads without this package, and gives the same numbers."""
    assert export(encoder, folder) == "hf"
    module: Any = encoder.module
    model = type(module.model).from_pretrained(folder).eval()
    seen = transformers.AutoImageProcessor.from_pretrained(folder)(images=list(images), return_tensors="pt")
    more = {"noise": torch.arange(16.0).expand(len(images), -1)} if module.kind == "vit_mae" else {}
    found = model(**seen, **more)
    with torch.no_grad():
        pooled = module._pooled(found)
    assert off(pooled.detach().numpy(), encoder.embed(images)) < 1e-5
    again = load_encoder(f"hf:{folder}@{module.pooling}")
    assert off(again.embed(images), encoder.embed(images)) < 1e-5


def test_every_type_of_models_is_tried() -> None:
    tried = {make().config.model_type for make, *_ in MODELS.values()}
    assert tried == MODEL_TYPES


class TestChoices:
    def test_pooling(self, tmp_path: Path) -> None:
        model, processor = written(tmp_path, "vit")
        images = pictures(3, 3, 32, 32)
        hidden = answers(model, processor, images, lambda m, x: m(pixel_values=x).last_hidden_state)
        assert off(load_encoder(f"hf:{tmp_path}@cls").embed(images), hidden[:, 0]) < 1e-5
        mean = hidden[:, 1:].mean(1)
        assert off(load_encoder(f"hf:{tmp_path}@mean").embed(images), mean) < 1e-5
        unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        assert off(load_encoder(f"hf:{tmp_path}@mean,unit").embed(images), unit) < 1e-5
        with pytest.raises(UsageError, match="a vit is pooled by cls, pooler, mean, not by projection"):
            load_encoder(f"hf:{tmp_path}@projection")
        with pytest.raises(UsageError, match="max"):
            load_encoder(f"hf:{tmp_path}@max")

    def test_registers_are_no_patches(self, tmp_path: Path) -> None:
        model, processor = written(tmp_path, "dinov2 with registers")
        images = pictures(3, 3, 32, 32)
        hidden = answers(model, processor, images, lambda m, x: m(pixel_values=x).last_hidden_state)
        assert off(load_encoder(f"hf:{tmp_path}@mean").embed(images), hidden[:, 4:].mean(1)) < 1e-5

    def test_a_whole_clip_without_its_projection(self, tmp_path: Path) -> None:
        model, processor = written(tmp_path, "clip")
        images = pictures(3, 3, 32, 32)
        want = answers(model, processor, images, inner("vision_model", pooler))
        assert off(load_encoder(f"hf:{tmp_path}@pooler").embed(images), want) < 1e-5

    def test_another_size_interpolates_the_positions(self, tmp_path: Path) -> None:
        model, processor = written(tmp_path, "vit")
        images = pictures(3, 3, 48, 48)
        processor.size = {"height": 48, "width": 48}

        def at_48(model: Any, seen: Tensor) -> Tensor:
            return model(pixel_values=seen, interpolate_pos_encoding=True).pooler_output

        assert off(load_encoder(f"hf:{tmp_path}@48").embed(images), answers(model, processor, images, at_48)) < 1e-5

    def test_raw_leaves_out_the_normalising(self, tmp_path: Path) -> None:
        written(tmp_path, "vit")
        preprocess = load_encoder(f"hf:{tmp_path}@raw").preprocess
        assert isinstance(preprocess, ImagePreprocess)
        assert preprocess.mean == (0.0,) * 3


class TestWeights:
    @pytest.mark.parametrize("kind", ["shards", "bin", "bin shards", "half"])
    def test_every_form_of_files(self, kind: str, tmp_path: Path) -> None:
        model, processor = written(tmp_path, "vit")
        state = load_file(tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").unlink()
        places = {name: f"part-{k % 2}" for k, name in enumerate(sorted(state))}
        if kind == "half":
            save_file(
                {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}, tmp_path / "model.safetensors"
            )
        elif kind == "bin":
            torch.save(state, tmp_path / "pytorch_model.bin")
        else:
            index, end = ("model.safetensors", ".safetensors") if kind == "shards" else ("pytorch_model.bin", ".bin")
            for part in set(places.values()):
                held = {name: state[name] for name in state if places[name] == part}
                save_file(held, tmp_path / f"{part}{end}") if kind == "shards" else torch.save(
                    held, tmp_path / (part + end)
                )
            content = {"weight_map": {name: part + end for name, part in places.items()}}
            (tmp_path / f"{index}.index.json").write_text(json.dumps(content))
        images = pictures(3, 3, 32, 32)
        within = 2e-2 if kind == "half" else 1e-5
        assert off(load_encoder(f"hf:{tmp_path}").embed(images), answers(model, processor, images, pooler)) < within


def change(name: str, **fields: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return apply


def config(**fields: Any) -> Callable[[Path], None]:
    return change("config.json", **fields)


def processor(**fields: Any) -> Callable[[Path], None]:
    return change("preprocessor_config.json", **fields)


def weights(**tensors: Tensor | None) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        state = load_file(path) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)

    return apply


def index(content: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return apply


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "code of the model": (config(auto_map={"AutoModel": "evil.Model"}), "code of its own, which is never run"),
    "code of the processor": (
        processor(auto_map={"AutoImageProcessor": "evil.P"}),
        "code of its own, which is never run",
    ),
    "quantised": (config(quantization_config={"bits": 4}), "another format"),
    "wide": (config(hidden_size=1 << 19, num_attention_heads=2), "parameters"),
    "wider than numbers are": (config(hidden_size=10**400), "may be"),
    "deep": (config(num_hidden_layers=10**6), "num_hidden_layers"),
    "more weights than there are": (config(num_hidden_layers=250), "weights are missing"),
    "immense images": (config(image_size=1 << 30), "image_size"),
    "a word for a width": (config(hidden_size="wide"), "hidden_size"),
    "a list of lists": (config(hidden_size=[[1]]), "hidden_size"),
    "not finite": (config(layer_norm_eps=float("nan")), "layer_norm_eps"),
    "heads that do not divide": (config(num_attention_heads=5), r"has shape \(32,\), not \(30,\)"),
    "five channels": (config(num_channels=5), "channels"),
    "no configuration": (lambda f: (f / "config.json").write_text("[]"), "JSON dict"),
    "deep JSON": (lambda f: (f / "config.json").write_text("[" * 100_000), "JSON"),
    "no processor": (lambda f: (f / "preprocessor_config.json").unlink(), "holds no preprocessor_config.json"),
    "another processor": (processor(image_processor_type="SamImageProcessor"), "only BitImageProcessor"),
    "padding": (processor(do_pad=True), "do_pad True cannot be followed"),
    "a field of tomorrow": (processor(blur=3), "blur 3 cannot be followed"),
    "lanczos": (processor(resample=1), "resample must be 2"),
    "a list for resample": (processor(resample=[2]), "resample must be 2"),
    "an immense size": (processor(size={"height": 10**9, "width": 10**9}), "4096"),
    "a negative size": (processor(size={"height": -1, "width": 32}), "4096"),
    "no square": (processor(size={"shortest_edge": 32}), "shorter side"),
    "a longest edge": (processor(size={"longest_edge": 32}), "a size must be"),
    "a mean of words": (processor(image_mean=["a", "b", "c"]), "must be numbers"),
    "two means": (processor(image_mean=[0.5, 0.5]), "3 values"),
    "no deviation": (processor(image_std=[0.0, 0.0, 0.0]), "std"),
    "an immense mean": (processor(image_mean=10**400), "must be numbers"),
    "a scale of zero": (processor(rescale_factor=0), "above 0"),
    "a word for a flag": (processor(do_resize="yes"), "true or false"),
    "a weight too few": (weights(layernorm__weight=None), "1 weights are missing, first layernorm.weight"),
    "a weight of another shape": (weights(layernorm__weight=torch.ones(3)), "has shape"),
    "a weight that is not finite": (weights(layernorm__bias=torch.full((32,), torch.inf)), "not finite"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
    "damaged weights": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "damaged"),
    "a shard outside": (index({"weight_map": {"a": "../model.safetensors"}}), "outside"),
    "a shard that is missing": (index({"weight_map": {"a": "b.safetensors"}}), "not there"),
    "no shards": (index({"weight_map": {}}), "weight_map"),
    "numbers for shards": (index({"weight_map": {"a": 3}}), "weight_map"),
    "too many patches": (processor(size={"height": 1040, "width": 1040}), "16384 patches, not 16900"),
}


class TestHostile:
    @pytest.fixture(scope="class")
    def saved(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("vit")
        written(folder, "vit")
        return folder

    @pytest.mark.parametrize("what", HOSTILE)
    def test_one_sentence_says_what_is_wrong(self, what: str, saved: Path, tmp_path: Path) -> None:
        damage, words = HOSTILE[what]
        folder = shutil.copytree(saved, tmp_path / "model")
        damage(folder)
        with pytest.raises(EncoderError, match=words) as caught:
            load_encoder(f"hf:{folder}")
        assert "\n" not in str(caught.value)

    def test_a_pickle_that_runs_code_is_not_run(self, saved: Path, tmp_path: Path) -> None:
        class Harmful:
            def __reduce__(self) -> tuple[Any, tuple[str]]:
                return eval, (f"open({str(tmp_path / 'trace')!r}, 'w')",)

        folder = shutil.copytree(saved, tmp_path / "model")
        (folder / "model.safetensors").unlink()
        torch.save({"layernorm.weight": Harmful()}, folder / "pytorch_model.bin")
        with pytest.raises(EncoderError, match="more than tensors"):
            load_encoder(f"hf:{folder}")
        assert not (tmp_path / "trace").exists()

    @pytest.mark.parametrize(
        "architecture",
        [
            {"backbone": "hf-vision"},
            {"backbone": "hf-vision", "config": 3, "pooling": "cls", "unit": False},
            {"backbone": "hf-vision", "config": {"model_type": "vit"}, "pooling": ["cls"], "unit": False},
            {"backbone": "hf-vision", "config": {"model_type": "vit"}, "pooling": "cls", "unit": 1},
            {"backbone": "hf-vision", "config": {"model_type": ["vit"]}, "pooling": "cls", "unit": False},
            {"backbone": "hf-vision", "config": {"model_type": "bert"}, "pooling": "cls", "unit": False},
            {
                "backbone": "hf-vision",
                "config": {"model_type": "clip", "vision_config": 3},
                "pooling": "cls",
                "unit": False,
            },
        ],
    )
    def test_a_description_of_something_else_is_refused(self, architecture: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            build(architecture, seed=0)

    def test_texts_keep_their_own_options(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
        with pytest.raises(UsageError, match="pooler is for encoders of images"):
            load_encoder(f"hf:{tmp_path}@pooler")


class TestProcessor:
    """Configurations of image processors against the library's own class."""

    FIELDS: ClassVar[dict[str, dict[str, Any]]] = {
        "old, one number": {"feature_extractor_type": "ViTFeatureExtractor", "size": 32},
        "fast": {"image_processor_type": "ViTImageProcessorFast", "size": BOX, "resample": 3},
        "not scaled": {"image_processor_type": "ViTImageProcessor", "size": BOX, "do_rescale": False},
        "not normalised": {"image_processor_type": "ViTImageProcessor", "size": BOX, "do_normalize": False},
        "another factor": {"image_processor_type": "ViTImageProcessor", "size": BOX, "rescale_factor": 1 / 127.5},
        "a cut of a stretched image": {"image_processor_type": "DeiTImageProcessor", "size": 48, "crop_size": 32},
        "a cut of the middle": {"image_processor_type": "CLIPImageProcessor", "size": 40, "crop_size": 32},
        "one number for ConvNeXt": {"image_processor_type": "ConvNextImageProcessor", "size": 32, "crop_pct": 0.9},
        "floats": {"image_processor_type": "DINOv3ViTImageProcessor", "size": BOX},
    }

    @pytest.mark.parametrize("what", FIELDS)
    def test_it_is_the_librarys(self, what: str) -> None:
        fields = self.FIELDS[what]
        said = fields.get("image_processor_type") or fields["feature_extractor_type"]
        name = said.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
        options = {key: value for key, value in fields.items() if not key.endswith("_type")}
        library = getattr(transformers, name)(**options)
        model = checked_config({"model_type": "vit", **VIT})
        ours = processed(fields, model, "ViT")
        for images in (pictures(2, 3, 32, 32), pictures(2, 3, 71, 50), pictures(2, 3, 33, 90)):
            want = library(images=list(images), return_tensors="pt")["pixel_values"]
            got = ours.normalise(ours.prepare(images))
            assert off(got.numpy(), want.numpy().astype(np.float32)) < 1e-5
        assert ImagePreprocess.from_json(ours.to_json()) == ours

    def test_nothing_is_resized_where_nothing_is_to_be(self) -> None:
        ours = processed({"do_resize": False}, checked_config({"model_type": "vit", **VIT}), "ViT")
        assert ours.prepare(pictures(1, 3, 32, 32)).shape == (1, 3, 32, 32)
        with pytest.raises(DataError, match=r"images must be 32 × 32 pixels, not 40 × 32"):
            ours.prepare(pictures(1, 3, 40, 32))
