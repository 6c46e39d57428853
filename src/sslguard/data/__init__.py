"""Streams of batches from files, packages and torchvision, each opened by a text.

Such as `fashion-mnist:train[0:20000]`: see `sslguard.data.specs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslguard.lazy import exports

if TYPE_CHECKING:
    from sslguard.data.base import Batch, Data, Extent, Slice, overlap
    from sslguard.data.roles import ROLES, Roles
    from sslguard.data.specs import open_data
else:
    __getattr__ = exports(
        __name__,
        {
            "base": ("Batch", "Data", "Extent", "Slice", "overlap"),
            "roles": ("ROLES", "Roles"),
            "specs": ("open_data",),
        },
    )

__all__ = ["ROLES", "Batch", "Data", "Extent", "Roles", "Slice", "open_data", "overlap"]
