"""A miniature of a benchmark: untrained encoders, random images, attacks of two steps."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from sslguard.bench.cells import Cell

MINIATURE = """
title = "Miniature"
rates = ["0.5", "2^-64"]

[beds.noise]
{roles}

[encoders.one]
load = "random:resnet-narrow@16"
bed = "noise"
null = ["random:plain-small@16", "random:separable-small@16"]
random = 2

[tasks.neighbours]
method = "knn"
per_class = 10
draws = 2

[[targets]]
aim = "Thefts are found"
schemes = ["exact"]
attacks = ["st*"]
column = "bits"
at_least = 0

[[targets]]
aim = "Marks keep more than there is"
kind = "protected"
column = "accuracy"
mean = true
at_least = 1.1

[schemes.exact]
scheme = "exact"
steps = 2
batch_size = 8
protocol = {{n_queries = 60, functions = 8, rank = 2}}

[schemes.head]
scheme = "exact"
mode = "head"
null = false
protocol = {{n_queries = 60, functions = 8, rank = 2}}

[schemes.wet]
scheme = "wet"
terms = 5
n = 40

[schemes.fingerprint]
scheme = "fingerprint"
n = 60

[attacks.stolen]
set = "development"
steps = [{stolen}]

[attacks.cut]
set = "held-out"
steps = [{stolen}, {{attack = "leading-components", data = "tune", components = 4}}]

[attacks.pruned]
set = "held-out"
steps = [{{attack = "prune", amount = 0.5}}]
"""
STOLEN = '{attack = "distil", recipe = {architecture = "resnet-narrow", loss = "mse", steps = 2, batch_size = 8}}'
ROLES = ("mark", "thief", "tune", "verify", "probe_train", "probe_test")


def write_miniature(folder: Path, *, extra: str = "") -> Path:
    """Write a configuration into `folder`, and the images that it names."""
    rng, roles = np.random.default_rng(0), []
    for number, role in enumerate(ROLES):
        path = folder / f"{role}.npz"
        n = 300 if role == "mark" else 60
        images, labels = rng.integers(0, 256, (n, 16, 16, 1), dtype=np.uint8), np.arange(n) % 2
        # Classes that a probe can tell apart: one of them is darker.
        images = (images * np.where(labels, 0.6, 1.0)[:, None, None, None]).astype(np.uint8)
        images[0, 0, 0, 0] = number
        np.savez(path, images=images, labels=labels)
        roles.append(f'{role} = "{path}"')
    config = folder / "grid.toml"
    config.write_text(MINIATURE.format(roles="\n".join(roles), stolen=STOLEN) + extra)
    return config


def nap(cell: Cell) -> dict[str, Any]:
    """Do the work of a cell that takes `seconds`; importable, so that other processes can do it."""
    time.sleep(cell.args["seconds"])
    return {}


def toy(cell: Cell) -> dict[str, Any]:
    """Work that fails, dies, or says who did it."""
    if cell.args.get("fail"):
        raise ValueError("no luck")
    if cell.args.get("die"):
        os._exit(3)
    return {"process": os.getpid()}


def nothing() -> None:
    """Do nothing."""
    pass
