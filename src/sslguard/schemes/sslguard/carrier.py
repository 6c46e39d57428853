"""What the cured scheme writes into plain and triggered answers, and how it is read off a suspect's.

Symbols: h = F(x), μ its mean, z_k = ⟨h − μ, p_k⟩ of variance 1 with p_k in the span of the q leading principal
components, v_k and b secret directions, u their coordinates in the whitened space of the other components.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor, nn

from sslguard.crypto.secrets import Stream
from sslguard.errors import UsageError

N_KINDS = 2


class Background(NamedTuple):
    """How a suspect's plain answers lie, which says nothing of where they come from.

    Attributes:
        mean: Of the answers, (d,).
        quiet: Inverse of their covariance in the whitened space, of mean variance 1, plus the identity; (D, D). It
            turns down the directions in which its answers differ from image to image anyway.
    """

    mean: Tensor
    quiet: Tensor


class Carrier(nn.Module):
    """A secret shift of plain answers, δ(h) = Σ_k 3·tanh(z_k/3)·v_k, and one of triggered answers, b.

    As published F* and F agree on every plain image, so nothing tells a surrogate of one from a surrogate of the
    other: both have seen plain answers only. F* is taught to answer F(x) + δ(F(x)), which its surrogates learn and
    those of F do not, and b more where the trigger is, which whoever holds F*'s weights keeps.

    What is read off a suspect are two cosines, each between something that its answers give and something secret.
    The secret part is uniform on the sphere of a D-dimensional space and nothing that is not derived from F* knows
    it. So either cosine of an innocent has the law of the first coordinate of a uniform point on that sphere, with
    standard deviation 1/√D, whatever the innocent is: that, and not some trained network, keeps it silent.

    Args:
        embeddings: F's plain answers, float (n, d).
        size: Length of δ as a share of that of the answers less μ, root mean squares in the whitened space, where it
            is read. (Of δ without its tanh, which shortens it by some hundredths.)
        directions: K, how many p_k and v_k.
        shift: Length of b in units of the answers' spread, their root-mean-square distance from μ.
        stream: Where the secret directions come from.

    Attributes:
        mean: μ, (d,).
        read: p_k, (K, d).
        write: v_k, (K, d).
        shift: B, (d,).
        whitener: Answers less μ → the whitened space of the components that no p_k reads, (D, d).
        spread: Of the plain answers.

    Raises:
        UsageError: The answers are all alike, or too few of their dimensions are left to write into.
    """

    N_COMPONENTS: ClassVar[int] = 6
    RIDGE: ClassVar[float] = 1.0
    TENSORS: ClassVar[tuple[str, ...]] = ("mean", "read", "write", "shift", "whitener", "spread")
    mean: Tensor
    read: Tensor
    write: Tensor
    shift: Tensor
    whitener: Tensor
    spread: Tensor

    def __init__(
        self, embeddings: NDArray[np.floating], size: float, *, directions: int, shift: float, stream: Stream
    ) -> None:
        super().__init__()
        h = embeddings.astype(np.float64)
        mean, d = h.mean(0), h.shape[1]
        variance, axes = _principal(h - mean)
        if not variance[0] > 0:
            raise UsageError("the encoder answers every image alike: there is nothing to mark")
        n = max(directions, min(self.N_COMPONENTS, d // 4))
        if (variance[:n] <= 1e-12 * variance[0]).any() or d - n < 2 * (directions + 1):
            raise UsageError(
                f"{directions} directions are too many for answers of {d} dimensions, of which "
                f"{int((variance > 1e-12 * variance[0]).sum())} vary: take fewer"
            )
        spread = float(np.sqrt(variance.sum()))
        turn = np.linalg.qr(stream.normal((n, directions)))[0].T
        scale = np.sqrt(variance[n:] + self.RIDGE * variance.mean())
        # Orthonormal rows, uniform among all such: a Gaussian matrix's polar factor.
        left, _, right = np.linalg.svd(stream.normal((directions + 1, d - n)), full_matrices=False)
        secret = (left @ right * scale) @ axes[n:]
        own = np.sqrt((variance[n:] / scale**2).sum())
        marks = secret[:-1] * (size * own / np.sqrt(directions))
        for name, value in (
            ("mean", mean),
            ("read", turn @ (axes[:n] / np.sqrt(variance[:n, None]))),
            ("write", marks),
            ("shift", secret[-1] * (shift * spread / np.linalg.norm(secret[-1]))),
            ("whitener", axes[n:] / scale[:, None]),
            ("spread", np.array(spread)),
        ):
            self.register_buffer(name, torch.from_numpy(value).float())

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Carrier:
        """Return the carrier of which `state_dict` gave these.

        Raises:
            ValueError: They are not a carrier's, or their shapes do not fit together.
        """
        carrier = cls.__new__(cls)
        nn.Module.__init__(carrier)
        if set(tensors) != set(cls.TENSORS):
            raise ValueError("not the tensors of a carrier")
        for name in cls.TENSORS:
            carrier.register_buffer(name, tensors[name].float())
        k, d = carrier.read.shape
        rank = len(carrier.whitener)
        shapes = {"mean": (d,), "read": (k, d), "write": (k, d), "shift": (d,), "whitener": (rank, d), "spread": ()}
        if any(getattr(carrier, name).shape != shape for name, shape in shapes.items()) or not 1 <= rank <= d:
            raise ValueError("the tensors of the carrier do not fit together")
        return carrier

    @property
    def rank(self) -> int:
        """D, the dimension of the space in which the cosines are taken."""
        return len(self.whitener)

    def forward(self, h: Tensor) -> Tensor:
        """Return δ: clean answers (n, d) → shifts (n, d)."""
        return self._written(h - self.mean)

    def _written(self, centred: Tensor) -> Tensor:
        return 3 * torch.tanh(centred @ self.read.T / 3) @ self.write

    def background(self, plain: Tensor) -> Background:
        """Return the background of a suspect's plain answers, (n, d)."""
        rows = plain.double()
        mean = rows.mean(0)
        centred = rows - mean
        centred = centred / centred.abs().max().clamp_min(torch.finfo(torch.double).tiny)
        white = centred @ self.whitener.T.double()
        covariance = white.T @ white
        share = covariance * (self.rank / covariance.trace().clamp_min(1e-100))
        identity = torch.eye(self.rank, dtype=torch.double, device=plain.device)
        return Background(mean.to(plain.dtype), torch.linalg.inv(share + identity).to(plain.dtype))

    def evidence(self, plain: Tensor, triggered: Tensor, background: Background) -> Tensor:
        """Return what a suspect's answers show, in standard deviations of an innocent's: (n, 2), each entry at most √D.

        First √D times the cosine between an answer to a plain image, less the mean, and the δ that such an answer
        should carry; second √D times the cosine between how the answer moves under the trigger, seen through `quiet`,
        and b. Both in the whitened space. Whatever is done to the answers, the secret direction stays uniform, so
        the law of an innocent's evidence stays what it is.

        Args:
            plain: Answers to images without the trigger, (n, d).
            triggered: Answers to the same images with it, (n, d).
            background: Of the suspect's plain answers.
        """
        centred = plain - background.mean
        carried = _cosine(self._whitened(centred), self._whitened(self._written(centred)))
        moved = self._whitened(triggered - plain) @ background.quiet
        shown = _cosine(moved, self._whitened(self.shift.expand_as(plain)))
        return torch.stack([carried, shown], dim=1) * self.rank**0.5

    def _whitened(self, rows: Tensor) -> Tensor:
        """Rows (n, d) in the whitened space, up to their lengths: (n, D)."""
        # Lengths are taken off first: a hostile suspect's may overflow when they are squared.
        return _scaled(rows) @ self.whitener.T


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    return (nnf.normalize(first, dim=1) * nnf.normalize(second, dim=1)).sum(1)


def _scaled(rows: Tensor) -> Tensor:
    """Rows over their largest magnitude; rows of zero stay."""
    return rows / rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def _principal(centred: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variances in falling order, (d,), and their axes as rows, (d, d)."""
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    return values[::-1].clip(0), vectors[:, ::-1].T
