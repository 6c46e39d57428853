"""torchvision's data set classes, called so that their failures are one sentence and stdout stays clean."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from sslguard.data.places import data_root
from sslguard.errors import DataError


def from_torchvision(spec: str, kind: str, root: Path, wanted: str, **arguments: Any) -> Any:
    """Return `torchvision.datasets.KIND(root, **arguments)`, which checks the published MD5 sums and may download.

    Args:
        spec: what the user asked for.
        kind: name of the class in torchvision.datasets.
        root: the folder given to it.
        wanted: which files in which folder would make it work, for the message.
        **arguments: what the class takes besides its root.

    Raises:
        DataError: anything went wrong; the message says where to put the files.
    """
    from torchvision import datasets

    try:
        with contextlib.redirect_stdout(sys.stderr):
            return getattr(datasets, kind)(str(root), **arguments)
    except Exception as error:  # sockets, archives and file formats fail each in their own way
        # torchvision's advice names an argument that our callers do not have.
        reason = " ".join(str(error).split()).partition(". You can use download")[0] or type(error).__name__
        what = "downloaded" if arguments.get("download") else "read"
        raise DataError(
            f"{spec} could not be {what} through torchvision ({reason}): put {wanted} "
            f"(SSLGUARD_DATA chooses another root than {data_root()})"
        ) from error
