"""What tests of the documents share: the commands of a page, and what stands in for what takes long."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"

SMALLER = {
    "shipped:simclr": "random:resnet-narrow@16",
    "timm:resnet50:weights.pth": "timm:test_resnet:weights.pth@32",
    "torchvision:resnet18:random": "torchvision:resnet18:random@32",
}
"""Encoders that stand in for those of a page, so that its commands take seconds."""

STEPS = {"steal": "30", "watermark": "60"}
"""Number of steps of a theft, or of a marking of weights, that names none."""


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of one language on a page of docs/."""
    return [
        textwrap.dedent(found[1])
        for found in re.findall(
            rf"^( *)```{language}\n(.*?)^ *```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE
        )
    ]


def commands(page: str) -> list[list[str]]:
    """Return the words of each command on a page, without comments."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def pages_with(language: str) -> set[str]:
    """Return the pages of docs/ that hold a block of this language; those of docs/archive stay as they were."""
    pages = (path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    return {page for page in pages if not page.startswith("archive/") and blocks(page, language)}


def smaller(text: str) -> str:
    """Return a command's word, or code, with the encoders of `SMALLER`."""
    for name, other in SMALLER.items():
        text = text.replace(name, other)
    return text


def shrunk(words: list[str]) -> list[str]:
    """Return the words of a command of sslguard with smaller encoders and, where it trains, fewer steps."""
    trains = words[0] in STEPS and not {"head", "--steps"} & set(words)
    return [*map(smaller, words), *(["--steps", STEPS[words[0]]] if trains else [])]
