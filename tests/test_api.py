"""The names of the package, and what the functions of `api` refuse."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sslguard
from sslguard.encoders.folder import save_encoder
from sslguard.errors import UsageError


def test_every_public_name_is_listed_and_there() -> None:
    assert dir(sslguard) == sorted(sslguard.__all__)
    assert all(getattr(sslguard, name) is not None for name in sslguard.__all__)


def test_listing_the_names_imports_nothing_heavy() -> None:
    program = "import sys, sslguard; dir(sslguard); print(sorted({'torch', 'numpy', 'scipy'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"scheme": "exat"}, "Did you mean 'exact'"),
        ({"preset": "curd"}, "Did you mean 'cured'"),
        ({"settings": {"step": 3}}, "Did you mean 'steps'"),
        ({"scheme": "embmarker", "out": "o"}, "not kept in files"),
        ({"scheme": "exact", "controls": ["shipped"]}, "needs no controls"),
        ({"scheme": "sslguard", "controls": ["shipped"]}, "go together"),
    ],
)
def test_a_marking_that_cannot_be(tiny, images, more, words) -> None:
    with pytest.raises(UsageError, match=words):
        sslguard.watermark(tiny(), images(4), **more)


def test_an_attack_that_cannot_be(tiny, images, tmp_path) -> None:
    for name, data, words in (
        ("sign-bits", images(4), "leaves no weights"),
        ("prune", images(4), "leave --data out"),
        ("fine-tune", images(4), "has no labels"),
        ("rda", None, "give --data"),
    ):
        with pytest.raises(UsageError, match=words):
            sslguard.attack(tiny(), name, data, out=tmp_path / "o")
    assert not list(tmp_path.iterdir())


def test_a_sub_key_needs_the_keys_folder(key_of, tiny, images) -> None:
    with pytest.raises(UsageError, match="give the key's folder"):
        sslguard.verify(key_of(), tiny(), images(4), sub_key=1)


def test_what_answers_are_can_be_said_of_the_exact_scheme_alone(key_of, tiny, images) -> None:
    with pytest.raises(UsageError, match="sslguard takes embeddings alone: leave --answers out"):
        sslguard.verify(key_of(), tiny(), images(4), answers="labels")


def test_paths_may_be_texts(tiny, key_of, tmp_path) -> None:
    sslguard.save_key(key_of(), f"{tmp_path}/key")
    assert sslguard.load_key(f"{tmp_path}/key").n_queries == key_of().n_queries
    save_encoder(tiny(), f"{tmp_path}/encoder")
    assert sslguard.load_encoder(f"{tmp_path}/encoder").dim == tiny().dim
