"""Targets: what counts, what is met, and what is only not done yet."""

from __future__ import annotations

from typing import Any

import pytest

from sslguard.bench.config import Config, Target
from sslguard.bench.rows import Row
from sslguard.bench.tables import targets_table
from sslguard.bench.targets import Result, results
from sslguard.errors import UsageError

FOUND = Target("found", "log2_pvalue", at_most=-6.6, kept=0.9)


def row(**given: Any) -> Row:
    """A row of which only some is known."""
    whole = {**dict.fromkeys(Row.__dataclass_fields__), "kind": "attack", "encoder": "e", "scheme": "s", "attack": "a"}
    whole |= {"suspect": "a", "seed": 0, "cell": "c", "kept": 0.95, "log2_pvalue": -7.0}
    return Row(**{**whole, **given})


def result(target: Target, *rows: Row, undone: Any = ()) -> Result:
    (found,) = results(Config(targets=(target,)), rows, undone)
    return found


@pytest.mark.parametrize(
    ("pvalues", "undone", "verdict"),
    [
        ([-7.0], 0, "met"),
        ([-7.0], 2, "open: 2 cells are not done"),
        ([-7.0, -6.0], 2, "not met"),
        ([-6.0], 0, "not met"),
        ([None], 0, "not met"),
        ([], 3, "open: 3 cells are not done"),
        ([], 0, "nothing counts"),
    ],
)
def test_a_target_is_met_only_when_nothing_is_missing(pvalues: list[float], undone: int, verdict: str) -> None:
    about = {"group": "attack", "encoder": "e", "scheme": "s", "attack": "a"}
    left = [*[about] * undone, {**about, "group": "twin"}]
    rows = [row(log2_pvalue=value, cell=str(number)) for number, value in enumerate(pvalues)]
    assert result(FOUND, *rows, undone=left).verdict == verdict


@pytest.mark.parametrize(
    ("kept", "share", "won"),
    [(0.9, 1.0, True), (0.8999, 0.1, False), (1.2, 1.01, False), (1.0, None, True), (None, 0.1, False)],
)
def test_an_attack_counts_by_keeping_enough_at_a_fair_price(kept: float | None, share: float | None, won: bool) -> None:
    found = result(FOUND, row(kept=kept, share=share, log2_pvalue=0.0))
    assert (found.verdict == "not met") is won
    assert len(found.values) == won


def test_what_cannot_be_attacked_does_not_count_and_what_cannot_be_scored_fails() -> None:
    assert result(FOUND, row(refused="no weights", accuracy=None)).verdict == "nothing counts"
    unscored = row(refused="of another width", accuracy=0.5, log2_pvalue=None)
    assert result(FOUND, unscored).verdict == "not met"


def test_negatives_are_the_same_attacks_on_the_clean_encoder_whatever_they_keep() -> None:
    target = Target("found", "log2_pvalue", at_most=-6.6, kept=0.9, attacks=("a*",))
    twins = [
        row(kind="innocent", suspect="twin of a", kept=None, log2_pvalue=value, cell=f"t{value}") for value in (-7, -1)
    ]
    other = row(kind="innocent", suspect="twin of b", attack="b", log2_pvalue=-7.0)
    member = row(kind="innocent", suspect="random-1", attack="", log2_pvalue=-7.0)
    found = result(target, row(), *twins, other, member)
    assert found.negatives == (1, 2)
    assert targets_table([found]).rows == (("found", "1 of 1, the worst -7", "1 of 2", "met"),)


def test_a_mean_is_bounded_encoder_by_encoder() -> None:
    target = Target("kept", "kept", kind="protected", at_least=0.99, mean=True)
    kept = {"e": (1.0, 0.99), "f": (1.02, 0.9)}
    rows = [row(kind="protected", attack="", encoder=e, kept=k, cell=f"{e}{k}") for e in kept for k in kept[e]]
    found = result(target, *rows)
    assert found.values == {"s, e": pytest.approx(0.995), "s, f": pytest.approx(0.96)}
    assert (found.met, found.verdict) == (1, "not met")
    assert targets_table([found]).rows[0][1] == "s, e 0.995; s, f 0.96"


def test_innocents_of_all_kinds_are_bounded_from_above() -> None:
    target = Target("none", "watermark_rate", kind="innocent", at_most=0.1)
    rows = [row(kind="innocent", suspect=str(n), watermark_rate=rate) for n, rate in enumerate((0.0, 0.1))]
    found = result(target, *rows, undone=[{"group": "null", "encoder": "e", "scheme": "s"}])
    assert found.verdict == "open: 1 cells are not done"
    assert result(target, *rows, row(kind="innocent", suspect="x", watermark_rate=0.11)).verdict == "not met"


@pytest.mark.parametrize(("column", "message"), [("beauty", "no column 'beauty'"), ("cell", "holds no numbers")])
def test_columns_that_hold_no_numbers_are_refused(column: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        result(Target("a", column, at_least=1), row())
