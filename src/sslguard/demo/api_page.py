"""The demonstration over addresses as one HTML file; every text goes through the template's escaping."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from sslguard import __version__
from sslguard.demo.page import GENERATOR
from sslguard.demo.result import printable

if TYPE_CHECKING:
    from sslguard.demo.over_api import ApiResult


def render_page(result: ApiResult) -> str:
    """The page, HTML5. No address is loaded from anywhere."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["line"] = printable
    template = (files("sslguard.demo") / "api.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(result=result, generator=GENERATOR, version=__version__)
