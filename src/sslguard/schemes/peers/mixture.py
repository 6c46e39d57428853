"""Density of rows by a mixture of Gaussians with diagonal covariances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from sslguard.crypto.secrets import Stream
from sslguard.errors import UsageError
from sslguard.schemes.peers.base import Array

_MOST_ROUNDS = 1000
_TOLERANCE = 1e-3  # nats of mean log-likelihood a round
_RIDGE = 1e-6  # added to every variance


@dataclass(frozen=True, eq=False)
class Mixture:
    """p(x) = Σ_k w_k·N(x; m_k, diag v_k).

    Attributes:
        weights: W, (K,), sum 1.
        means, variances: M and v, (K, d).
    """

    weights: Array
    means: Array
    variances: Array

    @classmethod
    def fit(cls, rows: Array, components: int, stream: Stream) -> Mixture:
        """Fit by expectation and maximisation (Dempster, Laird and Rubin 1977), from rows that `stream` draws.

        Raises:
            UsageError: Fewer rows than components.
        """
        if not 1 <= components <= len(rows):
            raise UsageError(f"a mixture of {components} components cannot be fitted to {len(rows)} rows")
        started = rows[stream.permutation(len(rows))[:components]]
        spread = np.broadcast_to(rows.var(0) + _RIDGE, started.shape)
        mixture, before = cls(np.full(components, 1 / components), started, spread), -np.inf
        for _ in range(_MOST_ROUNDS):
            joint = mixture._joint(rows)
            each = logsumexp(joint, axis=1)
            if each.mean() - before < _TOLERANCE:
                break
            before = each.mean()
            mixture = cls._weighted(rows, np.exp(joint - each[:, None]))
        return mixture

    def log_density(self, rows: Array) -> Array:
        """Return log p of each row in nats: (n, d) → (n,)."""
        return np.asarray(logsumexp(self._joint(rows), axis=1))

    @classmethod
    def _weighted(cls, rows: Array, shares: Array) -> Mixture:
        """Maximum likelihood where row i belongs to component k by shares[i, k]."""
        total = shares.sum(0) + 10 * np.finfo(np.float64).eps
        means = shares.T @ rows / total[:, None]
        variances = np.maximum(shares.T @ rows**2 / total[:, None] - means**2, 0) + _RIDGE
        return cls(total / total.sum(), means, variances)

    def _joint(self, rows: Array) -> Array:
        """Return log (w_k·N(x_i; m_k, diag v_k)), (n, K)."""
        precision = 1 / self.variances
        distance = rows**2 @ precision.T - 2 * rows @ (self.means * precision).T + (self.means**2 * precision).sum(1)
        constant = np.log(2 * np.pi * self.variances).sum(1)
        return np.asarray(np.log(self.weights) - (distance + constant) / 2)
