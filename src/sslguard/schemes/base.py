"""What a watermarking scheme is: it turns a clean encoder into a watermarked one and a key that scores answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Encoder
from sslguard.stats.significance import Significance
from sslguard.training import History


class Key(ABC):
    """What the owner keeps: it says what to ask and scores the answers. It never holds a suspect.

    Attributes:
        scheme: its scheme's name.
        null: where p-values come from: "controls" ranks a suspect among known innocents, "exact" needs none.
    """

    scheme: ClassVar[str]
    null: ClassVar[Literal["exact", "controls"]] = "controls"

    @property
    @abstractmethod
    def n_queries(self) -> int:
        """How many queries a verification asks."""

    @abstractmethod
    def queries(self, data: Data) -> Iterator[Batch]:
        """What to ask, in order: a function of the key and `data` alone."""

    @abstractmethod
    def statistic(self, answers: Iterable[NDArray[np.floating]], data: Data) -> Score:
        """What the answers (n, m), batch by batch in the order of the queries to `data`, are worth before any null."""

    @abstractmethod
    def score_value(self, score: Score, *, controls: Sequence[float] = ()) -> Significance:
        """A statistic with its p-value under this scheme's null."""

    def score(
        self, answers: Iterable[NDArray[np.floating]], data: Data, *, controls: Sequence[float] = ()
    ) -> Significance:
        """The statistic of `answers` with its p-value under this scheme's null."""
        return self.score_value(self.statistic(answers, data), controls=controls)

    @abstractmethod
    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON fields and tensors that `from_parts` rebuilds the key from, secrets included."""

    @classmethod
    @abstractmethod
    def from_parts(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> Key:
        """The inverse of `to_parts`. Raises KeyFileError for parts that do not fit."""


@dataclass(frozen=True)
class Score:
    """A statistic over answers, for ranking, and what it stands on.

    Attributes:
        value: the number that is ranked; larger speaks for the claim.
        n_queries: answers that went into it, missing ones included.
        watermark_rate: share of answers with cosine above ½ to the secret vector, in [0, 1]; None in a scheme that has
            no such vector.
        cosines: each answer's cosine, shape (n,); of no length there.
        evidence: the p-value, of a scheme whose null is exact.
        published_log2_pvalue: base-2 logarithm of what a peer's paper takes for its p-value, in bits; None where it
            has none. Reported, never decided on.
    """

    value: float
    n_queries: int
    watermark_rate: float | None = None
    cosines: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    evidence: Significance | None = None
    published_log2_pvalue: float | None = None


@dataclass(frozen=True)
class Watermarked:
    """What marking returns."""

    encoder: Encoder
    key: Key
    history: History


class Scheme(ABC):
    """A frozen dataclass of hyperparameters; data and encoder come at call time."""

    name: ClassVar[str]

    @abstractmethod
    def watermark(
        self,
        clean: Encoder,
        data: Data,
        *,
        secret: Secret,
        checkpoint: Path | None = None,
        progress: bool = False,
        devices: int = 1,
        nodes: int = 1,
        accelerator: str = "cpu",
        precision: str = "auto",
    ) -> Watermarked:
        """A watermarked copy of `clean` and its key. `clean` is left as it is."""
