"""The line that tells what a bundle being taken has behind it: on a terminal only, gone at the end, never a control."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace

import pytest

from latticed.ctl import market_progress
from latticed.model.errors import Problem

TAKING = {
    "id": "acme.demo",
    "version": "1.2.0",
    "file": "artifact",
    "bytes": 3 << 20,
    "steps": [{"step": "index", "detail": "x"}, {"step": "publisher", "detail": "x"}],
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def session(err, asked):
    return SimpleNamespace(screen=SimpleNamespace(err=err), client=lambda: SimpleNamespace(get=asked))


def test_line_has_steps_and_bytes_and_is_gone_at_the_end(monkeypatch):
    monkeypatch.setattr(market_progress, "EVERY_S", 0.001)
    err, told, answers = Terminal(), threading.Event(), [Problem("unreachable", "gone"), {"taking": []}]

    def asked(*_):
        if answers:
            answer = answers.pop(0)
            if isinstance(answer, Problem):
                raise answer
            return answer
        if "artifact" in err.getvalue():
            told.set()
        return {"taking": [{**TAKING, "id": "acme.other"}, TAKING]}

    with market_progress.shown(session(err, asked), "acme.demo"):
        assert told.wait(60)
    line = "acme.demo 1.2.0: index, publisher passed; artifact 3,072 KiB"
    assert (line in err.getvalue(), "acme.other" in err.getvalue()) == (True, False)
    assert err.getvalue().endswith("\r\x1b[K")


def test_nothing_is_asked_and_shown_elsewhere():
    err = io.StringIO()

    def asked(*_):
        pytest.fail("asked")

    with market_progress.shown(session(err, asked), "acme.demo"):
        pass
    assert err.getvalue() == ""


def test_line_of_hostile_words_has_no_control_characters():
    found = market_progress.line({**TAKING, "version": "1\x1b[2J", "file": "a\r\nb", "bytes": "many"})
    assert not any(ord(one) < 32 for one in found)
    assert "?" in found
