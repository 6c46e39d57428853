"""Texts in files: one a line, or one column of a table. Read from the file when a batch is taken.

================  ===========================================================================================
.txt              one text a line
.csv, .tsv        a table whose first record names the columns; quoted as the csv module does
.jsonl, .ndjson   one JSON object a line
.parquet          a table of Apache Parquet
================  ===========================================================================================

Any of them but Parquet may be packed by gzip, as in reviews.csv.gz. The column is the one that the spec names, else
`text`, else the only column of texts. Packed files and Parquet are unpacked into the cache once.

Files are UTF-8; blank lines are left out. Tables and objects may carry a `label`. Where all labels of a file are
whole numbers they are the classes; else each name is a class, in the order of the sorted names, so that files that
are used together must hold the same names.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sslguard.data.base import Data, Extent
from sslguard.data.cache import unpacked_file
from sslguard.data.names import TEXT_FORMS, text_form
from sslguard.errors import DataError, first_line, required_by

MAX_ITEM = 1 << 17  # bytes of one item in its file; the csv module allows as many characters a field
MAX_CLASSES = 1 << 16  # of labels that are names
MAX_UNPACKED = 1 << 36  # bytes
MAX_PACKING = 200  # bytes unpacked for each byte; texts have 3 to 20
_SMALL = 1 << 26  # bytes that any file may unpack to
_NUMBER = re.compile(r"\s*[-+]?[0-9][0-9.,eE+-]*\s*|\s*")
_WHOLE = re.compile(r"-?[0-9]{1,18}")  # fits an int64


class TextFile(Data):
    """The texts of one file. In memory are their places, 16 bytes a text, and their labels.

    Attributes:
        path: the file.
        column: the column that is read; None for plain texts.
        classes: name of each class where labels are names, in the order of the labels; else empty.
    """

    def __init__(self, spec: str, path: Path, *, column: str | None = None, form: str | None = None) -> None:
        """Read the file once, from end to end.

        Args:
            spec: the text that opens it again.
            path: the file.
            column: the column to read; by default `text`, or the only one of texts.
            form: how the file is read, an ending such as ".csv"; by default the file's own.

        Raises:
            DataError: it is of another kind, holds no texts, or an item cannot be read; the message names the line.
            MissingExtraError: Parquet cannot be read without pyarrow.
        """
        self.spec, self.path = spec, path
        self._file, form = _plain_file(path, form, column)
        self.column = None if form == ".txt" else _column(path, self._file, form, column)
        self._read = _READERS[form]
        places, labels = array("q"), _Labels()
        try:
            self._state = _state(self._file)
            with self._file.open("rb") as file:
                lines = _Lines(path, file)
                for item in self._read(lines, self.column or ""):
                    places.extend((item.start, item.stop))
                    if item.label is not None:
                        labels.add(item.label)
                file.seek(0)
                self._head = file.read(lines.head)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        if not places:
            raise DataError(f"{path} holds no texts")
        self._places = np.frombuffer(places, np.int64).reshape(-1, 2)
        self.labels, self.classes = labels.finished(path)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._places)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """Return the texts at `indices`, without what ends their lines.

        Raises:
            DataError: the file was changed since it was opened, or cannot be read.
        """
        places = self._places[self.positions(indices)].tolist()
        try:
            if _state(self._file) != self._state:
                raise DataError(f"{self.path} was changed while it was in use: open it again")
            with self._file.open("rb") as file:
                return [self._text(file, start, stop) for start, stop in places]
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error

    def extent_of(self, start: int, stop: int) -> Extent:
        """Return which items of that origin the items start ≤ i < stop are made from."""
        return Extent(str(self.path.resolve()), start, stop)

    def _text(self, file: BinaryIO, start: int, stop: int) -> str:
        file.seek(start)
        # A table's columns are known by its first record.
        piece = self._head + file.read(stop - start)
        return next(self._read(_Lines(self.path, io.BytesIO(piece)), self.column or "")).text


@dataclass(frozen=True)
class _Item:
    """One text, its label as it is written, and its place in the file: the bytes start ≤ i < stop."""

    text: str
    label: str | None
    start: int
    stop: int


class _Lines(Iterator[str]):
    """The lines of a file, decoded and with their ends.

    Attributes:
        number: lines read so far.
        start, stop: first byte of the present item, and the byte behind the last line read.
        head: length of the record that names a table's columns, bytes from the start of the file.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self.number = self.start = self.stop = self.head = 0

    def begin(self) -> None:
        """Note that the next line begins an item."""
        self.start = self.stop

    def __next__(self) -> str:
        """Return the next line, with its end."""
        line = self._file.readline(MAX_ITEM + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.stop += len(line)
        if self.stop - self.start > MAX_ITEM:
            raise self.error(f"an item must stay below {MAX_ITEM} bytes: split it, or close its quotes")
        try:
            return line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 ({error.reason}): convert the file") from error

    def error(self, reason: str) -> DataError:
        """Return an error that names the present line."""
        return DataError(f"{self._path}, line {self.number}: {reason}")


_Reader: TypeAlias = Callable[[_Lines, str], Iterator[_Item]]
"""Reads the items of a file, from the column of this name."""


@dataclass
class _Labels:
    """Labels as they are met: each name once, and one code an item."""

    names: dict[str, int] = field(default_factory=dict)
    codes: array[int] = field(default_factory=lambda: array("q"))

    def add(self, name: str) -> None:
        self.codes.append(self.names.setdefault(name, len(self.names)))

    def finished(self, path: Path) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
        """Labels int64 (n,), None where there are none, and the names of the classes."""
        if not self.codes:
            return None, ()
        codes = np.frombuffer(self.codes, np.int64)
        if all(_WHOLE.fullmatch(name) for name in self.names):
            return np.array([int(name) for name in self.names], np.int64)[codes], ()
        if len(self.names) > MAX_CLASSES:
            raise DataError(f"{path} has {len(self.names)} different labels, above the limit of {MAX_CLASSES}")
        classes = tuple(sorted(self.names))
        rank = {name: k for k, name in enumerate(classes)}
        return np.array([rank[name] for name in self.names], np.int64)[codes], classes


def _plain(lines: _Lines, column: str) -> Iterator[_Item]:  # noqa: ARG001
    for line in lines:
        if line.strip():
            yield _Item(line.rstrip("\r\n"), None, lines.start, lines.stop)
        lines.begin()


def _objects(lines: _Lines, column: str) -> Iterator[_Item]:
    labelled: bool | None = None
    for line in lines:
        if line.strip():
            fields = _object(lines, line)
            if not isinstance(fields.get(column), str):
                raise lines.error(f"a line must be a JSON object with a string {column!r}")
            if labelled not in (None, "label" in fields):
                raise lines.error("either all lines have a label or none has")
            labelled = "label" in fields
            label = _json_label(lines, fields["label"]) if labelled else None
            yield _Item(fields[column], label, lines.start, lines.stop)
        lines.begin()


def _object(lines: _Lines, line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise lines.error(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise lines.error("a line must be a JSON object, with a string 'text'")
    return fields


def _json_label(lines: _Lines, label: object) -> str:
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise lines.error(f"a label must be a whole number or a name, not {label!r:.80}")
    return str(label)


def _table(lines: _Lines, column: str, *, delimiter: str) -> Iterator[_Item]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    columns: dict[str, int] | None = None
    while (row := _record(lines, reader)) is not None:
        if row and columns is None:
            columns, lines.head = _columns(lines, row), lines.stop
        elif row and columns is not None:
            yield _row(lines, columns, row, column)
        lines.begin()


def _record(lines: _Lines, reader: Any) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise lines.error(f"not a record of a table: {error}; quote fields as the csv module does") from error


def _columns(lines: _Lines, names: list[str]) -> dict[str, int]:
    columns = {name: k for k, name in enumerate(names)}
    if len(columns) != len(names):
        raise lines.error(f"the first record must name each column once, not {names!r:.200}")
    return columns


def _row(lines: _Lines, columns: Mapping[str, int], row: list[str], column: str) -> _Item:
    if len(row) != len(columns):
        raise lines.error(f"a record must have {len(columns)} fields, as many as columns, not {len(row)}")
    label = row[columns["label"]] if "label" in columns else None
    if label == "":
        raise lines.error("a label must be a whole number or a name; this one is empty")
    return _Item(row[columns[column]], label, lines.start, lines.stop)


_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_READERS: Mapping[str, _Reader] = {
    ".txt": _plain,
    **{kind: partial(_table, delimiter=delimiter) for kind, delimiter in _DELIMITERS.items()},
    ".jsonl": _objects,
    ".ndjson": _objects,
}


def _plain_file(path: Path, form: str | None, column: str | None) -> tuple[Path, str]:
    """Return a file that can be read from any place in it, and its form: the file itself, or what was unpacked."""
    packed = path.suffix.lower() == ".gz"
    form = form or text_form(path)
    if form == ".parquet" and not packed:
        return unpacked_file(
            path, f"{column or ''}.jsonl", lambda: _in_bounds(path, _of_parquet(path, column))
        ), ".jsonl"
    if form not in _READERS:
        raise DataError(f"texts are read from {', '.join(TEXT_FORMS)}, not from {path.name!r:.200}")
    return (unpacked_file(path, form, lambda: _of_gzip(path)), form) if packed else (path, form)


def _of_gzip(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) as file:
            yield from _in_bounds(path, iter(lambda: file.read(1 << 20), b""))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {first_line(error)}") from error


def _in_bounds(path: Path, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same pieces, as long as they are no more than a file of texts unpacks to."""
    most, size = min(MAX_UNPACKED, max(_SMALL, MAX_PACKING * path.stat().st_size)), 0
    for piece in pieces:
        size += len(piece)
        if size > most:
            raise DataError(
                f"{path} unpacks to more than {most:,} bytes, {MAX_PACKING} times its own: unpack it yourself"
            )
        yield piece


def _of_parquet(path: Path, column: str | None) -> Iterator[bytes]:
    """Yield the texts and labels of a table as lines of JSON."""
    with required_by("reading Parquet", "data"):
        import pyarrow
        from pyarrow import parquet
    try:
        with parquet.ParquetFile(path) as table:
            schema = table.schema_arrow
        strings = (pyarrow.types.is_string, pyarrow.types.is_large_string)
        texts = [one.name for one in schema if any(is_string(one.type) for is_string in strings)]
        chosen = _chosen_column(path, schema.names, texts, column)
        wanted = [chosen, *(["label"] if "label" in schema.names and chosen != "label" else [])]
        number = 0
        # Dictionaries hold a long value once, so that it is met before it stands in a thousand rows.
        with parquet.ParquetFile(path, read_dictionary=[name for name in wanted if name in texts]) as table:
            for batch in table.iter_batches(columns=wanted, batch_size=1024):
                _check_lengths(path, batch)
                for row in batch.to_pylist():
                    number += 1
                    if not isinstance(row[chosen], str):
                        raise DataError(
                            f"{path}, row {number}: column {chosen!r} holds no text, but {row[chosen]!r:.40}"
                        )
                    line = {"text": row[chosen], **{name: row[name] for name in wanted[1:]}}
                    yield json.dumps(line).encode() + b"\n"
    except DataError:
        raise
    except Exception as error:  # pyarrow's errors on a damaged file have no common class but this
        raise DataError(f"{path} cannot be read as Parquet: {first_line(error)}") from error


def _check_lengths(path: Path, batch: Any) -> None:
    """Raise DataError for a text that is longer than any that is read, before it stands in every row that has it."""
    from pyarrow import compute, types

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if types.is_dictionary(column.type) and len(column.dictionary):
            longest = compute.max(compute.binary_length(column.dictionary)).as_py() or 0
            if longest > MAX_ITEM:
                raise DataError(f"{path}, column {name!r}: an item must stay below {MAX_ITEM} bytes, not {longest:,}")


def _column(path: Path, file: Path, form: str, wanted: str | None) -> str:
    """Return the name of the column that holds the texts, by the first records of a file."""
    if file != path and form == ".jsonl" and path.suffix.lower() != ".gz":
        return "text"  # what `_of_parquet` wrote
    try:
        with file.open("rb") as content:
            lines = _Lines(path, content)
            if form in _DELIMITERS:
                reader = csv.reader(lines, delimiter=_DELIMITERS[form], strict=True)
                names = next(iter(filter(None, iter(lambda: _record(lines, reader), None))), [])
                _columns(lines, names)
                first = _record(lines, reader) or []
                texts = [name for name, value in zip(names, first, strict=False) if not _NUMBER.fullmatch(value)]
            else:
                line = next((line for line in lines if line.strip()), "{}")
                fields = _object(lines, line)
                names, texts = list(fields), [name for name, value in fields.items() if isinstance(value, str)]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return _chosen_column(path, names, texts or names, wanted) if names else "text"


def _chosen_column(path: Path, names: Sequence[str], texts: Sequence[str], wanted: str | None) -> str:
    """Return the column that is wanted, else `text`, else the only one of `texts`."""
    listed = f"{', '.join(map(repr, names))!s:.200}"
    if wanted is not None:
        if wanted not in names:
            raise DataError(f"{path} has no column {wanted!r:.80}; it has {listed}")
        return wanted
    if "text" in names:
        return "text"
    found = [name for name in texts if name != "label"]
    if len(found) != 1:
        raise DataError(
            f"{path} has no column 'text', and not one other column of texts among {listed}: name one, as in "
            f"text:{path.name}#COLUMN"
        )
    return found[0]


def _state(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change: what tells that a file is still the one that was opened."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns
