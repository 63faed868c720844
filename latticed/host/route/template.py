"""Workers' templates: parsed once, rendered for each request in one pass (system-plugins.md, worker:route).

`{{path}}`, `{{method}}`, `{{query:NAME}}` and `{{kv:BUCKET/KEY}}` are replaced; any other reference renders empty.
Values are not parsed: a path or a value that contains a placeholder is text.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from latticed.kit.value import Value
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_BYTES: Final = 256 << 10
"""Of the source in UTF-8, as docs/write/workers.md promises."""
MAX_PLACEHOLDERS: Final = 1_024
"""Bounds the work of one rendering; known and unknown placeholders count."""
MAX_VALUES: Final = 64
"""Different key-value references in one template: each costs a host call per request."""
MAX_OUTPUT_BYTES: Final = 1 << 20
"""Of one rendered answer: a short template can repeat a long value many times."""

# The five source primitives of system-plugins.md, worker:route. The lookbehind: only where an identifier could begin,
# so `photos.` passes and `os.` does not.
_BLOCKED: Final = re.compile(r"(?<![\w$])(?:fetch\(|require\(|process\.env(?![\w$])|exec\(|os\.)")
_PLACEHOLDER: Final = "a placeholder such as {{path}}, {{method}}, {{query:NAME}} or {{kv:BUCKET/KEY}}"

# Escapes `& < > " '`: quotes too, since a placeholder may be inside an attribute.
escape_html = html.escape


class Reference(NamedTuple):
    """What a placeholder refers to; `name` is that of a query field or bucket, `key` is in that bucket.

    A NamedTuple, since it is hashed several times per request.
    """

    kind: Literal["path", "method", "query", "kv"]
    name: str = ""
    key: str = ""


PATH: Final = Reference("path")
METHOD: Final = Reference("method")


class Template(Value, frozen=True):
    """Text (UTF-8) and references in their order; `queries` and `stored` have each of those kinds once."""

    parts: tuple[bytes | Reference, ...]
    queries: tuple[Reference, ...]
    stored: tuple[Reference, ...]


def parse(source: bytes) -> Template:
    """The parsed template; Problem("source_blocked") says what is wrong and in which line."""
    if len(source) > MAX_BYTES:
        raise _blocked(f"expected a template of at most {MAX_BYTES} bytes, found more")
    try:
        text = source.decode("utf-8")
    except UnicodeDecodeError as error:
        line = source.count(b"\n", 0, error.start) + 1
        raise _blocked(f"expected a template in UTF-8, found other bytes in line {line}") from error
    # In the whole text, placeholders included: a check for mistakes; nothing in a template is ever executed.
    if found := _BLOCKED.search(text):
        where = _line(text, found.start())
        raise _blocked(f"expected a template, which is data, found the source primitive `{found[0]}` in line {where}")
    parts = _parts(text)
    # Each value is read once per request, however often it is used; `dict.fromkeys` keeps the order.
    references = dict.fromkeys(part for part in parts if isinstance(part, Reference))
    stored = tuple(one for one in references if one.kind == "kv")
    if len(stored) > MAX_VALUES:
        raise _blocked(f"expected at most {MAX_VALUES} different key-value references, found {len(stored)}")
    return Template(parts, tuple(one for one in references if one.kind == "query"), stored)


def render(
    parts: tuple[bytes | Reference, ...],
    values: Mapping[Reference, str],
    *,
    escape: Callable[[str], str] | None = None,
    max_bytes: int = MAX_OUTPUT_BYTES,
) -> bytes:
    """The parts with `values` in the place of references, UTF-8; a reference without a value is empty.

    `escape` is applied to each value once, not to the text of the template. Problem("output_too_large") for more than
    `max_bytes`, before so much is put together.
    """
    # `replace`: a text may hold lone surrogates, which UTF-8 cannot encode.
    ready = {
        reference: (escape(value) if escape else value).encode("utf-8", "replace")
        for reference, value in values.items()
    }
    pieces = [part if isinstance(part, bytes) else ready.get(part, b"") for part in parts]
    if (size := sum(map(len, pieces))) > max_bytes:
        raise Problem("output_too_large", f"expected an answer of at most {max_bytes} bytes, found {size}")
    return b"".join(pieces)


def _parts(text: str) -> tuple[bytes | Reference, ...]:
    """Text and references in their order.

        "a{{path}}b"  ->  (b"a", PATH, b"b")
        "{{unknown}}" ->  ()
        "{{{path}}}"  ->  (b"{", PATH, b"}")

    Problem for a `{{` that is not closed before the next one, and for more than MAX_PLACEHOLDERS.
    """
    parts: list[bytes | Reference] = []
    known: dict[str, Reference | None] = {}
    place = count = 0
    while (start := text.find("{{", place)) >= 0:
        if text.startswith("{", start + 2) and not text.startswith("{", start + 3):
            start += 1  # of `{{{`, the last two open the placeholder
        end = text.find("}}", start + 2)
        inside = text[start + 2 : end]
        if end < 0 or "{{" in inside:
            raise _blocked(f"expected {_PLACEHOLDER}, found braces that are not closed in line {_line(text, start)}")
        if (count := count + 1) > MAX_PLACEHOLDERS:
            raise _blocked(f"expected at most {MAX_PLACEHOLDERS} placeholders, found more in line {_line(text, start)}")
        if start > place:
            parts.append(text[place:start].encode("utf-8"))
        # Equal placeholders are parsed once.
        if inside not in known:
            known[inside] = _reference(inside.strip(" "))
        if (reference := known[inside]) is not None:
            parts.append(reference)
        place = end + 2
    if place < len(text):
        parts.append(text[place:].encode("utf-8"))
    return tuple(parts)


def _reference(placeholder: str) -> Reference | None:
    """What a placeholder refers to; None for an unknown one, which renders empty.

    `query:NAME` is Reference("query", "NAME"), `kv:BUCKET/KEY` is Reference("kv", "BUCKET", "KEY").
    """
    if placeholder in {"path", "method"}:
        return PATH if placeholder == "path" else METHOD
    kind, colon, rest = placeholder.partition(":")
    if not colon or not rest:
        return None
    if kind == "query":
        return Reference("query", rest)
    # Keys hold no slash (`kv.key_fault`): for `kv:a/b/c`, kv.get refuses the key `b/c`, and it renders empty.
    bucket, _, key = rest.partition("/")
    return Reference("kv", bucket, key) if kind == "kv" and bucket and key else None


def _line(text: str, place: int) -> int:
    """The number, from 1, of the line that `place` lies in."""
    return text.count("\n", 0, place) + 1


def _blocked(detail: str) -> Problem:
    return Problem("source_blocked", detail, "a template is text and placeholders, nothing in it is executed")
