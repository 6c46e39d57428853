"""HTML pages of one file each, from one base template: light, dark and on paper, nothing loaded from anywhere.

A page is a template of this package that extends "report/base.html.j2" and may use the macros of
"report/parts.html.j2". Every text goes through the templates' escaping, because names may come from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslguard.report import text

if TYPE_CHECKING:
    from jinja2 import Environment

GENERATOR = '<meta name="generator" content="sslguard">'
_HEAD = 4096  # bytes of a page within which it says who made it


def render(template: str, **context: Any) -> str:
    """Return a page, HTML5.

    Args:
        template: Its name in the package, such as "claims/page.html.j2".
        context: What the template shows.
    """
    return _environment().get_template(template).render(**context)


def is_page(path: Path) -> bool:
    """Return whether the file at `path` begins as the pages of `render` do.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(_HEAD)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=PackageLoader("sslguard", ""),
    )
    for style in (_line, text.printable, text.probability, text.bits, text.percent, text.fixed):
        made.filters[style.__name__.strip("_")] = style
    script = (files("sslguard.report") / "search.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    known: dict[str, Any] = made.globals
    known.update(generator=Markup(GENERATOR), search_script=Markup(script), search_digest=digest)  # noqa: S704 - ours
    return made


def _line(value: object, limit: int = 120) -> str:
    """Return one clean line whose units stay with their numbers; markup that a template made passes as it is."""
    from markupsafe import Markup

    return value if isinstance(value, Markup) else re.sub(" (?=[%†±])", "\u00a0", text.line(value, limit))
