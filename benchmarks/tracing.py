"""Whose answers was a surrogate trained on? Single leaks, coalitions, innocents, and what a trace costs.

The SimCLR encoder is marked by a head. Each recipient's answers hold the common mark and his own. Thieves steal one
recipient's answers, or those of a coalition, with 12,000 queries, as `benchmarks/exact_power.py` does; the bench's
precision halves the time. Copies then answer 10,000 items that nobody trained on, as they are or rotated. A trace
compares 10^6 recipients with a single leak, and 10^4 with a coalition. The right test takes the 1,000 best by left; of
rotated answers, and of what coalitions answer themselves, the 100 best, which can only hide a name. Copies and answers
are kept in a folder.

A coalition answers a query with the average of its members' answers (average), that of a random member (random), the
average without the directions in which its members' answers differ (projected), without the functions of the input by
which they differ (regressed), or with the middle value of each coordinate (median).

Innocents: their answers stay, and the owner's secret is drawn anew for every trace, from which 1,000 recipients'
secrets follow. The common mark, which these answers do not hold, is not taken off. The spectra of one innocent's
answers are shared by all of its traces, and 2 recipients of a trace, not 1,000, take the right test, by the quick
witnesses: whoever is left out cannot be named.

Run: OMP_NUM_THREADS=1 python benchmarks/tracing.py [--parts single coalitions innocents cost use] [--copies NAME ...]
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from common import RESULTS, data, options, prepare, save

from sslguard.controls.members import read_population, shipped_population
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch
from sslguard.data.places import cache_dir
from sslguard.data.specs import open_data
from sslguard.encoders.base import embed_all
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.encoders.load import load_encoder
from sslguard.probes.linear import linear_classifier
from sslguard.schemes.exact.bank import recipient_stream
from sslguard.schemes.exact.features import all_statistics, input_statistics
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.exact.taking import neighbours_kept
from sslguard.schemes.keyfile import RECIPIENTS, load_key, save_key
from sslguard.stats.moments import unit_rows
from sslguard.tracing import trace as tracing
from sslguard.tracing.recipients import Recipient, add, read_recipients
from sslguard.tracing.trace import corrected_common, shortlist, trace_spectra
from sslguard.training.distillation import distil
from sslguard.training.recipes import Distillation

ENCODER, SEED, QUERIES, ALPHA = "shipped:simclr", 1, 10_000, 0.01
ASKED = "cluttered-fashion-mnist:train[50000:60000]"
RIGHT_TESTS = 2
SCHEME = Exact(mode="head")
MANY, SOME, TIME = 1_000_000, 10_000, "2026-12-01T00:00:00+00:00"
WORK = cache_dir() / "benchmarks" / "tracing"
SINGLE = {"centred, one": ("centred", "average", 1), "mse, one": ("mse", "average", 1)}
COALITIONS = {
    **{f"centred, average of {k}": ("centred", "average", k) for k in (2, 5, 10, 3)},
    "centred, random of 2": ("centred", "random", 2),
    "centred, projected of 2": ("centred", "projected", 2),
    "centred, regressed of 2": ("centred", "regressed", 2),
    "centred, median of 3": ("centred", "median", 3),
    "centred, random of 5": ("centred", "random", 5),
    "mse, average of 2": ("mse", "average", 2),
}
DIRECT = (
    "projected of 2",
    "average of 2",
    "average of 5",
    "average of 10",
    "random of 2",
    "regressed of 2",
    "median of 3",
)
RULES = ("average", "random", "projected", "regressed", "median")


def name_of(i: int) -> str:
    """Return the name of a recipient. Members of coalitions are the first ones."""
    return f"customer {i}"


@dataclass
class Coalition:
    """What the members of a coalition answer together.

    Attributes:
        key: The owner's.
        members: Number of members.
        rule: One of `RULES`.
    """

    key: ExactKey
    members: int
    rule: str

    def __post_init__(self) -> None:
        self.marks = [self.key.handed_to(self.key.recipient(name_of(i))) for i in range(self.members)]
        self.random = np.random.default_rng(SEED)
        self.learned: Any = None
        if self.rule in ("projected", "regressed"):
            # Members learn how they differ from answers to items of their own.
            self.learned = self._differences(*self._base(data("thief").take(range(2000))))

    def embed(self, batch: Batch) -> np.ndarray:
        """Return their answers (n, d)."""
        h, functions, length = self._base(batch)
        answers = np.stack([h + functions @ mixtures @ rows for mixtures, rows in self.marks])
        if self.rule == "random":
            joined = answers[self.random.integers(0, self.members, len(h)), np.arange(len(h))]
        elif self.rule == "median":
            joined = np.median(answers, axis=0)
        else:
            joined = answers.mean(0)
        if self.rule == "projected":
            joined = joined - (joined - self.key.bank.mean) @ self.learned[0] @ self.learned[0].T
        if self.rule == "regressed":
            scores = (answers[0] - answers[1]) @ self.learned[0]
            joined = joined - scores @ self.learned[1]
        return (joined * length).astype(np.float32)

    def _base(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        raw = self.key.clean.embed(batch).astype(np.float64)
        h = unit_rows(raw)
        return (
            h,
            self.key.bank.functions(h, input_statistics(self.key.clean, batch)),
            np.linalg.norm(raw, axis=1, keepdims=True),
        )

    def _differences(self, h: np.ndarray, functions: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return directions (d, 2r) in which two members differ, and the fit of their average on the differences."""
        one, other = (h + functions @ mixtures @ rows for mixtures, rows in self.marks[:2])
        span = np.linalg.svd(one - other, full_matrices=False)[2][: 2 * self.key.protocol.rank].T
        scores = (one - other) @ span
        mean = (one + other) / 2
        return span, np.linalg.lstsq(scores - scores.mean(0), mean - mean.mean(0), rcond=None)[0]


class Bed:
    """The owner's key, and what the clean encoder answers to the items that suspects are asked about."""

    def __init__(self) -> None:
        WORK.mkdir(parents=True, exist_ok=True)
        if not (WORK / "key").exists():
            made = SCHEME.watermark(load_encoder(ENCODER), data("mark"), secret=Secret.from_seed(SEED))
            save_key(made.key, WORK / "key")
        found = load_key(WORK / "key")
        assert isinstance(found, ExactKey)
        self.key, self.asked = found, open_data(ASKED)
        self.raw = kept("clean", lambda: embed_all(self.key.clean, self.asked)).astype(np.float64)
        self.h = unit_rows(self.raw)
        self.statistics = kept("statistics", lambda: all_statistics(self.key.clean, self.asked))
        self.functions = self.key.bank.functions(self.h, self.statistics)

    def spectra(self, answers: np.ndarray, known: np.ndarray | None = None) -> Any:
        """Return the spectra of answers to all items, whose order is that of the file: no secret has a part in it."""
        given = answers[:QUERIES].astype(np.float64)
        return self.key.spectra_of(given, self.key.bank.placed(self.h), self.functions, known)

    def accuracy(self, answers: np.ndarray) -> float:
        """Return the accuracy of a linear probe on half of the items, trained on the other half, in [0, 1]."""
        labels = np.asarray(self.asked.labels)[: len(answers)]
        half = len(answers) // 2
        weights, intercepts = linear_classifier(answers[:half].astype(np.float64), labels[:half])
        return float(((answers[half:] @ weights + intercepts).argmax(1) == labels[half:]).mean())


def kept(name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return an array that is computed once and kept in the folder."""
    path = WORK / f"{name.replace(', ', '-').replace(' ', '-')}.npy"
    if not path.exists():
        np.save(path, compute())
    return np.load(path)


def copied(bed: Bed, name: str, loss: str, rule: str, members: int) -> np.ndarray:
    """Return what a copy of a coalition's answers answers."""
    folder = WORK / f"{name.replace(', ', '-').replace(' ', '-')}"
    if not folder.exists():
        recipe = Distillation("resnet-small", loss=loss, steps=400)  # type: ignore[arg-type]
        copy, _ = distil(recipe, Coalition(bed.key, members, rule), data("thief"), seed=SEED, precision="bf16")
        save_encoder(copy, folder)
    return kept(name, lambda: embed_all(load_folder(folder), bed.asked))


def rotated(answers: np.ndarray) -> np.ndarray:
    """Return the answers turned by a random rotation."""
    d = answers.shape[1]
    return answers @ np.linalg.qr(np.random.default_rng(SEED).standard_normal((d, d)))[0]


def traced(bed: Bed, answers: np.ndarray, members: int, shortlisted: int = 100) -> dict[str, Any]:
    """Return who is named, and what the common mark shows."""
    tracing.SHORTLIST = shortlisted
    spent = Spent()
    spectra, _ = bed.spectra(answers, bed.key.mixtures())
    found = trace_spectra(bed.key, spectra, recipients(MANY if members == 1 else SOME), alpha=ALPHA)
    used = spent.json()
    coalition = {name_of(i) for i in range(members)}
    named = [one.name for one in found if one.named]
    own = {}
    for name in sorted(coalition):
        sides = bed.key.recipient(name).sides(spectra)
        own[name] = {"left": -sides.left, "right": -sides.right, "both": -sides.both}
    common = bed.key.test(*bed.spectra(answers))
    return {
        "bits": {one.name: -one.log2_pvalue for one in found if one.named or one is found[0]},
        "named": len(named),
        "framed": sorted(set(named) - coalition),
        "members_uncorrected": own,
        "common": -corrected_common(common, 1),
        "spent": used,
        "common_sides": {side: common.details[f"{side}_bits"] for side in ("left", "right")},
    }


def recipients(n: int) -> list[Recipient]:
    """Return so many recipients."""
    return [Recipient(name_of(i), (TIME,)) for i in range(n)]


def leaks(bed: Bed, chosen: dict[str, tuple[str, str, int]], found: dict[str, Any]) -> None:
    """Measure copies that are missing in `found`, with what each keeps of the clean encoder's accuracy."""
    clean = bed.accuracy(bed.raw)
    for name, (loss, rule, members) in chosen.items():
        if name in found:
            continue
        answers = copied(bed, name, loss, rule, members)
        found[name] = {
            "members": members,
            "kept": bed.accuracy(answers) / clean,
            "as it answers": traced(bed, answers, members, 1000),
            "rotated": traced(bed, rotated(answers), members),
        }
        print(name, json.dumps(found[name]), flush=True)


def direct(bed: Bed, found: dict[str, Any], names: Sequence[str] = DIRECT) -> None:
    """Measure what coalitions answer themselves, without a copy."""
    for name in names:
        if name in found:
            continue
        rule, _, members = name.split()
        coalition = Coalition(bed.key, int(members), rule)
        answers = kept(f"direct {name}", lambda one=coalition: embed_all(one, bed.asked))  # type: ignore[misc]
        found[name] = {**traced(bed, answers, int(members)), "kept": bed.accuracy(answers) / bed.accuracy(bed.raw)}
        print("direct", name, json.dumps(found[name]), flush=True)


def innocents(bed: Bed, traces: int, of: int = 1000) -> dict[str, Any]:
    """Count traces of innocents that name anybody, at several levels. What is done is kept, and the rest goes on."""
    n, path = 3000, WORK / "innocents.npy"
    members = [one for one in read_population(shipped_population()) if one.kind == "independent"][:6]
    asked, labels = bed.asked.slice(0, n), np.asarray(bed.asked.labels)[:n]
    suspects = {
        one.name: kept(f"innocent {one.name}", lambda one=one: embed_all(one.load(), asked)).astype(np.float64)  # type: ignore[misc]
        for one in members
    }
    suspects["clean"] = bed.raw[:n]
    for name in list(suspects)[:4]:
        weights, intercepts = linear_classifier(suspects[name][: n // 2], labels[: n // 2])
        suspects[f"logits of {name}"] = suspects[name] @ weights + intercepts
    placed, functions = bed.key.bank.placed(bed.h[:n]), bed.key.bank.functions(bed.h[:n], bed.statistics[:n])
    names = list(suspects)
    spectra = [bed.key.spectra_of(given, placed, functions)[0] for given in suspects.values()]
    tracing.SHORTLIST = RIGHT_TESTS
    streams = [recipient_stream(one.name, 0) for one in recipients(of)]
    smallest = list(np.load(path)) if path.exists() else []
    for i in range(len(smallest), traces):
        key = replace(bed.key, secret=Secret.from_seed(1000 + i), _embedded={})
        vars(key).update(context=bed.key.context, clean_hash=bed.key.clean_hash)
        one = spectra[i % len(names)]
        listed = shortlist(key, one, streams)
        best = min(key.recipient(name_of(int(p))).sides(one, tracing.QUICK).both for p in listed.places)
        smallest.append(best + np.log2(2 * of))
    np.save(path, smallest)
    found = np.array(smallest)
    levels = (1.0, 0.5, 0.1, 0.05, 0.01)
    return {
        "traces": len(found),
        "recipients": of,
        "suspects": names,
        "named_at": {str(level): int((found <= np.log2(level)).sum()) for level in levels},
        "expected_at_most": {str(level): level / 2 * len(found) for level in levels},
        "right_tests": RIGHT_TESTS,
    }


def costs(bed: Bed) -> list[dict[str, float]]:
    """Return seconds and memory of traces over 10^3 to 10^5 recipients, and of reading a list of 10^6 names.

    What 10^6 take stands with the copies of single leaks.
    """
    spectra, _ = bed.spectra(copied(bed, "centred, one", *SINGLE["centred, one"]), bed.key.mixtures())
    found: list[dict[str, float]] = []
    for n in (1000, 10_000, 100_000):
        some = recipients(n)
        spent = Spent()
        trace_spectra(bed.key, spectra, some, alpha=ALPHA)
        found.append({"recipients": n, **spent.json()})
        print(found[-1], flush=True)
    add(WORK / "key", [f"customer {i}" for i in range(MANY)])
    spent = Spent()
    assert len(read_recipients(WORK / "key")) == MANY
    found.append({"names_read": MANY, **spent.json()})
    (WORK / "key" / RECIPIENTS).unlink()
    return found


class Spent:
    """Time since it was made, by the clock and of this process, and the most memory that it held."""

    def __init__(self) -> None:
        self.clock, self.cpu = time.perf_counter(), time.process_time()

    def json(self) -> dict[str, float]:
        """Return seconds and megabytes."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "seconds": time.perf_counter() - self.clock,
            "cpu_seconds": time.process_time() - self.cpu,
            "peak_mb": peak,
        }


def use(bed: Bed, keys: int = 2) -> dict[str, Any]:
    """Return what the marks cost: accuracy in points, neighbours that stay, by the common mark alone and by both."""
    clean, rows = bed.accuracy(bed.h), []
    sought, among = np.arange(500), slice(0, 2000)
    for i in range(keys):
        key = replace(bed.key, secret=Secret.from_seed(100 + i), _embedded={})
        one = key.recipient(name_of(0))
        mixtures, right = key.handed_to(one)
        for marks, moved in (("common alone", key.mark(bed.functions)), ("both", bed.functions @ mixtures @ right)):
            marked = bed.h + moved
            rows.append(
                {
                    "marks": marks,
                    "points": 100 * (bed.accuracy(marked) - clean),
                    "overlap": neighbours_kept(bed.h[among], marked[among], sought),
                }
            )
    return {
        marks: {
            name: [
                float(np.mean([row[name] for row in rows if row["marks"] == marks])),
                float(np.std([row[name] for row in rows if row["marks"] == marks], ddof=1)),
            ]
            for name in ("points", "overlap")
        }
        for marks in ("common alone", "both")
    }


def main() -> None:
    given = options(
        __doc__ or "", parts=("single", "coalitions", "direct", "innocents", "cost", "use"), copies=(), traces=10_000
    )
    prepare()
    path = RESULTS / "tracing.json"
    figures: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    figures.pop("run", None)
    bed = Bed()
    for part in given.parts:
        if part in ("single", "coalitions"):
            wanted = (
                {n: v for n, v in {**SINGLE, **COALITIONS}.items() if n in given.copies}
                if given.copies
                else (SINGLE if part == "single" else COALITIONS)
            )
            leaks(bed, wanted, figures.setdefault("copies", {}))
        elif part == "direct":
            direct(bed, figures.setdefault("direct", {}), given.copies or DIRECT)
        else:
            measure = {"innocents": lambda bed: innocents(bed, given.traces), "cost": costs, "use": use}[part]
            figures[part] = measure(bed)
            print(json.dumps(figures[part]), flush=True)
        save("tracing", figures)


if __name__ == "__main__":
    main()
