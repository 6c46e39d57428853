"""Groups found by following the operations of a network of the user's own."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn

import sslguard
from sslguard.crypto.secrets import Secret
from sslguard.errors import RefusedError
from sslguard.lineage.compare import in_place
from sslguard.lineage.groups import find_groups
from sslguard.lineage.order import released, sample
from sslguard.lineage.traced import traced_groups
from sslguard.lineage.verdict import compare
from sslguard.lineage.weights import corresponding, open_weights
from sslguard.stats.fixed_points import log2_fixed_points

ITEMS = torch.rand((4, 1, 12, 12), generator=torch.Generator().manual_seed(0))


def plain(seed: int) -> nn.Module:
    """The network of examples/own_module.py, smaller."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 20)
    ).eval()


class Mixed(nn.Module):
    """A residual block, a depthwise layer, a group norm, a gate, and names that no library has."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.entry, self.scale = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16)
        self.wide, self.back = nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.Conv2d(24, 16, 3, padding=1)
        self.deep, self.sets, self.norm = nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 40, 1), nn.GroupNorm(4, 40)
        self.gate, self.value, self.merge = nn.Linear(40, 30), nn.Linear(40, 30), nn.Linear(30, 12)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.scale(self.entry(x)))
        x = x + self.back(torch.relu(self.wide(x)))
        x = torch.relu(self.norm(self.sets(self.deep(x)))).mean((2, 3))
        return nn.functional.normalize(self.merge(torch.sigmoid(self.gate(x)) * self.value(x)), dim=1)


class Tokens(nn.Module):
    """Patches with positions and a token of a class, an MLP for each token, attention between them."""

    def __init__(self, positions: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.first = nn.Conv2d(1, 16, 3, 3), nn.Parameter(torch.randn(1, 1, 16))
        self.where = nn.Parameter(positions)
        self.attention, self.joined = nn.Linear(16, 48), nn.Linear(16, 16)
        self.one, self.two, self.last = nn.Linear(16, 40), nn.Linear(40, 16), nn.LayerNorm(16)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.where
        q, k, v = self.attention(self.last(x)).reshape(-1, 17, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 17, 16)
        x = x + self.joined(seen)
        x = x + self.two(nn.functional.gelu(self.one(x)))
        return self.last(x)[:, 0]


def encoder(net: nn.Module) -> sslguard.Encoder:
    return sslguard.load_encoder(net, example=ITEMS)


def groups(net: nn.Module) -> dict[str, tuple[int, str, bool]]:
    return {g.name: (g.size, g.kind, g.whole) for g in traced_groups(open_weights(encoder(net)))}


def test_a_plain_network_behind_a_flattened_map() -> None:
    """Each channel has four places in a row among the columns of the linear layer; its rows may be classes."""
    (group,) = find_groups(open_weights(encoder(plain(0))))
    assert (group.name, group.size, group.whole) == ("net.0", 24, True)
    assert [(p.tensor, p.axis, p.run) for p in group.features] == [("net.0.weight", 0, 1), ("net.4.weight", 1, 4)]
    assert [part.tensor for part in group.others] == ["net.0.bias"]


def test_streams_gates_depthwise_layers_and_what_is_left_out() -> None:
    """Group norms treat units in sets, and units of the output may be classes: neither is a group."""
    found = groups(Mixed(0))
    assert found == {
        "net.entry": (16, "stream", False),
        "net.wide": (24, "hidden", True),
        "net.gate": (30, "hidden", True),
    }


def test_tokens_and_positions() -> None:
    learned = torch.randn((1, 17, 16), generator=torch.Generator().manual_seed(1))
    assert groups(Tokens(learned)) == {"net.patch": (16, "stream", False), "net.one": (40, "hidden", True)}
    angles = torch.arange(17.0)[:, None] * 10 ** -torch.arange(0, 8.0)
    waves = torch.cat([angles.sin(), angles.cos()], 1)[None]
    assert [g.name for g in find_groups(open_weights(encoder(Tokens(learned))))] == ["net.patch", "net.one"]
    found = [g.name for g in find_groups(open_weights(encoder(Tokens(waves))))]
    assert found == ["net.one"]  # sines and cosines tell the channels apart


@pytest.mark.parametrize("net", [plain(0), Mixed(0), Tokens(torch.randn(1, 17, 16))])
def test_another_order_does_not_change_what_it_computes(net: nn.Module) -> None:
    clean = encoder(net)
    made = released(clean, Secret.from_seed(1), sample(clean))
    assert made.order is not None
    assert set(made.order.groups) == {g.name for g in traced_groups(open_weights(clean)) if g.whole}
    assert made.moved < 1e-5
    before, after = clean.module.state_dict(), made.encoder.module.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    found = compare(open_weights(made.encoder), open_weights(made.encoder), order=made.order)
    assert found.decision == "shared weights"


@pytest.mark.parametrize("make", [plain, Mixed])
def test_independent_networks_follow_the_exact_law(make) -> None:
    """Seeds 0 to 39 in pairs; the counts of units in place against the law, and a copy with noise."""
    found = find_groups(open_weights(encoder(make(0))))
    states = [
        {f"net.{n}": t for n, t in make(seed).state_dict().items() if t.is_floating_point()} for seed in range(40)
    ]
    opened = [open_weights(state) for state in states]
    rows = [row for a, b in zip(opened[::2], opened[1::2], strict=True) for row in in_place(a, b, found).rows]
    seen, expected = np.zeros(3), np.zeros(3)
    for row in rows:
        tails = [2 ** log2_fixed_points(k, row.size) for k in range(3)]
        expected += [*(a - b for a, b in pairwise(tails)), tails[2]]
        seen[min(row.matched, 2)] += 1
    assert chisquare(seen, expected).pvalue > 1e-4
    assert min(row.log2_pvalue for row in rows) > -20
    draw = torch.Generator().manual_seed(3)
    noisy = {
        n: t + 0.5 * t.std() * torch.randn(t.shape, generator=draw) if t.dim() > 1 else t for n, t in states[0].items()
    }
    assert in_place(opened[0], open_weights(noisy), found).log2_pvalue < -70


def test_on_disk_and_against_a_bare_state_dict(tmp_path) -> None:
    net = Mixed(0)
    clean = encoder(net)
    sslguard.release(clean, out=tmp_path / "r", data=ITEMS)
    found = sslguard.compare_weights(tmp_path / "r" / "encoder", tmp_path / "r" / "encoder", key=tmp_path / "r" / "key")
    assert found.decision == "shared weights"
    bare = sslguard.compare_weights(clean, net.state_dict())
    assert (bare.decision, bare.tests[0].matched) == ("shared weights", 70)
    names = corresponding(open_weights(clean), open_weights(plain(0).state_dict()))
    assert names == {}
    with pytest.raises(RefusedError):
        sslguard.compare_weights(clean, plain(0))


def test_weights_that_layers_share_and_constants_are_left_out() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.end = nn.Linear(144, 32), nn.Linear(32, 32), nn.Linear(32, 8)
            self.again = self.two
            self.register_buffer("fixed", torch.linspace(0, 1, 32))
            self.eval()

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.one(x.flatten(1))) * self.fixed
            return self.end(torch.relu(self.again(torch.relu(self.two(x)))))

    assert groups(Shared()) == {}


def test_a_network_below_a_marks_head_leaves_in_a_secret_order() -> None:
    items = torch.rand((300, 1, 12, 12), generator=torch.Generator().manual_seed(1))
    settings = {"mode": "head", "protocol": {"n_queries": 60}}
    marked = sslguard.watermark(plain(0), items, scheme="exact", settings=settings)
    assert marked.order is not None
    assert marked.order.groups == ("encoder.net.0",)
    found = sslguard.compare_weights(marked.encoder, plain(0).state_dict())
    assert found.tests[0].matched < 10  # the clean network stands in its own order


@pytest.mark.parametrize(
    "node",
    [
        '["transpose.int", [{"n": 0}], {"dim0": 1, "dim1": 2}]',
        '["mean.dim", [{"n": 0}], {"dim": [1]}]',
        '["cat.default", [[{"n": 0}, {"n": 0}]], {"dim": 1}]',
        '["linear.default", [{"n": 0}], {"weight": {"w": "b"}}]',
        '["conv2d.default", [{"x": 0}, {"n": 0}], {}]',
    ],
)
def test_programs_in_another_spelling_end_in_no_groups_or_good_ones(node: str) -> None:
    """Arguments by name, and what is read as a weight but is none."""
    state = {"a": "parameter float32 4 4 1 1", "b": "parameter float32 5 12"}
    nodes = ['["conv2d.default", [{"x": 0}, {"w": "a"}], {}]', node]
    weights = open_weights({"a": torch.randn(4, 4, 1, 1), "b": torch.randn(5, 12)})
    program = {"state": state, "nodes": nodes, "output": {"n": 1}}
    assert traced_groups(replace(weights, program=program, item=(4, 12, 12))) == []
    assert traced_groups(replace(weights, program={**program, "nodes": ["?"]}, item=(4, 12, 12))) == []
