"""Every scheme behind one interface: protect an encoder, score a suspect, and say which innocent meets which key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sslguard.attacks.registry import SCHEMES, build
from sslguard.attacks.removal import Overwrite
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.base import Embedder, Encoder
from sslguard.errors import UsageError
from sslguard.schemes.base import Key, Scheme
from sslguard.schemes.exact import Exact
from sslguard.schemes.peers.base import Peer, TrainingPeer
from sslguard.schemes.peers.registry import PEERS
from sslguard.schemes.sslguard import SSLGuard

WITHOUT_MARK = frozenset({"dataset-inference", "fingerprint"})
"""Peers that inject nothing."""


@dataclass(frozen=True)
class Protected:
    """What is served in place of a clean encoder, and the owner's key."""

    embedder: Embedder
    key: Key


@dataclass(frozen=True)
class Entrant:
    """A scheme that takes part."""

    scheme: Scheme | Peer

    def protect(
        self, clean: Encoder, data: Data, *, secret: Secret, checkpoint: Path | None = None, **loop: Any
    ) -> Protected:
        """The protected encoder and its key: the same for the same secret.

        Args:
            checkpoint: where a peer that trains keeps what it trained, and finds it.
            loop: what a scheme's training takes.
        """
        if isinstance(self.scheme, Scheme):
            marked = self.scheme.watermark(clean, data, secret=secret, **loop)
            return Protected(marked.encoder, marked.key)
        if isinstance(self.scheme, TrainingPeer):
            peer = self.scheme.protect(clean, data, secret=secret, checkpoint=checkpoint)
        else:
            peer = self.scheme.protect(clean, data, secret=secret)
        return Protected(peer.embedder, peer.key)

    @property
    def injects(self) -> bool:
        """Whether protecting changes what is served; else whatever comes of the clean encoder is what is claimed."""
        return not isinstance(self.scheme, Peer) or self.scheme.name not in WITHOUT_MARK

    @property
    def on_answers(self) -> bool:
        """Whether the mark is put on answers: it goes with an address, and whoever holds the weights cuts it off."""
        return isinstance(self.scheme, Exact) and self.scheme.mode == "head"

    @property
    def saw_clean(self) -> bool:
        """Whether the clean encoder took part in making the key, so that it cannot be a control of it."""
        return isinstance(self.scheme, SSLGuard)

    @property
    def fresh(self) -> bool:
        """Whether every innocent is tested under a secret of its own.

        An exact p-value is uniform over secrets: those of many innocents under one key would share its draw, and
        their rate would be that key's. Other nulls rank the key's own suspects among its own innocents.
        """
        return isinstance(self.scheme, Exact)


def build_scheme(name: str, settings: Mapping[str, Any]) -> Entrant:
    """The scheme or peer called `name`, with these settings over its own.

    Raises:
        UsageError: there is no such scheme or setting, or the scheme refuses a value.
    """
    if name in PEERS:
        try:
            return Entrant(PEERS[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}))
        except TypeError as error:
            raise UsageError(f"{name} does not take {', '.join(settings)}: {error}") from error
    if name not in SCHEMES:
        raise UsageError(f"scheme must be one of {', '.join([*SCHEMES, *PEERS])}, not {name!r:.80}")
    # The registry reads a scheme's table as part of the attack that marks once more.
    return Entrant(cast("Overwrite", build("overwrite", {"scheme": {"scheme": name, **settings}})).scheme)
