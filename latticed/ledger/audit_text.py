r"""Makes untrusted text of audit events safe to store, show and hash.

All text becomes printable ASCII (`Ł` is kept as the six characters `\u0141`). The contract wants both ASCII-escaped
JSON and byte equality with RFC 8785, which does not escape: only ASCII text gives both, whichever form a checker uses.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# The most of each field in characters, counted after escaping; of a detail also in entries.
ACTOR: Final = 200
ACTION: Final = 64
TARGET: Final = 200
CODE: Final = 64
REASON: Final = 1_000
DECISION: Final = 8
DETAIL_ENTRIES: Final = 32
DETAIL_KEY: Final = 64
DETAIL_TEXT: Final = 500
DROPPED: Final = "dropped"
"""The key of the entry that counts those left out of a detail."""
MAX_INTEGER: Final = 2**53 - 1
"""Greatest integer that every reader of JSON keeps exactly (RFC 7493, section 2.2); RFC 8785 relies on it."""

_CUT: Final = "..."
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F)}


def printable(text: str, limit: int) -> str:
    """`text` as at most `limit` characters of printable ASCII, the rest escaped; `...` marks a cut."""
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    # Cut before escaping, so that the work does not grow with the text; escaping makes nothing shorter.
    head = text[: limit + 1].encode("ascii", "backslashreplace").decode("ascii").translate(_CONTROLS)
    return head if len(head) <= limit else head[: limit - len(_CUT)] + _CUT


def detail(found: Mapping[str, str | int | bool]) -> dict[str, str | int | bool]:
    """At most 32 entries of capped text, booleans and integers within ±(2^53-1).

    Entries beyond are replaced by one that counts them; greater integers become hexadecimal text, anything of another
    type (a mistake of the caller that must not keep an event from being recorded) its repr. Never raises.
    """
    kept: dict[str, str | int | bool] = {}
    room = DETAIL_ENTRIES if len(found) <= DETAIL_ENTRIES else DETAIL_ENTRIES - 1
    for key, value in itertools.islice(found.items(), room):
        kept[printable(key, DETAIL_KEY)] = _value(value)
    if len(found) > room:
        kept[DROPPED] = len(found) - room
    return kept


def _value(value: object) -> str | int | bool:
    """A value of a detail as it is stored."""
    if isinstance(value, str):
        return printable(value, DETAIL_TEXT)
    # Before int, as bool is a subclass of it.
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        # A plain int: the text of a subclass (IntEnum) may be another one than its number.
        return int(value) if -MAX_INTEGER <= value <= MAX_INTEGER else printable(hex(value), DETAIL_TEXT)
    return printable(repr(value), DETAIL_TEXT)
