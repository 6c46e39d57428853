"""What the cured scheme writes into plain and triggered answers, and how it is read off a suspect's.

Symbols: h = F(x), μ its mean, z_k = ⟨h − μ, p_k⟩ of variance 1 with p_k in the span of the q leading principal
components, W the map to the whitened space R^D of the other components, v (K, D) and b (D) the secret directions.
The mark is δ(h) = Σ_k 3·tanh(z_k/3)·v_k on plain answers and δ(h) + b on triggered ones.

Rule: `Reader` makes all that is tested of a suspect's answers, and no argument of it knows v or b.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslguard.crypto.secrets import Stream
from sslguard.errors import UsageError

N_KINDS = 2
N_COMPONENTS = 6
RIDGE = 1.0
QUIET = 0.1
"""λ: with less of it, what a suspect's answers do anyway counts for less, and so does the mark that they carry."""
MOST = 1e100

Array = NDArray[np.float64]


class Directions(NamedTuple):
    """The secret directions, in the whitened space.

    Attributes:
        carrier: v, float64 (K, D): one uniform point on the sphere of radius √K in R^(K·D).
        shift: b, float64 (1, D): a uniform point on the unit sphere.
    """

    carrier: Array
    shift: Array

    @classmethod
    def draw(cls, carrier: Stream, shift: Stream, k: int, rank: int) -> Directions:
        """Draw v and b, each from a stream of its own."""
        v, b = carrier.normal((k, rank)), shift.normal((1, rank))
        return cls(v * (np.sqrt(k) / np.linalg.norm(v)), b / np.linalg.norm(b))


class Witnesses(NamedTuple):
    """Where a suspect's answers show a mark, in the whitened space. Nothing secret has a part in them but the trigger.

    Attributes:
        carrier: float64 (K, D), compared with v.
        shift: float64 (1, D), compared with b.
    """

    carrier: Array
    shift: Array


@dataclass(frozen=True, eq=False)
class Reader:
    """How answers are read: fixed before v and b are drawn.

    Attributes:
        mean: μ, float64 (d,).
        read: p_k, float64 (K, d).
        whitener: W, float64 (D, d), rows orthogonal to each other and to all p_k.
    """

    mean: Array
    read: Array
    whitener: Array

    @classmethod
    def fit(cls, answers: NDArray[np.floating], directions: int, stream: Stream) -> Reader:
        """Fit μ and W to F's plain answers (n, d), and draw how the leading components are mixed into `directions` p_k.

        Raises:
            UsageError: The answers are all alike, or too few of their dimensions are left to write into.
        """
        h = answers.astype(np.float64)
        mean, d = h.mean(0), h.shape[1]
        variance, axes = _principal(h - mean)
        if not variance[0] > 0:
            raise UsageError("the encoder answers every image alike: there is nothing to mark")
        n = max(directions, min(N_COMPONENTS, d // 4))
        if (variance[:n] <= 1e-12 * variance[0]).any() or d - n < 2 * (directions + 1):
            raise UsageError(
                f"{directions} directions are too many for answers of {d} dimensions, of which "
                f"{int((variance > 1e-12 * variance[0]).sum())} vary: take fewer"
            )
        turn = np.linalg.qr(stream.normal((n, directions)))[0].T
        scale = np.sqrt(variance[n:] + RIDGE * variance.mean())
        return cls(mean, turn @ (axes[:n] / np.sqrt(variance[:n, None])), axes[n:] / scale[:, None])

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Reader:
        """Return the reader of which `to_tensors` gave these.

        Raises:
            ValueError: They are not a reader's, or their shapes do not fit together.
        """
        if set(tensors) != {"mean", "read", "whitener"} or any(t.dtype != torch.float64 for t in tensors.values()):
            raise ValueError("not the tensors of a reader")
        reader = cls(**{name: tensor.numpy() for name, tensor in tensors.items()})
        if [reader.mean.ndim, reader.read.ndim, reader.whitener.ndim] != [1, 2, 2]:
            raise ValueError("the tensors of the reader have other dimensions")
        d, k, rank = len(reader.mean), len(reader.read), reader.rank
        if {reader.read.shape[1], reader.width} != {d} or not (1 <= k <= d - rank < d):
            raise ValueError("the tensors of the reader do not fit together")
        if max(np.abs(values).max() for values in vars(reader).values()) > MOST:
            raise ValueError("the tensors of the reader hold numbers whose squares overflow")
        return reader

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the arrays as tensors, by name."""
        return {name: torch.from_numpy(getattr(self, name)) for name in ("mean", "read", "whitener")}

    def digest(self) -> bytes:
        """Return SHA-256 of the arrays and their shapes."""
        parts = (self.mean, self.read, self.whitener)
        return hashlib.sha256(b"".join(str(a.shape).encode() + a.astype("<f8").tobytes() for a in parts)).digest()

    @property
    def width(self) -> int:
        """Return d, the width of the answers that can be read."""
        return self.whitener.shape[1]

    @property
    def rank(self) -> int:
        """Return D, the dimension of the whitened space."""
        return len(self.whitener)

    def witnesses(self, plain: Array, triggered: Array) -> Witnesses:
        """Return where a suspect's answers show v and b.

        Args:
            plain: Answers to images without the trigger, float64 (n, d), zero rows where one is missing.
            triggered: Answers to the same images with it, (n, d).
        """
        seen = _Seen.of(self, plain, triggered)
        functions = seen.functions - seen.functions.mean(0)
        return Witnesses(functions.T @ seen.white @ seen.quiet, (seen.moved.mean(0) @ seen.quiet)[None])

    def evidence(self, plain: Array, triggered: Array, directions: Directions) -> Array:
        """Return what each pair of answers shows, in standard deviations of an innocent's: (n, 2), at most √D.

        First √D times the cosine between an answer to a plain image, less the mean, and the δ that such an answer
        should carry; second √D times the cosine between how the answer moves under the trigger and b. Whatever the
        answers, the secret directions stay uniform, so the law of an innocent's evidence stays what it is. Arguments as
        in `witnesses`; a pair that is not complete shows 0.
        """
        seen = _Seen.of(self, plain, triggered)
        carried = _cosine(seen.white, seen.functions @ directions.carrier)
        shown = _cosine(seen.moved @ seen.quiet, np.broadcast_to(directions.shift, seen.moved.shape))
        return np.stack([carried, shown], axis=1) * np.sqrt(self.rank)


class _Seen(NamedTuple):
    """A suspect's answers in the whitened space; rows of incomplete pairs are 0.

    Attributes:
        functions: 3·tanh(z_k/3) of plain answers, each z_k scaled to variance 1 on them, (n, K).
        white: Plain answers less their mean, (n, D).
        moved: How answers move under the trigger, (n, D).
        quiet: (C + λI)⁻¹ with C the covariance of `white`, scaled to a mean variance of 1; (D, D). It turns down the
            directions in which the suspect's answers differ from image to image anyway.
    """

    functions: Array
    white: Array
    moved: Array
    quiet: Array

    @classmethod
    def of(cls, reader: Reader, plain: Array, triggered: Array) -> _Seen:
        complete = np.asarray(plain.any(1) & triggered.any(1))
        # Of any size: what is squared lies in [-1, 1].
        unit = max(np.abs(plain).max(initial=0), np.abs(triggered).max(initial=0), np.finfo(np.float64).tiny)
        first, second = plain / unit, triggered / unit
        mean = first[complete].sum(0) / max(1, complete.sum())
        centred = np.where(complete[:, None], first - mean, 0.0)
        white = centred @ reader.whitener.T
        z = centred @ reader.read.T
        deviation = np.sqrt(np.square(z).sum(0) / max(1, int(complete.sum())))
        z = np.divide(z, deviation, out=np.zeros_like(z), where=deviation > 0)
        covariance = white.T @ white
        covariance *= reader.rank / max(float(np.trace(covariance)), 1e-300)
        return cls(
            functions=3 * np.tanh(z / 3),
            white=white,
            moved=np.where(complete[:, None], second - first, 0.0) @ reader.whitener.T,
            quiet=np.asarray(np.linalg.inv(covariance + QUIET * np.eye(reader.rank)), dtype=np.float64),
        )


class Mark(nn.Module):
    """The mark, to be trained into F*.

    Args:
        reader: How it is read.
        directions: v and b.
        answers: F's plain answers, (n, d).
        size: Length of δ as a share of that of the answers less μ, root mean squares in the whitened space, where it
            is read. (Of δ without its tanh, which shortens it by some hundredths.)
        shift: Length of b in units of the answers' spread.

    Attributes:
        mean: μ, (d,).
        read: p_k, (K, d).
        write: What is added for each p_k, (K, d).
        shift: What is added to triggered answers, (d,).
        spread: Root-mean-square distance of the answers from μ.
    """

    mean: Tensor
    read: Tensor
    write: Tensor
    shift: Tensor
    spread: Tensor

    def __init__(
        self, reader: Reader, directions: Directions, answers: NDArray[np.floating], *, size: float, shift: float
    ) -> None:
        super().__init__()
        centred = answers.astype(np.float64) - reader.mean
        own = np.sqrt(np.square(centred @ reader.whitener.T).sum(1).mean())
        spread = np.sqrt(np.square(centred).sum(1).mean())
        back = reader.whitener / np.square(reader.whitener).sum(1, keepdims=True)
        moved = directions.shift[0] @ back
        for name, value in (
            ("mean", reader.mean),
            ("read", reader.read),
            ("write", directions.carrier @ back * (size * own / np.sqrt(len(directions.carrier)))),
            ("shift", moved * (shift * spread / np.linalg.norm(moved))),
            ("spread", np.array(spread)),
        ):
            self.register_buffer(name, torch.from_numpy(value).float())

    def forward(self, h: Tensor) -> Tensor:
        """Return δ: clean answers (n, d) → what is added to them (n, d)."""
        return 3 * torch.tanh((h - self.mean) @ self.read.T / 3) @ self.write


def _cosine(first: Array, second: Array) -> Array:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.divide((first * second).sum(1), lengths, out=np.zeros(len(first)), where=lengths > 0)


def _principal(centred: Array) -> tuple[Array, Array]:
    """Variances in falling order, (d,), and their axes as rows, (d, d)."""
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    return values[::-1].clip(0), vectors[:, ::-1].T
