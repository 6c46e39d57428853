"""The report: what is counted and drawn, what a folder keeps, and that no name reaches a page or terminal as code."""

from __future__ import annotations

import base64
import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from helpers.pages import demo_fields, suspect
from sslguard.demo.output import PAGE, PICTURE, RESULT, Stages, begin, write_report
from sslguard.demo.page import decision_line, picture_png, render_page, tables, wrong
from sslguard.errors import OutputError

HOSTILE = "<script>alert(1)</script>\x1b[31m$\\frac$[bold]"
VOID = {"meta", "img", "br", "source", "link", "hr", "input"}


class Page(HTMLParser):
    """Collects tags, addresses that a browser would load, and text; fails where tags do not close."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def addresses(self) -> list[str]:
        names = ("src", "srcset", "href", "data", "poster", "action", "background")
        return [value or "" for _, attrs in self.tags for name, value in attrs.items() if name in names]

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


@pytest.fixture(scope="module")
def page_text() -> str:
    return render_page(demo_fields())


def printed(fields: dict[str, object], width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(tables(fields))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ---------------------------------------------------------------- the page


def test_page_is_well_formed_and_counts_both_schemes(page_text: str) -> None:
    page = Page(page_text)
    assert page_text.lstrip().startswith("<!DOCTYPE html>")
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert "4 of 4 encoders that come from it are called derived, 0 of 2 innocent ones." in page.words
    assert "Wrong" not in page.words
    assert "must show 24.0 bits" in page.words
    assert page.words.count("≥ 256") >= 4
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")


def test_page_loads_nothing_from_anywhere(page_text: str) -> None:
    page = Page(page_text)
    # A link to the examiner's page beside it loads nothing by itself.
    assert {address for address in page.addresses() if not address.startswith("data:image/")} == {"audit.html"}
    assert not re.search(r"@import|url\(|<script|<iframe|javascript:", page_text)
    charts = [a for a in page.addresses() if a.startswith("data:image/svg+xml")]
    assert len(set(charts)) == 2
    for chart in charts:
        assert ET.fromstring(base64.b64decode(chart.partition(",")[2])).tag.endswith("svg")  # our own bytes


@pytest.mark.usefixtures("undrawn")
def test_the_paper_s_scheme_is_second_or_left_out(page_text: str) -> None:
    without = demo_fields()
    del without["paper"]
    assert "The same by the paper’s scheme" in Page(page_text).words
    assert "paper’s scheme" not in Page(render_page(without)).words
    assert "paper" not in printed(without)
    assert decision_line(without) == 24


@pytest.mark.usefixtures("undrawn")
def test_a_wrong_verdict_is_named_everywhere() -> None:
    missed, accused = suspect("a thief", True, 3.0), suspect("a stranger", False, 80.0)
    fields = demo_fields(missed, accused)
    assert wrong(fields) == ["a thief (exact)", "a stranger (exact)"]
    words = Page(render_page(fields)).words
    assert "Wrong: a thief (exact), a stranger (exact)." in words
    assert "missed" in words
    assert "false claim" in words
    assert "This result is wrong for a stranger (exact)." in printed(fields)


@pytest.mark.usefixtures("undrawn")
def test_public_seed_is_said_to_prove_nothing(page_text: str) -> None:
    assert "public seed" not in Page(page_text).words
    settings = {**demo_fields()["settings"], "seed": 5}
    assert "public seed 5" in Page(render_page(demo_fields(settings=settings))).words


def test_hostile_names_are_text_everywhere() -> None:
    fields = demo_fields(suspect(HOSTILE, False, 80.0, story=HOSTILE), commands=[HOSTILE], created=HOSTILE)
    text = render_page(fields)
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert(1)</script>" in page.words
    assert "\x1b" not in text
    assert "\x1b" not in printed(fields, width=400)
    assert "[bold]" in printed(fields, width=400)
    with Image.open(io.BytesIO(picture_png(fields))) as image:
        assert image.width == 1440


def test_commands_keep_their_lines() -> None:
    lines = [line.rstrip() for line in printed(demo_fields()).splitlines()]
    at = lines.index("  sslguard verify 'a key' \\")
    assert lines[at + 1] == "      --data x"


# ---------------------------------------------------------------- the folder


def test_a_stage_is_done_once_and_its_order_is_kept(tmp_path: Path) -> None:
    first = Stages(tmp_path, (PAGE,), {"seed": (1, 2)}, shown=False)
    assert first.do("z", lambda: {"bits": 1.5}) == {"bits": 1.5}
    with pytest.raises(ZeroDivisionError):
        first.do("b", lambda: 1 / 0)
    again = Stages(tmp_path, (PAGE,), {"seed": (1, 2)}, shown=False)
    assert again.do("z", lambda: 1 / 0) == {"bits": 1.5}
    assert again.do("a", lambda: 2) == 2
    kept = json.loads((tmp_path / RESULT).read_text())
    assert list(kept["found"].items()) == [("z", {"bits": 1.5}), ("a", 2)]
    assert kept["seconds"].keys() == {"z", "a"}
    with pytest.raises(OutputError, match="other settings"):
        Stages(tmp_path, (PAGE,), {"seed": 3}, shown=False)


def test_written_files_are_replaced_by_the_next_report(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    for content in (b"one", b"two"):
        fields = {"format": "sslguard-report", **begin(out, (PAGE, PICTURE))}
        write_report(out, fields, {PICTURE: content, PAGE: content})
        assert (out / PAGE).read_bytes() == content
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "result.json", "result.png"]


def test_folder_of_a_run_that_was_killed_is_known(tmp_path: Path) -> None:
    begin(tmp_path, ("key",))
    (tmp_path / "key").mkdir()
    begin(tmp_path, ("key",))


@pytest.mark.parametrize("name", ["report.html", "result.json", "result.png"])
@pytest.mark.parametrize("content", [b"mine", b'{"format": 1}', b""])
def test_files_of_others_are_not_overwritten(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OutputError, match=name):
        begin(tmp_path, (PAGE, PICTURE))
    assert (tmp_path / name).read_bytes() == content


def test_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "holder" / "report.html").mkdir(parents=True)
    for folder in (file, file / "below", tmp_path / "holder", Path("/proc/sslguard")):
        with pytest.raises(OutputError):
            begin(folder, (PAGE, PICTURE))
    assert file.read_bytes() == b""
