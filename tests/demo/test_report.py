"""The report: what is counted, what is drawn, and that no name reaches the page, a picture or a terminal as code."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from helpers.pages import examined, report_data, scores, suspect
from sslguard.controls.members import Member
from sslguard.demo import figures as drawn
from sslguard.demo.output import PAGE, PICTURE, begin, write_report
from sslguard.demo.page import render_page, render_tables
from sslguard.demo.result import Accuracy, Bar, Examined, Rates, ReportData, thinned
from sslguard.errors import OutputError
from sslguard.report.charts import LIGHT, svg_uri

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
    return render_page(report_data())


def printed(data: ReportData, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(render_tables(data))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ---------------------------------------------------------------- the numbers


def test_level_and_critical_value() -> None:
    assert examined(alpha=0.25).critical() == pytest.approx(2)
    assert examined(alpha=0.25, n_claims=2).critical() == pytest.approx(3)
    assert examined().floor == 2.0**-256


def test_false_claims_are_counted_by_kind_under_each_key() -> None:
    rows = {row.kind: row for row in report_data().claims()}
    assert list(rows) == ["surrogate of F", "random", "innocent suspects"]
    published = [scores(0.4 + i / 20).watermark_rate for i in (0, 2, 4, 6)]
    assert rows["random"].n == 4
    assert rows["random"].keys["cured"] == Rates(0.0, 0.0)
    assert rows["random"].keys["published"] == Rates(
        pytest.approx(np.median(published)), float(np.mean(np.array(published) > 0.5))
    )
    assert [rates.share_above_half for rates in rows["innocent suspects"].keys.values()] == [0.0, 1.0]


def test_json_holds_every_figure_and_nothing_that_json_lacks() -> None:
    result = json.loads(json.dumps(report_data().to_json(), allow_nan=False))
    assert result["format"] == "sslguard-report"
    assert (result["n_controls"], result["floor"], result["n_images"]) == (8, 2.0**-256, 32)
    assert result["keys"][0]["suspects"][0] == {
        "name": "F*",
        "story": "marked",
        "truly_derived": True,
        "decision": "derived",
        "statistic": pytest.approx(0.9),
        "pvalue": pytest.approx(1 / 9),
        "log2_pvalue": pytest.approx(-math.log2(9)),
        "watermark_rate": 1.0,
    }
    assert result["keys"][0]["controls"]["control-1"]["kind"] == "surrogate of F"
    assert result["false_claims"][-1]["keys"]["published"]["share_above_half"] == 1.0
    assert result["accuracies"][1] == {"task": "digits", "skipped": "not installed", "bars": []}


def test_long_curves_are_thinned_with_both_ends_kept() -> None:
    short = thinned(list(range(1000)))
    assert len(short) == 200
    assert (short[0], short[-1]) == (0.0, 999.0)
    assert thinned([3.0]) == [3.0]


# ---------------------------------------------------------------- the page


def test_page_is_well_formed_and_complete(page_text: str) -> None:
    page = Page(page_text)
    assert page_text.lstrip().startswith("<!DOCTYPE html>")
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert "1 of 1 encoders that do derive from it are shown to; 0 of 1 innocent ones are accused." in page.words
    assert "What this does not show" in page.words
    assert "digits: skipped. not installed" in page.words
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 4 + 2 + 2 * 2
    assert all(attrs.get("alt") for attrs in images)


def test_page_loads_nothing_from_anywhere(page_text: str) -> None:
    page = Page(page_text)
    assert page.addresses()
    # A link to the examiner's page beside it loads nothing by itself.
    assert {address for address in page.addresses() if not address.startswith("data:image/")} == {"audit.html"}
    assert not re.search(r"@import|url\(|<script|<iframe|javascript:", page_text)
    assert ("meta", "default-src 'none'") in [(t, (a.get("content") or "").split(";")[0]) for t, a in page.tags]


def test_every_reference_inside_the_page_has_its_target(page_text: str) -> None:
    page = Page(page_text)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)


def test_charts_are_svg_that_parses_and_come_in_two_themes(page_text: str) -> None:
    charts = [a for a in Page(page_text).addresses() if a.startswith("data:image/svg+xml")]
    assert len(charts) == 2 * 4
    assert len(set(charts)) == len(charts)
    for chart in charts:
        root = ET.fromstring(base64.b64decode(chart.partition(",")[2]))  # our own bytes
        assert root.tag.endswith("svg")


def test_hostile_names_are_text_everywhere() -> None:
    data = report_data(
        keys=tuple(
            Examined(name, (suspect(HOSTILE, HOSTILE, False, "derived", 0.5),), {HOSTILE: scores(0.1)}, 0.2, 1)
            for name in (HOSTILE, "published")
        ),
        controls=(Member(HOSTILE, HOSTILE, None, Path()),),
        statistic_name=HOSTILE,
        accuracies=(Accuracy(HOSTILE, (Bar(HOSTILE, "clean", 0.5, None),)), Accuracy("other", skipped=HOSTILE)),
        curves={HOSTILE: {HOSTILE: [1.0, 0.5]}},
        settings={HOSTILE: {HOSTILE: HOSTILE}},
        commands=(HOSTILE,),
        limits=(HOSTILE,),
    )
    text = render_page(data)
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert(1)</script>" in page.words
    assert "\x1b" not in text
    assert "false claim" in page.words
    table = printed(data, width=400)
    assert "\x1b" not in table
    assert "[bold]" in table
    assert drawn.summary_png(data)


def test_report_without_accuracies_is_drawn_all_the_same() -> None:
    data = report_data(accuracies=())
    Page(render_page(data))
    assert drawn.summary_png(data)
    assert "Linear probe" not in printed(data)


@pytest.mark.usefixtures("undrawn")
def test_public_seed_is_said_to_prove_nothing(page_text: str) -> None:
    assert "public seed" not in Page(page_text).words
    assert "public seed 5" in Page(render_page(report_data(public_seed=5))).words


@pytest.mark.usefixtures("undrawn")
def test_missed_surrogates_are_named_missed() -> None:
    suspects = (suspect("F*", "marked", True, "not shown", 0.9), suspect("other", "x", False, "not shown", 0.9))
    assert "missed" in Page(render_page(report_data(examined(suspects=suspects)))).words


@pytest.mark.usefixtures("undrawn")
def test_shared_alpha_is_said_to_be_shared() -> None:
    data = report_data(examined(alpha=0.3, n_claims=2))
    assert "shared among 2" in Page(render_page(data)).words
    assert "shared among 2 suspects (Bonferroni): p ≤ 0.15" in printed(data, width=300)


# ---------------------------------------------------------------- pictures, tables, texts


def test_charts_are_the_same_bytes_each_time_and_leave_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    first = svg_uri(drawn.decision, report_data(), theme=LIGHT)
    assert first == svg_uri(drawn.decision, report_data(), theme=LIGHT)
    assert dict(matplotlib.rcParams) == before


def test_summary_is_1800_pixels_wide() -> None:
    with Image.open(io.BytesIO(drawn.summary_png(report_data()))) as image:
        assert image.width == 1800


def test_commands_keep_their_lines() -> None:
    lines = [line.rstrip() for line in printed(report_data()).splitlines()]
    at = lines.index("  sslguard verify 'a key' \\")
    assert lines[at + 1] == "      --data x"


# ---------------------------------------------------------------- files


@pytest.mark.usefixtures("undrawn")
def test_written_files_are_replaced_by_the_next_report(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    data = report_data()
    for more in ({}, {"files": {"a": "b"}}):
        begin(out, (PAGE, PICTURE))
        pages = {PICTURE: drawn.summary_png(data), PAGE: render_page(data).encode()}
        write_report(out, {**data.to_json(), **more}, pages)
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "result.json", "result.png"]
    written = json.loads((out / "result.json").read_text())
    assert (written["format"], written["files"]) == ("sslguard-report", {"a": "b"})


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
        with pytest.raises(OutputError), unchanged(file):
            begin(folder, (PAGE, PICTURE))


@contextmanager
def unchanged(file: Path) -> Iterator[None]:
    try:
        yield
    finally:
        assert file.read_bytes() == b""
