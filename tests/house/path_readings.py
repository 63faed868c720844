"""Paths that lead out of /download/NAME/TARGET as some programs read them, and what programs may read in a path."""

from __future__ import annotations

import itertools
import posixpath
import unicodedata
from collections.abc import Iterator
from urllib.parse import unquote

_UP = [
    "..",
    ".",
    "%2e%2e",
    "%2E.",
    ".%2e",
    "%252e%252e",
    "%25252e%25252e",
    "..;",
    "..;a=b",
    "..%3b",
    "%2e%2e%3ba",
    "..%00",
    "..%0a",
    "%c0%ae%c0%ae",
    "%e0%80%ae%e0%80%ae",
    "%u002e%u002e",
    "%EF%BC%8E%EF%BC%8E",
    "..%20",
    " ..",
    "...",
    "..?",
    "..#",
    "",
    "~",
]
_DIVIDERS = [
    "/",
    "//",
    "%2f",
    "%2F",
    "%252f",
    "\\",
    "%5c",
    "%255c",
    "%c0%af",
    "%e0%80%af",
    "%ef%bc%8f",
    ";/",
    "/;/",
    "/./",
]
_STARTS = ["/download/", "/download/a/", "/download/a/b/", "/download"]
_ENDS = ["api", "api/utils/env", "API/utils/env", "%61pi/utils/env"]


def readings(path: str) -> set[str]:
    """What programs make of a path: decoded up to three times, overlong forms too, without parameters, normalised."""
    todo: list[str] = [path]
    found: set[str] = set()
    for _ in range(3):
        todo += [unquote(one.replace("%c0%ae", ".").replace("%c0%af", "/"), errors="replace") for one in todo]
    for one in {*todo, *(unicodedata.normalize("NFKC", one) for one in todo)}:
        for read in (one, one.replace("\\", "/"), one.partition("\0")[0], one.partition("?")[0].partition("#")[0]):
            plain = "/".join(segment.partition(";")[0].strip() for segment in read.split("/"))
            found |= {read, plain, posixpath.normpath(read), posixpath.normpath(plain)}
    return {"/" + one.lower().lstrip("/") for one in found}


def targets() -> Iterator[str]:
    """Request targets, from /download/ on."""
    for start, up, divider, end in itertools.product(_STARTS, _UP, _DIVIDERS, _ENDS):
        yield f"{start}{up}{divider}{end}"
