"""Host patterns: where a plugin may connect to (contracts §3)."""

from __future__ import annotations

import re
from typing import Final

_LABEL: Final = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_PATTERN: Final = re.compile(
    rf"(?:(?:\*\.)?{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\]):(?P<port>[1-9][0-9]{{0,4}})", re.ASCII
)
_HIGHEST_PORT: Final = 65535


def is_pattern(text: str) -> bool:
    """Whether `text` is `host:port`, `*.host:port` or `[v6]:port`, in lower case."""
    found = _PATTERN.fullmatch(text)
    return found is not None and int(found["port"]) <= _HIGHEST_PORT


def is_consent(text: str) -> bool:
    """Whether an operator may accept `text`: a pattern, or `*` for any host the manifest or the plugin names."""
    return text == "*" or is_pattern(text)
