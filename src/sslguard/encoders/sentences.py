"""What sentence-transformers puts behind a pooling, and its encoders without a network, in descriptions.

Three fields say what becomes of a pooled vector, in this order; each may be left out:

- "layers": a list of {"kind": "dense", "in": …, "out": …, "bias": true, "activation": "Tanh"}, {"kind": "norm"} (a
  layer norm) and {"kind": "unit"} (length 1);
- "unit": true scales the vector to length 1;
- "truncate": how many of its first numbers are kept.

A description {"backbone": "static", "vocabulary": …, "width": …} with these fields is a table of vectors, whose mean
over a text's tokens is the pooled vector: a StaticEmbedding.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch.nn.functional as nnf
from torch import Tensor, nn

from sslguard.encoders.size import MAX_PARAMETERS
from sslguard.encoders.words import check_whole, pooled
from sslguard.errors import UsageError

ACTIVATIONS = MappingProxyType(
    {
        name: getattr(nn, name)
        for name in (
            *("CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid"),
            *("Mish", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh", "Tanhshrink"),
        )
    }
)
"""Names of functions in torch.nn that a dense layer may end with, as torch builds them without arguments."""
_MAX_WIDTH = 1 << 16
_MAX_LAYERS = 16
_MAX_VOCABULARY = 1 << 23
_DENSE = frozenset({"kind", "in", "out", "bias", "activation"})


class Behind(nn.Module):
    """Layers behind a pooling, a scaling to length 1, a cut: (n, width) → (n, width of the last)."""

    def __init__(self, layers: nn.Sequential, unit: bool = False, truncate: int | None = None) -> None:
        super().__init__()
        self.layers, self.unit, self.truncate = layers, unit, truncate

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings (n, width) of pooled vectors."""
        x = self.layers(x)
        x = nnf.normalize(x, dim=1) if self.unit else x
        return x if self.truncate is None else x[:, : self.truncate]


class Dense(nn.Module):
    """A linear layer and a function behind it."""

    def __init__(self, width: int, out: int, bias: bool, activation: str) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(width, out, bias), ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, out) of (n, width)."""
        return self.activation(self.linear(x))


class Unit(nn.Module):
    """Scaling to length 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, width) of the same shape."""
        return nnf.normalize(x, dim=1)


class StaticModule(nn.Module):
    """A vector for each token, their mean, and layers behind: ids and mask (n, 2, L) → (n, width)."""

    def __init__(self, vocabulary: int, width: int, behind: Behind) -> None:
        super().__init__()
        self.words, self.behind = nn.Embedding(vocabulary, width), behind

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings (n, width) of ids and mask, int64 (n, 2, L)."""
        ids, mask = tokens.unbind(1)
        return self.behind(pooled(self.words(ids), mask, "mean"))


def static(architecture: dict[str, Any]) -> tuple[StaticModule, int]:
    """Return the untrained table of a description and the width of its embedding. Raise UsageError for wrong fields."""
    vocabulary, width = architecture.get("vocabulary"), architecture.get("width")
    check_whole("vocabulary", vocabulary, 1, _MAX_VOCABULARY)
    check_whole("width", width, 1, _MAX_WIDTH)
    assert isinstance(vocabulary, int)
    assert isinstance(width, int)
    _check_numbers(vocabulary, width)
    behind, out = read_behind(architecture, width)
    return StaticModule(vocabulary, width, behind), out


def read_behind(architecture: dict[str, Any], width: int) -> tuple[Behind, int]:
    """Return what a description puts behind pooled vectors of `width`, and the width that comes out.

    Raises:
        UsageError: a field is out of range, or a layer does not fit the one before it.
    """
    unit, cut, described = architecture.get("unit"), architecture.get("truncate"), architecture.get("layers", [])
    if not isinstance(unit, bool):
        raise UsageError(f"unit must be true or false, not {unit!r:.80}")
    if not isinstance(described, list) or len(described) > _MAX_LAYERS:
        raise UsageError(f"layers must be a list of {_MAX_LAYERS} layers at most, not {described!r:.80}")
    layers: list[nn.Module] = []
    for one in described:
        layer, width = _layer(one, width)
        layers.append(layer)
    if cut is not None:
        check_whole("truncate", cut, 1, _MAX_WIDTH)
    return Behind(nn.Sequential(*layers), unit, cut), width if cut is None else min(cut, width)


def _layer(described: object, width: int) -> tuple[nn.Module, int]:
    if described == {"kind": "unit"}:
        return Unit(), width
    if described == {"kind": "norm"}:
        return nn.LayerNorm(width), width
    if not isinstance(described, dict) or described.keys() != _DENSE or described["kind"] != "dense":
        raise UsageError(f"a layer behind a pooling must be dense, norm or unit, not {described!r:.80}")
    out, bias, activation = described["out"], described["bias"], described["activation"]
    check_whole("out of a dense layer", out, 1, _MAX_WIDTH)
    _check_numbers(out, width)
    if described["in"] != width:
        raise UsageError(f"a dense layer takes {described['in']!r:.80} numbers, and {width} come")
    if not isinstance(bias, bool):
        raise UsageError(f"bias of a dense layer must be true or false, not {bias!r:.80}")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UsageError(
            f"the function behind a dense layer must be one of {', '.join(sorted(ACTIVATIONS))}, not {activation!r:.80}"
        )
    return Dense(width, out, bias, activation), out


def _check_numbers(rows: int, width: int) -> None:
    if rows * width > MAX_PARAMETERS:
        raise UsageError(f"a table may hold {MAX_PARAMETERS} numbers, not {rows} × {width}")
