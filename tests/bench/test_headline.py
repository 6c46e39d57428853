"""What a results page says first is counted from its rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sslguard.bench.config import AttackEntry, Config, SchemeEntry, Step
from sslguard.bench.headline import kind_of, kinds_table, points, sentences
from sslguard.bench.rows import Row


def entry(*steps: str, **settings: str) -> AttackEntry:
    return AttackEntry("held-out", tuple(Step(name, settings=settings) for name in steps))


@pytest.mark.parametrize(
    ("steps", "settings", "kind"),
    [
        (["fine-tune"], {}, "changed weights"),
        (["lora", "prune"], {}, "changed weights"),
        (["sign-bits"], {}, "changed answers"),
        (["fine-tune", "output-noise"], {}, "changed answers"),
        (["distil"], {}, "copy"),
        (["distil", "fine-tune"], {}, "copy"),
        (["distil", "linear-map"], {}, "copy, changed answers"),
        (["classify"], {"output": "probabilities"}, "logits, probabilities"),
        (["distil", "classify"], {}, "logits, probabilities"),
        (["distil", "classify"], {"output": "labels"}, "labels"),
    ],
)
def test_every_attack_leaves_one_kind_of_suspect(steps: list[str], settings: dict[str, str], kind: str) -> None:
    assert kind_of(entry(*steps, **settings)) == kind


def row(kind: str, attack: str, bits: float, kept: float | None, seed: int = 0, **more: object) -> Row:
    given = Row(
        kind=kind, encoder="one", scheme="mark", seed=seed, attack=attack, set="held-out", suspect=attack, cell="",
        date="", config="", kept=kept, log2_pvalue=-min(bits, 256.0), uncapped_bits=bits, floor_log2=-256.0,
        statistic=bits, attack_seconds=20.0, thief_queries=1000,
    )  # fmt: skip
    return replace(given, **more)


@pytest.fixture
def config() -> Config:
    return Config(
        schemes={"nothing": SchemeEntry("exact"), "mark": SchemeEntry("exact")},
        attacks={"stolen": entry("distil"), "tuned": entry("fine-tune")},
        seeds=(0, 1),
    )


def test_the_sentences_count_what_keeps_its_accuracy(config: Config) -> None:
    rows = [
        row("attack", "stolen", 300, 0.95),
        row("attack", "stolen", 100, 0.93, seed=1),
        row("attack", "tuned", 3, 1.2),
        row("attack", "tuned", 5, 1.1, seed=1),
        row("attack", "tuned", 1, 0.89),  # keeps too little
        row("innocent", "", 2.5, None),
        row("innocent", "stolen", 7, 0.95),  # accused, as chance has it
    ]
    found, worst, innocents = sentences(config, rows)
    assert "Of 4 suspects" in found
    assert "marked by mark" in found
    assert "2 are called derived at a false-claim rate of 0.01" in found
    assert "half of them show 52 bits or more" in found
    assert "“tuned” on one, leaves 3.0 bits (3.0 to 5.0 over 2 seeds), at the price of 20 CPU s, 1,000 queries" in worst
    assert "Of 2 innocents under mark" in innocents
    assert "1 is called derived" in innocents
    assert "7.0 bits" in innocents
    table = kinds_table(config, rows)
    assert table.rows == (("mark", "3, 4 (2)", "–", "100, 200 (2)", "–", "–", "–"),)
    assert points(rows[:2]) == [(pytest.approx(0.94), 200, 100, 300)]


def test_nothing_is_said_where_nothing_counts(config: Config) -> None:
    rows = [row("attack", "stolen", 300, 0.5), row("innocent", "", 2.5, None)]
    assert sentences(config, rows) == []
    assert kinds_table(config, rows).rows == ()


def test_ranks_are_called_ranks(config: Config) -> None:
    ranked = {"uncapped_bits": None}
    rows = [row("attack", "stolen", 6, 0.95, **ranked), row("innocent", "", 1, None, **ranked)]
    assert "ranks among 1 innocents" in sentences(config, rows)[-1]
