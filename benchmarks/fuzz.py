"""Damaged files by the million: every reader that files of strangers reach, until a fault or the end.

    python benchmarks/fuzz.py --inputs 1000000 --out benchmarks/results/fuzz.json

A fault (anything but an `SslguardError`), an accepted forgery, or a file that a reader wrote stops the run; the input
that did it is left beside the result. Inputs follow from --seed and their number alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fuzz_targets import Target, make_targets, mutated


def fuzz(targets: list[Target], work: Path, *, inputs: int, seed: int, failed: Path) -> dict[str, Counter[str]]:
    """Outcomes by target. Targets take turns, each as often as the others."""
    outcomes: dict[str, Counter[str]] = {target.name: Counter() for target in targets}
    good = {t.name: {file: (t.folder / file).read_bytes() for file in t.files} for t in targets}
    for number in range(inputs):
        target = targets[number % len(targets)]
        random = Random(f"{seed} {number}")
        file = random.choice(target.files)
        content = mutated(good[target.name][file], random)
        try:
            outcomes[target.name][target.try_one(work, file, content)] += 1
        except BaseException:
            failed.mkdir(parents=True, exist_ok=True)
            (failed / f"{number}-{file}").write_bytes(content)
            print(f"input {number}, {target.name}, {file}: kept in {failed}")
            raise
        if number % 20_000 == 19_999:
            print(f"{number + 1:,} inputs", flush=True)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one target, by name")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "good").mkdir()
        (root / "work").mkdir()
        targets = [t for t in make_targets(root / "good") if given.only in (None, t.name)]
        try:
            outcomes = fuzz(
                targets, root / "work", inputs=given.inputs, seed=given.seed, failed=given.out.with_suffix(".failed")
            )
        except Exception:
            traceback.print_exc()
            return 1
    result = {
        "inputs": given.inputs,
        "seed": given.seed,
        "faults": 0,
        "accepted_forgeries": 0,
        "seconds": round(time.monotonic() - started),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "outcomes": {name: dict(found) for name, found in outcomes.items()},
    }
    given.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(json.dumps(result, indent=1, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
