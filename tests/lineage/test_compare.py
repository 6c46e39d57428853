"""The test of common initial weights: exact between independent networks, hundreds of bits for copies."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor, nn

from sslguard.crypto.secrets import Secret
from sslguard.errors import RefusedError
from sslguard.lineage.compare import agreement, aligned, in_place
from sslguard.lineage.groups import find_groups
from sslguard.lineage.matching import reordered
from sslguard.lineage.parts import Group, Part, ordered
from sslguard.lineage.verdict import compare, compare_initial
from sslguard.lineage.weights import open_weights
from sslguard.stats.fixed_points import log2_fixed_points

State = dict[str, Tensor]


def residual(seed: int, width: int = 12) -> State:
    """Weights of two residual blocks of linear layers after one convolution, as they are drawn initially."""
    rng = np.random.default_rng(seed)
    shapes = {"conv1.weight": (width, 3, 3, 3)}
    for i in range(2):
        shapes |= {f"blocks.{i}.fc1.weight": (3 * width, width), f"blocks.{i}.fc1.bias": (3 * width,)}
        shapes[f"blocks.{i}.fc2.weight"] = (width, 3 * width)
    return {name: torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for name, shape in shapes.items()}


def noisy(state: State, share: float, seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {n: t + share * t.std() * torch.randn(t.shape, generator=generator) for n, t in state.items()}


def by_thief(state: State, seed: int, *, kinds: tuple[str, ...] = ("hidden",)) -> State:
    """The same network, groups of these kinds in another order and hidden units at another scale."""
    rng = np.random.default_rng(seed)
    made = dict(state)
    for group in find_groups(open_weights(state)):
        if group.kind in kinds:
            names = {part.tensor for part in group.parts}
            # A stream runs through every block.
            if group.kind == "stream":
                streams = [Part(n, int("fc2" not in n)) for n in state if "weight" in n and "blocks" in n]
                group = Group(group.name, group.size, "stream", (*group.features, *streams))
                names = {part.tensor for part in group.parts}
            moved = reordered(group, {n: made[n].numpy() for n in names}, rng.permutation(group.size))
            made |= {n: torch.from_numpy(values) for n, values in moved.items()}
            if group.kind == "hidden":
                scale = torch.from_numpy(np.exp(rng.normal(size=group.size)).astype(np.float32))
                into, out = (part.tensor for part in group.features)
                made[into], made[out] = made[into] * scale[:, None], made[out] / scale
    return made


def pairs(n: int) -> list[tuple[State, State]]:
    return [(residual(2 * seed), residual(2 * seed + 1)) for seed in range(n)]


def counts_of(comparisons, test: str) -> list[tuple[int, int]]:
    return [(row.matched, row.size) for one in comparisons for row in one.rows]


def assert_exact_law(counts: list[tuple[int, int]]) -> None:
    """Counts of many groups follow the law of fixed points, whatever their sizes."""
    expected, seen = np.zeros(5), Counter(min(count, 4) for count, _ in counts)
    for _, size in counts:
        tails = [2 ** log2_fixed_points(k, size) for k in range(5)]
        expected += [*(x - y for x, y in pairwise(tails)), tails[4]]
    assert chisquare([seen[k] for k in range(5)], expected * len(counts) / expected.sum()).pvalue > 1e-4


@pytest.mark.parametrize("test", ["in place", "initial weights", "initial weights, aligned"])
def test_counts_of_independent_networks_follow_the_exact_law(test: str) -> None:
    run = in_place if test == "in place" else partial(agreement, align=test.endswith("aligned"))
    found = [run(open_weights(a), open_weights(b), seed=k) for k, (a, b) in enumerate(pairs(100))]
    assert_exact_law(counts_of(found, test))
    assert min(one.log2_pvalue for one in found) > -20
    # Counts are whole numbers, so that the p-value is uniform or larger.
    assert kstest([2**one.log2_pvalue for one in found], "uniform", alternative="greater").pvalue > 1e-4


def test_a_tensor_between_two_groups_is_compared_in_the_later_one() -> None:
    """Compared in both, it would let the two groups of independent networks match together."""
    pair = [Group(name, 4, "hidden", (Part("w", axis), Part(name, 0))) for name, axis in (("a", 0), ("b", 1))]
    first, second = ordered(pair, {"w": (4, 4), "a": (4, 3), "b": (4, 3)})
    assert [part.tensor for part in first.features] == ["a"]
    assert [part.tensor for part in second.features] == ["w", "b"]


def test_weights_whose_two_sides_resemble_each_other_have_no_null() -> None:
    """As training makes them: independent networks then agree, in whatever order. Hence only initial weights count."""

    def coupled(seed: int) -> State:
        state, rng = residual(seed), np.random.default_rng(seed)
        del state["conv1.weight"]  # a stream whose channels mean the same in both, as data make them
        for i in range(2):
            angle = torch.linspace(0, 6, 36)[torch.from_numpy(rng.permutation(36))]
            into, out = state[f"blocks.{i}.fc1.weight"], state[f"blocks.{i}.fc2.weight"]
            for k in range(1, 6):
                into[:, 2 * k], into[:, 2 * k + 1] = 9 * (k * angle).cos(), 9 * (k * angle).sin()
                out[2 * k], out[2 * k + 1] = 9 * (k * angle).cos(), 9 * (k * angle).sin()
        return state

    found = [agreement(open_weights(coupled(2 * k)), open_weights(coupled(2 * k + 1))).matched for k in range(5)]
    assert min(found) > 20  # of 72; two are expected of initial weights


@pytest.mark.parametrize(
    ("name", "change", "least"),
    [
        ("the same", lambda s: s, 200),
        ("float16", lambda s: {n: t.half() for n, t in s.items()}, 200),
        ("int8", lambda s: {n: (t * 40).round().to(torch.int8) for n, t in s.items()}, 200),
        ("noise as large as the weights", lambda s: noisy(s, 1.0), 150),
        ("pruned by 90 %", lambda s: {n: t * (t.abs() > t.abs().quantile(0.9)) for n, t in s.items()}, 100),
        ("a block drawn anew", lambda s: {n: residual(99)[n] if "s.1" in n else t for n, t in s.items()}, 60),
        ("averaged with a stranger", lambda s: {n: (t + residual(98)[n]) / 2 for n, t in s.items()}, 150),
        ("other names", lambda s: {f"model.{n}": t for n, t in s.items()}, 200),
    ],
)  # fmt: skip
def test_copies_keep_their_units_in_place(name: str, change, least: float) -> None:
    a = residual(1)
    found = in_place(open_weights(a), open_weights(change(a)))
    assert -found.log2_pvalue > least, name


def test_layers_that_were_drawn_anew_are_seen_one_by_one() -> None:
    a, stranger = residual(1), residual(99)
    found = in_place(open_weights(a), open_weights({n: stranger[n] if "blocks.1" in n else t for n, t in a.items()}))
    assert [row.matched > 10 for row in found.rows] == [True, True, False]


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_copies_within_one_network_count_once(share: float) -> None:
    """Shared layers, or averages of weights under another name, of independent networks match together."""

    def doubled(seed: int) -> State:
        state = residual(seed)
        copy = noisy(state, share, seed)
        return {**state, **{f"mean.{n}": t for n, t in copy.items() if n.startswith("blocks")}}

    a, b = (open_weights(doubled(seed)) for seed in (1, 2))
    for pair in ((a, b), (a, open_weights(noisy(doubled(2), 0.1)))):
        found = in_place(*pair)
        assert len(found.rows) == 3
        assert [reason.rpartition(" ")[2] for _, reason in found.left_out] == ["blocks.0.fc1", "blocks.1.fc1"]


class TestThief:
    def test_hidden_units_in_another_order_leave_the_stream(self) -> None:
        a = residual(3)
        found = in_place(open_weights(a), open_weights(by_thief(a, 1)))
        assert [row.matched for row in found.rows if row.kind == "stream"] == [12]
        assert sum(row.matched for row in found.rows if row.kind == "hidden") < 10

    @pytest.mark.parametrize("kinds", [("hidden",), ("stream", "hidden")])
    def test_initial_weights_are_found_in_any_order(self, kinds: tuple[str, ...]) -> None:
        a = residual(3)
        thief = by_thief(noisy(a, 0.5), 1, kinds=kinds)
        found = agreement(open_weights(a), open_weights(thief), align="stream" in kinds)
        assert found.matched > 60
        assert found.log2_pvalue < -150

    def test_a_row_is_aligned_layer_by_layer(self) -> None:
        """A thief permutes all layers but the last, whose order clients would notice."""
        rng = np.random.default_rng(0)
        net = nn.Sequential(*[m for i in range(3) for m in (nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())])
        a = {n: torch.from_numpy(rng.standard_normal(t.shape).astype(np.float32)) for n, t in net.state_dict().items()}
        b = dict(a)
        for group in find_groups(open_weights(a))[:2]:
            moved = reordered(group, {p.tensor: b[p.tensor].numpy() for p in group.parts}, rng.permutation(8))
            b |= {n: torch.from_numpy(values) for n, values in moved.items()}
        assert in_place(open_weights(a), open_weights(b)).rows[-1].matched < 8
        found = aligned(open_weights(a), open_weights(b))
        assert found is not None
        assert found.rows[-1].matched == 8

    def test_alignment_is_exact_too(self) -> None:
        def row(seed: int) -> State:
            rng = np.random.default_rng(seed)
            shapes = {f"{3 * i}.weight": (16, 3 if i == 0 else 16, 3, 3) for i in range(3)}
            shapes |= {f"{3 * i + 1}.{v}": (16,) for i in range(3) for v in ("weight", "running_mean")}
            return {n: torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for n, s in shapes.items()}

        found = [aligned(open_weights(row(2 * k)), open_weights(row(2 * k + 1)), seed=k) for k in range(100)]
        assert_exact_law(counts_of(found, "aligned"))


def test_streams_alone_show_more_behind_a_thief_who_permutes_hidden_units() -> None:
    a = residual(1, width=32)
    found = compare(open_weights(a), open_weights(by_thief(a, 0)))
    whole, alone = found.tests[:2]
    assert (whole.test, alone.test) == ("in place", "streams")
    assert alone.matched == alone.size == 32
    assert alone.log2_pvalue < whole.log2_pvalue - 5
    assert found.log2_pvalue == pytest.approx(alone.log2_pvalue + np.log2(2))


def test_initial_weights_that_are_fixed_are_left_out() -> None:
    """A block that begins alike in every network agrees with each of them, whatever the seed."""
    fixed = {name: t for name, t in residual(9).items() if "blocks.1" in name}
    initial, again, innocent = (open_weights({**residual(seed), **fixed}) for seed in range(3))
    assert agreement(initial, innocent).log2_pvalue < -100
    found = compare_initial(initial, again, innocent)
    assert [row.group for row in found.tests[0].rows] == ["blocks.0.fc1"]
    assert (found.decision, found.log2_pvalue > -20) == ("not shown", True)
    own = compare_initial(initial, again, open_weights(noisy({**residual(0), **fixed}, 0.3)))
    assert own.decision == "shared weights"
    with pytest.raises(RefusedError, match="do not depend on a seed"):
        compare_initial(initial, initial, innocent)


class TestRefusals:
    def test_another_width_or_architecture(self) -> None:
        with pytest.raises(RefusedError, match=r"conv1\.weight has shape .* says nothing about descent"):
            in_place(open_weights(residual(1)), open_weights(residual(1, width=8)))
        with pytest.raises(RefusedError, match="is missing in"):
            in_place(open_weights(residual(1)), open_weights({"x.weight": torch.ones(3, 3)}))
        with pytest.raises(RefusedError, match="--groups"):
            in_place(open_weights({"x.weight": torch.ones(3, 3)}), open_weights(residual(1)))

    def test_groups_that_fit_are_compared_and_the_others_named(self) -> None:
        a = residual(1)
        b = {**a, "blocks.1.fc1.weight": torch.ones(5, 12), "blocks.1.fc2.weight": torch.ones(12, 5)}
        found = in_place(open_weights(a), open_weights(b))
        assert len(found.rows) == 2
        assert [name for name, _ in found.left_out] == ["blocks.1.fc1"]

    def test_a_level_that_no_copy_could_reach(self) -> None:
        a = {"0.weight": torch.randn(3, 5), "2.weight": torch.randn(2, 3)}
        with pytest.raises(RefusedError, match="3 bits at most"):
            compare(open_weights(a), open_weights(a))

    def test_no_hidden_units_to_agree(self) -> None:
        a = {"conv1.weight": torch.randn(8, 3, 3, 3)}
        with pytest.raises(RefusedError, match="incoming and outgoing"):
            agreement(open_weights(a), open_weights(a))


class TestAncestor:
    def test_explains_what_both_have_of_it(self) -> None:
        c = residual(5)
        found = compare(*map(open_weights, (noisy(c, 0.2, 1), noisy(c, 0.2, 2))), ancestor=open_weights(c)).ancestor
        assert found is not None
        assert found.meaning.startswith("explains it")

    def test_does_not_explain_what_is_the_owners_own(self) -> None:
        c, new = residual(5), residual(6)
        a = {n: new[n] if "blocks.1" in n else t for n, t in c.items()}
        found = compare(*map(open_weights, (a, noisy(a, 0.2))), ancestor=open_weights(c))
        assert found.decision == "shared weights"
        assert found.ancestor is not None
        assert "does not have from it" in found.ancestor.meaning
        b = {n: residual(7)[n] if "blocks.1" in n else t for n, t in c.items()}
        sibling = compare(*map(open_weights, (a, b)), ancestor=open_weights(c)).ancestor
        assert sibling is not None
        assert sibling.meaning.startswith("explains it")

    def test_strangers_explain_nothing(self) -> None:
        a = residual(5)
        found = compare(*map(open_weights, (a, a, )), ancestor=open_weights(residual(8))).ancestor  # fmt: skip
        assert found is not None
        assert found.meaning.startswith("does not explain it")


def test_results_are_json_and_do_not_depend_on_the_run() -> None:
    a, b = residual(1), residual(2)
    first, again = (
        compare(open_weights(a), open_weights(b), initial=open_weights(residual(3))).to_json() for _ in "12"
    )
    assert first == again
    assert first["decision"] == "not shown"
    assert Secret.from_seed(1).reveal().hex() not in str(first)
