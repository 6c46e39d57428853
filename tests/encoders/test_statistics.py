"""The input statistics against loops over every pixel, and that keys and heads have the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sslguard.crypto.secrets import Secret
from sslguard.data.sources import ArrayData
from sslguard.encoders.base import Encoder, embed_all
from sslguard.encoders.export import export_onnx
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.encoders.rebuild import build
from sslguard.encoders.statistics import InputStatistics
from sslguard.errors import UsageError
from sslguard.schemes.base import Key
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import load_key, save_key
from sslguard.serve.heads import with_head
from sslguard.suspects.opening import open_suspect
from sslguard.training.pretraining import new_encoder
from sslguard.verification.verdict import verify

# Of 1 and 3 channels; the last three are averaged down, the first is not.
SHAPES = ((1, 23, 40), (3, 47, 30), (1, 48, 50), (3, 75, 97), (1, 144, 100))
PROTOCOL = Protocol(n_queries=150)
DIGEST = "aa862f3c8bceb7054e8dc1be70a680da1887cad7aece9f81340b9b35124ec140"


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


def by_loops(image: np.ndarray) -> np.ndarray:
    grey = image.mean(0)
    ratio = max(1, min(grey.shape) // 24)
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
    means = [layer.mean((1, 2)) for layer in (one, two)]
    squares = [np.square(layer).mean((1, 2)) for layer in (one, two)]
    return np.concatenate([*means, *squares, tiles(small[None], 6), tiles(one, 2)])


def tiles(maps: np.ndarray, side: int) -> np.ndarray:
    """Means over side × side tiles, which overlap where they do not fit: (C, H, W) → (C·side²,)."""
    cuts = [[(i * n // side, -(-(i + 1) * n // side)) for i in range(side)] for n in maps.shape[1:]]
    found = [[maps[:, a:b, c:d].mean((1, 2)) for c, d in cuts[1]] for a, b in cuts[0]]
    return np.array(found).transpose(2, 0, 1).ravel()


def large(count: int, seed: int = 0) -> ArrayData:
    """Images of 48 pixels, which are averaged down."""
    rng = np.random.default_rng(seed)
    return ArrayData(f"noise-{seed}-{count}", rng.integers(0, 256, (count, 1, 48, 48), dtype=np.uint8), None)


def encoder_of_48() -> Encoder:
    return new_encoder("resnet-narrow", large(1), seed=7)


def bits_of(key: Key, suspect: Encoder) -> float:
    return verify(key, suspect, large(300, 3), control_scores={}).significance.statistic


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_of_an_image(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)
    found = InputStatistics()(torch.from_numpy(image)[None])[0].numpy()
    np.testing.assert_allclose(found, by_loops(image.astype(float)), atol=1e-5)


def test_an_image_does_not_depend_on_the_rest_of_its_batch() -> None:
    images = torch.rand(300, 3, 50, 49, generator=torch.Generator().manual_seed(0))
    statistics, places = InputStatistics(), [0, 31, 32, 255, 256, 299]
    together = statistics(images.contiguous(memory_format=torch.channels_last))
    alone = torch.cat([statistics(images[i : i + 1]) for i in places])
    torch.testing.assert_close(together[places], alone, atol=1e-5, rtol=0)


class TestProtocol:
    def test_is_written_whole(self) -> None:
        written = json.loads(json.dumps(Protocol().to_json()))
        assert Protocol.from_json(written) == Protocol()
        assert Protocol().digest().hex() == DIGEST

    @pytest.mark.parametrize("rule", ["binding", "queries", "statistics_version", "witnesses"])
    @pytest.mark.parametrize("value", [True, 3.0, "3", 0, 1, 2, None, "linear-3"])
    def test_other_rules_are_refused(self, rule: str, value: object) -> None:
        with pytest.raises(UsageError, match=f"keys of protocols whose {rule} is"):
            Protocol.from_json({**Protocol().to_json(), rule: value})
        with pytest.raises(UsageError, match=f"keys of protocols whose {rule} is"):
            Protocol.from_json({name: there for name, there in Protocol().to_json().items() if name != rule})

    @pytest.mark.parametrize(
        "more",
        [
            *({"version": 1}, {"features": 8}, {"statistics": True}, {"statistics": 0}, {"statistics": 357}),
            *({"functions": 0}, {"functions": 1 << 17}, {"functions": 4.0}),
        ],
    )
    def test_hostile_descriptions_of_heads(self, more: dict[str, object]) -> None:
        head = {"statistics": 96, "functions": 4, **more}
        with pytest.raises(UsageError, match="not the description of a head"):
            build({"backbone": "resnet-narrow", "channels": 1, "head": head}, seed=0)


class TestKeys:
    def test_key_and_head_have_the_same_statistics(self, tmp_path: Path) -> None:
        made = Exact(PROTOCOL, mode="head").watermark(encoder_of_48(), large(400), secret=Secret.from_seed(1))
        save_encoder(made.encoder, tmp_path / "encoder")
        save_key(made.key, tmp_path / "key")
        key, encoder = load_key(tmp_path / "key"), load_folder(tmp_path / "encoder")
        assert isinstance(key, ExactKey)
        assert key.protocol == PROTOCOL
        f = embed_all(key.clean, large(50, 2)).astype(float)
        length = np.linalg.norm(f, axis=1, keepdims=True)
        psi = all_statistics(key.clean, large(50, 2))
        expected = f + length * key.mark(key.bank.functions(f / length, psi))
        for marked in (encoder, with_head(key.clean, key)):
            np.testing.assert_allclose(embed_all(marked, large(50, 2)), expected, rtol=1e-3, atol=1e-4)
        assert bits_of(key, encoder) > 100

    def test_exports(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime")
        made = Exact(PROTOCOL, mode="head").watermark(encoder_of_48(), large(100), secret=Secret.from_seed(1))
        export_onnx(made.encoder, tmp_path / "m.onnx")
        exported = open_suspect(f"onnx:{tmp_path / 'm.onnx'}")
        for count in (1, 7):
            asked = large(count, 2).take(range(count))
            np.testing.assert_allclose(exported.embed(asked), made.encoder.embed(asked), rtol=1e-3, atol=1e-4)
