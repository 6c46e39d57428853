"""Controls are told apart by their answers.

A p-value from a rank takes each control for one draw among innocents. Copies of one network are one draw, and weights
do not tell: a counter that nothing reads, or a scale that the next layer takes back, makes other weights and the same
answers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Batch
from sslguard.encoders.base import Embedder
from sslguard.errors import UsageError

ROWS = 64
"""Answers by which controls are compared: the first ones."""
ALIKE = 1e-3
"""Distance below which two controls count as one network.

The nearest two of the test bed's 107 controls, one encoder pruned by 20 and by 40 %, have a distance of 0.0028; the
median of all pairs is 0.5.
"""


class Noted:
    """An embedder whose first answers are kept.

    Attributes:
        embedder: Embedder that answers.
        name: Name of the embedder.
        n_missing: Number of its queries without an answer.
    """

    def __init__(self, embedder: Embedder, name: str) -> None:
        self.embedder, self.name, self.n_missing = embedder, name, 0
        self._kept: list[NDArray[np.float64]] = []

    def embed(self, batch: Batch, /) -> NDArray[np.floating]:
        """Return the answers to a batch, (n, m)."""
        answers = self.embedder.embed(batch)
        left = ROWS - sum(map(len, self._kept))
        if left > 0:
            self._kept.append(np.array(answers[:left], np.float64))
        return answers

    def finish(self) -> None:
        """Do nothing: no query is left over."""

    def likeness(self) -> NDArray[np.float64]:
        """Return the cosines between the kept answers after their mean is subtracted, (n, n), as a vector of length 1.

        Rotations, scales and orders of the numbers of an answer leave it unchanged. It is 0 for constant answers.
        """
        answers = np.concatenate(self._kept)
        answers -= answers.mean(0)
        answers /= np.abs(answers).max(initial=0) or 1.0
        products = answers @ answers.T
        length = np.linalg.norm(products)
        return (products / length if length else products).ravel()


class SeenAnswers:
    """Record of how controls answered: one network under two names would count twice."""

    def __init__(self) -> None:
        """Begin without any."""
        self._seen: dict[str, NDArray[np.float64]] = {}

    def check(self, control: Noted) -> None:
        """Compare a control with those before it. All were asked the same.

        Raises:
            UsageError: Another control answers alike, up to a rotation and a scale.
        """
        own = control.likeness()
        for name, other in self._seen.items():
            # Linear CKA of Kornblith et al., "Similarity of neural network representations revisited" (2019), eq. 3.
            distance = 1 - float(own @ other) if own.any() or other.any() else 0.0
            if distance < ALIKE:
                raise UsageError(
                    f"control {control.name!r} answers as control {name!r} does (1 - CKA = {distance:.1g}): copies of "
                    "one network are one control, so leave one of them out"
                )
        self._seen[control.name] = own
