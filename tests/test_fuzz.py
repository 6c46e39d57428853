"""Damaged files, a short run: every one is read or refused in one sentence. The long run is benchmarks/fuzz.py."""

from __future__ import annotations

import resource
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helpers.fuzz_targets import make_targets, mutated
from sslguard.crypto.sealing import IDENTITY, PASSPHRASE

pytestmark = pytest.mark.fuzz
NAMES = (
    *("golden key", "cured key", "key in the clear", "sealed key", "stored scores"),
    *("key with sub-keys", "openings", "recipients", "commitment", "statement that is signed again"),
    *("signed receipt", "timestamp", "bundle", "claim that is signed again"),
    *("encoder", "encoder of texts", "population", "logged answers", "pictures", "checkpoint", "texts"),
    *("shards of texts", "shards of pictures", "packed texts", "Parquet", "transformer", "tokenizer", "ONNX"),
    *("claim by weights", "key with a secret order", "key of a pool", "options in a file", "benchmark"),
    *("stored answers", "folder of pictures"),
    *(f"request, {name}" for name in ("openai.json", "tei.json", "either.json", "oip.json", "oip.bin")),
    *(f"reply, {name}" for name in ("openai", "tei", "oip", "json", "oip, bytes")),
)
SHORT = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(IDENTITY, "")
        patch.delenv(PASSPHRASE, raising=False)
        patch.setenv("SSLGUARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield {target.name: target for target in make_targets(tmp_path_factory.mktemp("good"))}


def test_every_reader_is_tried(targets):
    assert tuple(targets) == NAMES


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", NAMES)
def test_damaged_files(targets, tmp_path, name):
    target = targets[name]

    @SHORT
    @given(st.sampled_from(target.files), st.integers(0, 2**64))
    def damage(file, seed):
        target.try_one(tmp_path, file, mutated((target.folder / file).read_bytes(), Random(seed)))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    damage()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB: nothing filled the memory


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_at_all(targets, tmp_path, name):
    target = targets[name]

    @settings(SHORT, max_examples=15)
    @given(st.sampled_from(target.files), st.binary(max_size=300))
    def replace(file, content):
        target.try_one(tmp_path, file, content)

    replace()
