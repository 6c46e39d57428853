"""Attacks by name: every entry comes back from its own description, and keeps the contract of its kind."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from sslguard.attacks.base import Attack, Mapping, Wrapping
from sslguard.attacks.registry import ATTACKS, build, describe
from sslguard.attacks.removal import FineTune, Overwrite, SelfSupervised
from sslguard.attacks.stealing import Distil
from sslguard.data.specs import open_data
from sslguard.encoders.load import load_encoder
from sslguard.errors import UsageError
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.sslguard.scheme import CuredSSLGuard, SSLGuard
from sslguard.training.augmentation import Augmentation
from sslguard.training.distillation import Distillation
from sslguard.training.supervised import Supervised

MARKING = {
    "scheme": "sslguard", "steps": 2, "batch_size": 4, "trigger_batch": 4, "decoder_hidden": [12, 10],
    "secret_dim": 6, "n_verification": 10, "n_queries": 8,
}  # fmt: skip
BRIEF = {"steps": 2, "batch_size": 8}
STUDENT = {"recipe": {"architecture": "resnet-narrow", **BRIEF}}
# Settings that are small, and none of the defaults where that costs nothing.
SETTINGS = {
    "distil": {"recipe": {**STUDENT["recipe"], "architecture": "vit-small"}},
    "cont-steal": STUDENT,
    "stolen-encoder": STUDENT,
    "rda": STUDENT,
    "fine-tune": {"recipe": {"layers": "last", **BRIEF}},
    "lora": {"recipe": BRIEF, "rank": 2},
    "soup": {"recipe": BRIEF, "copies": 3},
    "self-supervised": {"recipe": {**BRIEF, "projection": 8}},
    "overwrite": {"scheme": MARKING},
    "prune": {"amount": 0.3, "scope": "layer"},
    "prune-filters": {"amount": 0.3},
    "quantise": {"bits": 4},
    "weight-noise": {"std": 0.2},
    "input-noise": {"std": 0.1, "seed": 3},
    "edit-images": {"edit": "jpeg", "strength": 20},
    "edit-texts": {"edit": "drop", "share": 0.5},
    "smoothed": {"by": {"attack": "edit-images", "edit": "crop", "strength": 0.7}, "copies": 3},
    "output-noise": {"std": 0.1},
    "edit-answers": {"edit": "pad", "amount": 3},
    "average-with": {"others": ["random:resnet-narrow:7"]},
    "linear-map": {"condition": 10, "rectify": True},
    "leading-components": {"components": 5},
    "sign-bits": {},
    "product-quantise": {"parts": 3, "codewords": 8, "seed": 2},
    "classify": {"output": "labels"},
    "subtract-features": {"components": 3, "features": 20},
    "subtract-statistics": {"ridge": 0.1},
    "project-onto": {"encoder": "random:resnet-narrow:7"},
    "cse": {"encoder": "random:resnet-narrow:7", "components": 5, "clusters": 2},
    "remove-triggers": {"triggers": 2, "steps": 3, "batch_size": 8},
    "filter-queries": {"kept": 0.6, "instead": "nothing"},
}


@pytest.fixture
def texts(tmp_path):
    """An untrained encoder of texts, and nine of them."""
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    (tmp_path / "nine.txt").write_text("".join(" ".join(words[: k + 1]) + "\n" for k in range(9)))
    return load_encoder("random:bag-of-words"), open_data(f"text:{tmp_path}/nine.txt")


def test_every_attack_has_its_settings_here():
    assert set(SETTINGS) == set(ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
def test_comes_back_from_its_description(name):
    attack = build(name, SETTINGS[name])
    assert type(attack) is ATTACKS[name]
    told = json.loads(json.dumps(describe(attack), allow_nan=False))
    assert told.pop("attack") == name
    assert build(name, told) == attack
    for key, value in SETTINGS[name].items():
        assert told[key] == value or isinstance(value, dict)


@pytest.mark.parametrize("name", ATTACKS)
def test_keeps_the_contract_of_its_kind(name, images, tiny, texts, hashed, untouched_rng):
    attack = build(name, SETTINGS[name])
    victim, data = texts if name == "edit-texts" else (tiny(1), images(24, classes=3))
    before, record, batch = hashed(victim), dict(victim.record), data.take(range(9))
    first, again = (applied(attack, victim, data) for _ in range(2))
    answers = first.embed(batch)
    assert hashed(victim) == before
    assert victim.record == record
    assert answers.shape == (9, first.dim)
    assert np.isfinite(answers).all()
    np.testing.assert_array_equal(again.embed(batch), answers)
    assert answers.shape != victim.embed(batch).shape or not np.array_equal(answers, victim.embed(batch))
    json.dumps(first.record, allow_nan=False)


def applied(attack: Attack, victim, data):
    if isinstance(attack, Wrapping):
        return attack(victim)
    return attack(victim, data) if isinstance(attack, Mapping) else attack(victim, data, seed=5)


def test_tables_start_from_the_attack_s_own_defaults():
    assert build("self-supervised", {"recipe": {"steps": 7}}) == SelfSupervised(
        replace(SelfSupervised().recipe, steps=7)
    )
    assert build("distil", {"recipe": {"augmentation": {"flip": 1}}}) == Distil(
        Distillation(augmentation=Augmentation(flip=1.0))
    )
    assert build("fine-tune", {"epochs": 2, "recipe": {"layers": "last"}}) == FineTune(Supervised(layers="last"), 2.0)


@pytest.mark.parametrize(
    ("table", "scheme"),
    [
        ({"scheme": "sslguard", "decoder_hidden": [8]}, SSLGuard(decoder_hidden=(8,))),
        ({"scheme": "sslguard-cured", "steps": 3}, CuredSSLGuard(steps=3)),
        ({"scheme": "exact", "protocol": {"rank": 2}}, Exact(Protocol(rank=2))),
    ],
)
def test_overwrites_by_any_scheme(table, scheme):
    attack = build("overwrite", {"scheme": table})
    assert attack == Overwrite(scheme)
    told = describe(attack)
    assert build(told.pop("attack"), told) == attack


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pruning", {}, r"attack must be one of distil, .*prune.*, not 'pruning'"),
        ("prune", {"amuont": 0.3}, "prune has no setting 'amuont'; known: amount, scope"),
        ("prune", {"amount": "half"}, "prune.amount must be a finite number, not 'half'"),
        ("prune", {"amount": True}, "prune.amount must be a finite number, not True"),
        ("prune", {"amount": float("nan")}, "prune.amount must be a finite number, not nan"),
        ("prune", {"amount": 2}, "^prune.amount must be above 0 and below 1, not 2.0"),
        ("prune", {"scope": "all"}, "prune.scope must be one of global, layer, not 'all'"),
        ("prune", 0.3, "prune must be a table of settings, not 0.3"),
        ("input-noise", {}, "input-noise needs a value for std"),
        ("distil", {"recipe": {"steps": 2.5}}, "distil.recipe.steps must be a whole number, not 2.5"),
        ("distil", {"recipe": {"augmentation": {"spin": 1}}}, "distil.recipe.augmentation has no setting 'spin'"),
        ("distil", {"recipe": None}, "distil.recipe must be a table of settings, not None"),
        ("overwrite", {"scheme": "exact"}, "overwrite.scheme must be a table with a name under scheme, not 'exact'"),
        (
            "overwrite",
            {"scheme": {"scheme": "x"}},
            "scheme.scheme must be one of sslguard, sslguard-cured, .*exact, .*rotation, not 'x'",
        ),
        ("overwrite", {"scheme": {"scheme": "sslguard", "decoder_hidden": 8}}, "decoder_hidden must be a list, not 8"),
    ],
)
def test_refuses_what_makes_no_attack(name, settings, message):
    with pytest.raises(UsageError, match=message):
        build(name, settings)


def test_tells_only_of_what_it_knows():
    class Mine(Wrapping):
        def __call__(self, victim):
            return victim

    with pytest.raises(UsageError, match="Mine has no name in the registry"):
        describe(dataclass(frozen=True)(Mine)())
