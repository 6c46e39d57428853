"""The scheme `exact`: a mark along secret directions, and a p-value that holds for any innocent suspect, by proof.

`Exact` marks, `ExactKey` tests. Notation, proof and what defeats it: docs/explanation/theory.md.
"""

from sslguard.lazy import exports

__getattr__, __dir__ = exports(__name__, {"scheme": ("Exact",), "protocol": ("Protocol",), "key": ("ExactKey",)})
