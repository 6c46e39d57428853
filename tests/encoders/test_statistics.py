"""The input statistics of both versions, against loops over every pixel; keys and heads of the first version."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from sslguard.crypto.secrets import Secret
from sslguard.data.sources import ArrayData
from sslguard.encoders import Encoder, embed_all
from sslguard.encoders.export import export_onnx
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.encoders.rebuild import build
from sslguard.encoders.statistics import InputStatistics
from sslguard.errors import UsageError
from sslguard.schemes.base import Key
from sslguard.schemes.exact import Exact, ExactKey, Protocol
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.keyfile import load_key, save_key
from sslguard.serve.heads import with_head
from sslguard.suspects import open_suspect
from sslguard.training.pretraining import new_encoder
from sslguard.verification.verdict import verify

VERSIONS = (1, 2)
SIDES = {1: 48, 2: 24}
# Of 1 and 3 channels; the last two are averaged down by both versions, the first by neither.
SHAPES = ((1, 23, 40), (3, 47, 30), (1, 48, 50), (3, 75, 97), (1, 144, 100))
KEY_1 = Protocol(n_queries=150, statistics_version=1)
KEY_2 = Protocol(n_queries=150)
# Of `Protocol().digest().hex()` before there were two versions.
DIGEST = "559d0f0bb4acc82023a59b20048750dfac195a32985525065bac302f94a98b15"


def constants(name: str, *shape: int) -> np.ndarray:
    size = int(np.prod(shape))
    hashed = hashlib.shake_256(b"sslguard input statistics 1 " + name.encode()).digest(4 * size)
    numbers = [int.from_bytes(hashed[4 * i : 4 * i + 4], "little") / 2**31 - 1 for i in range(size)]
    return np.array(numbers).reshape(shape)


def convolved(maps: np.ndarray, filters: np.ndarray, padding: int) -> np.ndarray:
    """At stride 2, then the positive part: (C, H, W), (F, C, s, s)."""
    maps, side = np.pad(maps, ((0, 0), (padding, padding), (padding, padding))), filters.shape[-1]
    rows, columns = range(0, maps.shape[1] - side + 1, 2), range(0, maps.shape[2] - side + 1, 2)
    found = [
        [np.tensordot(filters, maps[:, i : i + side, j : j + side], ((1, 2, 3), (0, 1, 2))) for j in columns]
        for i in rows
    ]
    return np.maximum(np.array(found).transpose(2, 0, 1), 0)


def by_loops(image: np.ndarray, version: int) -> np.ndarray:
    grey = image.mean(0)
    ratio = max(1, min(grey.shape) // SIDES[version])
    small = np.array(
        [
            [
                grey[i * ratio : (i + 1) * ratio, j * ratio : (j + 1) * ratio].mean()
                for j in range(grey.shape[1] // ratio)
            ]
            for i in range(grey.shape[0] // ratio)
        ]
    )
    first = constants("first", 32, 1, 5, 5)
    one = convolved(small[None], first - first.mean((2, 3), keepdims=True), 2)
    two = convolved(one, constants("second", 64, 32, 3, 3) / 32**0.5, 1)
    return np.concatenate([one.mean((1, 2)), two.mean((1, 2))])


def large(count: int, seed: int = 0) -> ArrayData:
    """Images of 48 pixels, which the second version averages down."""
    rng = np.random.default_rng(seed)
    return ArrayData(f"noise-{seed}-{count}", rng.integers(0, 256, (count, 1, 48, 48), dtype=np.uint8), None)


def encoder_of_48() -> Encoder:
    return new_encoder("resnet-narrow", large(1), seed=7)


def z_of(key: Key, suspect: Encoder) -> float:
    return verify(key, suspect, large(300, 3), control_scores={}).significance.statistic


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("version", VERSIONS)
def test_statistics_of_an_image(shape: tuple[int, int, int], version: int) -> None:
    image = np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)
    found = InputStatistics(version)(torch.from_numpy(image)[None])[0].numpy()
    np.testing.assert_allclose(found, by_loops(image.astype(float), version), atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_image_does_not_depend_on_the_rest_of_its_batch(version: int) -> None:
    images = torch.rand(300, 3, 50, 49, generator=torch.Generator().manual_seed(0))
    statistics, places = InputStatistics(version), [0, 31, 32, 255, 256, 299]
    together = statistics(images.contiguous(memory_format=torch.channels_last))
    alone = torch.cat([statistics(images[i : i + 1]) for i in places])
    torch.testing.assert_close(together[places], alone, atol=1e-5, rtol=0)


def test_versions_differ_in_images_that_the_second_averages_down_alone() -> None:
    one, two = InputStatistics(1), InputStatistics(2)
    words = torch.stack((torch.arange(12).reshape(2, 6), torch.ones(2, 6, dtype=torch.int64)), 1)
    for same in (torch.rand(2, 1, 47, 47), words):
        torch.testing.assert_close(one(same), two(same), atol=1e-5, rtol=0)
    assert (one(torch.rand(2, 1, 48, 48)) - two(torch.rand(2, 1, 48, 48))).abs().max() > 0.01


class TestVersions:
    def test_no_other(self) -> None:
        for version in (0, 3):
            with pytest.raises(UsageError, match="versions 1 and 2"):
                Protocol(statistics_version=version)
            with pytest.raises(UsageError, match="versions 1 and 2"):
                InputStatistics(version)

    def test_a_protocol_of_the_first_is_written_as_before_there_were_two(self) -> None:
        old, new = Protocol(witnesses="linear-3", statistics_version=1, binding=1), Protocol()
        assert new.statistics_version == 2
        assert not {"statistics_version", "binding"} & old.to_json().keys()
        assert old.digest().hex() == DIGEST
        assert new.digest() != old.digest()
        for protocol in (old, new):
            assert Protocol.from_json(json.loads(json.dumps(protocol.to_json()))) == protocol
        assert Protocol.from_json(asdict(old)) == old

    @pytest.mark.parametrize("version", [True, 2.0, "2", 0, 3, None])
    def test_hostile_descriptions(self, version: object) -> None:
        with pytest.raises((UsageError, TypeError)):
            Protocol.from_json({**Protocol().to_json(), "statistics_version": version})
        with pytest.raises((UsageError, TypeError)):
            Protocol.from_json({**Protocol().to_json(), "binding": version})
        head = {"components": 4, "features": 8, "statistics": 5, "version": version}
        with pytest.raises(UsageError, match="not the description of a head"):
            build({"backbone": "resnet-narrow", "channels": 1, "head": head}, seed=0)


@pytest.mark.parametrize("protocol", [KEY_1, KEY_2], ids=["first", "second"])
class TestKeys:
    def test_key_and_head_have_the_same_statistics(self, protocol: Protocol, tmp_path: Path) -> None:
        made = Exact(protocol, mode="head").watermark(encoder_of_48(), large(400), secret=Secret.from_seed(1))
        save_encoder(made.encoder, tmp_path / "encoder")
        save_key(made.key, tmp_path / "key")
        key, encoder = load_key(tmp_path / "key"), load_folder(tmp_path / "encoder")
        assert isinstance(key, ExactKey)
        assert key.protocol == protocol
        head = encoder.architecture["head"]
        assert head.get("version", 1) == protocol.statistics_version
        f = embed_all(key.clean, large(50, 2)).astype(float)
        length = np.linalg.norm(f, axis=1, keepdims=True)
        psi = all_statistics(key.clean, large(50, 2), version=protocol.statistics_version)
        mark = key.bank.features(f / length, psi) @ key.directions() @ key.bank.geometry.spread
        expected = f + length * 0.2 / np.sqrt(18) * mark
        for marked in (encoder, with_head(key.clean, key)):
            np.testing.assert_allclose(embed_all(marked, large(50, 2)), expected, rtol=1e-3, atol=1e-4)
        assert z_of(key, encoder) > 15

    def test_exports(self, protocol: Protocol, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime")
        made = Exact(protocol, mode="head").watermark(encoder_of_48(), large(100), secret=Secret.from_seed(1))
        export_onnx(made.encoder, tmp_path / "m.onnx")
        exported = open_suspect(f"onnx:{tmp_path / 'm.onnx'}")
        for count in (1, 7):
            asked = large(count, 2).take(range(count))
            np.testing.assert_allclose(exported.embed(asked), made.encoder.embed(asked), rtol=1e-3, atol=1e-4)

    def test_statistics_of_the_other_version_show_less(self, protocol: Protocol) -> None:
        made = Exact(protocol, mode="head").watermark(encoder_of_48(), large(400), secret=Secret.from_seed(1))
        other = 3 - protocol.statistics_version
        swapped = made.encoder.clone()
        swapped.module.statistics = InputStatistics(other)
        assert z_of(made.key, swapped) < 0.8 * z_of(made.key, made.encoder)
