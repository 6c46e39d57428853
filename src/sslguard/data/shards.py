"""Tar shards as WebDataset has them: pictures or texts that lie in few large files, read where they lie.

Members whose names agree up to the first dot of their last part are one sample, as in `0001.jpg` and `0001.cls`. Its
picture, or its text in `.txt`, is the item; a whole number in `.cls` is its class. A shard is listed once, without
reading what it holds; in memory are 16 bytes and a few numbers a sample. Items are then read by their place, in any
order, so that marking and stealing see shards as they see folders.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Batch, Data, Extent, as_batch
from sslguard.data.folders import EXTENSIONS, decode
from sslguard.errors import DataError, first_line

MAX_ITEM = 1 << 28  # bytes
_MAX_READ = 1 << 20  # bytes of one header
_TEXT, _CLASS = ".txt", ".cls"


@dataclass(frozen=True)
class _Sample:
    """Where an item and its class stand: index of the shard, name, first byte and length."""

    shard: int
    name: str
    start: int
    size: int
    label: int | None


class Shards(Data):
    """The samples of tar files, in the order of the files and of their members.

    Args:
        spec: the text that opens it again.
        paths: the tar files.

    Raises:
        DataError: a file is no plain tar, its samples are not all pictures or all texts, or only some have classes.
    """

    def __init__(self, spec: str, paths: Sequence[Path]) -> None:
        """List the members of every file."""
        self.spec, self.paths = spec, list(paths)
        self._samples = [sample for number, path in enumerate(paths) for sample in _samples(number, path)]
        if not self._samples:
            raise DataError(f"{spec} holds no pictures ({', '.join(EXTENSIONS)}) and no texts ({_TEXT})")
        self.takes_texts = self._samples[0].name.endswith(_TEXT)
        if any(sample.name.endswith(_TEXT) != self.takes_texts for sample in self._samples):
            raise DataError(f"{spec} holds pictures and texts: keep them in shards of their own")
        labels = [sample.label for sample in self._samples if sample.label is not None]
        if labels and len(labels) != len(self._samples):
            raise DataError(f"{spec}: either all samples have a class ({_CLASS}) or none has")
        self.labels = np.array(labels, np.int64) if labels else None

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._samples)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Batch:
        """Return the items at `indices`: uint8 pictures as `ImageFiles` gives them, or texts.

        Raises:
            DataError: a shard is gone or damaged; the message names it and the member.
        """
        contents = [(self._samples[i], self._content(self._samples[i])) for i in self.positions(indices)]
        if self.takes_texts:
            return [self._decoded(sample, content) for sample, content in contents]
        return as_batch([decode(io.BytesIO(content), self._shown(sample)) for sample, content in contents])

    def extent_of(self, start: int, stop: int) -> Extent:
        """Return which items of that origin the items start ≤ i < stop are made from."""
        return Extent("\n".join(str(path.resolve()) for path in self.paths), start, stop)

    def _shown(self, sample: _Sample) -> str:
        return f"{self.paths[sample.shard]}, member {sample.name}"

    def _content(self, sample: _Sample) -> bytes:
        try:
            with self.paths[sample.shard].open("rb") as file:
                file.seek(sample.start)
                content = file.read(sample.size)
        except OSError as error:
            raise DataError(f"{self._shown(sample)} cannot be read: {error.strerror}") from error
        if len(content) != sample.size:
            raise DataError(f"{self._shown(sample)} was cut off")
        return content

    def _decoded(self, sample: _Sample, content: bytes) -> str:
        try:
            return content.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{self._shown(sample)} is not UTF-8") from error


class _Bounded(io.RawIOBase):
    """A file of which nobody reads much at once: a header may say that a member's name has gigabytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise ValueError(f"a header of {size:,} bytes is longer than the {_MAX_READ:,} that are read")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _samples(shard: int, path: Path) -> Iterator[_Sample]:
    """Yield the samples of one tar file: members that follow one another and share a name up to its first dot."""
    key: str | None = None
    item: tarfile.TarInfo | None = None
    label: int | None = None
    try:
        if not path.is_file():
            raise ValueError("it is not a plain file")  # a pipe would block
        with path.open("rb") as file, tarfile.open(fileobj=cast(IO[bytes], _Bounded(file)), mode="r:") as archive:
            for member in archive:
                if not member.isreg() or Path(member.name).name.startswith("."):
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if f"{folder}/{stem}" != key:
                    if item is not None:
                        yield _Sample(shard, item.name, item.offset_data, item.size, label)
                    key, item, label = f"{folder}/{stem}", None, None
                kind = f".{ending.lower()}"
                if kind == _CLASS:
                    label = _class(path, archive, member)
                elif item is None and (kind == _TEXT or kind.endswith(EXTENSIONS)):
                    if member.size > MAX_ITEM:
                        raise DataError(f"{path}, member {member.name!r:.200}, has more than {MAX_ITEM:,} bytes")
                    item = member
                archive.members.clear()  # type: ignore[attr-defined] # tarfile keeps all it has seen
            if item is not None:
                yield _Sample(shard, item.name, item.offset_data, item.size, label)
    except DataError:
        raise
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read as a plain tar file: {first_line(error)}; unpack .tar.gz to .tar first"
        ) from error


def _class(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = archive.extractfile(member)
    content = b"" if file is None else file.read(32)
    if not re.fullmatch(rb"\s*[0-9]{1,18}\s*", content):
        raise DataError(f"{path}, member {member.name!r:.200}, must hold a whole number, not {content!r:.40}")
    return int(content)
