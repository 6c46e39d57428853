"""Real texts of the benchmarks: read from a small package made by hand, checked before anything else is done."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from sslguard.data import vader
from sslguard.data.specs import open_data
from sslguard.data.vader import DOMAINS, FILES, INNER, Sizes, Snippet, roles, snippets, texts_file
from sslguard.errors import DataError, UsageError

LINES = {
    "product": b"1_1\t-0.9\tno picture scrolling b/w.\r\n1_2\t2.5\tat &amp;amp; t is  great \r\n",
    "film": "1\t2.2\tTouché!\r\n2\t-1.5\tDULL.\r\n".encode(),
    "editorial": b"1_1\t0.4\tWhy?\r\n1_2\t1.5\tdull.\r\n",
    "tweet": b"1\t2.7\tLMAO, AMAZING! &lt;3\r\n2\t0\t \r\n",
}


def archive(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def package(lines: dict[str, bytes] = LINES) -> bytes:
    return archive(
        {INNER: archive({DOMAINS[domain]: content for domain, content in lines.items()}), "setup.py": b"1/0"}
    )


def made_up(n: int, domain: str = "film") -> list[Snippet]:
    return [Snippet(f"text {k}", domain, (-1) ** k * (k % 3)) for k in range(n)]


def test_texts_are_cleaned_labelled_and_each_is_there_once() -> None:
    found = snippets(package())
    assert {snippet.text: snippet.label for snippet in found} == {
        "no picture scrolling b/w.": "product-negative",
        "at & t is great": "product-positive",
        "Touché!": "film-positive",
        "DULL.": "film-negative",
        "Why?": None,
        "LMAO, AMAZING! <3": "tweet-positive",
    }


def test_the_order_does_not_depend_on_that_of_the_file() -> None:
    turned = {domain: b"\n".join(reversed(content.split(b"\r\n"))) for domain, content in LINES.items()}
    assert [snippet.text for snippet in snippets(package(turned))] == [snippet.text for snippet in snippets(package())]


def test_no_text_has_two_roles_but_probes_are_made_of_those_of_verify() -> None:
    given = made_up(60)
    split = roles(given, Sizes(20, 25, 6))
    assert list(split) == list(FILES)
    assert split["mark"] + split["thief"] + split["verify"] == given
    assert {role: len(split[role]) for role in FILES} == {
        "mark": 20, "thief": 25, "verify": 15, "probe_train": 6, "probe_test": 4,
    }  # fmt: skip
    assert split["probe_train"] + split["probe_test"] == [s for s in split["verify"] if s.label is not None]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A package of 23,200 texts in the place of the real one, and an empty cache; where it was downloaded to."""
    many = {
        domain: b"".join(b"%d\t%d\t%s %d\r\n" % (k, k % 5 - 2, domain.encode(), k) for k in range(5800))
        for domain in DOMAINS
    }
    content, asked = package(many), []

    def download(folder: Path) -> None:
        asked.append(folder)
        (folder / vader.SOURCE).write_bytes(content)

    monkeypatch.setenv("SSLGUARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(vader, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(vader, "download", download)
    return asked


def test_files_are_made_once_and_read_as_texts(served: list[Path]) -> None:
    split = roles(snippets(vader.source()), Sizes())
    for role in FILES:
        data = open_data(f"vader:{role}")
        assert data.take(range(len(data))) == [snippet.text for snippet in split[role]]
        if role.startswith("probe"):
            assert data.labels is not None
            names = data.classes  # type: ignore[attr-defined]
            assert len(names) == 8
            assert [names[k] for k in data.labels] == [snippet.label for snippet in split[role]]
        else:
            assert data.labels is None
    assert len(served) == 1
    before = texts_file("mark").stat().st_mtime_ns
    vader.write_roles(texts_file("mark").parent, split)
    assert texts_file("mark").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="texts are there for mark, thief"):
        texts_file("../mark")


def test_another_package_is_refused_and_not_kept(served: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    known = vader.SHA256
    monkeypatch.setattr(vader, "SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"must have the SHA-256 000000000000…, not"):
        texts_file("mark")
    monkeypatch.setattr(vader, "SHA256", known)
    path = texts_file("mark").parents[1] / vader.SOURCE
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DataError, match="delete it"):
        vader.source()
    assert len(served) == 2


def test_pip_refuses_another_package_before_it_runs_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, folder = tmp_path / "ran", tmp_path / "index"
    folder.mkdir()
    code = f"open({str(mark)!r}, 'w').close()".encode()
    (folder / vader.SOURCE).write_bytes(archive({"vaderSentiment-3.3.2/setup.py": code}))
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(folder)), ("SSLGUARD_CACHE", str(tmp_path))):
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=rf"put {vader.SOURCE} into {tmp_path / 'texts'}") as caught:
        texts_file("mark")
    assert hashlib.sha256((folder / vader.SOURCE).read_bytes()).hexdigest() in str(caught.value)
    assert not mark.exists()


def test_without_pip_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*args: object, timeout: float, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("pip", timeout)

    monkeypatch.setenv("SSLGUARD_CACHE", str(tmp_path))
    monkeypatch.setattr(vader.sys, "executable", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="pip could not download the source package"):
        texts_file("mark")
    monkeypatch.setattr(vader.subprocess, "run", late)
    with pytest.raises(DataError, match="timed out"):
        texts_file("mark")
