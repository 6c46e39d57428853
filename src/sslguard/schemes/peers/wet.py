"""WET: a service answers with a secret linear transformation of its embeddings.

h*(x) = T·h / |T·h| with h = F(x)/|F(x)| and T (d, d) circulant: every row is the one before it shifted by one, with k
numbers above 0 that sum to 1. Whoever holds T recovers ĥ = T⁺·g from a suspect's answer g; the statistic is the mean
cosine of ĥ and h, each less its mean, over the items asked.

The paper gives no p-value: it compares mean cosines, and their ROC against answers that were never transformed.
Innocents close to F score above strangers without any transformation, so that a rank needs controls of both kinds.

Source: Shetty, Xu and Lau, "WET: Overcoming Paraphrasing Vulnerabilities in Embeddings-as-a-Service with Linear
Transformation Watermarks", ACL 2025 (arXiv 2409.04459). Deviations:

- Answers keep the length of F(x), which the paper's service does not have: all its embeddings are of length 1.
- As many dimensions as F has, which is the paper's default; its other widths are left out.
- The L2 distance is left out: between unit vectors it is a function of the cosine.
- Means over the items asked are taken off, which the paper does not do. Behind a ReLU most of an embedding is its
  mean, and T's numbers are positive: a constant vector would score next to a copy, and above every innocent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import circulant

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Embedder, Encoder
from sslguard.encoders.wrapped import Wrapped, rows
from sslguard.errors import UsageError
from sslguard.schemes.base import Score, Watermarked
from sslguard.schemes.peers.base import Array, ComparingKey, Peer
from sslguard.schemes.queries import gathered
from sslguard.settings import Count
from sslguard.stats.moments import unit_rows


@dataclass(frozen=True)
class Wet(Peer):
    """The settings; `terms` is the paper's.

    Attributes:
        terms: K, dimensions of F that each dimension of an answer mixes.
        n: Items that a verification asks.
    """

    name: ClassVar[str] = "wet"

    terms: Count = 25
    n: Count = 250

    def watermark(self, clean: Encoder, data: Data, *, secret: Secret, **loop: Any) -> Watermarked:  # noqa: ARG002
        """Return F behind a secret circulant map, and its key. See `Scheme.watermark`."""
        if self.terms > clean.dim:
            raise UsageError(f"terms must be at most the encoder's width {clean.dim}, not {self.terms}")
        stream, first = secret.stream("transformation"), np.zeros(clean.dim)
        first[stream.permutation(clean.dim)[: self.terms]] = stream.uniform((self.terms,))
        matrix = circulant(first / first.sum())
        key = WetKey(secret, clean, self.n, matrix)
        said = f"a circulant map of {self.terms} terms"
        return Watermarked(Wrapped(clean, partial(key.answer, clean), self.name, asdict(self), said), key)


@dataclass(frozen=True, eq=False, repr=False)
class WetKey(ComparingKey):
    """The transformation and the clean encoder.

    Attributes:
        matrix: T, (d, d).
    """

    scheme: ClassVar[str] = Wet.name
    statistic_name: ClassVar[str] = "mean cosine of recovered and clean embeddings, each less its mean"

    matrix: Array

    def answer(self, clean: Embedder, batch: Batch) -> NDArray[np.floating]:
        """Return what is served: transformed answers of `clean`, (n, d)."""
        plain = rows(clean, batch)
        exact = plain.astype(np.float64)
        moved = unit_rows(exact @ self.matrix.T) * np.linalg.norm(exact, axis=1, keepdims=True)
        return moved.astype(plain.dtype)

    def statistic(self, answers: Iterable[NDArray[np.floating]], data: Data) -> Score:
        """Return the mean cosine, in [−1, 1].

        Raises:
            SuspectError: The answers have another width than the transformation.
        """
        found = gathered(answers, self.n, width=len(self.matrix))
        recovered, own = unit_rows(found @ np.linalg.pinv(self.matrix).T), unit_rows(self.own(data))
        cosines = (unit_rows(recovered - recovered.mean(0)) * unit_rows(own - own.mean(0))).sum(1)
        return Score(float(cosines.mean()), self.n, cosines=cosines)
