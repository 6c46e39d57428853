"""One encoder for many recipients: each one's answers hold the common mark and his own.

A header of the request names the recipient. The server believes it, so it must come from what stands in front of the
server and authenticates callers: that removes the header from whatever callers send, and sets it anew.

The encoder gives each embedding with the functions ψ of the mark, once for a batch. Each item is then marked by the
secrets of the recipient who asked. They are drawn when he is first served, and kept while there is room. His name is
all that is stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslguard.encoders.base import Encoder
from sslguard.errors import EncoderError, KeyFileError, SslguardError, UsageError
from sslguard.schemes.exact.marking import with_functions
from sslguard.schemes.keyfile import RECIPIENTS, StoredKey, read_header
from sslguard.schemes.keyfolder import HEADER
from sslguard.serve.headers import checked_header
from sslguard.serve.heads import check_head
from sslguard.tracing.recipients import checked_name, read_recipients

Numbers = NDArray[np.float32]
logger = logging.getLogger(__name__)
KEPT_BYTES = 1 << 26
"""Bytes of the secrets that are kept."""


class Mark(NamedTuple):
    """What one recipient's answers are marked by.

    Attributes:
        mixtures: (B, K), float32.
        rows: (K, d), float32.
    """

    mixtures: Numbers
    rows: Numbers


class NotServedError(SslguardError):
    """A request that names no recipient who is served.

    Attributes:
        status: HTTP status that says why.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Recipients:
    """The recipients of a key, whose answers one encoder marks.

    Attributes:
        encoder: Gives each embedding with its functions ψ, (n, d + B).
        header: Name of the header that names the recipient.
        n_drawn: How often secrets of a recipient were drawn so far.
    """

    def __init__(self, encoder: Encoder, stored: StoredKey, header: str) -> None:
        """Read who the recipients are.

        Args:
            encoder: The clean encoder that the key was made for.
            stored: A key of the scheme exact, with its folder.
            header: Name of the header.

        Raises:
            UsageError: The key is of another scheme or of another encoder, or the header cannot have this name.
            KeyFileError: The list of recipients is damaged.
        """
        self.header, self._key = checked_header(header), check_head(encoder, stored.key)
        if stored.folder is None:
            raise UsageError("this key has no folder, where the list of recipients would stand: save it first")
        self._folder = stored.folder
        self.encoder, self._dim = with_functions(encoder, self._key.bank), encoder.dim
        self._id, self.n_drawn = stored.owner.public, 0
        self._kept: OrderedDict[tuple[str, int], Mark] = OrderedDict()
        self._seen, self._rotations = self._state(), self._read()
        self._damaged: object = None
        self._reading, self._drawing = asyncio.Lock(), asyncio.Lock()

    @property
    def n_served(self) -> int:
        """Number of recipients who are served."""
        return sum(rotation is not None for rotation in self._rotations.values())

    async def asked_by(self, headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, int]:
        """Return who sends a request, and the number of his secret.

        The list is read again if it has changed since, and the request waits for that.

        Args:
            headers: Of the request, as they came.

        Raises:
            NotServedError: The header is missing, repeated or no name, or names nobody who is served; or the list
                cannot be read.
        """
        name = self._name([value for key, value in headers if key.lower() == self.header.lower().encode()])
        await self._refreshed()
        rotation = self._rotations.get(name)
        if rotation is None:
            raise NotServedError(403, f"the header {self.header} names nobody who is served: unknown, or revoked")
        return name, rotation

    async def mark(self, name: str, rotation: int) -> Mark:
        """Return what a recipient's answers are marked by. It is drawn in a thread unless it is kept."""
        asked = name, rotation
        if asked not in self._kept:
            async with self._drawing:
                if asked not in self._kept:
                    self._keep(asked, await asyncio.get_running_loop().run_in_executor(None, self._drawn, *asked))
        self._kept.move_to_end(asked)
        return self._kept[asked]

    def marked(self, answers: NDArray[np.floating], marks: Sequence[Mark]) -> Numbers:
        """Return marked answers, (n, d) float32.

        Args:
            answers: Of `encoder`, (n, d + B).
            marks: Each item's.

        Raises:
            EncoderError: There are more or fewer marks than items.
        """
        if len(marks) != len(answers):
            raise EncoderError("an item has no recipient whose mark it could be given, so nothing is answered")
        functions = answers[:, self._dim :]
        found = np.array(answers[:, : self._dim], np.float32)
        places: dict[int, list[int]] = {}
        for place, mark in enumerate(marks):
            places.setdefault(id(mark), []).append(place)
        for some in places.values():
            mark = marks[some[0]]
            found[some] += functions[some] @ mark.mixtures @ mark.rows
        return found

    def _drawn(self, name: str, rotation: int) -> Mark:
        mixtures, rows = self._key.handed_to(self._key.recipient(name, rotation))
        return Mark(mixtures.astype(np.float32), rows.astype(np.float32))

    def _keep(self, asked: tuple[str, int], mark: Mark) -> None:
        """Keep a mark, and give up those that were longest not asked for."""
        self._kept[asked] = mark
        self.n_drawn += 1
        while len(self._kept) > max(1, KEPT_BYTES // (mark.mixtures.nbytes + mark.rows.nbytes)):
            self._kept.popitem(last=False)

    def _name(self, given: list[bytes]) -> str:
        if len(given) != 1:
            many = "came more than once" if given else "is missing"
            raise NotServedError(400, f"the header {self.header} {many}: it must name one recipient")
        try:
            return checked_name(given[0].decode())
        except (UnicodeDecodeError, UsageError):
            raise NotServedError(
                400, f"the header {self.header} must hold a recipient's name in UTF-8, of 1 to 128 printable characters"
            ) from None

    async def _refreshed(self) -> None:
        """Read the list again if its file, or the key's, has changed."""
        if self._state() == self._seen:
            return
        async with self._reading:
            now = self._state()
            if now not in (self._seen, self._damaged):
                try:
                    self._rotations = await asyncio.get_running_loop().run_in_executor(None, self._read)
                    self._seen = now
                except SslguardError as error:
                    logger.warning("the list of recipients cannot be read: %s", error)
                    self._damaged = now
            if now != self._seen:
                raise NotServedError(503, "the list of recipients cannot be read: nobody is served until it is mended")

    def _state(self) -> object:
        """Return what changes whenever the list, or the key beside it, is written anew."""
        return [_state(self._folder / name) for name in (RECIPIENTS, HEADER)]

    def _read(self) -> dict[str, int | None]:
        """Return the secret in use of each name; None of one who was revoked."""
        if read_header(self._folder).get("id") != self._id:
            raise KeyFileError(f"{self._folder} holds another key by now: start the server again")
        return {one.name: one.rotation if one.revoked is None else None for one in read_recipients(self._folder)}


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
