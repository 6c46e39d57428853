"""Names that libraries give to the layers of a block: where hidden units come from, and where they go.

Families: residual networks (basic and bottleneck blocks, inverted residuals), vision transformers, encoders of texts,
gated MLPs of decoders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Block:
    """Hidden units by the names of their layers, relative to the block.

    Attributes:
        into: Layer that makes the units → name of the norm behind it, "" for none. The first one is the group's name.
        out: Layer that reads them.
        squeeze: Layers of a squeeze-and-excitation in between: name → axis of its weight that counts the units.
        kind: "convolution": a norm must be a batch norm, because other norms of convolutions treat units in sets.
        packed: Parts of equal size in the rows of the first layer, such as gate and value in one matrix.
    """

    into: Mapping[str, str]
    out: str
    squeeze: Mapping[str, int] = field(default_factory=dict)
    kind: Literal["linear", "convolution"] = "linear"
    packed: int = 1


BLOCKS: tuple[Block, ...] = (
    # vision transformers, ConvNeXt
    *(
        Block({into: norm}, out)
        for into, out, norm in (
            ("fc1", "fc2", "norm"),
            ("linear1", "linear2", ""),
            ("lin1", "lin2", ""),
            ("mlp.0", "mlp.3", ""),
            ("mlp.linear_1", "mlp.linear_2", ""),
            ("pwconv1", "pwconv2", ""),
            ("c_fc", "c_proj", ""),
            ("dense_h_to_4h", "dense_4h_to_h", ""),
            ("intermediate.dense", "output.dense", ""),
            ("wi", "wo", ""),
        )
    ),
    # gated MLPs
    Block({"gate_proj": "", "up_proj": ""}, "down_proj"),
    Block({"wi_0": "", "wi_1": ""}, "wo"),
    Block({"w1": "", "w3": ""}, "w2"),
    Block({"fc1_g": "", "fc1_x": ""}, "fc2"),
    *(Block({into: ""}, out, packed=2) for into, out in (("gate_up_proj", "down_proj"), ("Wi", "Wo"), ("w12", "w3"))),
    # residual networks
    *(
        Block({into: norm}, out, kind="convolution")
        for into, norm, out in (
            ("conv1", "bn1", "conv2"),
            ("conv2", "bn2", "conv3"),
            ("layer.0.convolution", "layer.0.normalization", "layer.1.convolution"),
            ("layer.1.convolution", "layer.1.normalization", "layer.2.convolution"),
        )
    ),
    # inverted residuals
    Block(
        {"conv_pw": "bn1", "conv_dw": "bn2"},
        "conv_pwl",
        {"se.conv_reduce": 1, "se.conv_expand": 0},
        kind="convolution",
    ),
    Block(
        {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1"},
        "_project_conv",
        {"_se_reduce": 1, "_se_expand": 0},
        kind="convolution",
    ),
    Block({"conv.0.0": "conv.0.1", "conv.1.0": "conv.1.1"}, "conv.2", kind="convolution"),
    Block(
        {"block.0.0": "block.0.1", "block.1.0": "block.1.1"},
        "block.3.0",
        {"block.2.fc1": 1, "block.2.fc2": 0},
        kind="convolution",
    ),
    Block({"block.0.0": "block.0.1", "block.1.0": "block.1.1"}, "block.2.0", kind="convolution"),
)

TABLE = re.compile(r"(^|\.)(word_embeddings|embed_tokens|wte|tok_embeddings|token_embedding)$")
"""Tables of tokens: their columns are the channels of the stream."""
SHORTCUT = re.compile(r"(^|\.)(shortcut|downsample|downsampling_layer)\.(\d|convolution)$")
"""Convolutions of a shortcut: their rows are the channels of a new stream."""
POSITIONS = r"pos"
SEQUENCES = frozenset({"", "features", "net", "network", "backbone", "encoder", "model", "module", "main"})
"""Last components of names below which numbered layers follow each other: those of `torch.nn.Sequential`."""


def names_of(block: Block, weights: Set[str]) -> list[str]:
    """Return the beginnings of the names of all blocks of this kind.

    Args:
        block: The kind.
        weights: Names of layers that have a weight of two or four axes.
    """
    first = next(iter(block.into))
    found = []
    for name in weights:
        if name == first or name.endswith(f".{first}"):
            beginning = name.removesuffix(first)
            if f"{beginning}{block.out}" in weights and all(f"{beginning}{into}" in weights for into in block.into):
                found.append(beginning)
    return found


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return what sorts names so that numbers count as numbers."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in name.split(".")]
