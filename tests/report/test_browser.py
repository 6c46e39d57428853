"""The four pages in a headless Chromium: nothing asked of a network, no error, no overflow, and scripts that work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import pages
from helpers.browser import Browser, browser, program

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(program() is None, reason="no Chromium or Chrome here: pages were not opened in a browser"),
]
RESULTS = Path(__file__).parents[2] / "docs/results/results.html"
NAMES = ("demo", "api", "audit", "results")
BEYOND = """[...document.querySelectorAll('body *')].filter(element =>
    element.getBoundingClientRect().right > innerWidth + 1 && !element.closest('.scroll, pre')
).map(element => element.outerHTML.slice(0, 100))"""
SHOWN = "[...document.querySelectorAll('main tbody tr')].filter(row => row.checkVisibility()).length"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {**pages.written(tmp_path_factory.mktemp("pages")), "results": RESULTS}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 400, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_its_window_and_asks_for_nothing(
    opened: Browser, files: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    opened.open(files[name], width=width, dark=dark)
    assert opened.run("document.documentElement.scrollWidth") <= width
    assert opened.run(BEYOND) == []
    asked = [address for address in opened.requests if not address.startswith("data:image/")]
    assert asked == [files[name].resolve().as_uri()]
    assert opened.problems == []
    ground = "rgb(15, 19, 24)" if dark else "rgb(255, 255, 255)"
    assert opened.run("getComputedStyle(document.body).backgroundColor") == ground


@pytest.mark.parametrize("name", NAMES)
def test_a_page_prints_light_in_full_and_repeats_its_heads(
    opened: Browser, files: dict[str, Path], name: str, tmp_path: Path
) -> None:
    opened.open(files[name], dark=True)
    opened.run("document.querySelectorAll('details').forEach(fold => { fold.open = false })")
    opened.ask("Emulation.setEmulatedMedia", media="print")
    assert opened.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.run(SHOWN) == opened.run("document.querySelectorAll('main tbody tr').length")
    heads = "[...document.querySelectorAll('thead')].map(head => getComputedStyle(head).display)"
    assert set(opened.run(heads)) == {"table-header-group"}
    opened.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_charts_follow_the_appearance(opened: Browser, files: dict[str, Path]) -> None:
    sources = []
    for dark in (False, True):
        opened.open(files["demo"], dark=dark)
        sources.append(opened.run("document.querySelector('img.chart').currentSrc"))
    assert sources[0] != sources[1]


def test_the_search_shows_the_rows_that_hold_every_word(opened: Browser, files: dict[str, Path]) -> None:
    opened.open(files["results"])
    every = opened.run(SHOWN)
    type_in = "(words => { const field = document.getElementById('search'); field.value = words; "
    type_in += "field.dispatchEvent(new Event('input')); })"
    opened.run("document.querySelectorAll('details').forEach(fold => { fold.open = false })")
    opened.run(f"{type_in}('rotated STOLEN')")
    texts = opened.run(
        "[...document.querySelectorAll('main tbody tr')].filter(row => row.checkVisibility())"
        ".map(row => row.textContent.toLowerCase())"
    )
    total = opened.run("document.querySelectorAll('main tbody tr').length")
    assert 0 < len(texts) < total
    assert all("rotated" in text and "stolen" in text for text in texts)
    assert opened.run("document.getElementById('found').textContent") == f"{len(texts)} of {total} rows"
    opened.run(f"{type_in}('no row holds this')")
    assert opened.run(SHOWN) == 0
    opened.run(f"{type_in}('')")
    assert opened.run(SHOWN) == every


def test_a_long_table_folds_and_unfolds(opened: Browser, files: dict[str, Path]) -> None:
    opened.open(files["results"])
    seen = "document.querySelector('details tbody tr').checkVisibility()"
    click = "document.querySelector('summary').click()"
    assert not opened.run(seen)
    opened.run(click)
    assert opened.run(seen)
    opened.run(click)
    assert not opened.run(seen)


def test_the_head_of_a_long_table_stays_in_sight(opened: Browser, files: dict[str, Path]) -> None:
    opened.open(files["results"])
    moved = opened.run(
        "(() => { const box = document.querySelector('.long'); box.closest('details').open = true;"
        " const head = box.querySelector('thead th');"
        "box.scrollTop = 300; return head.getBoundingClientRect().top - box.getBoundingClientRect().top; })()"
    )
    assert abs(moved) <= 1


def test_problems_are_noticed(opened: Browser, tmp_path: Path) -> None:
    """The checks above can fail: a page that loads, logs and throws is told from one that does not."""
    page = tmp_path / "bad.html"
    page.write_text("<img src='missing.png'><script>console.error('no'); setTimeout(() => nothing())</script>")
    opened.ask("Page.navigate", url=page.as_uri())
    opened.requests.clear()
    opened.run("new Promise(done => setTimeout(done, 200))")
    opened.ask("Page.reload")
    opened.run("new Promise(done => setTimeout(done, 200))")
    assert any(address.endswith("missing.png") for address in opened.requests)
    assert len(opened.problems) >= 2
