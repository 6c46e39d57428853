"""Damaged files by the million: every reader that files of strangers reach, until a fault or the end.

    python benchmarks/fuzz.py --inputs 1000000            (writes results/fuzz.json)
    python benchmarks/fuzz.py --guided --inputs 100000    (writes results/fuzz_guided.json)

A fault (anything but an `SslguardError`), an accepted forgery, or a file that a reader wrote stops the run; the input
that did it is left beside the result. Inputs follow from --seed and their number alone. The result is written anew
every 20,000 inputs, so a run that is stopped says how far it came.

--only names one target, or several with semicolons between them; --record names the result. --guided damages more than
the good files: an input that reaches a line of Python that none before it reached is kept, and damaged on. Lines count
in this program's readers and those in numpy, torch and zipfile below them, all in Python; what safetensors and age do
in compiled code is not seen.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from common import RESULTS, options, save

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import sslguard
from helpers.fuzz_targets import Target, make_targets, mutated

EVERY = 20_000
GOOD_SHARE = 0.5
_WATCHED = (
    str(Path(sslguard.__file__).parent),
    str(Path(np.__file__).parent / "lib"),
    *(str(Path(torch.__file__).parent / name) for name in ("serialization.py", "_weights_only_unpickler.py")),
    zipfile.__file__,
)


class Lines:
    """Which lines of the watched files were reached, by `sys.settrace`. What was reached whole costs nothing more."""

    def __init__(self) -> None:
        self._left: dict[CodeType, set[int]] = {}
        self.reached = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:  # noqa: ARG002
        code = frame.f_code
        if code not in self._left:
            watched = code.co_filename.startswith(_WATCHED)
            lines = {line for *_, line in code.co_lines() if line} if watched else set()
            # The line of a def is run by whoever defines it.
            self._left[code] = lines - {code.co_firstlineno} if len(lines) > 1 else lines
        return self._line if self._left[code] else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:  # noqa: ARG002
        left = self._left[frame.f_code]
        if frame.f_lineno in left:
            left.remove(frame.f_lineno)
            self.reached += 1
        return self._line

    @property
    def unreached(self) -> int:
        """Lines of functions that were entered."""
        return sum(map(len, self._left.values()))


@dataclass
class Fuzzer:
    """Inputs in turn to every target, and what came of them.

    Attributes:
        lines: None where inputs are damaged good files alone.
        outcomes: by target, how many were read and how many refused.
        corpus: what is damaged, by target and file.
        kept: by target, how many inputs reached new lines.
    """

    targets: list[Target]
    seed: int
    lines: Lines | None
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    corpus: dict[tuple[str, str], list[bytes]] = field(default_factory=dict)
    kept: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for target in self.targets:
            self.outcomes[target.name] = Counter()
            for file in target.files:
                self.corpus[target.name, file] = [(target.folder / file).read_bytes()]

    def reach_what_good_files_reach(self, work: Path) -> None:
        if self.lines is not None:
            with self.lines.watching():
                for target in self.targets:
                    target.try_one(work, target.files[0], (target.folder / target.files[0]).read_bytes())

    def one(self, number: int, work: Path, failed: Path) -> None:
        """Input `number`. Raises for any fault, with the input left in `failed`."""
        target, random = self.targets[number % len(self.targets)], Random(f"{self.seed} {number}")
        file = random.choice(target.files)
        entries = self.corpus[target.name, file]
        # What was kept is damaged already: from it alone, readers would soon see nothing but their first checks.
        content = mutated(entries[0] if random.random() < GOOD_SHARE else random.choice(entries), random)
        try:
            if self.lines is None:
                outcome = target.try_one(work, file, content)
            else:
                before = self.lines.reached
                with self.lines.watching():
                    outcome = target.try_one(work, file, content)
                if self.lines.reached > before:
                    entries.append(content)
                    self.kept[target.name] += 1
        except BaseException:
            failed.mkdir(parents=True, exist_ok=True)
            (failed / f"{number}-{file}").write_bytes(content)
            print(f"input {number}, {target.name}, {file}: kept in {failed}")
            raise
        self.outcomes[target.name][outcome] += 1


def report(fuzzer: Fuzzer, inputs: int, at_first: int) -> dict[str, Any]:
    """What a run of so many inputs found."""
    found: dict[str, Any] = {
        "inputs": inputs,
        "seed": fuzzer.seed,
        "guided": fuzzer.lines is not None,
        "faults": 0,
        "accepted_forgeries": 0,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "outcomes": fuzzer.outcomes,
    }
    if fuzzer.lines is not None:
        entered = fuzzer.lines.reached + fuzzer.lines.unreached
        lines = {"by good files": at_first, "reached": fuzzer.lines.reached, "of functions entered": entered}
        found |= {"lines": lines, "kept": fuzzer.kept}
    return found


def main() -> int:
    given = options(__doc__, inputs=1_000_000, seed=0, only="", record="fuzz", guided=False)
    name = "fuzz_guided" if given.guided else given.record
    with tempfile.TemporaryDirectory() as folder:
        good, work = Path(folder) / "good", Path(folder) / "work"
        good.mkdir()
        work.mkdir()
        os.environ["SSLGUARD_CACHE"] = str(Path(folder) / "cache")
        targets = [t for t in make_targets(good) if not given.only or t.name in given.only.split(";")]
        fuzzer = Fuzzer(targets, given.seed, Lines() if given.guided else None)
        fuzzer.reach_what_good_files_reach(work)
        at_first = fuzzer.lines.reached if fuzzer.lines else 0
        for number in range(given.inputs):
            try:
                fuzzer.one(number, work, RESULTS / f"{name}.failed")
            except Exception:
                traceback.print_exc()
                return 1
            if (number + 1) % EVERY == 0 or number + 1 == given.inputs:
                save(name, report(fuzzer, number + 1, at_first))
                print(f"{number + 1:,} inputs", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
