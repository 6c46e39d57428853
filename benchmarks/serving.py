"""What a head costs a server: CPU time of a request of 256 items with the head against without.

Both applications stand in this process and answer the same request in turn, so that a drift of the machine meets both:
its JSON is read, its items are prepared, embedded and written out. Ratios of medians, and the middle half of the
rounds' own. Images go over the Open Inference Protocol as bytes, texts as OpenAI's; random weights and statistics of a
head take the time of real ones. As under `sslguard serve`, freed memory is kept.

Run: OMP_NUM_THREADS=1 python benchmarks/serving.py [--rounds 7] [--encoders SPEC ...]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import httpx2
import numpy as np
import torch
from common import data, keep_freed_memory, save, table

from sslguard.data.base import Batch
from sslguard.data.specs import open_data
from sslguard.encoders.base import Encoder
from sslguard.encoders.load import load_encoder
from sslguard.encoders.rebuild import build
from sslguard.serve.app import Settings, create_app
from sslguard.suspects.protocols import OIP, OpenAI

ENCODERS = (
    *("shipped:simclr", "package:efficientnet-lite0", "package:efficientnet-lite0@224"),
    "package:all-minilm-l6-v2",
)
BATCH = 256
SMALL_ROUNDS = 8  # times as many for shipped encoders, whose requests are short
SIZES = {"components": 6, "features": 6, "statistics": 12}


def with_random_head(encoder: Encoder) -> Encoder:
    """A head of the scheme's default sizes."""
    architecture = {**encoder.architecture, "head": SIZES}
    module, _ = build(architecture, seed=0)
    state = {f"encoder.{name}": value for name, value in encoder.module.state_dict().items()}
    random = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        if name.startswith("head."):
            state[name] = torch.rand(value.shape, generator=random) / value.shape[0]
    module.load_state_dict(state)
    return replace(encoder, module=module.eval(), architecture=architecture)


def request(batch: Batch) -> dict[str, Any]:
    """Path, headers and body that ask for a batch."""
    texts = isinstance(batch, list)
    call = (OpenAI("encoder", "base64") if texts else OIP("encoder", binary=True)).call(batch)
    return {"url": f"/v1{call.path}" if texts else call.path, "headers": dict(call.headers), "content": call.body}


async def seconds(encoders: dict[str, Encoder], asked: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each round, by encoder, after one of warming up."""
    times: dict[str, list[float]] = {name: [] for name in encoders}
    async with AsyncExitStack() as stack:
        clients = {}
        for name, encoder in encoders.items():
            app = create_app(encoder, Settings(max_batch=BATCH, max_items=BATCH, max_bytes=1 << 28))
            await stack.enter_async_context(app.router.lifespan_context(app))
            client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test")
            clients[name] = await stack.enter_async_context(client)
        for number in range(rounds + 1):
            for name, client in clients.items():
                begun = time.process_time()
                (await client.post(**asked)).raise_for_status()
                if number:
                    times[name].append(time.process_time() - begun)
    return times


def cost(spec: str, rounds: int) -> dict[str, float]:
    """CPU seconds of a request, and the head's ratio, of one encoder."""
    plain = load_encoder(spec)
    items = open_data("vader:verify") if "minilm" in spec else data("verify")
    batch = items.take(range(BATCH))
    if isinstance(batch, torch.Tensor) and spec.startswith("package:"):
        # Of the size and colours that a service of photographs is sent.
        batch = plain.prepare(batch).mul(255).round().to(torch.uint8)
    times = asyncio.run(seconds({"plain": plain, "head": with_random_head(plain)}, request(batch), rounds))
    found = {name: statistics.median(values) for name, values in times.items()}
    ratios = np.array(times["head"]) / np.array(times["plain"])
    low, _, high = statistics.quantiles(ratios, n=4)
    return {**found, "ratio": found["head"] / found["plain"], "low": low, "high": high, "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--encoders", nargs="+", default=ENCODERS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    started = time.time()
    found = {
        spec: cost(spec, options.rounds * (SMALL_ROUNDS if spec.startswith("shipped:") else 1))
        for spec in options.encoders
    }
    rows = [
        [spec, 1000 * f["plain"] / BATCH, 1000 * f["head"] / BATCH, f["ratio"], f"{f['low']:.3f} to {f['high']:.3f}"]
        for spec, f in found.items()
    ]
    print(table(["encoder", "CPU ms an item", "with the head", "ratio", "middle half"], rows))
    save("serving", {"batch": BATCH, "encoders": found}, started=started)


if __name__ == "__main__":
    main()
