"""Makes untrusted text safe to show and to store."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# Categories of Unicode (UAX 44): controls, format characters, separators of lines and paragraphs, surrogates, private
# and unassigned characters.
_UNSEEN: Final = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"})
BLANK_LETTERS: Final = frozenset("\u115f\u1160\u3164\uffa0")
"""Letters by category, nothing by appearance (contracts §2)."""


def is_control(char: str) -> bool:
    """Whether `char` is a control or format character, a line or paragraph separator, or an invisible letter."""
    return unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp"} or char in BLANK_LETTERS


class _Escapes(dict[int, str]):
    """What `str.translate` writes for a character; a cache, filled as characters are met.

    Ten times faster than asking for each character anew.
    """

    MOST = 8_192  # of over a million: untrusted text must not fill memory

    def __missing__(self, point: int) -> str:
        if len(self) >= self.MOST:
            self.clear()  # all at once: it fills again with what is in use
        char = chr(point)
        unseen = unicodedata.category(char) in _UNSEEN or char in BLANK_LETTERS
        found = self[point] = _escaped(char) if unseen else char
        return found


_ESCAPES: Final = _Escapes()


def escape(text: str) -> str:
    r"""`text` with everything that is not plainly visible written as `\xNN`, `\uNNNN` or `\UNNNNNNNN`.

    A newline becomes `\x0a`, U+202E `\u202e`. Backslashes stay, so this cannot be undone.
    """
    if text.isascii() and text.isprintable():
        return text
    return text.translate(_ESCAPES)


def _escaped(char: str) -> str:
    """The escape sequence that is shown in the place of a character."""
    point = ord(char)
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def clip(text: str, limit: int) -> str:
    """`text` cut to `limit` characters, the last of which is an ellipsis where something was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def sanitise(text: str, limit: int) -> str:
    """`text` escaped and cut to `limit` characters: what goes into audit events and log lines.

    Cut before it is escaped, too: escaping 512 KiB of which most is cut off takes a tenth of a second.
    """
    return clip(escape(text[: limit + 1]), limit)


def nearest(text: str, known: Iterable[str]) -> str:
    """The one of `known` that `text` was probably meant to be, for "did you mean …?"; empty when none is near.

    Of a long text only the first 80 characters are compared: the time grows with their number.
    """
    from difflib import get_close_matches  # here: it takes 0.15 MiB, and is needed for refusals alone

    return next(iter(get_close_matches(text[:80], sorted(known), n=1)), "")
