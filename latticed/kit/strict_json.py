"""JSON as RFC 8259 means it, without the liberties that parsers take (contracts §2).

Refused besides what `json` refuses: a byte order mark, bytes that are not UTF-8, duplicate keys, lone surrogates,
NaN and infinities (1e400 too, which no double can carry), more nesting than asked for, and numbers outside what the
caller allows.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DEPTH: Final = 32
"""Levels of lists and objects, unless a caller asks for another number."""
MAX_INTEGER: Final = 2**53 - 1  # RFC 8259 section 6: integers that every implementation agrees on

# For `_check_depth`: braces count as brackets, and everything else is left out.
_ALIKE: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
# The escape of any surrogate, D800 to DFFF: of a pair, or a lone one.
_ESCAPED_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


class InvalidJson(ValueError):
    """These bytes are not the JSON that was asked for; the message says why, and where if known."""


def loads(data: bytes, *, max_depth: int = MAX_DEPTH, integers_only: bool = False) -> Any:
    """Decode `data`, or raise InvalidJson.

    `max_depth`: levels of lists and objects, at most. With `integers_only`, fractions, exponents and integers beyond
    ±(2^53-1) are refused too.
    """
    if data.startswith(b"\xef\xbb\xbf"):
        raise InvalidJson("expected JSON without a byte order mark")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidJson(f"expected UTF-8, found byte 0x{data[error.start]:02x} at offset {error.start}") from error
    _check_depth(data, max_depth)
    try:
        value = (_OF_INTEGERS if integers_only else _OF_NUMBERS).decode(text)
    except json.JSONDecodeError as error:
        raise InvalidJson(f"{error.msg} at line {error.lineno} column {error.colno}") from error
    except RecursionError as error:
        raise InvalidJson(_too_deep(max_depth)) from error
    # Only an escape can make a lone surrogate: the bytes are valid UTF-8. Most texts have none.
    if _ESCAPED_SURROGATE.search(data):
        _check_surrogates(value)
    return value


def _check_depth(data: bytes, max_depth: int) -> None:
    """Refuse JSON that is nested too deeply, before it is decoded; what is not JSON at all may pass, for the decoder to
    refuse.

    Each round removes the innermost brackets with one `replace`: `[[],[]]` has become `[]` after the first. So even a
    million brackets need no loop in Python over each of them.
    """
    if data.count(b"{") + data.count(b"[") <= max_depth:  # nearly all there is; 20 µs less for each manifest
        return
    left = bare(without_escapes(data)).translate(_ALIKE, _NO_BRACKETS)
    # What is left after so many rounds is nested deeper, if it is balanced at all. Braces count as brackets (`_ALIKE`):
    # a `[}` passes here, and the decoder refuses it.
    for _ in range(max_depth):
        before, left = left, left.replace(b"[]", b"")
        if len(left) == len(before):
            break
    if left.startswith(b"[") and (b"[]" in left or left.startswith(b"[" * (max_depth + 1))):
        raise InvalidJson(_too_deep(max_depth))


def bare(plain: bytes) -> bytes:
    """The bytes of JSON outside of strings; `plain` is JSON from `without_escapes`."""
    return b"".join(plain.split(b'"')[::2])


def without_escapes(data: bytes) -> bytes:
    """JSON without escaped backslashes and quotes: all quotes that are left begin or end a string."""
    # In this order: a quote after an escaped backslash ends the string.
    return data.replace(rb"\\", b"").replace(rb"\"", b"")


def _too_deep(max_depth: int) -> str:
    return f"expected at most {max_depth} levels of nesting"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's members as a dict; InvalidJson when a key comes twice, which `json` would let pass."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InvalidJson(f"expected each key once, found {duplicate[:80]!r} twice in one object")
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise InvalidJson(f"expected a JSON value, found {word}")


def _refuse_float(digits: str) -> NoReturn:
    raise InvalidJson(f"expected an integer, found {digits[:40]}")


def _float(digits: str) -> float:
    """The number, if a double can hold it: Python makes 1e400 infinite."""
    value = float(digits)
    if math.isinf(value):
        raise InvalidJson(f"expected a number within the range of a double, found {digits[:40]}")
    return value


def _small_integer(digits: str) -> int:
    """An integer that every reader of JSON can hold (RFC 8259, section 6); InvalidJson for a larger one."""
    value = _integer(digits)
    if abs(value) > MAX_INTEGER:
        raise InvalidJson(f"expected an integer within ±(2^53-1), found {digits[:40]}")
    return value


def _integer(digits: str) -> int:
    """An integer of any size, up to 400 digits; InvalidJson for more."""
    if len(digits) > 400:  # int() of long digits is quadratic, and Python refuses more than 4300 of them
        raise InvalidJson(f"expected a number of sane length, found {len(digits)} digits")
    return int(digits)


def _check_surrogates(value: Any) -> None:
    """InvalidJson when a string in `value` has a surrogate without its pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidJson("expected Unicode text, found a lone surrogate") from error


def _decoder(*, of_floats: Callable[[str], Any], of_integers: Callable[[str], int]) -> json.JSONDecoder:
    """A decoder that refuses duplicate keys and constants; `of_floats` and `of_integers` judge the numbers."""
    return json.JSONDecoder(
        object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=of_floats, parse_int=of_integers
    )


# Made once: json.loads would make one for each text.
_OF_INTEGERS: Final = _decoder(of_floats=_refuse_float, of_integers=_small_integer)
_OF_NUMBERS: Final = _decoder(of_floats=_float, of_integers=_integer)
