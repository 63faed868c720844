"""The lines of `info` about a plugin's last hour."""

from __future__ import annotations

import io

import pytest

from latticed.ctl import last_hour, render

PATH = "GET plugins/by-id/acme.demo/history"


class Stream(io.StringIO):
    """Stdout of an encoding, a terminal or none."""

    def __init__(self, encoding: str, *, terminal: bool) -> None:
        super().__init__()
        self.coded, self.terminal = encoding, terminal

    @property
    def encoding(self):
        return self.coded

    def isatty(self):
        return self.terminal


def report(**series):
    hour = dict.fromkeys(("cpu_s", "memory_bytes", "restarts", "calls", "denied"), [0] * 60) | series
    return {"id": "acme.demo", "since": "2025-01-31T08:00:00Z", "hour": hour, "day": hour}


def shown(plain, *, encoding="utf-8", terminal=True):
    screen = render.Screen(out=Stream(encoding, terminal=terminal), err=io.StringIO(), absolute_times=True)
    return dict(last_hour.fields(plain, screen))


RISING = [float(one) for one in range(60)]


def test_last_hour_is_drawn_in_marks_of_three_minutes():
    found = shown(report(cpu_s=[one / 2 for one in RISING], calls=[0] * 57 + [6, 0, 0], denied=[0] * 57 + [2, 0, 0]))
    assert found == {
        "last hour": "a mark for 3 minutes",
        "  processor": "▂▂▂▂▃▃▃▄▄▄▅▅▆▆▆▇▇▇██  49.2 %, at most 49.2 %",
        "  host calls": "▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁█  6, 2 denied",
    }


@pytest.mark.parametrize(("encoding", "terminal"), [("utf-8", False), ("ascii", True), (None, False)])
def test_pipes_and_terminals_without_the_characters_get_plain_ones(encoding, terminal):
    found = shown(report(memory_bytes=[1 << 20] * 60), encoding=encoding, terminal=terminal)
    assert found["  memory"] == f"{'#' * 20}  1.0 MiB, at most 1.0 MiB"
    assert all(one.isascii() for one in found.values())


def test_what_is_not_known_is_blank_and_what_is_little_is_no_zero():
    """The first minutes after a start, and minutes that were left out."""
    found = shown(report(restarts=[None] * 6 + [1, 0, 0, 900, 0, 0], calls=[None] * 12), terminal=False)
    assert found == {
        "last hour": "a mark for 3 minutes, known since 2025-01-31T08:00:00Z",
        "  restarts": f"{' ' * 18}.#  901",
    }


@pytest.mark.parametrize(
    "plain",
    [None, [], {}, {"since": None, "hour": {}}, {"since": "x", "hour": 3}, {"since": "x"}],
)
def test_no_history_is_no_line(plain):
    assert shown(plain) == {}


@pytest.mark.parametrize("bad", ["x", {"a": 1}, ["x", [], -1, 1e300, None, "\x1b"], [float("nan")] * 70])
def test_numbers_that_are_none_are_unknown(bad):
    found = shown(report(calls=bad, cpu_s=bad, memory_bytes=bad, restarts=bad))
    assert [*found] == ["last hour"]


def test_info_shows_the_last_hour(ctl, api):
    """As text and JSON; a daemon that has no history is shown without."""
    api.add()
    assert "last hour" not in ctl("info", "acme.demo").out
    assert ctl("info", "acme.demo", "--format", "json").json["history"] is None
    api.override[PATH] = (200, report(calls=[2] * 60))
    assert f"  host calls  {'#' * 20}  120, 0 denied\n" in ctl("info", "acme.demo").out
    assert ctl("info", "acme.demo", "--format", "json").json["history"] == report(calls=[2] * 60)
    assert max(map(len, ctl("info", "acme.demo").out.splitlines())) <= 80
