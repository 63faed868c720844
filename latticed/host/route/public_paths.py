"""Which paths of a proxied upstream are served without a login (route.put, `public`).

A pattern is a path below the route: `/download/*/*`, where `*` is one segment, or one that ends in `/**`, which is
everything below. `/assets/**` matches `/assets/a/b` and `/assets/`, but not `/assets`. A path that the upstream could
read as another one is never public.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final
from urllib.parse import unquote

# Patterns of one route, and characters of one pattern.
MAX_PATTERNS: Final = 32
MAX_CHARACTERS: Final = 255
_SEGMENT: Final = re.compile(r"\*|[A-Za-z0-9._~-]+", re.ASCII)
_PLAIN: Final = re.compile(r"[^/\\%;\x00-\x1f\x7f]+")
"""A decoded segment without separators, further encoding or path parameters."""


def fault(pattern: str) -> str | None:
    """What is wrong with a pattern, as a text for the plugin, or None."""
    if len(pattern) > MAX_CHARACTERS or not pattern.startswith("/"):
        return f"expected a path of at most {MAX_CHARACTERS} characters, found {pattern[:80]!r}"
    segments = pattern[1:].split("/")
    if segments[-1] in {"**", ""}:  # everything below, or with a slash at its end
        segments = segments[:-1]
    if not all(_SEGMENT.fullmatch(one) and one not in {".", ".."} for one in segments):
        return f"expected segments of A-Z a-z 0-9 . _ ~ -, or * (at the end **), found {pattern[:80]!r}"
    return None


def is_public(patterns: tuple[str, ...], raw: str) -> bool:
    r"""Whether the path `raw` (below the route, begins with /, still encoded, without the query) is public.

    Segments are decoded once and compared as text; a path whose decoding leaves `/`, `\`, `%`, `;` or a control
    character in a segment, or nothing but dots and spaces, is not public, since upstreams differ in how they read it.
    """
    segments = [unquote(one) for one in raw[1:].split("/")]
    # A slash at the end leaves an empty last segment; anywhere else an empty one is refused by _PLAIN.
    inner = segments[:-1] if segments[-1] == "" else segments
    if not all(_is_unambiguous(one) for one in inner):
        return False
    return any(_matches(pattern[1:].split("/"), segments) for pattern in patterns)


def _is_unambiguous(segment: str) -> bool:
    """Whether a decoded segment is one segment to everybody, also to what reads wide forms of `/` and `.` as these."""
    plain = segment if segment.isascii() else unicodedata.normalize("NFKC", segment)
    return bool(_PLAIN.fullmatch(plain) and plain.strip(" ."))


def _matches(pattern: list[str], segments: list[str]) -> bool:
    """Whether segments of a pattern match decoded segments of a path; a `*` needs some text."""
    # `**` is compared as its prefix: the path must be longer than it, and only as many segments count. The last segment
    # may be empty (`/assets/`); the pattern `/**` alone has an empty prefix and matches every path.
    if pattern[-1] == "**":
        pattern = pattern[:-1]
        segments = segments[: len(pattern)] if len(segments) > len(pattern) else []
        if not segments and pattern:
            return False
    return len(pattern) == len(segments) and all(
        bool(found) if wanted == "*" else wanted == found for wanted, found in zip(pattern, segments, strict=True)
    )
