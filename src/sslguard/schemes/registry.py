"""Every scheme by name: the one table that command line, configurations, key files and benchmark read.

A name stands for a class and the settings that it starts from: "sslguard-published" is `SSLGuard` with the settings of
`SSLGuard.published()`. Classes are imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sslguard.errors import UsageError
from sslguard.lazy import found_at
from sslguard.settings import Choices, chosen, read_named

if TYPE_CHECKING:
    from sslguard.schemes.base import Key, Scheme

SCHEMES: dict[str, str | type[Scheme] | Scheme] = {
    "sslguard": "sslguard.schemes.sslguard.scheme:SSLGuard",
    "sslguard-cured": "sslguard.schemes.sslguard.scheme:CuredSSLGuard",
    "sslguard-published": "sslguard.schemes.sslguard.scheme:SSLGuard.published",
    "exact": "sslguard.schemes.exact.scheme:Exact",
    "exact-gentle": "sslguard.schemes.exact.scheme:Exact.gentle",
    "order": "sslguard.schemes.order:SecretOrder",
    "dataset-inference": "sslguard.schemes.peers.dataset_inference:DatasetInference",
    "embmarker": "sslguard.schemes.peers.embmarker:EmbMarker",
    "espew": "sslguard.schemes.peers.embmarker:ESpeW",
    "warden": "sslguard.schemes.peers.embmarker:Warden",
    "wet": "sslguard.schemes.peers.wet:Wet",
    "fingerprint": "sslguard.schemes.peers.fingerprint:Fingerprint",
    "rotation": "sslguard.schemes.peers.rotation:Rotation",
}
"""Name → where the class, or the method that gives its settings, is found. The first name of a class is the class's
own, which stands in its keys and records."""

OTHER_KEYS: Mapping[str, str] = {"initial": "sslguard.schemes.order:InitialKey"}
"""Keys that no scheme makes: what `pretrain` keeps."""

CHOICES = Choices("scheme", SCHEMES)

PRESETS: Mapping[str, Mapping[str, str]] = {
    "exact": {"strong": "exact", "gentle": "exact-gentle"},
    "sslguard": {"cured": "sslguard-cured", "small": "sslguard", "published": "sslguard-published"},
    "order": {},
}
"""Schemes of this package → what the command line calls their settings → the name in `SCHEMES`. The first is the
default, of schemes and of settings."""


def build_scheme(name: str, settings: Mapping[str, Any]) -> Scheme:
    """Return the scheme called `name` with these settings in place of its own.

    Args:
        name: One of `SCHEMES`.
        settings: Plain values by field, as TOML or JSON has them.

    Raises:
        UsageError: There is no such scheme or setting, or the scheme refuses a value.
    """
    scheme: Scheme = read_named(CHOICES, name, settings)
    return scheme


def scheme_of(preset: str | None) -> str:
    """Return the scheme that has a preset of this name; the default one for None. Raise UsageError where none has."""
    if preset is None:
        return next(iter(PRESETS))
    owners = {name: scheme for scheme, presets in PRESETS.items() for name in presets}
    return str(chosen(owners, preset, "preset"))


def named_scheme(scheme: str, preset: str | None, settings: Mapping[str, Any]) -> Scheme:
    """Return the scheme of a name and a preset, with these settings in place of the preset's.

    Args:
        scheme: One of `PRESETS`, or of `SCHEMES`.
        preset: One of the scheme's presets; None takes the first.
        settings: Plain values by field, as TOML or JSON has them.

    Raises:
        UsageError: There is no such scheme, preset or setting, or the scheme refuses a value.
    """
    presets = PRESETS.get(scheme)
    if not presets:
        if preset is not None:
            raise UsageError(f"the scheme {scheme} has no presets: leave --preset out")
        return build_scheme(scheme, settings)
    return build_scheme(chosen(presets, preset or next(iter(presets)), "preset"), settings)


def key_class(scheme: object) -> type[Key] | None:
    """Return the class of the keys of a scheme of this name; None where there is none, or where no keys are kept."""
    if isinstance(scheme, str) and scheme in OTHER_KEYS:
        return found_at(OTHER_KEYS[scheme])
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        return None
    found = CHOICES.load(scheme, CHOICES.key)
    kept = found.key_home if found.name == scheme else ""
    return found_at(kept) if kept else None
