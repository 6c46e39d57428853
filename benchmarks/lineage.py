"""Evidence from weights: nulls of independent networks, derivations of a shipped encoder, secret orders, large pairs.

Parts (`--parts`):
  nulls    pairs of the test bed's networks that have other seeds, fresh small networks, and secret orders against
           relatives of the same seed: counts against the exact law
  derived  what was made of shipped:simclr: bits in place; the same behind a thief who permutes and rescales hidden
           units; by the initial weights; by a secret order
  large    seconds and memory of a pair of larger networks, each in a process of its own; a decoder of 7 billion weights
           is made on the fly, some layers of it are compared (--layers), and the rest is extrapolated

Run: python benchmarks/lineage.py [--parts nulls derived large] [--pairs 200] [--secrets 100] [--layers 3]
"""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from common import RESULTS, options, prepare, save
from scipy.stats import chisquare
from torch import Tensor

from sslguard.controls.members import Member, read_population, shipped_population
from sslguard.crypto.secrets import Secret
from sslguard.data.specs import open_data
from sslguard.encoders.base import Encoder
from sslguard.encoders.load import load_encoder
from sslguard.errors import RefusedError
from sslguard.lineage.compare import Comparison, agreement, in_place, streams
from sslguard.lineage.groups import find_groups
from sslguard.lineage.matching import reordered
from sslguard.lineage.order import released, sample
from sslguard.lineage.verdict import compare
from sslguard.lineage.weights import Weights, open_weights
from sslguard.report.markdown import table
from sslguard.stats.fixed_points import log2_fixed_points
from sslguard.training.pretraining import new_encoder

State = dict[str, Tensor]
SMALL = ("resnet-narrow", "plain-small", "separable-small", "vit-small")


def population() -> list[Member]:
    return read_population(shipped_population())


# ---------------------------------------------------------------- nulls


def law(found: Iterable[Comparison]) -> dict[str, Any]:
    """Counts of all groups against the exact law, 0, 1, 2, 3 and more, and the smallest p-value."""
    found = list(found)
    rows = [row for one in found for row in one.rows]
    seen, expected = np.zeros(5), np.zeros(5)
    for row in rows:
        tails = [2 ** log2_fixed_points(k, row.size) for k in range(5)]
        expected += [*(a - b for a, b in itertools.pairwise(tails)), tails[4]]
        seen[min(row.matched, 4)] += 1
    return {
        "pairs": len(found),
        "groups": len(rows),
        "mean": float(np.mean([row.matched for row in rows])),
        "chi2_p": float(chisquare(seen, expected).pvalue),
        "smallest_log2_p": min(one.log2_pvalue for one in found),
    }


def bed() -> list[Comparison]:
    """Pairs of one architecture among the test bed's networks that were initialised by seeds of their own."""
    by_name: dict[str, list[Encoder]] = {}
    for member in population():
        if member.kind in ("independent", "random", "supervised", "surrogate"):
            encoder = member.load()
            by_name.setdefault(str(encoder.architecture["backbone"]), []).append(encoder)
    by_name["resnet-small"] += [load_encoder(f"shipped:{name}") for name in ("simclr", "moco", "byol")]
    found = []
    for encoders in by_name.values():
        weights = [open_weights(encoder) for encoder in encoders]
        for a, b in itertools.combinations(range(len(weights)), 2):
            if all(encoders[k].source.startswith(("simclr on", "moco on", "byol on")) for k in (a, b)):
                continue  # the shipped encoders share their seed
            try:
                found.append(in_place(weights[a], weights[b], seed=a))
            except RefusedError:
                continue  # a linear layer stands behind a row of layers, whose last units are then not known
    return found


def fresh(pairs: int) -> tuple[list[Comparison], list[Comparison]]:
    """Pairs of freshly drawn small networks, in place, and by initial weights."""
    place, initial = [], []
    for number in range(pairs):
        name = SMALL[number % 4]
        a, b = (open_weights(load_encoder(f"random:{name}:{10_000 + 2 * number + k}")) for k in (0, 1))
        place.append(in_place(a, b, seed=number))
        if name in ("resnet-narrow", "vit-small"):
            initial.append(agreement(a, b, seed=number))
    return place, initial


def orders(secrets: int) -> list[Comparison]:
    """Relatives of shipped:simclr under fresh secret orders: its own and initial weights, siblings, a copy."""
    clean = load_encoder("shipped:simclr")
    weak = next(one for one in population() if one.name == "fine-tuned-simclr-all-200").load()
    relatives = [open_weights(one) for one in (clean, *map(load_encoder, ("shipped:moco", "shipped:byol")), weak)]
    relatives.append(open_weights(initial_of("simclr")))
    found = []
    for number in range(secrets):
        made = released(clean, Secret.from_seed(number), sample(clean))
        assert made.order is not None
        ours = open_weights(made.encoder)
        groups = made.order.chosen(ours)
        found += [in_place(ours, other, groups, seed=number) for other in relatives]
    return found


def nulls(pairs: int, secrets: int) -> dict[str, Any]:
    place, initial = fresh(pairs)
    rows = {
        "test bed, trained": law(bed()),
        "fresh, in place": law(place),
        "fresh, initial weights": law(initial),
        "secret orders, relatives": law(orders(secrets)),
    }
    for name, row in rows.items():
        print(name, row, flush=True)
    return rows


# ---------------------------------------------------------------- derived


def initial_of(name: str) -> Encoder:
    """The weights before training of a shipped encoder: its record says the seed."""
    encoder = load_encoder(f"shipped:{name}")
    seed = encoder.record["seed"]
    return new_encoder("resnet-small", open_data("cluttered-fashion-mnist:train[0:1]"), seed=seed)


def by_thief(state: State, seed: int = 0) -> State:
    """The same function: hidden units in another order, and at another scale, which the batch norm takes out."""
    rng, made = np.random.default_rng(seed), dict(state)
    for group in find_groups(open_weights(state)):
        if group.kind == "hidden":
            tensors = {part.tensor: made[part.tensor].numpy() for part in group.parts}
            moved = {n: torch.from_numpy(v) for n, v in reordered(group, tensors, rng.permutation(group.size)).items()}
            scale = torch.from_numpy(np.exp(rng.normal(size=group.size)).astype(np.float32))
            for part in group.parts:
                tensor = moved[part.tensor]
                if part.tensor.endswith("running_var"):
                    tensor = tensor * scale**2
                elif part.tensor.endswith("running_mean"):
                    tensor = tensor * scale
                elif part in group.features and part.axis == 0:
                    tensor = tensor * scale.reshape(-1, *[1] * (tensor.dim() - 1))
                moved[part.tensor] = tensor
            made |= moved
    return made


def shaken(state: State, change: Callable[[Tensor], Tensor]) -> State:
    return {n: change(t) if t.dim() > 1 else t for n, t in state.items()}


def rounded(tensor: Tensor, levels: int) -> Tensor:
    step = tensor.abs().max() / levels
    return (tensor / step).round() * step


def low_rank(tensor: Tensor, rank: int, share: float, generator: torch.Generator) -> Tensor:
    flat = tensor.flatten(1)
    update = torch.randn(flat.shape[0], rank, generator=generator) @ torch.randn(
        rank, flat.shape[1], generator=generator
    )
    return tensor + (update * share * flat.norm() / update.norm()).reshape(tensor.shape)


def derivations(clean: State, stranger: State) -> dict[str, State]:
    draw = torch.Generator().manual_seed(1)
    noise = lambda share: lambda t: t + share * t.std() * torch.randn(t.shape, generator=draw)  # noqa: E731
    prune = lambda share: lambda t: t * (t.abs() > t.abs().quantile(share))  # noqa: E731
    block = lambda *names: {n: stranger[n] if n.startswith(names) else t for n, t in clean.items()}  # noqa: E731
    return {
        "pruned 90 %": shaken(clean, prune(0.9)),
        "pruned 99 %": shaken(clean, prune(0.99)),
        "int8": shaken(clean, lambda t: rounded(t, 127)),
        "int4": shaken(clean, lambda t: rounded(t, 7)),
        "int2": shaken(clean, lambda t: rounded(t, 1)),
        "noise as large as the weights": shaken(clean, noise(1)),
        "noise twice as large": shaken(clean, noise(2)),
        "noise four times as large": shaken(clean, noise(4)),
        "last of three blocks drawn anew": block("5."),
        "last two blocks drawn anew": block("4.", "5."),
        "rank-4 update as large as the weights, merged": shaken(clean, lambda t: low_rank(t, 4, 1.0, draw)),
        "average with a stranger": {n: (t + stranger[n]) / 2 for n, t in clean.items()},
        "a quarter of it, three of a stranger": {n: t / 4 + 0.75 * stranger[n] for n, t in clean.items()},
    }


def state_of(encoder: Encoder) -> State:
    """Weights by the names that the shipped encoders have; some members have a linear layer behind the network."""
    state = encoder.module.state_dict().items()
    return {n.removeprefix("backbone."): t.detach().clone() for n, t in state if t.is_floating_point()}


def of_streams(found: Comparison) -> float:
    alone = streams(found)
    assert alone is not None
    return alone.log2_pvalue


def derived() -> dict[str, Any]:
    encoder, start = load_encoder("shipped:simclr"), initial_of("simclr")
    made = released(encoder, Secret.from_seed(0), sample(encoder))
    members = {member.name: member for member in population()}
    stranger = state_of(members["independent-simclr-resnet-small-first"].load())
    clean, public = state_of(encoder), state_of(made.encoder)
    assert made.order is not None
    suspects: dict[str, tuple[State, State | None]] = {}
    for name in ("fine-tuned-simclr-all-50", "fine-tuned-simclr-all-200", "pruned-simclr-60"):
        suspects[f"control {name}"] = state_of(members[name].load()), None
    for name in ("simclr", "moco", "byol"):
        what = f"initial weights after 2,500 steps of {name}"
        suspects[what] = state_of(load_encoder(f"shipped:{name}")), None
    other = derivations(public, stranger)
    suspects |= {name: (state, other[name]) for name, state in derivations(clean, stranger).items()}
    rows: dict[str, Any] = {}
    for name, (state, of_release) in suspects.items():
        a = open_weights(start) if name.startswith("initial") else open_weights(clean)
        thief = by_thief(state)
        row = {
            "in_place": in_place(a, open_weights(state)).log2_pvalue,
            "thief": of_streams(in_place(a, open_weights(thief))),
            "initial": agreement(open_weights(start), open_weights(thief)).log2_pvalue,
            "order": None,
        }
        if of_release is not None:
            row["order"] = compare(open_weights(made.encoder), open_weights(of_release), order=made.order).log2_pvalue
        rows[name] = row
        print(name, row, flush=True)
    items = open_data("cluttered-fashion-mnist:test[0:500]").take(range(500))
    before, after = encoder.embed(items), made.encoder.embed(items)
    moved = float(np.linalg.norm(after - before) / np.linalg.norm(before))
    return {"rows": rows, "release_moves_outputs_by": moved}


# ---------------------------------------------------------------- large


def on_the_fly(name: str, shapes: dict[str, tuple[int, ...]], seed: int, base: int, noise: float) -> Weights:
    """Weights drawn when they are read: those of the seed `base`, and noise of the seed `seed`."""

    def fetch(key: str) -> Tensor:
        generator = torch.Generator().manual_seed(base * 1_000_003 + sorted(shapes).index(key))
        drawn = torch.randn(shapes[key], generator=generator)
        if noise:
            generator.manual_seed(seed * 1_000_003 + sorted(shapes).index(key))
            drawn += noise * torch.randn(shapes[key], generator=generator)
        return drawn

    return Weights(name, shapes, fetch)


def decoder(layers: int, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    shapes = {"model.embed_tokens.weight": (32_000, width)}
    for i in range(layers):
        block = f"model.layers.{i}.mlp"
        shapes |= {f"{block}.gate_proj.weight": (hidden, width), f"{block}.up_proj.weight": (hidden, width)}
        shapes[f"{block}.down_proj.weight"] = (width, hidden)
    return shapes


def bert(layers: int, width: int) -> dict[str, tuple[int, ...]]:
    shapes = {"embeddings.word_embeddings.weight": (30_522, width)}
    for i in range(layers):
        shapes[f"encoder.layer.{i}.intermediate.dense.weight"] = (4 * width, width)
        shapes[f"encoder.layer.{i}.output.dense.weight"] = (width, 4 * width)
    return shapes


LARGE = {
    "all-MiniLM-L6-v2": "package:all-minilm-l6-v2",
    "EfficientNet-Lite0": "package:efficientnet-lite0",
    "ResNet-50": "torchvision:resnet50:random",
    "ViT-S/16": "timm:vit_small_patch16_224:random",
    "BERT, 12 layers": bert(12, 768),
    "decoder of 7 billion": decoder(32, 4096, 11_008),
}


def one_pair(name: str, kind: str, layers: str) -> dict[str, Any]:
    """Compare a network with a noisy copy, or with a stranger of the same shapes; of the decoder so many layers."""
    prepare()
    source: Any = LARGE[name]
    a = on_the_fly(name, source, 0, 1, 0) if isinstance(source, dict) else open_weights(source)
    if kind == "copy":

        def noisy(key: str) -> Tensor:
            drawn = a.fetch(key).float()
            generator = torch.Generator().manual_seed(len(key))
            return drawn + 0.5 * drawn.std(unbiased=False) * torch.randn(drawn.shape, generator=generator)

        b = Weights("copy", a.shapes, noisy)
    else:
        b = on_the_fly("stranger", dict(a.shapes), 0, 2, 0)
    groups = find_groups(a)
    measured = groups[1 : 1 + int(layers)] if name.startswith("decoder") else groups
    before, begun = time.process_time(), time.perf_counter()
    found = in_place(a, b, measured)
    spent = time.process_time() - before
    row = {
        "cpu_seconds": spent,
        "seconds": time.perf_counter() - begun,
        "mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "log2_p": found.log2_pvalue,
        "matched": found.matched,
        "units": found.size,
        "groups": len(found.rows),
    }
    if len(measured) < len(groups):
        row["of_groups"], row["whole_cpu_seconds"] = len(groups), spent * len(groups) / len(measured)
    return row


def large(names: Iterable[str], layers: int, keep: Callable[[dict[str, Any]], None]) -> None:
    """Compare each network with a copy and a stranger; `keep` is given all figures so far after each."""
    rows: dict[str, Any] = {}
    for name, kind in itertools.product(names, ("copy", "stranger")):
        command = [sys.executable, __file__, "--pair", name, kind, str(layers)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[f"{name}, {kind}"] = json.loads(done.stdout.splitlines()[-1])
        keep(rows)
        print(name, kind, rows[f"{name}, {kind}"], flush=True)


def main() -> None:
    given = options(
        __doc__, parts=("nulls", "derived", "large"), pairs=200, secrets=100, layers=3, pair=(), networks=tuple(LARGE)
    )
    if given.pair:
        print(json.dumps(one_pair(*given.pair)))
        return
    prepare()
    path = RESULTS / "lineage.json"
    figures = {n: v for n, v in json.loads(path.read_text()).items() if n != "run"} if path.exists() else {}
    for part in given.parts:
        if part == "nulls":
            figures[part] = nulls(given.pairs, given.secrets)
        elif part == "derived":
            figures[part] = derived()
        else:
            figures.setdefault(part, {})
            large(given.networks, given.layers, lambda rows: figures["large"].update(rows) or save("lineage", figures))
        save("lineage", figures)
    header = ("derived from shipped:simclr", "in place", "permuted, rescaled", "initial weights", "secret order")
    rows = [
        (name, *("–" if row[n] is None else f"{abs(row[n]):,.0f}" for n in ("in_place", "thief", "initial", "order")))
        for name, row in figures.get("derived", {}).get("rows", {}).items()
    ]
    print(table(header, rows))


if __name__ == "__main__":
    main()
