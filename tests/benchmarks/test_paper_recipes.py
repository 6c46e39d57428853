"""The recipes of the paper's size: one shrunken run from end to end, and what is refused before anything is trained."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from sslguard.crypto.secrets import Secret
from sslguard.data import open_data
from sslguard.encoders import load_folder, weights_hash
from sslguard.encoders.rebuild import build
from sslguard.schemes.keyfile import load_key
from sslguard.schemes.sslguard import SSLGuard
from sslguard.training import Loop, run
from sslguard.training.augmentation import Augmentation
from sslguard.verification.verdict import score_suspect

RECIPES = Path(__file__).parents[2] / "recipes" / "paper"
MODULES = ("run", "ask", "bench", "items", "make", "reading", "settings", "table")
NAMES = ("simclr", "moco", "byol")
ATTACKED = "resnet-narrow-photos"


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def recipe_modules() -> Iterator[dict[str, ModuleType]]:
    """The script's modules, which are no package: imported from their folder and forgotten again."""
    assert not [name for name in MODULES if name in sys.modules]
    sys.path.insert(0, str(RECIPES))
    try:
        yield {name: import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(RECIPES))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def paper(recipe_modules: dict[str, ModuleType]) -> Any:
    def call(*arguments: object) -> Ran:
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            code = recipe_modules["run"].main([str(a) for a in (*arguments, "--accelerator", "cpu", "--quiet")])
        return Ran(code, out.getvalue(), err.getvalue())

    return call


def published_files() -> dict[str, dict[str, Any]]:
    """Recipe → content of a checkpoint as its source publishes it (encoders/test_checkpoints.py), with a ResNet-18."""
    module, _ = build({"backbone": "torchvision:resnet18"}, seed=0)
    state = module.state_dict()
    numbers = {"conv1": 0, "bn1": 1, **{f"layer{i}": 3 + i for i in range(1, 5)}}
    parts = {name: name.partition(".") for name in state}
    numbered = {f"module.encoder.{numbers[head]}.{tail}": state[name] for name, (head, _, tail) in parts.items()}
    return {
        "simclr": {"state_dict": state | {"fc.weight": torch.ones(9, 512), "fc.bias": torch.ones(9)}},
        "moco": {"epoch": 800, "state_dict": {f"module.encoder_q.{name}": value for name, value in state.items()}},
        "byol": {"online_backbone": numbered},
    }


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the three checkpoints, an encoder of another width, and 120 labelled colour pictures."""
    root = tmp_path_factory.mktemp("paper")
    for name, content in published_files().items():
        torch.save(content, root / f"{name}.pth")
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 2
    pictures = generator.integers(0, 128, (120, 24, 24, 3), dtype=np.uint8) + (labels * 100)[:, None, None, None]
    np.savez(root / "photos.npz", images=pictures.astype(np.uint8), labels=labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSLGUARD_CACHE", str(root / "cache"))
        yield root


def shrunken(bed: Path, name: str = "moco", **changes: str | None) -> list[str]:
    """Arguments that shrink a recipe: a ResNet-18 at 16 pixels, two iterations, slices of the pictures.

    `changes` are further settings; None leaves one to the recipe.
    """
    photos = f"{bed}/photos.npz"
    tiny = {"steps": "2", "batch_size": "4"}
    mark = {
        **{"steps": "2", "batch_size": "4", "trigger_batch": "4", "optimizer": "adam"},
        **{"shadow": "resnet-narrow", "shadow_weights": "none"},
        **{"encoder_rate": "1e-3", "decoder_rate": "3e-3", "trigger_rate": "3e-2"},
        **{"n_verification": "8", "n_queries": "12", "secret_dim": "32", "decoder_hidden": "[64, 64]"},
    }
    settings = {
        "encoder.checkpoint": f"{bed}/{name}.pth",
        "encoder.architecture": "resnet18",
        "encoder.size": "16",
        "scheme.data": f"{photos}[0:30]",
        **{f"scheme.settings.{key}": value for key, value in (mark | {"steps": "12"}).items()},
        "steal.architectures": '["torchvision:resnet18", "resnet-narrow"]',
        "steal.queries": f"{{photos = '{photos}[30:50]'}}",
        **{f"steal.recipe.{key}": value for key, value in tiny.items()},
        "attacks.prune.on": f'["itself", "{ATTACKED}"]',
        "attacks.prune.amounts": "[0.4]",
        "attacks.fine_tune.on": f'["{ATTACKED}"]',
        "attacks.fine_tune.data": f"{photos}[50:60]",
        "attacks.fine_tune.epochs": "[1]",
        "attacks.fine_tune.recipe.batch_size": "4",
        "attacks.overwrite.on": f'["{ATTACKED}"]',
        "attacks.overwrite.marking.data": f"{photos}[30:50]",
        **{f"attacks.overwrite.marking.settings.{key}": value for key, value in mark.items()},
        "attacks.noise.on": f'["itself", "{ATTACKED}"]',
        "attacks.noise.inputs": "[0.1]",
        "attacks.noise.outputs": "[0.5]",
        "verify.data": f"{photos}[60:80]",
        "verify.independent": "['torchvision:resnet18:random@16,raw']",
        "downstream.method": "knn",
        "downstream.tasks": f"{{photos = {{train = '{photos}[80:100]', test = '{photos}[100:120]'}}}}",
        **changes,
    }
    pairs = [part for key, value in settings.items() if value is not None for part in ("--set", f"{key}={value}")]
    return [str(RECIPES / f"{name}.toml"), *pairs]


@pytest.fixture(scope="module")
def out(bed: Path, paper: Any) -> Path:
    """Where the whole shrunken run of moco.toml left its results."""
    folder = bed / "out"
    ran = paper(*shrunken(bed), "--out", folder)
    assert ran.code == 0, ran.err
    assert ran.out == (folder / "table.md").read_text()
    return folder


def rows(page: str, title: str) -> dict[str, list[str]]:
    """First cell → the others, of the table under a heading."""
    lines = [line for line in page.partition(f"## {title}\n")[2].partition("\n## ")[0].splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {first: rest for first, *rest in [cells[0], *cells[2:]]}


def result(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())["result"]
    assert isinstance(content, dict)
    return content


class TestRun:
    def test_every_detection_figure_stands_beside_its_negatives(self, out: Path) -> None:
        found = rows((out / "table.md").read_text(), "Detection")
        header = found.pop("suspect")
        assert header[1:5] == ["of F, made the same way", "F", "untrained, same network", "independent"]
        assert list(found) == [
            *("the encoder itself", "resnet18-photos", ATTACKED, "prune-0.4", f"{ATTACKED}+prune-0.4"),
            *(f"{ATTACKED}+fine-tune-1", f"{ATTACKED}+overwrite", "input-noise-0.1", "output-noise-0.5"),
            *(f"{ATTACKED}+input-noise-0.1", f"{ATTACKED}+output-noise-0.5"),
        ]
        network = {"the encoder itself": "itself", "resnet18-photos": "resnet18", ATTACKED: "resnet-narrow"}
        for name, folder in (("the encoder itself", "itself"), (ATTACKED, ATTACKED), ("prune-0.4", "itself+prune-0.4")):
            paths = (f"marked/{folder}", f"clean/{folder}", "clean/itself")
            paths += (f"untrained/{network.get(name, 'itself')}", "independent/1")
            scores = [result(out / path / "score.json") for path in paths]
            assert found[name][:5] == [f"{s['watermark_rate']:.3f} ({s['cosine']:.3f})" for s in scores]
        for cells in found.values():
            assert not {"–", ""} & set(cells)

    def test_a_rank_is_among_innocents_that_took_no_part_in_marking(self, out: Path) -> None:
        """Two surrogates of F, three untrained networks, one independent: no p below 1/7, so no decision at 1 %."""
        page = (out / "table.md").read_text()
        innocents = [
            *("clean/resnet18-photos", f"clean/{ATTACKED}", "untrained/itself", "untrained/resnet18"),
            *("untrained/resnet-narrow", "independent/1"),
        ]
        cosines = [result(out / path / "score.json")["cosine"] for path in innocents]
        found = rows(page, "Detection")
        marked = result(out / "marked" / "itself" / "score.json")["cosine"]
        expected = (1 + sum(cosine >= marked for cosine in cosines)) / 7
        assert found["the encoder itself"][5:] == [f"{expected:.3g}", "null too small"]
        assert "among 6 innocents" in page
        assert "Smallest possible p: 0.143." in page

    def test_the_mark_is_there_and_not_on_innocents(self, out: Path) -> None:
        """Twelve iterations: too few for a WR, enough for F* to answer unlike F and its network untrained."""
        marked, *innocents = (
            result(out / name / "itself" / "score.json")["cosine"] for name in ("marked", "clean", "untrained")
        )
        assert marked > 0.3
        assert max(innocents) < 0.15

    def test_a_score_is_what_the_stored_key_gives_the_stored_encoder(self, out: Path, bed: Path) -> None:
        key, data = load_key(out / "marked" / "itself" / "key"), open_data(f"{bed}/photos.npz[60:80]")
        score = score_suspect(key, load_folder(out / "marked" / "resnet18-photos" / "encoder"), data)
        stored = result(out / "marked" / "resnet18-photos" / "score.json")
        assert stored == {
            "cosine": pytest.approx(score.value, abs=1e-5),
            "watermark_rate": score.watermark_rate,
            "n_queries": 12,
        }

    def test_surrogates_are_the_networks_asked_for_and_have_victims_and_seeds_of_their_own(self, out: Path) -> None:
        marked, clean = (load_folder(out / origin / "resnet18-photos" / "encoder") for origin in ("marked", "clean"))
        assert isinstance(marked.module.backbone.maxpool, torch.nn.Identity)
        assert (marked.dim, marked.preprocess.shape) == (512, (3, 16, 16))
        assert marked.record["queries"] == clean.record["queries"] == 20
        assert marked.record["seed"] != clean.record["seed"]
        assert min(marked.record["seed"], clean.record["seed"]) > 2**31
        assert weights_hash(marked.module) != weights_hash(clean.module)

    def test_attacks_change_the_surrogate_that_they_name(self, out: Path) -> None:
        attacked = [ATTACKED, f"{ATTACKED}+fine-tune-1", f"{ATTACKED}+overwrite"]
        hashes = {weights_hash(load_folder(out / "marked" / name / "encoder").module) for name in attacked}
        assert len(hashes) == 3
        record = load_folder(out / "marked" / f"{ATTACKED}+fine-tune-1" / "encoder").record
        assert record["recipe"]["steps"] == 3  # ⌈1 epoch of 10 items in batches of 4⌉

    def test_downstream_figures_stand_beside_the_baseline(self, out: Path) -> None:
        found = rows((out / "table.md").read_text(), "Downstream accuracy")
        assert found.pop("encoder") == ["photos"]
        floor = result(out / "untrained" / "itself" / "downstream-photos.json")
        assert floor["accuracy"] >= floor["untrained"]
        assert found.pop("raw pixels or an untrained network") == [f"{floor['accuracy']:.3f}"]
        assert len([name for name in found if name == "F" or name.endswith("of F")]) == 3
        assert len([name for name in found if name == "F\\*" or name.endswith("of F\\*")]) == 11
        for name, folder in (("F", "clean/itself"), (f"{ATTACKED}, of F\\*", f"marked/{ATTACKED}")):
            accuracy = result(out / folder / "downstream-photos.json")["accuracy"]
            assert found[name][0].split()[0] == f"{accuracy:.3f}"

    def test_a_second_run_makes_nothing_anew(
        self, out: Path, bed: Path, paper: Any, recipe_modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("made again")

        monkeypatch.setattr(SSLGuard, "watermark", refuse)
        for module, name in (("make", "train"), ("make", "save_encoder"), ("ask", "score_suspect")):
            monkeypatch.setattr(recipe_modules[module], name, refuse)
        monkeypatch.setattr(recipe_modules["ask"], "probe_encoder", refuse)
        page = (out / "table.md").read_text()
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "table.md"}
        ran = paper(*shrunken(bed), "--out", out)
        assert (ran.code, ran.out) == (0, page)
        after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "table.md"}
        assert {p for p in after if not p.is_dir()} == {p for p in before if not p.is_dir()}
        assert all(after[path] == before[path] for path in before if not path.is_dir())

    def test_other_settings_are_refused_and_the_results_stay(self, out: Path, bed: Path, paper: Any) -> None:
        made = out / "marked" / "resnet18-photos" / "made.json"
        before = made.read_bytes()
        ran = paper(*shrunken(bed, **{"steal.recipe.steps": "3"}), "--out", out)
        assert ran.code == 2
        assert "settings.recipe.steps = 2 and not 3: choose another --out, or delete" in ran.err
        assert made.read_bytes() == before

    def test_further_attacks_and_controls_join_what_is_there(self, out: Path, bed: Path, paper: Any) -> None:
        """With a seventh innocent p can be 1/8, so that there is a decision at 20 %."""
        control = "torchvision:resnet18:random@16"
        more = {"attacks.prune.amounts": "[0.4, 0.9]", "verify.controls": f"['{control}']", "verify.alpha": "0.2"}
        page = (out / "table.md").read_text()
        try:
            ran = paper(*shrunken(bed, **more), "--out", out, "--only", "verify", "table")
        finally:
            (out / "table.md").write_text(page)
        assert ran.code == 0, ran.err
        assert "among 7 innocents" in ran.out
        assert list(json.loads((out / "controls.json").read_text())["result"]["cosines"]) == [control]
        found = rows(ran.out, "Detection")
        assert found["prune-0.9"][0] != "–"
        for cells in list(found.values())[1:]:
            assert cells[6] == ("derived" if float(cells[5]) <= 0.2 else "not shown")
        assert found["the encoder itself"][5:] == ["0.125", "derived"]
        (out / "controls.json").unlink()

    def test_a_plan_lists_what_is_made_and_makes_nothing(self, bed: Path, paper: Any) -> None:
        ran = paper(*shrunken(bed), "--out", bed / "planned", "--plan")
        assert ran.code == 0
        assert "mark    marked/itself  (not trained yet)" in ran.out
        assert f"wrap    clean/{ATTACKED}+output-noise-0.5\n" in ran.out
        assert not (bed / "planned").exists()


def test_an_interrupted_run_goes_on_where_it_stopped(
    bed: Path, out: Path, paper: Any, recipe_modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """^C in the first of two steps of stealing; what comes out of the second run is what an unbroken one makes."""
    folder, name = bed / "interrupted", "resnet18-photos"
    shutil.copytree(out / "marked" / "itself", folder / "marked" / "itself")
    task, asked = recipe_modules["make"].DistillationTask, []

    class Interrupted(task):  # type: ignore[misc, valid-type]
        def load(self, indices: np.ndarray) -> Any:
            asked.append(len(indices))
            if len(asked) == 1:
                signal.raise_signal(signal.SIGINT)
            return super().load(indices)

    monkeypatch.setattr(recipe_modules["make"], "DistillationTask", Interrupted)
    command = (*shrunken(bed), "--out", folder, "--only", "mark", "steal")
    ran = paper(*command)
    assert (ran.code, ran.err) == (130, "paper: interrupted; the same command goes on where it stopped\n")
    assert asked == [4]
    assert [path.name for path in (folder / "unfinished").iterdir()] == [f"marked-{name}.pt"]
    assert not (folder / "marked" / name).exists()
    assert paper(*command).code == 0
    assert len(asked) == 4 * 2  # the rest of the first, and three whole ones
    assert not list((folder / "unfinished").iterdir())
    ours, unbroken = (load_folder(root / "marked" / name / "encoder").module for root in (folder, out))
    assert weights_hash(ours) == weights_hash(unbroken)


@pytest.mark.slow
def test_two_processes_share_the_trainings(bed: Path) -> None:
    command = [sys.executable, str(RECIPES / "run.py"), *shrunken(bed), "--out", str(bed / "two")]
    command += ["--accelerator", "cpu", "--devices", "2", "--only", "mark", "steal", "remove", "table"]
    said, warned = bed / "two.out", bed / "two.err"
    with said.open("w") as stdout, warned.open("w") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, start_new_session=True)
        try:
            code = process.wait(timeout=500)
        finally:
            with suppress(ProcessLookupError):  # neither of the two outlives the test
                os.killpg(process.pid, signal.SIGKILL)
    assert code == 0, warned.read_text()
    assert said.read_text().count("# MoCo v2") == 1
    assert len(list((bed / "two").glob("*/*/made.json"))) == 9
    assert not list((bed / "two" / "unfinished").iterdir())


MISTAKES: dict[str, tuple[dict[str, str], int, str]] = {
    "unknown key": ({"steel.augment": "true"}, 2, "the recipe has no key 'steel'; did you mean steal?"),
    "misspelt setting": ({"scheme.settings.stpes": "3"}, 2, "scheme.settings has no key 'stpes'; did you mean steps?"),
    "misspelt setting of a thief's marking": (
        {"attacks.overwrite.marking.settings.optimiser": "adam"},
        2,
        "attacks.overwrite.marking.settings has no key 'optimiser'; did you mean optimizer?",
    ),
    "unknown setting": ({"steal.recipe.xyz": "3"}, 2, "steal.recipe has no key 'xyz'; known: loss,"),
    "architecture in the recipe": ({"steal.recipe.architecture": "x"}, 2, "steal.recipe has no key 'architecture'"),
    "text for a number": (
        {"scheme.settings.steps": "many"},
        2,
        "scheme.settings.steps must be a whole number, not 'many'",
    ),
    "fraction for a count": ({"encoder.size": "16.5"}, 2, "encoder.size must be a whole number, not 16.5"),
    "truth for a number": ({"seed": "true"}, 2, "seed must be a whole number, not True"),
    "negative seed": ({"seed": "-1"}, 2, "seed must not be negative, but is -1"),
    "text for a truth": ({"encoder.maxpool": "1"}, 2, "encoder.maxpool must be true or false, not 1"),
    "no preset": ({"scheme.preset": "inherited"}, 2, "scheme.preset must be one of published, released-gradients,"),
    "value for a list": ({"verify.controls": "shipped"}, 2, "verify.controls must be a list, not 'shipped'"),
    "value for a table": ({"steal.queries": "3"}, 2, "steal.queries must be a table, not 3"),
    "table for a value": ({"name.first": "x"}, 2, "--set name.first: name is a value of the recipe, not a table"),
    "a name that is a path": ({"steal.queries": "{'../x' = 'y'}"}, 2, "must be made of letters, digits, _ and -"),
    "no change": ({"": "x"}, 2, "--set takes KEY=VALUE, such as steal.recipe.steps=100, not '=x'"),
    "infinite": ({"attacks.prune.amounts": "[inf]"}, 2, "attacks.prune.amounts[0] must be a finite number, not inf"),
    "amount": ({"attacks.prune.amounts": "[1.5]"}, 2, "amount must lie between 0 and 1, not 1.5"),
    "noise": ({"attacks.noise.outputs": "[0.0]"}, 2, "std must be a positive finite number, not 0.0"),
    "epochs": ({"attacks.fine_tune.epochs": "[0]"}, 2, "epochs must be positive"),
    "loss": ({"steal.recipe.loss": "hinge"}, 2, "steal.recipe.loss must be one of cosine, centred, mse, infonce"),
    "level": ({"verify.alpha": "1.0"}, 2, "verify.alpha must lie between 0 and 1, not 1.0"),
    "nothing to attack": (
        {"attacks.prune.on": '["resnet99-photos"]'},
        2,
        "attacks.prune.on: there is no 'resnet99-photos' to attack, only itself, resnet18-photos, resnet-narrow-photos",
    ),
    "twice": ({"attacks.prune.amounts": "[0.4, 0.4]"}, 2, "the recipe makes marked/itself+prune-0.4 twice"),
    "no such data": ({"verify.data": "stl11:unlabeled"}, 2, "no data set 'stl11'"),
    "no checkpoint": ({"encoder.checkpoint": "absent.pth"}, 3, "encoder.checkpoint: there is no file absent.pth;"),
    "another format": ({"encoder.format": "byol"}, 3, "moco.pth has the format moco, not byol as encoder.format says"),
    "another network": ({"encoder.architecture": "resnet50"}, 3, "holds a resnet18, not the resnet50"),
    "another width": (
        {"verify.independent": "['random:resnet-narrow']"},
        2,
        "verify.independent: random:resnet-narrow answers in 64 dimensions and F in 512",
    ),
}


class TestMistakes:
    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_a_mistake_is_one_sentence_and_nothing_is_made(self, mistake: str, bed: Path, paper: Any) -> None:
        changes, code, sentence = MISTAKES[mistake]
        ran = paper(*shrunken(bed, **changes), "--out", bed / "refused")
        assert (ran.code, ran.out) == (code, "")
        assert sentence in ran.err
        assert ran.err.startswith("paper: ")
        assert ran.err.count("\n") == 1
        assert not (bed / "refused").exists()

    @pytest.mark.parametrize("where", ["scheme.data", "attacks.fine_tune.data", "attacks.overwrite.marking.data"])
    def test_images_that_something_trains_on_are_not_asked_about(self, where: str, bed: Path, paper: Any) -> None:
        ran = paper(*shrunken(bed, **{where: f"{bed}/photos.npz[60:70]"}), "--out", bed / "refused")
        assert ran.code == 2
        assert f"verify.data shares 10 images with {where}" in ran.err

    def test_a_missing_key_is_named(self, bed: Path, paper: Any) -> None:
        text = (RECIPES / "moco.toml").read_text()
        (bed / "short.toml").write_text(text.replace("alpha = 0.01\n", ""))
        ran = paper(bed / "short.toml", "--out", bed / "refused")
        assert (ran.code, ran.err) == (2, "paper: verify lacks the key 'alpha'\n")

    @pytest.mark.parametrize(
        ("content", "sentence"), [(b"seed = ", "is not TOML"), (b"\xff", "is not TOML"), (None, "cannot be read")]
    )
    def test_a_file_that_is_no_recipe_is_named(
        self, content: bytes | None, sentence: str, tmp_path: Path, paper: Any
    ) -> None:
        if content is not None:
            (tmp_path / "x.toml").write_bytes(content)
        ran = paper(tmp_path / "x.toml", "--out", tmp_path / "out")
        assert ran.code == 2
        assert f"the recipe {tmp_path / 'x.toml'} {sentence}" in ran.err

    def test_a_step_says_which_one_comes_first(self, bed: Path, paper: Any) -> None:
        ran = paper(*shrunken(bed), "--out", bed / "refused", "--only", "verify")
        assert (ran.code, ran.err) == (2, "paper: marked/itself is not made yet: run the step mark first\n")

    def test_a_device_that_is_not_there_is_named(
        self, bed: Path, recipe_modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        command = [*shrunken(bed), "--out", str(bed / "refused"), "--accelerator", "cuda"]
        with redirect_stderr(io.StringIO()) as err:
            assert recipe_modules["run"].main(command) == 2
        assert err.getvalue() == "paper: --accelerator cuda: torch finds no such device here\n"

    def test_a_damaged_result_is_named(self, bed: Path, paper: Any) -> None:
        made = bed / "damaged" / "marked" / "itself" / "made.json"
        made.parent.mkdir(parents=True)
        made.write_text("{")
        ran = paper(*shrunken(bed), "--out", bed / "damaged", "--only", "mark")
        assert (ran.code, ran.err) == (2, f"paper: {made} is damaged: delete it to make it again\n")


class TestRecipes:
    @pytest.mark.parametrize("name", NAMES)
    def test_the_files_say_what_the_paper_used(self, name: str, recipe_modules: dict[str, ModuleType]) -> None:
        """Section "Settings" of docs/explanation/paper.md."""
        recipe = recipe_modules["settings"].read_recipe(RECIPES / f"{name}.toml")
        assert (recipe.encoder.architecture, recipe.encoder.size) == ("resnet50", 224)
        assert recipe.encoder.maxpool == (name == "byol")
        assert recipe.steal.architectures == tuple(f"torchvision:resnet{depth}" for depth in (18, 34, 50, 101))
        assert not recipe.steal.maxpool
        assert list(recipe.downstream.tasks) == ["stl10", "cifar10", "mnist", "fashion-mnist"]
        assert recipe.downstream.method == "mlp"
        scheme = recipe.scheme.scheme()
        assert recipe.scheme.data == f"stl10:unlabeled[0:{50_000 + scheme.n_verification}]"
        assert scheme.steps * scheme.batch_size == 50 * 50_000

    @pytest.mark.parametrize("name", NAMES)
    def test_every_recipe_loads_its_encoder_as_published(self, name: str, bed: Path, paper: Any) -> None:
        """One iteration each, on the file's own format and max-pool."""
        brief = {"scheme.settings.steps": "1", "verify.independent": "[]"}
        ran = paper(*shrunken(bed, name, **brief), "--out", bed / f"brief-{name}", "--only", "mark")
        assert ran.code == 0, ran.err
        marked = load_folder(bed / f"brief-{name}" / "marked" / "itself" / "encoder")
        assert isinstance(marked.module.maxpool, torch.nn.Identity) == (name != "byol")
        assert (marked.preprocess.mean, marked.preprocess.std) == ((0.0,) * 3, (1.0,) * 3)

    def test_presets(self, recipe_modules: dict[str, ModuleType]) -> None:
        preset = recipe_modules["settings"].preset
        published = preset("published")
        assert preset("released-gradients") == published == SSLGuard.published()
        assert published.gradients == "released"
        assert preset("clean-gradients") == replace(published, gradients="clean")
        cured = preset("cured")
        assert cured.carrier > 0
        missed = published.steps * published.batch_size - cured.steps * cured.batch_size
        assert 0 <= missed < cured.batch_size

    def test_a_recipe_can_be_cured(self, bed: Path, paper: Any) -> None:
        """The other preset from marking to scores; its shadows, of which it has none, are left as they are."""
        shadows = {
            f"scheme.settings.{key}": None for key in ("shadow", "shadow_weights", "optimizer", "decoder_hidden")
        }
        cured = {"scheme.preset": "cured", "steal.queries": "{}", "attacks.prune.on": '["itself"]'}
        off = {f"attacks.{name}.on": "[]" for name in ("fine_tune", "overwrite", "noise")}
        command = shrunken(bed, **shadows, **cured, **off)
        ran = paper(*command, "--out", bed / "cured", "--only", "mark", "verify", "table")
        assert ran.code == 0, ran.err
        assert list(rows(ran.out, "Detection")) == ["suspect", "the encoder itself", "prune-0.4"]
        record = load_folder(bed / "cured" / "marked" / "itself" / "encoder").record
        assert record["settings"]["carrier"] == SSLGuard.cured().carrier

    def test_none_and_nested_settings_can_be_set(self, bed: Path, recipe_modules: dict[str, ModuleType]) -> None:
        read_recipe = recipe_modules["settings"].read_recipe
        no_shadow = ["scheme.settings.shadow=none", "scheme.settings.shadow_weights=none"]
        changes = [*no_shadow, "steal.recipe.augmentation={crop = 0.6, flip = 0.5}"]
        recipe = read_recipe(RECIPES / "moco.toml", changes)
        assert recipe.scheme.scheme().shadow is None
        assert recipe.steal.distillation().augmentation == Augmentation(crop=0.6, flip=0.5)


class TestDocument:
    PAGE = (RECIPES.parent.parent / "docs" / "explanation" / "paper.md").read_text()

    @pytest.mark.parametrize(
        ("name", "per_iteration"), [("published", (20, 16)), ("clean-gradients", (18, 12)), ("cured", (208, 112))]
    )
    def test_passes_of_an_iteration(
        self, name: str, per_iteration: tuple[int, int], recipe_modules: dict[str, ModuleType], tiny: Any, images: Any
    ) -> None:
        """Counted on networks of another size: how many images pass forward, and back, is the scheme's alone."""
        scheme = recipe_modules["settings"].preset(name)
        small = replace(scheme, n_verification=8, shadow=None, shadow_weights=None)
        task = small.task(tiny(), images(30), Secret.from_seed(0))
        passes = Counter[str]()

        def count(_: object, __: object, answers: torch.Tensor) -> None:
            passes["forward"] += len(answers)
            if answers.requires_grad:
                answers.register_hook(lambda _: passes.update(back=len(answers)))

        for part in {"clean", "watermarked", "shadow"} & task.modules.keys():
            task.modules[part].register_forward_hook(count)
        run(task, Loop(steps=3, batch_size=scheme.batch_size))
        assert (passes["forward"], passes["back"]) == (3 * per_iteration[0], 3 * per_iteration[1])
        forward, back = (count * scheme.steps for count in per_iteration)
        assert f"| {forward:,} | {back:,} |" in self.PAGE

    @pytest.mark.parametrize("name", NAMES)
    def test_counts_are_those_of_the_recipes(self, name: str, recipe_modules: dict[str, ModuleType]) -> None:
        recipe = recipe_modules["settings"].read_recipe(RECIPES / f"{name}.toml")
        items = recipe_modules["items"].items(recipe)
        surrogates = [item for item in items if item.kind == "surrogate"]
        thief = recipe.steal.distillation()
        student = f"{thief.steps * thief.batch_size:,}"
        assert f"| surrogates, the student's | {len(surrogates)} | {student} | {student} |" in self.PAGE
        assert f"| overwriting, published | {sum(item.kind == 'overwrite' for item in items)} |" in self.PAGE
        suspects = len(items) + 1 + len(recipe.steal.architectures) + len(recipe.verify.independent)
        assert f"| a suspect's answers | {suspects} | {recipe.scheme.scheme().n_queries} |" in self.PAGE
        probed = [item for item in items if item.origin == "marked" or item.step in ("mark", "steal")]
        # STL-10, CIFAR-10 without 5,000, MNIST, Fashion-MNIST: training and test parts.
        n_images = (5_000 + 8_000) + (45_000 + 10_000) + 2 * (60_000 + 10_000)
        assert f"| {len(probed) + 1} encoders | {n_images:,} |" in self.PAGE
        controls = len(surrogates) // 2 + 1 + len(recipe.steal.architectures) + len(recipe.verify.independent)
        assert controls == 15
        assert "fifteen here" in self.PAGE
