from __future__ import annotations

import io
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.ctl import main, render, table, times
from latticed.ctl.table import Cell, Column
from latticed.kit.text import escape
from latticed.model.errors import Problem

NOW_S = 1_738_310_400.0  # 2025-01-31T08:00:00Z


@pytest.mark.parametrize(
    ("moment", "shown"),
    [
        ("2025-01-31T08:00:00Z", "0s ago"),
        ("2025-01-31T07:59:01.5Z", "58s ago"),
        ("2025-01-31T07:57:00Z", "3m ago"),
        ("2025-01-30T09:00:00Z", "23h ago"),
        ("2025-01-29T08:00:00Z", "2d ago"),
        ("2023-01-31T08:00:00Z", "2y ago"),
        ("2025-01-31T08:00:12Z", "in 12s"),
        ("2025-01-31T09:00:00+01:00", "0s ago"),
        ("soon", "soon"),
        ("0001-01-01T00:00:00+23:59", "0001-01-01T00:00:00+23:59"),
    ],
)
def test_times_are_shown_relative_to_now(moment, shown):
    assert times.relative(moment, NOW_S) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (59.9, "59s"), (3660, "1h 1m"), (90_000, "1d 1h"), (86_400, "1d")]
)
def test_durations_show_two_units(seconds, shown):
    """The largest one and the next; a unit of 0 after it is left out."""
    assert times.duration(seconds) == shown


@pytest.mark.parametrize(
    ("given_text", "sent"), [("10m", "2025-01-31T07:50:00.000000Z"), ("2w", "2025-01-17T08:00:00.000000Z")]
)
def test_since_duration_counts_back_from_now(given_text, sent):
    """It is a number and a unit; what would be before 1970 is the beginning of 1970."""
    assert times.since(given_text, NOW_S) == sent
    assert times.since("9" * 30 + "d", NOW_S).startswith("1970-01-01")


@given(st.text(max_size=20))
def test_since_parses_or_refuses_any_text(text):
    try:
        sent = times.since(text, NOW_S)
    except Problem as problem:
        sent = problem.code
    assert sent == "usage" or sent.endswith("Z")


def shown(rows: list[list[str]], width: int | None, columns: list[Column]) -> list[str]:
    """The lines of a table on a screen of `width` cells."""
    out = io.StringIO()
    render.Screen(out=out, err=out, width=width).rows(columns, rows)
    return out.getvalue().splitlines()


def test_wide_and_joined_characters_keep_columns_aligned():
    """CJK takes two cells, combining marks none."""
    columns = [Column(title="NAME"), Column(title="X")]
    lines = shown([["漢字", "1"], ["e\u0301", "2"], ["abcd", "3"]], None, columns)
    assert lines == ["NAME  X", "漢字  1", "e\u0301     2", "abcd  3"]


def test_widest_shrinkable_column_is_cut_first():
    columns = [Column(title="ID"), Column(title="REASON", shrinks=True)]
    lines = shown([["acme.a-long-identifier", "because " * 10]], 40, columns)
    assert lines[1] == "acme.a-long-identifier  because because…"


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), max_size=5), st.integers(1, 80))
def test_any_text_leaves_table_rows_on_one_line(rows, width):
    """They have no control characters; rows fit the width if their columns may shrink."""
    columns = [Column(title="A", shrinks=True), Column(title="B", shrinks=True)]
    lines = shown([list(row) for row in rows], width, columns)
    assert len(lines) == len(rows) + 1
    assert all(table.width_of(line) <= max(width, 18) for line in lines)
    assert all(escape(line) == line for line in lines)


def test_every_output_method_escapes_control_characters():
    out, err = io.StringIO(), io.StringIO()
    screen = render.Screen(out=out, err=err)
    evil = "a\x1b[31m\r\nb\u202e\x9b\u2028"
    screen.line(evil)
    screen.note(evil)
    screen.hint(evil)
    screen.error(Problem("x", evil, evil))
    screen.fields([("name", evil)])
    screen.rows([Column(title="T")], [[Cell(evil, "bad")]])
    screen.json({evil: evil})
    for text in (out.getvalue(), err.getvalue()):
        assert not set(text) & set("\x1b\r\u202e\x9b\u2028")
    assert err.getvalue().count("\n") == 4


def test_raw_bytes_on_a_terminal_are_escaped():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    render.Screen(out=out, err=out).raw(b"one\x1b[2J\ntwo\xff")
    assert out.getvalue() == "one\\x1b[2J\ntwo\\xff\n"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_script_names_every_verb_and_parses(ctl, shell):
    """The shell itself parses it, where it is installed."""
    script = ctl("completion", shell)
    assert script.code == 0
    assert all(verb in script.out for verb in main.VERBS)
    assert "accept-host" in script.out
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script.data, check=True, timeout=30)
