"""kit.rendering: any entry is rendered safe to show and to store."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.kit import rendering, text

HOSTILE = "x\nPRIORITY=0\r\x1b[2J\u202egnp\u2028\x00\x7f\x85\ud800\u3164"
PLAIN = {"event": "verdict_refused", "level": "warning", "wall_us": 1_700_000_000_123_456}

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def _unsafe(shown: str, allowed: str = "") -> list[str]:
    return [char for char in shown if (text.is_control(char) and char not in allowed) or char == "\ud800"]


@given(fields=st.dictionaries(st.text(max_size=10), _values, max_size=5), event=st.text(max_size=10))
def test_rendered_entry_has_no_raw_control_characters(fields, event):
    """One line per entry in text and JSON, JSON stays valid, and journal values have no line breaks."""
    entry = fields | PLAIN | {"event": event}
    entry.pop("exception", None)
    assert _unsafe(rendering.as_text(entry, colour=False)) == []
    line = rendering.as_json(entry)
    assert _unsafe(line) == []
    assert json.loads(line, parse_constant=pytest.fail)["level"] == "warning"
    assert [name for name, value in rendering.as_journal(entry).items() if _unsafe(value)] == []


def test_text_entry_is_time_level_event_and_pairs():
    """Values of more than one word are quoted."""
    entry = PLAIN | {"plugin_id": "acme.demo", "reason": "expected 7f3a, found 91c0", "attempt": 3}
    shown = rendering.as_text(entry, colour=False)
    expected = '22:13:20.123 warning  verdict_refused          plugin_id=acme.demo reason="expected 7f3a, found 91c0"'
    assert shown == f"{expected} attempt=3"


def test_only_level_and_event_of_an_entry_are_coloured():
    """The text is the same; values are never within an escape sequence."""
    shown = rendering.as_text(PLAIN | {"reason": "x"}, colour=True)
    assert shown.startswith("\x1b[2m22:13:20.123\x1b[0m \x1b[33mwarning ")
    assert shown.endswith(" reason=x")


def test_journal_entry_has_listed_fields_and_a_message():
    """Listed names become LATTICED_*, others are in MESSAGE; the level becomes PRIORITY."""
    entry = PLAIN | {"plugin_id": "acme.demo", "code": "digest_mismatch", "colour": "blue", "MESSAGE": "forged"}
    assert rendering.as_journal(entry) == {
        "MESSAGE": "verdict refused: plugin_id=acme.demo code=digest_mismatch colour=blue MESSAGE=forged",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "latticed",
        "LATTICED_EVENT": "verdict_refused",
        "LATTICED_PLUGIN_ID": "acme.demo",
        "LATTICED_CODE": "digest_mismatch",
        "MESSAGE_ID": rendering.message_id("verdict_refused"),
    }
    assert "MESSAGE_ID" not in rendering.as_journal(entry | {"level": "info"}), "the catalog has nothing about it"
    assert "MESSAGE_ID" not in rendering.as_journal(entry | {"logger": "asyncio"}), "a library's text is no event"


def test_rendered_traceback_keeps_line_breaks_only():
    """Its lines are indented in text, so that none can pass as an entry; other control characters are escaped."""
    entry = PLAIN | {"exception": 'Traceback:\n  File "x"\nValueError: a\x1b[2J\u2028b'}
    lines = rendering.as_text(entry, colour=False).split("\n")
    assert lines[1:] == ["    | Traceback:", '    |   File "x"', "    | ValueError: a\\x1b[2J\\u2028b"]
    rows = ["Traceback:", '  File "x"', "ValueError: a\\x1b[2J\\u2028b"]
    assert rendering.as_journal(entry)["LATTICED_EXCEPTION"].split("\n") == rows
    assert json.loads(rendering.as_json(entry))["exception"] == rows


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (HOSTILE, "x\\x0aPRIORITY=0\\x0d\\x1b[2J\\u202egnp\\u2028\\x00\\x7f\\x85\\ud800\\u3164"),
        (b"\xff\n", "\\xff\\x0a"),
        (math.nan, "nan"),
        (10**6000, hex(10**6000)),
        ((1, "\n"), [1, "\\x0a"]),
        ({"\n": {"a": {"b": {"c": {"d": 1}}}}}, {"\\x0a": {"a": {"b": {"c": "{'d': 1}"}}}}),
        (list(range(1000)), list(range(rendering.MAX_MEMBERS))),
    ],
    ids=["hostile", "bytes", "nan", "long", "tuple", "deep", "many"],
)
def test_values_are_rendered_printable_and_bounded(value, expected):
    """Strings are escaped and cut, numbers are those of JSON, collections are bounded."""
    assert rendering.safe(value) == expected


def test_long_value_is_cut_with_a_mark():
    assert rendering.safe("x" * 100_000) == "x" * (rendering.MAX_VALUE_CHARACTERS - 1) + "…"
