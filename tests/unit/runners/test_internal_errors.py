"""runners.internal_errors: exceptions in the daemon while a plugin's host call is answered."""

from __future__ import annotations

import pytest

from latticed.kit.log_limit import LogLimiter
from latticed.model.hostcall import Denial
from latticed.runners import internal_errors


class Log:
    """A logger that keeps what is logged."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, int]] = []

    def error(self, event, **fields):
        self.entries.append((event, fields["count"]))


async def test_failures_under_many_method_names_log_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin chooses the method's name: a new one each time must not add lines."""
    log = Log()
    monkeypatch.setattr(internal_errors, "log", log)
    monkeypatch.setattr(internal_errors, "_FAILURES", LogLimiter())
    for number in range(1_000):
        assert internal_errors.report(f"kv.get{number}", KeyError("x")).code is Denial.INTERNAL
    internal_errors.report("kv.get", ValueError("x"))
    assert log.entries == [("host_call_failed", 1), ("host_call_failed", 1)]
