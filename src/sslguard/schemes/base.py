"""What a watermarking scheme is: it turns a clean encoder into a watermarked one and a key that scores answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sslguard.errors import UsageError
from sslguard.lazy import found_at
from sslguard.settings import Checked

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from sslguard.crypto.secrets import Secret
    from sslguard.data.base import Batch, Data
    from sslguard.encoders.base import Embedder, Encoder
    from sslguard.schemes.exact.taken import Taken
    from sslguard.stats.significance import Significance
    from sslguard.training.base import History


class Key(ABC):
    """What the owner keeps: it says what to ask and scores the answers. It never holds a suspect.

    Attributes:
        scheme: Its scheme's name.
        needs_controls: Whether a score is ranked among those of known innocents; else it brings its p-value along
            (`Score.evidence`). `verification.nulls.null_of` makes the null of it.
        statistic_name: What `Score.value` is, for people.
    """

    scheme: ClassVar[str]
    needs_controls: ClassVar[bool] = True
    statistic_name: ClassVar[str] = "statistic"

    @property
    @abstractmethod
    def n_queries(self) -> int:
        """How many queries a verification asks, at the least."""

    def asks(self, n_items: int) -> int:  # noqa: ARG002
        """Return how many queries a verification asks that draws from a data set of so many items."""
        return self.n_queries

    def stages(self, n_items: int) -> tuple[int, ...]:
        """Return the numbers of queries after which a verification may stop early, increasing; the last is `asks`."""
        return (self.asks(n_items),)

    @property
    def pool(self) -> str:
        """Data that the secrets are bound to, as `data.pool.pool_of` gives them; "" where there are none."""
        return ""

    @abstractmethod
    def queries(self, data: Data) -> Iterator[Batch]:
        """Yield what to ask, in order: a function of the key and `data` alone."""

    @abstractmethod
    def statistic(self, answers: Iterable[NDArray[np.floating]], data: Data) -> Score:
        """Return what the answers are worth before any null.

        Args:
            answers: (n, m), batch by batch in the order of the queries.
            data: What the queries were drawn from.
        """

    def staged_queries(self, data: Data) -> Iterator[Batch]:
        """Yield what `queries` does, in batches none of which goes beyond one of `stages`."""
        return self.queries(data)

    def staged(self, answers: Iterable[NDArray[np.floating]], data: Data, n: int) -> Score:  # noqa: ARG002
        """Return what `statistic` does of the answers to the first n queries alone, n being one of `stages`.

        It is not corrected for the other stages.
        """
        return self.statistic(answers, data)

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON fields and tensors that `from_parts` rebuilds the key from, secrets included.

        Raises:
            UsageError: Keys of this scheme are not kept, which is the default.
        """
        raise UsageError(f"a key of {self.scheme} is for benchmarks and is not kept in files: protect again")

    @classmethod
    def from_parts(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> Key:  # noqa: ARG003
        """Return the key of parts that `to_parts` gave. Raise KeyFileError for parts that do not fit."""
        raise UsageError(f"a key of {cls.scheme} is for benchmarks and is not kept in files: protect again")


@dataclass(frozen=True)
class Score:
    """A statistic over answers, for ranking, and what it stands on.

    Attributes:
        value: The number that is ranked; larger speaks for the claim.
        n_queries: Answers that went into it, missing ones included.
        watermark_rate: Share of answers with cosine above ½ to the secret vector, in [0, 1]; None in a scheme that has
            no such vector.
        cosines: Each answer's cosine, shape (n,); of no length there.
        evidence: The p-value, of a scheme whose null is exact. A rank by `value` may be reported beside it, and decides
            nothing.
        published_log2_pvalue: Base-2 logarithm of what a peer's paper takes for its p-value, in bits; None where it
            has none. Reported, never decided on.
    """

    value: float
    n_queries: int
    watermark_rate: float | None = None
    cosines: NDArray[np.float64] = field(default_factory=lambda: found_at("numpy:empty")(0))
    evidence: Significance | None = None
    published_log2_pvalue: float | None = None


@dataclass(frozen=True)
class Watermarked:
    """What a scheme makes of a clean encoder.

    Attributes:
        embedder: What is served in its place: an Encoder where the mark lies in the weights, or where nothing is
            injected.
        key: The owner's.
        history: Losses of the training; empty where nothing was trained.
        taken: Whether the mark took, of a scheme that measures it.
    """

    embedder: Embedder
    key: Key
    history: History = field(default_factory=lambda: found_at("sslguard.training.base:History")())
    taken: Taken | None = None

    @property
    def encoder(self) -> Encoder:
        """Return what is served, as an Encoder.

        Raises:
            UsageError: The mark is put on answers, so that there are no marked weights.
        """
        from sslguard.encoders.base import Encoder

        if not isinstance(self.embedder, Encoder):
            raise UsageError(f"the scheme {self.key.scheme} marks answers: it leaves no encoder to keep")
        return self.embedder


class Scheme(Checked, ABC):
    """A frozen dataclass of hyperparameters; data and encoder come at call time.

    Attributes:
        name: What registry, keys and records call the scheme.
        key_home: Where the class of its keys is found, "module:Class", if they are kept in files; "" if they are made
            again from the secret.
        injects: Whether marking changes what is served. Where it does not, everything that comes of the clean encoder
            is what is claimed.
        saw_clean: Whether the clean encoder took part in making the key, so that it cannot be a control of it.
        fresh_secrets: Whether every innocent is tested under a secret of its own. An exact p-value is uniform over
            secrets: those of many innocents under one key would share its draw, and their rate would be that key's.
            Other nulls rank the key's own suspects among its own innocents.
    """

    name: ClassVar[str]
    key_home: ClassVar[str] = ""
    injects: ClassVar[bool] = True
    saw_clean: ClassVar[bool] = False
    fresh_secrets: ClassVar[bool] = False

    @property
    def on_answers(self) -> bool:
        """Return whether the mark is put on answers, so that whoever holds the weights cuts it off."""
        return False

    def bound_to(self, pool: str) -> Self:  # noqa: ARG002
        """Return the scheme with its secrets bound to data, as `data.pool.pool_of` gives them.

        Raises:
            UsageError: Keys of this scheme ask about no data, or are not kept.
        """
        raise UsageError(f"keys of the scheme {self.name} are bound to no data: leave the pool out")

    @abstractmethod
    def watermark(
        self, clean: Encoder, data: Data, *, secret: Secret, checkpoint: Path | None = None, **loop: Any
    ) -> Watermarked:
        """Return what is served in place of `clean`, and its key: the same for the same secret.

        Args:
            clean: F, which is left as it is.
            data: Items of the owner's to mark with.
            secret: The master secret.
            checkpoint: File that a killed training resumes from, and a finished one is read from.
            loop: What `training.base.Loop` takes of progress, devices and precision.

        Raises:
            UsageError: Encoder or data are not what this scheme can mark.
        """
