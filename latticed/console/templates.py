"""HTML of the console: Jinja2 with every text escaped twice, for the eye and for HTML.

Whatever a template puts out passes `safe`: what cannot be seen (controls, bidi overrides, invisible letters) is written
as its code point, and text of more than MOST characters is cut. Then autoescape makes it HTML. A template cannot forget
either, and a name that it misspells is an error.
"""

from __future__ import annotations

import importlib.resources
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, FunctionLoader, StrictUndefined, TemplateError, Undefined
from markupsafe import Markup

from latticed.kit import text

__all__ = ["STATIC", "TemplateError", "environment", "part", "safe", "static"]

MOST: Final = 4_096
"""Characters of one text; a log line or a message may have 64 KiB."""


def environment() -> Environment:
    """The environment of all templates, which are read once."""
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=safe,
        loader=FunctionLoader(_read),
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters["part"] = part
    return made


def _read(name: str) -> str | None:
    found = importlib.resources.files("latticed.console").joinpath("templates", name)
    return found.read_text(encoding="utf-8") if found.is_file() else None


def safe(value: Any) -> Any:
    """What stands for `value` on a page, before it is escaped for HTML."""
    if isinstance(value, Markup | Undefined):
        return value
    if value is None:
        return "-"
    return text.escape(text.clip(str(value), MOST))


def part(value: object) -> str:
    """`value` as one part of a path."""
    return quote(str(value)[:MOST], safe="", errors="replace")


def static(name: str) -> bytes | None:
    """A static file; None for what is none of ours."""
    if name not in STATIC:
        return None
    return importlib.resources.files("latticed.console").joinpath("static", name).read_bytes()


STATIC: Final = {"console.css": "text/css", "live.js": "text/javascript", "icon.svg": "image/svg+xml"}
