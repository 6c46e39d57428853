"""How many queries a claim of so many bits will need, before anything is trained.

The fidelity ρ of a suspect is the cosine between what its answers add to the clean embeddings and the mark: g − h and
h* − h, both centred. What it gets wrong is taken to be in part as smooth a function of the query as the mark itself, so
that it is never averaged out, and in part noise, independent from query to query and of the clean embeddings' own
covariance. The witness own_space is then V = A·(ρ·U + √(1 − ρ²)·U')·B + N, with U' independent of U,
A = ε·K^(−1/2)·Cov(φ̃, φ), B = M·M⁻, and N of mean square (1/ρ² − 1)·tr Cov(φ̃)·tr(M⁻ Cov(h) M⁻)/ν. Here ν = n − d − 1,
what the linear fit of φ on h leaves free of n queries; A itself is known to K/ν of its square. From this c at n queries
and its bits follow.

That is a model. It says what to expect of a suspect that answers in the clean encoder's space; `verify` says what came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sslguard.crypto.secrets import Secret
from sslguard.encoders.statistics import N_STATISTICS
from sslguard.errors import UsageError
from sslguard.schemes.exact.bank import Bank
from sslguard.schemes.exact.protocol import Protocol
from sslguard.stats.arguments import finite_matrix
from sslguard.stats.direction import SECRET_BITS, log2_tail
from sslguard.stats.moments import unit_rows
from sslguard.stats.witness import equal_gain, family

MAX_QUERIES = 10_000_000


@dataclass(frozen=True)
class Power:
    """What a protocol can show with an encoder's embeddings.

    Attributes:
        dim, n_features: D and K.
        gain: Mean of ⟨U, V⟩ at fidelity 1.
        signal: Mean square of V without noise, at fidelity 1.
        noise: Mean square of V's noise at one query, where it is as large as the clean embeddings' own spread.
    """

    dim: int
    n_features: int
    gain: float
    signal: float
    noise: float

    def cosine(self, n: float, fidelity: float) -> float:
        """Return the c to be expected of n queries to a suspect of this fidelity, in [0, 1]."""
        if not 0 < fidelity <= 1 or n <= 0:
            raise UsageError(f"fidelity must lie in (0, 1] and n above 0, not {fidelity} and {n}")
        error = 1 / fidelity**2 - 1
        free = n - self.dim - 1
        if free <= 0:
            return 0.0
        size = self.signal * (1 + self.n_features / free) + self.noise * error / free
        return min(1.0, fidelity * self.gain / math.sqrt(self.n_features * size)) if size else 0.0

    def bits(self, n: float, fidelity: float) -> float:
        """Return the −log₂ p to be expected, after Bonferroni over all witnesses, at most 256."""
        tail = float(log2_tail(self.cosine(n, fidelity), self.n_features * self.dim))
        found = -tail - math.log2(len(family(self.dim, self.dim)))
        return min(max(0.0, found), float(SECRET_BITS))

    def n_queries(self, bits: float, fidelity: float) -> int | None:
        """Return the least n that is expected to give so many bits; None where ten million do not.

        Raises:
            UsageError: Bits lie outside (0, 256].
        """
        if not 0 < bits <= SECRET_BITS:
            raise UsageError(f"bits must lie in (0, {SECRET_BITS}], the entropy of a secret, not {bits}")
        low, high = 0, MAX_QUERIES
        if self.bits(high, fidelity) < bits:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.bits(middle, fidelity) >= bits else (middle, high)
        return high


def expected_power(
    embeddings: NDArray[np.floating],
    statistics: NDArray[np.floating],
    protocol: Protocol,
    *,
    seeds: Sequence[int] = (0, 1, 2),
) -> Power:
    """Compute the power of a protocol on clean embeddings (n, d) and input statistics (n, 96).

    It is averaged over features of its own.

    Raises:
        UsageError: The embeddings do not suit the protocol, or are fewer than twice their width.
    """
    rows = finite_matrix("embeddings", embeddings, columns=np.shape(embeddings)[1])
    if len(rows) < 2 * rows.shape[1]:
        raise UsageError(
            f"embeddings of width {rows.shape[1]} need at least {2 * rows.shape[1]} items, not {len(rows)}"
        )
    h, psi = unit_rows(rows), finite_matrix("statistics", statistics, columns=N_STATISTICS)
    each = [
        _of_bank(Bank.draw(Secret.from_seed(seed), rows, psi, protocol, b"power"), h, psi, protocol) for seed in seeds
    ]
    gain, signal, noise = (float(value) for value in np.mean(each, axis=0))
    return Power(h.shape[1], protocol.n_directions, gain, signal, noise)


def _of_bank(
    bank: Bank, h: NDArray[np.float64], statistics: NDArray[np.float64], protocol: Protocol
) -> tuple[float, float, float]:
    centred, phi = h - h.mean(0), bank.features(h, statistics)
    phi = phi - phi.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    basis = left[:, sizes > 1e-6 * sizes[0]]
    beyond = phi - basis @ (basis.T @ phi)
    spread = bank.geometry.spread
    back = equal_gain(spread)
    a = protocol.epsilon / math.sqrt(bank.size) * (beyond.T @ phi) / len(h)
    b = spread @ back
    noise = np.square(beyond).sum() / len(h) * np.trace(back @ (centred.T @ centred / len(h)) @ back)
    # Entries of U have mean square 1/d.
    gain, signal = np.trace(a) * np.trace(b), np.square(a).sum() * np.square(b).sum()
    return float(gain) / len(b), float(signal) / len(b), float(noise)
