"""What the exact scheme computes from clean embeddings and inputs: secret features φ, spread M, directions U.

h = F(x)/|F(x)|, its mean μ, and P, which whitens onto its q leading principal components. Arrays are float64 and of
numpy alone, so that a key gives the same numbers wherever it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sslguard.crypto.secrets import Secret, Stream
from sslguard.encoders.statistics import N_STATISTICS
from sslguard.errors import UsageError
from sslguard.schemes.exact.protocol import Protocol
from sslguard.stats.moments import unit_rows

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where clean embeddings lie. Fixed before any secret direction exists.

    Attributes:
        mean: μ, (d,).
        whitener: P, (q, d).
        spread: M, (d, d), symmetric, tr M² = d. M = A·diag(s^α)·Aᵀ, with s and A the singular values and right
            singular vectors of h − μ.
    """

    mean: Array
    whitener: Array
    spread: Array

    @classmethod
    def of(cls, embeddings: NDArray[np.floating], protocol: Protocol) -> Self:
        """Return the geometry of F's answers, (n, d), to items that nobody will be asked about.

        Raises:
            UsageError: They vary in fewer than q directions.
        """
        h = unit_rows(np.asarray(embeddings, dtype=np.float64))
        mean = h.mean(0)
        # Of the covariance: a thin decomposition of the rows would need them all at once in twice the memory.
        values, axes = np.linalg.eigh((h - mean).T @ (h - mean) / len(h))
        values, axes = np.maximum(values[::-1], 0), axes[:, ::-1].T
        q, d = protocol.components, h.shape[1]
        # Rows have length 1: what lies below that is rounding, of theirs or beside the widest direction.
        varying = int((values > max(1e-12 * values[0], 1e-20)).sum())
        if varying < q:
            raise UsageError(
                f"the encoder's answers vary in {varying} of {d} directions: a protocol of {q} components needs as many"
            )
        spread = (axes.T * values ** (protocol.spread_power / 2)) @ axes
        # In the order in which a key file is read, which the last bit of a product depends on.
        whitener = np.ascontiguousarray(axes[:q] / np.sqrt(values[:q, None]))
        return cls(mean, whitener, spread * np.sqrt(d) / np.linalg.norm(spread))

    def digest(self) -> bytes:
        """Return SHA-256 of all three arrays."""
        return _digest(_arrays(self))


@dataclass(frozen=True, eq=False)
class Bank:
    """K₁ + K₂ secret features and what they are made of.

    Attributes:
        geometry: Of the clean embeddings.
        frequencies: w_k in columns, (q, K₁), drawn from N(0, f²/q·I).
        phases: C, (K₁,), uniform in [0, 2π).
        offset, scale: Mean and standard deviation of √2·cos(…) over the embeddings of the geometry, (K₁,).
        centre: ν, mean of the input statistics ψ over the items of the geometry, (96,).
        axes, linear: (96, K₂) and (d, K₂). (ψ − ν)·axes − (h − μ)·linear are a secret rotation of the K₂ largest
            principal components of what of the standardised ψ is not linear in h, each of variance 1.
    """

    geometry: Geometry
    frequencies: Array
    phases: Array
    offset: Array
    scale: Array
    centre: Array
    axes: Array
    linear: Array

    @classmethod
    def draw(
        cls,
        secret: Secret,
        embeddings: NDArray[np.floating],
        statistics: NDArray[np.floating],
        protocol: Protocol,
        context: bytes,
        *,
        share: tuple[int, int] = (0, 1),
    ) -> Self:
        """Return the bank of a secret, bound to `context` (encoder and protocol) and to the geometry.

        Args:
            secret: The master secret, or a sub-key's.
            embeddings: F's answers to items that nobody will be asked about, (n, d).
            statistics: ψ of these items, (n, 96).
            protocol: Sizes and frequency of the features.
            context: What the streams are bound to.
            share: (i, s) takes of the s·K₂ largest principal components each s-th from the i-th on, so that the banks
                of s sub-keys have none in common.

        Raises:
            UsageError: They do not suit the protocol.
        """
        geometry = Geometry.of(embeddings, protocol)
        stream = secret.stream("features", context + geometry.digest())
        q, k = protocol.components, protocol.n_features
        frequencies = stream.normal((q, k)) * (protocol.frequency / np.sqrt(q))
        phases = 2 * np.pi * stream.uniform((k,))
        h = unit_rows(np.asarray(embeddings, dtype=np.float64))
        bends = _bends(geometry, frequencies, phases, h)
        parts = _beyond_linear(geometry, h, np.asarray(statistics, dtype=np.float64), protocol.n_statistics * share[1])
        rotation = _rotation(secret.stream("statistics", context + geometry.digest()), protocol.n_statistics)
        first, step = share
        centre, axes, linear = parts[0], parts[1][:, first::step] @ rotation, parts[2][:, first::step] @ rotation
        return cls(geometry, frequencies, phases, bends.mean(0), bends.std(0), centre, axes, linear)

    @classmethod
    def joined(cls, banks: Sequence[Self]) -> Self:
        """Return the features of several banks over one geometry: all functions of h, then all statistics."""
        return banks[0]._with(lambda name: np.concatenate([getattr(bank, name) for bank in banks], axis=-1))

    def part(self, index: int, parts: int) -> Self:
        """Return a copy of the bank at `index`, of the `parts` banks that this one was joined of."""
        return self._with(lambda name: np.split(getattr(self, name), parts, axis=-1)[index].copy())

    def _with(self, array: Callable[[str], Array]) -> Self:
        """Other features over the same geometry."""
        own = (getattr(self, name) if name == "centre" else array(name) for name in _OWN)
        return type(self)(self.geometry, *own)

    @property
    def size(self) -> int:
        """K = K₁ + K₂."""
        return len(self.phases) + self.axes.shape[1]

    def features(self, h: Array, statistics: Array) -> Array:
        """Return φ of clean embeddings of length 1 and of input statistics: (n, d), (n, 96) → (n, K)."""
        bends = (_bends(self.geometry, self.frequencies, self.phases, h) - self.offset) / self.scale
        others = (statistics - self.centre) @ self.axes - (h - self.geometry.mean) @ self.linear
        return np.hstack([bends, others])

    def digest(self) -> bytes:
        """Return SHA-256 of all that the test depends on but the directions."""
        return _digest(self.to_arrays())

    def to_arrays(self) -> dict[str, Array]:
        """Return every array by name; `from_arrays` is the inverse."""
        return {**_arrays(self.geometry), **{name: getattr(self, name) for name in _OWN}}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.floating]]) -> Self:
        """Return the bank of such arrays. Raise ValueError for arrays that are no bank's, or do not fit together."""
        if set(arrays) != {*_OWN, *_GEOMETRY}:
            raise ValueError("not the arrays of a bank of features")
        found = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
        if found["frequencies"].ndim != 2 or found["mean"].ndim != 1:
            raise ValueError("the arrays of the bank have wrong shapes")
        (q, k), d = found["frequencies"].shape, len(found["mean"])
        shapes = {"whitener": (q, d), "spread": (d, d), "phases": (k,), "offset": (k,), "scale": (k,)}
        shapes |= {"centre": (N_STATISTICS,), "linear": (d, found["axes"].shape[-1])}
        if found["axes"].ndim != 2 or len(found["axes"]) != N_STATISTICS:
            raise ValueError("the arrays of the bank have wrong shapes")
        if any(found[name].shape != shape for name, shape in shapes.items()) or not (found["scale"] > 0).all():
            raise ValueError("the arrays of the bank do not fit together")
        geometry = Geometry(*(found[name] for name in _GEOMETRY))
        return cls(geometry, *(found[name] for name in _OWN))


_GEOMETRY = tuple(field.name for field in fields(Geometry))
_OWN = ("frequencies", "phases", "offset", "scale", "centre", "axes", "linear")


def _bends(geometry: Geometry, frequencies: Array, phases: Array, h: Array) -> Array:
    return np.sqrt(2) * np.cos((h - geometry.mean) @ geometry.whitener.T @ frequencies + phases)


def _beyond_linear(geometry: Geometry, h: Array, statistics: Array, count: int) -> tuple[Array, Array, Array]:
    """Return ν, and axes on ψ and on h of the `count` largest principal components of what of ψ is not linear in h.

    Raises:
        UsageError: There are fewer.
    """
    centred = h - geometry.mean
    centre, sizes = statistics.mean(0), statistics.std(0)
    standard = (statistics - centre) / np.where(sizes > 0, sizes, 1)
    values, axes = np.linalg.eigh(centred.T @ centred / len(h))
    # A layer norm's embeddings are collinear.
    axes, values = axes[:, values > 1e-10 * values[-1]], values[values > 1e-10 * values[-1]]
    linear = axes @ ((axes.T @ (centred.T @ standard / len(h))) / values[:, None])
    # What the fit leaves of items that it has not seen: few items leave little of themselves, and more of others.
    leverage = 1 / len(h) + ((centred @ axes) ** 2 / values).sum(1) / len(h)
    left = (standard - centred @ linear) / (1 - leverage).clip(1e-3)[:, None]
    variances, components = np.linalg.eigh(left.T @ left / len(h))
    if not (variances[len(variances) - count :] > 1e-9).all():
        # What a linear fit on d numbers leaves of n items varies in at most n − d − 1 directions.
        (n, d), remedy = h.shape, "lower n_statistics, or the number of sub-keys"
        if n < d + count + 1:
            raise UsageError(
                f"need at least {d + count + 1:,} marking items for an encoder of width {d:,}; got {n:,}: "
                f"give more, or {remedy}"
            )
        raise UsageError(
            f"the {n:,} marking items are too much alike: need {count} input statistics that are not linear in the "
            f"encoder's answers: give other items, or {remedy}"
        )
    components = (components / np.sqrt(np.maximum(variances, 1e-300)))[:, ::-1][:, :count]
    return centre, components / np.where(sizes > 0, sizes, 1)[:, None], linear @ components


def _rotation(stream: Stream, size: int) -> Array:
    """Return a uniform orthogonal matrix (Haar measure: QR with a positive diagonal)."""
    if size == 0:
        return np.zeros((0, 0))
    q, r = np.linalg.qr(stream.normal((size, size)))
    return np.asarray(q * np.where(np.diag(r) < 0, -1, 1))


def draw_directions(secret: Secret, n_features: int, dim: int, context: bytes, *, redraw: int = 0) -> Array:
    """Return U (K, d): one uniform point on the sphere of radius √K, normalised as a whole and never row by row.

    Args:
        secret: The key's.
        n_features: K.
        dim: D.
        context: Encoder, protocol and bank. All of V's ingredients are fixed before U is.
        redraw: Names another, independent U on the same features; 0 is the key's own.
    """
    return on_sphere(draw_gaussian(secret, n_features, dim, context, redraw=redraw))


def draw_gaussian(secret: Secret, n_features: int, dim: int, context: bytes, *, redraw: int = 0) -> Array:
    """Return the numbers (K, d) that `draw_directions` normalises, N(0, 1)."""
    name = "directions" if redraw == 0 else f"directions, redraw {redraw}"
    return secret.stream(name, context).normal((n_features, dim))


def on_sphere(gaussian: Array) -> Array:
    """Return rows (K, d) scaled as a whole to the sphere of radius √K."""
    return gaussian * (np.sqrt(len(gaussian)) / np.linalg.norm(gaussian))


def _arrays(geometry: Geometry) -> dict[str, Array]:
    return {name: getattr(geometry, name) for name in _GEOMETRY}


def _digest(arrays: Mapping[str, Array]) -> bytes:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, list(array.shape)]).encode() + b"\n")
        digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
    return digest.digest()
