"""Keys on disk: they come back as they were, for their owner alone, and hostile ones are refused in one sentence."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from sslguard.crypto.secrets import Secret
from sslguard.errors import KeyFileError, OutputError
from sslguard.schemes.keyfile import MAX_JSON_BYTES, is_key_folder, load_key, open_key, save_key
from sslguard.schemes.sslguard.scheme import SSLGuard

SECRET = Secret.from_seed(1)


@pytest.fixture(scope="module")
def key(images, tiny):
    scheme = SSLGuard(
        steps=1, batch_size=4, trigger_batch=4, decoder_hidden=(6,), secret_dim=5, n_verification=8, n_queries=8
    )
    return scheme.watermark(tiny(7), images(20), secret=SECRET).key


@pytest.fixture
def folder(key, tmp_path):
    save_key(key, tmp_path / "key")
    return tmp_path / "key"


class TestRoundTrip:
    def test_asks_and_scores_as_before(self, key, folder, images, tiny, untouched_rng):
        loaded = load_key(folder)
        data, suspect = images(12, seed=3), tiny(8)
        ours, theirs = list(key.queries(data)), list(loaded.queries(data))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        answers = [suspect.embed(batch) for batch in ours]
        assert np.array_equal(key.statistic(answers).cosines, loaded.statistic(answers).cosines)
        assert loaded.secret.reveal() == SECRET.reveal()
        assert (loaded.clean_hash, loaded.watermarked_hash) == (key.clean_hash, key.watermarked_hash)

    def test_written_again_it_is_the_same_file(self, folder, tmp_path):
        stored = open_key(folder)
        save_key(stored.key, tmp_path / "again", owner=stored.owner)
        for name in ("key.json", "tensors.safetensors"):
            assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()

    def test_replaces_a_key_and_nothing_else(self, key, folder, tmp_path):
        save_key(key, folder)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.txt").write_text("years of work")
        with pytest.raises(OutputError, match="holds something else"):
            save_key(key, tmp_path / "other")
        assert (tmp_path / "other" / "thesis.txt").exists()

    def test_only_its_owner_may_read_it_whatever_the_umask(self, key, tmp_path):
        before = os.umask(0)
        try:
            save_key(key, tmp_path / "key")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o700
        assert {stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / "key").iterdir()} == {0o600}
        assert {f.name for f in (tmp_path / "key").iterdir()} == {"key.json", "tensors.safetensors"}


def edit_json(change):
    def spoil(folder):
        path = folder / "key.json"
        description = json.loads(path.read_text())
        change(description)
        path.write_text(json.dumps(description))

    return spoil


def edit_field(**fields):
    return edit_json(lambda d: d["fields"].update(fields))


def edit_tensors(change):
    def spoil(folder):
        path = folder / "tensors.safetensors"
        tensors = load_file(path)
        change(tensors)
        path.write_bytes(save(tensors))

    return spoil


def cut(name, keep):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def remove(name):
    return lambda folder: (folder / name).unlink()


def pipe(name):
    def spoil(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return spoil


def not_finite(value):
    return edit_tensors(lambda t: t["decoder.0.weight"].view(-1)[0].fill_(value))


HOSTILE = {
    "no key.json": (remove("key.json"), "has no key.json"),
    "no tensors": (remove("tensors.safetensors"), "tensors.safetensors is missing"),
    "a pipe for the description": (pipe("key.json"), "is not a plain file"),
    "a pipe for the tensors": (pipe("tensors.safetensors"), "is not a plain file"),
    "empty description": (write("key.json", b""), "not JSON"),
    "cut description": (cut("key.json", 300), "not JSON"),
    "garbage description": (write("key.json", b"\xff\x00garbage"), "not JSON"),
    "nested too deep": (write("key.json", b"[" * 200_000), "not JSON"),
    "a list": (write("key.json", b"[]"), "not a key of this program"),
    "oversized description": (write("key.json", b" " * (MAX_JSON_BYTES + 1)), "larger than"),
    "another format": (edit_json(lambda d: d.update(format="other")), "not a key of this program"),
    "another version": (edit_json(lambda d: d.update(version=2)), "version 2; this program reads version 1"),
    "a version that is true": (edit_json(lambda d: d.update(version=True)), "version True"),
    "another protection": (edit_json(lambda d: d.update(protection="rot13")), "protection is none or age"),
    "no owner": (edit_json(lambda d: d.pop("owner")), "lacks a salt or a signing key"),
    "half a salt": (edit_json(lambda d: d["owner"].update(salt="ab" * 16)), "32 bytes each"),
    "another owner's name": (edit_json(lambda d: d.update(id="ab" * 32)), "its id and its scheme"),
    "no version": (edit_json(lambda d: d.pop("version")), "version None"),
    "unknown scheme": (edit_json(lambda d: d.update(scheme="nope")), "scheme 'nope'"),
    "unhashable scheme": (edit_json(lambda d: d.update(scheme=["sslguard"])), "not known here"),
    "no fields": (edit_json(lambda d: d.pop("fields")), "no fields"),
    "empty tensors": (write("tensors.safetensors", b""), "damaged"),
    "cut tensors": (cut("tensors.safetensors", 500), "damaged"),
    "cut values": (cut("tensors.safetensors", -4), "damaged"),
    "garbage tensors": (write("tensors.safetensors", b"\xff" * 100), "damaged"),
    "a header that promises too much": (write("tensors.safetensors", b"\xff" * 7 + b"\x7f" + b"{}"), "damaged"),
    "NaN": (not_finite(float("nan")), r"decoder\.0\.weight holds values that are not finite"),
    "infinity": (not_finite(float("inf")), "not finite"),
    "a type that numpy has not": (edit_tensors(lambda t: t.update(sk=t["sk"].bfloat16())), "of a type that no key has"),
    "a type of 8 bits": (edit_tensors(lambda t: t.update(sk=t["sk"].to(torch.float8_e4m3fn))), "of a type that no key"),
    "a mask of truth values": (
        edit_tensors(lambda t: t.update({"trigger.mask": t["trigger.mask"].bool()})),
        "do not fit",
    ),
    "a decoder without ends": (edit_field(decoder_widths=[]), "do not fit"),
    "no secret vector": (edit_tensors(lambda t: t.pop("sk")), "do not fit"),
    "no trigger": (edit_tensors(lambda t: t.pop("trigger.pattern")), "do not fit"),
    "no decoder layer": (edit_tensors(lambda t: t.pop("decoder.2.bias")), "do not fit"),
    "a tensor too many": (edit_tensors(lambda t: t.update({"decoder.9.bias": torch.ones(2)})), "do not fit"),
    "another decoder shape": (edit_tensors(lambda t: t.update({"decoder.2.bias": torch.ones(9)})), "do not fit"),
    "another secret vector": (edit_tensors(lambda t: t.update(sk=torch.ones(7))), "secret vector"),
    "a secret vector of zeros": (edit_tensors(lambda t: t.update(sk=torch.zeros(5))), "secret vector"),
    "a trigger of another size": (edit_tensors(lambda t: t.update({"trigger.mask": torch.ones(1, 9, 9)})), "trigger"),
    "a mask that is not 0 or 1": (
        edit_tensors(lambda t: t.update({"trigger.mask": torch.full((1, 16, 16), 0.5)})),
        "trigger",
    ),
    "whole numbers for a pattern": (
        edit_tensors(lambda t: t.update({"trigger.pattern": torch.ones(1, 16, 16, dtype=torch.int64)})),
        "do not fit",
    ),
    "half a secret": (edit_field(secret="ab" * 16), "32 bytes"),
    "a secret that is no hex": (edit_field(secret="zz" * 32), "do not fit"),
    "no secret": (edit_field(secret=None), "do not fit"),
    "widths that would fill all memory": (edit_field(decoder_widths=[10**6, 10**6]), "do not fit"),
    "negative widths": (edit_field(decoder_widths=[-3, 4]), "do not fit"),
    "no widths": (edit_field(decoder_widths=[]), "do not fit"),
    "no queries": (edit_field(n=0), "number of queries"),
    "too many queries": (edit_field(n=10**30), "number of queries"),
    "queries as text": (edit_field(n="many"), "do not fit"),
    "no preprocessing": (edit_field(preprocess={}), "preprocessing"),
    "foreign preprocessing": (edit_field(preprocess="image"), "do not fit"),
    "hashes that are none": (edit_field(clean_hash="\x1b[2J"), "hash"),
}


class TestHostileFiles:
    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("name", HOSTILE)
    def test_is_refused_in_one_sentence_without_the_secret(self, folder, name):
        spoil, message = HOSTILE[name]
        spoil(folder)
        with pytest.raises(KeyFileError, match=message) as caught:
            load_key(folder)
        said = str(caught.value)
        assert "\n" not in said
        assert len(said) < 600
        chain, secret = caught.value, SECRET.reveal()
        while chain is not None:
            assert not any(part in repr(chain) for part in (secret.hex()[:12], secret.hex()[-12:], repr(secret)[2:12]))
            chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(KeyFileError, match=r"no key\.json"):
            load_key(tmp_path / "nowhere")

    def test_a_file_for_a_folder(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(KeyFileError):
            load_key(tmp_path / "file")

    def test_only_a_readable_description_makes_a_key_folder(self, folder):
        assert is_key_folder(folder)
        (folder / "key.json").write_text("{}")
        assert not is_key_folder(folder)

    def test_a_killed_save_leaves_the_old_key(self, key, folder, monkeypatch):
        before = (folder / "key.json").read_bytes()
        monkeypatch.setattr("safetensors.torch.save", lambda tensors: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save_key(key, folder)
        assert (folder / "key.json").read_bytes() == before
        assert [path.name for path in folder.parent.iterdir()] == ["key"]
