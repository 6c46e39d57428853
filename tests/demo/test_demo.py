"""The demonstration, end to end with the smallest networks, and everything that it refuses before it starts."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sslguard.claims.audit import audit
from sslguard.claims.outcome import Terms
from sslguard.controls.making import make_population
from sslguard.controls.recipes import Bed, Recipe
from sslguard.controls.recipes import population as controls_population
from sslguard.data.roles import Roles
from sslguard.data.specs import open_data
from sslguard.demo import run as demo_run
from sslguard.demo.run import DemoResult, run_demo
from sslguard.demo.settings import CLEAN, EXACT_MARKED, EXACT_STOLEN, MARKED, STOLEN, DemoSettings
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import save_encoder
from sslguard.encoders.load import load_encoder
from sslguard.errors import MissingExtraError, OutputError, UsageError
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import load_key
from sslguard.schemes.sslguard.scheme import CuredSSLGuard, SSLGuard
from sslguard.training.distillation import Distillation
from sslguard.verification.verdict import verify

CLEAN_SPEC = "random:resnet-narrow:1@16"
ALPHA = 0.25  # seven controls and more support it, for one claim


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Pictures of two classes that differ in brightness, in one file, and a cache of its own."""
    folder = tmp_path_factory.mktemp("demo")
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 2
    pictures = (generator.integers(0, 120, (240, 1, 16, 16)) + 90 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "bed.npz", images=pictures, labels=labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSLGUARD_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def roles(place: Path) -> Roles:
    bounds = range(0, 241, 240 // len(fields(Roles)))
    parts = zip(fields(Roles), bounds, bounds[1:], strict=False)
    return Roles(**{field.name: f"{place}/bed.npz[{start}:{stop}]" for field, start, stop in parts})


@pytest.fixture(scope="module")
def population(place: Path, roles: Roles) -> Path:
    folder = place / "controls"
    chosen = [Recipe(f"random-{i}", "random", None, {"architecture": "resnet-narrow"}) for i in range(8)]
    chosen.append(Recipe("pruned", "pruned", CLEAN_SPEC, {"amount": 0.2}))
    # Without a slash, since a member's name is its folder's too.
    chosen.append(Recipe("<script>alert(1)<script>", "random", None, {"architecture": "resnet-narrow"}))
    make_population(chosen, Bed(roles.pretrain, roles.thief, roles.probe_train), folder, width=64)
    return folder


@pytest.fixture(scope="module")
def settings(roles: Roles, population: Path) -> DemoSettings:
    small = {"steps": 3, "batch_size": 4, "trigger_batch": 4, "n_queries": 16, "secret_dim": 8}
    return DemoSettings(
        encoder=CLEAN_SPEC,
        population=population,
        scheme=CuredSSLGuard(law_steps=30, **small),
        published=SSLGuard(decoder_hidden=(16,), n_verification=8, **small),
        exact=Exact(Protocol(n_queries=20), mode="head"),
        exact_thief=Distillation(architecture="resnet-narrow", loss="mse", steps=4, batch_size=8),
        thief=Distillation(architecture="resnet-narrow", steps=4, batch_size=8),
        innocents=("random:resnet-narrow:2@16",),
        held_out=("random-0", "<script>alert(1)<script>"),
        alpha=ALPHA,
        roles=roles,
        few_labels=2,
        seed=7,
    )


@pytest.fixture(scope="module")
def result(settings: DemoSettings, place: Path) -> DemoResult:
    return run_demo(place / "out", settings=settings)


def text_of(result: DemoResult) -> str:
    console = Console(file=io.StringIO(), width=400)
    console.print(result.table())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ---------------------------------------------------------------- what comes out


def test_result_json_is_what_the_result_says(result: DemoResult) -> None:
    written = json.loads(result.files["result"].read_text())
    assert written == json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert written["n_controls"] == 8
    assert (written["null"], written["floor"]) == ("exact", 2.0**-256)
    assert written["n_images"] == 16
    assert written["public_seed"] == 7
    assert written["keys"][0]["refusal"] is None
    assert set(written["curves"]["marking"]) == {"loss"}
    assert set(written["curves"]["marking with the published losses"]) == {"shadow", "decoder", "watermark"}
    assert [len(values) for values in written["curves"]["stealing"].values()] == [4]
    assert written["settings"]["Thief"]["queries"] == 24
    assert written["seconds"].keys() >= {"mark the encoder", "steal the watermarked encoder", "probe the encoders"}


def test_every_suspect_is_tested_and_none_of_them_is_a_control(result: DemoResult, settings: DemoSettings) -> None:
    written = result.to_json()
    suspects = written["keys"][0]["suspects"]
    names = [suspect["name"] for suspect in suspects]
    assert names == [MARKED, STOLEN, CLEAN, *settings.innocents, *settings.held_out]
    assert [suspect["truly_derived"] for suspect in suspects] == [True, True, *[False] * 4]
    assert {suspect["decision"] for suspect in suspects} <= {"derived", "not shown"}
    for key in written["keys"]:
        assert len(key["controls"]) == 8
        assert not set(key["controls"]) & set(names)
    assert {control["kind"] for control in written["keys"][0]["controls"].values()} == {"random", "pruned of F"}


def test_alpha_is_shared_and_the_table_says_so(result: DemoResult) -> None:
    assert result.data.main.n_claims == 6
    assert "Alpha 1e-06 shared among 6 suspects" in text_of(result)


def test_verdicts_can_be_repeated_from_the_written_files(result: DemoResult, settings: DemoSettings) -> None:
    key, data = load_key(result.files["key"]), open_data(settings.roles.verify)
    for suspect, folder in zip(result.data.main.suspects, ("encoder", "surrogate"), strict=False):
        verdict = verify(key, load_encoder(result.files[folder]), data, alpha=settings.exact_alpha, n_claims=6)
        assert verdict.decision == suspect.decision
        assert verdict.significance.pvalue == pytest.approx(suspect.significance.pvalue)
        assert verdict.significance.statistic == pytest.approx(suspect.significance.statistic)


def test_the_exact_scheme_stands_beside(result: DemoResult, settings: DemoSettings) -> None:
    found = result.to_json()["exact"]
    names = [row["name"] for row in found["suspects"]]
    assert names[:3] == [EXACT_MARKED, EXACT_STOLEN, CLEAN]
    assert [row["truly_derived"] for row in found["suspects"]] == [True, True] + [False] * (len(names) - 2)
    assert found["n_queries"] == 20
    assert found["alpha"] == settings.exact_alpha == 1e-6
    assert set(found["controls"]) == set(result.data.keys[0].controls)
    # Again from what was written: the same evidence, to the bit.
    key, data = load_key(result.files["exact-key"]), open_data(settings.roles.verify)
    for row, folder in zip(found["suspects"], ("exact-encoder", "exact-surrogate"), strict=False):
        verdict = verify(key, load_encoder(result.files[folder]), data, control_scores={}, alpha=ALPHA)
        assert verdict.significance.log2_pvalue == pytest.approx(row["log2_pvalue"], abs=1e-9)
        assert row["decision"] == ("derived" if 2 ** row["log2_pvalue"] <= 1e-6 / len(names) else "not shown")
    page = result.files["page"].read_text()
    assert "under the scheme exact" in page
    assert EXACT_STOLEN in page


def test_it_ends_with_a_claim_and_its_audit(result: DemoResult, settings: DemoSettings) -> None:
    found = result.data.audit
    status = {check.name: check.status for check in found.checks}
    for name in ("signature", "commitment", "clean encoder", "derivation", "queries", "answers", "statistic"):
        assert status[name] == "passed"
    assert status["date"] == "assumed"
    assert found.n_tries == 2**64  # one key, one claim, and nothing that dates it
    assert "The commitment has no timestamp" in result.files["audit"].read_text()
    assert "A claim, and its audit" in result.files["page"].read_text()
    # By somebody else, from what was written: the same decision; without F none.
    terms, data = Terms(seed="demonstration 7", alpha=settings.exact_alpha), open_data(settings.roles.verify)
    again = audit(result.files["claim"], data, terms, clean=load_encoder(settings.encoder))
    assert again.decision == found.decision
    assert audit(result.files["claim"], data, terms).decision == "not checkable"


@pytest.mark.parametrize("name", ["commitment.json", "claim", "audit.html"])
def test_what_somebody_else_committed_to_is_not_replaced(
    name: str, tmp_path: Path, settings: DemoSettings, no_work: None
) -> None:
    place = tmp_path / name
    place.mkdir() if name == "claim" else place.write_text("theirs")
    with pytest.raises(OutputError):
        run_demo(tmp_path, settings=settings)
    assert place.exists()


def test_accuracies_come_with_their_baselines(result: DemoResult) -> None:
    full, few, other = result.to_json()["accuracies"]
    for task in (full, few, other):
        names = [bar["name"] for bar in task["bars"]]
        assert names == ["raw pixels", "untrained network", CLEAN, MARKED, STOLEN, EXACT_MARKED, EXACT_STOLEN]
    assert (full["task"], few["task"]) == ("bed.npz, 24 labels", "bed.npz, 2 labels a class")
    bars = {bar["name"]: bar for bar in full["bars"]}
    floor = max(bars["raw pixels"]["accuracy"], bars["untrained network"]["accuracy"])
    clean = bars[CLEAN]["accuracy"]
    for name in (MARKED, STOLEN):
        kept = None if clean <= floor else pytest.approx((bars[name]["accuracy"] - floor) / (clean - floor))
        assert bars[name]["kept"] == kept


def test_page_escapes_names_and_shows_the_trigger(result: DemoResult) -> None:
    text = result.files["page"].read_text()
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(text)
    assert "script" not in tags
    assert "&lt;script&gt;" in text
    assert not re.search(r"""(src|srcset|href)=["']?https?:""", text)
    assert "public seed 7" in text
    assert "trigger under its mask" in text


def test_next_commands_name_the_written_folders(result: DemoResult, settings: DemoSettings, place: Path) -> None:
    text = text_of(result)
    assert f"sslguard verify {place}/out/key {place}/out/surrogate \\" in text
    assert f"--data '{settings.roles.verify}' --alpha 1e-06" in text


def test_key_is_private_and_the_secret_is_on_no_page(result: DemoResult) -> None:
    assert (result.files["key"] / "key.json").stat().st_mode & 0o077 == 0
    secret = json.loads((result.files["key"] / "key.json").read_text())["fields"]["secret"]
    for name in ("page", "result"):
        assert secret not in result.files[name].read_text()


@pytest.mark.usefixtures("undrawn")
def test_same_seed_same_figures_and_a_rerun_replaces_only_its_own_files(
    result: DemoResult, settings: DemoSettings, place: Path
) -> None:
    (place / "out" / "notes.txt").write_text("mine")
    again = run_demo(place / "out", settings=settings)
    for part in ("keys", "accuracies", "curves"):
        assert again.to_json()[part] == result.to_json()[part]
    assert (place / "out" / "notes.txt").read_text() == "mine"
    assert not list((place / "out").glob(".*"))


@pytest.mark.usefixtures("undrawn")
def test_secret_comes_from_the_system_unless_a_seed_is_given(
    settings: DemoSettings, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_run.stages, "probe", lambda *_: ())
    results = [run_demo(place / "fresh", settings=replace(settings, seed=None)) for _ in range(2)]
    statistics = [result.data.main.scores[STOLEN].value for result in results]
    assert statistics[0] != statistics[1]
    assert "public seed" not in results[0].files["page"].read_text()


# ---------------------------------------------------------------- refusals


@pytest.mark.usefixtures("undrawn")
def test_alpha_below_the_floor_is_refused_under_the_published_key_alone(
    settings: DemoSettings, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_run.stages, "probe", lambda *_: ())
    main, beside = run_demo(place / "refused", settings=replace(settings, alpha=0.01)).to_json()["keys"]
    assert main["refusal"] is None
    assert {suspect["decision"] for suspect in beside["suspects"]} == {"refused"}
    ranks = [9 * suspect["pvalue"] for suspect in beside["suspects"]]
    assert ranks == pytest.approx(np.clip(np.round(ranks), 1, 9))
    assert "8 controls" in beside["refusal"]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("work began before the refusal")

    monkeypatch.setattr(demo_run.stages, "mark", refuse)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", ["encoder", "key", "surrogate", "report.html", "result.json", "result.png"])
def test_things_of_others_are_not_overwritten(settings: DemoSettings, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("mine")
    with pytest.raises(OutputError, match=name):
        run_demo(tmp_path, settings=settings)
    assert (tmp_path / name / "mine").read_text() == "mine"


@pytest.mark.usefixtures("no_work")
def test_encoder_beside_other_files_is_not_overwritten(settings: DemoSettings, tmp_path: Path) -> None:
    save_encoder(load_encoder(CLEAN_SPEC), tmp_path / "encoder")
    (tmp_path / "encoder" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="encoder"):
        run_demo(tmp_path, settings=settings)
    assert (tmp_path / "encoder" / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("no_work")
def test_folder_that_cannot_be_written_is_refused(settings: DemoSettings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/sslguard")):
        with pytest.raises(OutputError, match=re.escape(str(out))):
            run_demo(out, settings=settings)


def wide() -> Encoder:
    return load_encoder("random:resnet-wide@16")


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": ("nobody",)}, "no 'nobody'"),
        ({"innocents": ("random:resnet-narrow:2@16",) * 2}, "same name"),
        ({"held_out": ("random-1", "random-1")}, "same name"),
        ({"innocents": ("no-such-encoder",)}, "does not name an encoder"),
        ({"innocents": (wide(),)}, "dimensions"),
        ({"population": Path("nowhere")}, "no population"),
        ({"held_out": (*(f"random-{i}" for i in range(8)), "pruned", "<script>alert(1)<script>")}, "none is left"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_does_not_go_together_is_refused_first(
    settings: DemoSettings, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run_demo(tmp_path, settings=replace(settings, **changes))  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("role", ["mark", "thief"])
def test_verification_takes_items_that_nobody_trained_on(settings: DemoSettings, tmp_path: Path, role: str) -> None:
    mixed = replace(settings.roles, **{role: settings.roles.verify})
    with pytest.raises(UsageError, match="share 24 items"):
        run_demo(tmp_path, settings=replace(settings, roles=mixed))


@pytest.mark.usefixtures("no_work")
def test_too_few_items_to_ask_about(settings: DemoSettings, tmp_path: Path) -> None:
    hungry = replace(settings.scheme, n_queries=25)
    with pytest.raises(UsageError, match="fewer than the 25 queries"):
        run_demo(tmp_path, settings=replace(settings, scheme=hungry))


def test_second_domain_is_skipped_where_its_package_is_missing(
    settings: DemoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sslguard.demo import inputs

    def without_digits(spec: str) -> object:
        if spec == settings.roles.digits_probe_train:
            raise MissingExtraError("data set mnist-5k", "dev")
        return open_data(spec)

    monkeypatch.setattr(inputs, "open_data", without_digits)
    task = inputs.open_inputs(settings).tasks[-1]
    assert task.train is None
    assert task.skipped is not None
    assert "pip install" in task.skipped


def test_default_suspects_are_members_of_the_population_and_enough_controls_remain() -> None:
    chosen = controls_population({"simclr": "shipped:simclr", "moco": "shipped:moco", "byol": "shipped:byol"})
    defaults = DemoSettings()
    assert set(defaults.held_out) <= {recipe.name for recipe in chosen}
    assert len(chosen) - len(defaults.held_out) >= 99


@pytest.mark.parametrize("changes", [{"alpha": 0.0}, {"alpha": 1.0}, {"few_labels": 0}, {"seed": -1}])
def test_settings_out_of_range(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        DemoSettings(**changes)  # type: ignore[arg-type]
