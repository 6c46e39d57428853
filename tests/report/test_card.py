"""Results show themselves in notebooks, and no name in them becomes markup."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest

from helpers.pages import audit
from sslguard.api import Marked, compare_weights
from sslguard.encoders.base import Encoder
from sslguard.report.card import card
from sslguard.stats.significance import Significance
from sslguard.verification.nulls import RankNull
from sslguard.verification.verdict import Verdict

HOSTILE = "<script>alert(1)</script>"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.add(tag)


def tags(html: str) -> set[str]:
    parser = Tags()
    parser.feed(html)
    return parser.found


def test_texts_are_escaped_and_empty_lines_left_out() -> None:
    shown = card(HOSTILE, [("name", f"a\n{HOSTILE}\x1b[2J"), ("nothing", ""), ("number", 0)])
    assert tags(shown) == {"div", "strong", "table", "tr", "th", "td"}
    assert "nothing" not in shown
    assert "\x1b" not in shown
    assert ">0<" in shown


def test_verdict() -> None:
    significance = Significance(0.9, -3.0, 1 / 8, "controls", 100, 7)
    null = RankNull(7, [0.1] * 7, "mean cosine")
    verdict = Verdict(HOSTILE, "not shown", significance, null, 0.01, 2, 0.5, np.zeros(0), {}, n_missing=3)
    shown = verdict._repr_html_()
    assert "script" not in tags(shown)
    for words in ("<strong>not shown</strong>", "3.0 bits (p = 0.125)", "shared by 2 claims", "3 unanswered"):
        assert words in shown


def test_audit() -> None:
    found = audit()
    shown = found._repr_html_()
    assert f"<strong>{found.decision}</strong>" in shown
    assert shown.count("<tr>") == len(found.checks)


def test_lineage(tiny: type[Encoder]) -> None:
    shown = compare_weights(tiny(1), tiny(1))._repr_html_()
    assert "<strong>shared weights</strong>" in shown


@pytest.mark.parametrize("folder", [None, "here"])
def test_marked(folder: str | None, key_of: object, tiny: object) -> None:
    shown = Marked(tiny(1), key_of(), folder=folder)._repr_html_()
    assert ("here/key" in shown) == (folder is not None)
