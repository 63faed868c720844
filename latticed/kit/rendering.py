"""How a log entry looks: as a line of text, a line of JSON, or fields of the journal.

An entry is a dict with `event`, `level`, `wall_us` and whatever the caller added. Rendering makes every key and value
safe first: no raw control, format or line-separator character leaves here. Only tracebacks keep their line breaks
(in text, where each line is indented, and in their own journal field, which journald stores by length).
"""

from __future__ import annotations

import functools
import json
import math
from typing import TYPE_CHECKING, Any, Final

from latticed.kit import clock, text

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_VALUE_CHARACTERS: Final = 8_192
MAX_KEY_CHARACTERS: Final = 64
MAX_MEMBERS: Final = 64
MAX_DEPTH: Final = 4
"""Bounds of one field: of its text, its name, the members of a list or dict, and how deeply these are nested."""
IDENTIFIER: Final = "latticed"
"""SYSLOG_IDENTIFIER of entries in the journal, which `journalctl -t` selects by."""

PLUGIN_LINE: Final = "plugin_wrote"
"""The event of a plugin's own output: in the journal it is under an identifier of its own."""
OF_PLUGINS: Final = (PLUGIN_LINE, "plugin_said")
"""The events of what plugins write themselves, on stderr and by log.write."""

PRIORITIES: Final = {"debug": "7", "info": "6", "warning": "4", "error": "3", "critical": "2"}
"""Levels as syslog priorities (RFC 5424, section 6.2.1)."""

FIELDS: Final = frozenset(
    "event plugin_id publisher version code reason runner state status action actor target decision capability call"
    " method seq hash uid pid error logger task chain".split()
)
"""What becomes a `LATTICED_*` field of its own; the rest is in MESSAGE. A closed list: journald indexes each name."""

_OWN: Final = frozenset({"event", "level", "wall_us", "exception"})
# Parameters of the escape sequence SGR (ECMA-48), by level.
_COLOURS: Final = {"debug": "2", "info": "36", "warning": "33", "error": "31", "critical": "1;31"}
# What may stand in a value of text without quotes; no space, quote or equals sign.
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/+@%,")


def safe(value: Any, depth: int = MAX_DEPTH) -> Any:
    """`value` as JSON can hold it: every string escaped and cut, members and depth bounded.

    What is nested deeper, or of a type that JSON does not have, becomes its `str`.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if depth and isinstance(value, dict):
        members = list(value.items())[:MAX_MEMBERS]
        return {text.sanitise(str(key), MAX_KEY_CHARACTERS): safe(member, depth - 1) for key, member in members}
    if depth and isinstance(value, list | tuple):
        return [safe(member, depth - 1) for member in list(value)[:MAX_MEMBERS]]
    # Cut first: escaping a long text costs time.
    return text.sanitise(str(value)[: MAX_VALUE_CHARACTERS + 1], MAX_VALUE_CHARACTERS)


def as_json(entry: Mapping[str, Any]) -> str:
    """One line, without its newline: `ts`, `level`, `event`, then the fields; a traceback is a list of its lines."""
    line = {"ts": clock.rfc3339(entry["wall_us"]), "level": entry["level"], "event": safe(entry["event"])}
    line |= safe(_fields(entry), MAX_DEPTH + 1)  # one level more, for the dict of the fields itself
    if "exception" in entry:
        line["exception"] = [text.escape(row) for row in str(entry["exception"]).split("\n")]
    return json.dumps(line, allow_nan=False)


def as_text(entry: Mapping[str, Any], *, colour: bool) -> str:
    """`03:04:05.000000 info plugin_armed plugin_id=demo`: a line for a person, without its newline.

    A traceback follows, indented. `colour`: with escape sequences for a terminal.
    """
    stamp, level = clock.rfc3339(entry["wall_us"])[11:23], entry["level"]
    event = f"{safe(entry['event'])!s:<24}"
    if colour:
        paint = _COLOURS[level]
        line = f"\x1b[2m{stamp}\x1b[0m \x1b[{paint}m{level:<8}\x1b[0m \x1b[1m{event}\x1b[0m"
    else:
        line = f"{stamp} {level:<8} {event}"
    return f"{line} {_pairs(entry)}".rstrip() + "".join(f"\n    | {row}" for row in _rows(entry))


def as_journal(entry: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a journal entry, such as `LATTICED_PLUGIN_ID`; MESSAGE is one readable line with all of it."""
    event = str(safe(entry["event"]))
    if event == PLUGIN_LINE:
        return _plugin_line(entry)
    pairs = _pairs(entry)
    message = f"{event.replace('_', ' ')}: {pairs}" if pairs else event.replace("_", " ")
    fields = {"MESSAGE": message, "PRIORITY": PRIORITIES[entry["level"]], "SYSLOG_IDENTIFIER": IDENTIFIER}
    for name, value in entry.items():
        if name in FIELDS and value is not None:
            fields[f"LATTICED_{name.upper()}"] = _word(safe(value))
    if rows := _rows(entry):
        fields["LATTICED_EXCEPTION"] = "\n".join(rows)
    # Entries of libraries have no name of an event: each text would get a number of its own.
    if PRIORITIES[entry["level"]] <= PRIORITIES["warning"] and "logger" not in entry:
        fields["MESSAGE_ID"] = message_id(event)
    return fields


@functools.cache
def message_id(event: str) -> str:
    """The number by which the journal's catalog (`systemd/latticed.catalog`) knows an event: 32 hexadecimal digits.

    It follows from the event's name, as an UUID of version 8 (RFC 9562, section 5.8; sd-id128(3)).
    """
    import hashlib  # 1 MiB with OpenSSL, for a process that may have nothing to warn of

    number = bytearray(hashlib.sha256(b"latticed " + event.encode()).digest()[:16])
    number[6] = number[6] & 0x0F | 0x80
    number[8] = number[8] & 0x3F | 0x80
    return number.hex()


def _plugin_line(entry: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a line that a plugin wrote: MESSAGE is the line, and its identifier names the plugin."""
    plugin_id = str(safe(entry["plugin_id"]))
    return {
        "MESSAGE": str(safe(entry["line"])),
        "PRIORITY": PRIORITIES[entry["level"]],
        "SYSLOG_IDENTIFIER": f"{IDENTIFIER}-plugin:{plugin_id}",
        "LATTICED_EVENT": PLUGIN_LINE,
        "LATTICED_PLUGIN_ID": plugin_id,
    }


def _number(value: float) -> int | float | str:
    """A number as JSON can hold it: NaN, infinite and very long ones become text."""
    if isinstance(value, int):
        return value if value.bit_length() <= 64 else hex(value)  # decimal digits of long ones are refused by Python
    return value if math.isfinite(value) else str(value)  # JSON has no NaN (RFC 8259, section 6)


def _fields(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the caller added to the entry."""
    return {name: value for name, value in entry.items() if name not in _OWN}


def _pairs(entry: Mapping[str, Any]) -> str:
    """The fields as `key=value`, separated by spaces."""
    fields = safe(_fields(entry), MAX_DEPTH + 1)
    return " ".join(f"{name}={_quoted(_word(value))}" for name, value in fields.items())


def _rows(entry: Mapping[str, Any]) -> list[str]:
    """The lines of the traceback, escaped; none without one."""
    found = entry.get("exception")
    return [text.escape(row) for row in str(found).rstrip("\n").split("\n")] if found else []


def _word(value: Any) -> str:
    """A value that `safe` returned, as text: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _quoted(word: str) -> str:
    """The word, in quotes unless it is plain; so the end of each value can be seen."""
    return word if word and _PLAIN.issuperset(word) else '"' + word.replace('"', '\\"') + '"'
