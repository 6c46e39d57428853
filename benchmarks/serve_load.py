"""Honest clients of `sslguard serve` beside hostile ones: latency, memory, refusals, and the time that stopping takes.

    python benchmarks/serve_load.py --seconds 600        (writes results/serve_load.json)

Honest requests hold one small picture each, one after another. Beside them stand connections that never end their
headers, and requests with pictures of 4,096 pixels a side, 250 KB as files. At the end SIGTERM comes while eight such
pictures are decoded. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from common import options, save
from PIL import Image

IDLE_SECONDS = 20
LARGE = 4096  # pixels a side


def picture(side: int) -> str:
    """Return the base64 of a black picture."""
    content = io.BytesIO()
    Image.new("RGB", (side, side)).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def honest(address: str, seconds: float, statuses: Counter[int]) -> list[float]:
    """Return the seconds that each of many small requests took."""
    body, found, until = {"images": [picture(48)]}, [], time.monotonic() + seconds
    with httpx2.Client(timeout=60) as client:
        while time.monotonic() < until:
            begun = time.monotonic()
            statuses[client.post(f"{address}/v1/embed", json=body).status_code] += 1
            found.append(time.monotonic() - begun)
            time.sleep(0.02)
    return found


def hold(address: str, n: int) -> None:
    """Keep `n` connections open that never end their headers, for ever. Runs in a process of its own."""
    host, port = address.removeprefix("http://").split(":")
    held: list[socket.socket] = []
    while True:
        try:
            held.append(socket.create_connection((host, int(port)), timeout=2))
            held[-1].send(b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nX-a: ")
        except OSError:
            time.sleep(0.1)
        if len(held) > n:
            held.pop(0).close()
            time.sleep(0.01)


def oversized(address: str, n: int, every: float, statuses: Counter[int], stop: threading.Event) -> None:
    """Send `n` requests with a large picture each, each in a thread of its own."""
    body = json.dumps({"images": [picture(LARGE)]})

    def send() -> None:
        try:
            statuses[httpx2.post(f"{address}/v1/embed", content=body, timeout=120).status_code] += 1
        except httpx2.HTTPError:
            statuses[0] += 1

    for _ in range(n):
        threading.Thread(target=send, daemon=True).start()
        if stop.wait(every):
            return


def peak(pid: int) -> int:
    """Return the most memory that a process has taken, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def main() -> int:
    given = options(__doc__, seconds=600, slow=1000, large=200, encoder="random:resnet-small:1")
    command = [sys.executable, "-m", "sslguard.cli", "serve", given.encoder, "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    address = process.stderr.readline().split()[-1]
    found: dict[str, Any] = {"seconds": given.seconds, "slow": given.slow, "large": given.large}
    honest(address, 3, Counter())
    idle = honest(address, IDLE_SECONDS, Counter())
    found["memory_idle_mib"] = peak(process.pid)
    stop, answered, refused = threading.Event(), Counter[int](), Counter[int]()
    holding = multiprocessing.get_context("spawn").Process(target=hold, args=(address, given.slow), daemon=True)
    holding.start()
    pace = (given.seconds - 10) / given.large
    threading.Thread(target=oversized, args=(address, given.large, pace, refused, stop), daemon=True).start()
    loaded = honest(address, given.seconds, answered)
    stop.set()
    holding.kill()
    for name, times in (("idle", idle), ("loaded", loaded)):
        quantiles = zip(("p50", "p99", "max"), np.quantile(times, (0.5, 0.99, 1)), strict=True)
        found[name] = {"n": len(times), **{label: round(1000 * value, 1) for label, value in quantiles}}
    found |= {"honest": dict(answered), "oversized": dict(refused), "memory_mib": peak(process.pid)}
    threading.Thread(target=oversized, args=(address, 8, 0.0, Counter[int](), threading.Event()), daemon=True).start()
    time.sleep(0.5)
    begun = time.monotonic()
    found["health_ms_beside_8"] = round(1000 * httpx2.get(f"{address}/health", timeout=60).elapsed.total_seconds(), 1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    found |= {"stop_seconds": round(time.monotonic() - begun, 2), "exit_code": process.returncode}
    assert json.loads(out)["address"] == address
    save("serve_load", found)
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
