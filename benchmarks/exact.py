"""The exact scheme on the test bed: marks, thieves, maps of their answers, removals, and innocents beside each.

Work is cut in cells, kept in OUT, so that a killed run goes on. When they are done, or with `--table` at once, what is
there is written to `benchmarks/results/exact.json` and `docs/results/results-exact.md`. Every suspect is asked 8,000
queries and tested under its own key, and beside it the same attack on the clean encoder under the same key.

Run: python benchmarks/exact.py OUT [--workers 2] [--table]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from cells import Cell, read_cells, run_cells
from common import RESULTS, VICTIMS, accuracy, data, pretraining_of, seconds_a_step, table
from whole_work import prepare

from sslguard.attacks.chain import Chain
from sslguard.attacks.mapping import (
    Classify,
    LeadingComponents,
    LinearMap,
    Mapping,
    SignBits,
    SubtractFeatures,
    SubtractStatistics,
)
from sslguard.attacks.removal import FineTune, Prune, Removal, SelfSupervised
from sslguard.attacks.stealing import Distil, grid
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.data.specs import open_data
from sslguard.encoders.base import Embedder, Encoder, embed_all
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.encoders.heads import Headed
from sslguard.encoders.load import load_encoder
from sslguard.files import write_atomic
from sslguard.probes import accuracy_kept, baseline, linear_probe
from sslguard.schemes.exact import Exact, ExactKey, Protocol
from sslguard.schemes.exact.features import all_statistics, input_statistics
from sslguard.schemes.exact.key import QUERY_BATCH
from sslguard.schemes.keyfile import load_key, save_key
from sslguard.training import Task
from sslguard.training.pretraining import PretrainingTask, new_encoder
from sslguard.training.supervised import Supervised
from sslguard.verification.verdict import ask

DOCS = Path(__file__).parents[1] / "docs" / "results"
SEED, KEY_SEED, STEPS = 77, 50, 400
PROTOCOL = Protocol(n_queries=8_000)
# Ordinary items that took no part in marking; an exact p-value asks no more of them.
QUERIES = "cluttered-fashion-mnist:train[0:8000]"
RECIPES = (
    "mse-plain-same",
    "infonce-plain-same",
    "cosine-plain-same",
    "mse-augmented-wider",
    "infonce-plain-other",
    "cosine-augmented-narrower",
)
TWINS = ("mse-plain-same", "infonce-plain-same")
FULL_PRECISION = ("infonce-plain-other",)  # depthwise convolutions are slower in bfloat16
EPOCHS = (1, 3, 10)
TWIN_REMOVALS = ("fine-tune 3", "self-supervised", "prune 40 %")
DOMAINS = {"garments": ("probe_train", "probe_test"), "digits": ("digits_probe_train", "digits_probe_test")}
ACCURACY_SEEDS = tuple(range(100, 112))
TARGETS = ("marked", "clean")


def mappings() -> dict[str, tuple[Mapping, ...]]:
    """What a thief may put behind a surrogate, by label."""
    subtracted = {k: SubtractFeatures(components=k) for k in (8, 12, 16)}
    rotation = LinearMap(seed=SEED)
    return {
        "rotated": (rotation,),
        "condition 1e4": (LinearMap(condition=1e4, seed=SEED),),
        "PCA 32": (LeadingComponents(32),),
        "sign bits": (SignBits(),),
        "ReLU of a rotation": (LinearMap(rectify=True, seed=SEED),),
        "logits": (Classify(),),
        "hard labels": (Classify(output="labels"),),
        **{f"top {k} subtracted": (mapping,) for k, mapping in subtracted.items()},
        **{f"top {k} subtracted, rotated": (mapping, rotation) for k, mapping in subtracted.items()},
    }


def removals() -> dict[str, tuple[Removal, ...]]:
    """Attacks on weights, by label; "steal, …" begin from the first thief's surrogate."""
    n = len(data("tune"))
    tuned = {
        e: FineTune(Supervised(steps=e * (n // 128), batch_size=128, learning_rate=1e-3, layers="all")) for e in EPOCHS
    }
    return {
        **{f"fine-tune {e}": (attack,) for e, attack in tuned.items()},
        "self-supervised": (SelfSupervised(),),
        "prune 40 %": (Prune(0.4, scope="global"),),
        "steal, fine-tune 3": (tuned[3],),
        "steal, self-supervised": (SelfSupervised(),),
    }


def plan() -> list[Cell]:
    """Every cell, the most important first."""
    cells = [Cell(f"reference-{v}", "reference", "reference", {"victim": v}) for v in VICTIMS]
    cells += [Cell(f"mark-{v}", "mark", "mark", {"victim": v}) for v in VICTIMS]
    for v in VICTIMS:
        for target in TARGETS:
            names = RECIPES if target == "marked" else TWINS
            cells += [_cell("steal", v, target, name, maps=name in TWINS) for name in names]
    for v in VICTIMS:
        for target in TARGETS:
            for label in removals() if target == "marked" else TWIN_REMOVALS:
                stolen = (f"steal-{v}-{target}-{TWINS[0]}",) if label.startswith("steal") else ()
                cells.append(_cell("remove", v, target, label, needs=stolen))
    cells += [
        _cell("subtract", v, t, name, (f"steal-{v}-{t}-{name}",)) for v in VICTIMS for t in TARGETS for name in TWINS
    ]
    return cells + [Cell(f"keys-{v}", "keys", "keys", {"victim": v, "seeds": list(ACCURACY_SEEDS)}) for v in VICTIMS]


def _cell(kind: str, victim: str, target: str, label: str, needs: tuple[str, ...] = (), **args: Any) -> Cell:
    given = {"victim": victim, "target": target, "label": label, **args}
    return Cell(f"{kind}-{victim}-{target}-{label}", kind, kind, given, (f"mark-{victim}", *needs))


@dataclass(frozen=True)
class Work:
    """Does cells. Picklable, so that other processes can."""

    out: Path

    def __call__(self, cell: Cell) -> dict[str, Any]:
        return getattr(self, cell.function)(cell.name, **cell.args)

    def target(self, victim: str, target: str) -> Encoder:
        """The clean encoder or F*."""
        return load_encoder(f"shipped:{victim}") if target == "clean" else load_folder(self.out / "encoders" / victim)

    def key(self, victim: str) -> ExactKey:
        """The victim's; it keeps the clean embeddings of its queries from the first suspect on."""
        key = load_key(self.out / "keys" / victim)
        assert isinstance(key, ExactKey)
        return key

    def reference(self, name: str, victim: str) -> dict[str, Any]:
        """Accuracy of the clean encoder and of its baselines, and CPU seconds of its pre-training."""
        del name
        clean = load_encoder(f"shipped:{victim}")
        recipe, images = pretraining_of(clean), data("thief")
        task: Task = PretrainingTask(
            recipe, new_encoder(clean.architecture["backbone"], images, seed=0), images, seed=0
        )
        step = seconds_a_step({"pretraining": task}, rounds=2, batch_size=recipe.batch_size, clock=time.process_time)[
            "pretraining"
        ]
        floor = baseline(clean, data("probe_train"), data("probe_test")).accuracy
        return {"clean": accuracy(clean), "floor": floor, "pretraining_seconds": step * recipe.steps}

    def mark(self, name: str, victim: str) -> dict[str, Any]:
        """F* distilled, its key, and the same key's head."""
        del name
        clean, secret = load_encoder(f"shipped:{victim}"), Secret.from_seed(KEY_SEED)
        begun = time.process_time()
        made = Exact(PROTOCOL).watermark(clean, data("mark"), secret=secret)
        spent = time.process_time() - begun
        save_key(made.key, self.out / "keys" / victim)
        save_encoder(made.encoder, self.out / "encoders" / victim)
        head = Exact(PROTOCOL, mode="head").watermark(clean, data("mark"), secret=secret).encoder
        key, suspects = self.key(victim), {"distilled": made.encoder, "head": head, "clean": clean}
        found = {title: Answers(key, suspect).measured() for title, suspect in suspects.items()}
        return {"seconds": spent, **found}

    def steal(self, name: str, victim: str, target: str, label: str, maps: bool) -> dict[str, Any]:
        """A surrogate from answers alone, as it answers and behind maps."""
        precision = "32" if label in FULL_PRECISION else "bf16"
        thief = Distil(grid(STEPS)[label])
        surrogate = thief(self.target(victim, target), data("thief"), seed=SEED, precision=precision)
        save_encoder(surrogate, self.out / "encoders" / name)
        answers = Answers(self.key(victim), surrogate)
        chosen = mappings() if maps else {k: v for k, v in mappings().items() if k in ("rotated", "condition 1e4")}
        found = {"as it answers": answers.measured()}
        found |= {title: answers.measured(*each) for title, each in chosen.items()}
        if maps:
            found["noise as large"] = answers.measured(noise=1.0)
        return {"suspects": found}

    def subtract(self, name: str, victim: str, target: str, label: str) -> dict[str, Any]:
        """A surrogate from whose answers the thief, knowing the scheme, takes all that the marks could lie in."""
        del name
        surrogate = load_folder(self.out / "encoders" / f"steal-{victim}-{target}-{label}")
        answers = Answers(self.key(victim), surrogate)
        answers.subtract_statistics(surrogate)
        further: dict[str, tuple[Mapping, ...]] = {
            "statistics subtracted": (),
            "statistics, top 8 subtracted": (SubtractFeatures(components=8),),
            "statistics subtracted, rotated": (LinearMap(seed=SEED),),
        }
        return {"suspects": {title: answers.measured(*each) for title, each in further.items()}}

    def remove(self, name: str, victim: str, target: str, label: str) -> dict[str, Any]:
        """A changed copy of an encoder, or of a surrogate of it."""
        begun = self.target(victim, target)
        if label.startswith("steal"):
            begun = load_folder(self.out / "encoders" / f"steal-{victim}-{target}-{TWINS[0]}")
        steps = removals()[label]
        images = [
            None if isinstance(s, Prune) else data("thief" if isinstance(s, SelfSupervised) else "tune") for s in steps
        ]
        changed = Chain(steps)(begun, images, seed=SEED, precision="bf16")
        del name
        return {"suspects": {"as it answers": Answers(self.key(victim), changed).measured()}}

    def keys(self, name: str, victim: str, seeds: list[int]) -> dict[str, Any]:
        """Accuracy of the same encoder under heads of many keys: what distillation aims at."""
        del name
        clean = load_encoder(f"shipped:{victim}")
        parts = {
            role: (torch.from_numpy(embed_all(clean, data(role))), torch.from_numpy(all_statistics(clean, data(role))))
            for domain in DOMAINS
            for role in DOMAINS[domain]
        }
        each = []
        for seed in seeds:
            made = Exact(PROTOCOL, mode="head").watermark(clean, data("mark"), secret=Secret.from_seed(seed))
            head = cast(Headed, made.encoder.module).head.eval()
            with torch.inference_mode():
                marked = {role: head(h, psi.float()).numpy() for role, (h, psi) in parts.items()}
            each.append({domain: _probe(marked, domain) for domain in DOMAINS})
        plain = {role: h.numpy() for role, (h, _) in parts.items()}
        return {"clean": {domain: _probe(plain, domain) for domain in DOMAINS}, "marked": each}


def _probe(answers: dict[str, Any], domain: str, source: Callable[[str], Data] = data) -> float:
    train, test = DOMAINS[domain]
    return linear_probe(answers[train], labels(train, source), answers[test], labels(test, source)).accuracy


def labels(role: str, source: Callable[[str], Data] = data) -> Any:
    """The labels of a role."""
    found = source(role).labels
    assert found is not None
    return found


class Answers:
    """A suspect's answers to everything that is asked here, once; maps are then put behind them."""

    def __init__(
        self,
        key: ExactKey,
        suspect: Embedder,
        *,
        queries: str = QUERIES,
        source: Callable[[str], Data] = data,
    ) -> None:
        self.key, self.data, self.source = key, open_data(queries), source
        self.queries = np.concatenate(list(ask(key, suspect, self.data)))
        self.roles = {role: embed_all(suspect, source(role)) for role in (*DOMAINS["garments"], "tune")}

    def subtract_statistics(self, suspect: Encoder) -> None:
        """As `SubtractStatistics`, fitted to the thief's items."""
        tune = self.roles["tune"].astype(np.float64)
        taken = SubtractStatistics().fit(tune, all_statistics(suspect, self.source("tune")))
        self.roles = {r: a - taken(all_statistics(suspect, self.source(r))) for r, a in self.roles.items()}
        batches = self.key.queries(self.data)
        self.queries = self.queries - np.concatenate([taken(input_statistics(suspect, batch)) for batch in batches])

    def measured(self, *mappings: Mapping, noise: float = 0.0) -> dict[str, float]:
        """Linear probe, bits before the cap and after Bonferroni, and every witness's z."""
        queries, roles = self.queries.astype(np.float64), {r: a.astype(np.float64) for r, a in self.roles.items()}
        for mapping in mappings:
            fitted = mapping.fit(roles["tune"], self.source("tune"))
            queries, roles = fitted(queries), {role: fitted(a) for role, a in roles.items()}
        if noise:
            rng = np.random.default_rng(SEED)
            queries, roles = _noisy(queries, noise, rng), {r: _noisy(a, noise, rng) for r, a in roles.items()}
        parts = np.split(queries, range(QUERY_BATCH, len(queries), QUERY_BATCH))
        found = self.key.statistic(iter(parts), self.data).evidence
        assert found is not None
        each = {k.removeprefix("z of "): v for k, v in found.details.items() if k.startswith("z of ")}
        return {
            "accuracy": _probe(roles, "garments", self.source),
            "bits": -found.details["log2_pvalue_uncapped"],
            **each,
        }


def _noisy(answers: Any, size: float, rng: np.random.Generator) -> Any:
    """As `OutputNoise`: a share of each answer's root mean square."""
    return answers + size * np.sqrt(np.square(answers).mean(1, keepdims=True)) * rng.standard_normal(answers.shape)


def rows_of(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A line a suspect."""
    for name, content in results.items():
        if "suspects" not in content["result"]:
            continue
        args = content["args"]
        reference = results.get(f"reference-{args['victim']}", {}).get("result")
        for wrapping, found in content["result"]["suspects"].items():
            kept = reference and accuracy_kept(found["accuracy"], reference["clean"], reference["floor"])
            yield {"cell": name, **args, "behind": wrapping, "kept": kept, **found}


def page(results: dict[str, Any], total: int) -> str:
    """Markdown."""
    dates = sorted(content["date"] for content in results.values())
    parts = [
        "<!-- Written by `python benchmarks/exact.py OUT`. Do not edit. -->\n\n# Results of the exact scheme\n\n"
        f"By `python benchmarks/exact.py OUT`, {' to '.join(sorted({*dates[:1], *dates[-1:]})) or 'never'}; "
        f"{len(results)} of {total} cells. One key an encoder, 8,000 queries. *Bits*: −log₂ p, corrected for all "
        "witnesses, before the cap of 256. *Clean*: the same attack on the clean encoder, same key. *Kept*: of "
        "the clean encoder's accuracy above its baselines. † keeps less than 90 %.",
        "## Marks",
        table(
            ["encoder", "F*: kept", "F*: bits", "head: bits", "F: bits", "CPU s", "of pre-training"],
            [_mark_row(v, results) for v in VICTIMS if f"mark-{v}" in results],
        ),
        "## Accuracy under many keys\n\nHeads; points gained (+) or lost (−) against the clean encoder, over keys.",
        table(
            ["encoder", "data", "clean", "keys", "mean change", "95 % interval of the mean"],
            [row for v in VICTIMS if f"keys-{v}" in results for row in _key_rows(v, results)],
        ),
    ]
    rows = list(rows_of(results))
    for kind, title in (("steal", "Surrogates"), ("subtract", "Knowing the scheme"), ("remove", "Removals")):
        chosen = [r for r in rows if r["cell"].startswith(kind)]
        labels = dict.fromkeys((r["label"], r["behind"]) for r in chosen if r["target"] == "marked")
        lines = []
        for label, behind in labels:
            line: list[object] = [label, behind] if kind != "remove" else [label]
            for v in VICTIMS:
                for target in TARGETS:
                    found = [
                        r
                        for r in chosen
                        if (r["victim"], r["target"], r["label"], r["behind"]) == (v, target, label, behind)
                    ]
                    line.append(_shown(found[0]) if found else "")
            lines.append(line)
        header = ["attack", *(["behind"] if kind != "remove" else [])]
        header += [f"{v}{', clean' if t == 'clean' else ''}: bits / kept" for v in VICTIMS for t in TARGETS]
        parts += [f"## {title}", table(header, lines)]
    return "\n\n".join(parts) + "\n"


def _bits(found: dict[str, Any]) -> str:
    return f"{max(0.0, found['bits']):.0f}"  # never "-0"


def _shown(row: dict[str, Any]) -> str:
    kept = row["kept"]
    if kept is None:
        return _bits(row)
    return f"{_bits(row)} / {100 * kept:.0f} %{'' if kept >= 0.9 or row['target'] == 'clean' else ' †'}"


def _mark_row(victim: str, results: dict[str, Any]) -> list[object]:
    found, reference = results[f"mark-{victim}"]["result"], results.get(f"reference-{victim}", {}).get("result")
    kept = (
        reference
        and f"{100 * accuracy_kept(found['distilled']['accuracy'], reference['clean'], reference['floor']):.1f} %"
    )
    share = reference and f"{100 * found['seconds'] / reference['pretraining_seconds']:.1f} %"
    bits = [_bits(found[name]) for name in ("distilled", "head", "clean")]
    return [victim, kept, *bits, f"{found['seconds']:.0f}", share]


def _key_rows(victim: str, results: dict[str, Any]) -> Iterator[list[object]]:
    found = results[f"keys-{victim}"]["result"]
    for domain in ("garments", "digits"):
        mean, low, high = interval(found, domain)
        yield [
            victim,
            domain,
            found["clean"][domain],
            len(found["marked"]),
            f"{mean:+.2f}",
            f"{low:+.2f} to {high:+.2f}",
        ]


def interval(found: dict[str, Any], task: str) -> tuple[float, float, float]:
    """Mean change of accuracy over keys, in points, and the ends of its 95 % interval."""
    from scipy import stats

    change = 100 * (np.array([one[task] for one in found["marked"]]) - found["clean"][task])
    half = stats.t.ppf(0.975, len(change) - 1) * stats.sem(change)
    return float(change.mean()), float(change.mean() - half), float(change.mean() + half)


def run_benchmark(
    description: str | None,
    name: str,
    cells: list[Cell],
    work: Callable[[Path], Callable[[Cell], dict[str, Any]]],
    page: Callable[[dict[str, Any]], str],
) -> int:
    """The command line of a benchmark in cells: do them in OUT, then write the JSON `name` and the page `results-name`.

    Returns:
        The exit code: 1 where a cell failed.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="write the tables of what is there, and run nothing")
    options = parser.parse_args()
    failed: dict[str, str] = {}
    if not options.table:
        outcome = run_cells(cells, options.out, work(options.out), workers=options.workers, prepare=prepare)
        failed = outcome.failed
        for cell, error in failed.items():
            print(f"\n{cell} failed:\n{error}", file=sys.stderr)
    found, _ = read_cells(options.out, cells)
    content = {cell: {"args": c["args"], "date": c["date"], **c["result"]} for cell, c in found.items()}
    write_atomic(RESULTS / f"{name}.json", json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")
    write_atomic(DOCS / f"results-{name.replace('_', '-')}.md", page(found).encode())
    return 1 if failed else 0


def main() -> int:
    cells = plan()
    return run_benchmark(__doc__, "exact", cells, Work, lambda found: page(found, len(cells)))


if __name__ == "__main__":
    sys.exit(main())
