"""What a command will take, before it runs: `plan`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from cyclopts import Parameter

from sslguard.cli.checks import check
from sslguard.cli.doctor import free_memory
from sslguard.cli.make import AnyPreset, SchemeName
from sslguard.cli.options import EMBEDDING, PRINTED, Count, Output, Running
from sslguard.cli.output import Result, command
from sslguard.schemes.registry import named_scheme, scheme_of
from sslguard.training.recipes import Distillation

_GB = 10**9


def plan(
    encoder: str,
    /,
    *,
    data: str,
    task: Literal["watermark", "steal", "verify"] = "watermark",
    scheme: Annotated[SchemeName | None, Parameter(show_default=lambda _: "exact")] = None,
    preset: Annotated[AnyPreset | None, Parameter(show_default=lambda _: "strong, or cured")] = None,
    mode: Literal["head", "distilled"] | None = None,
    steps: Count | None = None,
    arch: Annotated[str | None, Parameter(show_default=lambda _: "resnet-small; for texts bag-of-words")] = None,
    running: Running = EMBEDDING,
    output: Output = PRINTED,  # noqa: ARG001 - `main` reads it
) -> Result:
    """Tell time, memory, queries and items of a task before it runs, from a sample of some seconds.

    The time is that of one idle core. What then comes lies within a factor of two; programs beside it take their share.

    Args:
        encoder: The encoder that is to be marked or stolen. For a verification, one as fast as the suspect.
        data: Items to mark with, to ask about, or to verify with.
        task: The command that is planned.
        scheme: Scheme of the marking, or of the key of a verification.
        preset: Its settings, as watermark's.
        mode: Of the scheme exact: a head for an API, or distilled into the weights; the scheme's default is distilled.
        steps: Optimiser steps of the training, in place of the default.
        arch: Network of the surrogate.
        running: What encoders run on.
        output: How results are printed.
    """
    settings = {name: value for name, value in (("mode", mode), ("steps", steps)) if value is not None}
    scheme = scheme or scheme_of(preset)
    chosen = named_scheme(scheme, preset, {} if task == "steal" else settings)
    thief = Distillation() if steps is None else Distillation(steps=steps)
    check(encoders=[encoder], data=[data])

    from sslguard import api

    running.start()
    thief = thief if arch is None else replace(thief, architecture=arch)
    found = api.plan(encoder, data, task=task, scheme=chosen, recipe=thief)
    free = free_memory()
    rows = [
        ("task", f"{task} {encoder}"),
        ("time", f"{_time(found.seconds)} on one idle core"),
        *(("", f"{_time(value)} for {name}") for name, value in found.parts.items() if value >= 1),
        ("memory", f"{found.memory / _GB:.1f} GB" + ("" if free is None else f", of {free / _GB:.1f} that are free")),
        ("queries", f"{found.queries:,}"),
        ("items", _items(found.n_items, found.needed, found.wanted)),
        ("sampled", f"for {found.sampled:.1f} s"),
    ]
    fields = {**found.to_json(), "free_memory": free}
    return Result(fields, rows, next=_following(task, encoder, data, scheme, mode, steps))


def _items(n: int, needed: int, wanted: int) -> str:
    if n < needed:
        return f"{n:,}: too few, at least {needed:,} are needed"
    return f"{n:,}" + (f"; {wanted:,} are better" if n < wanted else f", of which {needed:,} are needed")


def _following(task: str, encoder: str, data: str, scheme: str, mode: str | None, steps: int | None) -> str:
    """Return the command that was planned."""
    few = () if steps is None else ("--steps", steps)
    if task == "watermark":
        how = () if mode is None else ("--mode", mode)
        return command("watermark", encoder, "--data", data, "--scheme", scheme, *how, *few, "--out", "marked")
    if task == "steal":
        return command("steal", encoder, "--data", data, *few, "--out", "stolen")
    return command("verify", "KEY", encoder, "--data", data)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
