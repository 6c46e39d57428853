"""Read frozen dataclasses from plain tables, such as those of a TOML or JSON file, and write them as such tables.

A table holds a dataclass's fields by name. Fields that are left out keep their defaults, inside a nested table too::

    read(Distillation, {"steps": 200, "augmentation": {"flip": 0.5}}, "recipe")

Field types may be bool, int, float, str, Literal, tuples of one type, mappings from texts, other dataclasses, and any
of these or None. Numbers may have a `Range`, as in `steps: Count = 200` or `share: Annotated[float, Range(above=0)]`.
Whole numbers pass as floats; no other value passes as a type that it is not. A field that is made by `rest()` takes
all keys that are no other field's. Every error names the path of the field, the rule and the value.

A dataclass that is `Checked` refuses values outside its ranges and choices when it is made in Python as well.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from numbers import Real
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sslguard.errors import UsageError
from sslguard.lazy import found_at

T = TypeVar("T")
_REST = "rest"
_SCALARS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}


@dataclass(frozen=True)
class Range:
    """Numbers that a setting may be, as part of its type. NaN and infinities are in no range.

    Attributes:
        least: Smallest number.
        above: Number that it must exceed.
        below: Number that it must stay below.
        most: Largest number.
    """

    least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    most: float = math.inf

    def __contains__(self, value: Any) -> bool:
        """Return whether a value is a number in this range."""
        if not isinstance(value, Real):
            return False
        number: Any = value
        return bool(self.least <= number <= self.most and self.above < number < self.below)

    def check(self, value: object, at: str) -> None:
        """Raise UsageError for anything that is no number in this range.

        Args:
            value: What was given.
            at: what the error calls it.
        """
        if value not in self:
            shown = value if isinstance(value, Real) else f"{value!r:.80}"
            raise UsageError(f"{at} must be {self.rule(value)}, not {shown}")

    def rule(self, value: object) -> str:
        """Return what a value that is not in the range must be, such as "above 0" or "a finite number above 0"."""
        return str(self) if isinstance(value, Real) and math.isfinite(value) else f"a finite number {self}"

    def __str__(self) -> str:
        """Return the rule, such as "above 0 and at most 1"."""
        bounds = {"at least": self.least, "above": self.above, "below": self.below, "at most": self.most}
        return " and ".join(f"{word} {bound:,}" for word, bound in bounds.items() if math.isfinite(bound))


Count = Annotated[int, Range(least=1)]
Seed = Annotated[int, Range(least=0)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(above=0, below=1)]


class Checked:
    """A dataclass that refuses values outside the ranges and choices that its fields' types name.

    A subclass with further rules calls `super().__post_init__()` before it checks them.
    """

    def __post_init__(self) -> None:
        """Raise UsageError for the first field that is out of range, or none of its choices."""
        for name, kind in _types(type(self)).items():
            _check(kind, getattr(self, name), name)


@dataclass(frozen=True)
class Choices:
    """Classes that a table names.

    Attributes:
        key: key of the table that holds the name, such as "scheme".
        entries: name → a dataclass, or an instance of one whose values are the defaults; or where one of these is
            found, "module:Class" or "module:Class.method" for what the method returns, imported when it is needed.
    """

    key: str
    entries: Mapping[str, Any]

    def load(self, name: object, at: str) -> Any:
        """Return the class or the instance called `name`.

        Args:
            name: one of `entries`.
            at: what errors call the value.

        Raises:
            UsageError: there is none.
        """
        entry = chosen(self.entries, name, at)
        if not isinstance(entry, str):
            return entry
        found = found_at(entry)
        return found if isinstance(found, type) else found()

    def name_of(self, value: object) -> str:
        """Return the first name whose class is that of `value`.

        Raises:
            UsageError: no entry has this class.
        """
        home = f"{type(value).__module__}:{type(value).__qualname__}"
        for name, entry in self.entries.items():
            if f"{entry}.".startswith(f"{home}.") if isinstance(entry, str) else type(value) is _class_of(entry):
                return name
        raise UsageError(f"{type(value).__name__} has no name in the registry; known: {', '.join(self.entries)}")


Named = Mapping[type, Choices]
"""Types of fields that are read from a table with a name in it."""

NONE_NAMED: Named = MappingProxyType({})


def rest() -> Any:
    """Return a dataclass field that takes all keys of a table that no other field has, as JSON values."""
    return field(default_factory=dict, metadata={_REST: True})


def read(kind: type[T], table: object, at: str = "", *, start: T | None = None, named: Named = NONE_NAMED) -> T:
    """Return an instance of the dataclass `kind` with the values of `table`.

    Args:
        kind: a dataclass.
        table: values by field.
        at: what errors call the table, such as "attacks.mse"; "" for a whole file.
        start: instance whose values are kept where the table has none; by default the fields' own defaults.
        named: choices by the type of the fields that make them.

    Raises:
        UsageError: a key is unknown, a value is missing or of another type, or `kind` refuses the values.
    """
    title = at or "the configuration"
    if not isinstance(table, Mapping):
        raise UsageError(f"{title} must be a table of settings, not {table!r:.80}")
    known: dict[str, Field[Any]] = {f.name: f for f in fields(kind) if f.init}  # type: ignore[arg-type]
    catch_all = next((name for name, f in known.items() if f.metadata.get(_REST)), None)
    hints, values, others = _types(kind), dict(table), {}
    if catch_all is not None:
        others = {name: values.pop(name) for name in table if name not in known or name == catch_all}
        known.pop(catch_all)
    elif unknown := [name for name in table if name not in known]:
        inner = {n: {f.name for f in fields(hints[n])} for n in known if is_dataclass(hints[n])}
        listed = ", ".join(known) or "none"
        meant = "".join(f". It is a setting of {n!r}" for n, names in inner.items() if unknown[0] in names)
        raise UsageError(
            f"{title} has no setting {unknown[0]!r:.80}; known: {listed}{meant or _meant(unknown[0], known)}"
        )
    given = {
        name: _value(hints[name], value, f"{at}.{name}" if at else name, _default(start, known[name]), named)
        for name, value in values.items()
    }
    if catch_all is not None:
        given[catch_all] = _checked_json(others, title)
    if start is not None:
        return replace(start, **given)  # type: ignore[type-var]
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in given]:
        raise UsageError(f"{title} needs a value for {', '.join(missing)}")
    return kind(**given)


def read_named(choices: Choices, name: object, table: object, at: str = "", *, named: Named = NONE_NAMED) -> Any:
    """Return what `choices` calls `name`, with the values of `table`.

    Args:
        choices: classes by name.
        name: which one.
        table: values by field.
        named: choices by the type of the fields that make them.
        at: what errors call the table; by default the name itself.

    Raises:
        UsageError: there is no such name, or as for `read`.
    """
    entry = choices.load(name, f"{at}.{choices.key}" if at else choices.key)
    return read(_class_of(entry), table, at or str(name), start=None if isinstance(entry, type) else entry, named=named)


def chosen(entries: Mapping[str, T], name: object, at: str) -> T:
    """Return the entry called `name`.

    Raises:
        UsageError: there is none; the message lists the names and suggests the closest.
    """
    if not isinstance(name, str) or name not in entries:
        raise UsageError(f"{at} must be one of {', '.join(entries)}, not {name!r:.80}{_meant(name, entries)}")
    return entries[name]


def to_table(value: Any, *, named: Named = NONE_NAMED) -> Any:
    """Return a dataclass as JSON values that `read` makes an equal one of.

    Raises:
        UsageError: a part that must be named is not among the choices.
    """
    if isinstance(value, tuple | list):
        return [to_table(item, named=named) for item in value]
    if isinstance(value, Mapping):
        return {key: to_table(item, named=named) for key, item in value.items()}
    if not is_dataclass(value):
        return value
    table = {f.name: to_table(getattr(value, f.name), named=named) for f in fields(value)}
    for kind, choices in named.items():
        if isinstance(value, kind):
            return {choices.key: choices.name_of(value), **table}
    return table


def load_toml(path: Path) -> dict[str, Any]:
    """Return the table in a TOML file.

    Raises:
        UsageError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error!s:.200}") from error


def _value(kind: Any, value: Any, at: str, default: Any, named: Named) -> Any:
    """Return `value` as a field of type `kind` holds it; a nested table starts from `default` where there is one."""
    if get_origin(kind) in (Union, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        (kind,) = (option for option in get_args(kind) if option is not NoneType)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        number = _value(parts[0], value, at, default, named)
        _check(kind, number, at)
        return number
    if origin is Literal:
        return chosen({part: part for part in parts}, value, at)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{at} must be a list, not {value!r:.80}")
        return tuple(_value(parts[0], item, f"{at}[{k}]", None, named) for k, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise UsageError(f"{at} must be a table, not {value!r:.80}")
        return {key: _value(parts[1], item, f"{at}.{key}", None, named) for key, item in value.items()}
    if kind in named:
        return _named_value(kind, value, at, named)
    if isinstance(kind, type) and is_dataclass(kind):
        return read(kind, value, at, start=default, named=named)
    return _scalar(kind, value, at)


@cache
def _types(kind: type) -> dict[str, Any]:
    """Return the type of each field of a dataclass, with its range."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _check(kind: Any, value: Any, at: str) -> None:
    """Raise UsageError for a value that is out of the range, or none of the choices, of a field of type `kind`."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is not None:
            _check(next(part for part in parts if part is not NoneType), value, at)
    elif origin is Annotated:
        for rule in parts[1:]:
            rule.check(value, at)
    elif origin is Literal:
        chosen({part: part for part in parts}, value, at)
    elif origin is tuple:
        for number, item in enumerate(value):
            _check(parts[0], item, f"{at}[{number}]")


def _named_value(kind: type, value: Any, at: str, named: Named) -> Any:
    choices = named[kind]
    if not isinstance(value, Mapping) or choices.key not in value:
        raise UsageError(f"{at} must be a table with a name under {choices.key}, not {value!r:.80}")
    name, table = value[choices.key], {key: item for key, item in value.items() if key != choices.key}
    built = read_named(choices, name, table, at, named=named)
    if not isinstance(built, kind):
        raise UsageError(f"{at} must be a {kind.__name__.lower()}, and {name} is none")
    return built


def _scalar(kind: Any, value: Any, at: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise UsageError(f"{at} must be {_SCALARS[kind]}, not {value!r:.80}")
    return value


def _default(start: Any, of: Field[Any]) -> Any:
    """Return what the field holds where nothing is set; None where it must be set."""
    if start is not None:
        return getattr(start, of.name)
    if of.default_factory is not MISSING:
        return of.default_factory()
    return None if of.default is MISSING else of.default


def _checked_json(table: dict[str, Any], title: str) -> dict[str, Any]:
    try:
        json.dumps(table, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{title} holds a setting that is no finite number, text, list or table") from error
    return table


def _class_of(entry: Any) -> type:
    return entry if isinstance(entry, type) else type(entry)


def _meant(name: object, known: Iterable[str]) -> str:
    """Return a suggestion for the end of a message; "" where no known name is close."""
    close = get_close_matches(str(name), [str(one) for one in known], 1)
    return f". Did you mean {close[0]!r}?" if close else ""
