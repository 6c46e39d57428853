"""An embedder behind something that changes its queries or answers, and what an embedder answers as rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Batch
from sslguard.encoders.base import Embedder
from sslguard.errors import EncoderError


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
        name, source = (getattr(victim, attribute, None) for attribute in ("name", "source"))
        kind = type(victim).__name__
        said = said or f"{title} {recipe['std']:g} (seed {recipe['seed']})"
        self.source = f"{source or name or kind}, {said}"
        self.name = f"{name or source or kind}, {said}"
        self.record = {"made_by": title, "from": source or name or kind, "recipe": recipe}

    @property
    def dim(self) -> int:
        """Width of an answer, where the wrapping or the victim says it; else AttributeError."""
        return self._width or self.victim.dim  # type: ignore[attr-defined]

    @property
    def n_missing(self) -> int:
        """Queries so far that the victim left unanswered."""
        return int(getattr(self.victim, "n_missing", 0))

    def embed(self, batch: Batch, /) -> NDArray[np.floating]:
        """Return the answers to a batch, (n, m)."""
        return self._answer(batch)

    def finish(self) -> None:
        """Tell a victim that wants to know that no query will follow."""
        finish = getattr(self.victim, "finish", None)
        if callable(finish):
            finish()


def rows(victim: Embedder, batch: Batch) -> NDArray[np.floating]:
    """Return the answers of `victim`, (n, m). Raise EncoderError where they are not one row an item."""
    answers = np.asarray(victim.embed(batch))
    if answers.ndim != 2 or len(answers) != len(batch):
        raise EncoderError(f"{len(batch)} items were answered with an array of shape {answers.shape}")
    return answers
