"""Strict parser of request targets (RFC 9112, section 3.2; RFC 3986): refuses what others might read differently.

    /a%20b?x=1&x=%2B        ->  path "/a b", query (("x", "1"), ("x", "+"))
    http://host:80/a        ->  path "/a", authority "host:80"
    /a/%2e%2e/b  /a%  /%00  ->  Problem bad_request

Routes are looked up by the decoded path. The proxy forwards the encoded one, see `upstream_listener`.
"""

from __future__ import annotations

import re
import urllib.parse
from typing import Final, NamedTuple

from latticed.model.errors import Problem

MAX_CHARACTERS: Final = 4_096
MAX_FIELDS: Final = 128
"""Fields of one query; more are refused."""

# No segment begins with a dot here, so none can be . or .. .
_PLAIN: Final = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+/?")
"""A quick check that accepts most paths: those without escapes and dot segments."""
_BROKEN_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# Backslashes count as slashes: some programs take them for such.
_DOTS: Final = re.compile(r"(?:^|[/\\])\.{1,2}(?:[/\\]|$)")
_ABSOLUTE: Final = re.compile(r"http://([^/?]*)(.*)", re.IGNORECASE | re.DOTALL)
# A target has no white space, controls or fragment (RFC 9112, section 3.2; RFC 9110, section 7.1).
_NEVER: Final = re.compile(r"[\x00-\x20\x7f#]")


class RequestTarget(NamedTuple):
    """`path`: percent-decoded once. `query`: decoded (name, value) pairs in their order. `authority`: host and port of
    a target that is a whole URL, else None; it then replaces the Host header (RFC 9112, section 3.2.2).
    """

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
    # Before decoding: these characters may be in a path, but only as escapes.
    if _NEVER.search(raw):
        raise _bad("without control characters, spaces and #")
    authority = None
    if not raw.startswith("/"):
        if (absolute := _ABSOLUTE.fullmatch(raw)) is None:
            raise _bad("that begins with /")
        # What follows the authority, still encoded: a path, a query, or nothing.
        authority, raw = absolute[1], absolute[2]
        raw = raw if raw.startswith("/") else "/" + raw
    path, _, query = raw.partition("?")
    return RequestTarget(path=_path(path), query=_query(query) if query else (), authority=authority)


def _path(raw: str) -> str:
    """A path decoded once; Problem bad_request for dot segments and NUL, written plainly or as escapes."""
    path = raw if raw.isascii() and "%" not in raw else _decoded(raw.encode("utf-8", "surrogateescape"))
    if "\0" in path:
        raise _bad("without NUL")
    if _DOTS.search(path):
        raise _bad("without the segments . and ..")
    return path


def _query(raw: str) -> tuple[tuple[str, str], ...]:
    """The pairs of a query; a field without `=` has an empty value, and empty fields are left out."""
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
    """`raw` with its escapes decoded, as UTF-8; Problem bad_request otherwise."""
    # unquote_to_bytes leaves broken escapes as they are; another program may read them differently.
    if _BROKEN_ESCAPE.search(raw):
        raise _bad("whose % are followed by two hex digits")
    try:
        return urllib.parse.unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad("in UTF-8") from error


def _bad(expected: str) -> Problem:
    return Problem("bad_request", f"expected a URL {expected}")
