"""The four kinds of attack, by what each is given.

========  ==================  ==========================================
kind      sees                leaves
========  ==================  ==========================================
Stealing  answers             an encoder of the thief's own
Removal   weights             a changed copy of the encoder
Wrapping  nothing             the victim behind what changes queries or answers
Mapping   answers to its data the same, fitted to the thief's own items
========  ==================  ==========================================

Each is a frozen dataclass of settings that are JSON values, other dataclasses or schemes: see `registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Embedder, Encoder
from sslguard.errors import EncoderError

Needs = Literal["items", "labels", "nothing"]
"""What the data of an attack must hold, for whoever plans several."""


class Stealing(ABC):
    """Sees nothing of a victim but its answers."""

    needs: ClassVar[Needs] = "items"

    @abstractmethod
    def __call__(self, victim: Embedder, queries: Data, *, seed: int, **loop: Any) -> Encoder:
        """A surrogate of `victim`. Its record counts the queries and the seconds. `loop` is `training.Loop`'s."""


class Removal(ABC):
    """Sees the weights."""

    needs: ClassVar[Needs] = "items"

    @abstractmethod
    def __call__(self, victim: Encoder, data: Data, *, seed: int, **loop: Any) -> Encoder:
        """A changed copy of `victim`. `loop` is what `training.Loop` takes, of attacks that train."""


class Wrapping(ABC):
    """Sees neither weights nor data: it stands between whoever asks and the victim."""

    needs: ClassVar[Needs] = "nothing"

    @abstractmethod
    def __call__(self, victim: Embedder) -> Wrapped:
        """An Embedder that asks `victim` for its answers. `victim` is left as it is."""


class Mapping(ABC):
    """Sees a copy's answers, and items of the thief's own."""

    needs: ClassVar[Needs] = "items"

    @abstractmethod
    def __call__(self, victim: Embedder, data: Data) -> Wrapped:
        """`victim` with answers changed by what was learned from `data`; `victim` is left as it is.

        Raises:
            DataError, UsageError: the items, or the victim's answers to them, do not allow the fit.
        """


Attack: TypeAlias = Stealing | Removal | Wrapping | Mapping


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
        """Answers to a batch, (n, m)."""
        return self._answer(batch)

    def finish(self) -> None:
        """No query will follow: passed on to a victim that wants to know."""
        finish = getattr(self.victim, "finish", None)
        if callable(finish):
            finish()


def rows(victim: Embedder, batch: Batch) -> NDArray[np.floating]:
    """Answers of `victim`, (n, m). Raises EncoderError where they are not one row an item."""
    answers = np.asarray(victim.embed(batch))
    if answers.ndim != 2 or len(answers) != len(batch):
        raise EncoderError(f"{len(batch)} items were answered with an array of shape {answers.shape}")
    return answers
