"""Charts: both themes, the same bytes each time, nobody's settings changed, labels as text."""

from __future__ import annotations

import base64
import io
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sslguard.errors import UsageError
from sslguard.report import charts

HOSTILE = "<script>alert(1)</script>$\\frac$\x1b"


def lines(names: list[str], theme: charts.Theme) -> Figure:
    drawn = charts.figure(6, 3)
    charts.plot(drawn.subplots(), {name: ([1.0, 2.0], [0.0, 1.0]) for name in names}, theme, "lines")
    return drawn


def grid(theme: charts.Theme) -> Figure:
    values = np.array([[0.0, np.nan], [1.0, 0.5]])
    return charts.heat(values, [["a", ""], ["b", "c"]], (["x", "y"], ["u", "v"]), theme, remark="r", scale="s")


def svg(uri: str) -> str:
    kind, content = uri.split(",")
    assert kind == "data:image/svg+xml;base64"
    return base64.b64decode(content).decode()


def test_a_chart_comes_in_two_themes_that_differ() -> None:
    made = charts.chart(lines, ["a"], alt="A line.")
    assert made.alt == "A line."
    for theme, uri in ((charts.LIGHT, made.light), (charts.DARK, made.dark)):
        assert theme.palette[0].lower() in svg(uri).lower()
        assert ET.fromstring(svg(uri)).tag.endswith("svg")  # our own bytes
    assert made.light != made.dark


def test_the_same_data_gives_the_same_bytes_and_settings_stay() -> None:
    before = dict(matplotlib.rcParams)
    assert charts.chart(grid, alt="") == charts.chart(grid, alt="")
    assert dict(matplotlib.rcParams) == before


def test_labels_are_text() -> None:
    words = [element.text for element in ET.fromstring(svg(charts.chart(lines, [HOSTILE], alt="").light)).iter()]
    assert HOSTILE.replace("\x1b", "�") in words


def test_series_keep_their_colour_when_another_is_empty() -> None:
    def colours(first: list[float]) -> list[str]:
        axes = charts.figure(6, 3).subplots()
        charts.plot(axes, {"a": (first, first), "b": ([1.0], [1.0])}, charts.LIGHT, "points")
        return [str(line.get_color()) for line in axes.get_lines()]

    assert colours([]) == colours([1.0])[1:]


def test_a_ninth_series_does_not_look_like_the_first() -> None:
    axes = lines([str(n) for n in range(9)], charts.LIGHT).axes[0]
    first, last = axes.get_lines()[0], axes.get_lines()[8]
    assert first.get_color() == last.get_color()
    assert first.get_linestyle() != last.get_linestyle()


@pytest.mark.parametrize("ending", ["png", "svg", "SVG"])
def test_a_picture_is_written_by_its_ending(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    charts.write(path, lines, ["a"])
    assert path.read_bytes().startswith(b"\x89PNG" if ending == "png" else b"<?xml")


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.png or \.svg, not 'a\.pdf'"):
        charts.write(tmp_path / "a.pdf", lines, ["a"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_keep_their_pixels(channels: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (channels, 5, 7)) / 255
    with Image.open(io.BytesIO(base64.b64decode(charts.picture_uri(picture).partition(",")[2]))) as image:
        assert image.size == (7, 5)
        pixels = np.asarray(image).reshape(5, 7, channels)
    np.testing.assert_array_equal(pixels, np.moveaxis((picture * 255).round(), 0, 2))
