"""The four kinds of attack, sorted by what the attacker can see.

========  ===========================  ======================================================
kind      the attacker sees            the attack returns
========  ===========================  ======================================================
Stealing  the victim's answers         a new encoder, trained by the attacker
Removal   the victim's weights         a changed copy of the encoder
Wrapping  nothing                      the victim, with changed queries or changed answers
Mapping   answers to the thief's data  the victim, with answers changed by a fitted function
========  ===========================  ======================================================

Each attack is a frozen dataclass. Its settings are JSON values, other dataclasses or schemes, so that `registry` can
build it from a table and write it back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, TypeAlias

from sslguard.data.base import Data
from sslguard.encoders.base import Embedder, Encoder
from sslguard.encoders.wrapped import Wrapped
from sslguard.settings import Checked

Needs = Literal["items", "labels", "nothing"]
"""What an attack's data must hold: items, items with labels, or nothing at all."""


class Stealing(Checked, ABC):
    """Attack that trains a surrogate on a victim's answers and sees nothing else of it."""

    needs: ClassVar[Needs] = "items"

    @abstractmethod
    def __call__(self, victim: Embedder, queries: Data, *, seed: int, **loop: Any) -> Encoder:
        """Train a surrogate of `victim`.

        Args:
            victim: Embedder to steal. Only `embed` is called.
            queries: Items that the victim is asked about.
            seed: Seed of all randomness, at least 0.
            loop: Settings passed on to `training.base.Loop`, such as `devices`.

        Returns:
            The surrogate. Its record holds the number of queries and the seconds that training took.
        """


class Removal(Checked, ABC):
    """Attack that changes a copy of the victim's weights."""

    needs: ClassVar[Needs] = "items"

    @abstractmethod
    def __call__(self, victim: Encoder, data: Data, *, seed: int, **loop: Any) -> Encoder:
        """Return a changed copy of `victim`.

        Args:
            victim: Encoder to attack. It is left unchanged.
            data: Items of the attacker's own. Attacks whose `needs` is "nothing" ignore them.
            seed: Seed of all randomness, at least 0.
            loop: Settings passed on to `training.base.Loop` by attacks that train.
        """


class Wrapping(Checked, ABC):
    """Attack that changes queries on their way to the victim or answers on their way back, without weights or data."""

    needs: ClassVar[Needs] = "nothing"

    @abstractmethod
    def __call__(self, victim: Embedder) -> Wrapped:
        """Return an Embedder that asks `victim` and changes queries or answers. `victim` is left unchanged."""


class Mapping(Checked, ABC):
    """Attack that changes answers by a function fitted to the victim's answers to the attacker's own items."""

    needs: ClassVar[Needs] = "items"

    @abstractmethod
    def __call__(self, victim: Embedder, data: Data) -> Wrapped:
        """Fit the function on `data` and return `victim` with changed answers. `victim` is left unchanged.

        Args:
            victim: Embedder to attack.
            data: Items of the attacker's own.

        Raises:
            DataError: The function cannot be fitted to these items.
            UsageError: The function cannot be fitted to this victim or its answers.
        """


Attack: TypeAlias = Stealing | Removal | Wrapping | Mapping
