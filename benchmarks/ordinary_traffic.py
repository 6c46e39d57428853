"""Ordinary clients of an API of embeddings, as its server sees them: what verification runs are told apart from.

There is no public record of single clients of such an API, so this is an assumption. Kinds and proportions are stated
here: batch jobs, rebuilds of an index, periodic imports, queue workers, applications with users, as many of each. Gaps
between requests follow Gamma and log-normal laws whose spread differs from client to client; for clients of language
models in production, Gamma and Weibull laws were found to fit best [1]. Some clients meet errors and send a request
again, at the same rates as verifications. Items are texts of one source, as a verification's are; 60 % of the clients
send them in no order that shows, 30 % as they lie in the source, 10 % by length.

    [1] "ServeGen: Workload Characterization and Generation of Large Language Model Serving in Production",
        arXiv:2505.09999, 2025, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

SIZES = (1, 4, 8, 10, 16, 20, 32, 64)
FAILING = (0.0, 0.002, 0.002, 0.05)
"""Shares of requests that a server does not answer, one of them for each client."""
AGENTS = (
    *("OpenAI/Python 2.8.0", "python-requests/2.32.5", "python-httpx/0.28.1", "Go-http-client/1.1", "axios/1.13.2"),
    *("node", "okhttp/5.1.0", "hf_hub/1.1.2", "curl/8.14.1"),
)
"""What requests say that they were made by."""


@dataclass
class Run:
    """What a server records of one client.

    Attributes:
        times: When each request came, in seconds, increasing.
        items: Items of each request, by number.
        agent: Header User-Agent.
        kind: Who it was.
    """

    kind: str
    agent: str = ""
    times: list[float] = field(default_factory=list)
    items: list[list[int]] = field(default_factory=list)

    @property
    def gap(self) -> float:
        """Mean seconds between two requests."""
        return (self.times[-1] - self.times[0]) / max(1, len(self.times) - 1)


def gamma(random: Random, mean: float, shape: float) -> float:
    """Return a gap with a Gamma law."""
    return random.gammavariate(shape, mean / shape)


def corpus(random: Random, lengths: list[int], n: int) -> list[int]:
    """Return the items of a client in the order in which it sends them: as they came, by length, or shuffled."""
    start = random.randrange(len(lengths))
    found = [(start + i) % len(lengths) for i in range(n)]
    order = random.random()
    if order < 0.1:
        return sorted(found, key=lambda item: -lengths[item])
    if order < 0.7:
        random.shuffle(found)
    return found


def cut(items: list[int], size: Callable[[], int]) -> Iterator[list[int]]:
    """Yield items in requests."""
    start = 0
    while start < len(items):
        n = size()
        yield items[start : start + n]
        start += n


def batch_job(random: Random, items: list[int]) -> tuple[list[list[int]], Iterator[float]]:
    """Send everything in requests of one size, each a little after the last was answered."""
    size, mean, shape = random.choice(SIZES), 10 ** random.uniform(-1, 1), 10 ** random.uniform(0.3, 2)
    return list(cut(items, lambda: size)), iter(lambda: gamma(random, mean, shape), None)


def rebuild(random: Random, items: list[int]) -> tuple[list[list[int]], Iterator[float]]:
    """Send everything as a batch job, and again after a tenth of it was replaced."""
    again = [item if random.random() < 0.9 else random.choice(items) for item in items]
    return batch_job(random, items + again)


def periodic(random: Random, items: list[int]) -> tuple[list[list[int]], Iterator[float]]:
    """Send what has come since the last time, in a burst every few minutes."""
    size, every, burst = random.choice(SIZES), random.choice((60, 300, 900)), random.uniform(1, 8)
    inside = 10 ** random.uniform(-1, 0.5)

    def gap() -> float:
        return every * random.uniform(0.9, 1.1) if random.random() < 1 / burst else gamma(random, inside, 2)

    return list(cut(items, lambda: size)), iter(gap, None)


def worker(random: Random, items: list[int]) -> tuple[list[list[int]], Iterator[float]]:
    """Send items that come at random times, as many as wait, up to a largest size."""
    most, mean, shape = random.choice(SIZES[1:]), 10 ** random.uniform(0, 2), 10 ** random.uniform(-0.5, 0.3)
    waiting = random.uniform(0.2, 0.9)

    def size() -> int:
        n = 1
        while n < most and random.random() < waiting:
            n += 1
        return n

    return list(cut(items, size)), iter(lambda: gamma(random, mean, shape), None)


def application(random: Random, items: list[int]) -> tuple[list[list[int]], Iterator[float]]:
    """Send single queries of users, some of them the same ones again and again, more by day than by night."""
    popular, share = items[:20], random.choice((0.0, 0.0, 0.05, 0.2))
    spread, mean = random.uniform(0.8, 1.8), 10 ** random.uniform(0, 2)
    asked = [random.choice(popular) if random.random() < share else item for item in items]
    several = random.choice((0.0, 0.0, 0.1, 0.3))
    requests = cut(asked, lambda: random.randint(2, 5) if random.random() < several else 1)
    return list(requests), iter(lambda: mean * random.lognormvariate(-(spread**2) / 2, spread), None)


KINDS = {
    "batch job": batch_job,
    "rebuild of an index": rebuild,
    "periodic import": periodic,
    "queue worker": worker,
    "application": application,
}


def ordinary(seed: int, kind: str, lengths: list[int], totals: tuple[int, ...]) -> Run:
    """Return the run of one client of a kind.

    Args:
        seed: Of all that it draws.
        kind: One of `KINDS`.
        lengths: Length of every item that there is, in characters.
        totals: Numbers of items that verifications ask about. Clients send between the least and the most.
    """
    random = Random(f"{kind} {seed}")
    n = round(math.exp(random.uniform(math.log(min(totals)), math.log(max(totals)))))
    requests, gaps = KINDS[kind](random, corpus(random, lengths, n))
    run, now = Run(kind, random.choice(AGENTS)), 0.0
    failing = random.choice(FAILING)
    for items in requests:
        run.times.append(now)
        run.items.append(items)
        wait = 0.5
        while random.random() < failing and wait < 8:
            now += wait * random.uniform(1, 1.2)
            wait *= 2
            run.times.append(now)
            run.items.append(items)
        now += next(gaps)
    return run
