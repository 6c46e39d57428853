"""The benchmark of the whole scheme: cells that are done once, and tables that say what is there and what is not."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import whole
from cells import Cell, chosen, path_of, read_cells, run_cells
from whole_plan import FULL, QUICK, make_plan
from whole_rows import Rate, Row, Scored, false_claims, gather, mean_and_bound, null_rows, scored
from whole_tables import page
from whole_targets import Target, targets
from whole_work import SEED, Joined

from sslguard.controls import population


def cell(name: str, *needs: str, group: str = "g", **args: Any) -> Cell:
    return Cell(name, group, "f", args, needs)


def toy(given: Cell) -> dict[str, Any]:
    """Work that fails, dies, or says who did it."""
    if given.args.get("fail"):
        raise ValueError("no luck")
    if given.args.get("die"):
        os._exit(3)
    return {"process": os.getpid()}


def nothing() -> None:
    """Needs no preparation."""


# The runner.


def run(cells: list[Cell], out: Path, workers: int = 1) -> Any:
    lines: list[str] = []
    outcome = run_cells(cells, out, toy, workers=workers, prepare=nothing, say=lines.append)
    assert len(lines) == 1 + len(outcome.done) + len(outcome.failed)
    return outcome


def test_cells_run_in_order_once_their_needs_are_done(tmp_path: Path) -> None:
    plan = [cell("last", "first", "second"), cell("first", "second"), cell("second"), cell("free")]
    assert run(plan, tmp_path).done == ["second", "first", "last", "free"]
    assert run(plan, tmp_path).done == []
    path_of(tmp_path, "first").unlink()
    assert run(plan, tmp_path).done == ["first"]


def test_a_failing_cell_stops_only_those_that_need_it(tmp_path: Path) -> None:
    plan = [cell("bad", fail=True), cell("needy", "bad"), cell("needier", "needy"), cell("good")]
    outcome = run(plan, tmp_path)
    assert outcome.done == ["good"]
    assert "no luck" in outcome.failed["bad"]
    assert outcome.skipped == {"needy": "needs bad", "needier": "needs needy"}
    assert not path_of(tmp_path, "bad").exists()


def test_a_process_that_dies_is_a_failed_cell_and_the_rest_goes_on(tmp_path: Path) -> None:
    plan = [cell("one"), cell("deadly", "one", die=True), cell("two", "one"), cell("three", "two")]
    outcome = run(plan, tmp_path, workers=2)
    assert "deadly" in outcome.failed
    # Whatever ran beside it died with its pool; nothing else is lost.
    assert set(outcome.done) | set(outcome.failed) | set(outcome.skipped) == {c.name for c in plan}
    assert set(run([c for c in plan if c.name != "deadly"], tmp_path).done) | set(outcome.done) == {
        "one",
        "two",
        "three",
    }
    processes = {read_cells(tmp_path, plan)[0][name]["result"]["process"] for name in ("one",)}
    assert os.getpid() not in processes


def test_cells_of_other_arguments_and_what_was_made_from_them_are_foreign(tmp_path: Path) -> None:
    plan = [cell("late", "middle"), cell("middle", "early"), cell("early", steps=(1, 2)), cell("other")]
    run(plan, tmp_path)
    assert read_cells(tmp_path, plan)[1] == []
    changed = [*plan[:2], cell("early", steps=(1, 3)), plan[3]]
    found, foreign = read_cells(tmp_path, changed)
    assert foreign == ["early", "late", "middle"]
    assert set(found) == {"other"}


def test_a_group_brings_what_it_needs_and_nothing_else() -> None:
    plan = [cell("a", "b", group="x"), cell("b", "c", group="y"), cell("c", group="z"), cell("d", group="z")]
    assert [c.name for c in chosen(plan, ["x"])] == ["a", "b", "c"]
    assert [c.name for c in chosen(plan, [])] == ["a", "b", "c", "d"]


# The plan.


@pytest.mark.parametrize("settings", [FULL, QUICK], ids=["full", "quick"])
def test_every_need_is_in_the_plan_and_every_name_is_unique(settings: Any, tmp_path: Path) -> None:
    plan = make_plan(settings, tmp_path)
    names = [c.name for c in plan]
    assert len(set(names)) == len(names)
    assert {need for c in plan for need in c.needs} <= set(names)
    assert {of for c in plan if (of := c.args.get("of", "clean")) != "clean"} <= {n for c in plan for n in c.needs}
    assert all(json.loads(json.dumps(c.args)) is not None for c in plan)


def test_the_full_plan_begins_with_the_keys_that_are_attacked_and_holds_what_the_page_promises(tmp_path: Path) -> None:
    plan = make_plan(FULL, tmp_path)
    place = {c.name: n for n, c in enumerate(plan)}
    first_null = min(n for c, n in zip(plan, range(len(plan)), strict=True) if c.group == "null")
    for victim in FULL.victims:
        assert place[f"mark-{victim}-cured-20"] < first_null
        assert place[f"mark-{victim}-published-30"] < first_null
        grid = [n for n in place if n.startswith(f"thieves-{victim}-cured-") and n.count("-") == 5]
        assert len(grid) == 24
    ends = {g: max(n for c, n in zip(plan, range(len(plan)), strict=True) if c.group == g) for g in ("chains", "null")}
    assert place["removal-simclr-cured-prune-global-10"] < place["thieves-simclr-cured-mse-plain-same"] < ends["chains"]


def test_no_two_keys_share_a_secret_and_no_control_the_seed_of_an_attack(tmp_path: Path) -> None:
    seeds = [seed for each in FULL.seeds.values() for seed in each]
    assert len(set(seeds)) == len(seeds)
    recipes = population({victim: f"shipped:{victim}" for victim in FULL.victims})
    assert SEED not in {recipe.seed for recipe in recipes}


def test_an_extra_population_joins_the_null_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "extra").mkdir()
    assert not any(c.function == "extra" for c in make_plan(QUICK, tmp_path))
    (tmp_path / "extra" / "population.json").write_text("{}")
    extra = [c for c in make_plan(QUICK, tmp_path) if c.function == "extra"]
    assert len(extra) == sum(len(seeds) for seeds in QUICK.seeds.values())


def test_joined_queries_are_those_of_one_set_and_then_of_the_other(images: Any) -> None:
    first, second = images(5, seed=1), images(3, seed=2)
    both = Joined(first, second)
    taken = both.take([6, 0, 4, 7])
    assert len(both) == 8
    assert (taken[0] == second.take([1])[0]).all()
    assert (taken[1] == first.take([0])[0]).all()
    assert (taken[2] == first.take([4])[0]).all()
    assert (taken[3] == second.take([2])[0]).all()


# Figures.


def member(family: str, cosine: float, rate: float = 0.0) -> dict[str, Any]:
    return {"family": family, "cosine": cosine, "WR": rate}


MEMBERS = {
    "a": member("random", 0.1),
    "b": member("random", 0.9, 0.3),
    "c": member("surrogate", 0.5, 0.6),
    "d": member("surrogate", 0.95, 1.0),
    "e": member("held-out surrogate", 0.97, 1.0),
}


def test_a_family_is_claimed_against_all_other_families_and_the_held_out_against_all_controls() -> None:
    assert false_claims(MEMBERS, "random") == [False, False]  # 0.9 < 0.95
    assert false_claims(MEMBERS, "surrogate") == [False, True]  # 0.95 > 0.9, and 0.97 is no control
    assert false_claims(MEMBERS, "held-out surrogate") == [True]
    assert false_claims({"a": member("random", 0.1)}, "random") == []
    assert false_claims({"a": member("x", 0.5), "b": member("y", 0.5)}, "x") == [False]  # a tie claims nothing


def test_null_rows_pool_keys_and_end_with_all() -> None:
    rows = {row.family: row for row in null_rows("v", "cured", [MEMBERS, {"a": member("random", 0.2)}, {}])}
    assert list(rows) == ["random", "surrogate", "held-out surrogate", "all"]
    assert (rows["random"].keys, rows["surrogate"].keys, rows["all"].keys) == (2, 1, 2)
    assert rows["random"].low == Rate(1, 3)
    assert rows["random"].claims == Rate(0, 2)  # the second key has no other family
    assert rows["all"].paper == Rate(3, 6)
    assert rows["all"].claims == Rate(2, 5)
    assert rows["all"].largest == 0.97
    assert null_rows("v", "cured", [{}, {}]) == []


def test_ranks_count_ties_against_the_claim_and_leave_held_out_members_out() -> None:
    score = {"WR": 1.0, "cosine": 0.95, "queries": 9}
    assert scored(score, MEMBERS) == Scored(1.0, 0.95, 2, 5)
    assert scored({**score, "cosine": 0.951}, MEMBERS).above is True
    assert scored(score, {}) == Scored(1.0, 0.95, None, 0)


def test_intervals() -> None:
    # R 4.x: binom.test(0, 10)$conf.int gives 0.0000000 0.3084971; binom.test(9, 10)$conf.int 0.5549839 0.9974714
    assert Rate(0, 10).interval() == pytest.approx((0, 0.3084971), abs=1e-6)
    assert Rate(9, 10).interval() == pytest.approx((0.5549839, 0.9974714), abs=1e-6)
    # R: t.test(c(1, 0.98, 1.02))$conf.int[1] is 1 - qt(.975, 2) * 0.02 / sqrt(3) = 0.9503172
    mean, low = mean_and_bound([1, 0.98, 1.02])
    assert (mean, low) == (pytest.approx(1), pytest.approx(0.9503172, abs=1e-6))
    assert mean_and_bound([0.5]) == (0.5, None)


@pytest.mark.parametrize(
    ("kept", "share", "won"),
    [(0.9, 1.0, True), (0.8999, 0.1, False), (1.2, 1.01, False), (1.0, None, True), (None, 0.1, False)],
)
def test_an_attack_wins_by_keeping_enough_at_a_fair_price(kept: float | None, share: float | None, won: bool) -> None:
    row = Row("n", "g", "f", "v", "cured", "l", kept=kept, share=share)
    assert row.won is won


@pytest.mark.parametrize(
    ("met", "missing", "verdict"),
    [
        (True, 0, "met"),
        (True, 2, "open: 2 not run"),
        (False, 2, "**not met**"),
        (False, 0, "**not met**"),
        (None, 3, "not run"),
        (None, 0, "none has won"),
    ],
)
def test_a_target_is_met_only_when_nothing_is_missing(met: bool | None, missing: int, verdict: str) -> None:
    assert Target("aim", "figure", met, missing).verdict == verdict


# On cells that are made up.


def made_up(out: Path, kept: float = 1.0, cosine: float = 0.99, innocent: float = 0.0) -> None:
    """A whole quick plan's cells without running one: F* and suspects at `cosine`, twins and innocents low."""
    for c in make_plan(QUICK, out):
        target = c.args.get("target")
        low = {"WR": 0.0, "cosine": 0.0, "queries": 9}
        score = low if target == "clean" else {"WR": 1.0 if cosine > 0.5 else 0.0, "cosine": cosine, "queries": 9}
        domains = {d: {"clean": 0.6, "floor": 0.2} for d in ("garments", "digits")}
        accuracy = 0.2 + 0.4 * kept
        suspect = {"accuracy": accuracy, "cpu_seconds": 10, "precision": "32", "scores": {}, "queries": 7}
        result = {
            "reference": {**domains, "pretraining_seconds": {"32": 100, "bf16": 50}, "machine": "made up"},
            "mark": {"garments": accuracy, "digits": 0.6, "marking_seconds": 1, "F*": score, "F": low},
            "population": {"a": member("random", 0.3, innocent), "b": member("surrogate", 0.2)},
            "others": {"o": member("other key", 0.1)},
        }.get(c.function, {**suspect, "scores": dict.fromkeys(c.args.get("keys", ()), score)})
        content = {"name": c.name, "args": c.args, "date": "2000-01-01", "cpu_seconds": 1, "result": result}
        path_of(out, c.name).parent.mkdir(parents=True, exist_ok=True)
        path_of(out, c.name).write_text(json.dumps(content))


def verdicts(out: Path) -> dict[str, str]:
    found = targets(gather(QUICK, make_plan(QUICK, out), out))
    return {target.aim.partition(",")[0]: target.verdict for target in found}


def test_all_targets_are_met_by_figures_that_meet_them(tmp_path: Path) -> None:
    made_up(tmp_path)
    assert set(verdicts(tmp_path).values()) == {"met"}


@pytest.mark.parametrize(
    ("given", "failing"),
    [
        ({"kept": 0.95}, "F*: accuracy kept ≥ 99 %"),
        ({"innocent": 0.11}, "innocents: none with WR > 0.1"),
        ({"cosine": 0.25}, "surrogates that keep ≥ 90 %: above every control"),
        ({"cosine": 0.4}, "removals that keep ≥ 90 %: WR ≥ 0.9"),
    ],
)
def test_a_target_fails_by_what_it_is_about(tmp_path: Path, given: dict[str, float], failing: str) -> None:
    made_up(tmp_path, **given)
    assert verdicts(tmp_path)[failing] == "**not met**"


def test_attacks_that_destroy_the_encoder_do_not_count(tmp_path: Path) -> None:
    made_up(tmp_path, kept=0.5, cosine=0.0)
    assert verdicts(tmp_path)["chains that keep ≥ 90 %: WR ≥ 0.9"] == "none has won"
    assert "50 % †" in page(gather(QUICK, make_plan(QUICK, tmp_path), tmp_path))


def test_a_chain_costs_what_its_theft_cost_too(tmp_path: Path) -> None:
    made_up(tmp_path)
    results = gather(QUICK, make_plan(QUICK, tmp_path), tmp_path)
    theft, chain = (results.find(n) for n in ("thieves-simclr-cured-mse-plain-same", "chains-simclr-cured-steal-tune"))
    assert theft is not None
    assert chain is not None
    assert (theft.share, chain.share) == (pytest.approx(0.1), pytest.approx(0.2))


def test_what_was_not_run_is_said_and_counted(tmp_path: Path) -> None:
    made_up(tmp_path)
    gone = (
        "removal-simclr-cured-prune-global-40",
        "others-mark-simclr-cured-20",
        "others-mark-simclr-cured-21",
        "mark-simclr-released-40",
        "null-mark-simclr-released-40",
        "others-mark-simclr-released-40",
    )
    for name in gone:
        path_of(tmp_path, name).unlink()
    text = page(gather(QUICK, make_plan(QUICK, tmp_path), tmp_path))
    assert f"**{len(gone)} cells were not run**" in text
    lines = text.splitlines()
    assert next(li for li in lines if li.startswith("| prune-global-40")).count("not run") == 3
    assert next(li for li in lines if li.startswith("| simclr | released | not run")).count("not run") >= 3
    assert any(li.startswith("| simclr | released | all | 0 of 1 | not run") for li in lines)
    assert any(li.startswith("| simclr | cured | other key | 0 of 2 | not run") for li in lines)
    assert verdicts(tmp_path)["removals that keep ≥ 90 %: WR ≥ 0.9"] == "open: 1 not run"
    assert verdicts(tmp_path)["innocents: none with WR > 0.1"] == "open: 2 not run"


def test_a_page_of_nothing_says_so(tmp_path: Path) -> None:
    plan = make_plan(FULL, tmp_path)
    results = gather(FULL, plan, tmp_path)
    assert f"**{len(plan)} cells were not run**" in page(results)
    assert {target.verdict for target in targets(results)} == {"not run"}


# From end to end.


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert whole.main([str(out), "--quick", "--workers", "1"]) == 0
    return out


def figures(out: Path) -> dict[str, Any]:
    """The JSON without what differs from run to run: seconds, and shares of seconds."""
    content = json.loads((out / "whole.json").read_bytes())
    content["run"].pop("CPU seconds")
    for row in content["marks"] + content["suspects"]:
        row.pop("seconds")
        row.pop("share", None)
    for reference in content["references"].values():
        reference.pop("pretraining_seconds")
    return content


def test_a_quick_run_fills_the_page(ran: Path) -> None:
    text = (ran / "results.md").read_text()
    assert "benchmarks/whole.py" in text.splitlines()[0]
    assert "not run" not in text
    content = json.loads((ran / "whole.json").read_bytes())
    assert content["run"]["cells"] == content["run"]["cells done"] == len(make_plan(QUICK, ran))
    assert all(0 <= score["WR"] <= 1 for row in content["suspects"] for score in row["scores"].values())
    assert all(row["share"] >= 0 for row in content["suspects"])
    thefts = {row["label"]: row["queries"] for row in content["suspects"] if row["function"] == "steal"}
    assert thefts["mse-plain-same-50"] == 50
    assert thefts["mse-plain-same-mixed"] == 320
    assert thefts["mse-augmented-same"] == 1 + QUICK.thief_steps * 128


def test_a_second_run_does_nothing_again(ran: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (ran / "cells").iterdir()}
    text = (ran / "results.md").read_text()
    assert whole.main([str(ran), "--quick", "--workers", "1"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (ran / "cells").iterdir()} == before
    assert (ran / "results.md").read_text() == text


def test_a_killed_run_goes_on_to_the_same_figures(ran: Path, tmp_path: Path) -> None:
    shutil.copytree(ran, tmp_path / "killed")
    out = tmp_path / "killed"
    lost = ("thieves-simclr-cured-mse-plain-same", "null-mark-simclr-cured-20", "wrapping-simclr-clean-input-0.05")
    for name in lost:
        path_of(out, name).unlink()
    assert whole.main([str(out), "--quick", "--table"]) == 0
    assert "**3 cells were not run**" in (out / "results.md").read_text()
    assert whole.main([str(out), "--quick", "--workers", "1"]) == 0
    assert figures(out) == figures(ran)


def test_cells_of_other_settings_are_refused(ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ran / "cells", tmp_path / "cells")
    path = path_of(tmp_path, "mark-simclr-cured-20")
    path.write_text(path.read_text().replace('"carrier"', '"carriage"'))
    assert whole.main([str(tmp_path), "--quick", "--workers", "1"]) == 2
    assert "made by other settings" in capsys.readouterr().err


def test_a_run_that_is_stopped_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(whole, "run_cells", stopped)
    assert whole.main([str(tmp_path), "--quick", "--workers", "1"]) == 130
    assert "goes on" in capsys.readouterr().err
    assert not (tmp_path / "results.md").exists()
