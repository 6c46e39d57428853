"""The scheme whose p-value is a theorem: a mark along secret directions, and evidence with a known law.

`Exact` marks, `ExactKey` tests. Notation, proof and what defeats it: docs/explanation/theory.md.
"""

from sslguard.schemes.exact.bank import Bank, Geometry, draw_directions
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact

__all__ = ["Bank", "Exact", "ExactKey", "Geometry", "Protocol", "draw_directions"]
