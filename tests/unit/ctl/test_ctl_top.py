from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.ctl import activity, decode, render, top
from tests.house import api_server, processes

METRICS = """# HELP latticed_host_calls_total host calls
# TYPE latticed_host_calls_total counter
latticed_host_calls_total{plugin="acme.demo"} 1200
latticed_host_calls_total{plugin="acme.other"} 5
# TYPE latticed_host_calls_denied_total counter
latticed_host_calls_denied_total{plugin="acme.demo"} 3
latticed_restarts{plugin="acme.demo"} 77
latticed_healthy 1
latticed_plugin_cpu_seconds_total{plugin="acme.demo"} 12.5
latticed_plugin_memory_bytes{plugin="acme.demo"} 20971520
latticed_plugin_memory_bytes{plugin="acme.odd"} nan
latticed_start_time_seconds 1700000000
"""


def armed(plugin_id: str, **fields):
    runtime = {"state": "armed", "runner": "noop", "health": "healthy", "message": "", **fields}
    return api_server.plugin(plugin_id, status="active", runtime=runtime)


def test_top_reads_counts_from_metrics_text():
    assert activity.read(METRICS, 5.0) == activity.Sample(
        calls={"acme.demo": 1200, "acme.other": 5},
        denied={"acme.demo": 3},
        at_s=5.0,
        cpu_s={"acme.demo": 12.5},
        memory={"acme.demo": 20_971_520},
        started_s=1_700_000_000,
    )


@given(st.text(alphabet="0123456789eE+-.", max_size=12))
def test_values_that_are_no_numbers_are_left_out(value):
    found = activity.read(f'latticed_host_calls_total{{plugin="acme.demo"}} {value}', 0.0)
    assert set(found.calls) <= {"acme.demo"}


@given(st.text())
def test_any_metrics_text_is_parsed_without_error(text):
    assert activity.read(text, 0.0).at_s == 0.0


def sampled(at_s, **counts):
    return activity.Sample(**{"calls": {}, "denied": {}, "started_s": 7, **counts}, at_s=at_s)


BEFORE = sampled(1.0, calls={"acme.a": 10, "acme.b": 900}, cpu_s={"acme.a": 1.0}, denied={"acme.a": 0})
NOW = sampled(
    3.0,
    calls={"acme.a": 110, "acme.b": 3, "acme.d": 400},
    denied={"acme.a": 2},
    cpu_s={"acme.a": 2.5, "acme.d": 0.1},
    memory={"acme.a": 5, "acme.d": 9},
)


def test_top_shows_rates_as_differences_between_samples():
    """The first sample has none, nor has one of another daemon; they are not negative."""
    known = list(decode.plugins([armed("acme.a"), armed("acme.b"), api_server.plugin("acme.c"), armed("acme.d")]))
    found = {row.id: row for row in activity.rows(known, NOW, BEFORE, now_s=0.0)}
    assert {one: row.calls_per_s for one, row in found.items()} == {
        "acme.a": 50.0,
        "acme.b": 0.0,
        "acme.c": 0.0,
        "acme.d": 200.0,
    }
    assert (found["acme.a"].cpu_percent, found["acme.a"].denied_per_s, found["acme.b"].cpu_percent) == (75, 1, None)
    for before in (None, BEFORE._replace(started_s=6), BEFORE._replace(at_s=3.0)):
        first = activity.rows(known, NOW, before, now_s=0.0)
        assert {(row.calls_per_s, row.denied_per_s) for row in first} == {(None, None)}


def test_top_sorts_and_filters_and_leaves_out_built_ins_that_nobody_installed():
    known = [armed("acme.a", restart_count=1), armed("acme.b", restart_count=3), api_server.plugin("acme.c")]
    known += [armed("acme.d"), api_server.plugin("latticed.nginx", builtin=True)]
    found = activity.rows(decode.plugins(known), NOW, BEFORE, now_s=0.0)

    def order(**view):
        return [row.id[-1] for row in activity.seen(found, activity.View(**view))]

    assert order(sort="cpu") == ["a", "d", "b", "c"]
    assert order(sort="memory") == ["d", "a", "b", "c"]
    assert order(sort="restarts") == ["b", "a", "d", "c"]
    assert order(sort="calls") == ["d", "a", "b", "c"]
    assert order(sort="denied") == ["a", "b", "d", "c"]
    assert order(sort="id") == ["a", "b", "c", "d"]
    assert order(sort="id", only="ACME.B") == ["b"]
    assert set(activity.SORTS) == set(activity.KEYS.values()) == {one.sort for one in activity.COLUMNS} - {""}


@pytest.mark.parametrize(
    ("keys", "view"),
    [
        (["m"], {"sort": "memory"}),
        (["M", "x", "\x1b[A", "h"], {"sort": "calls"}),
        (["/", "a", "q", "\x7f", "c"], {"only": "ac", "typing": True}),
        (["/ac\n", "m"], {"only": "ac", "sort": "memory"}),
        (["/ac\r", "\x1b"], {}),
        (["/ac", "\x1b"], {}),
        (["/\x07ü"], {"only": "\u00fc", "typing": True}),
        (["/" + "x" * 500], {"only": "x" * 128, "typing": True}),
        (["q"], None),
        (["Q"], None),
        (["/a", "\x04"], None),
    ],
)
def test_keys_change_what_is_seen(keys, view):
    found = activity.View()
    for key in keys:
        found = activity.pressed(found, key)
    assert found == (None if view is None else activity.View(**view))


@given(st.lists(st.text(max_size=5), max_size=20))
def test_any_keys_are_taken(keys):
    found = activity.View()
    for key in keys:
        if (found := activity.pressed(found, key)) is None:
            return
    assert found.sort in activity.SORTS


@pytest.mark.parametrize("width", [24, 40, 60, 80, 200])
@pytest.mark.parametrize("sort", [*activity.SORTS])
def test_columns_fit_the_terminal(width, sort):
    """The id, what it is sorted by, and as much else as there is room for; ids are cut, not columns pushed out."""
    known = decode.plugins([armed(f"acme.{'long-' * 20}{one}", restart_count=one) for one in range(3)])
    found = activity.rows(known, NOW, BEFORE, now_s=0.0)
    text = io.StringIO()
    screen = render.Screen(out=text, err=text, width=width)
    top._print(screen, found, activity.View(sort=sort))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    shown = lines[0].split()
    assert next(one.title for one in activity.COLUMNS if one.sort == sort) in shown
    assert shown[0] == "ID"
    assert len(shown) == len(activity.COLUMNS) or width < 200


def test_ten_thousand_plugins_are_one_row_each():
    lines = [f'{name}{{plugin="acme.p{one:05}"}} {one}\n' for name in METRIC_NAMES for one in range(10_000)]
    now = activity.read("".join(lines), 2.0)
    known = decode.plugins([armed(f"acme.p{one:05}") for one in range(10_000)])
    found = activity.rows(known, now, sampled(1.0, started_s=0), now_s=0.0)
    assert [row.id for row in activity.seen(found, activity.View(sort="denied"))[:2]] == ["acme.p09999", "acme.p09998"]


METRIC_NAMES = (activity.CALLS, activity.DENIED, activity.CPU, activity.MEMORY)


def test_top_prints_once_when_not_on_a_terminal(ctl, api):
    """What was done between two looks; so too with --once on a terminal."""
    api.plugins["acme.demo"] = armed("acme.demo", restart_count=2, started_at="2001-01-01T00:00:00Z")
    api.add("acme.other")
    api.metrics = METRICS
    lines = ctl("top", "--interval", "0.1").out.splitlines()
    titles = "ID STATUS RUNTIME HEALTH CPU% MEMORY RESTARTS UPTIME CALLS/S DENIED/S CALLS DENIED"
    assert lines[0].split() == titles.split()
    assert lines[1].split()[:7] == ["acme.demo", "active", "armed", "healthy", "0.0", "20.0M", "2"]
    assert lines[1].split()[-4:] == ["0.0", "0.0", "1200", "3"]
    assert lines[2].split() == "acme.other verified stopped unknown - - 0 - 0.0 0.0 5 0".split()
    row = ctl("top", "--interval=0.1", "--format", "json", "--filter", "demo").json[0]
    assert (row["id"], row["restarts"], row["calls"], row["denied"], row["calls_per_s"]) == ("acme.demo", 2, 1200, 3, 0)
    assert (row["memory_bytes"], row["cpu_percent"]) == (20_971_520, 0)
    assert row["uptime_s"] > 0
    assert ctl("top", "--interval=0.1", "--filter", "none").err == "no plugin has 'none' in its id\n"
    assert ctl("top", "--sort", "colour").code == 2


def test_top_reports_no_plugins_and_no_daemon(ctl, api):
    assert ctl("top", "--interval=0.1").err == "no plugins\n"
    assert ctl("top", LATTICED_SOCKET="/nowhere/s").code == 7


@pytest.mark.parametrize("interval", ["0", "-1", "x", "nan", "1e9"])
def test_invalid_interval_of_top_is_a_usage_error(ctl, interval):
    assert ctl("top", f"--interval={interval}").code == 2


class Terminal:
    """latticectl top on a pseudo-terminal."""

    def __init__(self, api: api_server.Api, lines: int, *words: str) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (lines, 80))
        self.before = termios.tcgetattr(self.slave)
        environ = {"PYTHONPATH": os.pathsep.join(sys.path), "LATTICED_SOCKET": str(api.socket), "TERM": "xterm"}
        self.child = subprocess.Popen(
            [sys.executable, "-m", "latticed.ctl.main", "top", "--interval", "0.1", *words],
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

    def picture(self, wanted: bytes) -> bytes:
        """The first whole picture from now on that has `wanted`."""
        deadline_s = time.monotonic() + processes.PATIENCE_S
        os.set_blocking(self.master, False)
        self.shown = b""
        while True:
            whole = [one for one in self.shown.split(b"\x1b[H") if one.endswith(b"\x1b[J") and wanted in one]
            if whole:
                return whole[0]
            assert time.monotonic() < deadline_s, self.shown
            try:
                self.shown += os.read(self.master, 65536)
            except BlockingIOError:
                time.sleep(0.005)

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


def test_top_takes_keys_and_another_size_at_once(api):
    """With the next look a minute away: it sorts, filters, and is as wide as the window has become."""
    api.plugins = {f"acme.demo{one:02}": armed(f"acme.demo{one:02}") for one in range(50)}
    terminal = Terminal(api, 10, "--interval", "60")
    try:
        terminal.picture(b"by cpu")
        os.write(terminal.master, b"m")
        terminal.picture(b"by memory")
        os.write(terminal.master, b"/demo07\n")
        picture = terminal.picture(b"filter 'demo07'")
        assert (picture.count(b"acme.demo07"), picture.count(b"acme.demo08")) == (1, 0)
        termios.tcsetwinsize(terminal.slave, (10, 40))
        terminal.child.send_signal(signal.SIGWINCH)
        lines = terminal.picture(b"~\x1b[K").decode().replace("\x1b[K", "").replace("\r", "").split("\n")
        assert max(len(re.sub("\x1b\\[[0-9;]*[mJ]", "", line)) for line in lines) <= 40
        os.write(terminal.master, b"q")
        terminal.until(b"\x1b[?1049l")
        assert terminal.child.wait(timeout=processes.PATIENCE_S) == 0
        assert len(api.asked) == 2, "one look: the metrics and the plugins"
    finally:
        terminal.close()


def test_top_says_that_the_daemon_was_restarted(api, terminal):
    terminal.until(b"50 plugins, 50 armed")
    api.metrics = METRICS.replace("1700000000", str(int(time.time()) - 61))
    terminal.until(b"daemon restarted 1m ")
    os.write(terminal.master, b"\x04")
    terminal.until(b"\x1b[?1049l")
    assert terminal.child.wait(timeout=processes.PATIENCE_S) == 0
