"""The scheme whose p-value is a theorem: a mark along secret directions, and evidence with a known law.

`Exact` marks, `ExactKey` tests. Notation, proof and what defeats it: docs/explanation/theory.md.
"""

from sslguard.lazy import exports

__getattr__, __dir__ = exports(__name__, {"scheme": ("Exact",), "protocol": ("Protocol",), "key": ("ExactKey",)})
