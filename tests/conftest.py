"""What tests of training, marking and verification share: a few random images and the smallest encoder."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from helpers.images import SIZE, CountingTeacher, random_images
from sslguard.cli import again
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import weights_hash
from sslguard.report import charts
from sslguard.schemes.sslguard import cured
from sslguard.schemes.sslguard.key import SSLGuardKey
from sslguard.schemes.sslguard.parts import Decoder, Trigger
from sslguard.training.loop import _Runner
from sslguard.training.pretraining import new_encoder

# Below tests/: what trains in most of its tests, or starts programs that do.
TRAINS = (
    *("attacks/test_removal.py", "bench/test_run.py", "benchmarks/", "claims/test_refitting.py"),
    *("cli/test_attack.py", "cli/test_controls.py", "cli/test_killed.py", "demo/test_demo.py", "demo/test_over_api.py"),
    *("docs/test_verifying_an_api.py", "examples/", "schemes/sslguard/test_published.py", "training/"),
)
# What builds networks of torchvision, timm and transformers in most of its tests: importing these takes seconds too.
LIBRARIES = (
    *("encoders/test_checkpoints.py", "encoders/test_onnx.py", "encoders/test_sentences.py"),
    *("encoders/test_formats.py", "encoders/test_vision.py"),
)


@pytest.fixture(scope="session", autouse=True)
def records_of_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep records of commands that tests run out of the user's cache."""
    folder = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(again, "cache_dir", lambda: folder)
        yield


def _below_tests(path: Path, names: tuple[str, ...]) -> bool:
    return str(path).startswith(tuple(str(Path(__file__).parent / name) for name in names))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files whose tests are deselected all the same, so that they are not imported."""
    return ("not heavy" in config.option.markexpr and _below_tests(collection_path, LIBRARIES)) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of these files and folders as `trains` and `heavy`."""
    for item in items:
        if _below_tests(item.path, TRAINS):
            item.add_marker(pytest.mark.trains)
        if _below_tests(item.path, LIBRARIES):
            item.add_marker(pytest.mark.heavy)


def pytest_collection_finish() -> None:
    """Spare what was imported from every later search for garbage."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only lose time to threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _no_training(pytestconfig: pytest.Config) -> Iterator[None]:
    """Skip what begins to train, itself or in a fixture, where tests that train were deselected.

    The marker saves what comes before the training, and covers programs that a test starts.
    """

    def refuse(*_: object) -> NoReturn:
        pytest.skip("trains a network")

    with pytest.MonkeyPatch.context() as patch:
        if "not trains" in pytestconfig.option.markexpr:
            patch.setattr(_Runner, "run", refuse)
            patch.setattr(cured, "fit_decoder", refuse)
        yield


@pytest.fixture(scope="session")
def counting() -> type[CountingTeacher]:
    """A teacher that counts what it is asked."""
    return CountingTeacher


@pytest.fixture(scope="session")
def images() -> Callable[..., Data]:
    return random_images


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Encoder]:
    """A factory of small residual networks: seed, and a linear layer of `linear` dimensions on top."""

    def make(seed: int = 0, linear: int | None = None, architecture: str = "resnet-narrow") -> Encoder:
        encoder = new_encoder(architecture, random_images(1), seed=seed, linear=linear)
        encoder.module.eval()
        return encoder

    return make


@pytest.fixture(scope="session")
def key_of() -> Callable[..., SSLGuardKey]:
    """A factory of keys whose decoder is the identity of the plane, unless told otherwise.

    An answer (cos a, sin a) scores cos a against the secret vector (1, 0).
    """

    def make(decoder: Decoder | None = None, n: int = 4, secret: int = 1) -> SSLGuardKey:
        if decoder is None:
            decoder = Decoder((2, 2))
            decoder[0].weight.data, decoder[0].bias.data = torch.eye(2), torch.zeros(2)
        shape = (1, SIZE, SIZE)
        preprocess = {"kind": "image", "height": SIZE, "width": SIZE, "channels": 1}
        return SSLGuardKey(
            secret=Secret.from_seed(secret),
            decoder=decoder.eval(),
            trigger=Trigger((torch.arange(SIZE * SIZE).view(shape) % 2).float(), torch.full(shape, 0.7)),
            sk=torch.tensor((1.0, 0.0)),
            preprocess={**preprocess, "mean": [0.5], "std": [0.5], "crop": None},
            settings={"n_queries": n},
            clean_hash="c" * 64,
            watermarked_hash="a" * 64,
            n=n,
        )

    return make


@pytest.fixture(scope="module")
def short_law() -> Iterator[None]:
    """Teach decoders for 100 steps, not 2,000, before a marking: commands have no option for it."""
    whole = cured.fit_decoder

    def fit(decoder: Decoder, sk: torch.Tensor, rank: int, steps: int) -> None:
        whole(decoder, sk, rank, min(steps, 100))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cured, "fit_decoder", fit)
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave charts empty, where a test reads something else."""
    whole = charts._drawn

    def empty(_: object, *more: Any, **options: Any) -> bytes:
        return whole(lambda *_: charts.figure(1, 1), *more, **options)

    monkeypatch.setattr(charts, "_drawn", empty)


@pytest.fixture(scope="session")
def hashed() -> Callable[[Encoder], str]:
    """SHA-256 of an encoder's weights, running statistics included: two states compare bit by bit."""
    return lambda encoder: weights_hash(encoder.module)


@pytest.fixture
def untouched_rng() -> Iterator[None]:
    """Fails the test that reads or sets the global random state of torch or NumPy."""
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), torch_before)
    numpy_after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(numpy_after, numpy_before, strict=True))
