"""Attacks by name, made from the plain values of a TOML or JSON file and told in them again.

    build("fine-tune", {"epochs": 10, "recipe": {"layers": "last"}})

Settings are the fields of the attack's dataclass. What is left out is the attack's own default, in a table of a
nested dataclass too. A scheme is a table with its name under `scheme`, an attack within an attack one with its name
under `attack`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping as Table
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sslguard.attacks.adaptive import CSE, FilterQueries, ProjectOnto, RemoveTriggers
from sslguard.attacks.base import Attack, Wrapping
from sslguard.attacks.inputs import EditImages, EditTexts, Smoothed
from sslguard.attacks.mapping import (
    Classify,
    LeadingComponents,
    LinearMap,
    SignBits,
    SubtractFeatures,
    SubtractStatistics,
)
from sslguard.attacks.outputs import AverageWith, EditAnswers
from sslguard.attacks.removal import FineTune, Overwrite, Prune, PruneFilters, Quantise, SelfSupervised, WeightNoise
from sslguard.attacks.stealing import RDA, ContSteal, Distil, StolenEncoder
from sslguard.attacks.wrapping import InputNoise, OutputNoise
from sslguard.errors import UsageError
from sslguard.schemes.base import Scheme
from sslguard.schemes.exact import Exact
from sslguard.schemes.sslguard import SSLGuard

ATTACKS: Table[str, type[Attack]] = MappingProxyType(
    {
        "distil": Distil,
        "cont-steal": ContSteal,
        "stolen-encoder": StolenEncoder,
        "rda": RDA,
        "fine-tune": FineTune,
        "self-supervised": SelfSupervised,
        "overwrite": Overwrite,
        "prune": Prune,
        "prune-filters": PruneFilters,
        "quantise": Quantise,
        "weight-noise": WeightNoise,
        "input-noise": InputNoise,
        "edit-images": EditImages,
        "edit-texts": EditTexts,
        "smoothed": Smoothed,
        "output-noise": OutputNoise,
        "edit-answers": EditAnswers,
        "average-with": AverageWith,
        "linear-map": LinearMap,
        "leading-components": LeadingComponents,
        "sign-bits": SignBits,
        "classify": Classify,
        "subtract-features": SubtractFeatures,
        "subtract-statistics": SubtractStatistics,
        "project-onto": ProjectOnto,
        "cse": CSE,
        "remove-triggers": RemoveTriggers,
        "filter-queries": FilterQueries,
    }
)
SCHEMES: Table[str, Scheme] = MappingProxyType(
    {"sslguard": SSLGuard(), "sslguard-cured": SSLGuard.cured(), "exact": Exact()}
)
"""What a table of a scheme starts from, by name; the first of its type tells it again."""

# Types whose tables name what they are: under which key, and among what.
_NAMED: dict[type, tuple[str, Table[str, Any]]] = {Scheme: ("scheme", SCHEMES), Wrapping: ("attack", ATTACKS)}


def build(name: str, settings: Table[str, Any]) -> Attack:
    """The attack called `name` with these settings.

    Raises:
        UsageError: no such attack or field, a value of another type, or settings that the attack refuses.
    """
    attack: Attack = _filled(_known(ATTACKS, name, "attack"), settings, name)
    return attack


def describe(attack: Attack) -> dict[str, Any]:
    """Its name under `attack` and all of its settings, JSON values: `build` makes an equal one of them.

    Raises:
        UsageError: the attack is not in the registry.
    """
    plain: dict[str, Any] = _plain(attack)
    return plain


def _known(known: Table[str, Any], name: object, at: str) -> Any:
    if not isinstance(name, str) or name not in known:
        raise UsageError(f"{at} must be one of {', '.join(known)}, not {name!r:.80}")
    return known[name]


def _filled(start: Any, settings: object, at: str) -> Any:
    """`start`, a dataclass or an instance of one, with `settings` in place of its own values."""
    if not isinstance(settings, Table):
        raise UsageError(f"{at} must be a table of settings, not {settings!r:.80}")
    kind = start if isinstance(start, type) else type(start)
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(set(settings) - set(known)):
        raise UsageError(f"{at} has no setting {unknown[0]!r:.80}; known: {', '.join(known) or 'none'}")
    hints = get_type_hints(kind)
    values = {
        name: _value(hints[name], value, f"{at}.{name}", _default(start, known[name]))
        for name, value in settings.items()
    }
    if not isinstance(start, type):
        return replace(start, **values)
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in values]
    if needed:
        raise UsageError(f"{at} needs a value for {', '.join(needed)}")
    return kind(**values)


def _default(start: Any, field: Field[Any]) -> Any:
    """What the field holds where nothing is set; None where it must be set."""
    if not isinstance(start, type):
        return getattr(start, field.name)
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def _value(kind: Any, value: Any, at: str, default: Any) -> Any:
    """`value` as what a field of type `kind` holds."""
    if get_origin(kind) in (Union, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        (kind,) = (option for option in get_args(kind) if option is not NoneType)
    if get_origin(kind) is Literal:
        return _choice(get_args(kind), value, at)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{at} must be a list, not {value!r:.80}")
        return tuple(_value(get_args(kind)[0], item, f"{at}[{k}]", None) for k, item in enumerate(value))
    if kind in _NAMED:
        key, known = _NAMED[kind]
        if not isinstance(value, Table) or key not in value:
            raise UsageError(f"{at} must be a table with a name under {key}, not {value!r:.80}")
        start = _known(known, value[key], f"{at}.{key}")
        built = _filled(start, {name: v for name, v in value.items() if name != key}, at)
        if not isinstance(built, kind):
            raise UsageError(f"{at} must be a {kind.__name__.lower()}, and {value[key]} is none")
        return built
    if is_dataclass(kind):
        return _filled(kind if default is None else default, value, at)
    return _number(kind, value, at)


def _choice(allowed: tuple[Any, ...], value: Any, at: str) -> Any:
    if value not in allowed:
        raise UsageError(f"{at} must be one of {', '.join(map(str, allowed))}, not {value!r:.80}")
    return value


def _number(kind: Any, value: Any, at: str) -> Any:
    """A bool, int, float or str. Whole numbers pass as floats; nothing else passes as what it is not."""
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        wanted = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}[kind]
        raise UsageError(f"{at} must be {wanted}, not {value!r:.80}")
    return value


def _plain(value: Any) -> Any:
    """The inverse of `_value`."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if not is_dataclass(value):
        return value
    told = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Scheme):
        return {"scheme": _name({name: type(scheme) for name, scheme in SCHEMES.items()}, value), **told}
    if isinstance(value, Attack):
        return {"attack": _name(ATTACKS, value), **told}
    return told


def _name(known: Table[str, type], value: object) -> str:
    for name, kind in known.items():
        if type(value) is kind:
            return name
    raise UsageError(f"{type(value).__name__} has no name in the registry; known: {', '.join(known)}")
