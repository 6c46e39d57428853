"""Every command of the pages of docs/ runs, and every other block of code is run somewhere.

Commands run as they stand, except that `helpers.documents` puts smaller encoders and briefer trainings in their place.
Where a command needs what a machine for tests has not, its words are read by the command line, but nothing runs.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sslguard as package
from helpers.command_line import Ran, sslguard
from helpers.documents import blocks, commands, pages_with, shrunk, smaller
from helpers.texts import config_of, tokenizer_json
from sslguard.cli.entry import app

pytestmark = [pytest.mark.trains, pytest.mark.network]

ELSEWHERE = {
    "tutorial/first-watermark.md": "test_first_watermark.py",
    "how-to/verifying-an-api.md": "test_verifying_an_api.py",
    "how-to/comparing-weights.md": "test_comparing_weights.py",
    "how-to/checking-a-claim.md": "test_checking_a_claim.py",
    "how-to/signed-documents.md": "test_signed_documents.py",
}
"""Pages whose commands a test of their own runs."""

ONLY_READ = {
    r"--accelerator cuda": "needs a GPU",
    r"--cluster slurm": "needs a cluster",
    r"^bench (run|plot) .*out/moco(?!.*--dry-run)": "takes days, and encoders that are downloaded",
    r"^bench run recipes/paper/.*--dry-run": "needs the encoders of the paper",
    r"--only '?\*offset\*": "needs the scheme of the page, which its test puts into the registry",
    r"VICTIM": "shows the form of a command",
}
"""What commands of sslguard are read and not run, and why."""

NOT_RUN = ("explanation/paper.md", "how-to/adding-a-scheme.md", "how-to/adding-an-attack.md", "reference/key-format.md")
"""Pages none of whose commands can be run here."""

OTHERS = {"age", "jq", "make", "."}
"""Programs of others, which no test starts."""


def read_only(words: list[str]) -> bool:
    """Return whether a command is read by the command line and not run."""
    return any(re.search(pattern, " ".join(words)) for pattern in ONLY_READ)


def follow(page: str, monkeypatch: pytest.MonkeyPatch, **between: Callable[[], object]) -> list[Ran]:
    """Run the commands of a page, in the folder that the test is in.

    Args:
        page: Path of the page below docs/.
        monkeypatch: Takes back what the page exports.
        between: What a reader does before the first command of this name, such as asking a suspect.
    """
    ran: list[Ran] = []
    for program, *words in commands(page):
        if program == "export":
            monkeypatch.setenv(*words[0].split("=", 1))
        elif program == "sslguard" and read_only(words):
            app.parse_args(words, print_error=False, exit_on_error=False)
        elif program == "sslguard":
            between.pop(words[0], lambda: None)()
            ran.append(sslguard(*shrunk(words), "--json"))
            assert ran[-1].code in (0, 1), (words, ran[-1].err)
        else:
            assert program in OTHERS, f"this test cannot run {program}"
    assert not between
    return ran


def decisions(ran: list[Ran]) -> list[str]:
    return [one.json["decision"] for one in ran if "decision" in one.json]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the test, and the present one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the tutorial's first command makes, which other pages go on from."""
    folder = tmp_path_factory.mktemp("tutorial")
    first = next(words for program, *words in commands("tutorial/first-watermark.md") if program == "sslguard")
    out = first.index("--out") + 1
    assert first[out] == "marked"
    ran = sslguard(*shrunk([*first[:out], str(folder / "marked"), *first[out + 1 :]]), "--quiet")
    assert ran.code == 0, ran.err
    return folder


@pytest.fixture
def marked(tutorial: Path, place: Path) -> Path:
    """The folder of the test, with the tutorial's marked encoder and key in it."""
    shutil.copytree(tutorial / "marked", place / "marked")
    return place


def write_photos(folder: Path, n: int = 5000) -> None:
    """Write small pictures, as a user's own folder."""
    from PIL import Image

    folder.mkdir()
    for number, pixels in enumerate(package.open_data("cluttered-fashion-mnist:train").take(range(n)).numpy()[:, 0]):
        Image.fromarray(pixels[::2, ::2]).save(folder / f"{number:05d}.png", compress_level=0)


def write_texts(file: Path, n: int = 3000) -> None:
    """Write one text of random words a line."""
    words = np.random.default_rng(0).integers(0, 3000, (n, 12))
    file.write_text("".join(" ".join(f"w{k}" for k in row) + "\n" for row in words))


def test_your_own_encoder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    write_photos(place / "photos")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), place / "weights.pth")
    ran = follow("how-to/your-own-encoder.md", monkeypatch)
    stolen, innocent = decisions(ran)
    assert stolen in ("derived", "not shown")  # so brief a theft of a network of random weights may learn too little
    assert innocent == "not shown"
    assert (
        sslguard("verify", "marked/key", "marked/encoder", "--data", "photos/[4000:5000]", "--alpha", "1e-6").code == 0
    )
    assert len(ran) == 8  # two estimates, five from the encoder to the verdicts, and the export
    shutil.rmtree("published")
    assert len(follow("how-to/your-own-network.md", monkeypatch)) == 2
    assert Path("marked.onnx").exists()


def test_hugging_face(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    write_photos(place / "photos")
    torch.manual_seed(0)
    small = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic")
    transformers.ResNetModel(small).save_pretrained(place / "my-model")
    size = {"height": 28, "width": 28}
    processor = transformers.BitImageProcessor(do_center_crop=True, crop_size=size, size={"shortest_edge": 28})
    processor.save_pretrained(place / "my-model")
    ran = follow(
        "how-to/hugging-face.md", monkeypatch, verify=lambda: shutil.copytree(place / "published", place / "suspect")
    )
    assert decisions(ran) == ["derived", "shared weights"]


def test_texts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    write_texts(place / "texts.txt")
    words = [f"w{k}" for k in range(3000)]
    config = config_of("bert", vocab_size=len(words) + 4)
    config.pop("model_type")
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**config)).save_pretrained(place / "my-text-model")
    (place / "my-text-model" / "tokenizer.json").write_text(tokenizer_json(words))
    assert decisions(follow("how-to/texts.md", monkeypatch)) == ["derived"]


def test_gpu_and_machines(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = follow("how-to/gpu-and-machines.md", monkeypatch)
    assert len(ran) == 1  # the others need GPUs


def test_labels_only(marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suspect is a linear classifier on the marked encoder's embeddings."""
    (code,) = blocks("how-to/labels-only.md", "python")
    encoder = package.load_encoder("marked/encoder")
    learned = package.open_data("cluttered-fashion-mnist:train[40000:42000]")

    def embedded(items: Any) -> np.ndarray:
        rows = encoder.embed(items)
        return np.hstack([rows, np.ones((len(rows), 1))])

    def asking() -> None:
        names = re.findall(r'"(\w+)"', code.splitlines()[2])
        one_hot = np.eye(10)[np.array(learned.labels)]
        weights = np.linalg.lstsq(embedded(learned.take(range(2000))), one_hot, rcond=None)[0]
        pictures = np.load("queries.npy")
        told = iter((embedded(torch.from_numpy(pictures)) @ weights).argmax(1))
        exec(compile(code, "labels-only.md", "exec"), {"ask": lambda picture: names[next(told)]})

    ran = follow("how-to/labels-only.md", monkeypatch, verify=asking)
    assert "labels" in ran[-1].out
    assert decisions(ran) == ["derived"]


def test_tracing(marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = follow("how-to/tracing.md", monkeypatch)
    (found,) = [one.json for one in ran if "common" in one.json]
    assert found["named"] == ["acme"]
    assert found["n_compared"] == 3
    assert (ran[-2].json["revoked"], len(ran[-1].json["secrets"])) != (None, 1)


def test_keeping_keys(marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decisions(follow("how-to/keeping-keys.md", monkeypatch)) == ["derived", "derived"]
    assert (marked / "marked" / "key" / "secret.json.age").exists()


def test_options_from_a_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (table,) = blocks("reference/commands.md", "toml")
    (place / "run.toml").write_text(smaller(table))
    (ran,) = follow("reference/commands.md", monkeypatch)
    assert ran.json["shape"][0] == len(np.load("answers.npy")) == 100


def test_home(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("README.md", "python")
    exec(compile(smaller(code), "README.md", "exec"), {})
    assert capsys.readouterr().out == "derived\n"


@pytest.mark.parametrize("page", NOT_RUN)
def test_commands_that_are_only_read(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert follow(page, monkeypatch) == []


def test_commands_with_names_in_capitals_are_read() -> None:
    """They stand in blocks of text, because a reader puts names of his own into them."""
    found = [
        words
        for page in pages_with("text")
        for block in blocks(page, "text")
        for line in block.replace("\\\n", " ").splitlines()
        if (words := shlex.split(line, comments=True))[:1] == ["sslguard"]
    ]
    assert found
    for _, *words in found:
        app.parse_args(words, print_error=False, exit_on_error=False)


def test_every_page_with_commands_is_followed() -> None:
    followed = set(re.findall(r'follow\(\s*"([^"]+)"', Path(__file__).read_text()))
    assert pages_with("sh") == followed | {*NOT_RUN} | ELSEWHERE.keys()
    assert all((Path(__file__).parent / test).exists() for test in ELSEWHERE.values())
