"""Checkpoints as they are published: every layout gives the network that it was made from."""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from sslguard.encoders import published as loading
from sslguard.encoders.base import Encoder
from sslguard.encoders.checkpoint import load_checkpoint
from sslguard.encoders.files import read_tensors
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.encoders.load import load_encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.rebuild import build
from sslguard.encoders.resnets import CIFAR10, IMAGENET
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
        from sslguard.encoders.resnets import infer

        with torch.device("meta"):
            state = torchvision.models.get_model(name).state_dict()
        assert infer({key: tuple(tensor.shape) for key, tensor in state.items()}, Path("file")) == name

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


class TestTeachers:
    """Of a teacher and its student the teacher is published: DINO, DINOv2, lightly."""

    LAYOUTS: ClassVar[dict[str, Callable[[State, State], dict[str, Any]]]] = {
        "dino": lambda t, s: {"student": named("module.backbone.", s), "teacher": named("backbone.", t), "epoch": 1},
        "dinov2": lambda t, s: {"model": named("student.backbone.", s) | named("teacher.backbone.", t)},
        "lightly": lambda t, s: {"state_dict": named("student_backbone.", s) | named("teacher_backbone.", t)},
        "lightly, masked": lambda t, s: {
            "state_dict": named("student_backbone.vit.", s) | named("teacher_backbone.vit.", t)
        },
    }

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_a_vision_transformer(self, layout, tmp_path):
        teacher, student = (build({"backbone": "timm:test_vit"}, seed=seed)[0].state_dict() for seed in (5, 6))
        torch.save(self.LAYOUTS[layout](teacher, student), tmp_path / "file.pth")
        encoder = load_encoder(f"timm:test_vit:{tmp_path}/file.pth")
        assert all(torch.equal(tensor, teacher[name]) for name, tensor in encoder.module.state_dict().items())
        assert encoder.record["checkpoint"]["unexpected"] == []

    @pytest.mark.parametrize("layout", ["dino", "dinov2", "lightly"])
    def test_a_resnet(self, layout, tmp_path):
        torch.save(self.LAYOUTS[layout](P, MOMENTUM), tmp_path / "file.pth")
        same_as(at_40_pixels(load_checkpoint(tmp_path / "file.pth")[0]), PLAIN)

    def test_the_prefix_chooses_another(self, tmp_path):
        teacher, student = (build({"backbone": "timm:test_vit"}, seed=seed)[0].state_dict() for seed in (5, 6))
        torch.save(self.LAYOUTS["lightly"](teacher, student), tmp_path / "file.pth")
        encoder = load_encoder(f"timm:test_vit:{tmp_path}/file.pth@prefix=student_backbone")
        assert all(torch.equal(tensor, student[name]) for name, tensor in encoder.module.state_dict().items())
        with pytest.raises(EncoderError, match=r"lacks .* first nobody\."):
            load_encoder(f"timm:test_vit:{tmp_path}/file.pth@prefix=nobody.")
        torch.save(named("one.", P) | named("two.", MOMENTUM), tmp_path / "two.pth")
        with pytest.raises(EncoderError, match=r"under 'one\.', 'two\.': name one with @prefix=NAME"):
            load_encoder(tmp_path / "two.pth")
        loaded = load_encoder(f"{tmp_path}/two.pth@prefix=two,40").module.state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in MOMENTUM.items() if name in loaded)


class TestTrainingFiles:
    """What training programs put beside the weights."""

    @pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
    def test_the_average_is_taken_as_timm_does(self, key, tmp_path):
        average, raw = (build({"backbone": "timm:test_vit"}, seed=seed)[0].state_dict() for seed in (5, 6))
        torch.save({"epoch": 1, "state_dict": raw, key: average}, tmp_path / "file.pth")
        loaded = load_encoder(f"timm:test_vit:{tmp_path}/file.pth").module.state_dict()
        assert all(torch.equal(tensor, average[name]) for name, tensor in loaded.items())
        torch.save({"epoch": 1, "state_dict": raw, key: None}, tmp_path / "file.pth")
        loaded = load_encoder(f"timm:test_vit:{tmp_path}/file.pth").module.state_dict()
        assert all(torch.equal(tensor, raw[name]) for name, tensor in loaded.items())

    @pytest.mark.parametrize(
        "beside",
        [
            {"args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.999), nested=argparse.Namespace(x=None))},
            {"best": np.float64(71.2), "seen": np.int64(3), "flag": np.bool_(True), "half": np.float16(0.5)},
            {"best": np.array([1.5], np.float32)[0]},
        ],
    )
    @pytest.mark.parametrize("zipped", [True, False])
    def test_options_and_numbers_of_numpy(self, beside, zipped, tmp_path):
        path = tmp_path / "file.pth"
        content = {"state_dict": P, **beside}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        same_as(at_40_pixels(load_checkpoint(path)[0]), PLAIN)

    def test_nothing_of_theirs_is_run(self, tmp_path):
        """Neither the classes themselves nor an attribute that a file sets on them."""
        torch.save({"state_dict": P, "args": argparse.Namespace(lr=1)}, tmp_path / "file.pth")
        content = read_tensors(tmp_path / "file.pth")
        assert type(content["args"]) is not argparse.Namespace
        assert not vars(content["args"])

    def test_the_file_that_holds_another_class_is_refused(self, tmp_path):
        torch.save({"state_dict": P, "path": Path("x")}, tmp_path / "file.pth")
        with pytest.raises(EncoderError, match="more than tensors"):
            load_checkpoint(tmp_path / "file.pth")


class TestVisionTransformers:
    """Files of vision transformers through timm."""

    def test_moco_v3_gives_the_base_encoder_and_imagenets_normalisation(self, tmp_path):
        base, other = (build({"backbone": "timm:vit_tiny_patch16_224"}, seed=seed)[0].state_dict() for seed in (5, 6))
        state = named("module.base_encoder.", base) | named("module.momentum_encoder.", other)
        torch.save({"state_dict": state | mlp("module.base_encoder.head.", 192)}, tmp_path / "file.pth")
        spec = f"timm:vit_tiny_patch16_224:{tmp_path}/file.pth"
        encoder = load_encoder(spec)
        assert all(torch.equal(tensor, base[name]) for name, tensor in encoder.module.state_dict().items())
        assert (encoder.preprocess.mean, encoder.preprocess.std) == IMAGENET
        assert load_encoder(f"{spec}@raw").preprocess.mean == (0.0, 0.0, 0.0)

    def test_another_size_is_timms_set_input_size(self, tmp_path):
        name = "deit_tiny_patch16_224"
        network = timm.create_model(name, num_classes=0).eval()
        torch.save(named("model.backbone.", network.state_dict()), tmp_path / "file.pth")
        network.set_input_size(img_size=(96, 96))
        encoder = load_encoder(f"timm:{name}:{tmp_path}/file.pth@96")
        same_as(encoder, network)
        save_encoder(encoder, tmp_path / "saved")
        same_as(load_folder(tmp_path / "saved"), network)
        # A file of that size already.
        torch.save(network.state_dict(), tmp_path / "file.pth")
        same_as(load_encoder(f"timm:{name}:{tmp_path}/file.pth@96"), network)
        with pytest.raises(UsageError, match="timm cannot make"):
            load_encoder(f"timm:{name}:{tmp_path}/file.pth@8")

    def test_registers_under_dinov2s_names(self, tmp_path):
        name = "vit_small_patch14_reg4_dinov2"
        network = timm.create_model(name, num_classes=0, img_size=56).eval()
        for parameter in network.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        state = dict(network.state_dict())
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.full((1, 1, 384), 0.01), state["pos_embed"]], 1)
        state["mask_token"] = torch.zeros(1, 384)
        network.load_state_dict(checkpoint_filter_fn(dict(state), network))
        torch.save({"teacher": named("backbone.", state)}, tmp_path / "file.pth")
        same_as(load_encoder(f"timm:{name}:{tmp_path}/file.pth@56"), network)

    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_the_image_tower_of_an_openclip_file(self, prefix, tmp_path):
        name = "vit_xsmall_patch16_clip_224"
        network = timm.create_model(name, num_classes=0).eval()
        names = {"blocks": "transformer.resblocks", "norm1": "ln_1", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc"}
        names |= {"mlp.fc2": "mlp.c_proj", "attn.proj": "attn.out_proj", "attn.qkv.": "attn.in_proj_"}
        names |= {"norm_pre": "ln_pre", "patch_embed.proj": "conv1"}
        state = {"logit_scale": torch.tensor(2.6), "token_embedding.weight": torch.zeros(9, 64)}
        state["visual.proj"] = torch.randn(256, 64)
        for key, tensor in network.state_dict().items():
            if key in ("cls_token", "pos_embed"):
                own = {"cls_token": "class_embedding", "pos_embed": "positional_embedding"}[key]
                state[f"visual.{own}"] = tensor[0, 0] if key == "cls_token" else tensor[0]
                continue
            for ours, theirs in names.items():
                key = key.replace(ours, theirs)
            state["visual." + (key.replace("norm.", "ln_post.") if key.startswith("norm.") else key)] = tensor
        torch.save(named(prefix, state), tmp_path / "file.pth")
        encoder = load_encoder(f"timm:{name}:{tmp_path}/file.pth")
        own = network.state_dict()
        assert all(torch.equal(tensor, own[name]) for name, tensor in encoder.module.state_dict().items())

    def test_a_fine_tuned_mae_pools_by_the_mean(self, tmp_path):
        network = timm.create_model("test_vit", num_classes=3, global_pool="avg").eval()
        torch.save({"model": network.state_dict()}, tmp_path / "file.pth")
        network.reset_classifier(0)
        encoder = load_encoder(f"timm:test_vit:{tmp_path}/file.pth")
        same_as(encoder, network)
        save_encoder(encoder, tmp_path / "saved")
        same_as(load_folder(tmp_path / "saved"), network)

    def test_a_bare_file_gets_the_hint(self, tmp_path):
        torch.save(build({"backbone": "timm:test_vit"}, seed=5)[0].state_dict(), tmp_path / "file.pth")
        with pytest.raises(EncoderError, match=r"timm:NAME:.*file\.pth"):
            load_encoder(tmp_path / "file.pth")


class TestTimmFolders:
    """Folders that timm writes for a hub."""

    @pytest.fixture
    def folder(self, tmp_path):
        network = timm.create_model("test_vit", num_classes=5).eval()
        timm.models.save_for_hf(network, tmp_path / "hub", safe_serialization=True)
        path = tmp_path / "hub/config.json"
        config = json.loads(path.read_text())
        config["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
        path.write_text(json.dumps(config))
        return tmp_path / "hub"

    @pytest.mark.parametrize("kind", ["local-dir:", "timm:local-dir:"])
    def test_timm_gives_the_same(self, kind, folder):
        encoder = load_encoder(f"{kind}{folder}")
        network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
        same_as(encoder, network)
        config = timm.data.resolve_model_data_config(network)
        assert (encoder.preprocess.mean, encoder.preprocess.std) == (tuple(config["mean"]), tuple(config["std"]))
        assert encoder.preprocess.mean == (0.1, 0.2, 0.3)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"architecture": "no_such_model"}, "timm has no model"),
            ({"architecture": 3}, "no config.json with an architecture"),
            ({"model_args": {"depth": 10**6}}, "depth.*cannot be followed"),
            ({"model_args": {"img_size": 10**9}}, "size of a network's images"),
            ({"model_args": 3}, "cannot be followed"),
            ({"pretrained_cfg": {"mean": "abc"}}, "pretrained_cfg"),
            ({"pretrained_cfg": {"std": [10**400] * 3}}, "pretrained_cfg"),
            ({"pretrained_cfg": {"input_size": 3}}, "pretrained_cfg"),
            ({"pretrained_cfg": 3}, "pretrained_cfg"),
            ({"pretrained_cfg": {"input_size": [3, 10**6, 10**6]}}, "pixels"),
        ],
    )
    def test_a_hostile_folder_ends_in_one_sentence(self, change, words, folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(EncoderError, match=words) as caught:
            load_encoder(f"local-dir:{folder}")
        assert "\n" not in str(caught.value)

    def test_a_folder_that_is_missing_or_empty(self, folder, tmp_path):
        with pytest.raises(EncoderError, match="there is no folder"):
            load_encoder(f"local-dir:{tmp_path}/none")
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").unlink(missing_ok=True)
        with pytest.raises(EncoderError, match=r"holds no model\.safetensors"):
            load_encoder(f"local-dir:{folder}")


def test_weights_that_cannot_be_had_are_not_waited_for(monkeypatch):
    """An address that never answers: one sentence within five seconds, and no network with random weights."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/weights"
        monkeypatch.setattr(loading, "_published_at", lambda model: (address, Path("nowhere")))
        started = time.monotonic()
        with pytest.raises(EncoderError, match=r"timm:test_vit could not be downloaded.*CHECKPOINT"):
            load_encoder("timm:test_vit")
        assert time.monotonic() - started < 5


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
