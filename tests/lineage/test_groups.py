"""Groups of units: found in the networks of common libraries, in an order that keeps their tests independent."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from sslguard.encoders.load import load_encoder
from sslguard.errors import UsageError
from sslguard.lineage.groups import described, find_groups
from sslguard.lineage.parts import Group, Part, ordered
from sslguard.lineage.weights import Weights, open_weights


def of_shapes(**shapes: tuple[int, ...]) -> Weights:
    """Weights of these shapes, "__" in a name standing for a dot."""
    generator = torch.Generator().manual_seed(0)
    named = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return Weights("some", named, lambda name: torch.randn(named[name], generator=generator))


def check_order(groups: list[Group], weights: Weights) -> None:
    """Every axis counts once, and no feature's other axis counts a later group."""
    place = {group.name: number for number, group in enumerate(groups)}
    owner = {(part.tensor, part.axis): group.name for group in groups for part in group.parts}
    assert len(owner) == sum(len(group.parts) for group in groups)
    for number, group in enumerate(groups):
        assert group.features
        for part in group.parts:
            assert weights.shapes[part.tensor][part.axis] == group.size * part.blocks
        for part in group.features:
            other = owner.get((part.tensor, 1 - part.axis))
            assert other is None or place[other] < number


@pytest.mark.parametrize(
    ("spec", "streams", "hidden", "whole"),
    [
        ("random:resnet-small", 3, 3, 3),
        ("random:plain-small", 0, 4, 3),
        ("random:separable-small", 0, 5, 4),
        ("random:vit-small", 1, 4, 4),
        ("random:word-transformer", 0, 2, 2),
    ],
)
def test_own_small_networks(spec: str, streams: int, hidden: int, whole: int) -> None:
    weights = open_weights(spec)
    groups = find_groups(weights)
    check_order(groups, weights)
    kinds = [group.kind for group in groups]
    assert (kinds.count("stream"), kinds.count("hidden")) == (streams, hidden)
    assert sum(group.whole for group in groups) == whole


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("spec", "number", "whole"),
    [
        ("torchvision:resnet50:random", 5 + 32, 32),
        ("timm:tf_efficientnet_lite0:random", 16, 15),
        ("timm:convnext_atto:random", 16, 12),
        ("torchvision:mobilenet_v2:random", 17, 16),
        ("timm:resnetv2_50x1_bit:random", 0, 0),  # its norms treat channels in sets
    ],
)
def test_networks_of_libraries(spec: str, number: int, whole: int) -> None:
    weights = open_weights(spec)
    groups = find_groups(weights)
    check_order(groups, weights)
    assert (len(groups), sum(group.whole for group in groups)) == (number, whole)


def decoder(layers: int = 2) -> Weights:
    shapes = {"model.embed_tokens.weight": (50, 8)}
    for i in range(layers):
        block = f"model.layers.{i}.mlp"
        shapes |= {f"{block}.gate_proj.weight": (20, 8), f"{block}.up_proj.weight": (20, 8)}
        shapes[f"{block}.down_proj.weight"] = (8, 20)
    return Weights("decoder", shapes, lambda name: torch.zeros(shapes[name]))


def test_gated_mlps_of_decoders() -> None:
    groups = find_groups(decoder())
    assert [(group.kind, group.size, len(group.features)) for group in groups] == [
        ("stream", 8, 1),
        ("hidden", 20, 3),
        ("hidden", 20, 3),
    ]
    assert all(part.other == "model.embed_tokens" for group in groups[1:] for part in group.features)


def test_a_bottleneck_compares_its_inner_tensor_once() -> None:
    """conv2 counts units of both inner groups: compared in both, it would make them match together."""
    shapes = {"conv1__weight": (6, 4, 1, 1), "conv2__weight": (6, 6, 3, 3), "conv3__weight": (4, 6, 1, 1)}
    first, second = find_groups(of_shapes(**shapes))
    assert [part.tensor for part in first.features] == ["conv1.weight"]
    assert [part.tensor for part in second.features] == ["conv2.weight", "conv3.weight"]
    assert Part("conv2.weight", 1) in first.others
    assert "later group" in first.why


@pytest.mark.parametrize(
    "shapes",
    [
        {"conv1__weight": (6, 4, 3, 3), "bn1__weight": (6,), "conv2__weight": (4, 6, 3, 3)},  # no batch norm
        {"layers__0__weight": (6, 6), "layers__1__weight": (6, 6)},  # may be residual: one stream
        {"0__weight": (6, 5), "1__weight": (6,), "2__weight": (6, 6)},  # a norm that may work in sets
        {"embedding__weight": (50, 8)},
        {},
    ],
)
def test_what_is_not_known_gives_no_group(shapes: dict[str, tuple[int, ...]]) -> None:
    assert find_groups(of_shapes(**shapes)) == []


def test_units_of_a_classifier_are_no_group() -> None:
    """Labels tell classes apart: two honest classifiers of one data set match in place there."""
    (group,) = find_groups(of_shapes(**{"0__weight": (16, 5), "2__weight": (10, 16)}))
    assert (group.name, group.size) == ("0", 16)


def test_momentum_copies_count_once() -> None:
    shapes = {
        f"{net}.mlp.{name}.weight": s
        for net in ("student", "teacher")
        for name, s in (("fc1", (9, 4)), ("fc2", (4, 9)))
    }
    groups = find_groups(Weights("both", shapes, lambda name: torch.zeros(shapes[name])))
    assert [group.name for group in groups] == ["student.mlp.fc1"]


def test_streams_with_fixed_positions_are_left_out() -> None:
    """Sines and cosines tell the channels of a stream apart in every network."""
    place, rate = torch.arange(20.0)[:, None], torch.exp(torch.arange(8) * -math.log(1e4) / 8)
    table = torch.cat([torch.sin(place * rate), torch.cos(place * rate)], 1)
    shapes = {"patch_embed.proj.weight": (16, 3, 4, 4), "b.fc1.weight": (32, 16), "b.fc2.weight": (16, 32)}
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    learned = find_groups(open_weights({**state, "pos_embed": torch.randn(1, 20, 16) * 0.02}))
    fixed = find_groups(open_weights({**state, "pos_embed": table[None]}))
    assert [group.kind for group in learned] == ["stream", "hidden"]
    assert [group.kind for group in fixed] == ["hidden"]


def test_two_streams_of_one_size_may_be_one() -> None:
    shapes = {"word_embeddings__weight": (50, 16), "patch__weight": (16, 3, 4, 4)}
    groups = find_groups(of_shapes(**shapes, fc1__weight=(32, 16), fc2__weight=(16, 32)))
    assert [group.kind for group in groups] == ["stream", "hidden"]


def test_an_axis_belongs_to_one_group() -> None:
    pair = [Group(name, 4, "hidden", (Part("w", 0),)) for name in "ab"]
    with pytest.raises(UsageError, match="two groups"):
        ordered(pair, {"w": (4, 3)})


class TestDescription:
    def weights(self) -> Weights:
        return open_weights(nn.ModuleDict({"a": nn.Linear(5, 8), "b": nn.Linear(8, 3)}))

    def write(self, path, content) -> None:
        path.write_text(json.dumps(content))

    def test_is_followed(self, tmp_path) -> None:
        file = tmp_path / "groups.json"
        self.write(file, [{"name": "h", "parts": ["a.weight:0", "b.weight:1"], "along": ["a.bias:0"], "whole": True}])
        (group,) = described(file, self.weights())
        assert (group.size, group.whole, len(group.features)) == (8, True, 2)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ([], "no groups"),
            ({}, "must hold a JSON list"),
            ([3], "a name and parts"),
            ([{"name": "h"}], "all of one length"),
            ([{"name": "h", "parts": ["a.weight:0", "b.weight:0"]}], "all of one length"),
            ([{"name": "h", "parts": ["a.bias:0"]}], "all of one length"),
            ([{"name": "h", "parts": ["c.weight:0"]}], "no TENSOR:AXIS"),
            ([{"name": "h", "parts": ["a.weight:7"]}], "no TENSOR:AXIS"),
            ([{"name": "h", "parts": ["a.weight:0"], "kind": "x"}], "field or value"),
            ([{"name": "h", "parts": ["a.weight:0"], "more": 1}], "field or value"),
            ([{"name": n, "parts": ["a.weight:0"]} for n in "hk"], "two groups"),
        ],
    )
    def test_is_refused_in_one_sentence(self, content, words, tmp_path) -> None:
        self.write(tmp_path / "groups.json", content)
        with pytest.raises(UsageError, match=words):
            described(tmp_path / "groups.json", self.weights())

    def test_may_be_missing(self, tmp_path) -> None:
        with pytest.raises(UsageError, match="no groups"):
            described(tmp_path / "none.json", self.weights())


def test_heads_stand_before_nothing_of_the_network(tiny) -> None:
    """The groups of a network behind other names are the same."""
    plain = find_groups(open_weights(tiny(1)))
    inside = find_groups(open_weights({f"encoder.{n}": t for n, t in tiny(1).module.state_dict().items()}))
    assert [group.name for group in inside] == [f"encoder.{group.name}" for group in plain]
    assert load_encoder("random:resnet-narrow").dim == tiny(1).dim
