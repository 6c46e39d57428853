"""The name of the header that names who asks. Nothing heavy is imported here."""

from __future__ import annotations

import re

from sslguard.errors import UsageError

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_TAKEN = frozenset(
    {
        *("authorization", "connection", "content-length", "content-type", "host", "transfer-encoding"),
        "inference-header-content-length",
    }
)


def checked_header(name: str) -> str:
    """Return the name of a header. Raise UsageError if it cannot be one, or is read for something else."""
    if not _TOKEN.fullmatch(name):
        raise UsageError(f"a header's name has letters, digits and '-', as X-Customer, unlike {name!a:.80}")
    if name.lower() in _TAKEN:
        raise UsageError(f"the header {name} has a meaning of its own: choose another, as X-Customer")
    return name
