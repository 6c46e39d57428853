"""Can a suspect's server tell a verification from its ordinary clients? A detector that is trained on recorded runs.

Verifications go through everything that `sslguard verify ADDRESS` does between a key's queries and the network, under a
clock that does not wait. Ordinary clients are those of `ordinary_traffic.py`: read there what was assumed. The detector
knows of each run when requests came, their sizes, which items are byte-identical, the lengths of items and, where a row
says so, the header User-Agent. It is trained and tested by cross-validation, as boosted trees and as logistic
regression, and the better counts.

What a server learns before the end matters: afterwards every answer is given. So the detector sees the first 400 items
of a run, of verifications that ask 500 or more, but in the rows that say "to its end". A verification with --pace has
the pace and the largest request of some ordinary client, as its user would choose them. How requests are encrypted,
the order of headers and the layout of a body, in which programs differ too, are not simulated.

Run: python benchmarks/detector.py [--runs 240] [--ordinary 600]
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

import httpx2
import numpy as np
from common import options, save
from numpy.typing import NDArray
from ordinary_traffic import AGENTS, FAILING, KINDS, Run, ordinary
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.data.specs import open_data
from sslguard.report.markdown import table
from sslguard.schemes.queries import asked, drawn
from sslguard.suspects.clock import Clock
from sslguard.suspects.http import Exchange
from sslguard.suspects.remote import HTTPSuspect, Remote, RemoteSuspect, spoken

Array = NDArray[np.float64]
TOTALS = (500, 750, 1000, 1500)
"""Queries of a verification: what the protocol asks for data of different sizes."""
QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
ALL = ("pace", "sizes", "repeats", "order")
EARLY = 400
"""Items of a run that the server has seen when it must decide."""


class SimulatedClock(Clock):
    """A clock on which waiting takes no time."""

    def __init__(self) -> None:
        super().__init__(None, now=lambda: self.time)
        self.time = 0.0

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.time += max(0.0, seconds)


class Server:
    """A suspect that records what it is asked."""

    def __init__(self, numbers: dict[str, int], seed: int, kind: str) -> None:
        self.numbers, self.clock, self.random = numbers, SimulatedClock(), Random(seed)
        self.run, self.failing = Run(kind), self.random.choice(FAILING)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """Record a request and answer it after a while, or fail."""
        texts = json.loads(request.content)["input"]
        self.run.agent = request.headers["user-agent"]
        self.run.times.append(self.clock.time)
        self.run.items.append([self.numbers[text] for text in texts])
        if self.run.kind == "plain":  # the next request waits for this answer
            self.clock.time += self.random.gammavariate(8, 0.1 / 8)
        if self.random.random() < self.failing:
            return httpx2.Response(503)
        return httpx2.Response(200, json={"data": [{"index": i, "embedding": [1.0]} for i in range(len(texts))]})


def verification(seed: int, data: Data, numbers: dict[str, int], kind: str, **how: Any) -> Run:
    """Return what a server records of a verification."""
    server = Server(numbers, seed, kind)
    settings = Remote(protocol="openai", model="m", workers=1, time_limit=None, **how)
    exchange = Exchange("http://suspect/v1", transport=httpx2.MockTransport(server))
    source = HTTPSuspect(exchange, spoken(settings), clock=server.clock)
    with RemoteSuspect(source, settings, None) as suspect:
        order = drawn(Secret.from_seed(seed).stream("queries", b""), data, server.random.choice(TOTALS))
        for batch in asked(data, order, pictures=False):
            suspect.embed(batch)
        suspect.finish()
    return server.run


def features(run: Run, lengths: Array) -> dict[str, list[float]]:
    """Return the figures of a run that the detector knows, by what they are about."""
    gaps = np.log(np.diff(run.times) + 0.01)
    sizes = np.array([len(items) for items in run.items], dtype=float)
    order = np.concatenate(run.items).astype(int)
    text = np.log(lengths[order] + 1)
    _, first = np.unique(order, return_index=True)
    again = np.setdiff1d(np.arange(len(order)), first)
    usual = np.bincount(sizes.astype(int)).argmax()
    seen = [tuple(items) for items in run.items]
    return {
        "pace": [gaps.mean(), gaps.std(), _following(gaps), *np.quantile(gaps - gaps.mean(), QUANTILES)],
        "sizes": [
            *(np.log(len(order)), np.log(len(sizes)), sizes.mean(), sizes.std(), sizes.max(), float(usual)),
            *((sizes == usual).mean(), (sizes == 1).mean(), _following(sizes), _together(sizes[1:], gaps)),
            *(sizes[0], sizes[-1], len(np.unique(sizes))),
        ],
        "repeats": [
            *(len(again) / len(order), again.mean() / len(order) if len(again) else -1.0),
            *(len(order) - again.min() if len(again) else -1.0, 1 - len(set(seen)) / len(seen)),
        ],
        "order": [text.mean(), text.std(), _following(text)],
        "header": [*(float(run.agent == name) for name in AGENTS), float("httpx" in run.agent)],
    }


def begun(run: Run) -> Run:
    """Return a run up to the first `EARLY` items."""
    n = 1 + int(np.searchsorted(np.cumsum([len(items) for items in run.items]), EARLY))
    return Run(run.kind, run.agent, run.times[:n], run.items[:n])


def _following(values: Array) -> float:
    """Return the correlation of values with those after them."""
    return _together(values[:-1], values[1:])


def _together(one: Array, other: Array) -> float:
    if len(one) < 3 or one.std() < 1e-9 or other.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def area(positive: Array, negative: Array) -> tuple[float, float]:
    """Return the area under the curve, and the upper end of its two-sided 95 % interval after DeLong (1988)."""
    wins = (positive[:, None] > negative).astype(float) + 0.5 * (positive[:, None] == negative)
    found = float(wins.mean())
    variance = wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative)
    return found, found + float(norm.ppf(0.975) * np.sqrt(variance))


def detected(runs: list[Run], others: list[Run], lengths: Array, known: tuple[str, ...]) -> dict[str, float]:
    """Return how well the better detector tells `runs` from `others` by what is known of them."""
    found_of = [features(run, lengths) for run in runs + others]
    x = np.array([[value for name in known for value in found[name]] for found in found_of])
    y = np.array([1] * len(runs) + [0] * len(others))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    best: dict[str, float] = {"area": -1.0}
    for model in (
        HistGradientBoostingClassifier(max_iter=150, learning_rate=0.08, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
    ):
        scores = cross_val_predict(model, x, y, cv=folds, method="predict_proba")[:, 1]
        found, upper = area(scores[y == 1], scores[y == 0])
        if found > best["area"]:
            best = {"area": found, "upper": upper, "runs": len(runs), "others": len(others)}
    return best


def main() -> None:
    given = options(__doc__, runs=240, ordinary=600)
    data = open_data("vader:verify")
    texts = [text for batch in data.batches(500) for text in batch]
    numbers = {str(text): i for i, text in enumerate(texts)}
    lengths = np.array([len(str(text)) for text in texts], dtype=float)
    known = lengths.astype(int).tolist()
    clients = [ordinary(i, list(KINDS)[i % len(KINDS)], known, TOTALS) for i in range(given.ordinary)]
    like = [Random(f"like {i}").choice(clients) for i in range(given.runs)]

    def largest(run: Run) -> int:
        return max(map(len, run.items))

    paces = [(max(run.gap, 0.05), max(map(len, run.items))) for run in like]
    plain = [verification(i, data, numbers, "plain") for i in range(given.runs // 4)]
    paced = [
        verification(1000 + i, data, numbers, "paced", pace=pace, request_size=size)
        for i, (pace, size) in enumerate(paces)
    ]
    print(f"{len(plain) + len(paced) + len(clients)} runs", flush=True)
    ended = paced, clients
    plain, paced, clients = ([begun(run) for run in runs] for runs in (plain, paced, clients))
    tried = {
        "ordinary clients, one half and the other": (clients[::2], clients[1::2], (*ALL, "header")),
        "without --pace": (plain, clients, ALL),
        "with --pace": (paced, clients, ALL),
        **{f"with --pace, by {name} alone": (paced, clients, (name,)) for name in (*ALL, "header")},
        "with --pace, by pace and repeats": (paced, clients, ("pace", "repeats")),
        "with --pace, to its end": (*ended, ALL),
    }
    found = {name: detected(runs, others, lengths, known) for name, (runs, others, known) in tried.items()}
    save("detector", {"detected": found, "kinds": list(KINDS)})
    rows = [[n, f"{f['area']:.2f}", f"{f['upper']:.2f}", f"{f['runs']} and {f['others']}"] for n, f in found.items()]
    print(table(["verifications", "area", "95 % bound", "runs"], rows))


if __name__ == "__main__":
    main()
