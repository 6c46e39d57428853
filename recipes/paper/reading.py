"""TOML tables → frozen dataclasses: every key known, every value of its field's type, or one sentence that says which
is not."""

from __future__ import annotations

import math
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sslguard.errors import UsageError

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SCALARS: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a text"),
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a finite number"),
}


def read_table(path: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The table in a TOML file, with changes such as "steal.recipe.steps=100": TOML values, or texts without quotes.

    Raises:
        UsageError: the file cannot be read, is not TOML, or a change is not KEY=VALUE.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the recipe {path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the recipe {path} is not TOML: {error}") from error
    for change in changes:
        _change(table, change)
    return table


def _change(table: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not all(_NAME.fullmatch(part) for part in key.split(".")):
        raise UsageError(f"--set takes KEY=VALUE, such as steal.recipe.steps=100, not {change!r:.200}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *way, last = key.split(".")
    for part in way:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {key}: {part} is a value of the recipe, not a table")
    table[last] = value


def read(
    cls: type[T], table: Mapping[str, Any], where: str, *, base: T | None = None, without: Sequence[str] = ()
) -> T:
    """A dataclass from a table of its fields; "none" stands for None, which TOML has not, where a field may be None.

    Args:
        where: what the table is called in messages; empty for the file itself.
        base: fields that are left out are taken from it; without it they must be given.
        without: fields that are set otherwise.

    Raises:
        UsageError: a key is unknown or missing, or a value is of another type.
    """
    assert is_dataclass(cls)
    title, hints = where or "the recipe", get_type_hints(cls)
    known = [f.name for f in fields(cls) if f.name not in without]
    for key in table:
        if key not in known:
            close = get_close_matches(key, known, 1)
            meant = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise UsageError(f"{title} has no key {key!r:.80}; {meant}")
    given = {key: _value(hints[key], value, f"{where}.{key}" if where else key) for key, value in table.items()}
    if base is not None:
        return replace(base, **given)  # type: ignore[type-var]
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in given]:
        raise UsageError(f"{title} lacks the key {missing[0]!r}")
    return cls(**given)


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as `hint` describes it; UsageError where it is something else."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return None if value == "none" else _value(next(p for p in parts if p is not type(None)), value, where)
    if kind is Literal:
        if value not in parts:
            raise UsageError(f"{where} must be one of {', '.join(map(str, parts))}, not {value!r:.80}")
        return value
    if kind is tuple:
        if not isinstance(value, list):
            raise UsageError(f"{where} must be a list, not {value!r:.80}")
        return tuple(_value(parts[0], item, f"{where}[{place}]") for place, item in enumerate(value))
    if hint in _SCALARS:
        return _scalar(hint, value, where)
    if not isinstance(value, dict):
        raise UsageError(f"{where} must be a table, not {value!r:.80}")
    if is_dataclass(hint):
        return read(hint, value, where)  # type: ignore[arg-type]
    for key in value:
        if not _NAME.fullmatch(key):
            raise UsageError(f"{where}: {key!r:.80} must be made of letters, digits, _ and -: it names files")
    return {key: item if parts[1] is Any else _value(parts[1], item, f"{where}.{key}") for key, item in value.items()}


def _scalar(hint: type, value: Any, where: str) -> Any:
    accepted, what = _SCALARS[hint]
    wrong = not isinstance(value, accepted) or isinstance(value, bool) != (hint is bool)
    if wrong or (hint is float and not math.isfinite(value)):
        raise UsageError(f"{where} must be {what}, not {value!r:.80}")
    return float(value) if hint is float else value
