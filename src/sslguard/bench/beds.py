"""Test beds: which data set each role (owner, thief, verifier, probe) uses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from sslguard.data.base import Data
from sslguard.data.roles import ROLES
from sslguard.data.specs import open_data
from sslguard.errors import UsageError

NEEDED = ("mark", "thief", "tune", "verify", "probe_train", "probe_test")
"""Roles that every bed must have. Schemes and attack steps may name further roles."""

PRESETS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        # An exact p-value requires only that its queries took no part in marking.
        "images": {**ROLES.specs(), "queries": "cluttered-fashion-mnist:train[0:8000]"},
        "texts": {
            **{role: f"vader:{role}" for role in ("mark", "thief", "verify", "probe_train", "probe_test")},
            "tune": "vader:thief[0:3000]",
        },
    }
)
"""Data spec of each role, by bed: "images" is Fashion-MNIST, "texts" is English sentences."""


def check_bed(name: str, found: Mapping[str, str]) -> dict[str, str]:
    """Return the data spec of each role of a bed. Given roles replace those of the preset of the same name, if any.

    Args:
        name: Name of the bed.
        found: Data spec by role, from the configuration.

    Raises:
        UsageError: A role that every bed needs is missing.
    """
    roles = {**PRESETS.get(name, {}), **found}
    if missing := [role for role in NEEDED if role not in roles]:
        raise UsageError(f"beds.{name} needs the role {missing[0]}: give it, or name the bed {' or '.join(PRESETS)}")
    return roles


@lru_cache(maxsize=16)
def opened(spec: str) -> Data:
    """Return the data set that a spec names. Each process opens it once."""
    return open_data(spec)
