"""What an audit takes: `sslguard audit` as a process of its own, and `examples/verify_bundle.py` on the same bundle.

The owner marks an encoder by a head, its key bound to a pool of 10,000 images or 5,554 texts, and claims what answers
with that head. The examiner reads the pool, runs the clean encoder on 10,000 or 5,000 queries, and decides again.
Seconds on the clock and CPU seconds, medians of the rounds, beside the load of the machine when each encoder begins.
The verifier runs on one thread: where others keep the cores busy, further threads of BLAS wait for them and spin.

Run: python benchmarks/audit_time.py [--rounds 3] [--encoders SPEC ...]   (some minutes)
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import items, options, prepare, save

from sslguard import api
from sslguard.report.markdown import table

POOLS = {"shipped:simclr": "cluttered-fashion-mnist:train[0:10000]", "package:all-minilm-l6-v2": "vader:verify"}
SEED, MARKING = "the examiner chose this", 4000
VERIFIER = Path(__file__).parents[1] / "examples" / "verify_bundle.py"


def claimed(encoder: str, folder: Path) -> None:
    """Write the commitment and the bundle of a claim to a folder."""
    pool, settings = POOLS[encoder], {"mode": "head"}
    marking = items(encoder, "mark").slice(0, MARKING)
    marked = api.watermark(encoder, marking, pool=pool, out=folder / "marked", scheme="exact", settings=settings)
    commitment = folder / "commitment.json"
    api.commit(folder / "marked" / "key", commitment)
    out = folder / "bundle"
    api.claim(folder / "marked" / "key", marked.encoder, pool, seed=SEED, commitment=commitment, out=out)


def timed(command: Sequence[str], rounds: int, **environment: str) -> tuple[float, float]:
    """Return seconds on the clock and CPU seconds of a command that must end with 0, medians of the rounds."""
    found = []
    for _ in range(rounds):
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
        clock, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append((clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    clocks, seconds = zip(*found, strict=True)
    return statistics.median(clocks), statistics.median(seconds)


def main() -> None:
    """Measure each encoder's audit and verifier."""
    chosen = options(__doc__ or "", rounds=3, encoders=tuple(POOLS))
    prepare()
    rows = []
    for encoder in chosen.encoders:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            claimed(encoder, folder)
            size = sum(file.stat().st_size for file in (folder / "bundle").iterdir()) / 1e6
            load = os.getloadavg()[0]
            asked = ["--data", POOLS[encoder], "--seed", SEED, "--commitment", str(folder / "commitment.json")]
            audit = [sys.executable, "-m", "sslguard.cli", "audit", str(folder / "bundle"), "--clean", encoder, *asked]
            verifier = [sys.executable, str(VERIFIER), str(folder / "bundle"), "--seed", SEED]
            figures = [*timed(audit, chosen.rounds), *timed(verifier, chosen.rounds, OMP_NUM_THREADS="1")]
        rows.append([encoder, load, size, *figures])
    head = ["encoder", "load", "bundle, MB", "audit, s", "CPU s", "verifier, s", "CPU s of it"]
    shown = [[row[0], *(f"{figure:.1f}" for figure in row[1:])] for row in rows]
    print(table(head, shown))
    save("audit_time", {"rounds": chosen.rounds, "rows": [dict(zip(head, row, strict=True)) for row in rows]})


if __name__ == "__main__":
    main()
