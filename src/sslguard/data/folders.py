"""Pictures as files in a folder, decoded when a batch is taken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sslguard.data.base import Batch, Data, Extent, as_batch
from sslguard.errors import DataError

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".avif"),
    *(".bmp", ".ppm", ".pgm", ".pnm", ".tif", ".tiff"),
)
_UNREAD = (".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".tga", ".ico", ".dng", ".cr2", ".nef", ".raw")
"""Endings of pictures that are not read: leaving them out without a word would mislead."""
MAX_PIXELS = 1 << 26  # of one picture: 200 MB in colour
# Pillow guesses by content, and some of its formats run other programs: only these may be guessed.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "PPM", "BMP", "TIFF")
_SIXTEEN_BITS = ("PNG", "PPM")  # where Pillow opens grey of 16 bits as 32-bit numbers
_GREY_MODES = ("1", "L", "LA", "La")


class ImageFiles(Data):
    """Picture files by name. All that is held in memory is the list of names.

    Args:
        spec: the text that opens it again.
        folder: what the names are relative to.
        names: the files, in order.
        labels: (len(names),), or None.
        classes: name of each class, in the order of the labels.
        origin: what overlaps are decided on, the resolved folder by default.
    """

    def __init__(
        self,
        spec: str,
        folder: Path,
        names: Sequence[str],
        labels: NDArray[np.int64] | None,
        *,
        classes: Sequence[str] = (),
        origin: str | None = None,
    ) -> None:
        """Keep the names; nothing is read."""
        self.spec, self.folder, self.names, self.classes = spec, folder, list(names), tuple(classes)
        self.labels = labels
        self._origin = origin or str(folder.resolve())

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.names)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> Batch:
        """Return uint8 (n, C, H, W) if all have one shape, else a list of (C, H, W).

        Raises:
            DataError: a file is missing or damaged; the message names it.
        """
        return as_batch([decode(self.folder / self.names[i]) for i in self.positions(indices)])

    def extent_of(self, start: int, stop: int) -> Extent:
        """Return which items of that origin the items start ≤ i < stop are made from."""
        return Extent(self._origin, start, stop)


def open_folder(
    spec: str, folder: Path, *, origin: str | None = None, extensions: tuple[str, ...] = EXTENSIONS
) -> ImageFiles:
    """Open a folder of pictures, or of one folder a class, as torchvision's ImageFolder has it.

    Order: pictures by name; with classes, classes by name, then folders and pictures by name. Hidden entries
    are left out; links to folders are followed for the classes themselves and not below them.

    Raises:
        DataError: there is nothing to read, pictures lie beside class folders, a class is empty, or pictures are of a
            kind that is not read.
    """
    try:
        entries = sorted((entry for entry in os.scandir(folder) if entry.name[0] != "."), key=lambda e: e.name)
        classes = [entry.name for entry in entries if entry.is_dir()]
        names = [entry.name for entry in entries if _is_picture(entry.name, extensions) and entry.is_file()]
        if names and classes:
            raise DataError(
                f"{folder} holds pictures ({names[0]} …) beside folders ({classes[0]} …): "
                "keep pictures directly in it, or one folder a class"
            )
        if not names and not classes:
            raise DataError(f"{folder} holds no pictures ({', '.join(extensions)}) and no folders of them")
        if unread := [entry.name for entry in entries if _is_picture(entry.name, _UNREAD)]:
            raise _unread_error(folder / unread[0])
        if names:
            return ImageFiles(spec, folder, names, None, origin=origin)
        files = [_class_files(folder, name, extensions) for name in classes]
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be listed: {error.strerror}") from error
    labels = np.repeat(np.arange(len(classes)), [len(part) for part in files]).astype(np.int64)
    names = [name for part in files for name in part]
    return ImageFiles(spec, folder, names, labels, classes=classes, origin=origin)


def decode(path: Path | IO[bytes], name: str | None = None) -> Tensor:
    """Read a picture file as uint8 (C, H, W): one channel for grey files, three for all others.

    Transparency is dropped, 16-bit grey is scaled to 8 bits, of several frames the first counts, and a
    camera's orientation tag is ignored, as torchvision ignores it.

    Args:
        path: the file, or its open content.
        name: what to call it in messages; the path by default.

    Raises:
        DataError: not a picture, damaged, of more than `MAX_PIXELS`, or of a depth that has no scale.
    """
    shown = name or str(path)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{shown} has {image.width}×{image.height} pixels, above the limit of {MAX_PIXELS} in all"
                )
            return _pixels(shown, image)
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on a damaged file
        reason = "damaged, or not a picture" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{shown} cannot be read as a picture: {reason}") from error


def _pixels(path: str, image: Image.Image) -> Tensor:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS):
        wide = np.asarray(image).astype(np.uint32)
        return torch.from_numpy(((wide * 255 + 32767) // 65535).astype(np.uint8))[None]
    if image.mode in ("I", "F"):
        raise DataError(f"{path} holds 32-bit values, whose scale is unknown: save it with 8 or 16 bits")
    if image.mode in _GREY_MODES:
        return torch.from_numpy(np.array(image.convert("L")))[None]
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def _is_picture(name: str, extensions: tuple[str, ...]) -> bool:
    return name.lower().endswith(extensions)


def _class_files(folder: Path, name: str, extensions: tuple[str, ...]) -> list[str]:
    """Return the pictures at any depth below one class folder, relative to `folder`."""
    found: list[str] = []
    for parent, _, files in sorted(os.walk(folder / name, onerror=_raise)):
        at = Path(parent).relative_to(folder)
        if unread := [file for file in files if file[0] != "." and _is_picture(file, _UNREAD)]:
            raise _unread_error(folder / at / min(unread))
        found += [str(at / file) for file in sorted(files) if file[0] != "." and _is_picture(file, extensions)]
    if not found:
        raise DataError(f"{folder / name} is a class folder without pictures ({', '.join(extensions)})")
    return found


def _unread_error(path: Path) -> DataError:
    return DataError(f"{path} is a picture of a kind that is not read: convert it to one of {', '.join(EXTENSIONS)}")


def _raise(error: OSError) -> None:
    raise error
