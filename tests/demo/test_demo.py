"""The demonstration, end to end with the smallest networks, and everything that it refuses before it starts."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sslguard import api
from sslguard.controls.members import read_population, shipped_population
from sslguard.data.roles import Roles
from sslguard.demo import run as demo_run
from sslguard.demo.run import FILES, DemoResult, run_demo
from sslguard.demo.settings import FROM_TESTBED, INNOCENTS, MEMBER, PIXELS, DemoSettings, Innocent
from sslguard.demo.suspects import COPIED, MARKED, STOLEN
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.load import load_encoder
from sslguard.errors import OutputError, UsageError
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.sslguard.scheme import CuredSSLGuard
from sslguard.training.recipes import Distillation, Supervised

CLEAN = "random:resnet-narrow:1@16"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Pictures of two classes that differ in brightness, in one file, and a cache of its own."""
    folder = tmp_path_factory.mktemp("demo")
    generator = np.random.default_rng(0)
    labels = np.arange(1000) % 2
    pictures = (generator.integers(0, 120, (1000, 1, 16, 16)) + 90 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "bed.npz", images=pictures, labels=labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSLGUARD_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def settings(place: Path) -> DemoSettings:
    parts = {field.name: f"{place}/bed.npz[{100 * at}:{100 * at + 100}]" for at, field in enumerate(fields(Roles))}
    thief = Distillation(architecture="resnet-narrow", loss="centred", steps=4, batch_size=8)
    small: dict[str, Any] = {"steps": 3, "batch_size": 4, "trigger_batch": 4, "n_queries": 16, "secret_dim": 8}
    return DemoSettings(
        encoder=CLEAN,
        scheme=Exact(Protocol(n_queries=100), mode="head"),
        thief=thief,
        copier=Supervised(steps=2, batch_size=8),
        paper=CuredSSLGuard(law_steps=30, **small),
        paper_thief=thief,
        innocents=(
            Innocent("clean encoder", "before the marking", CLEAN),
            Innocent("<script>alert(1)<script>", "another", "random:resnet-narrow:2@16"),
            Innocent("raw pixels", "no network", PIXELS),
        ),
        roles=Roles(**parts),
        probe_items=40,
        seed=7,
    )


@pytest.fixture(scope="module")
def result(settings: DemoSettings, place: Path) -> DemoResult:
    """Made by two runs: the first one is stopped before its claim."""
    out = place / "out"

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_run, "_claim", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_demo(out, settings=settings)
    begun = json.loads((out / "result.json").read_text())
    made = {name: (out / name).stat().st_mtime_ns for name in ("marked", "stolen", "copied")}
    found = run_demo(out, settings=settings)
    assert {name: (out / name).stat().st_mtime_ns for name in made} == made
    assert {name: found.fields["found"][name] for name in begun["found"]} == begun["found"]
    return found


def test_each_suspect_is_told_by_answers_and_by_weights(result: DemoResult, settings: DemoSettings) -> None:
    rows = {name.removeprefix("ask "): row for name, row in result.fields["found"].items() if name.startswith("ask ")}
    assert list(rows) == [MARKED, STOLEN, COPIED, *(one.name for one in settings.innocents)]
    assert [row["derived"] for row in rows.values()] == [True] * 3 + [False] * 3
    # The head holds the mark, and the thief has removed it: the copied weights show their order alone.
    assert rows[MARKED]["weights"] > 60
    assert rows[COPIED]["weights"] > 60
    assert rows[COPIED]["answers"] < 24
    assert rows[COPIED]["decision"] == "derived"
    assert rows["raw pixels"]["weights"] is None
    assert [row["decision"] for row in rows.values()][3:] == ["not shown"] * 3
    assert settings.n_tests == 22
    names = [row["name"] for row in result.fields["paper"]["suspects"]]
    assert names == [MARKED, STOLEN, *(one.name for one in settings.innocents[:2])]


def test_verdicts_can_be_repeated_from_the_written_files(result: DemoResult, settings: DemoSettings) -> None:
    for folder, name in (("marked/encoder", MARKED), ("stolen", STOLEN), ("copied", COPIED)):
        level = {"alpha": settings.alpha, "n_claims": settings.n_tests}
        verdict = api.verify(result.out / "marked/key", str(result.out / folder), settings.roles.verify, **level)
        row = result.fields["found"][f"ask {name}"]
        assert -verdict.significance.log2_pvalue == pytest.approx(row["answers"], abs=0.01)
        assert verdict.lineage is not None
        assert -verdict.lineage.log2_pvalue == pytest.approx(row["weights"], abs=0.01)


def test_it_ends_with_a_claim_and_its_audit(result: DemoResult) -> None:
    claim = result.fields["found"]["claim, and audit the claim"]
    status = {name: status for name, status, _ in claim["checks"]}
    for name in ("signature", "commitment", "clean encoder", "derivation", "queries", "answers", "statistic"):
        assert status[name] == "passed"
    assert status["date"] == "assumed"
    assert claim["decision"] == "not shown"  # four steps make no copy
    assert "The commitment has no timestamp" in (result.out / "audit.html").read_text()


def test_everything_is_written_and_the_secret_is_on_no_page(result: DemoResult) -> None:
    written = json.loads((result.out / "result.json").read_text())
    assert {**written, "already_done": False} == json.loads(json.dumps(result.to_json()))
    assert all((result.out / place).exists() for place in FILES.values())
    assert not list(result.out.glob(".*"))
    assert not list(result.out.glob("*.unfinished"))
    key = result.out / "marked/key/key.json"
    assert key.stat().st_mode & 0o077 == 0
    secret = json.loads(key.read_text())["fields"]["secret"]
    page = (result.out / "report.html").read_text()
    assert secret not in page
    assert secret not in (result.out / "result.json").read_text()
    assert "public seed 7" in page
    assert "<script" not in page
    assert set(written["found"]["measure what the copies are worth"]) == {
        *("clean encoder", "raw pixels", MARKED, STOLEN, COPIED),
    }


def test_the_same_call_again_only_reads(
    result: DemoResult, settings: DemoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_run, "_prove", lambda *_: pytest.fail("it was all done"))
    (result.out / "notes.txt").write_text("mine")
    again = run_demo(result.out, settings=settings)
    assert again.again
    assert again.fields == result.fields
    console = Console(file=io.StringIO(), width=200)
    console.print(again.table())
    assert isinstance(console.file, io.StringIO)
    assert f"sslguard verify {result.out}/marked/key {result.out}/stolen" in console.file.getvalue()
    with pytest.raises(OutputError, match="other settings"):
        run_demo(result.out, settings=replace(settings, seed=8))
    assert (result.out / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("undrawn")
def test_a_page_that_is_missing_is_written_again(
    result: DemoResult, settings: DemoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_run.paper, "beside", lambda *_: nullcontext())
    (result.out / "report.html").unlink()
    again = run_demo(result.out, settings=settings)
    assert not again.again
    assert again.fields["found"] == result.fields["found"]
    assert (result.out / "report.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_without_a_seed_the_secret_is_fresh(result: DemoResult, settings: DemoSettings, place: Path) -> None:
    fresh = run_demo(place / "fresh", settings=replace(settings, seed=None, paper=None))
    assert "paper" not in fresh.fields
    assert not (place / "fresh/paper").exists()
    hashes = {weights_hash(load_encoder(out / "marked/encoder").module) for out in (fresh.out, result.out)}
    assert len(hashes) == 2


# ---------------------------------------------------------------- refusals


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_run, "_prove", lambda *_: pytest.fail("work began before the refusal"))


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", [*FILES.values(), "result.json"])
def test_things_of_others_are_not_overwritten(settings: DemoSettings, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("mine")
    with pytest.raises(OutputError, match=name):
        run_demo(tmp_path, settings=settings)
    assert (tmp_path / name / "mine").read_text() == "mine"


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("role", ["mark", "thief"])
def test_verification_takes_items_that_nobody_trained_on(settings: DemoSettings, tmp_path: Path, role: str) -> None:
    mixed = replace(settings.roles, **{role: settings.roles.verify})
    with pytest.raises(UsageError, match="share 100 items"):
        run_demo(tmp_path, settings=replace(settings, roles=mixed))


def test_the_defaults_go_by_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    members = {member.name for member in read_population(shipped_population())}
    assert {one.spec.removeprefix(MEMBER) for one in FROM_TESTBED} <= members
    assert DemoSettings.here().paper is not None
    assert DemoSettings.here().innocents == INNOCENTS + FROM_TESTBED
    monkeypatch.setattr("sslguard.demo.settings.find_spec", lambda _: None)
    assert DemoSettings.here() == DemoSettings(paper=None)
    assert len(INNOCENTS) >= 5


@pytest.mark.parametrize("changes", [{"alpha": 0.0}, {"alpha": 1.0}, {"probe_items": 0}, {"seed": -1}])
def test_settings_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        DemoSettings(**changes)
