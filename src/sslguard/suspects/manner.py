"""How a verification with `--pace` asks: like one of the clients that an API of embeddings has anyway.

A client is no stream of independent requests. A job sends requests of one size, each soon after the last; a worker
sends what has come; an application sends single queries; an import comes in bursts. A verification draws one of these,
and its figures, once. So two verifications look no more alike than two clients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

_JOB_SECONDS = 10.0
"""Mean gap of the slowest jobs."""
_OTHER_SECONDS = 1.0
"""Mean gap of the fastest workers and applications."""
_IMPORT_SECONDS = 8.0
"""Mean gap of the fastest imports."""
_APPLICATION_SIZE = 5
"""Queries of an application's largest requests."""


@dataclass(frozen=True)
class Manner:
    """How one client asks.

    Attributes:
        name: Which of the kinds it is.
        gap: Draws the seconds until the next request.
        size: Draws the queries of a request, at least 1.
    """

    name: str
    gap: Callable[[], float]
    size: Callable[[], int]

    @classmethod
    def drawn(cls, random: Random, pace: float, most: int) -> Manner:
        """Draw a client.

        Args:
            random: Source of everything that is drawn, now and later.
            pace: Mean seconds between two requests.
            most: Queries of a request at most.
        """
        kinds = [_job] if pace < _JOB_SECONDS else []
        if pace >= _OTHER_SECONDS:
            kinds += [_application] if most <= _APPLICATION_SIZE else [_worker]
        if pace >= _IMPORT_SECONDS:
            kinds.append(_import)
        return random.choice(kinds)(random, pace, most)


def _job(random: Random, pace: float, most: int) -> Manner:
    shape = 10 ** random.uniform(0.3, 2)
    return Manner("job", lambda: random.gammavariate(shape, pace / shape), _of_one_size(most))


def _worker(random: Random, pace: float, most: int) -> Manner:
    shape, more = 10 ** random.uniform(-0.5, 0.3), random.uniform(0.2, 0.9)

    def size() -> int:
        n = 1
        while n < most and random.random() < more:
            n += 1
        return n

    return Manner("worker", lambda: random.gammavariate(shape, pace / shape), size)


def _application(random: Random, pace: float, most: int) -> Manner:
    spread, several = random.uniform(0.8, 1.8), random.choice((0.0, 0.1, 0.3)) * (most > 1)
    return Manner(
        "application",
        lambda: pace * random.lognormvariate(-(spread**2) / 2, spread),
        lambda: random.randint(2, most) if random.random() < several else 1,
    )


def _import(random: Random, pace: float, most: int) -> Manner:
    burst = random.uniform(1, 8)
    inside = min(10 ** random.uniform(-1, 0.5), pace / 2)
    between = burst * pace - (burst - 1) * inside

    def gap() -> float:
        if random.random() < 1 / burst:
            return between * random.uniform(0.9, 1.1)
        return random.gammavariate(2, inside / 2)

    return Manner("import", gap, _of_one_size(most))


def _of_one_size(most: int) -> Callable[[], int]:
    """Return a power of 2, up to `most`: queries come by 128, and leave no smaller request over."""
    size = 1 << (most.bit_length() - 1)
    return lambda: size
