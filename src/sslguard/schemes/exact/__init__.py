"""The scheme whose p-value is a theorem: a mark along secret directions, and evidence with a known law.

`Exact` marks, `ExactKey` tests. Notation, proof and what defeats it: docs/explanation/theory.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslguard.lazy import exports

if TYPE_CHECKING:
    from sslguard.schemes.exact.bank import Bank, Geometry, draw_directions
    from sslguard.schemes.exact.key import ExactKey
    from sslguard.schemes.exact.protocol import Protocol
    from sslguard.schemes.exact.scheme import Exact
    from sslguard.schemes.exact.settings import ExactSettings
else:
    __getattr__ = exports(
        __name__,
        {
            "bank": ("Bank", "Geometry", "draw_directions"),
            "key": ("ExactKey",),
            "protocol": ("Protocol",),
            "scheme": ("Exact",),
            "settings": ("ExactSettings",),
        },
    )

__all__ = ["Bank", "Exact", "ExactKey", "ExactSettings", "Geometry", "Protocol", "draw_directions"]
