"""What the exact scheme costs: a head's share of the time of an embedding, and a verification beside its embeddings.

Encoders in turn with and without the head, so that a drift of the machine meets both; medians of the rounds. The head
is timed at a batch of 256, EfficientNet-Lite0 at its native 224 pixels; verification is the time of moments, witnesses
and test over that of embedding the queries with the clean encoder.

Run: python benchmarks/exact_cost.py [--rounds 9] [--encoders SPEC ...]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from common import data, save, table

from sslguard.encoders.base import embed_all
from sslguard.encoders.load import load_encoder
from sslguard.schemes.exact import Exact, ExactKey, Protocol
from sslguard.secrets import Secret

ENCODERS = ("shipped:simclr", "shipped:moco", "shipped:byol", "package:efficientnet-lite0@224")
BATCH, QUERIES, ITEMS = 256, 2000, 2600


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, all in turn, after one round of warming up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            begun = time.perf_counter()
            function()
            if number:
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def cost(spec: str, rounds: int) -> dict[str, float]:
    """Seconds and ratios of one encoder."""
    clean = load_encoder(spec)
    made = Exact(Protocol(n_queries=QUERIES), mode="head").watermark(
        clean, data("mark").slice(0, ITEMS), secret=Secret.from_seed(1)
    )
    key = made.key
    assert isinstance(key, ExactKey)
    batch = clean.prepare(data("verify").take(range(BATCH)))
    with torch.inference_mode():
        each = medians({"plain": lambda: clean.forward(batch), "head": lambda: made.encoder.forward(batch)}, rounds)
    asked = data("verify").slice(0, QUERIES)
    begun = time.perf_counter()
    answers = embed_all(made.encoder, asked)
    embedding = time.perf_counter() - begun
    parts = np.split(answers, range(128, len(answers), 128))
    key.statistic(iter(parts), asked)  # the clean embeddings are kept from now on
    test = medians({"test": lambda: key.statistic(iter(parts), asked)}, 3)["test"]
    return {
        "embedding": each["plain"] / BATCH,
        "head": each["head"] / each["plain"] - 1,
        "queries": embedding,
        "test": test / embedding,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--encoders", nargs="+", default=ENCODERS)
    options = parser.parse_args()
    started = time.time()
    found = {spec: cost(spec, options.rounds) for spec in options.encoders}
    rows = [
        [name, 1000 * c["embedding"], f"{c['head']:+.2%}", c["queries"], f"{c['test']:.1%}"]
        for name, c in found.items()
    ]
    print(table(["encoder", "ms an embedding", "head", "s to embed the queries", "test beside it"], rows))
    save("exact_cost", {"encoders": found}, started=started)


if __name__ == "__main__":
    main()
