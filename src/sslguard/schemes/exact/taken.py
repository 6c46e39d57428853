"""What is said of a marking: how large it is, and whether it took."""

from __future__ import annotations

from dataclasses import dataclass

LEAST_BITS, LEAST_GAIN = 32.0, 0.2


@dataclass(frozen=True)
class Taken:
    """How a mark took, on items that took no part in the marking.

    Attributes:
        n_items: Items that took part.
        n_held: Items that did not.
        size: Mean square of the mark, for embeddings of length 1 (E).
        cosine: Mean cosine of the marked to the clean answers.
        expected: That of a mark of this size and nothing else, 1/√(1 + E).
        overlap: Share of the 10 nearest neighbours that stay neighbours, for embeddings in an index.
        gain: Share of the mark that the answers show, 1 for a head.
        bits: Evidence of the marked encoder's own verification on the held-out items, before the cap; None where they
            are too few to tell.
    """

    n_items: int
    n_held: int
    size: float
    cosine: float
    expected: float
    overlap: float
    gain: float
    bits: float | None

    @property
    def took(self) -> bool:
        """Whether the mark can be found in the marked encoder itself."""
        return self.gain >= LEAST_GAIN if self.bits is None else self.bits >= LEAST_BITS

    def rows(self) -> list[tuple[str, str]]:
        """Return what there is to say, for people."""
        bits = "too few items to tell" if self.bits is None else f"{self.bits:.0f} bits on {self.n_held:,} items"
        return [
            ("mark", f"{self.size:.4f} of an embedding's square, in {self.n_items:,} items"),
            ("cosine", f"{self.cosine:.4f} to the clean answers on {self.n_held:,} held-out items"),
            ("neighbours", f"{self.overlap:.2f} of the 10 nearest stay"),
            ("own test", f"{bits}; {self.gain:.0%} of the mark shows" + ("" if self.took else ": IT DID NOT TAKE")),
        ]
