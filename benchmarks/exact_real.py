"""The exact scheme on real, public encoders: EfficientNet-Lite0 and all-MiniLM-L6-v2.

Each is marked by a head and by distillation, stolen by students of another architecture through no more than 20,000
answers, and every suspect is asked under the owner's key: as it answers, rotated, and behind a linear map of condition
number 10⁴. Beside each stands the same theft of the clean encoder. Work is cut in cells, kept in OUT.

Images are the test bed's; texts are those of `benchmarks/texts.py`. Baselines of *kept* are raw pixels or the untrained
network; for texts the untrained network alone (words by themselves get 0.61, see `texts.py`).

Run: python benchmarks/exact_real.py OUT [--workers 2] [--table]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from cells import Cell
from common import data, table
from exact import KEY_SEED, SEED, Answers, interval, labels, run_benchmark
from texts import texts_file

from sslguard.attacks.mapping import LinearMap
from sslguard.attacks.stealing import Distil
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.data.specs import open_data
from sslguard.encoders.base import Encoder, embed_all
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.encoders.heads import Headed
from sslguard.encoders.load import load_encoder
from sslguard.probes import accuracy_kept, baseline, knn_probe, linear_probe
from sslguard.schemes.exact import Exact, ExactKey, Protocol
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.exact.marking import headed
from sslguard.schemes.exact.scheme import GEOMETRY_ITEMS
from sslguard.schemes.keyfile import load_key, save_key
from sslguard.training.distillation import Distillation

PROBED = ("probe_train", "probe_test")
MAPS = {
    "as it answers": (),
    "rotated": (LinearMap(seed=SEED),),
    "condition 1e4": (LinearMap(condition=1e4, seed=SEED),),
}


def texts(role: str) -> Data:
    """The texts of a role; a thief fits maps to 3,000 of its own."""
    return open_data(f"text:{texts_file('thief')}[0:3000]" if role == "tune" else f"text:{texts_file(role)}")


@dataclass(frozen=True)
class Bed:
    """An encoder, its data by role, and how it is marked and stolen.

    Attributes:
        queries: how many items of `verify` suspects are asked about.
        distilled: settings of the distilled mode; a network of millions of parameters moves by smaller steps.
        students: recipes of its thieves, by name.
    """

    encoder: str
    source: Callable[[str], Data]
    queries: int
    distilled: dict[str, Any]
    students: dict[str, Distillation] = field(default_factory=dict)

    @property
    def protocol(self) -> Protocol:
        return Protocol(n_queries=self.queries)


def images(role: str) -> Data:
    """As `exact.py`: 8,000 ordinary items that took no part in marking are asked."""
    return open_data("cluttered-fashion-mnist:train[0:8000]") if role == "verify" else data(role)


BEDS = {
    "lite0": Bed(
        "package:efficientnet-lite0",
        images,
        8000,
        {"steps": 1600, "batch_size": 32, "learning_rate": 3e-4},
        {
            "mse-resnet": Distillation(architecture="resnet-wide", loss="mse", steps=900),
            "cosine-resnet": Distillation(architecture="resnet-small", loss="cosine", steps=900),
        },
    ),
    "minilm": Bed(
        "package:all-minilm-l6-v2",
        texts,
        5554,
        {"steps": 300, "batch_size": 32, "learning_rate": 2e-4},
        {
            "mse-words": Distillation(architecture="bag-of-words", loss="mse", steps=3000),
            "mse-transformer": Distillation(
                architecture="word-transformer", loss="mse", steps=1500, learning_rate=1e-3
            ),
        },
    ),
}
TARGETS = ("head", "distilled", "clean")
ACCURACY_SEEDS = tuple(range(100, 110))


def plan() -> list[Cell]:
    """Every cell, the most important first."""
    cells = []
    for bed in BEDS:
        cells.append(Cell(f"head-{bed}", "mark", "mark", {"bed": bed, "mode": "head"}))
    for target in TARGETS:
        for bed, about in BEDS.items():
            needs = (f"head-{bed}",)
            if target == "distilled":
                cells.append(Cell(f"distilled-{bed}", "mark", "mark", {"bed": bed, "mode": "distilled"}, needs))
                needs += (f"distilled-{bed}",)
            for label in list(about.students)[: 2 if target == "head" else 1]:
                args = {"bed": bed, "target": target, "label": label}
                cells.append(Cell(f"steal-{bed}-{target}-{label}", "steal", "steal", args, needs))
    return cells + [Cell(f"keys-{bed}", "keys", "keys", {"bed": bed, "seeds": list(ACCURACY_SEEDS)}) for bed in BEDS]


@dataclass(frozen=True)
class Work:
    """Does cells. Picklable, so that other processes can."""

    out: Path

    def __call__(self, cell: Cell) -> dict[str, Any]:
        return getattr(self, cell.function)(cell.name, **cell.args)

    def mark(self, name: str, bed: str, mode: str) -> dict[str, Any]:
        """The encoder marked, its key, and what it and the clean one are worth. Both modes share one secret and key."""
        about = BEDS[bed]
        clean, settings = load_encoder(about.encoder), about.distilled if mode == "distilled" else {}
        begun = time.process_time()
        scheme = Exact(about.protocol, mode=mode, **settings)  # type: ignore[arg-type]
        made = scheme.watermark(clean, about.source("mark"), secret=Secret.from_seed(KEY_SEED))
        spent = time.process_time() - begun
        save_encoder(made.encoder, self.out / "encoders" / name)
        if mode == "head":
            save_key(made.key, self.out / "keys" / bed)
        found = {"marked": self._measured(bed, made.encoder)}
        if mode == "head":
            source = about.source
            floor = baseline(clean, source("probe_train"), source("probe_test")).accuracy
            found |= {"clean": self._measured(bed, clean)}
            return {"seconds": spent, "floor": floor, **found}
        return {"seconds": spent, **found}

    def steal(self, name: str, bed: str, target: str, label: str) -> dict[str, Any]:
        """A surrogate from answers alone."""
        about = BEDS[bed]
        victim = (
            load_encoder(about.encoder) if target == "clean" else load_folder(self.out / "encoders" / f"{target}-{bed}")
        )
        begun = time.process_time()
        surrogate = Distil(about.students[label])(victim, about.source("thief"), seed=SEED)
        spent = time.process_time() - begun
        save_encoder(surrogate, self.out / "encoders" / name)
        return {"seconds": spent, "queries": surrogate.record["queries"], "suspects": self._measured(bed, surrogate)}

    def keys(self, name: str, bed: str, seeds: list[int]) -> dict[str, Any]:
        """Linear-probe and kNN accuracy of the encoder, and under heads of many keys."""
        del name
        about = BEDS[bed]
        clean, source = load_encoder(about.encoder), about.source
        first = source("mark").slice(0, min(len(source("mark")), GEOMETRY_ITEMS))
        marking = embed_all(clean, first), all_statistics(clean, first)
        roles = {r: (embed_all(clean, source(r)), all_statistics(clean, source(r))) for r in PROBED}
        each = []
        for seed in seeds:
            key = Exact(about.protocol, mode="head").draw_key(clean, Secret.from_seed(seed), *marking)
            module = headed(clean, key.bank, key.directions(), about.protocol.epsilon).module
            head = cast(Headed, module).head.eval()
            with torch.inference_mode():
                answers = {
                    r: head(torch.from_numpy(h).float(), torch.from_numpy(psi).float()).numpy()
                    for r, (h, psi) in roles.items()
                }
            each.append(probes(answers, source))
        return {"clean": probes({r: h for r, (h, _) in roles.items()}, source), "marked": each}

    def _measured(self, bed: str, suspect: Encoder) -> dict[str, Any]:
        """What `Answers.measured` says behind every map, and kNN accuracy as it answers."""
        about, key = BEDS[bed], load_key(self.out / "keys" / bed)
        assert isinstance(key, ExactKey)
        answers = Answers(key, suspect, queries=about.source("verify").spec, source=about.source)
        found = {title: answers.measured(*maps) for title, maps in MAPS.items()}
        found["as it answers"]["knn"] = probes(answers.roles, about.source)["knn"]
        return found


def probes(answers: Mapping[str, Any], source: Callable[[str], Data]) -> dict[str, float]:
    """Accuracy of a linear probe and of nearest neighbours."""
    train, test = (labels(role, source) for role in PROBED)
    given = answers[PROBED[0]], train, answers[PROBED[1]], test
    return {"linear": linear_probe(*given).accuracy, "knn": knn_probe(*given).accuracy}


def page(results: dict[str, Any]) -> str:
    """Markdown."""
    protocol, dates = Protocol(), sorted({found["date"] for found in results.values()})
    run = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    parts = [
        "<!-- Written by `python benchmarks/exact_real.py OUT`. Do not edit. -->\n\n# The exact scheme on public "
        f"encoders\n\nRun {run}; witnesses `linear-4`, version 2 of the "
        f"statistics of images. One key an encoder, ε {protocol.epsilon:g}. *Bits*: −log₂ p, corrected for all "
        "witnesses, before the cap of 256. *Kept*: of the clean encoder's accuracy (linear probe) above its baselines.",
    ]
    for bed, about in BEDS.items():
        head = results.get(f"head-{bed}", {}).get("result")
        if head is None:
            continue
        clean, floor = head["clean"]["as it answers"]["accuracy"], head["floor"]

        def row(
            title: str, found: dict[str, Any], seconds: Any, *, clean: float = clean, floor: float = floor
        ) -> list[object]:
            plain = found["as it answers"]
            kept = f"{100 * accuracy_kept(plain['accuracy'], clean, floor):.1f} %"
            bits = [f"{max(0.0, found[m]['bits']):.0f}" for m in MAPS]
            return [title, *bits, plain["accuracy"], kept, plain["knn"], f"{seconds:.0f}" if seconds else ""]

        rows = [row("clean", head["clean"], None), row("head", head["marked"], head["seconds"])]
        if found := results.get(f"distilled-{bed}"):
            rows.append(row("distilled", found["result"]["marked"], found["result"]["seconds"]))
        for target in TARGETS:
            for label in about.students:
                if found := results.get(f"steal-{bed}-{target}-{label}"):
                    rows.append(row(f"{label} of {target}", found["result"]["suspects"], found["result"]["seconds"]))
        keys = ""
        if found := results.get(f"keys-{bed}"):
            keys = f" Heads of {len(found['result']['marked'])} other keys change " + " and ".join(
                _change(found["result"], probe, title) for probe, title in (("linear", "linear probes"), ("knn", "kNN"))
            )
        header = ["suspect", *(f"bits {m}" for m in MAPS), "linear probe", "kept", "kNN", "CPU s"]
        parts += [f"## {about.encoder}\n\nBaseline {floor:.3f}; {about.queries} queries.{keys}", table(header, rows)]
    return "\n\n".join(parts) + "\n"


def _change(found: dict[str, Any], probe: str, title: str) -> str:
    mean, low, high = interval(found, probe)
    return f"{title} by {mean:+.2f} points (95 %: {low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__, "exact_real", plan(), Work, page))
