"""A fingerprint: how alike a suspect's answers are to the owner's, with nothing injected.

Two measures of the answers H (n, d) and G (n, m) to the same items, columns centred, that linear maps of a suspect's
answers change little or not at all:

- "cka", linear centred kernel alignment |GᵀH|²/(|HᵀH|·|GᵀG|) in Frobenius norms, in [0, 1]: unchanged by rotation and
  size.
- "predicted", 1 − |H − Ĥ|²/|H − mean|² on the second half of the items, Ĥ by ridge regression on G fitted to the
  first: unchanged by every invertible map, as far as the ridge allows. At most 1, below 0 where G predicts nothing.

Neither has a p-value: encoders of the same kind of data are alike whoever trained them, so only a rank among controls
speaks, and controls of the suspect's own kind decide what it says.

Source: Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019 (arXiv
1905.00414), for the alignment. Its use against theft, ranked among controls, is the natural baseline, of no one paper.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.schemes.base import Score, Watermarked
from sslguard.schemes.peers.base import Array, ComparingKey, Peer
from sslguard.schemes.queries import gathered
from sslguard.settings import Range

_RIDGE = 1e-3  # in mean variances of G


@dataclass(frozen=True)
class Fingerprint(Peer):
    """The settings.

    Attributes:
        measure: "cka" or "predicted".
        n: Items that a verification asks.
    """

    name: ClassVar[str] = "fingerprint"
    injects: ClassVar[bool] = False

    measure: Literal["cka", "predicted"] = "cka"
    n: Annotated[int, Range(least=4)] = 1000

    def watermark(self, clean: Encoder, data: Data, *, secret: Secret, **loop: Any) -> Watermarked:  # noqa: ARG002
        """Return F unchanged, and a key that compares answers with those of F. See `Scheme.watermark`."""
        return Watermarked(clean, FingerprintKey(secret, clean, self.n, self.measure))


@dataclass(frozen=True, eq=False, repr=False)
class FingerprintKey(ComparingKey):
    """The clean encoder and the measure."""

    scheme: ClassVar[str] = Fingerprint.name
    statistic_name: ClassVar[str] = "similarity to the owner's answers"

    measure: Literal["cka", "predicted"]

    def statistic(self, answers: Iterable[NDArray[np.floating]], data: Data) -> Score:
        """Return the similarity; 0 for answers that do not vary."""
        found, own = gathered(answers, self.n), self.own(data)
        value = cka(own, found) if self.measure == "cka" else predicted(own, found)
        return Score(value, self.n)


def cka(one: Array, other: Array) -> float:
    """Compute linear centred kernel alignment of (n, d) and (n, m), in [0, 1]."""
    one, other = _centred(one), _centred(other)
    size = np.linalg.norm(one.T @ one) * np.linalg.norm(other.T @ other)
    return float(np.linalg.norm(other.T @ one) ** 2 / size) if size > 0 else 0.0


def predicted(own: Array, other: Array) -> float:
    """Share of the variance of `own` (n, d) that a linear map of `other` (n, m) predicts on the second half of rows."""
    other, half = _centred(other), len(own) // 2
    if not other.any():
        return 0.0
    design = np.column_stack([other, np.ones(len(other))])
    gram = design[:half].T @ design[:half]
    penalty = np.full(len(gram), _RIDGE * half)
    penalty[-1] = 0
    fitted = solve(gram + np.diag(penalty), design[:half].T @ own[:half], assume_a="pos")
    held = own[half:]
    return float(1 - np.square(held - design[half:] @ fitted).sum() / np.square(held - held.mean(0)).sum())


def _centred(rows: Array) -> Array:
    """Columns of mean 0, all over the root of their mean variance: products of them neither vanish nor overflow."""
    centred = rows - rows.mean(0)
    size = np.sqrt(np.square(centred).mean())
    return np.asarray(centred / size) if size > 0 else centred
