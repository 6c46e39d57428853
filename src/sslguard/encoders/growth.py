"""A bound on how much longer a tokenizer may make a text, known before a text is given to it.

A tokenizer.json of 200 bytes can replace each letter by two, forty times over. The library that runs it ends the whole
program when memory is spent, so that no error can be caught.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from sslguard.errors import UsageError

MOST = 1024
"""How many times longer a text may become. Published tokenizers stay below 100."""
_TABLE = "precompiled_charsmap"
_LISTS = ("normalizers", "pretokenizers", "decoders")


def check_growth(tokenizer: Any) -> None:
    """Refuse a tokenizer that could make a text too long.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.

    Raises:
        UsageError: It could make a text more than `MOST` times longer.
    """
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        step = getattr(tokenizer, part)
        # The library's own description: a file may spell the same in many ways.
        times = 1.0 if step is None else _growth(json.loads(step.__getstate__()))
        if times > MOST:
            raise UsageError(f"its {part} can make a text {times:.3g} times longer, and at most {MOST} are allowed")


def check_tables(content: str) -> None:
    """Refuse a tokenizer.json whose compiled table says that it is longer than it is.

    The library takes memory for what the table says, up to 4 GiB, and ends the program where there is none.

    Args:
        content: Content of the file. What is not JSON is left to the library.

    Raises:
        UsageError: A table is damaged.
    """
    # Any name may be spelt by escapes. Most files have neither tables nor escapes, and are not read twice.
    if _TABLE not in content and "\\u" not in content:
        return
    try:
        json.loads(content, object_hook=_checked_table)
    except UsageError:
        raise
    except (ValueError, RecursionError):
        return


def _checked_table(fields: dict[str, Any]) -> dict[str, Any]:
    coded = fields.get(_TABLE)
    if isinstance(coded, str):
        try:
            table = base64.b64decode(coded)
        except binascii.Error:
            table = b""
        if int.from_bytes(table[:4], "little") + 4 > len(table):
            raise UsageError("its compiled table of characters is damaged")
    return fields


def _growth(step: dict[str, Any]) -> float:
    """Return how many times longer a step can make a text; one letter, or none, is what it replaces at least."""
    kind, times = step.get("type"), 1.0
    for name in _LISTS:
        for inner in step.get(name) or ():
            times = min(times * _growth(inner), 1e300)
    if kind == "Replace":
        pattern = step["pattern"]
        found = len(pattern["String"]) if "String" in pattern else 0
        times *= max(1.0, len(step["content"]) / found) if found else 1.0 + len(step["content"])
    elif kind == "Prepend":
        times *= 1.0 + len(step["prepend"])
    elif kind == "Precompiled":
        times *= _longest(step[_TABLE])
    return times


def _longest(coded: str) -> int:
    """Return the length of the longest text that a compiled table of SentencePiece puts in place of a letter."""
    table = base64.b64decode(coded)
    # Four bytes hold the length of the table's index; texts follow it, each with a zero behind it.
    texts = table[4 + int.from_bytes(table[:4], "little") :].decode("utf-8", "replace")
    return max([1, *map(len, texts.split("\0"))])
