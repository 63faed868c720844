"""kit.logs: configuration, and the form of entries by destination."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import socket
import subprocess
import sys
import time
import warnings
from contextlib import closing

import pytest

from latticed.kit import journal_sender, logs, nonblocking_writer


@pytest.fixture(autouse=True)
def undone():
    yield
    logs.reset()


def test_log_output_to_a_file_is_json_lines():
    """A file is neither terminal nor journal: one JSON object per line, with time, level, event and fields."""
    stream = io.StringIO()
    logs.configure("info", stream=stream, environ={})
    logs.get_logger(runner="wasm").info("plugin_armed", plugin_id="acme.demo")
    line = json.loads(stream.getvalue())
    assert line.pop("ts").endswith("Z")
    assert line == {"level": "info", "event": "plugin_armed", "runner": "wasm", "plugin_id": "acme.demo"}


def test_log_output_to_a_terminal_is_coloured_text():
    """It has no colour with NO_COLOR or on a dumb terminal."""
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


def test_log_level_filters_entries_and_can_be_changed():
    """A later `configure` applies to loggers made before."""
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


def test_exception_is_logged_with_its_traceback():
    """`exc_info` becomes lines of text, without the frames of rich."""
    stream = io.StringIO()
    logs.configure(stream=stream, environ={})
    try:
        raise ValueError("a\nb\x1b")
    except ValueError:
        logs.get_logger().error("plugin_start_failed", exc_info=True)
    line = json.loads(stream.getvalue())
    assert line["exception"][0] == "Traceback (most recent call last):"
    assert line["exception"][-2:] == ["ValueError: a", "b\\x1b"]


def test_standard_loggers_and_warnings_become_log_entries():
    """Entries begin at level WARNING."""
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


def test_reset_of_logs_restores_the_root_logger():
    """It gets back its handlers and its level."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    for _ in range(3):
        logs.configure("debug", stream=io.StringIO(), environ={})
    logs.reset()
    assert (list(root.handlers), root.level) == before


def test_logging_to_closed_stream_loses_lines_without_raising():
    """A broken pipe behaves in the same way."""
    stream = io.StringIO()
    logs.configure(stream=stream, environ={})
    stream.close()
    logs.get_logger().info("said_into_the_void")
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="ascii") as pipe:
        logs.configure(stream=pipe, environ={})
        logs.get_logger().info("said_into_the_void", name="é")
        assert logs.flush()
        before = logs.dropped()
        logs.get_logger().info("said_into_the_void", name="é")
        assert logs.flush()
        assert logs.dropped() == before + 1


def test_entries_lost_to_journald_are_counted_in_an_entry(tmp_path, monkeypatch):
    """It is sent before the first entry after the gap."""
    path = str(tmp_path / "journal")
    monkeypatch.setattr(journal_sender.JournalSender.__init__, "__defaults__", (path,))
    logs.configure(form="journal", environ={})
    logs.get_logger().info("one_lost")
    logs.get_logger().info("two_lost")
    assert logs.flush()
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as journald:
        journald.bind(path)
        logs.get_logger().info("three_said")
        logs.get_logger().info("four_said")
        assert logs.flush()
        told = [journald.recv(4096).decode().splitlines()[0] for _ in range(3)]
    assert told == ["MESSAGE=log dropped: entries=2", "MESSAGE=three said", "MESSAGE=four said"]


def test_logging_to_unread_pipe_loses_entries_without_blocking():
    """Neither logging nor configuring again blocks; lost entries are counted, and reported once the pipe is read."""
    read, write = os.pipe()
    with open(read, "rb") as reader, open(write, "w", encoding="utf-8") as pipe:
        logs.configure(stream=pipe, environ={})
        before = logs.dropped()
        began = time.monotonic()
        for number in range(1_000):
            logs.get_logger().info("plugin_wrote", number=number, line="x" * 1_000)
        logs.configure("debug", stream=pipe, environ={})
        assert time.monotonic() - began < 2.0
        lost = logs.dropped() - before
        assert 0 < lost < 1_000
        kept = [json.loads(reader.readline()) for _ in range(1_000 - lost + 1)]
        assert [one.get("number") for one in kept] == [*range(1_000 - lost), None]
        assert (kept[-1]["event"], kept[-1]["entries"]) == ("log_dropped", lost)
        logs.get_logger().debug("flows_again")
        assert json.loads(reader.readline())["event"] == "flows_again"


def test_lines_of_plugins_leave_room_in_the_queue_for_the_daemons_own_entries():
    """However fast plugins write: what is dropped of theirs is counted, and said once it flows again."""
    read, write = os.pipe()
    with open(read, "rb") as reader, open(write, "w", encoding="utf-8") as pipe:
        logs.configure(stream=pipe, environ={})
        before = logs.dropped()
        for number in range(100):
            for _ in range(50):
                logs.plugin_line("acme.demo", "x" * 100)
            logs.get_logger().info("audit_head_signed", seq=number)
        lost = logs.dropped() - before
        assert 0 < lost < 5_000
        kept = [json.loads(reader.readline()) for _ in range(5_100 - lost + 1)]
        assert [one["seq"] for one in kept if one["event"] == "audit_head_signed"] == list(range(100))
        assert (kept[-1]["event"], kept[-1]["entries"]) == ("log_dropped", lost)


def test_log_entry_larger_than_the_queue_is_written(tmp_path):
    """The queue is empty otherwise."""
    before = logs.dropped()
    with (tmp_path / "log").open("w", encoding="utf-8") as file:
        logs.configure(stream=file, environ={})
        logs.get_logger().info("payload_seen", blob=[["y" * 8_000] * 60] * 3)
        assert logs.flush()
    assert len((tmp_path / "log").read_bytes()) > nonblocking_writer.CAPACITY_BYTES
    assert logs.dropped() == before


def test_log_entries_are_written_at_exit_without_reset():
    program = "from latticed.kit import logs; logs.configure()\n"
    program += "for number in range(500): logs.get_logger().info('said', number=number)"
    ran = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert [json.loads(line)["number"] for line in ran.stdout.splitlines()] == [*range(500)]


def test_reset_of_logs_does_not_wait_for_an_unread_pipe():
    """It gives up after CLOSE_S."""
    read, write = os.pipe()
    with open(read, "rb"), open(write, "w", encoding="utf-8") as pipe:
        logs.configure(stream=pipe, environ={})
        for _ in range(100):
            logs.get_logger().info("plugin_wrote", line="x" * 8_000)
        began = time.monotonic()
        logs.reset()
        assert time.monotonic() - began < 2.0
        os.read(read, 1 << 20)  # now there is room: the thread that was left to its wait ends


@pytest.mark.parametrize("before", ["", "import rich.console;"])
def test_import_of_logs_does_not_load_rich(before):
    """rich can still be imported, and stays loaded if it was."""
    program = f"""{before}import sys
had = "rich" in sys.modules
from latticed.kit import logs
assert ("rich" in sys.modules) == had, "rich was pulled in"
assert sys.modules.get("rich", 0) is not None
import rich.text
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
