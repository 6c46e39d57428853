"""What a plan says of a task: parts, counts, refusals. How near it comes is recorded by benchmarks/planning.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.command_line import done, sslguard
from sslguard import api
from sslguard.errors import UsageError
from sslguard.planning import Plan
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.sslguard.scheme import CuredSSLGuard, SSLGuard
from sslguard.training.recipes import Distillation

SMALL = "random:resnet-narrow@16"


def plan(pictures, **more) -> Plan:
    return api.plan(SMALL, pictures, **more)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (300, 1, 16, 16), dtype=np.uint8)


def test_the_time_of_a_marking_grows_with_its_steps_and_a_head_needs_none(pictures):
    head = plan(pictures, scheme=Exact(mode="head"))
    few, many = (plan(pictures, scheme=Exact(steps=steps)) for steps in (1000, 100_000))
    assert "training" not in head.parts
    assert many.parts["training"] > 20 * few.parts["training"] > 0
    for one in (head, few, many):
        assert one.seconds == pytest.approx(sum(one.parts.values()))
        assert min(one.parts.values()) >= 0
        assert one.sampled < 10
        assert one.memory > 1e8
        assert (one.queries, one.n_items, one.needed) == (0, 300, 10)


def test_a_theft_asks_every_item_and_a_verification_as_many_as_its_protocol(pictures):
    theft = plan(pictures, task="steal", recipe=Distillation(architecture="resnet-narrow"))
    assert (theft.queries, set(theft.parts)) == (300, {"start", "asking", "training"})
    scheme = Exact()
    few = replace(scheme, protocol=replace(scheme.protocol, n_queries=100))
    assert plan(pictures, task="verify", scheme=few).queries == few.protocol.asks(300) == 300
    short = plan(pictures, task="verify", scheme=scheme)
    assert (short.n_items, short.needed) == (300, 500)
    assert plan(pictures, task="verify", scheme=CuredSSLGuard()).queries == 1024


def test_the_cured_scheme_is_planned_and_the_published_losses_are_not(pictures):
    assert plan(pictures, scheme=CuredSSLGuard()).parts["training"] > 0
    with pytest.raises(UsageError, match="choose exact, or cured"):
        plan(pictures, scheme=SSLGuard())
    with pytest.raises(UsageError, match="holds one item"):
        plan(pictures[:1])


def test_the_command_says_what_comes_next(pictures, tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", pictures)
    monkeypatch.chdir(tmp_path)
    command = ("plan", SMALL, "--data", "x.npy[0:200]", "--mode", "head")
    said = done(*command)
    assert said["task"] == "watermark"
    assert said["seconds"] > 0
    last = sslguard(*command).out.splitlines()[-1]
    assert last.split(maxsplit=1)[1] == (
        f"sslguard watermark {SMALL} --data 'x.npy[0:200]' --scheme exact --mode head --out marked"
    )
    few = sslguard("plan", SMALL, "--data", "x.npy", "--task", "verify").out
    assert "300: too few, at least 500 are needed" in few
    assert sslguard("plan", SMALL, "--data", "x.npy", "--task", "sell").code == 2


RECORDED = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "planning.json").read_text())


@pytest.mark.parametrize("encoder", ["shipped:simclr", "shipped:moco"])
def test_recorded_plans_lie_within_a_factor_of_two_of_what_came(encoder):
    cases = RECORDED["encoders"][encoder]
    assert len(cases) == 5
    for name, found in cases.items():
        assert found["sample_seconds"] <= 10, name
        for what in ("seconds", "memory_gb"):
            assert 0.5 <= found[f"foretold_{what}"] / found[what] <= 2, (name, what)
