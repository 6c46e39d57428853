"""The benchmark: a miniature grid, whole, killed, resumed, as jobs; what a configuration may say."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.bench_grid import nap, nothing, write_miniature
from sslguard.bench import figures, work
from sslguard.bench.cells import Cell, path_of, run_cells
from sslguard.bench.cluster import cluster_pool
from sslguard.bench.config import digest_of, log2_rate, parse_config, read_config
from sslguard.bench.page import Run, render_markdown
from sslguard.bench.plan import Plan, make_plan
from sslguard.bench.run import checked, findings, forecast, open_run, progress, run_bench, write_results
from sslguard.bench.sweeps import expanded
from sslguard.bench.targets import results as results_of_targets
from sslguard.bench.work import Remembering, remembering
from sslguard.cli.entry import main
from sslguard.data.specs import open_data
from sslguard.encoders.folder import load_folder
from sslguard.encoders.load import load_encoder
from sslguard.errors import UsageError
from sslguard.probes.evaluate import probe_encoder
from sslguard.report.charts import LIGHT
from sslguard.schemes.peers.rotation import RotationTask
from sslguard.schemes.queries import as_bytes
from sslguard.schemes.registry import build_scheme
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.training.distillation import DistillationTask


def silent(_: str) -> None:
    pass


def results(out: Path) -> dict[str, object]:
    """What cells found, without what the clock says."""
    _, _, contents = open_run(out)
    return {name: {**content["result"], "seconds": None} for name, content in contents.items()}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def whole(grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature, done."""
    out = tmp_path_factory.mktemp("whole")
    outcome = run_bench(grid, out, say=silent)
    assert not outcome.failed
    assert not outcome.skipped
    return out


def test_a_run_that_is_killed_goes_on_and_ends_as_one_that_was_not(grid: Path, whole: Path, tmp_path: Path) -> None:
    lines = []

    def kill(line: str) -> None:
        lines.append(line)
        if len(lines) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bench(grid, tmp_path, say=kill)
    before = len(list((tmp_path / "cells").iterdir()))
    assert 0 < before < len(results(whole))
    outcome = run_bench(grid, tmp_path, say=silent)
    assert len(outcome.done) == len(results(whole)) - before
    assert results(tmp_path) == results(whole)


def test_a_peer_that_trains_trains_once_whatever_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rotation = '\n[schemes.rotation]\nscheme = "rotation"\nhidden = 4\nsteps = 2\nbatch_size = 8\nn = 20\n'
    grid, out = write_miniature(tmp_path, extra=rotation), tmp_path / "out"
    assert not run_bench(grid, out, only=("mark-one-rotation-*",), say=silent).failed
    work._protected.cache_clear()  # as another process begins
    monkeypatch.setattr(RotationTask, "updates", lambda _: pytest.fail("it trained again"))
    outcome = run_bench(grid, out, only=("attack-one-rotation-0-pruned-*",), say=silent)
    assert [name for name in outcome.done if name.startswith("attack-one-rotation")]
    assert not outcome.failed


def test_results_alone_are_gone_on_with(grid: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "cells", tmp_path / "cells")
    outcome = run_bench(grid, tmp_path, say=silent)
    assert not outcome.done, "nothing needs the weights"
    _, plan, _ = open_run(tmp_path)
    lost = next(cell for cell in plan.cells if cell.group == "attack" and "made" in cell.args["victim"])
    path_of(tmp_path, lost.name).unlink()
    outcome = run_bench(grid, tmp_path, say=silent)
    assert not outcome.failed
    assert lost.name in outcome.done
    assert set(outcome.done) == {
        lost.name,
        *lost.needs,
        *(n for c in plan.cells if c.name in lost.needs for n in c.needs),
    }
    assert results(tmp_path) == results(whole)


def test_what_was_measured_under_another_mark_is_measured_again(grid: Path, whole: Path, tmp_path: Path) -> None:
    """As where results come from a machine whose training ends in other weights."""
    shutil.copytree(whole / "cells", tmp_path / "cells")
    theirs = []
    for path in sorted((tmp_path / "cells").iterdir()):
        content = json.loads(path.read_bytes())
        if content["args"].get("scheme") == "exact" or "marked" in content["result"]:
            content["result"]["weights" if content["group"] == "mark" else "marked"] = "theirs"
            theirs.append(content["name"])
            path.write_text(json.dumps(content))
    former = [name for name in theirs if not name.startswith("mark-")]
    assert {name.partition("-")[0] for name in former} == {"attack", "make"}, "innocents meet fresh keys"
    (tmp_path / "config.toml").write_bytes(grid.read_bytes())
    _, plan, contents = open_run(tmp_path)
    assert set(theirs) <= set(contents), "all of it is theirs"
    assert not run_bench(grid, tmp_path, say=silent).done
    lost = next(cell for cell in plan.cells if cell.group == "attack" and cell.name in former)
    path_of(tmp_path, lost.name).unlink()
    said: list[str] = []
    outcome = run_bench(grid, tmp_path, say=said.append)
    assert not outcome.failed
    mark = lost.args["mark"]
    assert set(outcome.done) == {mark, *(c.name for c in plan.cells if c.name in former and rests(plan, c) == mark)}
    assert any("was retrained and differs" in line for line in said)
    # Of the other keys nothing was lost, and their results are still theirs.
    ours, made = results(whole), results(tmp_path)
    assert all(made[name] == ours[name] for name in outcome.done)


def rests(plan: Plan, cell: Cell) -> str | None:
    """The mark that a cell's result comes from."""
    if "mark" in cell.args:
        return str(cell.args["mark"])
    ((kind, which),) = cell.args["victim"].items()
    return which if kind == "mark" else rests(plan, next(c for c in plan.cells if c.name == which))


POOL = """
import os, sys, time
from sslguard.bench.cells import processes

def nothing(): pass

if __name__ == "__main__":
    with processes(1, nothing) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def test_processes_end_with_a_program_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "pool.py").write_text(POOL)
    with subprocess.Popen([sys.executable, tmp_path / "pool.py"], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        worker = int(program.stdout.readline())
        os.kill(worker, 0)
        program.kill()
    for _ in range(300):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    raise AssertionError("the process goes on by itself")


def test_an_interrupted_run_does_not_wait_for_its_cells(tmp_path: Path) -> None:
    others = set(active_children())
    cells = [Cell(f"nap-{k}", "nap", "nap", {"seconds": seconds}) for k, seconds in enumerate((0, 600))]

    def interrupt(line: str) -> None:
        if "nap-0" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, tmp_path, nap, workers=2, prepare=nothing, say=interrupt)
    until = time.monotonic() + 30  # a process that was killed goes when the machine has time for it
    while set(active_children()) != others and time.monotonic() < until:
        time.sleep(0.05)
    assert set(active_children()) == others
    assert path_of(tmp_path, "nap-0").exists()
    assert not path_of(tmp_path, "nap-1").exists()


def test_jobs_give_what_processes_give(grid: Path, whole: Path, tmp_path: Path) -> None:
    run_bench(grid, tmp_path, only=["reference-*"], pool=cluster_pool("local", tmp_path / "jobs"), say=silent)
    assert len(results(tmp_path)) == 1
    run_bench(grid, tmp_path, pool=cluster_pool("debug", tmp_path / "jobs"), say=silent)
    assert results(tmp_path) == results(whole)


def test_a_lost_job_is_told_and_stops_only_what_needs_it(grid: Path, tmp_path: Path) -> None:
    pool = cluster_pool("debug", tmp_path / "jobs")
    (tmp_path / "keys").write_text("no folder")  # marks of the exact scheme cannot be kept
    outcome = run_bench(grid, tmp_path, only=["mark-*", "attack-one-exact-0-stolen-*"], pool=pool, say=silent)
    assert sorted(name.rpartition("-")[0] for name in outcome.failed) == ["mark-one-exact-0", "mark-one-head-0"]
    assert set(outcome.skipped)
    assert all("-exact-" in name for name in outcome.skipped)
    assert any("wet" in name for name in outcome.done)


def test_rows_say_what_each_suspect_is(whole: Path) -> None:
    rows = findings(whole).rows
    attacks = {(row.scheme, row.attack): row for row in rows if row.kind == "attack"}
    assert set(attacks) == {
        (s, a) for s in ("exact", "head", "wet", "fingerprint") for a in ("stolen", "cut", "pruned")
    }
    cut = attacks["wet", "cut"]
    assert cut.refused
    assert "width 4" in cut.refused
    assert cut.applies
    assert cut.detected(-1.0) is False
    for scheme in ("wet", "head"):  # what stands behind an address has no weights to prune
        pruned = attacks[scheme, "pruned"]
        assert pruned.refused
        assert not pruned.applies
    assert attacks["head", "stolen"].applies
    assert attacks["exact", "cut"].detected(-64.0) is False
    assert attacks["fingerprint", "stolen"].detected(-64.0) is None  # a rank among few innocents
    assert attacks["exact", "stolen"].thief_queries == 60
    innocent = {(row.scheme, row.suspect) for row in rows if row.kind == "innocent"}
    assert ("exact", "twin of stolen") in innocent
    assert ("exact", "protected by wet, seed 0") in innocent
    assert ("exact", "protected by fingerprint, seed 0") not in innocent  # that is the clean encoder once more
    families = {row.suspect: row.family for row in rows if row.kind == "innocent" and row.scheme == "exact"}
    assert families["twin of stolen"] == families["twin of cut"] != families["twin of pruned"]
    assert {name for scheme, name in innocent if scheme == "fingerprint"} == {
        *("random:plain-small@16", "random:separable-small@16", "untrained 2", "untrained 3")
    }
    assert all(0 < 2**row.log2_pvalue <= 1 for row in rows if row.log2_pvalue is not None)


def test_pages_hold_every_scheme_and_attack_and_load_nothing(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet as pq

    written = write_results(whole)
    page, text = written["page"].read_text(), written["markdown"].read_text()
    config = read_config(whole / "config.toml")
    for name in (*config.schemes, *config.attacks, config.digest(), config.attacks_digest()):
        assert name in page
        assert name in text
    assert page.count("<script") == page.count("sha256-") == 1, "the search alone, bound by its hash"
    assert "http" not in page.replace("http-equiv", "")
    table = pq.read_table(written["rows"])
    assert table.num_rows == len(findings(whole).rows)
    assert table.schema.field("statistic").type == "double"
    assert table.schema.field("seed").type == "int64"
    assert main(["bench", "table", str(whole), "--json"]) == 0
    assert "Innocents" in {one["title"] for one in json.loads(capsys.readouterr().out)["tables"]}
    assert main(["bench", "status", str(whole)]) == 0
    assert "0 CPU minutes left" in capsys.readouterr().out


def test_what_is_left_is_told_by_what_was_done(whole: Path, tmp_path: Path, grid: Path) -> None:
    run_bench(grid, tmp_path, only=["reference-*"], say=silent)
    found = {one.group: one for one in progress(tmp_path)}
    assert (found["reference"].done, found["reference"].left) == (1, 0.0)
    assert (found["attack"].done, found["attack"].left) == (0, None)
    assert all(one.done == one.total for one in progress(whole))


def names(plan: Plan) -> set[str]:
    return {cell.name for cell in plan.cells}


def test_a_changed_setting_makes_the_cells_that_depend_on_it_and_no_others(grid: Path) -> None:
    text = grid.read_text()
    first = names(make_plan(read_config(grid)))
    grid.with_name("more.toml").write_text(text.replace("amount = 0.5", "amount = 0.4").replace("Miniature", "Other"))
    changed = names(make_plan(read_config(grid.with_name("more.toml"))))
    assert all("pruned" in name for name in first ^ changed)
    assert first - changed
    grid.with_name("seeds.toml").write_text('base = "grid.toml"\nseeds = [0, 1]')
    assert first < names(make_plan(read_config(grid.with_name("seeds.toml"))))
    assert not path_of(grid.parent, next(iter(first))).exists()


def test_what_is_left_out_is_not_planned_and_is_said(tmp_path: Path) -> None:
    left = '\n[[without]]\nwhy = "it takes long"\nattacks = ["stolen", "cut"]\nschemes = ["wet"]\nencoders = ["one"]\n'
    everything = make_plan(read_config(write_miniature(tmp_path)))
    config = read_config(write_miniature(tmp_path, extra=left))
    fewer = {name for name in names(everything) - names(make_plan(config)) if not name.startswith("other")}
    assert fewer
    assert all(everything.about[name]["scheme"] == "wet" for name in fewer)
    assert {everything.about[name]["attack"] for name in fewer} == {"stolen", "cut"}
    assert "- Left out: it takes long" in render_markdown(Run(config, [], 0, 1), "x")
    with pytest.raises(UsageError, match=r"without\.schemes must name exact"):
        read_config(write_miniature(tmp_path, extra=left.replace("wet", "wett")))


def test_chains_that_begin_alike_share_what_they_train(grid: Path) -> None:
    plan = make_plan(read_config(grid))
    made = [plan.about[cell.name] for cell in plan.cells if cell.group == "make"]
    assert sum(about["attack"] == "stolen" for about in made) == 4  # three schemes that mark, and the clean encoder
    assert not any(about["attack"] == "cut" for about in made)


def test_copies_of_other_encoders_are_innocents_where_all_that_comes_of_the_clean_one_is_claimed(grid: Path) -> None:
    grid.with_name("two.toml").write_text(
        'base = "grid.toml"\n[encoders.two]\nload = "random:plain-small@16"\nbed = "noise"\n'
    )
    plan = make_plan(read_config(grid.with_name("two.toml")))
    found = [
        cell.args["victim"]
        for cell in plan.cells
        if cell.group == "other" and plan.about[cell.name] == {"encoder": "one", "scheme": "fingerprint", "seed": 0}
    ]
    assert {"clean": "random:plain-small@16"} in found
    copies = [plan.about[victim["made"]] for victim in found if "made" in victim]
    assert [(about["encoder"], about["scheme"], about["attack"]) for about in copies] == [
        ("two", "", "stolen"),
        ("two", "", "pruned"),
    ]
    assert len(found) == 3


def test_no_control_took_part_in_making_the_key(grid: Path) -> None:
    grid.with_name("more.toml").write_text('base = "grid.toml"\n[schemes.cured]\nscheme = "sslguard-cured"\n')
    plan = make_plan(read_config(grid.with_name("more.toml")))
    clean = {
        plan.about[cell.name]["scheme"]
        for cell in plan.cells
        if cell.group == "other" and "clean" in cell.args["victim"]
    }
    assert clean == {"cured", "exact", "wet"}


def test_hashes_do_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"b": None, "a": [1, 2.5]}) == digest_of({"a": [1, 2.5], "b": None})
    assert digest_of({"a": 1}) != digest_of({"a": 1.5})


def test_an_encoder_that_remembers_forgets_when_it_is_cloned(images) -> None:
    encoder = load_encoder("random:resnet-narrow@16")
    remembering, batch = Remembering(**vars(encoder)), images(9).take(range(9))
    first = remembering.embed(batch)
    first[:] = 0
    assert (remembering.embed(batch) == encoder.embed(batch)).all()
    clone = remembering.clone()
    assert not isinstance(clone, Remembering)
    next(clone.module.parameters()).data.add_(1)
    assert not (clone.embed(batch) == encoder.embed(batch)).all()


def test_an_encoder_that_knows_a_data_set_answers_any_order_of_it(images) -> None:
    data = images(300)
    known = remembering(load_encoder("random:resnet-narrow@16"), data)
    batch = as_bytes(data.take([7, 200, 3]))
    expected = load_encoder("random:resnet-narrow@16").embed(batch)
    with torch.no_grad():
        for weight in known.module.parameters():
            weight.zero_()
    np.testing.assert_allclose(known.embed(batch), expected, rtol=1e-5, atol=1e-6)
    assert not known.embed(255 - batch).any(), "the network is asked what is not known"
    assert not known.clone().embed(batch).any(), "a clone knows nothing"


def test_a_file_cannot_rest_on_itself(tmp_path: Path) -> None:
    for name, base in (("one", "two"), ("two", "one")):
        (tmp_path / f"{name}.toml").write_text(f'base = "{base}.toml"')
    with pytest.raises(UsageError, match="rests on itself"):
        read_config(tmp_path / "one.toml")


@pytest.mark.parametrize("content", [b'{"name": "trunc', b"[]", b"{}", b"[" * 100_000])
def test_a_damaged_result_is_named(whole: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(whole, tmp_path / "out")
    damaged = next((tmp_path / "out" / "cells").glob("attack-*"))
    damaged.write_bytes(content)
    with pytest.raises(UsageError, match=f"{damaged.name} is damaged: delete it"):
        open_run(tmp_path / "out")


def test_a_price_is_left_open_where_a_part_of_it_was_taken_away(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    for made in (tmp_path / "out" / "cells").glob("make-one-exact-*"):
        made.unlink()
    found = findings(tmp_path / "out").rows
    prices = {row.attack: row.attack_seconds for row in found if row.kind == "attack" and row.scheme == "exact"}
    assert prices
    assert set(prices.values()) == {None}
    assert len(found) == len(findings(whole).rows)


def test_labels_of_pictures_are_plain_text(whole: Path) -> None:
    run = findings(whole)
    for draw in (figures.scatter, figures.cost, figures.curves):
        figure = draw(run.rows, list(run.config.schemes), LIGHT)
        figure.draw_without_rendering()
        (axes,) = figure.axes
        labels = [label.get_text() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
        assert any(labels)
        assert not any("$" in label for label in labels), "mathematics are not set in these pictures"


REFUSED = {
    "unknown key": ({"shape": 1}, "the configuration has no setting 'shape'; known: title, "),
    "no encoders": ({"encoders": {}}, "encoders must not be empty"),
    "unknown bed": ({"encoders": {"e": {"load": "x", "bed": "moon"}}}, "beds.moon needs the role mark"),
    "encoder without bed": ({"encoders": {"e": {"load": "x"}}}, "encoders.e needs a value for bed"),
    "unknown set": (
        {"attacks": {"a": {"set": "test", "steps": [{"attack": "prune"}]}}},
        "attacks.a.set must be one of development, held-out, not 'test'",
    ),
    "no steps": ({"attacks": {"a": {"set": "held-out", "steps": []}}}, "at least one attack"),
    "bed of an attack": (
        {"attacks": {"a": {"set": "held-out", "beds": ["moon"], "steps": [{"attack": "prune"}]}}},
        "attacks.a.beds must name images",
    ),
    "rate of 1": ({"rates": ["1"]}, "between 0 and 1"),
    "rate that is no number": ({"rates": ["often"]}, "between 0 and 1"),
    "seeds twice": ({"seeds": [1, 1]}, "different numbers"),
    "seed that is no number": ({"seeds": ["0"]}, r"seeds\[0\] must be a whole number, not '0'"),
    "roles that are no texts": ({"beds": {"images": {"mark": 3}}}, "beds.images.mark must be a text, not 3"),
    "seeds that are no list": ({"seeds": 3}, "seeds must be a list, not 3"),
    "rates that are no list": ({"rates": 0.01}, "rates must be a list, not 0.01"),
    "beds that are no table": ({"beds": 3}, "beds must be a table, not 3"),
    "bed that is no name": (
        {"schemes": {"s": {"scheme": "exact", "beds": [[1]]}}},
        r"schemes.s.beds\[0\] must be a text, not \[1\]",
    ),
    "setting without an end": ({"schemes": {"s": {"scheme": "exact", "epsilon": math.nan}}}, "no finite number"),
    "unknown precision": ({"precision": "bogus"}, "precision must be one of 32, bf16"),
    "unknown precision of an attack": (
        {"attacks": {"a": {"set": "held-out", "precision": "16", "steps": [{"attack": "prune"}]}}},
        "attacks.a.precision must be one of",
    ),
    "seed below 0": ({"seeds": [-1]}, r"seeds\[0\] must be at least 0"),
    "tasks without a draw": ({"tasks": {"t": {"draws": 0}}}, "draws must be at least 1"),
    "fewer than no networks": ({"encoders": {"e": {"load": "x", "bed": "images", "random": -3}}}, "at least 0"),
    "number for an encoder": (
        {"encoders": {"e": {"load": 3, "bed": "images"}}},
        "encoders.e.load must be a text, not 3",
    ),
    "sweep that is no table": (
        {"attacks": {"a": {"set": "held-out", "sweep": {"x": 3}, "steps": [{"attack": "prune"}]}}},
        "attacks.a.sweep must give a list or a table",
    ),
    "sweep over nothing": (
        {"attacks": {"{x}": {"set": "held-out", "sweep": {"x": []}, "steps": [{"attack": "prune"}]}}},
        "sweep.x must give at least one value",
    ),
    "sweep that nothing uses": (
        {"attacks": {"{x}": {"set": "held-out", "sweep": {"x": [1, 2]}, "steps": [{"attack": "prune"}]}}},
        "sweep.x is used by nothing: write {x} into a setting",
    ),
    "sweep without its name": (
        {"attacks": {"a": {"set": "held-out", "sweep": {"x": [1, 2]}, "steps": [{"attack": "prune"}]}}},
        "two entries are called 'a': name {x} in it",
    ),
    "target without a bound": ({"targets": [{"aim": "a", "column": "kept"}]}, "either at_least or at_most"),
    "target of nobody": (
        {"targets": [{"aim": "a", "column": "kept", "at_least": 1, "schemes": ["x"]}]},
        "targets.schemes must name s",
    ),
    "task of few labels": ({"tasks": {"t": {"per_class": -1}}}, "per_class must be at least 0"),
    "seeds of a scheme": ({"schemes": {"s": {"scheme": "exact", "seeds": [1, 1]}}}, "different numbers"),
    "text for a number": (
        {"encoders": {"e": {"load": "x", "bed": "images", "random": "many"}}},
        "encoders.e.random must be a whole",
    ),
}
SOUND = {
    "encoders": {"e": {"load": "shipped:simclr", "bed": "images"}},
    "schemes": {"s": {"scheme": "exact"}},
    "attacks": {"a": {"set": "held-out", "steps": [{"attack": "prune"}]}},
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_configuration_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    make_plan(parse_config(SOUND))
    with pytest.raises(UsageError, match=message):
        parse_config({**SOUND, **change})


@pytest.mark.parametrize(
    ("step", "message"),
    [({"attack": "magic"}, "attack must be one of"), ({"attack": "prune", "data": "moon"}, "a role of the bed")],
)
def test_a_plan_of_unknown_attacks_or_roles_is_refused(step: dict[str, str], message: str) -> None:
    config = parse_config({**SOUND, "attacks": {"a": {"set": "held-out", "steps": [step]}}})
    with pytest.raises(UsageError, match=message):
        make_plan(config)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("magic", {}, "scheme must be one of"),
        ("wet", {"spin": 1}, "wet has no setting 'spin'; known: terms, n"),
        ("exact", {"x": 1}, "x"),
    ],
)
def test_a_scheme_that_cannot_be_is_refused(name: str, settings: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_scheme(name, settings)


def test_files_patterns_and_folders_that_cannot_be_are_refused(tmp_path: Path, grid: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("seeds = [")
    for act, message in (
        (lambda: read_config(bad), "is not TOML"),
        (lambda: read_config(tmp_path / "none.toml"), "cannot be read"),
        (lambda: open_run(tmp_path), "holds no benchmark"),
        (lambda: run_bench(grid, tmp_path, only=["nothing*"]), "must match the name of a cell"),
        (lambda: cluster_pool("moon", tmp_path), "cluster must be one of"),
    ):
        with pytest.raises(UsageError, match=message):
            act()


@pytest.mark.parametrize(("text", "log2"), [("2^-64", -64.0), ("1e-2", math.log2(0.01)), (0.25, -2.0)])
def test_rates_are_read_as_logarithms(text: object, log2: float) -> None:
    assert log2_rate(text) == pytest.approx(log2, rel=1e-12)


ROOT = Path(__file__).parents[2]
SHIPPED = [*(ROOT / "benchmarks").glob("*.toml"), *(ROOT / "recipes" / "paper").glob("*.toml")]


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.stem != "full"], ids=lambda path: path.stem)
def test_shipped_configurations_can_be_planned(path: Path) -> None:
    """All but full.toml, which holds the cells of page.toml under more seeds."""
    _, plan = checked(path)
    done: set[str] = set()
    for cell in plan.cells:
        assert done.issuperset(cell.needs)
        done.add(cell.name)


def test_configurations_are_listed_checked_and_forecast(
    whole: Path, grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    total = len(names(make_plan(read_config(grid))))
    assert main(["bench", "list", str(grid.parent)]) == 0
    assert f"Miniature ({total} cells)" in capsys.readouterr().out
    assert main(["bench", "list", str(tmp_path)]) == 2
    assert main(["bench", "validate", str(grid), "--json"]) == 0
    assert sum(json.loads(capsys.readouterr().out)["cells"].values()) == total
    missing = f'base = "grid.toml"\n[encoders.gone]\nload = "{tmp_path}/gone"\nbed = "noise"\n'
    grid.with_name("missing.toml").write_text(missing)
    checked(grid.with_name("missing.toml"))  # can be planned, perhaps for another machine
    assert main(["bench", "validate", str(grid.with_name("missing.toml"))]) != 0
    assert f"there is no encoder {tmp_path}/gone" in " ".join(capsys.readouterr().err.split())
    grid.with_name("missing.toml").write_text(f'base = "grid.toml"\n[beds.noise]\nmark = "{tmp_path}/no.npz"\n')
    assert main(["bench", "validate", str(grid.with_name("missing.toml"))]) != 0
    grid.with_name("missing.toml").unlink()
    capsys.readouterr()
    assert main(["bench", "run", str(grid), str(tmp_path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"0 of {total} cells, unknown time left" in shown
    assert not list(tmp_path.iterdir())
    with tarfile.open(grid.parent / "earlier.tar.xz", "w:xz") as archive:
        for name in ("config.toml", "cells"):
            archive.add(whole / name, name)
    grid.with_name("costs.toml").write_text('base = "grid.toml"\nrecorded = "earlier.tar.xz"')
    found = forecast(grid.with_name("costs.toml"), tmp_path)
    spent = {one.group: one.seconds for one in progress(whole)}
    assert {one.group: one.left for one in found.groups} == pytest.approx(spent)
    assert found.stored == 2 + sum(cell.group == "make" for cell in make_plan(read_config(grid)).cells)
    assert found.disk == found.stored * 4 * load_encoder("random:resnet-narrow@16").n_parameters
    grid.with_name("costs.toml").unlink()


def test_further_tasks_and_targets_are_measured_and_shown(whole: Path) -> None:
    run = findings(whole)
    rows = [row for row in run.rows if row.kind != "innocent" and row.accuracy is not None]
    assert {row.kind for row in rows} == {"protected", "attack"}
    assert all(row.tasks is not None and 0 <= row.tasks["neighbours"] <= 1 for row in rows)
    reference = run.references["one"]["result"]
    for task in (reference, reference["tasks"]["neighbours"]):
        assert task["floor"] == max(task["pixels"], task["untrained"])
    stolen = next(row for row in rows if row.attack == "stolen" and row.scheme == "exact")
    load, train, test = (reference_of(whole, name) for name in ("load", "probe_train", "probe_test"))
    assert load == "random:resnet-narrow@16"
    ((kind, made),) = open_run(whole)[2][stolen.cell]["args"]["victim"].items()
    assert kind == "made"
    surrogate, few = load_folder(whole / "encoders" / made), {"per_class": 10, "seeds": (0, 1)}
    probed = probe_encoder(surrogate, open_data(train), open_data(test), method="knn", **few)
    assert stolen.tasks == {"neighbours": pytest.approx(probed.accuracy)}
    found, unreachable = results_of_targets(run.config, run.rows, run.undone)
    assert (found.verdict, found.met, found.negatives) == ("met", 1, (1, 1))
    assert unreachable.verdict == "not met"
    assert len(unreachable.values) == 4
    tables = {table.title: table for table in run.tables}
    assert tables["Targets"].rows[0] == ("Thefts are found", "1 of 1, the worst 0.00847", "1 of 1", "met")
    beside = tables["Attacks beside the same attacks on the clean encoder"]
    assert ("exact", "none") in {row[:2] for row in beside.rows}
    assert [row[:2] for row in tables["The clean encoders"].rows] == [("one", ""), ("one", "neighbours")]


def reference_of(out: Path, what: str) -> str:
    """The spec of the miniature's encoder or of a role."""
    config = read_config(out / "config.toml")
    return config.encoders["one"].load if what == "load" else config.beds["noise"][what]


def test_a_scheme_may_have_seeds_of_its_own_and_some_keys_are_not_attacked(tmp_path: Path) -> None:
    more = """
[schemes.more]
scheme = "wet"
terms = 5
n = 40
seeds = [3, 4]

[[without]]
why = "one key is enough"
schemes = ["mo*"]
seeds = [4]
"""
    plan = make_plan(read_config(write_miniature(tmp_path, extra=more)))
    found = [about for about in plan.about.values() if about.get("scheme") == "more"]
    groups = {cell.name.partition("-")[0]: set() for cell in plan.cells}
    for name, about in plan.about.items():
        if about.get("scheme") == "more":
            groups[name.partition("-")[0]].add(about["seed"])
    assert groups["mark"] == groups["null"] == {3, 4}
    assert groups["attack"] == groups["twin"] == {3}
    assert found
    assert {about["seed"] for about in plan.about.values() if about.get("scheme") == "exact"} == {0}


def test_a_training_that_is_killed_goes_on_where_it_stopped(
    grid: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("cells", "encoders", "keys"):
        shutil.copytree(whole / kind, tmp_path / kind)
    attacks = (cell for cell in open_run(whole)[1].cells if cell.name.startswith("attack-one-exact-0-stolen-"))
    (name,) = {cell.args["victim"]["made"] for cell in attacks}
    path_of(tmp_path, name).unlink()
    shutil.rmtree(tmp_path / "encoders" / name)
    loaded, load = [], DistillationTask.load

    def interrupted(task: DistillationTask, indices: np.ndarray) -> object:
        loaded.append(len(indices))
        if len(loaded) == 1:
            signal.raise_signal(signal.SIGINT)
        return load(task, indices)

    monkeypatch.setattr(DistillationTask, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_bench(grid, tmp_path, say=silent)
    assert [path.name for path in (tmp_path / "unfinished").iterdir()] == [f"{name}.pt"]
    assert run_bench(grid, tmp_path, say=silent).done == [name]
    assert loaded == [8, 8], "two steps in all"
    assert not list((tmp_path / "unfinished").iterdir())
    assert results(tmp_path) == results(whole)


@pytest.mark.slow
def test_two_processes_share_the_trainings(grid: Path, whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sslguard.cli.entry", "bench", "run", str(grid), str(tmp_path), "--devices", "2"]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True, start_new_session=True) as program:
        try:
            said, _ = program.communicate(timeout=500)
        finally:
            with suppress(ProcessLookupError):  # neither of the two outlives the test
                os.killpg(program.pid, signal.SIGKILL)
    assert program.returncode == 0
    assert not json.loads(said)["failed"]
    assert set(results(tmp_path)) == set(results(whole))


def test_devices_share_one_training_at_a_time(grid: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave workers at 1"):
        run_bench(grid, tmp_path, devices=2, workers=2, say=silent)


def test_a_folder_of_results_holds_what_its_configuration_rests_on(grid: Path, tmp_path: Path) -> None:
    grid.with_name("later.toml").write_text('base = "grid.toml"\ntitle = "Later"')
    run_bench(grid.with_name("later.toml"), tmp_path, only=["reference-*"], say=silent)
    grid.with_name("later.toml").unlink()
    assert findings(tmp_path).config.title == "Later"


SWEPT = {
    "a list": ({"amount": [0.1, 0.2]}, ["pruned 0.1", "pruned 0.2"], [0.1, 0.2]),
    "a table": ({"amount": {"tenth": 0.1}}, ["pruned tenth"], [0.1]),
}


@pytest.mark.parametrize(("sweep", "titles", "amounts"), SWEPT.values(), ids=SWEPT)
def test_an_entry_with_a_sweep_stands_for_several(
    sweep: dict[str, object], titles: list[str], amounts: list[float]
) -> None:
    entry = {"set": "held-out", "sweep": sweep, "steps": [{"attack": "prune", "amount": "{amount}"}]}
    config = parse_config({**SOUND, "attacks": {"pruned {amount}": entry}})
    assert list(config.attacks) == titles
    assert [attack.steps[0].settings["amount"] for attack in config.attacks.values()] == amounts


def test_a_sweep_takes_every_combination_and_fills_texts_and_tables() -> None:
    entry = {"sweep": {"a": [1, 2], "b": {"x": {"k": "v"}}}, "given": ["{b}", "no {a} of {b}"], "kept": True}
    assert expanded({"{a}{b}": entry, "plain": {"c": "{a}"}}, "attacks") == {
        "1x": {"given": [{"k": "v"}, "no 1 of x"], "kept": True},
        "2x": {"given": [{"k": "v"}, "no 2 of x"], "kept": True},
        "plain": {"c": "{a}"},
    }


@pytest.mark.parametrize("name", ["moco", "simclr", "byol"])
def test_recipes_of_the_paper_say_what_it_used(name: str) -> None:
    """Section "Settings" of docs/explanation/paper.md."""
    config, plan = checked(ROOT / "recipes" / "paper" / f"{name}.toml")
    assert ("nopool" in config.encoders["victim"].load) == (name != "byol")
    assert config.encoders["victim"].load.endswith("raw,whole")
    assert "224" in config.encoders["victim"].load
    thieves = [attack.steps[0].settings["recipe"] for title, attack in config.attacks.items() if " " not in title]
    assert {recipe["architecture"] for recipe in thieves} == {
        f"torchvision:resnet{depth}@nopool" for depth in (18, 34, 50, 101)
    }
    assert len(thieves) == 8
    assert list(config.tasks) == ["cifar10", "mnist", "fashion-mnist"]
    assert config.method == "mlp"
    published = config.schemes["published"]
    assert build_scheme(published.scheme, published.settings) == SSLGuard.published()
    assert config.beds["stl10"]["mark"] == f"stl10:unlabeled[0:{50_000 + SSLGuard.published().n_verification}]"
    (overwriting,) = config.attacks["itself overwritten"].steps
    assert overwriting.settings["scheme"] == {"scheme": published.scheme}
    made = [plan.about[cell.name] for cell in plan.cells if cell.group == "make"]
    assert sum(" " not in about["attack"] for about in made) == 16


def test_no_role_that_something_trains_on_is_asked_about_at_the_size_of_the_paper() -> None:
    roles = read_config(ROOT / "recipes" / "paper" / "moco.toml").beds["stl10"]
    bounds = {role: re.fullmatch(r"stl10:unlabeled\[(\d+):(\d+)\]", spec) for role, spec in roles.items()}
    ends = {role: (int(found[1]), int(found[2])) for role, found in bounds.items() if found}
    assert ends["verify"][0] >= max(ends["mark"][1], ends["thief"][1])
