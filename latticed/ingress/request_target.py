"""Strict parser of request targets (RFC 9112, section 3.2; RFC 3986): refuses what others might read differently."""

from __future__ import annotations

import re
import urllib.parse
from typing import Final, NamedTuple

from latticed.model.errors import Problem

MAX_CHARACTERS: Final = 4_096
MAX_FIELDS: Final = 128

# No segment begins with a dot here, so none can be . or .. .
_PLAIN: Final = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+/?")
"""A quick check that accepts most paths: those without escapes and dot segments."""
_BROKEN_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_DOTS: Final = re.compile(r"(?:^|[/\\])\.{1,2}(?:[/\\]|$)")
_ABSOLUTE: Final = re.compile(r"http://([^/?]*)(.*)", re.IGNORECASE | re.DOTALL)
_NEVER: Final = re.compile(r"[\x00-\x20\x7f#]")


class RequestTarget(NamedTuple):
    """`path`: percent-decoded once. `authority`: host and port of a target that is a whole URL, else None."""

    path: str
    query: tuple[tuple[str, str], ...] = ()
    authority: str | None = None


def parse(raw: str) -> RequestTarget:
    """Parse `raw` as aiohttp's parser returns it (invalid UTF-8 as surrogate escapes).

    Problems: `uri_too_long`; `bad_request` for broken escapes, invalid UTF-8, NUL, and dot segments, encoded or not.
    """
    if _PLAIN.fullmatch(raw) and len(raw) <= MAX_CHARACTERS:
        return RequestTarget(raw)
    if len(raw) > MAX_CHARACTERS:
        raise Problem("uri_too_long", f"expected a URL of at most {MAX_CHARACTERS} characters, found {len(raw)}")
    if _NEVER.search(raw):
        raise _bad("without control characters, spaces and #")
    authority = None
    if not raw.startswith("/"):
        if (absolute := _ABSOLUTE.fullmatch(raw)) is None:
            raise _bad("that begins with /")
        authority, raw = absolute[1], absolute[2]
        raw = raw if raw.startswith("/") else "/" + raw
    path, _, query = raw.partition("?")
    return RequestTarget(path=_path(path), query=_query(query) if query else (), authority=authority)


def _path(raw: str) -> str:
    path = raw if raw.isascii() and "%" not in raw else _decoded(raw.encode("utf-8", "surrogateescape"))
    if "\0" in path:
        raise _bad("without NUL")
    if _DOTS.search(path):
        raise _bad("without the segments . and ..")
    return path


def _query(raw: str) -> tuple[tuple[str, str], ...]:
    fields = raw.split("&")
    if len(fields) > MAX_FIELDS:
        raise _bad(f"with at most {MAX_FIELDS} query fields")
    pairs = []
    for field in fields:
        # Before decoding: + is a space as in HTML forms, %2B is a plus.
        name, _, value = field.replace("+", " ").encode("utf-8", "surrogateescape").partition(b"=")
        if name or value:
            pairs.append((_decoded(name), _decoded(value)))
    if any("\0" in name or "\0" in value for name, value in pairs):
        raise _bad("without NUL")
    return tuple(pairs)


def _decoded(raw: bytes) -> str:
    if _BROKEN_ESCAPE.search(raw):
        raise _bad("whose % are followed by two hex digits")
    try:
        return urllib.parse.unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad("in UTF-8") from error


def _bad(expected: str) -> Problem:
    return Problem("bad_request", f"expected a URL {expected}")
