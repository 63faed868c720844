"""Bytes into lines of a bounded length."""

from __future__ import annotations

import pytest

from latticed.runners import lines
from latticed.runners.lines import LineSplitter, LineTooLong


def test_complete_lines_are_returned_without_newline():
    """An incomplete line is kept until its end arrives."""
    cut = LineSplitter(max_bytes=100)
    assert list(cut.feed(b"one\ntwo\nthr")) == [b"one", b"two"]
    assert cut.rest == b"thr"
    assert list(cut.feed(b"ee\n\n")) == [b"three", b""]
    assert cut.rest == b""


def test_line_of_exactly_the_limit_is_returned():
    cut = LineSplitter(max_bytes=4)
    assert list(cut.feed(b"abcd\nabcd")) == [b"abcd"]
    assert list(cut.feed(b"\n")) == [b"abcd"]


@pytest.mark.parametrize("cuts", [[b"abcde"], [b"abcde\n"], [b"abcd", b"e"], [b"abcd", b"e\n"]])
def test_line_over_the_limit_is_refused_before_it_ends(cuts):
    """It comes with or without its newline, in one read or several; the message has the limit."""
    cut = LineSplitter(max_bytes=4)
    for data in cuts[:-1]:
        assert list(cut.feed(data)) == []
    with pytest.raises(LineTooLong, match="at most 4 bytes"):
        list(cut.feed(cuts[-1]))


def test_lines_before_one_over_the_limit_are_returned():
    cut = LineSplitter(max_bytes=4)
    found = cut.feed(b"ab\nabcdef\n")
    assert next(found) == b"ab"
    with pytest.raises(LineTooLong):
        next(found)


def test_lines_left_by_a_stopped_iteration_are_kept():
    """So is what is fed meanwhile."""
    cut = LineSplitter(max_bytes=100)
    for line in cut.feed(b"one\ntwo\nthr"):
        assert line == b"one"
        break
    cut.feed(b"ee\nfo")  # kept, not looked at
    assert list(cut.ready()) == [b"two", b"three"]
    assert cut.rest == b"fo"


def test_each_byte_of_long_line_is_searched_once(monkeypatch):
    """It is fed byte by byte: the work is linear in the length of the line, not quadratic."""
    seen = []

    class Counted(bytearray):
        def find(self, what, start=0):
            seen.append(len(self) - start)
            return super().find(what, start)

    cut = LineSplitter(max_bytes=10_000)
    monkeypatch.setattr(cut, "_held", Counted())
    for _ in range(5_000):
        assert list(cut.feed(b"x")) == []
    assert sum(seen) == 5_000


@pytest.mark.parametrize(("depth", "wanted"), [(1, False), (100, False), (101, True), (400, True)])
def test_nesting_deeper_than_the_limit_is_too_deep(depth, wanted):
    """Lists, objects and both mixed are nested."""
    for build in (lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: [1, inner, "x"]):
        value = build(0)
        for _ in range(depth - 1):
            value = build(value)
        assert lines.too_deep(b"[" * (depth + 500), value) == wanted


def test_brackets_in_strings_do_not_count_as_depth():
    assert not lines.too_deep(b"[" * 500, ["[" * 500])
    assert not lines.too_deep(b'[{"a":1}' + b',{"a":1}' * 500 + b"]", [{"a": 1}] * 501)
