"""Entries of a configuration that stand for several, one for every combination of some values."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from sslguard.errors import UsageError


def expanded(entries: object, at: str) -> object:
    """Return a table of entries in which each that holds a `sweep` became one for every combination of its values.

    ::

        [attacks."pruned {amount}"]
        sweep = {amount = [0.1, 0.2]}
        steps = [{attack = "prune", amount = "{amount}"}]

    A text that is nothing but a name in braces becomes the value. Elsewhere in a text, the entry's name included, it
    becomes the value's label: the value as a text, or its key where the values are a table.

    Raises:
        UsageError: a sweep is no table of values, or two of its entries have one name.
    """
    if not isinstance(entries, Mapping):
        return entries
    found: dict[str, Any] = {}
    for name, entry in entries.items():
        sweep = entry.get("sweep") if isinstance(entry, Mapping) else None
        if sweep is None:
            found[name] = entry
            continue
        if not isinstance(sweep, Mapping) or not all(isinstance(values, list | Mapping) for values in sweep.values()):
            raise UsageError(f"{at}.{name}.sweep must give a list or a table of values by name, not {sweep!r:.80}")
        rest = {key: value for key, value in entry.items() if key != "sweep"}
        for chosen in product(*map(_labelled, sweep.values())):
            values = dict(zip(sweep, chosen, strict=True))
            title = _filled(f" {name}", values).removeprefix(" ")
            if title in found:
                raise UsageError(f"{at}: two entries are called {title!r:.80}: name {{{'} and {'.join(sweep)}}} in it")
            found[title] = _filled(rest, values)
    return found


def _labelled(values: Any) -> list[tuple[str, Any]]:
    return list(values.items()) if isinstance(values, Mapping) else [(str(value), value) for value in values]


def _filled(part: Any, values: Mapping[str, tuple[str, Any]]) -> Any:
    if isinstance(part, Mapping):
        return {key: _filled(value, values) for key, value in part.items()}
    if isinstance(part, list):
        return [_filled(value, values) for value in part]
    if not isinstance(part, str):
        return part
    for name, (label, value) in values.items():
        if part == f"{{{name}}}":
            return value
        part = part.replace(f"{{{name}}}", label)
    return part
