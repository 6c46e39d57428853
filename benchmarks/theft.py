"""Are encoders easily stolen? Surrogates of the clean encoders by every stealing recipe, and what they cost.

The surrogates are the full-strength members of the null population (made by `sslguard controls`), each probed on
both domains, beside the same network trained from scratch by SimCLR on the thief's own images for the same time,
and untrained. Costs are steps × seconds a step, measured for thieves and pre-training in turn in this run.

Run: python benchmarks/theft.py [POPULATION]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import VICTIMS, accuracy, data, keep_freed_memory, pretraining_of, save, seconds_a_step, table

from sslguard.attacks.stealing import recipes
from sslguard.controls import shipped_population
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import load_folder
from sslguard.encoders.load import load_encoder
from sslguard.probes import accuracy_kept, baseline
from sslguard.training import Task
from sslguard.training.distillation import Distillation, DistillationTask, new_student
from sslguard.training.pretraining import Pretraining, PretrainingTask, new_encoder, train_encoder


def costs(victims: dict[str, Encoder], thieves: dict[str, Distillation]) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each victim's pre-training and of each thief, on this machine as it is now."""
    few = data("thief").slice(0, 1000)
    tasks: dict[str, Task] = {}
    recipe = {name: pretraining_of(victim) for name, victim in victims.items()}
    for name in victims:
        tasks[name] = PretrainingTask(recipe[name], new_encoder("resnet-small", few, seed=0), few, seed=0)
    victim = next(iter(victims.values()))
    for name, thief in thieves.items():
        student = new_student(thief, victim, few, seed=0, width=victim.dim)
        tasks[name] = DistillationTask(thief, victim, student, few)
    each = seconds_a_step(tasks)
    return (
        {name: each[name] * recipe[name].steps for name in victims},
        {name: each[name] * thief.steps for name, thief in thieves.items()},
    )


def from_scratch(architecture: str, seconds: float) -> tuple[Encoder, int]:
    """The architecture pre-trained by SimCLR on the thief's images for about `seconds`."""
    queries = data("thief")
    probe = {
        "probe": PretrainingTask(Pretraining("simclr"), new_encoder(architecture, queries, seed=1), queries, seed=1)
    }
    steps = max(1, round(seconds / seconds_a_step(dict(probe))["probe"]))
    start = new_encoder(architecture, queries, seed=2)
    encoder, _ = train_encoder(Pretraining("simclr", steps=steps, batch_size=128), start, queries, seed=2)
    return encoder, steps


def probes(encoder: Encoder) -> dict[str, float]:
    """Linear-probe accuracy on both domains."""
    return {domain: accuracy(encoder, domain=domain) for domain in ("garments", "digits")}


def main() -> None:
    started = time.time()
    keep_freed_memory()
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else shipped_population()
    figures: dict[str, Any] = {}
    rows: list[list[object]] = []
    budgets: dict[str, list[float]] = {}
    victims = {name: load_encoder(f"shipped:{name}") for name in VICTIMS}
    # The victims share one architecture, so they share the baseline.
    floor = baseline(victims["simclr"], data("probe_train"), data("probe_test")).accuracy
    made = load_folder(folder / "surrogate-simclr-cosine")
    thieves = recipes(int(made.record["recipe"]["steps"]))
    pretraining, spent = costs(victims, thieves)
    for victim_name, victim in victims.items():
        clean = probes(victim)
        pretraining_seconds = pretraining[victim_name]
        rows.append([victim_name, "the victim itself", "", pretraining_seconds, 1.0, *clean.values(), 1.0])
        figures[victim_name] = {"clean": clean, "floor": floor, "pretraining_seconds": pretraining_seconds}
        for name, thief in thieves.items():
            surrogate = load_folder(folder / f"surrogate-{victim_name}-{name}")
            measured = probes(surrogate)
            kept = accuracy_kept(measured["garments"], clean["garments"], floor)
            share = spent[name] / pretraining_seconds
            queries = surrogate.record["queries"]
            rows.append([victim_name, name, queries, spent[name], share, *measured.values(), kept])
            figures[victim_name][name] = {
                **measured,
                "kept": kept,
                "share": share,
                "seconds": spent[name],
                "queries": queries,
            }
            budgets.setdefault(thief.architecture, []).append(spent[name])
    scratch = {}
    for architecture, seconds in budgets.items():
        encoder, steps = from_scratch(architecture, float(np.mean(seconds)))
        untrained = new_encoder(architecture, data("thief"), seed=3)
        scratch[architecture] = {"steps": steps, **probes(encoder), "untrained": probes(untrained)}
        rows.append(
            [
                "none",
                f"{architecture} from scratch, same time",
                0,
                float(np.mean(seconds)),
                "",
                *probes(encoder).values(),
                "",
            ]
        )
        rows.append(["none", f"{architecture} untrained", 0, 0.0, "", *probes(untrained).values(), ""])
    print(table(["victim", "surrogate", "queries", "seconds", "share", "garments", "digits", "kept"], rows))
    save("theft", {"victims": figures, "scratch": scratch}, started=started)


if __name__ == "__main__":
    main()
