r"""Lines that are complete JSON, but hold a value that cannot be passed on to others (contracts §10).

`{"jsonrpc": "2.0", "id": 7, "result": "\ud800"}` is one: a lone surrogate has no UTF-8. Most readers have no number for
1e400, NaN is no JSON, and no reader takes endless nesting. Any visitor can put such a value into what a plugin echoes,
so it is a fault of that one answer, never of the plugin.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from latticed.kit import text
from latticed.kit.value import Value
from latticed.model.errors import Problem
from latticed.runners import lines

NOISE_CHARACTERS: Final = 80
"""How much of an invalid line is quoted."""
# Members with a short name in lower-case letters and a scalar value, such as `"id": 7`: enough to find out which call
# or answer a line is, when it cannot be decoded.
_SCALAR: Final = rb'("(?:[^"\\]|\\.)*"|-?\d{1,19}|true|false|null)'
_MEMBER: Final = rb'"([a-z]{1,16})"\s*:\s*' + _SCALAR
# The first member, the ones after it, and the last one of what is left of a line when it is read from its end.
_FIRST: Final = re.compile(rb"\s*\{\s*" + _MEMBER + rb"\s*,")
_NEXT: Final = re.compile(rb"\s*" + _MEMBER + rb"\s*,")
_LAST: Final = re.compile(rb",\s*" + _MEMBER + rb"\s*(?:\}\s*)?\Z")
# Before the members of a host call of stdio-json-v1.
_HOST_CALL: Final = re.compile(rb'\s*\{\s*"host_call"\s*:\s*(?=\{)')
_EDGE_BYTES: Final = 512  # the beginning and the end of a line in which members are looked for: it may have any number
# The escape of a high surrogate without a low one behind it, or the reverse; in JSON without escaped backslashes.
_LONE: Final = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F])"
)
_CALLS: Final = frozenset({"method", "host_call"})  # a line with one of them is a call, in either protocol
_NO_NUMBER: Final = "a number that is infinite, or none"


class Unrepresentable(Problem):
    """Problem("plugin_error"): a complete answer that cannot be passed on. `found` says why: "a lone surrogate"."""

    def __init__(self, found: str) -> None:
        hint = "the plugin is well: it answered with a value that JSON's readers do not take"
        super().__init__("plugin_error", f"expected an answer whose value can be carried on, found {found}", hint)


class PartialMessage(Value, frozen=True, kw_only=True):
    """A line with such a value: those of its `members` that can be read, and a description of what was `found`, such as
    "a lone surrogate".
    """

    members: dict[str, Any]
    found: str


def read(line: bytes) -> PartialMessage | None:
    """`line` if it is a JSON object with such a value; None when it is no object in UTF-8, or has no such value.

    `{"id": 7, "result": NaN}` gives the members `id` and `result`, and what was found. Where Python cannot decode the
    line, `members` are only those that `_edges` finds. Fractions in it are None, unless the line is an answer.

    A plugin may send such calls without end: for them a fraction, which takes longest, is not read, and nothing is
    encoded again. An answer was asked for.
    """
    constants: list[str] = []
    try:
        plain = line.decode("utf-8")
        value = json.loads(plain, parse_constant=constants.append, parse_float=lambda _: None)
        if not constants and not (isinstance(value, dict) and value.keys() & _CALLS):
            value = json.loads(plain)
    except (UnicodeDecodeError, json.JSONDecodeError):
        return None
    except RecursionError:
        return PartialMessage(members=_edges(line), found=_too_deep())
    except ValueError:  # Python reads no integer of more than 4,300 digits
        return PartialMessage(members=_edges(line), found="an integer of too many digits")
    if not isinstance(value, dict):
        return None
    if constants:
        found = _NO_NUMBER
    elif _LONE.search(line.replace(rb"\\", b"--")):
        found = "a lone surrogate"
    elif lines.too_deep(line, value):
        found = _too_deep()
    else:
        found = "" if value.keys() & _CALLS or _is_finite(value) else _NO_NUMBER
    return PartialMessage(members=value, found=found) if found else None


def unread(line: bytes, found: str) -> PartialMessage | None:
    """As `read`, for a line that must not be decoded because of `found`; None unless it begins as an object."""
    return PartialMessage(members=_edges(line), found=found) if line.lstrip().startswith(b"{") else None


def unread_call(line: bytes, found: str) -> PartialMessage:
    """As `unread`, for a line of stdio-json-v1: a host call's own members, as `host_call`; of another line none."""
    place, bare = _HOST_CALL.match(line), line.rstrip()
    members = {"host_call": _edges(bare[place.end() : -1])} if place and bare.endswith(b"}") else {}
    return PartialMessage(members=members, found=found)


def noise(line: bytes) -> str:
    """The beginning of an invalid line, quoted and escaped for an error message."""
    start = line[: 4 * NOISE_CHARACTERS].decode("utf-8", "backslashreplace")
    shown = text.sanitise(start[:NOISE_CHARACTERS], 3 * NOISE_CHARACTERS)
    return f'"{shown}{"…" if len(start) > NOISE_CHARACTERS else ""}"'


def _is_finite(value: Any) -> bool:
    """Whether all numbers in `value` are finite."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _too_deep() -> str:
    return f"more than {lines.MAX_DEPTH} levels of nesting"


def _edges(line: bytes) -> dict[str, Any]:
    """Members that are strings, numbers or booleans, before and after a value that cannot be decoded.

    `{"id": 7, "result": [[[…]]], "jsonrpc": "2.0"}` gives `id` and `jsonrpc`. Stops at the first other value from each
    side, so nothing inside the value in between is taken for a member.
    """
    found: dict[str, Any] = {}
    head, rest = line[:_EDGE_BYTES], line[-_EDGE_BYTES:]
    place = _FIRST.match(head)
    while place is not None:
        _keep(found, place)
        place = _NEXT.match(head, place.end())
    while (place := _LAST.search(rest)) is not None:
        _keep(found, place)
        rest = rest[: place.start()]
    return found


def _keep(found: dict[str, Any], place: re.Match[bytes]) -> None:
    """Put the member that was matched into `found`, if it decodes."""
    try:
        found[place[1].decode()] = json.loads(place[2])
    except ValueError:
        return
