"""What the exact scheme costs: a head's share of the time of an embedding, and a verification beside its embeddings.

CPU seconds of one thread. Encoders in turn with and without the head, so that a drift of the machine meets both;
medians of the rounds, and the middle half of their ratios. Beside it stands what the statistics and the head's layer
take of the time of an embedding by themselves: on a machine that others use, a large encoder's own time varies by more
than a head's whole. The head is timed at a batch of 256, EfficientNet-Lite0 at
its native 224 pixels; verification is the time of moments, witnesses and test over that of embedding the queries,
10,000 of shipped encoders and 2,000 of the others.

With --recipients, beside the head with one mark, what `serve --recipient-header` adds where each item of a batch of 64
(the largest of a server by default) is another recipient's: the shares by themselves, and a first drawing of secrets.

Run: OMP_NUM_THREADS=1 python benchmarks/exact_cost.py [--rounds 9] [--recipients] [--encoders SPEC ...]
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import items, options, prepare, save
from torch import nn

from sslguard.crypto.secrets import Secret
from sslguard.data.specs import open_data
from sslguard.encoders.base import embed_all
from sslguard.encoders.heads import Headed
from sslguard.encoders.load import load_encoder
from sslguard.report.markdown import table
from sslguard.schemes.base import Watermarked
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import open_key, save_key
from sslguard.serve.recipients import Mark, Recipients
from sslguard.tracing.recipients import add

ENCODERS = (
    *("shipped:simclr", "shipped:moco", "shipped:byol", "package:efficientnet-lite0@224"),
    "package:all-minilm-l6-v2",
)
BATCH, QUERIES, ITEMS = 256, 2000, 2600
SERVED, FEW = (
    64,
    600,
)  # items of a server's batch, each of another recipient; and items that mark, where only time counts
ASKED = "cluttered-fashion-mnist:train[0:10000]"  # of shipped encoders, as many as the results page asks
SMALL_ROUNDS = 8  # times as many for shipped encoders, whose embeddings are fast


def in_turn(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each round, all in turn, after one of warming up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            begun = time.process_time()
            function()
            if number:
                times[name].append(time.process_time() - begun)
    return times


class Spent:
    """CPU seconds that a module's parts take, from now on."""

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        self.seconds = self._begun = 0.0
        for part in parts:
            part.register_forward_pre_hook(self._begin)
            part.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        self._begun = time.process_time()

    def _end(self, *_: object) -> None:
        self.seconds += time.process_time() - self._begun


def head_cost(spec: str, rounds: int) -> tuple[dict[str, float], Watermarked]:
    """Seconds of an embedding and the share that a head adds; the marked encoder."""
    clean = load_encoder(spec)
    made = Exact(Protocol(n_queries=QUERIES), mode="head").watermark(
        clean, items(spec, "mark").slice(0, ITEMS), secret=Secret.from_seed(1)
    )
    module, batch = made.encoder.module, items(spec, "verify").take(range(BATCH))
    assert isinstance(module, Headed)
    # As a batch is embedded: texts of like length together.
    each = in_turn({"plain": lambda: clean.embed(batch), "head": lambda: made.encoder.embed(batch)}, rounds)
    plain, head = (statistics.median(each[name]) for name in ("plain", "head"))
    low, _, high = (ratio - 1 for ratio in statistics.quantiles(np.array(each["head"]) / np.array(each["plain"]), n=4))
    spent = Spent((module.statistics, module.head))
    total = sum(in_turn({"head": lambda: made.encoder.embed(batch)}, rounds)["head"])
    # The hooks have seen the round of warming up too.
    share = spent.seconds * rounds / (rounds + 1)
    found = {"head": head / plain - 1, "head_low": low, "head_high": high, "head_alone": share / (total - share)}
    return {"embedding": plain / BATCH, **found}, made


def recipients_cost(spec: str, rounds: int) -> dict[str, float]:
    """Seconds of an embedding and of a first drawing, and what share a head adds: of one mark, and of 64 recipients."""
    clean, batch = load_encoder(spec), items(spec, "verify").take(range(SERVED))
    made = Exact(Protocol(n_queries=QUERIES), mode="head").watermark(
        clean, items(spec, "mark").slice(0, FEW), secret=Secret.from_seed(1)
    )
    with TemporaryDirectory() as folder:
        save_key(made.key, folder)
        add(Path(folder), [str(i) for i in range(SERVED)])
        recipients = Recipients(clean, open_key(folder), "X-Customer")

    async def drawn() -> list[Mark]:
        return [await recipients.mark(str(i), 0) for i in range(SERVED)]

    begun = time.process_time()
    marks = asyncio.run(drawn())
    drawing = (time.process_time() - begun) / SERVED
    found = {"drawing": drawing}
    for name, encoder in (("head", made.encoder), ("recipients", recipients.encoder)):
        assert isinstance(encoder.module, Headed)
        spent, marking = Spent((encoder.module.statistics, encoder.module.head)), 0.0
        for number in range(rounds + 1):
            if number == 1:  # the first one is of warming up
                spent.seconds, begun = 0.0, time.process_time()
            answers = encoder.embed(batch)
            at = time.process_time()
            if name == "recipients":
                recipients.marked(answers, marks)
            marking = (marking if number > 1 else 0.0) + time.process_time() - at
        total = time.process_time() - begun
        added = spent.seconds + marking
        found |= {name: added / (total - added), f"{name}_embedding": (total - added) / rounds / SERVED}
    return found


def test_cost(spec: str, made: Watermarked) -> dict[str, float]:
    """Seconds to embed the queries, and the share of them that moments, witnesses and test take."""
    key = made.key
    assert isinstance(key, ExactKey)
    asked = open_data(ASKED) if spec.startswith("shipped:") else items(spec, "verify").slice(0, QUERIES)
    begun = time.process_time()
    answers = embed_all(made.encoder, asked)
    embedding = time.process_time() - begun
    parts = np.split(answers, range(128, len(answers), 128))
    key.statistic(iter(parts), asked)  # the clean embeddings are kept from now on
    test = statistics.median(in_turn({"test": lambda: key.statistic(iter(parts), asked)}, 3)["test"])
    return {"queries": embedding, "test": test / embedding}


def main() -> None:
    given = options(__doc__, rounds=9, recipients=False, encoders=ENCODERS)
    prepare()
    found = {}
    if given.recipients:
        for spec in given.encoders:
            found[spec] = recipients_cost(spec, given.rounds)
        rows = [
            [
                spec,
                *(1000 * c[f"{name}_embedding"] for name in ("head", "recipients")),
                f"{c['head']:+.2%}",
                f"{c['recipients']:+.2%}",
                1000 * c["drawing"],
            ]
            for spec, c in found.items()
        ]
        header = ["encoder", "ms an embedding", "again", "head", "head for 64 recipients", "ms a first drawing"]
        print(table(header, rows))
        save("recipients_cost", {"rounds": given.rounds, "encoders": found})
        return
    for spec in given.encoders:
        head, made = head_cost(spec, given.rounds * (SMALL_ROUNDS if spec.startswith("shipped:") else 1))
        found[spec] = {**head, **test_cost(spec, made)}
    rows = [
        [
            *(name, 1000 * c["embedding"], f"{c['head']:+.2%}", f"{c['head_low']:+.2%} to {c['head_high']:+.2%}"),
            f"{c['head_alone']:+.2%}",
            *(c["queries"], f"{c['test']:.1%}"),
        ]
        for name, c in found.items()
    ]
    header = ["encoder", "ms an embedding", "head", "middle half", "alone", "s to embed the queries", "test beside it"]
    print(table(header, rows))
    save("exact_cost", {"rounds": given.rounds, "encoders": found})


if __name__ == "__main__":
    main()
