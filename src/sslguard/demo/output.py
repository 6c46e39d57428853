"""A report on disk: `report.html`, `result.json` and `result.png`, each whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from sslguard.demo import figures, page
from sslguard.demo.result import FORMAT, ReportData
from sslguard.errors import OutputError
from sslguard.files import write_atomic
from sslguard.report.html import is_page

PAGE, RESULT, PICTURE = "report.html", "result.json", "result.png"


def check_report_folder(folder: Path) -> None:
    """Make `folder` and find out, before any work, whether a report can be written there.

    Raises:
        OutputError: It is no folder, cannot be written, or holds a file of a report's name that no report is.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Rights alone do not tell: the file system may be read-only, or full.
        trial = folder / f".{secrets.token_hex(4)}.partial"
        try:
            trial.write_bytes(b"sslguard")
        finally:
            trial.unlink(missing_ok=True)
    except FileExistsError as error:
        raise OutputError(f"{folder} is there and is not a folder: choose another name") from error
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
    for name, ours in ((PAGE, is_page), (RESULT, _is_result), (PICTURE, _is_picture)):
        path = folder / name
        if os.path.lexists(path) and not (path.is_file() and ours(path)):
            raise OutputError(f"{path} is there and is not sslguard's, and is not overwritten: choose another folder")


def write_report(data: ReportData, folder: Path, *, extra: dict[str, Any] | None = None) -> dict[str, Path]:
    """Render and write the three files, the page last. `extra` joins the figures of `result.json`.

    Returns:
        "page", "result" and "picture" → where it stands.

    Raises:
        OutputError: A file cannot be written; those of an earlier report are left as they were.
    """
    result = json.dumps({**data.to_json(), **(extra or {})}, indent=1, sort_keys=True, allow_nan=False)
    contents = {
        RESULT: result.encode() + b"\n",
        PICTURE: figures.summary_png(data),
        PAGE: page.render_page(data).encode(),
    }
    for name, content in contents.items():
        write_atomic(folder / name, content)
    return {"page": folder / PAGE, "result": folder / RESULT, "picture": folder / PICTURE}


def _is_result(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _is_picture(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get("Software") == "sslguard"
    except (OSError, ValueError, Image.DecompressionBombError):
        return False
