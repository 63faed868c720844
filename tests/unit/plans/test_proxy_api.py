"""When a core counts as one that hangs: a start costs everybody his connections."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from latticed.model.errors import Problem
from latticed.plans import proxy_api

PID = 4711
LOOK_S = 2.0


class Core:
    """A core that takes `needs_s` for an answer, and a clock that nothing else moves."""

    def __init__(self) -> None:
        self.now, self.needs_s = 1000.0, 0.0
        self.api = proxy_api.CoreApi()

    def asked(self, _service, _path, _body, until, *, first):
        assert first
        began, self.now = self.now, min(until, self.now + self.needs_s)
        if self.now < began + self.needs_s:
            raise Problem("tool_failed", "the core's API does not answer")
        return b"\x10\x01"  # all connections: none (`proxy.api`, `_RESET`)

    def answers(self, after_s=LOOK_S):
        self.now += after_s
        return self.api.connections({}, PID) is not None

    def looks_until_it_hangs(self, most=20):
        for look in range(most):
            self.answers()
            if self.api.hangs(PID):
                return look
        return None


@pytest.fixture
def core(monkeypatch):
    made = Core()
    monkeypatch.setattr(proxy_api, "asked", made.asked)
    monkeypatch.setattr(proxy_api, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def test_a_core_that_says_nothing_hangs_after_some_looks(core):
    core.needs_s = 3600
    began = core.now
    assert core.looks_until_it_hangs() is not None
    assert core.now - began >= proxy_api.HANGS_S


def test_a_core_that_is_late_for_a_short_wait_each_time_does_not_hang(core):
    """One with many connections tells them all: after one late answer it was given less time than that takes."""
    core.needs_s = 3600
    assert not core.answers()
    core.needs_s = (proxy_api.SILENT_S + proxy_api.ANSWER_S) / 2
    assert core.looks_until_it_hangs() is None
    assert core.answers()


def test_a_silence_of_long_ago_is_not_part_of_the_one_of_now(core):
    core.needs_s = 3600
    assert not core.answers()
    assert not core.answers(after_s=600)
    assert not core.api.hangs(PID)
    assert core.looks_until_it_hangs() is not None
