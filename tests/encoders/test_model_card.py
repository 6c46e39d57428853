"""Model cards: what they say of an encoder, and that they are silent about its mark until the owner asks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

import sslguard
from helpers.command_line import sslguard as run
from sslguard.crypto.secrets import Secret
from sslguard.encoders.base import Encoder
from sslguard.encoders.model_card import CARD, MAX_CARD, card, name_commitment
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.rebuild import build
from sslguard.encoders.words import HashedWords
from sslguard.errors import UsageError

SETTINGS = {"protocol": {"functions": 8, "rank": 2, "n_queries": 60}, "mode": "head"}


@pytest.fixture(scope="module")
def marked(tiny: Any, images: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `watermark` writes of a network of this package's own."""
    out = tmp_path_factory.mktemp("card") / "marked"
    sslguard.watermark(tiny(7), images(300), settings=SETTINGS, secret=Secret.from_seed(1), out=out)
    return out


def test_it_says_what_the_encoder_is_and_nothing_of_the_mark(marked: Path) -> None:
    text = (marked / "encoder" / CARD).read_text()
    encoder = sslguard.load_encoder(marked / "encoder")
    assert f"an embedding of {encoder.dim} numbers" in text
    assert f"{encoder.preprocess.height} x {encoder.preprocess.width} pixels" in text
    key = sslguard.load_key(marked / "key")
    for word in ("watermark", "marked", "key", "secret", "exact", key.clean_hash, key.watermarked_hash):
        assert word not in text, word
    assert str(marked) not in text


def test_it_loads_the_encoder_as_it_says(marked: Path, images: Any) -> None:
    text = (marked / "encoder" / CARD).read_text()
    code = text.partition("```python\n")[2].partition("```")[0].replace("FOLDER", str(marked / "encoder"))
    items = images(4).take(range(4))
    found: dict[str, Any] = {"items": items}
    exec(compile(code, CARD, "exec"), found)
    assert (found["embeddings"] == sslguard.load_encoder(marked / "encoder").embed(items)).all()


@pytest.mark.parametrize(
    ("preprocess", "words"),
    [
        (ImagePreprocess(8, 9), "stretched to 8 x 9 pixels. Pixels are in three colours"),
        (ImagePreprocess(8, 8, 1, (0.5,), (0.25,), crop=0.875), "its middle, 0.875 of the shorter side, is cut out"),
        (ImagePreprocess(8, 8, 1, (0.5,), (0.25,), crop=1.0), "its middle is cut out"),
        (ImagePreprocess(8, 8, 1, (0.5,), (0.25,)), "0.5 is subtracted, and the rest divided by 0.25"),
        (ImagePreprocess(8, 8, resample="none"), "others are refused"),
        (HashedWords(64, 12), "cut after 12 of them"),
    ],
)
def test_what_comes_before_the_network(preprocess: Any, words: str) -> None:
    architecture = {"backbone": "bag-of-words", "vocabulary": 64, "width": 32}
    module, dim = build(architecture, seed=0)
    assert words in card(Encoder(module.eval(), preprocess, dim, architecture, "x on y:train[0:3]"), None)


class TestCommitment:
    def test_the_card_names_it_where_the_owner_asks(self, marked: Path, tmp_path: Path) -> None:
        place = tmp_path / CARD
        place.write_text((marked / "encoder" / CARD).read_text() + "\nMy own words.\n")
        ran = run("commit", marked / "key", "--out", tmp_path / "c.json", "--card", place, "--quiet")
        assert ran.code == 0, ran.err
        digest = hashlib.sha256((tmp_path / "c.json").read_bytes()).hexdigest()
        text = place.read_text()
        assert digest in text
        assert "This encoder is watermarked" in text
        assert "My own words." in text
        key = sslguard.load_key(marked / "key")
        for secret in (key.secret.reveal().hex(), key.clean_hash):
            assert secret not in text

    def test_without_the_option_no_card_changes(self, marked: Path, tmp_path: Path) -> None:
        before = (marked / "encoder" / CARD).read_bytes()
        assert run("commit", marked / "key", "--out", tmp_path / "c.json", "--quiet").code == 0
        assert (marked / "encoder" / CARD).read_bytes() == before

    def test_a_later_commitment_takes_its_place(self, tmp_path: Path) -> None:
        (tmp_path / CARD).write_text("# Mine\n\n## Commitment\n\n`old`\n\n## Citation\n\nMe, 2026.\n")
        name_commitment(tmp_path, "ab" * 32)
        name_commitment(tmp_path, "cd" * 32)
        text = (tmp_path / CARD).read_text()
        assert text.count("## Commitment") == text.count("watermarked") == 1
        assert "cd" * 32 in text
        assert "ab" * 32 not in text
        assert "`old`" not in text
        assert "Me, 2026." in text

    @pytest.mark.parametrize("content", [None, b"\xff\xfe", b"x" * (MAX_CARD + 1)])
    def test_what_is_no_card_is_refused_before_anything_is_written(
        self, marked: Path, tmp_path: Path, content: bytes | None
    ) -> None:
        (tmp_path / "place").mkdir()
        if content is not None:
            (tmp_path / "place" / CARD).write_bytes(content)
        with pytest.raises(UsageError):
            sslguard.commit(marked / "key", tmp_path / "c.json", card=tmp_path / "place")
        assert not (tmp_path / "c.json").exists()
