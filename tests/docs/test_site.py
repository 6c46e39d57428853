"""The site builds without a warning, needs nothing of other hosts, and leaves out no command and no public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import sslguard
from sslguard.cli.entry import COMMANDS

pytestmark = pytest.mark.heavy
pytest.importorskip("mkdocs")
ROOT = Path(__file__).parents[2]


class Addresses(HTMLParser):
    """Collects where a page's links lead, what it loads, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in ("link", "script", "img", "iframe", "source"):
            self.loaded += [found[name] for name in ("href", "src") if name in found]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Addresses]:
    """The site's pages, built once, by their paths."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert (built.returncode, built.stderr) == (0, "")
    pages = {}
    for path in folder.rglob("*.html"):
        pages[path] = Addresses()
        pages[path].feed(path.read_text())
    assert len(pages) > 20
    return pages


def test_every_link_leads_to_a_page_and_an_anchor(site: dict[Path, Addresses]) -> None:
    dead = []
    for page, found in site.items():
        for link in [*found.links, *found.loaded]:
            target, _, anchor = link.partition("#")
            if re.match(r"\w+:", link) or page.name == "404.html":
                continue
            path = (page.parent / unquote(target)).resolve() if target else page
            if not path.is_file() or (anchor and path in site and unquote(anchor) not in site[path].anchors):
                dead.append((page.name, link))
    assert dead == []


def test_nothing_is_loaded_from_another_host(site: dict[Path, Addresses]) -> None:
    loaded = [address for found in site.values() for address in found.loaded]
    assert loaded
    assert [address for address in loaded if re.match(r"(\w+:)?//", address)] == []
    sheets = [sheet.read_text() for sheet in next(iter(site)).parent.rglob("*.css")]
    assert [found for sheet in sheets for found in re.findall(r"url\(['\"]?(?:https?:)?//[^)]*", sheet)] == []


def test_the_reference_names_every_command_and_every_function(site: dict[Path, Addresses]) -> None:
    (commands,) = [found for path, found in site.items() if path.name == "commands.html"]
    names = [each.__name__.strip("_").replace("_", "-") for each in COMMANDS]
    assert [name for name in names if not any(anchor.endswith(f"-{name}") for anchor in commands.anchors)] == []
    (api,) = [found for path, found in site.items() if path.name == "api.html"]
    public = {name for name in sslguard.__all__ if not name.startswith("__")}
    assert public <= {anchor.rsplit(".", 1)[-1] for anchor in api.anchors}
