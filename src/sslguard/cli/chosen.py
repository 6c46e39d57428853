"""Options that are made of dataclasses of settings: names, types, defaults and descriptions are written once, there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, make_dataclass
from functools import reduce
from inspect import cleandoc
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

from cyclopts import Group, Parameter

from sslguard.cli.options import whole, within
from sslguard.errors import UsageError
from sslguard.files import located
from sslguard.settings import Range

C = TypeVar("C", bound="Chosen")


class Chosen:
    """What the user chose of some settings. Subclasses are filled in by `options_of`; what was not given is None.

    Attributes:
        places: scheme, "" where there is one → option → where it stands in the scheme's table of settings.
    """

    places: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {}

    def table(self, scheme: str = "") -> dict[str, Any]:
        """Return what was given, as a table of settings.

        Args:
            scheme: whose settings they are, where there are options of several schemes.

        Raises:
            UsageError: an option that was given is of another scheme.
        """
        table: dict[str, Any] = {}
        for name, value in vars(self).items():
            if value is None:
                continue
            if name not in self.places[scheme]:
                owner = next(other for other, names in self.places.items() if name in names)
                raise UsageError(f"--{name.replace('_', '-')} belongs to --scheme {owner}")
            value = Path(located(str(value))) if isinstance(value, Path) else value
            *way, last = self.places[scheme][name]
            reduce(lambda inner, key: inner.setdefault(key, {}), way, table)[last] = value
        return table


@dataclass(frozen=True)
class Source:
    """Settings whose plain fields become options, those of nested dataclasses too.

    Attributes:
        settings: a dataclass; its values are the defaults.
        group: heading on the help page.
        scheme: whose settings they are, where a command has options of several schemes.
        without: fields that are no options.
    """

    settings: Any
    group: Group
    scheme: str = ""
    without: tuple[str, ...] = ()


class _Option(NamedTuple):
    place: tuple[str, ...]
    kind: Any
    default: Any
    text: str
    rule: Range | None


def options_of(*sources: Source) -> Callable[[type[C]], type[C]]:
    """Return a decorator that gives a subclass of `Chosen` an option for every plain field of the sources.

    An option that several sources have is there once, with the first one's description, and the default of each
    scheme's first source.
    """

    def fill(chosen: type[C]) -> type[C]:
        found: dict[str, list[tuple[Source, _Option]]] = {}
        places: dict[str, dict[str, tuple[str, ...]]] = {}
        for source in sources:
            for option in _plain(source.settings, source.without):
                name = option.place[-1]
                found.setdefault(name, []).append((source, option))
                places.setdefault(source.scheme, {})[name] = option.place
        made = [(name, Annotated[group[0][1].kind | None, _shown(name, group)], None) for name, group in found.items()]
        # cyclopts takes a class of the module `types`, which made ones are of otherwise, for a builtin.
        own = {"places": places, "__module__": chosen.__module__}
        filled = make_dataclass(
            chosen.__name__, made, bases=(chosen,), namespace=own, kw_only=True, eq=False, repr=False
        )
        return cast("type[C]", Parameter(name="*")(filled))

    return fill


def _plain(settings: Any, without: tuple[str, ...], above: tuple[str, ...] = ()) -> Iterator[_Option]:
    hints, texts = get_type_hints(type(settings), include_extras=True), _descriptions(type(settings))
    for field in fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        if field.name in without:
            continue
        if is_dataclass(value):
            yield from _plain(value, without, (*above, field.name))
        (kind, *_) = [part for part in get_args(hint) if part is not NoneType] if NoneType in get_args(hint) else [hint]
        kind, rule = get_args(kind) if get_origin(kind) is Annotated else (kind, None)
        if kind in (bool, int, float, str, Path) or get_origin(kind) is Literal:
            yield _Option((*above, field.name), kind, value, texts.get(field.name, ""), rule)


def _descriptions(kind: type) -> dict[str, str]:
    """Return the text of each attribute in the docstrings, of Google's style, of a class and its bases."""
    texts: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        _, _, attributes = cleandoc(one.__doc__ or "").partition("Attributes:\n")
        parts = re.split(r"^    (\w+): ", attributes, flags=re.MULTILINE)[1:]
        texts |= {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}
    return texts


def _shown(name: str, group: list[tuple[Source, _Option]]) -> Parameter:
    """Return how an option is read, and what the help page says of it."""
    told: dict[str, str] = {}
    for source, option in group:
        if (default := option.default) is not None:
            told.setdefault(source.scheme, f"{default:g}" if isinstance(default, float) else str(default))
    several = len(set(told.values())) > 1
    shown = [f"{default} for {scheme}" if several else default for scheme, default in told.items()]
    source, option = group[0]
    return Parameter(
        help=option.text,
        show_default=", ".join(dict.fromkeys(shown)) or False,
        group=source.group,
        converter=whole if option.kind is int else None,
        validator=None if option.rule is None else within(option.rule),
        negative=f"--no-{name.replace('_', '-')}" if option.kind is bool else (),
    )
