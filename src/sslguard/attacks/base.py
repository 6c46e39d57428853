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
from typing import Any, ClassVar, Literal, TypeAlias

from sslguard.data.base import Data
from sslguard.encoders.base import Embedder, Encoder
from sslguard.encoders.wrapped import Wrapped

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
