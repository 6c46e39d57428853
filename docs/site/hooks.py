"""Hooks of the site: pages for the examples, and what the pages say about files that the site does not hold."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

# The theme announces its successor at every build.
os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")
ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page without links to files of the repository that are no pages: their text stays."""
    folder = Path(page.file.abs_src_path or ROOT / "docs" / page.file.src_uri).parent

    def local(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = Path(os.path.normpath(folder / target.partition("#")[0]))
        outside = "://" not in target and path.exists() and ROOT / "docs" not in path.parents
        return text if outside else match[0]

    return LINK.sub(local, markdown)
