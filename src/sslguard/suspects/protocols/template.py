"""Any API that takes and returns JSON, described by a template of the body and a path to the answers.

In the template, placeholders stand for queries. The singular ones may also stand inside longer texts:

========================  ==================================================================
"{text}", "{texts}"       one text; the list of all texts
"{image}", "{images}"     one image as the base64 of a PNG; the list of all images
========================  ==================================================================

If an array's only entry holds {text} or {image}, the entry is repeated for each query. If the placeholder stands
elsewhere, each request asks one query.

The path consists of names and [*], as in `data[*].embedding`, or of indices, as in `[0].values`. It leads to one answer
for each query: an array of numbers, or a text that is the base64 of float32.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from sslguard.data.base import Batch
from sslguard.errors import UsageError
from sslguard.suspects.http import Call, Reply
from sslguard.suspects.pixels import pictures
from sslguard.suspects.protocols.base import MalformedReplyError, Protocol, json_call, member, numbers, read_json, texts

_ONE, _ALL = re.compile(r"\{(text|image)\}"), re.compile(r"\{(texts|images)\}")
_PATH = re.compile(r"\$?(?:\.?(?P<name>[A-Za-z_][A-Za-z0-9_-]*)|\[(?P<index>\*|\d{1,6})\])")


@dataclass
class Template(Protocol):
    """A template of the body and a path to the answers.

    Attributes:
        body: Body of the request, JSON with placeholders.
        path: Path to the answers in the reply.
    """

    name: ClassVar[str] = "json"
    body: str
    path: str

    def __post_init__(self) -> None:
        """Parse the template and the path.

        Raises:
            UsageError: The body is not JSON or holds no placeholder, or the path is not valid.
        """
        try:
            self._parsed: Any = json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"--body must be JSON: {error!s:.120}") from error
        self._steps = _steps(self.path)
        places = _strings(self._parsed)
        everything = [match[1] for text in places if (match := _ALL.fullmatch(text))]
        kinds = {word for text in places for word in _ONE.findall(text)} | {word[:-1] for word in everything}
        if len(kinds) != 1:
            raise UsageError('--body must hold "{text}" or "{texts}", or "{image}" or "{images}", and not both kinds')
        (self._kind,) = kinds
        if not everything and not _repeats(self._parsed):
            self.largest = 1

    def call(self, batch: Batch, /) -> Call:
        """Return the request with the placeholders filled in. See `Protocol.call`."""
        items = texts(batch, "json with {text}") if self._kind == "text" else pictures(batch)
        return json_call("", _filled(self._parsed, items))

    def answers(self, reply: Reply, n: int) -> object:
        """Return the answers at the path. See `Protocol.answers`."""
        found = _follow(read_json(reply.body), self._steps)
        one = n == 1 and (isinstance(found, str) or (isinstance(found, list) and not _nested(found)))
        rows = [found] if one else found
        if not isinstance(rows, list):
            raise MalformedReplyError(f"at {self.path} there is no array of answers")
        return [numbers(row) for row in rows]

    def identity(self) -> dict[str, Any]:
        """Return the protocol, the template and the path."""
        return {"protocol": self.name, "body": self._parsed, "path": self.path}


def _steps(path: str) -> list[str | int]:
    """Return the names and indices of a path, and "*" for [*]."""
    steps: list[str | int] = []
    position = 0
    while position < len(path):
        match = _PATH.match(path, position)
        if match is None:
            raise UsageError(f"--found-at must be a path such as data[*].embedding, not {path!r:.80}")
        index = match["index"]
        steps.append(match["name"] if index is None else index if index == "*" else int(index))
        position = match.end()
    return steps


def _follow(value: Any, steps: list[str | int]) -> Any:
    for i, step in enumerate(steps):
        if step == "*":
            if not isinstance(value, list):
                raise MalformedReplyError("the answer has no array where [*] stands in the path")
            return [_follow(entry, steps[i + 1 :]) for entry in value]
        if isinstance(step, int):
            if not isinstance(value, list) or step >= len(value):
                raise MalformedReplyError(f"the answer has no entry [{step}] where there should be one")
            value = value[step]
        else:
            value = member(value, step)
    return value


def _nested(found: list[Any]) -> bool:
    return bool(found) and isinstance(found[0], list | str)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in parts for text in _strings(part)]


def _is_repeated(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and any(_ONE.search(text) for text in _strings(value))


def _repeats(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return _is_repeated(value) or any(_repeats(part) for part in parts)


def _filled(value: Any, items: list[str]) -> Any:
    if isinstance(value, str):
        if _ALL.fullmatch(value):
            return items
        return _ONE.sub(lambda _: items[0], value)
    if isinstance(value, dict):
        return {name: _filled(part, items) for name, part in value.items()}
    if _is_repeated(value):
        return [_filled(value[0], [item]) for item in items]
    if isinstance(value, list):
        return [_filled(part, items) for part in value]
    return value
