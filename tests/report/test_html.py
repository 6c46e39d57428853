"""The base of every page: one file, nothing loaded, every text escaped, a script only where a page has a search."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sslguard.report import html

HOSTILE = "<script>alert(1)</script>\x1b[2J\n&amp;"
PAGE = """{% extends "report/base.html.j2" %}{% import "report/parts.html.j2" as parts %}
{% set title = name %}
{% block main %}<h1>{{ name|line }}</h1>
{{ parts.table([name, 'n'], [[name, '1']] * n, (false, true), caption=name) }}
{{ parts.facts([('plain', name), ('code', name, true)], name) }}
{{ parts.badge('not shown') }}{{ parts.badge('failed', name) }}{% endblock %}"""


def page(template: str = PAGE, n: int = 1, name: str = HOSTILE) -> str:
    return html._environment().from_string(template).render(name=name, n=n)


def test_nothing_is_loaded_and_nothing_runs() -> None:
    made = page()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in made
    assert not re.search(r"<script|<link|@import|url\(|https?:", made)


def test_every_text_is_escaped() -> None:
    made = page()
    assert made.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 9
    assert "&amp;amp;" in made
    assert "\x1b" not in made

    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "br", "img"):
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    tags = Tags()
    tags.feed(made)
    assert tags.open == []


def test_a_search_brings_the_one_script_and_its_digest() -> None:
    made = page("{% set search = true %}" + PAGE)
    (script,) = re.findall(r"<script>(.*?)</script>", made, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in made
    assert 'type="search"' in made


def test_columns_of_numbers_are_marked() -> None:
    made = page(name="x")
    assert '<th scope="col" class="n">n</th>' in made
    assert '<th scope="row">x</th><td class="n">1</td>' in made


@pytest.mark.parametrize(("n", "long"), [(30, False), (31, True)])
def test_only_long_tables_scroll_under_their_head(n: int, long: bool) -> None:
    assert ('class="scroll long"' in page(n=n)) is long


def test_pages_are_known_by_their_head(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page())
    assert html.is_page(path)
    path.write_text("<!DOCTYPE html><title>mine</title>")
    assert not html.is_page(path)
