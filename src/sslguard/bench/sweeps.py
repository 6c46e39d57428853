"""Expand entries of a configuration that stand for several, one for each combination of values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from typing import Any

from sslguard.errors import UsageError


def expanded(entries: object, at: str) -> object:
    """Return a table in which each entry with a `sweep` is replaced by one entry for each combination of its values.

    ::

        [attacks."pruned {amount}"]
        sweep = {amount = [0.1, 0.2]}
        steps = [{attack = "prune", amount = "{amount}"}]

    A text that consists of a name in braces becomes the value. Within a longer text, such as the name of the entry, a
    name in braces becomes the label of the value: its key if the values are a table, otherwise the value as text.

    Args:
        entries: Entries by name; anything but a table is returned as it is.
        at: Name of the table, for error messages.

    Raises:
        UsageError: A sweep is no table of values, no setting uses one of its names, or two entries get the same name.
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
        if empty := [key for key, values in sweep.items() if not values]:
            raise UsageError(f"{at}.{name}.sweep.{empty[0]} must give at least one value")
        rest = {key: value for key, value in entry.items() if key != "sweep"}
        for chosen in product(*map(_labelled, sweep.values())):
            values = dict(zip(sweep, chosen, strict=True))
            title = _filled(f" {name}", values).removeprefix(" ")
            if title in found:
                raise UsageError(f"{at}: two entries are called {title!r:.80}: name {{{'} and {'.join(sweep)}}} in it")
            found[title] = _filled(rest, values)
        if unused := [key for key in sweep if f"{{{key}}}" not in json.dumps(rest)]:
            raise UsageError(f"{at}.{name}.sweep.{unused[0]} is used by nothing: write {{{unused[0]}}} into a setting")
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
