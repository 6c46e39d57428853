"""A secret order: the function stays, the order is exact against all that did not come from the release."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import sslguard
from sslguard.crypto.secrets import Secret
from sslguard.data.own import own_data
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.encoders.load import load_encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import KeyFileError, UsageError
from sslguard.lineage.order import CLOSE, Order, released, sample
from sslguard.lineage.verdict import compare
from sslguard.lineage.weights import open_weights
from sslguard.schemes.keyfile import open_key
from sslguard.schemes.order import OrderKey

SECRET = Secret.from_seed(1)


@pytest.fixture(scope="module")
def clean(tiny) -> Encoder:
    """An encoder whose batch norms have learned something: else their order would not matter."""
    encoder = tiny(1)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in encoder.module.state_dict().items():
        if tensor.dim() == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        del name
    return encoder


@pytest.fixture(scope="module")
def release(clean):
    return released(clean, SECRET, sample(clean))


def of_key(release, suspect):
    return compare(open_weights(release.encoder), open_weights(suspect), order=release.order)


def test_the_function_stays_and_the_clean_encoder_is_untouched(clean, release, tiny) -> None:
    items = sample(clean)
    before, after = clean.embed(items), release.encoder.embed(items)
    assert np.linalg.norm(after - before) <= 1e-5 * np.linalg.norm(before)
    assert release.moved < 1e-5
    assert release.units == sum(group.size for group in release.order.chosen(open_weights(clean)))
    moved = [
        n for n, t in clean.module.state_dict().items() if not torch.equal(t, release.encoder.module.state_dict()[n])
    ]
    assert any("conv1" in name for name in moved)
    assert not any("shortcut" in name for name in moved)


def test_copies_of_the_release_have_its_order_and_nothing_else_has(clean, release, tiny) -> None:
    copy = release.encoder.clone()
    with torch.no_grad():
        for parameter in copy.module.parameters():
            parameter += (
                0.3 * parameter.std() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
            )
    assert of_key(release, copy).log2_pvalue == -256
    assert "never published" in of_key(release, copy).meaning
    for relative in (clean, released(clean, Secret.from_seed(2), sample(clean)).encoder, tiny(1)):
        found = of_key(release, relative)
        assert found.decision == "not shown"
        assert found.log2_lineage < -100  # they share weights, but not the order
        assert "not that of the release" in found.meaning
    assert of_key(release, tiny(2)).decision == "not shown"


def test_counts_of_relatives_follow_the_exact_law_over_secrets(clean) -> None:
    counts = []
    for seed in range(30):
        made = released(clean, Secret.from_seed(seed), sample(clean))
        found = compare(open_weights(made.encoder), open_weights(clean), order=made.order)
        counts += [row.matched for row in found.secret.rows]
        assert found.log2_pvalue > -20
    assert abs(np.mean(counts) - 1) < 4 / np.sqrt(len(counts))


def test_the_order_is_bound_to_the_weights_and_checked(clean, release, tiny) -> None:
    weights = open_weights(release.encoder)
    assert [group.name for group in release.order.check(weights)] == list(release.order.groups)
    for other in (clean, tiny(2)):
        with pytest.raises(KeyFileError, match="not the encoder that was released"):
            release.order.check(open_weights(other))
    with pytest.raises(KeyFileError, match="not the encoder that was released"):
        replace(release.order, secret=Secret.from_seed(9)).check(weights)
    with pytest.raises(KeyFileError, match="lacks the units of nothing"):
        replace(release.order, groups=("nothing",)).check(weights)


def test_other_weights_or_secrets_give_another_order(clean, release, tiny) -> None:
    group = release.order.chosen(open_weights(clean))[-1]
    orders = [release.order, replace(release.order, own_hash="0" * 64)]
    orders.append(replace(release.order, secret=Secret.from_seed(2)))
    drawn = [tuple(order.of(group)) for order in orders]
    assert len(set(drawn)) == 3
    assert all(sorted(order) == list(range(group.size)) for order in drawn)


def test_an_order_is_kept_in_json_and_shows_no_secret(release) -> None:
    again = Order.from_json(release.order.to_json())
    assert again.to_json() == release.order.to_json()
    assert release.order.secret.reveal().hex() not in repr(release.order)
    good = release.order.to_json()
    for spoilt in (None, {}, {**good, "secret": "ff"}, {**good, "groups": "x"}, {**good, "own_hash": 3}):
        with pytest.raises(KeyFileError, match="damaged"):
            Order.from_json(spoilt)
    for spoilt in ({**good, "groups": []}, {**good, "own_hash": "Z" * 64}):
        with pytest.raises(KeyFileError, match="damaged"):
            Order.from_json(spoilt)


class _Hidden(nn.Module):
    """A block with a part that reads the units in between, under a name that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gate = nn.Linear(48, 12), nn.Linear(12, 5), nn.Parameter(torch.arange(12.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.fc1(x.flatten(1))) * self.gate)


def test_units_with_unknown_parts_stay_where_they_are() -> None:
    encoder = Encoder(_Hidden(), ImagePreprocess(4, 4), 5, {}, "own")
    made = released(encoder, SECRET, sample(encoder))
    assert made.order is None
    assert "changes what it answers" in made.reason
    assert made.encoder is encoder


def test_networks_without_known_units_are_not_ordered() -> None:
    encoder = Encoder(nn.Flatten(), ImagePreprocess(4, 4), 48, {}, "own")
    made = released(encoder, SECRET, sample(encoder))
    assert made.order is None
    assert "movable" in made.reason
    with pytest.raises(UsageError, match="cannot be released in a secret order"):
        sslguard.release(encoder)


@pytest.mark.parametrize("spec", ["plain-small", "separable-small", "vit-small", "word-transformer"])
def test_every_small_network_can_be_released(spec: str) -> None:
    encoder = load_encoder(f"random:{spec}")
    made = sslguard.release(encoder, secret=SECRET)
    assert made.order is not None
    assert made.encoder.record["moved"] < CLOSE
    assert compare(open_weights(made.encoder), open_weights(made.encoder), order=made.order).exit_code == 0


class TestFolders:
    def test_a_release_is_written_with_its_key(self, clean, tmp_path) -> None:
        made = sslguard.release(clean, out=tmp_path / "r")
        stored = open_key(tmp_path / "r" / "key")
        assert isinstance(stored.key, OrderKey)
        assert stored.order is not None
        assert load_folder(tmp_path / "r" / "encoder").record["units"] == made.encoder.record["units"]
        paths = [str(tmp_path / "r" / name) for name in ("encoder", "key")]
        found = sslguard.compare_weights(paths[0], made.encoder, key=paths[1])
        assert found.decision == "shared weights"
        with pytest.raises(UsageError, match="sslguard lineage"):
            sslguard.verify(paths[1], made.encoder, own_data(sample(clean)))

    def test_marked_weights_have_an_order_and_verify_tells(self, clean, images, tmp_path) -> None:
        settings = {"mode": "head", "protocol": {"n_queries": 100, "functions": 8}}
        made = sslguard.watermark(clean, images(600), scheme="exact", settings=settings, out=tmp_path / "m")
        assert made.order is not None
        found = sslguard.verify(tmp_path / "m" / "key", tmp_path / "m" / "encoder", images(300, seed=5))
        assert found.lineage is not None
        assert found.lineage.decision == "shared weights"
        assert found.to_json()["lineage"]["log2_pvalue"] == -256
        unmarked = replace(clean, source="clean")
        found = sslguard.verify(tmp_path / "m" / "key", unmarked, images(300, seed=5)).lineage
        assert found is not None  # a head stands behind the marked network, and none behind this one
        assert found.decision == "not shown"

    def test_a_key_without_an_order_is_refused(self, key_of, tiny, tmp_path) -> None:
        sslguard.save_key(key_of(), tmp_path / "key")
        with pytest.raises(KeyFileError, match="no secret order"):
            sslguard.compare_weights(tiny(1), tiny(1), key=tmp_path / "key")

    def test_a_released_folder_that_was_changed_is_noticed(self, clean, tmp_path) -> None:
        made = sslguard.release(clean, out=tmp_path / "r")
        save_encoder(clean, tmp_path / "other")
        with pytest.raises(KeyFileError, match="not the encoder that was released"):
            sslguard.compare_weights(tmp_path / "other", made.encoder, key=tmp_path / "r" / "key")
