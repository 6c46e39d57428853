"""Suspects that run here: an encoder's files, or any object that embeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Batch
from sslguard.encoders.base import Embedder
from sslguard.encoders.load import load_encoder
from sslguard.errors import EncoderError, SslguardError, SuspectError


class LocalSuspect:
    """Any Embedder, under a name. It answers every query or fails.

    Attributes:
        embedder: Embedder that answers.
        name: Name of the suspect in reports.
        n_missing: Always 0.
    """

    n_missing = 0

    def __init__(self, embedder: Embedder, name: str) -> None:
        self.embedder, self.name = embedder, name

    def embed(self, batch: Batch, /) -> NDArray[np.floating]:
        """Return the embedder's answers, unchecked: see `checked` and `Counted`.

        Raises:
            SuspectError: The embedder failed.
            UsageError: The items are not what it takes, such as texts for an image encoder.
        """
        try:
            return self.embedder.embed(batch)
        except SslguardError:
            raise
        # Foreign code may raise anything; all of it counts as a failure of the suspect.
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise SuspectError(
                f"{self.name} failed on a batch of {len(batch)}: {type(error).__name__}: {reason:.200}"
            ) from error

    def finish(self) -> None:
        """Do nothing: no query is left over."""


def load_local(spec: str | Path) -> LocalSuspect:
    """Return the suspect that an encoder specification names.

    Raises:
        UsageError: `spec` names no encoder.
        SuspectError: Its files are missing or damaged, or have the wrong shape.
    """
    try:
        return LocalSuspect(load_encoder(spec), str(spec))
    except EncoderError as error:
        raise SuspectError(f"the suspect {spec!s:.200} cannot be loaded: {error}") from error
