"""What a marking, a theft or a verification will take, before it runs: time, memory, queries, items.

The encoder embeds a few items and trains a few steps, by the very code of the task; the rest is multiplication. What
does not depend on the encoder's speed was measured once: the start of a program, and the arithmetic of a test by the
width of the embeddings (`python benchmarks/exact_width.py`). `python benchmarks/planning.py` compares plans with what
then came.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from sslguard.data.base import Data
from sslguard.encoders.base import Encoder, embed_all
from sslguard.encoders.formats import usual_formats
from sslguard.encoders.statistics import N_IMAGE
from sslguard.errors import UsageError
from sslguard.schemes.base import Scheme
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.exact.marking import DistilMark
from sslguard.schemes.exact.scheme import GEOMETRY_ITEMS, Exact
from sslguard.schemes.sslguard.scheme import CuredSSLGuard
from sslguard.training.base import Loop, Task
from sslguard.training.distillation import DistillationTask, new_student
from sslguard.training.loop import run
from sslguard.training.recipes import Distillation

What = Literal["watermark", "steal", "verify"]

_START = 4.0  # seconds: interpreter, torch, reading the encoder
_EXPORT = 7.0  # seconds: a head written by torch.export
_LAW = 0.004  # seconds of a step that trains the decoder of the scheme sslguard
# Width → CPU seconds and GiB beyond the libraries of a test of 10,000 answers.
_TESTS = {128: (0.42, 0.05), 512: (2.1, 0.17), 1024: (7.2, 0.38), 2048: (11.1, 0.6)}
_TESTED = 10_000
_SECONDS = 2.0  # that each part of the sample may take, and less where a few items tell
_ITEMS, _STEPS = 256, 4
_GIB = 1 << 30
_ENOUGH = {"head": 2000, "distilled": 8000}  # items of a marking, as docs/how-to/your-own-encoder.md says


@dataclass(frozen=True)
class Plan:
    """What a task will take.

    Attributes:
        task: What is planned.
        encoder: Source of the encoder.
        data: Specification of the items.
        n_items: Number of items that there are.
        seconds: CPU seconds of one thread: the time on an idle core. Training uses further cores where it may.
        parts: What the seconds are spent on, by name.
        memory: Peak of the process, in bytes.
        queries: Number of items that the encoder is asked about; 0 for a marking.
        needed: Fewest items with which the task can be done.
        wanted: Items that a good result takes, by what was measured; as `needed` where that is no question.
        sampled: Seconds that the sample took.
    """

    task: What
    encoder: str
    data: str
    n_items: int
    seconds: float
    parts: Mapping[str, float]
    memory: int
    queries: int
    needed: int
    wanted: int
    sampled: float

    def to_json(self) -> dict[str, Any]:
        """Return every field by name."""
        return {**asdict(self), "parts": dict(self.parts)}


@dataclass(frozen=True)
class _Sample:
    """Seconds of an item: embedded, and of its statistics; batch of the sample's items."""

    embed: float
    statistics: float
    items: Data


def plan(
    task: What,
    encoder: Encoder,
    items: Data,
    *,
    scheme: Scheme | None = None,
    recipe: Distillation | None = None,
    size: int | None = None,
) -> Plan:
    """Return what a task will take, from a sample of some seconds.

    Args:
        task: "watermark", "steal" or "verify".
        encoder: Encoder that is marked or stolen, or as fast as which the suspect is.
        items: Items to mark with, to ask about, or to verify with.
        scheme: Scheme of the marking, or of the key that is verified; the exact scheme unless given.
        recipe: How the surrogate learns, for "steal".
        size: Height and width of the surrogate's images in pixels; those of the encoder unless given.

    Raises:
        UsageError: There are too few items to tell, or no plan is made of this scheme.
    """
    begun, chosen = time.process_time(), scheme or Exact()
    sample = _sampled(encoder, items, statistics=isinstance(chosen, Exact) and task != "steal")
    if task == "steal":
        parts, memory, sizes = _theft(encoder, items, sample, recipe or Distillation(), size)
    elif isinstance(chosen, Exact):
        do = _marking if task == "watermark" else _test
        parts, memory, sizes = do(encoder, items, sample, chosen)
    elif isinstance(chosen, CuredSSLGuard):
        do_cured = _cured_marking if task == "watermark" else _cured_test
        parts, memory, sizes = do_cured(encoder, items, sample, chosen)
    else:
        raise UsageError(f"no plan is made of the scheme {chosen.name} with these losses: choose exact, or cured")
    queries, needed, wanted = sizes
    parts = {"start": _START, **parts}
    return Plan(
        task=task,
        encoder=encoder.source,
        data=items.spec,
        n_items=len(items),
        seconds=sum(parts.values()),
        parts=parts,
        memory=_peak() + memory,
        queries=queries,
        needed=needed,
        wanted=wanted,
        sampled=time.process_time() - begun,
    )


_Parts = tuple[dict[str, float], int, tuple[int, int, int]]


def _marking(encoder: Encoder, items: Data, sample: _Sample, scheme: Exact) -> _Parts:
    first, width = min(len(items), GEOMETRY_ITEMS), encoder.dim
    test, memory = _arithmetic(width, first)
    parts = {"embedding": first * (sample.embed + sample.statistics), "arithmetic": test}
    if scheme.mode == "head" and usual_formats(encoder):
        parts |= {"writing the head": _EXPORT}
    if scheme.mode == "distilled":
        task = DistilMark(scheme, encoder, encoder, sample.items, 1.0)
        step, grown = _step(task, sample, scheme.batch_size)
        parts |= {"training": scheme.steps * step}
        memory += grown
    return parts, memory + 3 * 8 * first * (width + N_IMAGE), (0, 10, _ENOUGH[scheme.mode])


def _test(encoder: Encoder, items: Data, sample: _Sample, scheme: Exact) -> _Parts:
    queries = scheme.protocol.asks(len(items))
    test, memory = _arithmetic(encoder.dim, queries)
    parts = {"suspect": queries * sample.embed, "clean encoder": queries * (sample.embed + sample.statistics)}
    return {**parts, "arithmetic": test}, memory, (queries, scheme.protocol.n_queries, scheme.protocol.n_queries)


def _cured_marking(encoder: Encoder, items: Data, sample: _Sample, scheme: CuredSSLGuard) -> _Parts:
    # Its own step asks F about the plain images alone: this one, which asks about all, takes a little longer.
    both = scheme.batch_size + scheme.trigger_batch
    task = DistilMark(Exact(), encoder, encoder, sample.items, 1.0)
    step, grown = _step(task, sample, both)
    parts = {"embedding": min(len(items), 4096) * sample.embed, "decoder": scheme.law_steps * _LAW}
    return {**parts, "training": scheme.steps * step}, grown, (0, scheme.batch_size, len(items))


def _cured_test(encoder: Encoder, items: Data, sample: _Sample, scheme: CuredSSLGuard) -> _Parts:  # noqa: ARG001
    queries = 2 * scheme.n_queries
    return {"suspect": queries * sample.embed}, 0, (queries, scheme.n_queries, scheme.n_queries)


def _theft(encoder: Encoder, items: Data, sample: _Sample, recipe: Distillation, size: int | None) -> _Parts:
    student = new_student(recipe, encoder, items, seed=0, width=encoder.dim, size=size)
    answers = embed_all(encoder, sample.items)
    task = DistillationTask(recipe, encoder, student, sample.items, answers=answers)
    step, grown = _step(task, sample, recipe.batch_size)
    parts = {"asking": len(items) * sample.embed, "training": recipe.steps * step}
    return parts, grown, (len(items), 1, len(items))


def _sampled(encoder: Encoder, items: Data, *, statistics: bool) -> _Sample:
    """Return the seconds of an item; the first batch is not counted, since it also warms the processor up."""
    if len(items) < 2:
        raise UsageError(f"{items.spec} holds one item, and a plan needs more to tell the time of one")
    size = min(len(items), encoder.together, 32)
    few = items.slice(0, min(len(items), _ITEMS))

    def timed(do: Callable[[Data], Any]) -> float:
        do(few.slice(0, size))
        begun, done = time.process_time(), 0
        while done < len(few) and (done == 0 or time.process_time() - begun < _SECONDS / 2):
            stop = min(len(few), done + size)
            do(few.slice(done, stop))
            done = stop
        return (time.process_time() - begun) / done

    embed = timed(lambda some: embed_all(encoder, some))
    return _Sample(embed, timed(lambda some: all_statistics(encoder, some)) if statistics else 0.0, few)


def _step(task: Task, sample: _Sample, batch_size: int) -> tuple[float, int]:
    """Return the CPU seconds of a training step, and the bytes that it takes beyond what was taken so far."""
    most = int(_SECONDS / (_STEPS * 4 * max(sample.embed, 1e-6)))
    size = max(2, min(batch_size, len(sample.items), most))
    before = _peak()
    history = run(task, Loop(1, size))
    first = history.cpu_seconds
    while history.steps < _STEPS and history.cpu_seconds < _SECONDS:
        history = run(task, Loop(_STEPS, size))
    share = batch_size / size
    return min(first, history.cpu_seconds / history.steps) * share, int((_peak() - before) * share)


def _arithmetic(width: int, n: int) -> tuple[float, int]:
    """Return the CPU seconds and bytes of a test of n answers of this width. Half of the time grows with n."""
    widths = list(_TESTS)
    seconds, memory = (
        float(np.exp(np.interp(np.log(width), np.log(widths), np.log([_TESTS[one][part] for one in widths]))))
        for part in (0, 1)
    )
    return seconds * (0.5 + 0.5 * n / _TESTED), int(memory * _GIB)


def _peak() -> int:
    """Return the most memory that this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
