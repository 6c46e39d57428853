"""Fingerprints of what took part in marking."""

from __future__ import annotations

import shutil

import pyrage
import pytest
import torch

import sslguard
from helpers.claim_bed import Answers
from sslguard.api import commit
from sslguard.claims.claim import claim
from sslguard.crypto.sealing import IDENTITY, Seal
from sslguard.data.base import Data
from sslguard.data.watched import Watched
from sslguard.errors import UsageError
from sslguard.schemes.exact import Exact, Protocol
from sslguard.schemes.keyfile import open_key, reseal_key


class Floats(Watched):
    """The pictures of another set, in [0, 1]."""

    def take(self, indices):
        return self.whole.take(indices).float() / 255


def taken(data: Data, *indices: int) -> Watched:
    watched = Watched(data)
    watched.take(indices)
    return watched


def test_it_is_the_set_that_it_watches(images):
    watched = Watched(images(20))
    assert (watched.spec, len(watched), watched.extent()) == (images(20).spec, 20, images(20).extent())
    assert watched.identity() == images(20).identity()
    assert len(watched.fingerprints) == 0, "the items that identify a set took no part in anything"
    assert torch.equal(watched.take([3, 1]), images(20).take([3, 1]))


def test_what_was_taken_is_known_and_nothing_else(images):
    marked = taken(images(20), 2, 5, 5)
    marked.slice(10, 20).take([0])
    again = Watched(images(20), marked.fingerprints)
    again.take(range(8))
    assert (len(marked.fingerprints), again.n_known) == (3, 2)
    again.take_all()
    assert again.n_known == 3


def test_a_picture_is_the_same_in_bytes_and_in_floats(images):
    floats = Watched(Floats(images(6)), taken(images(6), 0, 4).fingerprints)
    floats.take_all()
    assert floats.n_known == 2


def test_what_took_part_is_refused_where_it_is_not_allowed(images):
    asked = Watched(images(20), taken(images(20), 7).fingerprints, allowed=False)
    asked.take(range(7))
    with pytest.raises(UsageError, match=r"of the first 9 items .* 1 took part in marking"):
        asked.take([7, 8])


def test_of_many_items_the_smallest_fingerprints_are_kept(images, monkeypatch):
    every = taken(images(20), *range(20)).fingerprints
    monkeypatch.setattr("sslguard.data.watched.MAX_FINGERPRINTS", 5)
    assert taken(images(20), *range(20)).fingerprints.tolist() == every[:5].tolist()


@pytest.fixture(scope="module")
def out(tiny, images, tmp_path_factory):
    """Return the folder of a head that was drawn on the items 0 to 299 of 400."""
    folder = tmp_path_factory.mktemp("marked") / "out"
    scheme = Exact(Protocol(functions=8, rank=2, n_queries=30), mode="head")
    sslguard.watermark(tiny(), images(400).slice(0, 300), out=folder, scheme=scheme)
    return folder


class TestKeys:
    def test_the_key_keeps_them_sealed_or_not(self, out, images, tmp_path, monkeypatch):
        marked = taken(images(400), *range(300)).fingerprints.tolist()
        assert open_key(out / "key").marked.tolist() == marked
        shutil.copytree(out / "key", tmp_path / "key")
        me = pyrage.x25519.Identity.generate()
        (tmp_path / "me.txt").write_text(str(me))
        monkeypatch.setenv(IDENTITY, str(tmp_path / "me.txt"))
        reseal_key(tmp_path / "key", Seal(recipients=(str(me.to_public()),)))
        assert open_key(tmp_path / "key").marked.tolist() == marked

    def test_other_items_are_asked_about(self, out, images):
        verdict = sslguard.verify(out / "key", out / "encoder", images(400).slice(300, 400))
        assert verdict.n_overlap == 0

    def test_items_of_the_marking_are_not_asked_about(self, out, images):
        asked = []

        class Suspect:
            name = "suspect"

            def embed(self, batch):
                asked.append(len(batch))
                raise AssertionError

        with pytest.raises(UsageError, match=r"took part in marking.*--allow-overlap"):
            sslguard.verify(out / "key", Suspect(), images(400).slice(290, 400))
        assert not asked

    def test_an_overlap_that_is_allowed_is_named(self, out, images):
        verdict = sslguard.verify(out / "key", out / "encoder", images(400).slice(0, 300), allow_overlap=True)
        assert verdict.to_json()["n_overlap"] == verdict.n_overlap == 300


def test_a_claim_does_not_ask_about_items_of_the_marking(out, images, tmp_path):
    stored = open_key(out / "key")
    commit(stored, tmp_path / "c.json")
    terms = {"seed": "1", "commitment": tmp_path / "c.json", "out": tmp_path / "bundle"}
    with pytest.raises(UsageError, match="took part in marking"):
        claim(stored, Answers(lambda batch: pytest.fail("the suspect was asked")), images(400), **terms)
    assert not (tmp_path / "bundle").exists()
