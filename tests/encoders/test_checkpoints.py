"""Checkpoints as they are published: every layout gives the network that it was made from."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from sslguard.encoders import Encoder, ImagePreprocess, load_checkpoint, load_encoder, load_folder, save_encoder
from sslguard.encoders.checkpoint import CIFAR10, IMAGENET
from sslguard.encoders.rebuild import build
from sslguard.errors import EncoderError, UsageError

State = dict[str, Tensor]
IMAGES = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))


def resnet(seed: int = 0, **fields: Any) -> nn.Module:
    """A ResNet-18 whose batch norms have seen something, so that every tensor matters."""
    module, _ = build({"backbone": "torchvision:resnet18", **fields}, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight.data, layer.running_var):
                values.copy_(0.5 + torch.rand(values.shape, generator=generator))
            for values in (layer.bias.data, layer.running_mean):
                values.copy_(torch.randn(values.shape, generator=generator) / 10)
    return module.eval()


PLAIN, SMALL_STEM = resnet(), resnet(stem="cifar", maxpool=False)
PADDED, GREY = resnet(stem="cifar-padded", maxpool=False), resnet(channels=1)
MOMENTUM = resnet(seed=1).state_dict()


def named(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def numbered(prefix: str, state: State, first_stage: int) -> State:
    """As the children of an nn.Sequential, layer1 being number `first_stage`."""
    numbers = {"conv1": 0, "bn1": 1, **{f"layer{i}": first_stage + i - 1 for i in range(1, 5)}}
    parts = {name: name.partition(".") for name in state}
    return {f"{prefix}{numbers[head]}.{tail}": state[name] for name, (head, _, tail) in parts.items()}


def mlp(prefix: str, width: int = 512) -> State:
    return {
        f"{prefix}0.weight": torch.ones(8, width),
        f"{prefix}0.bias": torch.ones(8),
        f"{prefix}2.weight": torch.ones(4, 8),
    }


def shortcuts(state: State) -> State:
    return {name.replace("downsample", "shortcut"): tensor for name, tensor in state.items()}


# name → (network, content of the file, format, first max-pool kept, statistics of the normalisation)
P, S = PLAIN.state_dict(), SMALL_STEM.state_dict()
LAYOUTS: dict[str, tuple[nn.Module, dict[str, Any], str, bool, Any]] = {
    "torchvision": (PLAIN, P | {"fc.weight": torch.ones(9, 512), "fc.bias": torch.ones(9)}, "plain", True, IMAGENET),
    "SimCLR converted, in state_dict": (
        PLAIN,
        {"state_dict": P | {"fc.weight": torch.ones(9, 512)}, "epoch": 3},
        "plain",
        True,
        IMAGENET,
    ),
    "MoCo v2, facebookresearch": (
        PLAIN,
        {
            "epoch": 200,
            "arch": "resnet18",
            "state_dict": named("module.encoder_q.", P)
            | mlp("module.encoder_q.fc.")
            | named("module.encoder_k.", MOMENTUM)
            | mlp("module.encoder_k.fc.")
            | {"module.queue": torch.ones(4, 9), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)},
            "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2, 2)}}, "param_groups": [{"lr": 0.03}]},
        },
        "moco",
        True,
        IMAGENET,
    ),
    "MoCo on CIFAR, the demo": (
        SMALL_STEM,
        {
            "state_dict": numbered("encoder_q.net.", S, 3)
            | {"encoder_q.net.9.weight": torch.ones(4, 512)}
            | numbered("encoder_k.net.", S, 3)
            | {"queue": torch.ones(4, 9)}
        },
        "moco",
        False,
        CIFAR10,
    ),
    "MoCo v3": (
        PLAIN,
        {
            "state_dict": named("module.base_encoder.", P)
            | named("module.momentum_encoder.", MOMENTUM)
            | mlp("module.predictor.")
        },
        "moco",
        True,
        IMAGENET,
    ),
    "SimCLR, leftthomas": (SMALL_STEM, numbered("f.", S, 3) | mlp("g."), "simclr", False, CIFAR10),
    "SimCLR, BadEncoder": (
        SMALL_STEM,
        {"state_dict": numbered("f.f.", S, 3) | mlp("g.")},
        "simclr",
        False,
        CIFAR10,
    ),
    "SimCLR, sthalles": (
        PLAIN,
        {"epoch": 1, "arch": "resnet18", "state_dict": named("backbone.", P) | mlp("backbone.fc."), "optimizer": {}},
        "simclr",
        True,
        None,
    ),
    "SimCLR, Spijkervet": (PLAIN, named("encoder.", P) | mlp("projector."), "simclr", True, None),
    "SimCLR, lightning-bolts": (
        PLAIN,
        {"state_dict": named("encoder.", P) | mlp("projection.model."), "hyper_parameters": {"lr": 0.1}},
        "backbone",
        True,
        IMAGENET,
    ),
    "SupCon's SimCLR": (
        SMALL_STEM,
        {"model": named("encoder.module.", shortcuts(S)) | mlp("head.")},
        "backbone",
        False,
        CIFAR10,
    ),
    "solo-learn on ImageNet": (
        PLAIN,
        {"state_dict": named("backbone.", P) | mlp("projector.") | {"classifier.weight": torch.ones(9, 512)}},
        "solo-learn",
        True,
        IMAGENET,
    ),
    "solo-learn's BYOL on CIFAR": (
        PADDED,
        {
            "state_dict": named("momentum_backbone.", S)
            | mlp("momentum_projector.")
            | named("backbone.", PADDED.state_dict())
            | mlp("projector.")
            | mlp("predictor.")
            | {"classifier.weight": torch.ones(9, 512)}
        },
        "solo-learn",
        False,
        CIFAR10,
    ),
    "lightly": (
        PLAIN,
        {
            "state_dict": numbered("backbone.", P, 4)
            | mlp("projection_head.layers.")
            | numbered("backbone_momentum.", P, 4)
        },
        "backbone",
        True,
        IMAGENET,
    ),
    "lightly's own ResNet": (
        SMALL_STEM,
        numbered("backbone.", shortcuts(S), 2) | mlp("projection_head."),
        "backbone",
        False,
        CIFAR10,
    ),
    "BYOL, lucidrains": (
        PLAIN,
        named("net.", P)
        | named("online_encoder.net.", P)
        | {"online_encoder.net.fc.weight": torch.ones(9, 512)}
        | mlp("online_encoder.projector.")
        | named("target_encoder.net.", MOMENTUM)
        | mlp("online_predictor."),
        "byol",
        True,
        IMAGENET,
    ),
    "BYOL, sthalles": (
        PLAIN,
        {
            "target_network_state_dict": numbered("encoder.", MOMENTUM, 4) | mlp("projetion.net."),
            "online_network_state_dict": numbered("encoder.", P, 4) | mlp("projetion.net."),
            "optimizer_state_dict": {},
        },
        "byol",
        True,
        IMAGENET,
    ),
    "BYOL, as the paper took it": (
        PLAIN,
        {"online_backbone": numbered("module.encoder.", P, 4)},
        "byol",
        True,
        IMAGENET,
    ),
    "BYOL, lightning-bolts": (
        PLAIN,
        {
            "state_dict": named("online_network.encoder.", P)
            | mlp("online_network.projector.model.")
            | named("target_network.encoder.", MOMENTUM)
            | mlp("predictor.model.")
        },
        "byol",
        True,
        IMAGENET,
    ),
    "VISSL": (
        PLAIN,
        {"classy_state_dict": {"base_model": {"model": {"trunk": named("_feature_blocks.", P), "heads": mlp("0.")}}}},
        "vissl",
        True,
        IMAGENET,
    ),
    "DataParallel": (PLAIN, {"model": named("module.", P)}, "plain", True, IMAGENET),
    "convnet": (PLAIN, {"net": named("convnet.", P)}, "backbone", True, IMAGENET),
    "features, numbered": (PLAIN, numbered("features.", P, 4), "backbone", True, IMAGENET),
    "one channel": (GREY, {"state_dict": named("encoder.", GREY.state_dict())}, "backbone", True, None),
}


def at_40_pixels(encoder: Encoder) -> Encoder:
    """The encoder with smaller inputs, for the sake of time."""
    return replace(encoder, preprocess=replace(encoder.preprocess, height=40, width=40, crop=None))


def same_as(encoder: Encoder, network: nn.Module, tolerance: float = 1e-5) -> None:
    """Assert that the encoder says what the original network says behind the encoder's preprocessing."""
    with torch.inference_mode():
        wanted = network(encoder.preprocess.normalise(encoder.preprocess.prepare(IMAGES))).numpy()
    np.testing.assert_allclose(encoder.embed(IMAGES), wanted, rtol=10 * tolerance, atol=tolerance)


def flat_names(content: dict[str, Any]) -> set[str]:
    """Every tensor's name, where one state dict lies in containers of one child."""
    tensors = {name for name, value in content.items() if isinstance(value, Tensor)}
    return tensors or flat_names(next(v for k, v in content.items() if isinstance(v, dict) and "optim" not in k))


class TestLayouts:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_the_encoder_is_the_network_that_was_published_and_every_tensor_is_accounted_for(self, layout, tmp_path):
        network, content, name, maxpool, statistics = LAYOUTS[layout]
        torch.save(content, tmp_path / "file.pth")
        encoder, report = load_checkpoint(tmp_path / "file.pth")
        assert (report.format, report.maxpool) == (name, maxpool)
        assert len(report.kept) == len(network.state_dict())
        assert not report.missing
        assert not report.unexpected
        if layout not in ("BYOL, sthalles", "VISSL"):
            assert sorted([*report.kept, *report.dropped]) == sorted(flat_names(content))
        size = encoder.preprocess.height
        assert size == (32 if network.conv1.kernel_size == (3, 3) else 224)
        channels = encoder.preprocess.channels
        wanted = statistics or ((0.0,) * channels, (1.0,) * channels)
        assert (encoder.preprocess.mean, encoder.preprocess.std) == wanted
        same_as(at_40_pixels(encoder), network)

    def test_what_lies_beside_the_state_dict_is_reported_too(self, tmp_path):
        torch.save(LAYOUTS["BYOL, sthalles"][1], tmp_path / "file.pth")
        _, report = load_checkpoint(tmp_path / "file.pth")
        assert report.container == "online_network_state_dict"
        assert set(report.aside) == {"target_network_state_dict", "optimizer_state_dict"}

    def test_a_checkpoint_is_an_encoder_like_any_other(self, tmp_path):
        """By its path as a specification, saved as a folder, and read back."""
        torch.save(LAYOUTS["SimCLR, leftthomas"][1], tmp_path / "simclr.pth")
        encoder = load_encoder(f"{tmp_path}/simclr.pth@24")
        assert encoder.architecture["stem"] == "cifar"
        assert encoder.source.endswith("simclr.pth@24")
        assert encoder.record["checkpoint"]["dropped"] == ["g.0.weight", "g.0.bias", "g.2.weight"]
        save_encoder(encoder, tmp_path / "out")
        np.testing.assert_array_equal(load_folder(tmp_path / "out").embed(IMAGES), encoder.embed(IMAGES))

    def test_safetensors_and_half_precision(self, tmp_path):
        state = {name: t.half() if t.is_floating_point() else t for name, t in named("backbone.", P).items()}
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "file.safetensors")
        encoder, _ = load_checkpoint(tmp_path / "file.safetensors")
        assert all(p.dtype == torch.float32 for p in encoder.module.parameters())
        same_as(at_40_pixels(encoder), PLAIN, tolerance=0.01)

    def test_dropped_and_unknown_keys_are_logged(self, tmp_path, caplog):
        torch.save(named("backbone.", P) | mlp("projector.") | {"strange": torch.ones(1)}, tmp_path / "file.pth")
        with caplog.at_level(logging.INFO, logger="sslguard"):
            _, report = load_checkpoint(tmp_path / "file.pth")
        assert report.unexpected == ("strange",)
        assert any("projector.0.weight" in r.message and r.levelno == logging.INFO for r in caplog.records)
        assert any("strange" in r.message and r.levelno == logging.WARNING for r in caplog.records)

    def test_batch_counters_may_be_missing_and_are_reported(self, tmp_path):
        """Files from before PyTorch 0.4.1 have none."""
        torch.save({k: v for k, v in P.items() if "num_batches" not in k}, tmp_path / "file.pth")
        encoder, report = load_checkpoint(tmp_path / "file.pth")
        assert len(report.missing) == 20
        same_as(at_40_pixels(encoder), PLAIN)


class TestChoices:
    def test_the_papers_use_is_one_specification(self, tmp_path):
        """No max-pool, inputs not normalised: as the SSLGuard paper takes the published MoCo."""
        torch.save(LAYOUTS["MoCo v2, facebookresearch"][1], tmp_path / "moco.pth.tar")
        encoder = load_encoder(f"{tmp_path}/moco.pth.tar@40,nopool,raw")
        assert encoder.preprocess == ImagePreprocess(40, 40, crop=0.875)
        same_as(encoder, resnet(maxpool=False))
        assert encoder.record["checkpoint"]["maxpool"] is False

    def test_the_pool_can_be_kept_behind_a_small_stem(self, tmp_path):
        torch.save(S, tmp_path / "file.pth")
        encoder, _ = load_checkpoint(tmp_path / "file.pth", maxpool=True)
        assert isinstance(encoder.module.maxpool, nn.MaxPool2d)
        assert isinstance(load_checkpoint(tmp_path / "file.pth")[0].module.maxpool, nn.Identity)

    def test_the_stem_can_be_named_where_shapes_do_not_tell(self, tmp_path):
        torch.save(S, tmp_path / "file.pth")
        encoder, _ = load_checkpoint(tmp_path / "file.pth", stem="cifar-padded")
        assert encoder.module.conv1.padding == (2, 2)

    def test_of_several_backbones_one_must_be_named(self, tmp_path):
        torch.save(named("one.", P) | named("two.", MOMENTUM), tmp_path / "file.pth")
        with pytest.raises(EncoderError, match=r"'one\.', 'two\.'.*prefix"):
            load_checkpoint(tmp_path / "file.pth")
        encoder, report = load_checkpoint(tmp_path / "file.pth", prefix="two")
        assert torch.equal(encoder.module.conv1.weight, MOMENTUM["conv1.weight"])
        assert set(report.dropped) == set(named("one.", P))

    def test_a_momentum_copy_alone_is_taken(self, tmp_path):
        torch.save(named("teacher.backbone.", P), tmp_path / "file.pth")
        assert load_checkpoint(tmp_path / "file.pth")[1].prefix == "teacher.backbone."

    @pytest.mark.parametrize(
        "name", ["resnet34", "resnet50", "resnet101", "wide_resnet50_2", "resnext50_32x4d", "resnet152"]
    )
    def test_the_depth_is_read_off_the_tensors(self, name):
        from sslguard.encoders.checkpoint import _infer

        with torch.device("meta"):
            state = torchvision.models.get_model(name).state_dict()
        assert _infer({key: tuple(tensor.shape) for key, tensor in state.items()}, Path("file")) == name

    def test_a_depth_that_was_named_must_be_the_files(self, tmp_path):
        torch.save(P, tmp_path / "file.pth")
        assert load_encoder(f"torchvision:resnet18:{tmp_path}/file.pth@32").dim == 512
        with pytest.raises(EncoderError, match="holds a resnet18, not the resnet34"):
            load_encoder(f"torchvision:resnet34:{tmp_path}/file.pth")

    def test_arguments_that_fit_nothing(self, tmp_path):
        torch.save(P, tmp_path / "file.pth")
        for arguments in (
            {"architecture": "vgg"},
            {"stem": "nope"},
            {"preprocess": ImagePreprocess(8, 8, 1, (0.0,), (1.0,))},
        ):
            with pytest.raises(UsageError):
                load_checkpoint(tmp_path / "file.pth", **arguments)


class TestLibraryNames:
    """timm:NAME:CHECKPOINT, and torchvision's networks other than ResNets."""

    SPECS = ("timm:test_vit", "timm:test_resnet", "torchvision:mobilenet_v3_small")

    @pytest.mark.parametrize("spec", SPECS)
    @pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
    def test_the_weights_come_from_the_file(self, spec, prefix, tmp_path):
        original, _ = build({"backbone": spec}, seed=5)
        heads = {"head.weight": torch.ones(2, 2), "classifier.3.weight": torch.ones(2, 2)}
        torch.save({"state_dict": named(prefix, original.state_dict() | heads)}, tmp_path / "file.pth")
        encoder = load_encoder(f"{spec}:{tmp_path}/file.pth@64")
        for name, tensor in encoder.module.state_dict().items():
            assert torch.equal(tensor, original.state_dict()[name])
        assert set(encoder.record["checkpoint"]["dropped"]) == set(named(prefix, heads))

    def test_another_networks_weights_are_refused(self, tmp_path):
        original, _ = build({"backbone": "timm:test_vit"}, seed=5)
        torch.save(original.state_dict(), tmp_path / "file.pth")
        with pytest.raises(EncoderError, match=r"not a state dict of timm:test_resnet: it lacks"):
            load_encoder(f"timm:test_resnet:{tmp_path}/file.pth")

    def test_a_deeper_networks_weights_are_not_taken_for_a_shallower_ones(self, tmp_path):
        original, _ = build({"backbone": "timm:test_vit"}, seed=5)
        state = original.state_dict()
        last = max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        deeper = {n.replace(f"blocks.{last}.", f"blocks.{last + 1}."): t for n, t in state.items()}
        torch.save(deeper | state, tmp_path / "file.pth")
        with pytest.raises(EncoderError, match="another network"):
            load_encoder(f"timm:test_vit:{tmp_path}/file.pth")


class Harmful:
    """A pickle of this would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


H = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in P.items()}


def without(name: str) -> State:
    return {key: tensor for key, tensor in H.items() if key != name}


HOSTILE: dict[str, tuple[Any, str]] = {
    "a tensor": (torch.ones(2), "holds a Tensor"),
    "a list": ([H], "holds a list"),
    "nothing": ({}, "nothing"),
    "numbers": ({"epoch": 3, "loss": 0.1}, "'epoch', 'loss'"),
    "no network": ({"weight": torch.ones(2, 2)}, "holds no ResNet"),
    "too deep": ({"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": H}}}}}}}}}}, "no state dict"),
    "numbers for names": ({0: torch.ones(2, 2)}, "no state dict"),
    "a missing weight": (without("layer3.1.conv2.weight"), r"lacks 1 weights.*layer3\.1\.conv2\.weight"),
    "a missing statistic": (without("bn1.running_var"), r"lacks 1 weights.*bn1\.running_var"),
    "a missing block": ({k: v for k, v in H.items() if not k.startswith("layer2.1")}, "blocks"),
    "a missing convolution": (without("layer1.0.conv2.weight"), "not a residual block"),
    "another block": (H | named("layer4.2.", {"conv1.weight": torch.ones(2, 2, 3, 3)}), "blocks"),
    "a layer between": (H | {"layer1.0.se.weight": torch.ones(2, 2)}, r"another network: layer1\.0\.se"),
    "a bias": (H | {"conv1.bias": torch.ones(64)}, "another network"),
    "twice the width": (H | {"conv1.weight": torch.ones(128, 3, 7, 7)}, "width 128"),
    "five channels": (H | {"conv1.weight": torch.ones(64, 5, 7, 7)}, "first convolution"),
    "an even stem": (H | {"conv1.weight": torch.ones(64, 3, 4, 4)}, "first convolution"),
    "another shape": (H | {"layer4.0.bn1.bias": torch.ones(511)}, "shape"),
    "a vector for a kernel": (H | {"layer1.0.conv1.weight": torch.ones(64)}, "not a residual block"),
    "not a number": (H | {"bn1.bias": torch.full((64,), torch.nan)}, r"bn1\.bias is not finite"),
    "endless": (H | {"layer1.0.conv2.weight": torch.ones(1).expand(10**12)}, "not a residual block"),
    "sparse": (H | {"layer2.0.conv1.weight": torch.ones(128, 64, 3, 3).to_sparse()}, "blocks"),
}


class TestHostile:
    @pytest.mark.parametrize("what", HOSTILE)
    def test_one_sentence_says_what_is_wrong(self, what, tmp_path):
        content, words = HOSTILE[what]
        torch.save(content, tmp_path / "file.pth")
        with pytest.raises(EncoderError, match=words) as caught:
            load_encoder(tmp_path / "file.pth")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("zipped", [True, False, None])
    def test_code_in_a_pickle_is_named_and_not_run(self, tmp_path, zipped):
        path, trace = tmp_path / "file.pth", tmp_path / "trace"
        if zipped is None:
            path.write_bytes(pickle.dumps({"state_dict": Harmful(trace)}))
        else:
            torch.save({"state_dict": Harmful(trace)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(EncoderError, match=r"more than tensors \((posix|nt)\.system\).*\.safetensors"):
            load_checkpoint(path)
        assert not trace.exists()

    def test_a_pickled_module_is_code_too(self, tmp_path):
        torch.save(nn.Linear(2, 2), tmp_path / "file.pth")
        with pytest.raises(EncoderError, match=r"torch\.nn\.modules\.linear\.Linear"):
            load_checkpoint(tmp_path / "file.pth")

    def test_a_file_cut_or_flipped_anywhere_raises_nothing_else(self, tmp_path):
        torch.save({"state_dict": {"conv1.weight": torch.ones(2, 2)}, "epoch": 1}, tmp_path / "zip")
        torch.save({"a": torch.ones(2, 2)}, tmp_path / "old", _use_new_zipfile_serialization=False)
        save_file({"a": torch.ones(2, 2)}, tmp_path / "safe")
        random = np.random.default_rng(0)
        for name, suffix in (("zip", ".pth"), ("old", ".pth"), ("safe", ".safetensors")):
            whole = (tmp_path / name).read_bytes()
            path = tmp_path / f"file{suffix}"
            for _ in range(60):
                damaged = bytearray(whole[: random.integers(len(whole) + 1)] if random.random() < 0.5 else whole)
                for place in random.integers(len(damaged), size=3) if damaged else ():
                    damaged[place] = random.integers(256)
                path.write_bytes(damaged)
                with pytest.raises(EncoderError):
                    load_checkpoint(path)

    @pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"version https://git-lfs", bytes(1000)])
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_what_was_never_a_checkpoint(self, content, suffix, tmp_path):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        with pytest.raises(EncoderError, match="damaged"):
            load_checkpoint(path)
