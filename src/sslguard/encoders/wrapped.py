"""An embedder behind something that changes its queries or answers, and what an embedder answers as rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Batch
from sslguard.encoders.base import Embedder, Suspect
from sslguard.errors import EncoderError, SslguardError, SuspectError, UsageError, first_line


@runtime_checkable
class _Named(Protocol):
    name: str


@runtime_checkable
class _FromSource(Protocol):
    source: str


class LocalSuspect:
    """Any Embedder, as a suspect: it answers every query or fails, and need not be told the end.

    Attributes:
        embedder: Embedder that answers.
        name: Name of the suspect in reports.
        n_missing: Always 0.
    """

    n_missing = 0

    def __init__(self, embedder: Embedder, name: str) -> None:
        self.embedder, self.name = embedder, name

    def embed(self, batch: Batch, /) -> NDArray[np.floating]:
        """Return the embedder's answers, unchecked.

        Raises:
            SuspectError: The embedder failed.
            UsageError: The items are not what it takes, such as texts for an image encoder.
        """
        try:
            return self.embedder.embed(batch)
        except SslguardError:
            raise
        except Exception as error:  # foreign code may raise anything
            said = f"{type(error).__name__}: {first_line(error):.200}"
            raise SuspectError(f"{self.name} failed on a batch of {len(batch)}: {said}") from error

    def finish(self) -> None:
        """Do nothing: no query is left over."""


def as_suspect(embedder: Embedder) -> Suspect:
    """Return `embedder` itself if it is a suspect, else a suspect around it.

    It is then called by its `name`, its `source` or its type, whichever it has first.

    Raises:
        UsageError: It has no method `embed`.
    """
    if not isinstance(embedder, Embedder):
        raise UsageError(f"a suspect needs a method embed(batch), and {type(embedder).__name__} has none")
    if isinstance(embedder, Suspect):
        return embedder
    if isinstance(embedder, _Named):
        return LocalSuspect(embedder, str(embedder.name))
    return LocalSuspect(embedder, source_of(embedder))


def source_of(embedder: Embedder) -> str:
    """Return the `source` of an embedder, or the name of its type if it has none, for records."""
    return str(embedder.source) if isinstance(embedder, _FromSource) else type(embedder).__name__


class Wrapped:
    """A victim behind a wrapping: an Embedder, and a suspect as much as the victim is one.

    Attributes:
        victim: who is asked.
        source, name: the victim's, and what stands before or behind it: `said`, or the noise's std and seed.
        record: the wrapping and its settings, JSON values only.
    """

    def __init__(
        self,
        victim: Embedder,
        answer: Callable[[Batch], NDArray[np.floating]],
        title: str,
        recipe: dict[str, Any],
        said: str | None = None,
        width: int | None = None,
    ) -> None:
        self.victim, self._answer, self._width = victim, answer, width
        self._suspect = as_suspect(victim)
        source = victim.source if isinstance(victim, _FromSource) else self._suspect.name
        said = said or f"{title} {recipe['std']:g} (seed {recipe['seed']})"
        self.source = f"{source}, {said}"
        self.name = f"{self._suspect.name}, {said}"
        self.record = {"made_by": title, "from": source, "recipe": recipe}

    @property
    def dim(self) -> int:
        """Width of an answer, where the wrapping or the victim says it; else AttributeError."""
        return self._width or self.victim.dim  # type: ignore[attr-defined]

    @property
    def n_missing(self) -> int:
        """Queries so far that the victim left unanswered."""
        return self._suspect.n_missing

    def embed(self, batch: Batch, /) -> NDArray[np.floating]:
        """Return the answers to a batch, (n, m)."""
        return self._answer(batch)

    def finish(self) -> None:
        """Tell the victim that no query will follow."""
        self._suspect.finish()


def rows(victim: Embedder, batch: Batch) -> NDArray[np.floating]:
    """Return the answers of `victim`, (n, m). Raise EncoderError where they are not one row an item."""
    answers = np.asarray(victim.embed(batch))
    if answers.ndim != 2 or len(answers) != len(batch):
        raise EncoderError(f"{len(batch)} items were answered with an array of shape {answers.shape}")
    return answers
