"""The console's own addresses, below the random path of its start: one table, and how a request's path is read. Pure.

    /3fKx…/plugins/acme.demo/logs  →  ("logs", ("acme.demo",))

Anything that could be read in two ways is no address: dot segments, encoded separators, empty parts, a whole URL.
"""

from __future__ import annotations

import unicodedata
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

_LONGEST: Final = 2_048
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


class Address(NamedTuple):
    """`shape`: the parts, `*` for one that is handed on."""

    method: str
    shape: tuple[str, ...]
    page: str


def _table(*lines: str) -> tuple[Address, ...]:
    split = (line.split() for line in lines)
    return tuple(Address(method, tuple(path.split("/")[1:]), page) for method, path, page in split)


ADDRESSES: Final = _table(
    "GET / overview",
    "GET /plugins/* plugin",
    "GET /plugins/*/logs logs",
    "GET /plugins/*/logs/more log_lines",
    "POST /plugins/* act",
    "GET /rejected rejected",
    "GET /market market",
    "GET /market/* offer",
    "POST /market refresh",
    "POST /market/* on_offer",
    "GET /plans plans",
    "GET /plans/* plan",
    "GET /tasks tasks",
    "GET /tasks/* task",
    "POST /tasks/* cancel",
    "GET /audit audit",
    "GET /notifications notifications",
    "POST /notifications/* retry",
    "GET /health health",
    "GET /fleet fleet",
    "GET /fleet/* fleet_node",
    "GET /live live",
    "GET /static/* static",
    "GET /open/* open",
    "POST /leave leave",
)


class FoundPage(NamedTuple):
    page: str
    arguments: tuple[str, ...]


def found(method: str, raw_path: str, base: str) -> FoundPage | None:
    """The page that a request is for; None when there is none. `raw_path`: as it was sent, without the query."""
    if len(raw_path) > _LONGEST or not raw_path.startswith(f"/{base}/"):
        return None
    parts = [_decoded(one) for one in raw_path.removeprefix(f"/{base}/").split("/")]
    if None in parts:
        return None
    for one in ADDRESSES:
        if one.method == method and len(one.shape) == len(parts):
            given = [part for wanted, part in zip(one.shape, parts, strict=True) if wanted == "*"]
            same = all(wanted in {"*", part} for wanted, part in zip(one.shape, parts, strict=True))
            if same and all(given):
                return FoundPage(one.page, tuple(str(part) for part in given))
    return None


def _decoded(part: str) -> str | None:
    """A part without its percent-encoding; None for what could be a separator, a dot segment or not seen."""
    try:
        text = unquote_to_bytes(part).decode("utf-8")
    except UnicodeDecodeError:
        return None
    if text in {".", ".."} or set(text) & set("/\\%"):
        return None
    return None if any(unicodedata.category(char) in _UNSEEN for char in text) else text
