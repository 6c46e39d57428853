"""Test beds: who sees which items, by role."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from sslguard.data.base import Data
from sslguard.data.roles import ROLES
from sslguard.data.specs import open_data
from sslguard.errors import UsageError

NEEDED = ("mark", "thief", "tune", "verify", "probe_train", "probe_test")
"""Roles that every bed has; schemes and steps may name others."""

PRESETS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        # An exact p-value asks no more of its queries than that they took no part in marking.
        "images": {**ROLES.specs(), "queries": "cluttered-fashion-mnist:train[0:8000]"},
        "texts": {
            **{role: f"vader:{role}" for role in ("mark", "thief", "verify", "probe_train", "probe_test")},
            "tune": "vader:thief[0:3000]",
        },
    }
)
"""Role → spec by bed: the test bed of Fashion-MNIST, and English texts."""


def check_bed(name: str, found: Mapping[str, str]) -> dict[str, str]:
    """Return role → spec of a bed: what is given, over the preset of that name where there is one.

    Raises:
        UsageError: a role that every bed needs is missing.
    """
    roles = {**PRESETS.get(name, {}), **found}
    if missing := [role for role in NEEDED if role not in roles]:
        raise UsageError(f"beds.{name} needs the role {missing[0]}; only {', '.join(PRESETS)} have roles of their own")
    return roles


@lru_cache(maxsize=16)
def opened(spec: str) -> Data:
    """The data set of a role's spec, opened once a process."""
    return open_data(spec)
