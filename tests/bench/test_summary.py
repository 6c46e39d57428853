"""What rows say together: ranks, shares, the hardest attack, false claims."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sslguard.bench.config import parse_config
from sslguard.bench.rows import Row, _pruned, ranked
from sslguard.bench.summary import Interval, average, hardest, outcomes, published, roc, share
from sslguard.bench.tables import all_tables, costs_table, innocents_table, keys_table

RATES = (math.log2(0.1), -64.0)


def row(kind: str, statistic: float | None = 1.0, **given: Any) -> Row:
    plain: dict[str, Any] = dict.fromkeys(Row.__dataclass_fields__)
    plain |= {
        "encoder": "e",
        "scheme": "s",
        "seed": 0,
        "attack": "",
        "set": "held-out",
        "suspect": "x",
        "family": "x",
        "asked": 5,
    }
    return Row(**{**plain, "kind": kind, "statistic": statistic, **given})


def attack(name: str, statistic: float | None, kept: float | None = 0.95, **given: Any) -> Row:
    return row("attack", statistic, attack=name, kept=kept, accuracy=kept, attack_seconds=3.0, **given)


def innocents(n: int) -> list[Row]:
    return [row("innocent", float(k), suspect=str(k), family=str(k)) for k in range(n)]


def test_ranks_are_among_innocents_of_the_same_key_without_the_suspect() -> None:
    other = [row("innocent", 99.0, seed=1)]
    rows = ranked([attack("a", 17.5), attack("b", 50.0), *innocents(19), *other])
    # (1 + 1) / (1 + 19): one innocent, 18, stands above 17.5; those of the other key count for nothing.
    assert [2 ** (r.log2_pvalue or 0) for r in rows[:2]] == pytest.approx([0.1, 0.05])
    least = next(r for r in rows if r.suspect == "18" and r.kind == "innocent")
    assert 2 ** (least.log2_pvalue or 0) == pytest.approx(1 / 19)
    assert rows[-1].log2_pvalue is None
    assert [rows[0].detected(rate) for rate in RATES] == [True, None]


def test_exact_pvalues_are_left_as_they_are() -> None:
    exact = attack("a", 70.0, log2_pvalue=-70.0, floor_log2=-256.0)
    (found, *_) = ranked([exact, *innocents(5)])
    assert found == exact
    assert [found.detected(rate) for rate in (*RATES, -128.0)] == [True, True, False]


def test_the_hardest_attack_keeps_the_accuracy_and_leaves_the_least() -> None:
    rows = [
        attack("strong", 0.0, log2_pvalue=-3.0, floor_log2=-256.0, kept=0.92),
        attack("ruinous", 0.0, log2_pvalue=-0.1, floor_log2=-256.0, kept=0.4),
        attack("weak", 0.0, log2_pvalue=-90.0, floor_log2=-256.0),
        attack("impossible", None, kept=None, refused="no weights"),
    ]
    strongest = hardest(rows, "s")
    assert strongest is not None
    assert (strongest.attack, strongest.bits) == ("strong", 3.0)
    assert {one.attack: one.n for one in outcomes(rows, RATES)}["impossible"] == 0
    assert getattr(hardest(rows, "s", 0.3), "attack", "") == "ruinous"
    beyond = attack("beyond", None, refused="another width")
    assert getattr(hardest([*rows, beyond], "s"), "attack", "") == "beyond"
    assert hardest(rows, "other") is None
    # What no null ranks yet is no evidence of anything; one encoder of several may be the weak one.
    unranked, elsewhere = attack("unranked", 0.5), attack("weak", 0.0, encoder="f", log2_pvalue=-1.0, floor_log2=-256.0)
    found = hardest([*rows, unranked, elsewhere], "s")
    assert found is not None
    assert (found.attack, found.encoder) == ("weak", "f")


def test_innocents_of_one_family_count_once_by_the_largest() -> None:
    copies = [row("innocent", 30.0 + k, suspect=f"copy {k}", family="made one") for k in range(10)]
    low, high, *rest = ranked([attack("a", 35.0), attack("b", 50.0), *innocents(8), *copies])
    assert [2 ** (r.log2_pvalue or 0) for r in (low, high)] == pytest.approx([2 / 10, 1 / 10])
    # A copy is no control of its own family: 39 is the largest, and stands among 8 strangers alone.
    assert 2 ** (rest[-1].log2_pvalue or 0) == pytest.approx(1 / 9)
    beyond = ranked([attack("c", None, refused="another width"), *innocents(8), *copies])[0]
    assert [beyond.detected(rate) for rate in (math.log2(0.2), *RATES)] == [False, False, None]


def test_tables_name_what_hurts_most_with_embeddings_left_and_count_what_was_found() -> None:
    step = {"set": "held-out", "steps": [{"attack": "distil"}]}
    classified = {**step, "steps": [{"attack": "distil"}, {"attack": "classify"}]}
    config = parse_config(
        {
            "encoders": {"e": {"load": "shipped:simclr", "bed": "images"}},
            "schemes": {"s": {"scheme": "exact"}},
            "attacks": {"stolen": step, "rotated": step, "logits": classified},
            "seeds": [0, 1],
            "rates": ["1e-2", "2^-64"],
        }
    )
    assert [entry.one_task for entry in config.attacks.values()] == [False, False, True]
    rows = [
        attack(name, 0.0, seed=seed, log2_pvalue=p, floor_log2=-256.0, kept=kept)
        for seed, second in ((0, 0.0), (1, 40.0))
        for name, p, kept in (("stolen", -99.0, 0.95), ("rotated", -50.0 - second, 0.8), ("logits", -1.0, 0.95))
    ]
    hurts, *_, grid = all_tables(config, rows)
    assert [line[:4] for line in hurts.rows] == [
        ("s", "any", "90 %", "logits"),
        ("s", "embeddings", "90 %", "stolen"),
        ("s", "embeddings", "75 %", "rotated"),
    ]
    assert [line[1].partition(";")[0] for line in grid.rows] == ["2/2 2/2", "2/2 1/2", "0/2 0/2"]
    # Wilson's ends at p = 1, n = 2: n/(n + z²), z = 1.959964.
    assert "2/2 is 34 to 100 %" in grid.note
    assert "1/2 is 9 to 91 %" in grid.note


def test_several_seeds_give_a_mean_and_an_interval() -> None:
    rows = [
        attack("a", 0.0, kept=kept, seed=seed, log2_pvalue=p, floor_log2=-256.0)
        for seed, (kept, p) in enumerate([(0.90, -80.0), (0.94, -80.0), (0.98, -1.0)])
    ]
    (found,) = outcomes(rows, RATES)
    first, second = found.detected
    assert first is not None
    assert second is not None
    assert first.value == second.value == pytest.approx(2 / 3)
    # (p + z²/2n ± z·√(p(1−p)/n + z²/4n²))/(1 + z²/n) with p = 2/3, n = 3, z = 1.959964.
    assert (first.low, first.high) == pytest.approx((0.2076597, 0.9385081), abs=1e-6)
    # 0.94 ± 4.302653·0.04/√3, the quantile of Student's t with 2 degrees of freedom.
    assert found.kept is not None
    assert (found.kept.low, found.kept.high) == pytest.approx((0.8406345, 1.0393655), abs=1e-6)
    assert (share(1, 1).low, average([0.5]).low) == (None, None)


def test_false_claims_count_exact_pvalues_and_published_ones() -> None:
    exact = [
        row("innocent", 0.0, scheme="exact", log2_pvalue=p, floor_log2=-256.0, uncapped_bits=-p) for p in (-1.0, -8.0)
    ]
    peers = [row("innocent", 0.0, published_log2_pvalue=p) for p in (-20.0, -0.5, -0.1, -0.2)]
    unscored = row("innocent", None, refused="another width")
    ours, theirs = innocents_table([*exact, *ranked([*peers, unscored])], RATES).rows
    # Scheme, innocents, families, not scorable, claimed at each rate, least p, published test. 2 · 2^-8 = 0.0078.
    assert ours == ("exact", "2", "1", "0", "1", "0", "2^-8.0, corrected 0.0078", "–")
    assert theirs == ("s", "4", "1", "1", "by rank", "by rank", "–", "25 %")
    assert published(peers) == Interval(0.25)


def test_what_was_only_pruned_is_of_its_encoders_family() -> None:
    found = _pruned(("shipped",))
    assert found["pruned-moco-20"] == "clean shipped:moco"
    assert len(found) == 9


def test_innocents_of_one_key_are_no_independent_draws_of_a_published_test() -> None:
    """The share is given by key: an interval over all rows would tell of neither."""
    rows = [
        row("innocent", 0.0, encoder=encoder, published_log2_pvalue=p)
        for encoder, pvalues in (("e", (-20.0, -0.1, -0.1, -0.1)), ("f", (-9.0, -9.0)))
        for p in pvalues
    ]
    assert published(rows) == Interval(0.5, 0.25, 1.0)


def test_each_key_is_shown_beside_its_own_innocents() -> None:
    rows = [
        row("protected", 7.0),
        row("protected", 3.0, encoder="f"),
        *innocents(5),
        *(row("innocent", v, encoder="f", published_log2_pvalue=p) for v, p in ((0.1, -20.0), (0.3, -1.0))),
        row("innocent", None, encoder="f", refused="another width"),
    ]
    one, other = keys_table(rows).rows
    # Scheme, encoder, seed, its own, median, largest, published test, least p of that test.
    assert one == ("s", "e", "0", "7.000", "2.000", "4.000", "–", "–")
    assert other == ("s", "f", "0", "3.000", "0.200", "0.300", "50 %", "2^-20")
    assert keys_table([row("protected", 7.0)]).rows == ()


def test_the_roc_counts_attacks_that_keep_the_accuracy() -> None:
    rows = [attack("a", 9.5), attack("b", 4.5), attack("ruined", -1.0, kept=0.1), *innocents(10)]
    found = roc(rows, "s")
    assert found is not None
    # None of ten reaches 9.5, and five 4.5: ranks of 1/11 and 6/11.
    np.testing.assert_allclose(found, [[0, 1 / 11, 6 / 11, 1], [0, 0.5, 1, 1]])
    assert roc(innocents(3), "s") is None


def test_costs_are_those_of_protecting() -> None:
    rows = [row("protected", mark_seconds=4.0, kept=0.99, log2_pvalue=-7.0), attack("a", 1.0)]
    assert costs_table(rows).rows == (("s", "4.0", "99 %", "5.0", "7.0"),)
