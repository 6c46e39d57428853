"""Names and numbers as texts."""

from __future__ import annotations

import pytest

from sslguard.report.text import bits, fixed, line, numeric, percent, printable, probability


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (1.0, "1"), (1 / 109, "0.0092"), (0.25, "0.25"), (3e-7, "3.0e-07")]
)
def test_probabilities_read_well(value: float | None, text: str) -> None:
    assert probability(value) == text


def test_bits_say_where_evidence_ends() -> None:
    assert (bits(-12.34, 256), bits(-256.0, 256), bits(-0.0, 256)) == ("12.3", "≥ 256", "0.0")


def test_numbers_that_are_missing_are_a_dash() -> None:
    assert (percent(None), fixed(None)) == ("–", "–")
    assert (percent(0.956), fixed(-0.2), fixed(0.5, 1)) == ("96%", "−0.200", "0.5")


def test_printable_is_one_line_of_bounded_length() -> None:
    assert printable("a\nb\x00c\u202ed") == "a�b�c�d"
    assert printable("x" * 500) == "x" * 119 + "…"


def test_a_line_keeps_words_apart_and_no_control_character() -> None:
    assert line(" a\n\tb\x1b[31m ") == "a b�[31m"
    assert line("x" * 500, 10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "2,000", "-3.5", "−0.1", "–", ""], True),
        (["98 %", "≥ 256", "1e-06", ".5"], True),
        (["96 ± 7 %", "100 %", "not scorable"], True),
        (["1", "2 of 3"], False),
        (["1", "two", "three"], False),
        (["3/4", "1/4"], False),
        (["–", ""], False),
        ([], False),
    ],
)
def test_a_column_of_numbers_is_known_as_such(cells: list[str], expected: bool) -> None:
    assert numeric(cells) is expected
