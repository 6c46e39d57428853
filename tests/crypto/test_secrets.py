"""Streams from one secret: golden vectors by hashlib alone, independence, and nothing that shows the secret."""

from __future__ import annotations

import hashlib
import hmac
import pickle
import statistics

import numpy as np
import pytest
from scipy import stats

from sslguard.crypto.secrets import SECRET_BYTES, Secret, Stream
from sslguard.errors import KeyFileError, UsageError

MASTER = bytes(range(32))
GOLDEN_INTEGER = 6886479849673201068
GOLDEN_UNIFORM = [0.7466336413793334, 0.7905568951885925]
GOLDEN_PERMUTATION = [5, 4, 3, 6, 0, 1, 2, 7]


def blocks(name: str, context: bytes, *sizes: int) -> list[bytes]:
    """What the module's docstring specifies, written anew: one block of SHAKE-256 for each draw."""
    key = hmac.new(MASTER, hashlib.sha256(context).digest() + name.encode("utf-8"), "sha256").digest()
    return [hashlib.shake_256(key + number.to_bytes(8, "big")).digest(n) for number, n in enumerate(sizes)]


def uniforms(block: bytes) -> list[float]:
    words = [int.from_bytes(block[i : i + 8], "big") for i in range(0, len(block), 8)]
    return [((word >> 12) + 0.5) / 2**52 for word in words]


class TestGoldenVectors:
    @pytest.mark.parametrize(("name", "context"), [("mask", b""), ("sk", b"a" * 64), ("Schlüssel", b"\0")])
    def test_draws_one_after_the_other(self, name, context):
        stream = Secret(MASTER).stream(name, context)
        first, second, third, fourth = blocks(name, context, 8 * 6, 8 * 3, 8, 8 * 4)
        assert stream.uniform((2, 3)).tolist() == [uniforms(first)[:3], uniforms(first)[3:]]
        normal = [statistics.NormalDist().inv_cdf(u) for u in uniforms(second)]
        np.testing.assert_allclose(stream.normal((3,)), normal, rtol=1e-9, atol=1e-12)
        assert stream.integer() == int.from_bytes(third, "big") // 2
        order = sorted(range(4), key=uniforms(fourth).__getitem__)
        assert stream.permutation(4).tolist() == order

    def test_constants(self):
        """Fixed once and for all: a key made today must be read the same by every later version."""
        assert Secret(MASTER).stream("golden", b"context").integer() == GOLDEN_INTEGER
        assert Secret(MASTER).stream("golden", b"context").uniform((2,)).tolist() == GOLDEN_UNIFORM
        assert Secret(MASTER).stream("golden", b"context").permutation(8).tolist() == GOLDEN_PERMUTATION

    def test_a_public_test_secret(self):
        expected = hashlib.sha256(b"sslguard public test secret" + (7).to_bytes(16, "big")).digest()
        assert Secret.from_seed(7).reveal() == expected


class TestIndependence:
    def test_every_part_of_the_derivation_counts(self):
        other = bytes([1, *MASTER[1:]])
        streams = [
            Secret(MASTER).stream("a"),
            Secret(MASTER).stream("b"),
            Secret(MASTER).stream("ab"),
            Secret(MASTER).stream("a", b"b"),
            Secret(MASTER).stream("", b"a"),
            Secret(other).stream("a"),
        ]
        assert len({stream.integer() for stream in streams}) == len(streams)

    def test_the_same_stream_twice_is_the_same(self):
        assert Secret(MASTER).stream("a", b"c").integer() == Secret(bytes(MASTER)).stream("a", b"c").integer()

    def test_draws_from_one_stream_do_not_shift_another(self):
        secret = Secret(MASTER)
        expected = secret.stream("b").uniform((3,)).tolist()
        first = secret.stream("a")
        first.uniform((100,))
        assert secret.stream("b").uniform((3,)).tolist() == expected

    def test_names_are_uncorrelated(self):
        columns = np.stack([Secret(MASTER).stream(f"name {i}").normal((4000,)) for i in range(6)])
        correlation = np.corrcoef(columns) - np.eye(6)
        assert np.abs(correlation).max() < 5 / 4000**0.5


class TestDistribution:
    def test_uniform(self):
        values = Secret.from_seed(0).stream("u").uniform((20_000,))
        assert stats.kstest(values, "uniform").pvalue > 1e-4
        assert np.unique(values).size == 20_000

    def test_normal(self):
        values = Secret.from_seed(0).stream("n").normal((200, 100))
        assert values.shape == (200, 100)
        assert stats.kstest(values.ravel(), "norm").pvalue > 1e-4

    def test_every_order_comes_as_often(self):
        stream = Secret.from_seed(0).stream("p")
        counts: dict[tuple[int, ...], int] = {}
        for _ in range(3000):
            order = tuple(stream.permutation(3).tolist())
            counts[order] = counts.get(order, 0) + 1
        assert len(counts) == 6
        assert stats.chisquare(list(counts.values())).pvalue > 1e-4

    @pytest.mark.parametrize(("byte", "expected"), [(b"\xff", 1 - 2.0**-53), (b"\0", 2.0**-53)])
    def test_the_extremes_are_inside_zero_and_one(self, byte, expected, monkeypatch):
        monkeypatch.setattr(Stream, "_bytes", lambda self, n: byte * n)
        stream = Stream(b"")
        assert stream.uniform((1,)).tolist() == [expected]
        assert 0 < expected < 1
        assert np.isfinite(stream.normal((1,))).all()

    @pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 1)])
    def test_shapes(self, shape):
        stream = Secret.from_seed(0).stream("s")
        assert stream.uniform(shape).shape == shape
        assert stream.normal(shape).shape == shape


class TestSecret:
    def test_nothing_that_is_printed_shows_it(self):
        secret = Secret(MASTER)
        shown = f"{secret} {secret!r} {[secret]} {secret.stream('a')!r}"
        assert MASTER.hex()[:8] not in shown
        assert repr(MASTER)[2:10] not in shown
        assert "hidden" in repr(secret)

    @pytest.mark.parametrize("value", [b"", bytes(31), bytes(33), "0" * 32, bytearray(32), None])
    def test_another_length_or_type_is_refused_without_showing_it(self, value):
        with pytest.raises(KeyFileError, match=r"^a master secret has 32 bytes$"):
            Secret(value)

    def test_fresh_ones_differ_and_have_full_length(self):
        fresh = {Secret.generate().reveal() for _ in range(20)}
        assert len(fresh) == 20
        assert {len(value) for value in fresh} == {SECRET_BYTES}

    def test_fresh_ones_come_from_the_operating_system(self, monkeypatch):
        monkeypatch.setattr("sslguard.crypto.secrets.system_secrets.token_bytes", lambda n: b"\7" * n)
        assert Secret.generate().reveal() == b"\7" * 32

    def test_a_negative_seed_is_refused(self):
        with pytest.raises(UsageError, match="must not be negative"):
            Secret.from_seed(-1)

    def test_it_travels_between_processes(self):
        copy = pickle.loads(pickle.dumps(Secret(MASTER)))
        assert copy.reveal() == MASTER
