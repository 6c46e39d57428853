"""Streams of batches from files, packages and torchvision, each opened by a text.

Such as `fashion-mnist:train[0:20000]`: see `sslguard.data.specs`.
"""

from sslguard.data.base import Batch, Data, Extent, Slice, overlap
from sslguard.data.roles import ROLES, Roles
from sslguard.data.specs import open_data

__all__ = ["ROLES", "Batch", "Data", "Extent", "Roles", "Slice", "open_data", "overlap"]
