"""Renders a template for one request: its key-value references are read with host calls of its plugin."""

from __future__ import annotations

import asyncio
import base64
import re
from typing import TYPE_CHECKING, Any, Final

from latticed.host.call import HostError
from latticed.host.route import template
from latticed.host.route.template import METHOD, PATH
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from latticed.host.route.template import Reference, Template

    Call = Callable[[str, dict[str, Any]], Awaitable[Any]]

_EMPTY: Final = frozenset(
    {
        Denial.CAPABILITY_DENIED,
        Denial.CAPABILITY_NOT_GRANTED,
        Denial.BAD_PARAMS,
        Denial.NOT_FOUND,
        Denial.TOO_LARGE,
    }
)
"""Denials for which a reference renders empty, as docs/write/workers.md promises for what is not there or is secret.
Any other (rate, deadline, audit) is a temporary failure, and fails the request instead of showing a page with gaps.
"""
_TEXT: Final = re.compile(r"text/[a-z0-9][a-z0-9.+-]{0,60}")
# Words in the subtypes of all JavaScript media types (RFC 9239, section 6), `text/x-javascript` and the like included.
_SCRIPTS: Final = ("javascript", "ecmascript", "jscript", "livescript")


async def render(
    compiled: Template, path: str, method: str, query: tuple[tuple[str, str], ...], *, content_type: str, call: Call
) -> bytes:
    """The body that a template gives for one request; `path` is decoded, `query` decoded pairs in their order.

    `content_type`: that of the answer, which decides whether values are escaped. `call(method, params)` makes a host
    call of the plugin. Problem: denials that are not in _EMPTY, `output_too_large`.
    """
    values: dict[Reference, str] = {PATH: path, METHOD: method}
    for wanted in compiled.queries:
        # The first field of a name counts when it is repeated (docs/write/workers.md).
        values[wanted] = next((value for name, value in query if name == wanted.name), "")
    if compiled.stored:
        for wanted, value in zip(compiled.stored, await _stored(compiled.stored, call), strict=True):
            if isinstance(value, Problem):
                raise value
            values[wanted] = value
    # Path and query come from visitors: unescaped in markup they could insert elements (cross-site scripting).
    escape = template.escape_html if _is_markup(content_type) else None
    return template.render(compiled.parts, values, escape=escape)


def content_type(given: str, name: str) -> str:
    """The Content-Type of a template's answers, such as `text/html; charset=utf-8`.

    `given`: with or without `charset=utf-8`. `name` is that of the field with it, for the message.
    Problem("source_blocked") for one that cannot be served safely: no text, a script, or another charset.
    """
    kind, _, parameter = (part.strip().lower() for part in given.partition(";"))
    scripted = any(word in kind for word in _SCRIPTS)
    if _TEXT.fullmatch(kind) is None or scripted or parameter not in {"", "charset=utf-8"}:
        raise Problem(
            "source_blocked",
            f"expected {name} to be text in UTF-8 and no script, found {given[:80]!r}",
            "such as text/plain or text/html",
        )
    return f"{kind}; charset=utf-8"


def _is_markup(content_type: str) -> bool:
    """Whether a browser parses it as HTML or XML, so that values must be escaped."""
    kind = content_type.partition(";")[0]
    # `xsl`: Chromium parses `text/xsl` as XML, too.
    return kind in {"text/html", "text/xml"} or kind.endswith("+xml") or "xsl" in kind


async def _stored(references: tuple[Reference, ...], call: Call) -> list[str | Problem]:
    """The values of all references, read concurrently."""
    if len(references) <= 1:  # a task would cost more than the call
        return [await _value(reference, call) for reference in references]
    # `_value` returns a Problem instead of raising it: gather would return at the first exception and leave the other
    # calls running, with results that are never read.
    return await asyncio.gather(*(_value(reference, call) for reference in references))


async def _value(reference: Reference, call: Call) -> str | Problem:
    """The stored text, empty for what does not exist or may not be read; a Problem for any other failure."""
    try:
        found = await call("kv.get", {"bucket": reference.name, "key": reference.key})
    except HostError as error:
        return "" if error.code in _EMPTY else Problem(error.code.value, error.reason)
    if not found["ok"]:
        return ""
    if found.get("value") is not None:
        return str(found["value"])
    # There is no text of a value over 64 KiB (`kv.MAX_TEXT_BYTES`), or of one that is not UTF-8.
    return base64.b64decode(found["value_base64"]).decode("utf-8", "replace")
