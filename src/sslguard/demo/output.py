"""Writing of a report: `report.html`, `result.json` and `result.png`. Each file is written whole or not at all."""

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
    """Make a folder and check that a report can be written there. Called before long work.

    Raises:
        OutputError: `folder` is not a folder, cannot be written to, or holds another file under a report's name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Access rights are not enough: the file system may be read-only, or full.
        trial = folder / f".{secrets.token_hex(4)}.partial"
        try:
            trial.write_bytes(b"sslguard")
        finally:
            trial.unlink(missing_ok=True)
    except FileExistsError as error:
        raise OutputError(f"{folder} exists and is not a folder: choose another name") from error
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
    for name, ours in ((PAGE, is_page), (RESULT, _is_result), (PICTURE, _is_picture)):
        path = folder / name
        if os.path.lexists(path) and not (path.is_file() and ours(path)):
            raise OutputError(f"{path} exists and is not sslguard's. It is not overwritten: choose another folder")


def write_report(data: ReportData, folder: Path, *, extra: dict[str, Any] | None = None) -> dict[str, Path]:
    """Render and write the three files, the page last.

    Args:
        data: Content of the report.
        folder: Folder of the report.
        extra: Further fields of `result.json`, JSON values.

    Returns:
        Paths of the files, by "page", "result" and "picture".

    Raises:
        OutputError: A file cannot be written. The file of an earlier report is then left as it was.
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
