"""The left test of very many recipients: whose functions of the input a suspect's answers know.

A left witness S sees no secret, so it is computed once for a suspect. Of each recipient there remain a draw of A_i, its
shares in the few columns of all witnesses, and the tails of these shares. Recipients pass in blocks, so that memory
does not grow with their number. The blocks lie on one grid wherever the list is cut, so that processes and machines
give the same numbers, and their partial lists merge into the same list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslguard.crypto.secrets import derived, first_normals
from sslguard.stats.corrections import fisher_rows
from sslguard.stats.left import log2_share_tails

Array = NDArray[np.float64]

BLOCK = 2048
"""Recipients that are drawn together."""


class Shortlist(NamedTuple):
    """The recipients whose left tail is smallest.

    Attributes:
        log2_tails: Smallest tail over the witnesses, not corrected for their number, rising.
        places: Their places in the list of secrets, int64.
    """

    log2_tails: Array
    places: NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class Drawing:
    """All that the left secret of any recipient is drawn from. It holds the master secret.

    Attributes:
        master: The master secret, 32 bytes.
        context: SHA-256 of what a recipient's secret is bound to.
        left: SHA-256 of what its left stream is bound to.
        stream: Name of that stream.
        functions: B.
        rank: r.
    """

    master: bytes
    context: bytes
    left: bytes
    stream: str
    functions: int
    rank: int

    @classmethod
    def bound(cls, master: bytes, context: bytes, left: bytes, *, stream: str, functions: int, rank: int) -> Drawing:
        """Return the drawing of these contexts, which are hashed once for all recipients."""
        hashed = [hashlib.sha256(one).digest() for one in (context, left)]
        return cls(master, hashed[0], hashed[1], stream, functions, rank)

    def draw(self, secrets: Sequence[str]) -> Array:
        """Return the left secrets (n, B, r), before each is scaled, of the secrets of these names."""
        seeds = [derived(derived(self.master, name, self.context), self.stream, self.left) for name in secrets]
        return first_normals(seeds, self.functions * self.rank).reshape(len(secrets), self.functions, self.rank)


def screen(
    witnesses: Sequence[Array], drawing: Drawing, secrets: Sequence[str], *, most: int, start: int = 0
) -> Shortlist:
    """Return the best of the recipients' secrets, by the left test alone.

    Args:
        witnesses: Left witnesses of the suspect, (B, k) each, orthonormal columns.
        drawing: What the left secrets are drawn from.
        secrets: Names of the secrets, as `bank.recipient_stream` gives them.
        most: Length of the list.
        start: Place of the first of them in the whole list, a multiple of `BLOCK`.
    """
    found = Shortlist(np.empty(0), np.empty(0, np.int64))
    shown = [one for one in witnesses if one.any()]
    for at in range(0, len(secrets), BLOCK):
        drawn = drawing.draw(secrets[at : at + BLOCK])
        places = start + at + np.arange(len(drawn))
        found = merged([found, Shortlist(_tails(shown, drawn), places)], most)
    return found


def merged(parts: Sequence[Shortlist], most: int) -> Shortlist:
    """Return the shortlist of all parts together; of equal tails the earlier place goes first."""
    tails, places = (np.concatenate(each) for each in zip(*parts, strict=True))
    order = np.lexsort((places, tails))[:most]
    return Shortlist(tails[order], places[order])


def _tails(witnesses: Sequence[Array], drawn: Array) -> Array:
    """Return the smallest log2 p over the witnesses of each left secret: (n, B, r) → (n,)."""
    n, b, r = drawn.shape
    smallest = np.zeros(n)
    if not witnesses:
        return smallest
    rows = np.ascontiguousarray(drawn.transpose(0, 2, 1)).reshape(n * r, b)
    squares = np.square(rows @ np.hstack(witnesses))
    squares /= np.square(rows).sum(1, keepdims=True)
    first = 0
    for witness in witnesses:
        k = witness.shape[1]
        shares = squares[:, first : first + k].sum(1).reshape(n, r)
        np.minimum(smallest, fisher_rows(log2_share_tails(shares, b, k)), out=smallest)
        first += k
    return smallest
