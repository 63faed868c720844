"""kit.logs: configured once, in the form that the place asks for."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import socket
import subprocess
import sys
import warnings
from contextlib import closing

import pytest

from latticed.kit import journal, logs


@pytest.fixture(autouse=True)
def undone():
    yield
    logs.reset()


def test_lines_are_json_when_nobody_watches():
    """Not a terminal, not the journal: one JSON object per line, with time, level, event and fields."""
    stream = io.StringIO()
    logs.configure("info", stream=stream, environ={})
    logs.get_logger(runner="wasm").info("plugin_armed", plugin_id="acme.demo")
    line = json.loads(stream.getvalue())
    assert line.pop("ts").endswith("Z")
    assert line == {"level": "info", "event": "plugin_armed", "runner": "wasm", "plugin_id": "acme.demo"}


def test_a_terminal_gets_coloured_text():
    """On a terminal: text with colour, unless NO_COLOR or a dumb terminal says otherwise."""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as screen, open(theirs, "w", encoding="utf-8") as terminal:
        logs.configure("info", stream=terminal, environ={})
        logs.get_logger().warning("bundle_refused", reason="x")
        assert b"\x1b[33mwarning " in screen.read(4096)
        for environ in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
            logs.configure("info", stream=terminal, environ=environ)
            logs.get_logger().warning("bundle_refused", reason="x")
            assert b"\x1b" not in (seen := screen.read(4096))
            assert b"warning  bundle_refused" in seen


def test_the_level_holds_and_can_be_changed():
    """Below the level nothing is written; a later configure reaches loggers made before."""
    stream = io.StringIO()
    log = logs.get_logger()
    logs.configure("warning", stream=stream, environ={})
    log.info("not_written")
    logs.configure("debug", stream=stream, environ={})
    log.debug("was_written")
    assert "not_written" not in stream.getvalue()
    assert "was_written" in stream.getvalue()
    with pytest.raises(KeyError):
        logs.configure("loud", stream=stream, environ={})


def test_an_exception_is_logged_with_its_traceback():
    """exc_info becomes rows of text, without rich's frames."""
    stream = io.StringIO()
    logs.configure(stream=stream, environ={})
    try:
        raise ValueError("a\nb\x1b")
    except ValueError:
        logs.get_logger().error("plugin_start_failed", exc_info=True)
    line = json.loads(stream.getvalue())
    assert line["exception"][0] == "Traceback (most recent call last):"
    assert line["exception"][-2:] == ["ValueError: a", "b\\x1b"]


def test_libraries_go_the_same_way():
    """Standard library loggers and warnings arrive as entries, from WARNING up."""
    stream = io.StringIO()
    logs.configure("info", stream=stream, environ={})
    library = logging.getLogger("some.package")
    library.info("chatter")
    library.warning("inotify %s\nlevel=info", "overflow")
    library.critical("gone")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("old", UserWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [entry["level"] for entry in entries] == ["warning", "critical", "warning"]
    assert {entry["event"] for entry in entries} == {"library_spoke"}
    assert entries[0]["message"] == "inotify overflow\\x0alevel=info"
    assert entries[0]["logger"] == "some.package"
    assert "UserWarning: old" in entries[2]["message"]


def test_reset_leaves_nothing_behind():
    """Handlers and levels of the root logger are as before."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    for _ in range(3):
        logs.configure("debug", stream=io.StringIO(), environ={})
    logs.reset()
    assert (list(root.handlers), root.level) == before


def test_a_stream_that_is_gone_takes_nobody_with_it():
    """A closed stream or a broken pipe loses lines, not the daemon."""
    stream = io.StringIO()
    logs.configure(stream=stream, environ={})
    stream.close()
    logs.get_logger().info("said_into_the_void")
    read, write = os.pipe()
    os.close(read)
    pipe = open(write, "w", encoding="ascii")  # noqa: SIM115 - closing it raises, as its reader is gone
    logs.configure(stream=pipe, environ={})
    logs.get_logger().info("said_into_the_void", name="é")
    with pytest.raises(BrokenPipeError):
        pipe.close()


def test_entries_lost_to_the_journal_are_owned_up_to(tmp_path, monkeypatch):
    """The first entry after a gap says how many are missing."""
    path = str(tmp_path / "journal")
    monkeypatch.setattr(journal.Sender.__init__, "__defaults__", (path,))
    logs.configure(form="journal", environ={})
    logs.get_logger().info("one_lost")
    logs.get_logger().info("two_lost")
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as journald:
        journald.bind(path)
        logs.get_logger().info("three_said")
        logs.get_logger().info("four_said")
        first, second = journald.recv(4096).decode(), journald.recv(4096).decode()
    assert "MESSAGE=three said (2 entries before this one were lost)\n" in first
    assert "LATTICED_LOST=2\n" in first
    assert "LOST" not in second


@pytest.mark.parametrize("before", ["", "import rich.console;"])
def test_structlog_does_not_bring_rich(before):
    """Importing kit.logs leaves rich unloaded, importable, and as it was when it was loaded already."""
    program = f"""{before}import sys
had = "rich" in sys.modules
from latticed.kit import logs
assert ("rich" in sys.modules) == had, "rich was pulled in"
assert sys.modules.get("rich", 0) is not None
import rich.text
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
