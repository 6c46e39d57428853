"""What the exact scheme computes from clean embeddings and inputs: the public bank of functions, and the two secrets.

h = F(x)/|F(x)| has the mean μ, and varies along q principal axes with deviations σ. x are the input's statistics, of
mean ν. Nothing here is secret but A and G. Arrays are float64 and of numpy alone, so that a key gives the same numbers
wherever it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from sslguard.crypto.secrets import Secret
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.statistics import IMAGE_PARTS, N_IMAGE, N_WORDS
from sslguard.errors import UsageError
from sslguard.schemes.exact.protocol import Protocol
from sslguard.stats.moments import unit_rows

if TYPE_CHECKING:
    from sslguard.encoders.base import Encoder

Array = NDArray[np.float64]

MOST_AXES = 1024
"""Axes of an embedding that a mark lies along. Of wider embeddings the rest is left as it is."""
LEFT = "left"
"""Stream of the left secret."""
_RANK = 1e-4
"""Deviation, as a share of the largest, below which an axis holds rounding: a layer norm's embeddings are collinear."""
_EASE = 0.2
"""Functions that vary more are learned first, and hold more of the mark: s ∝ eigenvalue^0.2."""
_POWERS = (0.35, 1.0)
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_TEXT_FUNCTIONS = N_WORDS // 2


@dataclass(frozen=True, eq=False)
class Bank:
    """B public functions ψ of input and embedding, and where clean embeddings lie. Fixed before any secret exists.

    ψ(x) = (x − ν)·mixing − (h − μ)·axesᵀ·linear: the leading principal components of what of the weighted,
    standardised statistics is not linear in h, each of variance 1 on items that took no part in the fit.

    Attributes:
        mean: μ, (d,).
        axes: Principal axes of h, orthonormal rows, (q, d).
        deviations: Standard deviation of h along each, (q,), falling.
        spread: Diagonal of M along the axes: the mark's share of each, (q,), of mean square 1.
        centre: ν, (p,).
        mixing: (p, B).
        linear: (q, B).
        weights: s, how much of the mark each function holds, (B,), of mean square 1.
    """

    mean: Array
    axes: Array
    deviations: Array
    spread: Array
    centre: Array
    mixing: Array
    linear: Array
    weights: Array

    @classmethod
    def of(cls, embeddings: NDArray[np.floating], statistics: NDArray[np.floating], protocol: Protocol) -> Self:
        """Return the bank of F's answers (n, d) and of input statistics (n, p) of items that nobody is asked about.

        Raises:
            UsageError: Embeddings or statistics vary in too few directions.
        """
        h = unit_rows(np.asarray(embeddings, dtype=np.float64))
        x = np.asarray(statistics, dtype=np.float64)
        mean, axes, deviations = _principal(h)
        centre, weighted = _weighted(x)
        fit, left = _beyond_linear((h - mean) @ axes.T, deviations**2, (x - centre) * weighted)
        variances, components = np.linalg.eigh(left.T @ left / len(left))
        variances, components = variances[::-1], components[:, ::-1]
        size = min(protocol.functions, _TEXT_FUNCTIONS if x.shape[1] == N_WORDS else protocol.functions)
        varying = int((variances > 1e-9 * max(variances[0], 1e-300)).sum()) if variances[0] > 1e-12 else 0
        if varying < max(2, protocol.rank):
            raise UsageError(
                f"the {len(h):,} marking items are too few or too much alike: what their inputs hold beyond the "
                f"encoder's answers varies in {varying} directions, and a mark needs {max(2, protocol.rank)}: give more"
            )
        components, variances = components[:, : min(size, varying)], variances[: min(size, varying)]
        components = components / np.sqrt(variances)
        weights = variances**_EASE
        return cls(
            *(mean, axes, deviations, _spread(deviations, protocol.spread), centre),
            mixing=weighted[:, None] * components,
            linear=fit @ components,
            weights=weights / np.sqrt(np.square(weights).mean()),
        )

    @property
    def size(self) -> int:
        """B."""
        return len(self.weights)

    @property
    def variance(self) -> float:
        """Variance of the clean embeddings, the sum over axes."""
        return float(np.square(self.deviations).sum())

    def functions(self, h: Array, statistics: Array) -> Array:
        """Return ψ of clean embeddings of length 1 and of input statistics: (n, d), (n, p) → (n, B)."""
        return (statistics - self.centre) @ self.mixing - self.placed(h - self.mean) @ self.linear

    def placed(self, h: Array) -> Array:
        """Return vectors of the embedding's space along the principal axes: (n, d) → (n, q)."""
        return h @ self.axes.T

    def digest(self) -> bytes:
        """Return SHA-256 of all that is public and that the test depends on."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        digest = hashlib.sha256()
        for name, array in sorted(self.to_arrays().items()):
            digest.update(json.dumps([name, list(array.shape)]).encode() + b"\n")
            digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return digest.digest()

    def to_arrays(self) -> dict[str, Array]:
        """Return every array by name; `from_arrays` is the inverse."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.floating]]) -> Self:
        """Return the bank of such arrays. Raise ValueError for arrays that are no bank's, or do not fit together."""
        if set(arrays) != {field.name for field in fields(cls)}:
            raise ValueError("not the arrays of a bank of functions")
        # In one order of memory, which the last bit of a product depends on.
        found = {name: np.ascontiguousarray(array, dtype=np.float64) for name, array in arrays.items()}
        if any(found[name].ndim != (2 if name in ("axes", "mixing", "linear") else 1) for name in found):
            raise ValueError("the arrays of the bank have wrong shapes")
        (q, d), (p, b) = found["axes"].shape, found["mixing"].shape
        shapes = {"mean": (d,), "deviations": (q,), "spread": (q,), "centre": (p,), "linear": (q, b), "weights": (b,)}
        if any(found[name].shape != shape for name, shape in shapes.items()) or not 1 <= p <= N_IMAGE:
            raise ValueError("the arrays of the bank do not fit together")
        if not (found["deviations"] > 0).all() or not (found["spread"] > 0).all():
            raise ValueError("the axes of the bank have no deviation")
        if not all(np.isfinite(array).all() for array in found.values()):
            raise ValueError("the arrays of the bank hold impossible numbers")
        if np.abs(found["axes"] @ found["axes"].T - np.eye(q)).max() > 1e-6:
            raise ValueError("the axes of the bank are not orthonormal")
        return cls(**found)


def _principal(h: Array) -> tuple[Array, Array, Array]:
    """Return the mean of h, its principal axes in rows, and its deviations along them."""
    mean = h.mean(0)
    # Of the covariance: a thin decomposition of the rows would need them all at once in twice the memory.
    values, axes = np.linalg.eigh((h - mean).T @ (h - mean) / len(h))
    values, axes = np.maximum(values[::-1], 0), axes[:, ::-1].T
    # Rows have length 1: what lies below that is rounding, of theirs or beside the widest axis.
    q = int((values > max(_RANK**2 * values[0], 1e-14)).sum())
    if q < 2:
        raise UsageError("the encoder's answers do not vary: give other items, or another encoder")
    q = min(q, MOST_AXES)
    return mean, np.ascontiguousarray(axes[:q]), np.sqrt(values[:q])


def _spread(deviations: Array, spread: float) -> Array:
    """Return σ^α of mean square 1, with α as `Protocol.spread` says."""
    variances = deviations**2
    effective = variances.sum() ** 2 / np.square(variances).sum()
    power = float(np.clip(spread / effective, *_POWERS))
    found = deviations**power
    return np.asarray(found / np.sqrt(np.square(found).mean()))


def _weighted(x: Array) -> tuple[Array, Array]:
    """Return ν, and what each centred statistic is multiplied by: its kind's weight over its deviation."""
    parts = IMAGE_PARTS if x.shape[1] == N_IMAGE else ((x.shape[1], 1.0),)
    kinds = np.concatenate([np.full(count, np.sqrt(weight / count)) for count, weight in parts])
    sizes = x.std(0)
    # A column without variance has a deviation of rounding.
    varies = sizes > 1e-9 * max(sizes.max(initial=0), 1e-300)
    return x.mean(0), np.where(varies, kinds / np.where(varies, sizes, 1), 0)


def _beyond_linear(placed: Array, variances: Array, x: Array) -> tuple[Array, Array]:
    """Return the ridge regression (q, p) of x on embeddings along their axes, and what it leaves of each item left out.

    The ridge is the one that leaves least. On few items the plain regression would take away what it cannot foretell,
    and along axes of next to no variance it would enlarge the rounding of embeddings.
    """
    n = len(placed)
    cross = placed.T @ x / n
    best: tuple[float, Array, Array] | None = None
    for ridge in _RIDGES:
        inverse = 1 / (variances + ridge * variances.mean())
        leverage = 1 / n + (placed**2 * inverse).sum(1) / n
        fit = inverse[:, None] * cross
        left = (x - placed @ fit) / (1 - leverage).clip(1e-3)[:, None]
        size = float(np.square(left).sum())
        if best is None or size < best[0]:
            best = size, fit, left
    assert best is not None
    return best[1], best[2]


def stream_context(clean: Encoder, protocol: Protocol) -> bytes:
    """Return what a secret's streams are bound to before there is a bank: encoder, preprocessing and protocol."""
    preprocess = json.dumps(clean.preprocess.to_json(), sort_keys=True).encode()
    # One set of weights may be those of several networks.
    architecture = json.dumps(clean.architecture, sort_keys=True).encode()
    return weights_hash(clean.module).encode() + protocol.digest() + preprocess + architecture


def sub_secrets(secret: Secret, count: int, context: bytes) -> list[Secret]:
    """Return one secret for each sub-key; the master secret itself where there is one sub-key."""
    return [secret] if count == 1 else [secret.derive(f"sub-key {i + 1}", context) for i in range(count)]


def recipient_stream(name: str, rotation: int) -> str:
    """Return what the secret of a recipient is called: another for each name and each rotation."""
    return f"recipient {rotation} {name}"


def draw_left(secret: Secret, protocol: Protocol, bank: Bank, context: bytes) -> Array:
    """Return the numbers (B, r), N(0, 1), that make the left secret A.

    Args:
        secret: The key's, or a sub-key's.
        protocol: Its rank is r.
        bank: The public bank, which the stream is bound to.
        context: Encoder, protocol and redraw.
    """
    return secret.stream(LEFT, context + bank.digest()).normal((bank.size, protocol.rank))


def draw_right(secret: Secret, protocol: Protocol, bank: Bank, left: Array, context: bytes) -> Array:
    """Return the numbers (r, q), N(0, 1), that make the right secret G: from a stream of its own, bound to A too."""
    bound = hashlib.sha256(np.ascontiguousarray(left, dtype="<f8").tobytes()).digest()
    return secret.stream("right", context + bank.digest() + bound).normal((protocol.rank, len(bank.deviations)))


def on_sphere(gaussian: Array, square: float) -> Array:
    """Return Gaussian numbers scaled as a whole, never row by row, to this sum of squares: one uniform point."""
    return gaussian * (np.sqrt(square) / np.linalg.norm(gaussian))
