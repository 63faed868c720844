from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.ctl import activity, decode
from tests.house import api_server, processes

METRICS = """# HELP latticed_host_calls_total host calls
# TYPE latticed_host_calls_total counter
latticed_host_calls_total{plugin="acme.demo"} 1200
latticed_host_calls_total{plugin="acme.other"} 5
# TYPE latticed_host_calls_denied_total counter
latticed_host_calls_denied_total{plugin="acme.demo"} 3
latticed_restarts{plugin="acme.demo"} 77
latticed_healthy 1
"""


def armed(plugin_id: str, **fields):
    runtime = {"state": "armed", "runner": "noop", "health": "healthy", "message": "", **fields}
    return api_server.plugin(plugin_id, status="active", runtime=runtime)


def test_top_reads_counts_from_metrics_text():
    assert activity.read(METRICS, 5.0) == activity.Sample(
        calls={"acme.demo": 1200, "acme.other": 5}, denied={"acme.demo": 3}, at_s=5.0
    )


@given(st.text())
def test_any_metrics_text_is_parsed_without_error(text):
    assert activity.read(text, 0.0).at_s == 0.0


def test_top_shows_rates_as_differences_between_samples():
    """The first sample has none; they are not negative after a restart of the daemon, and rows are sorted by them."""
    known = list(decode.plugins([armed("acme.a"), armed("acme.b"), api_server.plugin("acme.c"), armed("acme.d")]))
    before = activity.Sample(calls={"acme.a": 10, "acme.b": 900}, denied={}, at_s=1.0)
    now = activity.Sample(calls={"acme.a": 110, "acme.b": 3, "acme.d": 400}, denied={"acme.a": 2}, at_s=3.0)
    found = activity.rows(known, now, before, now_s=0.0)
    assert [(row.id, row.calls_per_s) for row in found] == [
        ("acme.d", 200.0),
        ("acme.a", 50.0),
        ("acme.b", 0.0),
        ("acme.c", 0.0),
    ]
    assert [row.calls_per_s for row in activity.rows(known, now, None, now_s=0.0)] == [None] * 4


def test_top_prints_once_when_not_on_a_terminal(ctl, api):
    api.plugins["acme.demo"] = armed("acme.demo", restart_count=2, started_at="2001-01-01T00:00:00Z")
    api.add("acme.other")
    api.metrics = METRICS
    lines = ctl("top").out.splitlines()
    assert lines[0].split() == "ID STATUS RUNTIME HEALTH RESTARTS UPTIME CALLS/S CALLS DENIED".split()
    assert lines[1].split()[:5] == ["acme.demo", "active", "armed", "healthy", "2"]
    assert lines[1].split()[-3:] == ["-", "1200", "3"]
    assert lines[2].split() == ["acme.other", "verified", "stopped", "unknown", "0", "-", "-", "5", "0"]
    row = ctl("top", "--format", "json").json[0]
    assert (row["id"], row["restarts"], row["calls"], row["denied"], row["calls_per_s"]) == (
        *("acme.demo", 2, 1200, 3),
        None,
    )
    assert row["uptime_s"] > 0


def test_top_reports_no_plugins_and_no_daemon(ctl, api):
    assert ctl("top").err == "no plugins\n"
    assert ctl("top", LATTICED_SOCKET="/nowhere/s").code == 7


@pytest.mark.parametrize("interval", ["0", "-1", "x", "nan", "1e9"])
def test_invalid_interval_of_top_is_a_usage_error(ctl, interval):
    assert ctl("top", f"--interval={interval}").code == 2


class Terminal:
    """latticectl top on a pseudo-terminal."""

    def __init__(self, api: api_server.Api, lines: int) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (lines, 80))
        self.before = termios.tcgetattr(self.slave)
        environ = {"PYTHONPATH": os.pathsep.join(sys.path), "LATTICED_SOCKET": str(api.socket), "TERM": "xterm"}
        self.child = subprocess.Popen(
            [sys.executable, "-m", "latticed.ctl.main", "top", "--interval", "0.1"],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**environ, "PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        )
        self.shown = b""

    def until(self, wanted: bytes) -> bytes:
        """Read until `wanted` appears; earlier output is dropped."""
        os.set_blocking(self.master, False)
        deadline_s = time.monotonic() + processes.PATIENCE_S
        self.shown = b""
        while wanted not in self.shown:
            assert time.monotonic() < deadline_s, self.shown
            try:
                self.shown += os.read(self.master, 65536)
            except BlockingIOError:
                time.sleep(0.005)
        return self.shown

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait(timeout=processes.PATIENCE_S)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(api):
    for number in range(50):
        api.plugins[f"acme.demo{number:02}"] = armed(f"acme.demo{number:02}")
    api.metrics = METRICS
    terminal = Terminal(api, lines=10)
    yield terminal
    terminal.close()


@pytest.mark.parametrize("end", ["q", "ctrl-c"])
def test_top_redraws_on_a_terminal_until_ended(api, terminal, end):
    """It never prints more lines than the terminal has; the terminal's mode is restored."""
    terminal.until(b"50 plugins, 50 armed")
    picture = terminal.until(b"\x1b[J")
    picture = terminal.until(b"\x1b[J").split(b"\x1b[H")[-1]
    assert picture.count(b"\r\n") <= 9
    if end == "q":
        os.write(terminal.master, b"q")
    else:
        terminal.child.send_signal(signal.SIGINT)
    terminal.until(b"\x1b[?25h\x1b[?1049l")
    assert terminal.child.wait(timeout=processes.PATIENCE_S) == 0
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_top_waits_for_a_daemon_that_stopped(api, terminal):
    terminal.until(b"50 plugins, 50 armed")
    api.drop = 4
    terminal.until(b"the daemon does not answer")
    terminal.until(b"50 plugins, 50 armed")
    os.write(terminal.master, b"q")
    terminal.until(b"\x1b[?1049l")
    assert terminal.child.wait(timeout=processes.PATIENCE_S) == 0
