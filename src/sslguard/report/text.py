"""Text for readers: names that others chose, made safe to show, and numbers, each in the one way we write it."""

from __future__ import annotations

import re
from collections.abc import Iterable

NONE = "–"
"""What stands where there is no value."""

_NUMBER = re.compile(r"([≥≤<>] ?)?[-−+]?[\d,]*\.?\d+(e[-+]?\d+)?( ± [\d.]+)?( ?%)?")


def printable(text: object, limit: int = 120) -> str:
    """Return `text` in one line without control characters, cut after `limit` characters.

    HTML and terminal markup is left as it is: whoever writes into such a medium escapes it there.
    """
    clean = "".join(c if c.isprintable() else "�" for c in str(text))
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def line(text: object, limit: int = 120) -> str:
    """Return `text` as `printable` does, with line breaks and runs of white space as one space."""
    return printable(" ".join(str(text).split()), limit)


def probability(value: float | None) -> str:
    """Return a p-value with two significant digits, never 0; a dash for None."""
    if value is None:
        return NONE
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}"


def bits(log2_pvalue: float, most: int | None = None, digits: int = 1) -> str:
    """Return −log2 of a p-value with so many decimals; "≥ most" where it has reached `most`, what a test can show."""
    value = abs(log2_pvalue)  # −0.0 is no sign of anything
    return f"≥ {most}" if most is not None and value >= most else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """Return a share in whole per cent; a dash for None."""
    return NONE if value is None else f"{value:.0%}"


def fixed(value: float | None, digits: int = 3) -> str:
    """Return a number with so many decimals and a true minus sign; a dash for None."""
    return NONE if value is None else f"{value:.{digits}f}".replace("-", "−")


def numeric(cells: Iterable[str]) -> bool:
    """Return whether a column is one of numbers: at least half of its cells are, and the others hold no digit."""
    told = [cell for cell in cells if cell not in ("", NONE)]
    numbers = [bool(_NUMBER.fullmatch(cell)) for cell in told]
    words = [cell for cell, number in zip(told, numbers, strict=True) if not number]
    return len(told) > 0 and 2 * len(words) <= len(told) and not re.search(r"\d", " ".join(words))
