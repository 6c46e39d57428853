"""The recipes at the paper's size, shrunken, and the counts on docs/explanation/paper.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslguard.bench.plan import Plan
from sslguard.bench.run import checked, findings, run_bench
from sslguard.crypto.secrets import Secret
from sslguard.encoders.folder import load_folder
from sslguard.encoders.load import load_encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.schemes.registry import build_scheme
from sslguard.schemes.sslguard.cured import CuredTask
from sslguard.schemes.sslguard.scheme import CuredSSLGuard, SSLGuard
from sslguard.schemes.sslguard.task import SSLGuardTask
from sslguard.training.base import Loop
from sslguard.training.loop import run

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "paper"
PAGE = (ROOT / "docs" / "explanation" / "paper.md").read_text()
NAMES = ("simclr", "moco", "byol")
OPTIONS = {"simclr": "16,nopool,raw,whole", "moco": "16,nopool,raw,whole", "byol": "16,raw,whole"}
SHRUNKEN = """
base = "moco.toml"
precision = "32"
method = "knn"

[encoders.victim]
load = "moco.pth@16,nopool,raw,whole"
bed = "stl10"
null = ["torchvision:resnet18:random@16,raw,whole"]
random = 1

[beds.stl10]
{roles}

[schemes.published]
scheme = "sslguard"
steps = 12
batch_size = 4
trigger_batch = 4
optimizer = "adam"
shadow = "resnet-narrow"
encoder_rate = 1e-3
decoder_rate = 3e-3
trigger_rate = 3e-2
n_verification = 8
n_queries = 12
secret_dim = 32
decoder_hidden = [64, 64]

[schemes.unmarked]
scheme = "fingerprint"
null = false
n = 20

[attacks."{{network}}-{{queries}}"]
sweep.network = ["resnet18"]
sweep.queries = {{stl10 = "thief", cifar10 = "thief_cifar10"}}
set = "held-out"

[[attacks."{{network}}-{{queries}}".steps]]
attack = "distil"
data = "{{queries}}"
recipe = {{architecture = "torchvision:{{network}}@nopool", steps = 2, batch_size = 4}}
"""


def published_files() -> dict[str, dict[str, Any]]:
    """Recipe → content of a checkpoint as its source publishes it (encoders/test_checkpoints.py), with a ResNet-18."""
    state = load_encoder("torchvision:resnet18:random").module.state_dict()
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
    """A folder with the three checkpoints, 120 labelled colour pictures, and a recipe that is content with them."""
    root = tmp_path_factory.mktemp("paper")
    for name, content in published_files().items():
        torch.save(content, root / f"{name}.pth")
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 2
    pictures = generator.integers(0, 128, (120, 24, 24, 3), dtype=np.uint8) + (labels * 100)[:, None, None, None]
    np.savez(root / "photos.npz", images=pictures.astype(np.uint8), labels=labels)
    slices = {"mark": "0:30", "thief": "30:50", "thief_cifar10": "50:60", "tune": "50:60", "verify": "60:80"}
    slices |= dict.fromkeys(("probe_train", "mnist_train", "fashion_train"), "80:100")
    slices |= dict.fromkeys(("probe_test", "cifar10_test", "mnist_test", "fashion_test"), "100:120")
    roles = "\n".join(f'{role} = "photos.npz[{part}]"' for role, part in slices.items())
    (root / "moco.toml").write_bytes((RECIPES / "moco.toml").read_bytes())
    (root / "shrunken.toml").write_text(SHRUNKEN.format(roles=roles))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSLGUARD_CACHE", str(root / "cache"))
        patch.chdir(root)  # a secret is drawn from the encoder's specification, which shall be the same in every run
        yield root


@pytest.mark.trains
def test_a_shrunken_recipe_runs_to_its_page(bed: Path) -> None:
    out = bed / "out"
    outcome = run_bench(bed / "shrunken.toml", out, only=["*-resnet18-*", "null-*", "*-itself-pruned-0.4-*"], say=quiet)
    assert not outcome.failed
    assert not outcome.skipped
    found = findings(out)
    rows = {(row.kind, row.scheme, row.suspect): row for row in found.rows}
    marked, stolen = rows["protected", "published", "protected"], rows["attack", "published", "resnet18-stl10"]
    # Twelve iterations: too few for a watermark rate, enough for F* to answer unlike what comes of F.
    innocents = [row.statistic for row in found.rows if row.kind == "innocent" and row.scheme == "published"]
    assert marked.statistic is not None
    assert marked.statistic > max(s for s in innocents if s is not None)
    assert {row.suspect for row in found.rows if row.kind == "innocent"} >= {
        *("twin of resnet18-stl10", "twin of resnet18-cifar10", "twin of itself pruned 0.4"),
        *("torchvision:resnet18:random@16,raw,whole", "untrained 1"),
    }
    assert all(set(row.tasks or {}) == {"cifar10", "mnist", "fashion-mnist"} for row in (marked, stolen))
    assert stolen.thief_queries == 20
    assert rows["attack", "unmarked", "resnet18-stl10"].accuracy is not None
    (surrogate,) = (load_folder(path) for path in out.glob("encoders/make-victim-published-0-resnet18-stl10-*"))
    assert isinstance(surrogate.module.backbone.maxpool, torch.nn.Identity)
    assert (surrogate.dim, surrogate.preprocess.shape) == (512, (3, 16, 16))


def quiet(_: str) -> None:
    pass


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_takes_its_encoder_as_published(name: str, bed: Path) -> None:
    """On the file's own format and max-pool, whole images in [0, 1]."""
    config, _ = checked(RECIPES / f"{name}.toml")
    assert config.encoders["victim"].load.partition("@")[2] == OPTIONS[name].replace("16", "224")
    encoder = load_encoder(f"{bed}/{name}.pth@{OPTIONS[name]}")
    assert isinstance(encoder.module.maxpool, torch.nn.Identity) == (name != "byol")
    assert encoder.preprocess == ImagePreprocess(16, 16, 3, (0.0,) * 3, (1.0,) * 3, None)


PRESETS = {
    "published": SSLGuard.published(),
    "clean gradients": replace(SSLGuard.published(), gradients="clean"),
    "cured": CuredSSLGuard(steps=39_062),
}


def test_the_cured_scheme_sees_as_many_images_as_the_published_one() -> None:
    published, cured = PRESETS["published"], PRESETS["cured"]
    assert 0 <= published.steps * published.batch_size - cured.steps * cured.batch_size < cured.batch_size
    assert 'scheme = "sslguard-cured"\nsteps = 39_062' in PAGE


@pytest.mark.parametrize(
    ("name", "per_iteration"), [("published", (20, 16)), ("clean gradients", (18, 12)), ("cured", (144, 80))]
)
@pytest.mark.trains
def test_passes_of_an_iteration(name: str, per_iteration: tuple[int, int], tiny: Any, images: Any) -> None:
    """Counted on networks of another size: how many images pass forward, and back, is the scheme's alone."""
    scheme = PRESETS[name]
    if isinstance(scheme, CuredSSLGuard):
        task = CuredTask(replace(scheme, law_steps=10), tiny(), images(30), Secret.from_seed(0))
    else:
        small = replace(scheme, n_verification=8, shadow=None, shadow_weights=None)
        task = SSLGuardTask(small, tiny(), images(30), Secret.from_seed(0))
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
    assert f"| {forward:,} | {back:,} |" in PAGE


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_those_of_the_recipes(name: str) -> None:
    config, plan = checked(RECIPES / f"{name}.toml")
    made = Counter(about["attack"] for cell, about in _group(plan, "make"))
    thefts = [attack for attack in made if " " not in attack]
    recipe = config.attacks[thefts[0]].steps[0].settings["recipe"]
    student = f"{recipe['steps'] * recipe['batch_size']:,}"
    assert f"| surrogates, the student's | {sum(made[attack] for attack in thefts)} | {student} | {student} |" in PAGE
    assert f"| overwriting, published | {made['itself overwritten']} |" in PAGE
    population = sum(cell.args["members"][1] - cell.args["members"][0] for cell, _ in _group(plan, "null"))
    asked = [about for group in ("mark", "attack", "twin") for _, about in _group(plan, group)]
    suspects = sum(about["scheme"] == "published" for about in asked) + population
    scheme = build_scheme("sslguard-published", config.schemes["published"].settings)
    assert f"| a suspect's answers | {suspects} | {scheme.n_queries} |" in PAGE
    probed = len(list(_group(plan, "mark"))) + len(list(_group(plan, "attack"))) + len(list(_group(plan, "reference")))
    # STL-10, CIFAR-10 without 5,000, MNIST, Fashion-MNIST: training and test parts.
    n_images = (5_000 + 8_000) + (45_000 + 10_000) + 2 * (60_000 + 10_000)
    assert f"| {probed} encoders | {n_images:,} |" in PAGE


def _group(plan: Plan, group: str) -> Iterator[tuple[Any, Any]]:
    return ((cell, plan.about[cell.name]) for cell in plan.cells if cell.group == group)
